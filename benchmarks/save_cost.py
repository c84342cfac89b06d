"""What checkpoints cost a run on a GPU: how long training waits for one, and how much slower the next steps are.

    python benchmarks/save_cost.py [--size m3] [--dataset FOLDER] [--against FOLDER]

Trains with a checkpoint every 20 steps, and takes from the run's own logs the seconds of each step: those from a save
to the end of its writing, less as many median seconds, are its cost, told as a share of ten minutes. --against names
another version of this repository, whose steps without checkpoints are timed in the same way before and after, for
what all else that is done at every step costs. Writes go to the folder of temporary files, whose disk decides.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from results import record

from llama_code.training.checkpoints import list_checkpoints
from llama_code.training.events import read_events
from llama_code.training.throughput import device_name

ROOT = Path(__file__).resolve().parents[1]
BATCH_TOKENS = {"m1": 65_536, "m2": 131_072, "m3": 262_144}
SAVE_STEPS, NUM_SAVES = 20, 3
# Steps at the beginning, in which all is compiled.
FIRST = 5
BETWEEN_SAVES = 600.0


def step_seconds(
    repository: Path, size: str, dataset: str, num_steps: int, folder: Path, *options: str
) -> list[float]:
    """Train; returns the seconds of each step from the second on, by the tokens/s that it logged."""
    tokens = BATCH_TOKENS[size]
    command = [
        sys.executable, str(repository / "train_clm.py"), "--config", size, "--dataset", dataset,
        "--output_dir", str(folder), "--batch_tokens", str(tokens), "--train_tokens", str(tokens * num_steps),
        "--logging_steps", "1", "--eval_rows", "8", "--report_to", "none", "--disable_tqdm", "true", *options,
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(repository), os.environ.get("PYTHONPATH", "")])}
    with folder.with_suffix(".log").open("w") as log:
        result = subprocess.run(command, cwd=repository, env=environment, stdout=log, stderr=log)
    text = folder.with_suffix(".log").read_text()
    if result.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{text[-3000:]}")
    speeds = re.findall(r"'tokens_per_second': '?([\d.e+]+)", text)
    return [tokens / float(speed) for speed in speeds]


def cost_of_saves(seconds: list[float], saves: list[dict[str, Any]], median: float) -> list[float]:
    """Seconds that each save adds to the steps after it, until it is written."""
    costs = []
    for save in saves:
        # The first step's speed is logged with the second: seconds[i] is of step i + 2.
        after = seconds[save["step"] - 1 :]
        left, extra = save["seconds"] + save["blocked_seconds"], 0.0
        for step in after:
            if left <= 0:
                break
            extra += step - median
            left -= step
        costs.append(extra)
    return costs


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=BATCH_TOKENS, default="m3")
    parser.add_argument("--dataset", default="local-python")
    parser.add_argument("--against", type=Path, help="another version of the repository")
    options = parser.parse_args()
    size, device = options.size, device_name(torch.device("cuda"))

    def tell(arm: str, metric: str, value: float, unit: str) -> None:
        print(f"{arm:45} {metric:45} {value:10.4f} {unit}", flush=True)
        record("save_cost", arm, size, metric, value, unit, device)

    with tempfile.TemporaryDirectory() as scratch:

        def plain(repository: Path, name: str) -> float:
            folder = Path(scratch, name)
            seconds = step_seconds(repository, size, options.dataset, 20, folder, "--save_strategy", "no")
            tell(f"{name}, without saves", "median step", statistics.median(seconds[FIRST:]), "s")
            return statistics.median(seconds[FIRST:])

        before = [plain(options.against.resolve(), "before")] if options.against else []
        folder = Path(scratch, "saves")
        num_steps = SAVE_STEPS * NUM_SAVES + SAVE_STEPS // 2
        seconds = step_seconds(ROOT, size, options.dataset, num_steps, folder, "--save_steps", str(SAVE_STEPS))
        median = statistics.median(seconds[FIRST:])
        saves = [event for event in read_events(folder) if event["event"] == "save" and event["step"] < num_steps]
        for save in saves:
            print(json.dumps(save), flush=True)
        tell("saves", "median step", median, "s")
        tell("saves", "training waits for one, the longest", max(x["blocked_seconds"] for x in saves), "s")
        tell("saves", "written in, the longest", max(x["seconds"] for x in saves), "s")
        tell("saves", "size", saves[0]["bytes"] / 2**30, "GiB")
        costs = cost_of_saves(seconds, saves, median)
        tell("saves", "added to the steps after one, the most", max(costs), "s")
        tell("saves", "one in ten minutes, the most", max(costs) / BETWEEN_SAVES, "share of the time")
        print(f"  {[round(cost, 2) for cost in costs]}; newest {list_checkpoints(folder)[0][1].name}", flush=True)
        if options.against:
            after = plain(ROOT, "now")
            before.append(plain(options.against.resolve(), "before, again"))
            tell("now, without saves", "against before", after / statistics.mean(before) - 1, "share of the time")


if __name__ == "__main__":
    main()
