"""What a training run survives: kills, damaged checkpoints, full disks, signals, NaN, a Hub that does not answer.

    python benchmarks/faults.py [--parts kills damages ...] [--short] [--output_dir FOLDER]

Each part makes a fault happen to runs of train_clm.py on the CPU and counts those that end as if it had not: the same
command, unaided, and weights equal bit by bit to those of a run that nothing happened to. --short makes a few of each.
`disk` needs to mount a small file system (root). Runs whose fault was not survived stay in the folder, with their
logs.
"""

import argparse
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from fault_hub import hub_faults
from fault_runs import (
    EVALUATING,
    PLACES,
    SAVING,
    TRAINING,
    Run,
    events_named,
    is_clean,
    newest,
    run_to_end,
    same_weights,
    write_config,
    write_source,
)
from results import record
from safetensors.torch import load_file

ARGUMENTS = ["--use_cpu", "true", "--train_tokens", "8000", "--eval_rows", "8", "--save_total_limit", "3"]
ARGUMENTS += ["--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "2", "--report_to", "none"]
ARGUMENTS += ["--save_steps", "4", "--disable_tqdm", "true"]
NUM_STEPS = 32


class Faults:
    """The runs of one command.

    Args:
        scratch: folder for them.
        is_short: whether a few of each fault are enough.
    """

    def __init__(self, scratch: Path, is_short: bool) -> None:
        self.scratch, self.is_short = scratch, is_short
        self.numbers = random.Random(0)
        self.failures: list[str] = []
        common = ["--config", str(write_config(scratch / "tiny")), "--dataset", str(write_source(scratch / "source"))]
        self.argv = {"map-style": [*common, *ARGUMENTS], "streaming": [*common, *ARGUMENTS, "--streaming", "true"]}
        self.reference: dict[str, Path] = {}
        self.seconds: dict[str, float] = {}
        for kind, argv in self.argv.items():
            self.reference[kind] = scratch / f"whole-{kind}"
            started = time.monotonic()
            # The first one prepares data, the second one tells better how long a run takes.
            for _ in range(self.count(2, 1)):
                shutil.rmtree(self.reference[kind], ignore_errors=True)
                started = time.monotonic()
                if run_to_end(self.reference[kind], argv):
                    sys.exit(self.reference[kind].with_suffix(".log").read_text())
            self.seconds[kind] = time.monotonic() - started

    def count(self, whole: int, few: int) -> int:
        """How many of a fault."""
        return few if self.is_short else whole

    def tell(self, fault: str, num_survived: int, number: int, more: str = "") -> None:
        """Print and record how many were survived."""
        print(f"{fault:60} {num_survived} of {number} {more}", flush=True)
        if num_survived < number:
            self.failures.append(fault)
        if not self.is_short:
            record("faults", fault, "1.1M parameters, 32 steps", "survived", num_survived, f"of {number}")

    def ends_alike(self, folder: Path, kind: str) -> bool:
        """Go on with a run; whether it ends at once, unaided and as the whole one did."""
        code = run_to_end(folder, self.argv[kind])
        is_alike = code == 0 and is_clean(folder) and same_weights(folder, self.reference[kind])
        if is_alike:
            shutil.rmtree(folder)
        else:
            print(f"  {folder.name}: exit code {code}, see {folder.with_suffix('.log')}", flush=True)
        return is_alike

    def kill_somewhere(self, run: Run, kind: str, amid_save: bool) -> bool:
        """Kill a run at a random moment, or at one amid a random one of its saves; whether it was amid a save."""
        if amid_save:
            wanted = self.numbers.randrange(6)
            for i in range(wanted + 1):
                if not run.wait_until(lambda: run.is_staging):
                    break
                if i < wanted and not run.wait_until(lambda: not run.is_staging):
                    break
            time.sleep(self.numbers.uniform(0, 0.1))
        else:
            end = time.monotonic() + self.numbers.uniform(0.05, 0.95) * self.seconds[kind]
            run.wait_until(lambda: time.monotonic() > end)
        if run.poll() is None:
            run.kill(signal.SIGKILL)
        else:  # it was faster than the one that was timed
            self.seconds[kind] = min(self.seconds[kind], time.monotonic() - run.started)
        return run.is_staging

    def kills(self) -> None:
        """Kill -9 at random moments."""
        numbers = (0, 3) if self.is_short else range(100)
        num_survived = num_amid = 0
        for i in numbers:
            kind = ("map-style", "streaming")[i % 2]
            while True:
                run = Run(self.scratch / f"kill-{i}", self.argv[kind])
                is_amid = self.kill_somewhere(run, kind, amid_save=i % 4 >= 2)
                if run.exit_code == -signal.SIGKILL:
                    break
                shutil.rmtree(run.folder)
            num_amid += is_amid
            num_survived += self.ends_alike(run.folder, kind)
        more = f"({num_amid} with an unfinished checkpoint)"
        self.tell("kill -9", num_survived, len(numbers), more)

    def three(self) -> None:
        """Kill -9 three times in one run."""
        number = self.count(10, 1)
        num_survived = 0
        for i in range(number):
            kind = ("map-style", "streaming")[i % 2]
            folder = self.scratch / f"three-{i}"
            for j in range(3):
                self.kill_somewhere(Run(folder, self.argv[kind]), kind, amid_save=j == 1)
            num_survived += self.ends_alike(folder, kind)
        self.tell("kill -9, three times in a run", num_survived, number)

    def damages(self) -> None:
        """Damage the newest checkpoint of a run that was killed."""
        base = self.scratch / "damages"
        run = Run(base, self.argv["map-style"])
        run.wait_until(lambda: (base / "checkpoint-16").exists())
        run.kill(signal.SIGKILL)
        num_noticed = num_survived = 0
        # The short form's is one: that each is noticed is tested without runs.
        damages = dict(list(DAMAGES.items())[: self.count(len(DAMAGES), 1)])
        for name, damage in damages.items():
            folder = self.scratch / f"damaged {name}"
            shutil.copytree(base, folder)
            step, checkpoint = newest(folder)
            damage(checkpoint, folder / f"checkpoint-{step - 4}")
            code = run_to_end(folder, self.argv["map-style"])
            refused, resumed = events_named(folder, "refused_checkpoint"), events_named(folder, "resume")
            is_noticed = [x["checkpoint"] for x in refused] == [checkpoint.name]
            is_alike = code == 0 and same_weights(folder, self.reference["map-style"])
            num_noticed += is_noticed
            num_survived += is_alike and is_noticed and resumed[-1]["step"] == step - 4
            print(f"  {name:40} {refused[0]['reason'] if refused else 'NOT NOTICED'}", flush=True)
        self.tell("newest checkpoint damaged: noticed", num_noticed, len(damages))
        self.tell("newest checkpoint damaged: goes on from the one before", num_survived, len(damages))

    def disk(self) -> None:
        """Fill the disk before a save, and make room later."""
        num_survived, number = 0, self.count(5, 1)
        for i in range(number):
            place = self.scratch / f"disk-{i}"
            place.mkdir()
            subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100m", "none", str(place)], check=True)
            try:
                folder, filler = place / "run", place / "filler"
                run = Run(folder, self.argv["map-style"], notes=self.scratch / f"disk-{i}-run")
                run.wait_until(lambda folder=folder: (folder / "checkpoint-8").exists())
                fill(filler, leave=self.numbers.randrange(12) * 2**20)
                failed = run.wait_until(lambda folder=folder: bool(events_named(folder, "save_failed")))
                left = sorted(path.name for path in folder.glob("checkpoint-*"))
                filler.unlink()
                code = run.wait()
                reason = [event["reason"] for event in events_named(folder, "save_failed")][:1]
                is_alike = code == 0 and is_clean(folder) and same_weights(folder, self.reference["map-style"])
                print(f"  exit code {code}, {reason}, then held {left}, whole at the end: {is_alike}", flush=True)
                num_survived += failed and bool(left) and is_alike
            finally:
                subprocess.run(["umount", "-l", str(place)], check=True)
        self.tell("disk full at a save, then space again", num_survived, number)

    def signals(self) -> None:
        """SIGTERM while a run trains, evaluates and saves."""
        argv = [*self.argv["map-style"], "--eval_strategy", "steps", "--eval_steps", "4"]
        number = self.count(20, 1)
        for phase in (TRAINING, EVALUATING, SAVING):
            num_survived, most_lost = 0, 0
            for i in range(number):
                run = Run(self.scratch / f"term-{phase}-{i}", argv)
                begun = self.numbers.randrange(2, 24)

                def is_there(run: Run = run, begun: int = begun, phase: str = phase) -> bool:
                    done = run.phases()
                    return bool(done) and done[-1][0] == phase and done[-1][1] >= begun

                run.wait_until(is_there)
                code = run.kill(signal.SIGTERM)
                stops = events_named(run.folder, "stop")
                # Steps that were begun, one of which may have been under way.
                steps_begun = 1 + max((step for name, step in run.phases() if name == TRAINING), default=-1)
                saved = stops[-1]["step"] if stops and stops[-1]["saved"] else -1
                most_lost = max(most_lost, steps_begun - saved)
                is_saved = code == 143 and saved >= 0 and (run.folder / f"checkpoint-{saved}").is_dir()
                resumed = self.ends_alike(run.folder, "map-style")
                num_survived += is_saved and steps_begun - saved <= 1 and resumed
            self.tell(f"SIGTERM while {phase}", num_survived, number, f"(at most {most_lost} steps lost)")

    def nonfinite(self) -> None:
        """Plant what is not finite in a step, then in many."""
        num_survived = 0
        places = dict(list(PLACES.items())[-self.count(len(PLACES), 1) :])
        for name, (place, value) in places.items():
            folder = self.scratch / name
            code = run_to_end(folder, self.argv["map-style"], planted=(place, value, range(9, 10)))
            skips = events_named(folder, "skip")
            is_well = code == 0 and is_finite(folder) and [skip["step"] for skip in skips] == [9]
            num_survived += is_well and len(skips[0]["rows"]) == 4
            print(f"  {name:40} exit code {code}, skipped {[skip['step'] for skip in skips]}", flush=True)
        self.tell("a value that is not finite, in one step", num_survived, len(places))
        if self.is_short:
            return
        folder = self.scratch / "many"
        code = run_to_end(folder, self.argv["map-style"], planted=("gradient", float("nan"), range(9, 14)))
        returns = events_named(folder, "go_back")
        is_well = code == 2 and is_finite(folder / "checkpoint-8") and [x["to_step"] for x in returns] == [8] * 3
        self.tell("NaN in the same steps whatever the data: ends with an error", int(is_well), 1)

    def hub(self) -> None:
        """A Hub that refuses, hangs or fails midway."""
        outcomes = hub_faults(self.scratch, self.argv["map-style"], self.reference["map-style"])
        for name, (is_alike, is_pushed) in outcomes.items():
            self.tell(f"Hub {name}: the run ends as it should", int(is_alike), 1)
            self.tell(f"Hub {name}: pushed, or how to is said", int(is_pushed), 1)


def fill(path: Path, leave: int) -> None:
    """Fill a disk but for some bytes."""
    with path.open("wb") as file:
        free = shutil.disk_usage(path.parent).free - leave
        piece = b"\0" * 2**16
        for _ in range(free // len(piece)):
            file.write(piece)


def is_finite(folder: Path) -> bool:
    """Whether a model has finite weights."""
    return all(bool(torch.isfinite(weight).all()) for weight in load_file(folder / "model.safetensors").values())


def _cut(name: str, size: Callable[[int], int]) -> Callable[[Path, Path], None]:
    def damage(checkpoint: Path, _: Path) -> None:
        data = (checkpoint / name).read_bytes()
        (checkpoint / name).write_bytes(data[: size(len(data))])

    return damage


def _flip(name: str) -> Callable[[Path, Path], None]:
    def damage(checkpoint: Path, _: Path) -> None:
        data = bytearray((checkpoint / name).read_bytes())
        data[len(data) * 2 // 3] ^= 4
        (checkpoint / name).write_bytes(data)

    return damage


def _zero_tail(name: str) -> Callable[[Path, Path], None]:
    def damage(checkpoint: Path, _: Path) -> None:
        data = (checkpoint / name).read_bytes()
        (checkpoint / name).write_bytes(data[: len(data) // 2].ljust(len(data), b"\0"))

    return damage


def _take(name: str) -> Callable[[Path, Path], None]:
    return lambda checkpoint, older: shutil.copy(older / name, checkpoint / name)  # type: ignore[return-value]


def _edit(name: str, old: str, new: str) -> Callable[[Path, Path], None]:
    def damage(checkpoint: Path, _: Path) -> None:
        text = (checkpoint / name).read_text()
        assert old in text
        (checkpoint / name).write_text(text.replace(old, new, 1))

    return damage


DAMAGES: dict[str, Callable[[Path, Path], None]] = {
    "weights cut": _cut("model.safetensors", lambda size: size // 2),
    "weights, one bit": _flip("model.safetensors"),
    "weights, zeroed tail": _zero_tail("model.safetensors"),
    "weights of another checkpoint": _take("model.safetensors"),
    "optimizer missing": lambda checkpoint, _: (checkpoint / "optimizer.pt").unlink(),
    "optimizer, one bit": _flip("optimizer.pt"),
    "older optimizer": _take("optimizer.pt"),
    "scheduler empty": _cut("scheduler.pt", lambda size: 0),
    "scheduler, one bit": _flip("scheduler.pt"),
    "random numbers, one bit": _flip("rng_state.pth"),
    "random numbers missing": lambda checkpoint, _: (checkpoint / "rng_state.pth").unlink(),
    "state edited": _edit("trainer_state.json", '"global_step": ', '"global_step": 1'),
    "manifest missing": lambda checkpoint, _: (checkpoint / "manifest.json").unlink(),
    "manifest edited": _edit("manifest.json", '"size": ', '"size": 1'),
}
PARTS = ("kills", "three", "damages", "disk", "signals", "nonfinite", "hub")


def main() -> None:
    """Make the faults."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--short", action="store_true", help="a few of each, recorded nowhere")
    parser.add_argument("--output_dir", help="folder for the runs (default: a temporary one)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        scratch = Path(options.output_dir or temporary).resolve()
        scratch.mkdir(parents=True, exist_ok=True)
        faults = Faults(scratch, options.short)
        for part in options.parts:
            getattr(faults, part)()
    if faults.failures:
        sys.exit(f"not survived: {'; '.join(faults.failures)}")


if __name__ == "__main__":
    main()
