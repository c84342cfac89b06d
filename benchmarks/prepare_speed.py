"""Speed and peak memory of preparing all installed Python, and whether memory grows with the corpus.

Run alone on the machine: `python benchmarks/prepare_speed.py [SHARE ...]`, shares of the installed Python; by default
0.25, 1 and 4, and local-python itself.
"""

import json
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from results import record

from llama_code.data.sources import open_source

ROOT = Path(__file__).resolve().parents[1]
SHARES = (0.25, 1.0, 4.0)


def main() -> None:
    """Prepare shares of the installed Python in fresh caches."""
    shares = [float(share) for share in sys.argv[1:]]
    with tempfile.TemporaryDirectory() as folder:
        for share in shares or SHARES:
            source = write_share(Path(folder) / f"corpus-{share}", share)
            meta, peak_bytes = prepare(str(source), Path(folder) / f"cache-{share}")
            report(f"{share:.0%} of installed Python", meta, peak_bytes)
        if not shares:
            meta, peak_bytes = prepare("local-python", Path(folder) / "cache")
            report("local-python", meta, peak_bytes)


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


def prepare(dataset: str, cache: Path) -> tuple[dict, int]:
    """Prepare `dataset` in a fresh cache; return its meta.json and the peak resident bytes of all its processes."""
    if dataset == "local-python":
        for document in open_source(dataset).documents():  # reads all once: the disk is not what is measured
            assert document.path
    command = [sys.executable, "-m", "llama_code.data.prepare", "--dataset", dataset]
    command += ["--tokenizer", str(ROOT / "tokenizer")]
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
    stopped.set()
    watcher.join()
    if process.returncode:
        sys.exit(process.returncode)
    return json.loads((Path(output.strip()) / "meta.json").read_text()), peak[0]


def resident_bytes(pid: int) -> int:
    """Resident memory of a process and its descendants (Linux)."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except (FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
        return 0
    own = next((int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS")), 0) * 1024
    return own + sum(resident_bytes(int(child)) for child in children)


def report(arm: str, meta: dict, peak_bytes: int) -> None:
    """Print and record one preparation."""
    read, speed = meta["read"]["bytes"] / 1e6, meta["read"]["bytes"] / 1e6 / meta["seconds"]
    print(f"{arm}: {read:.0f} MB read in {meta['seconds']} s, {speed:.2f} MB/s, peak {peak_bytes / 1e6:.0f} MB")
    record("prepare_speed", arm, f"{read:.0f} MB", "speed", speed, "MB/s")
    record("prepare_speed", arm, f"{read:.0f} MB", "peak memory of all processes", peak_bytes / 1e6, "MB")


if __name__ == "__main__":
    main()
