"""One table of a training run and its evaluations: `python -m llama_code.evaluation.summary RUN_DIR`.

Reads RUN_DIR/run.json and every RUN_DIR/eval/*/results.json; writes RUN_DIR/summary.md and RUN_DIR/results.json.
"""

import argparse
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llama_code.errors import UserError, run_script
from llama_code.evaluation.table import RESULT_HEADER, markdown_table, result_rows
from llama_code.training.run_record import RUN_FILE, write_json


def summarize_run(run_dir: Path) -> dict[str, Any]:
    """Collect a run's figures.

    Returns:
        `{"model": the folder, "train": run.json, "evaluations": {name of the folder below eval/: results.json}}`.

    Raises:
        UserError: the folder holds no finished run, or a file in it is not what it should be.
    """
    if not (run_dir / RUN_FILE).is_file():
        raise UserError(
            f"run folder {str(run_dir)!r} has no {RUN_FILE}; give the --output_dir of a finished training run"
        )
    evaluations = {path.parent.name: _read(path) for path in sorted(run_dir.glob("eval/*/results.json"))}
    return {"model": str(run_dir), "train": _read(run_dir / RUN_FILE), "evaluations": evaluations}


def _read(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # JSONDecodeError, UnicodeDecodeError; nesting without end
        raise UserError(f"{str(path)!r} is no JSON ({error}); remove it and run what wrote it again") from error
    if not isinstance(value, dict):
        raise UserError(
            f"{str(path)!r} holds a {type(value).__name__} and must hold an object; run what wrote it again"
        )
    return value


@contextmanager
def _known_form(path: Path) -> Iterator[None]:
    """Word what reading the figures of another version's file raises."""
    try:
        yield
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
        raise UserError(
            f"{str(path)!r} holds figures in another form than this version's ({type(error).__name__}: {error}); run "
            "what wrote it again"
        ) from error


def summary_table(summary: dict[str, Any]) -> str:
    """Return the table of what `summarize_run` collected; figures that run.json does not name are left out.

    Raises:
        UserError: figures have another form than this version writes.
    """
    run_dir, train = Path(summary["model"]), summary["train"]
    with _known_form(run_dir / RUN_FILE):
        rows = _train_rows(train, train.get("size", run_dir.name))
    for evaluation, results in summary["evaluations"].items():
        with _known_form(run_dir / "eval" / evaluation / "results.json"):
            rows += [[f"{row[0]} ({evaluation})", *row[1:]] for row in result_rows(results["tasks"])]
    return markdown_table(RESULT_HEADER, rows)


def _train_rows(train: dict[str, Any], name: str) -> list[list[str]]:
    rows = []
    for key, measure, form, over in (
        ("num_parameters", "parameters", ",", ""),
        ("tokens", "tokens trained on", ",", train.get("dataset", "")),
        ("seconds", "seconds", ",.1f", train.get("device", "")),
        ("train_loss", "loss, nats a token", ".4f", "the run's rows"),
    ):
        if key in train:
            rows.append([f"train {name}", measure, format(train[key], form), "", str(over)])
    for key, when in (("initial", "before training"), ("final", "after training")):
        if "bits_per_byte" in train.get(key, {}):
            value = f"{train[key]['bits_per_byte']:.4f}"
            rows.append([f"train {name}", f"bits per byte {when}", value, "", "held-out rows"])
    return rows


def main() -> None:
    """Print and save the summary of a run."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("run_dir", type=Path, help="the --output_dir of a training run, with its evaluations in eval/")
    run_dir = parser.parse_args().run_dir
    summary = summarize_run(run_dir)
    table = summary_table(summary)
    write_json(run_dir / "results.json", summary)
    (run_dir / "summary.md").write_text(table + "\n", encoding="utf-8")
    print(table)
    print(f"files: {run_dir / 'summary.md'}, {run_dir / 'results.json'}")


if __name__ == "__main__":
    run_script(main)
