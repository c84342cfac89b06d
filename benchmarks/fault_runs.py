"""Runs of train_clm.py for benchmarks/faults.py: forked from a process that has imported everything, watched, killed.

A run is what `python train_clm.py` is, in a process of its own, but for the seconds that Python's imports take; it is
seen from outside by its folder, and by a file in which it writes what it is doing.
"""

import json
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
import train_clm  # noqa: E402  the script at the root
from llama_code.errors import run_script  # noqa: E402
from llama_code.training import pushes  # noqa: E402
from llama_code.training.checkpoints import STAGING_FOLDER, list_checkpoints  # noqa: E402
from llama_code.training.events import read_events  # noqa: E402
from llama_code.training.trainer import CodeTrainer  # noqa: E402

LONGEST_SECONDS = 240.0
# How long an upload may take here, how long a run waits before the next, and how long its end waits for all.
UPLOAD_SECONDS, DELAY, PUSH_SECONDS = 8.0, 1.0, 40.0
TRAINING, EVALUATING, SAVING = "training", "evaluating", "saving"
# Where a value that is not finite is planted: on what, and what.
PLACES = {
    "NaN in a loss": ("loss", float("nan")),
    "Inf in a loss": ("loss", float("inf")),
    "NaN in a gradient": ("gradient", float("nan")),
    "Inf in a gradient": ("gradient", float("inf")),
    "NaN in one row": ("row", float("nan")),
}


