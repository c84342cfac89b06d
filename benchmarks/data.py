"""Data: preparing all installed Python, encoding against datasets.map, near-duplicates against datasketch, resuming.

    python benchmarks/data.py [--parts prepare memory encode near_dedup resume]

Run alone on the machine. Fetching contents has a benchmark of its own, fetch_contents.py.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import datasets
import numpy as np
from accelerate import skip_first_batches
from datasketch import MinHash
from results import record
from torch.utils.data import DataLoader, SequentialSampler
from transformers import AutoTokenizer

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "data"))

from planted import planted_documents, recall_and_precision, run_set

from llama_code.data import stages
from llama_code.data.corpus import training_texts
from llama_code.data.near_dedup import NUM_PERMUTATIONS, near_duplicates, signatures
from llama_code.data.options import DataOptions
from llama_code.data.prepare import begin, in_parallel, make_plan
from llama_code.data.shingles import word_hashes
from llama_code.data.sources import open_source
from llama_code.training.rows import RunRows

ROOT = Path(__file__).resolve().parents[1]
TOKENIZER = ROOT / "tokenizer"
SHARES = (0.25, 1.0, 4.0)
NUM_ROUNDS = 3
ENCODED_BYTES = 60_000_000


def main() -> None:
    """Measure, print and record."""
    parts = {"prepare": all_installed, "memory": memory, "encode": encode, "near_dedup": near_dedup, "resume": resume}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=parts, default=list(parts))
    for part in parser.parse_args().parts:
        parts[part]()


def all_installed() -> None:
    """Everything from files to tokens: filters, near-duplicates, decontamination, encoding, packing."""
    with tempfile.TemporaryDirectory() as folder:
        report("local-python", *prepare("local-python", Path(folder)))


def memory() -> None:
    """Whether memory grows with the corpus."""
    for share in SHARES:
        with tempfile.TemporaryDirectory() as folder:
            source = write_share(Path(folder) / "corpus", share)
            report(f"{share:.0%} of installed Python", *prepare(str(source), Path(folder) / "cache"))


def encode() -> None:
    """The stage that encodes against datasets.map, the same texts, tokenizer and number of processes."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["LLAMA_CODE_CACHE"] = str(folder / "cache")
        texts, size = [], 0
        for number, text in enumerate(training_texts("local-python")):
            (folder / "corpus" / f"p{number % 50}").mkdir(parents=True, exist_ok=True)
            (folder / "corpus" / f"p{number % 50}" / f"{number}.py").write_text(text)
            texts.append(text)
            size += len(text.encode())
            if size > ENCODED_BYTES:
                break
        plan, _ = make_plan(DataOptions(str(folder / "corpus"), near_dedup=False, decontaminate=False), TOKENIZER)
        begin(plan, TOKENIZER)
        shards = range(plan.num_shards)
        in_parallel(stages.screen_task, plan, shards, "screening", None, False)
        stages.select_task(plan)
        table = datasets.Dataset.from_dict({"text": texts})
        times: dict[str, list[float]] = {"llama-code": [], "datasets.map": []}
        for number in range(NUM_ROUNDS):
            started = time.perf_counter()
            in_parallel(stages.encode_task, plan, shards, "encoding", None, False)
            times["llama-code"].append(time.perf_counter() - started)
            Path(plan.work, "encoded").rename(folder / f"encoded-{number}")
            started = time.perf_counter()
            table.map(
                tokenize,
                batched=True,
                num_proc=len(os.sched_getaffinity(0)),
                remove_columns=["text"],
                cache_file_name=str(folder / f"map-{number}.arrow"),
                load_from_cache_file=False,
            )
            times["datasets.map"].append(time.perf_counter() - started)
    speeds = {arm: size / 1e6 / statistics.median(own) for arm, own in times.items()}
    for arm, speed in speeds.items():
        print(f"encoding, {arm}: {speed:.2f} MB/s", flush=True)
        record("data", arm, f"{size / 1e6:.0f} MB", "encoding", speed, "MB/s")
    record(
        "data", "llama-code over datasets.map", "", "encoding", speeds["llama-code"] / speeds["datasets.map"], "times"
    )


