"""The same run with the reference's and with the fused kernels, in fp32 and in bf16: do their losses stay together?

    python benchmarks/kernel_curves.py [--batch_tokens 32768] [--runs "reference, fp32" "fused, bf16" ...]
    python benchmarks/kernel_curves.py --plot

The first command needs a GPU; it writes its curves to kernel_curves.csv beside this script, in place of earlier ones
of the same batch and kind. The second draws all into docs/. 300 steps of m2 on the Python of the machine, at the
recipe's learning rate; the recipe's batch of 131,072 tokens takes a quarter of an hour in fp32.
"""

import argparse
import ast
import csv
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from results import record

CURVES = Path(__file__).with_suffix(".csv")
PICTURE = CURVES.parents[1] / "docs" / "kernel_curves.png"
STEPS = 300
ADAMW_8BIT = [
    "--weights_dtype",
    "bfloat16",
    "--optim",
    "adamw_torch_8bit",
    "--optim_args",
    "bf16_stochastic_round=True",
]
RUNS = {
    "reference, fp32": ["--kernels", "reference", "--bf16", "false"],
    "fused, fp32": ["--kernels", "fused", "--bf16", "false"],
    "reference, bf16": ["--kernels", "reference"],
    "fused, bf16": ["--kernels", "fused"],
    "fused, bf16 weights, 8-bit AdamW": ["--kernels", "fused", *ADAMW_8BIT],
    "fused, fp8": ["--kernels", "fused", "--fp8", "true"],
    "fused, fp8, bf16 weights, 8-bit AdamW": ["--kernels", "fused", "--fp8", "true", *ADAMW_8BIT],
}


def train(arguments: list[str], options: argparse.Namespace, folder: Path) -> tuple[list[dict], dict]:
    """Train; return the logged losses by step, and what run.json says."""
    command = [sys.executable, "train_clm.py", "--config", "m2", "--dataset", options.dataset]
    command += ["--batch_tokens", str(options.batch_tokens), "--train_tokens", str(STEPS * options.batch_tokens)]
    command += ["--per_device_train_batch_size", "4", "--logging_steps", "5", "--save_strategy", "no"]
    command += ["--report_to", "none", "--disable_tqdm", "true", "--output_dir", str(folder), *arguments]
    run = subprocess.run(command, cwd=CURVES.parents[1], stdout=subprocess.PIPE, text=True, check=True)
    logs = [ast.literal_eval(line) for line in run.stdout.splitlines() if line.startswith("{'loss'")]
    return logs, json.loads((folder / "run.json").read_text())


def measure(options: argparse.Namespace) -> None:
    """Train once a kind of kernel and dtype; write the curves and print how far they end from each other."""
    with open(CURVES, newline="") as file:
        is_new = {(str(options.batch_tokens), name) for name in options.runs}
        rows = [row for row in csv.DictReader(file) if (row["batch_tokens"], row["kernels"]) not in is_new]
    ends, final = [], []
    with tempfile.TemporaryDirectory() as folder:
        for name in options.runs:
            logs, run = train(RUNS[name], options, Path(folder) / name.replace(", ", "-"))
            losses = [float(log["loss"]) for log in logs]
            names = {"batch_tokens": str(options.batch_tokens), "kernels": name}
            rows += [{**names, "step": str(5 * (i + 1)), "loss": str(loss)} for i, loss in enumerate(losses)]
            ends.append(sum(losses[-10:]) / 10)
            final.append(run["final"]["bits_per_byte"])
            print(
                f"{name}: {run['seconds']:.1f} s, last 50 steps {ends[-1]:.4f}, held-out {final[-1]:.4f}", flush=True
            )
            print(
                f"  against the first {ends[-1] / ends[0] - 1:+.3%}, held-out {final[-1] / final[0] - 1:+.3%}",
                flush=True,
            )
            size = f"m2, {STEPS} steps of {options.batch_tokens} tokens"
            record("kernel_curves", name, size, "loss, last 50 steps", ends[-1], "nats", run["device"])
            record("kernel_curves", name, size, "held-out", final[-1], "bits/byte", run["device"])
            with open(CURVES, "w", newline="") as file:
                writer = csv.DictWriter(file, ["batch_tokens", "kernels", "step", "loss"], lineterminator="\n")
                writer.writeheader()
                writer.writerows(rows)


def plot() -> None:
    """Draw the curves, and their difference below."""
    import matplotlib.pyplot as plt

    with open(CURVES, newline="") as file:
        rows = list(csv.DictReader(file))
    batches = list(dict.fromkeys(row["batch_tokens"] for row in rows))
    figure, axes = plt.subplots(2, len(batches), sharex=True, sharey="row", figsize=(11, 6), layout="constrained")
    for (above, below), batch in zip(axes.T, batches, strict=True):
        curves: dict[str, dict[int, float]] = {}
        for row in rows:
            if row["batch_tokens"] == batch:
                curves.setdefault(row["kernels"], {})[int(row["step"])] = float(row["loss"])
        for name, losses in curves.items():
            of_first = curves[next(iter(curves))]
            color = f"C{list(RUNS).index(name)}"
            above.plot(losses.keys(), losses.values(), color=color)
            above_first = [100 * (loss / of_first[step] - 1) for step, loss in losses.items()]
            below.plot(losses.keys(), above_first, color=color, label=name)
        above.set_title(f"{int(batch):,} tokens a step")
        below.axhspan(-0.5, 0.5, alpha=0.15)
        below.set_xlabel("step")
        below.legend()
    axes[0, 0].set_ylabel("loss, nats a token")
    axes[1, 0].set_ylabel(f"% above {next(iter(RUNS))}")
    figure.savefig(PICTURE, dpi=120)


def main() -> None:
    """Measure, or plot what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", default="local-python")
    parser.add_argument("--batch_tokens", type=int, default=32768)
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=list(RUNS))
    parser.add_argument("--plot", action="store_true")
    options = parser.parse_args()
    if options.plot:
        plot()
    else:
        measure(options)


if __name__ == "__main__":
    main()