class Observed(CodeTrainer):
    """Writes what it is doing, and plants what is not finite.

    Attributes:
        phase_file: gets the phase and the steps that were begun, a line a change.
        planted: what and in which steps.
    """

    phase_file: Path
    planted: tuple[str, float, range] | None = None

    def tell(self, phase: str) -> None:
        with self.phase_file.open("a") as file:
            file.write(f"{phase} {self.state.global_step}\n")

    def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        self.tell(TRAINING)
        if self.planted is None or self.state.global_step not in self.planted[2]:
            return super().training_step(model, inputs, *args, **kwargs)
        place, value, _ = self.planted
        if place == "row":
            embedding = model.get_input_embeddings()

            def plant(module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
                return output.masked_fill(torch.arange(len(output))[:, None, None] == 1, value)

            handle = embedding.register_forward_hook(plant)
            loss = super().training_step(model, inputs, *args, **kwargs)
            handle.remove()
            return loss
        if place == "loss":
            return super().training_step(model, {**inputs, "planted": value}, *args, **kwargs)
        loss = super().training_step(model, inputs, *args, **kwargs)
        gradient = next(x.grad for x in model.parameters() if x.grad is not None)
        gradient.view(-1)[3] = value
        return loss

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        value = inputs.pop("planted", None)
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        return loss if value is None else loss * value

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        self.tell(EVALUATING)
        metrics = super().evaluate(*args, **kwargs)
        self.tell(TRAINING)
        return metrics

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        self.tell(SAVING)
        super()._save_checkpoint(*args, **kwargs)
        self.tell(TRAINING)


class Run:
    """One process of a run.

    Args:
        folder: the run's `--output_dir`.
        argv: other arguments of train_clm.py.
        planted: as `Observed` has it.
        environment: variables of its own.
        notes: path, without a suffix, of the files of what it does and prints; by default beside the folder.
    """

    def __init__(
        self,
        folder: Path,
        argv: list[str],
        planted: tuple[str, float, range] | None = None,
        environment: dict[str, str] | None = None,
        notes: Path | None = None,
    ) -> None:
        self.folder = folder
        self.log, self.phase_file = ((notes or folder).with_suffix(suffix) for suffix in (".log", ".phase"))
        self.phase_file.write_text("")
        self.started = time.monotonic()
        self.pid = os.fork()
        self.exit_code: int | None = None
        if self.pid == 0:
            self._be_it([*argv, "--output_dir", str(folder)], planted, environment or {})

    def _be_it(self, argv: list[str], planted: tuple[str, float, range] | None, environment: dict[str, str]) -> None:
        code = 1
        try:
            with self.log.open("ab") as log:
                os.dup2(log.fileno(), 1)
                os.dup2(log.fileno(), 2)
            os.environ.update(environment)
            pushes.FEWEST_UPLOAD_SECONDS, pushes.FIRST_DELAY = UPLOAD_SECONDS, DELAY
            pushes.LAST_SECONDS = PUSH_SECONDS
            Observed.phase_file, Observed.planted = self.phase_file, planted
            train_clm.CodeTrainer = Observed  # type: ignore[misc]
            sys.argv = ["train_clm.py", *argv]
            run_script(train_clm.main)
            code = 0
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1
        except BaseException:
            traceback.print_exc()
            raise
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def poll(self) -> int | None:
        """The exit code, negative of a signal; None while it runs."""
        if self.exit_code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.exit_code = os.waitstatus_to_exitcode(status)
            elif time.monotonic() - self.started > LONGEST_SECONDS:
                os.kill(self.pid, signal.SIGKILL)
                raise RuntimeError(f"{self.folder} took more than {LONGEST_SECONDS:.0f} s")
        return self.exit_code

    def wait(self) -> int:
        """Wait for its end."""
        while (code := self.poll()) is None:
            time.sleep(0.01)
        return code

    def wait_until(self, is_so: Callable[[], bool]) -> bool:
        """Wait until something is so; returns whether it was before the end."""
        while self.poll() is None:
            if is_so():
                return True
            time.sleep(0.0005)
        return False

    def phases(self) -> list[tuple[str, int]]:
        """What it has done so far: phases and the steps before them."""
        lines = self.phase_file.read_text().splitlines()
        return [(phase, int(step)) for phase, step in (line.split() for line in lines if line.count(" ") == 1)]

    def kill(self, number: int) -> int:
        """Send a signal and wait for the end."""
        os.kill(self.pid, number)
        return self.wait()

    @property
    def is_staging(self) -> bool:
        """Whether an unfinished checkpoint lies in its folder."""
        return (self.folder / STAGING_FOLDER).exists()


def run_to_end(folder: Path, argv: list[str], **options: Any) -> int:
    """Run until the end; returns the exit code."""
    return Run(folder, argv, **options).wait()


def same_weights(folder: Path, other: Path) -> bool:
    """Whether two runs' models are equal, bit by bit."""
    if not (folder / "model.safetensors").exists():
        return False
    ours, theirs = (load_file(path / "model.safetensors") for path in (folder, other))
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def is_clean(folder: Path) -> bool:
    """Whether nothing half-made is left in a folder."""
    return not any(path.name.startswith(".") or path.suffix == ".tmp" for path in folder.iterdir())


def newest(folder: Path) -> tuple[int, Path]:
    """Step and folder of the newest checkpoint."""
    return list_checkpoints(folder)[0]


def events_named(folder: Path, name: str) -> list[dict[str, Any]]:
    """Events of a kind."""
    return [event for event in read_events(folder) if event["event"] == name]


def write_config(folder: Path) -> Path:
    """A model of 1.1M parameters with dropout, rows of 64 tokens and steps of four rows."""
    folder.mkdir()
    fields = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 16}
    fields |= {"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 64}
    base = json.loads((ROOT / "recipes" / "m1" / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**base, **fields, "attention_dropout": 0.1}))
    (folder / "train.yaml").write_text(
        "learning_rate: 1.0e-2\nbatch_tokens: 256\npaper_batch_rows: 1\nmicro_batch_rows: 2\n"
    )
    return folder


def write_source(folder: Path) -> Path:
    """Sixty small projects."""
    numbers = random.Random(0)
    for i in range(60):
        (folder / f"p{i}").mkdir(parents=True)
        functions = (f"def f{i}_{j}(x):\n    return x * {numbers.randint(0, 9999)} + {j}\n" for j in range(30))
        (folder / f"p{i}" / "a.py").write_text("\n".join(functions))
    return folder