def tokenize(batch: dict) -> dict:
    """What fine-tuning scripts give to datasets.map."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # as many processes as cores
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    return {"input_ids": tokenizer(batch["text"], add_special_tokens=False, return_attention_mask=False)["input_ids"]}


def near_dedup() -> None:
    """Signatures against datasketch's, and what is found on a planted set of 1,000 documents."""
    sample = [text for _, text in zip(range(400), training_texts("local-python"), strict=False)]
    size = sum(len(text.encode()) for text in sample) / 1e6
    times: dict[str, list[float]] = {"rensa": [], "datasketch": []}
    for _ in range(NUM_ROUNDS):
        started = time.perf_counter()
        signatures([word_hashes(text) for text in sample])
        times["rensa"].append(time.perf_counter() - started)
        started = time.perf_counter()
        for text in sample:
            MinHash(NUM_PERMUTATIONS).update_batch([" ".join(run).encode() for run in run_set(text)])
        times["datasketch"].append(time.perf_counter() - started)
    for arm, own in times.items():
        print(f"signatures, {arm}: {size / statistics.median(own):.2f} MB/s", flush=True)
        record("data", arm, f"{size:.1f} MB", "MinHash signatures, one process", size / statistics.median(own), "MB/s")
    texts = [text[:20_000] for text in sample if len(text) > 3000][:125]
    documents = planted_documents(texts, num_copies=7)[:1000]
    found = near_duplicates(signatures([word_hashes(text) for _, text in documents]), np.zeros(len(documents), bool))
    recall, precision, num_pairs = recall_and_precision(documents, found)
    print(f"{len(documents)} planted documents, {num_pairs} pairs at 0.8 or more: recall {recall:.4f}")
    print(f"{len(found)} reported pairs: {precision:.4f} at 0.6 or more", flush=True)
    record("data", "llama-code", f"{num_pairs} pairs", "near-duplicates, recall at 0.8", recall, "share")
    record("data", "llama-code", f"{len(found)} pairs", "near-duplicates, reported at 0.6 or more", precision, "share")


def resume() -> None:
    """The first batch of a run that is taken up at step 1,000,000, of 32 rows a step."""
    started = time.perf_counter()
    rows = RunRows(np.zeros((25_000, 2048), np.uint16), 1_000_100 * 32 * 2048, seed=0)
    loader = DataLoader(rows, batch_size=32, sampler=SequentialSampler(rows))
    next(iter(skip_first_batches(loader, 1_000_000)))
    seconds = time.perf_counter() - started
    print(f"resuming at step 1,000,000: {seconds:.2f} s", flush=True)
    record("data", "llama-code", "32 rows a step", "first batch at step 1,000,000", seconds, "s")


def write_share(folder: Path, share: float) -> Path:
    """Copy the first `share` of the files of each installed package into `folder`, a subfolder a package.

    Above 1, each file is copied that often, with a last line that tells the copies apart.
    """
    site_packages = [Path(path) for path in sys.path if path.endswith("site-packages")]
    for i, root in enumerate(site_packages):
        for package in sorted(path for path in root.iterdir() if path.is_dir()):
            files = sorted(package.rglob("*.py"))
            for j, file in enumerate(files[: round(min(share, 1) * len(files))]):
                for copy in range(max(1, round(share))):
                    target = folder / f"{i}-{package.name}" / f"{j:05}-{copy}.py"
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(file.read_bytes() + b"\n# %d\n" % copy * (copy > 0))
    return folder


def prepare(dataset: str, cache: Path) -> tuple[dict, float, int]:
    """Prepare `dataset` in a fresh cache.

    Returns:
        Its meta.json, seconds, and the peak resident bytes of all its processes.
    """
    if dataset == "local-python":
        for document in open_source(dataset).documents():  # reads all once: the disk is not what is measured
            assert document.path
    command = [sys.executable, "-m", "llama_code.data.prepare", "--dataset", dataset]
    command += ["--tokenizer", str(TOKENIZER)]
    started = time.perf_counter()
    process = subprocess.Popen(
        command, env={**os.environ, "LLAMA_CODE_CACHE": str(cache)}, stdout=subprocess.PIPE, text=True
    )
    peak = [0]
    stopped = threading.Event()

    def watch() -> None:
        while not stopped.wait(0.1):
            peak[0] = max(peak[0], resident_bytes(process.pid))

    watcher = threading.Thread(target=watch)
    watcher.start()
    output, _ = process.communicate()
    seconds = time.perf_counter() - started
    stopped.set()
    watcher.join()
    if process.returncode:
        sys.exit(process.returncode)
    return json.loads((Path(output.strip()) / "meta.json").read_text()), seconds, peak[0]


def resident_bytes(pid: int) -> int:
    """Resident memory of a process and its descendants (Linux)."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except (FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
        return 0
    own = next((int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS")), 0) * 1024
    return own + sum(resident_bytes(int(child)) for child in children)


def report(arm: str, meta: dict, seconds: float, peak_bytes: int) -> None:
    """Print and record one preparation."""
    read = meta["read"]["bytes"] / 1e6
    speed = read / seconds
    print(
        f"{arm}: {read:.0f} MB read in {seconds:.1f} s, {speed:.2f} MB/s, peak {peak_bytes / 1e6:.0f} MB", flush=True
    )
    record("data", arm, f"{read:.0f} MB", "files to tokens", speed, "MB/s")
    record("data", arm, f"{read:.0f} MB", "peak memory of all processes", peak_bytes / 1e6, "MB")


if __name__ == "__main__":
    main()
