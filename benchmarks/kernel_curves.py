"""The same run with the reference's and with the fused kernels, in fp32 and in bf16: do their losses stay together?

    python benchmarks/kernel_curves.py [--batch_tokens 32768] [--runs "reference, fp32" "fused, bf16" ...]
    python benchmarks/kernel_curves.py --from_trained
    python benchmarks/kernel_curves.py --plot

The first command needs a GPU; it writes its curves to kernel_curves.csv beside this script, in place of earlier ones
of the same batch, start, data and kind. 300 steps of m2 on the Python of the machine, at the recipe's learning rate;
the recipe's batch of 131,072 tokens takes a quarter of an hour in fp32. From new weights all of them lie on a plateau
for 100 steps, and chance decides when one leaves it; the second command trains all from the weights of one run of
fused kernels in bf16, past the plateau, on rows in another order. The third draws all into docs/.
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


def train(arguments: list[str], options: argparse.Namespace, folder: Path) -> tuple[list[float], dict]:
    """Train; return the mean losses of each five steps, and what run.json says."""
    command = [sys.executable, "train_clm.py", "--config", "m2", "--dataset", options.dataset]
    command += ["--batch_tokens", str(options.batch_tokens), "--train_tokens", str(STEPS * options.batch_tokens)]
    command += ["--per_device_train_batch_size", "4", "--logging_steps", "5", "--save_strategy", "no"]
    command += ["--report_to", "none", "--disable_tqdm", "true", "--output_dir", str(folder), *arguments]
    run = subprocess.run(command, cwd=CURVES.parents[1], stdout=subprocess.PIPE, text=True, check=True)
    logs = [ast.literal_eval(line) for line in run.stdout.splitlines() if line.startswith("{'loss'")]
    return [float(log["loss"]) for log in logs], json.loads((folder / "run.json").read_text())


def measure(options: argparse.Namespace) -> None:
    """Train once a kind of kernel and dtype; write the curves and print how far they end from each other."""
    start_name = "trained" if options.from_trained else "new"
    data = Path(options.dataset).name
    setting = {"batch_tokens": str(options.batch_tokens), "start": start_name, "data": data}
    ends, final = [], []
    with tempfile.TemporaryDirectory() as folder:
        start = []
        if options.from_trained:
            train([*RUNS["fused, bf16"], "--seed", "1"], options, Path(folder) / "start")
            start = ["--model_name_or_path", str(Path(folder) / "start")]
        for name in options.runs:
            losses, run = train([*RUNS[name], *start], options, Path(folder) / name.replace(", ", "-"))
            ends.append(sum(losses[-10:]) / 10)
            final.append(run["final"]["bits_per_byte"])
            print(
                f"{name}: {run['seconds']:.1f} s, last 50 steps {ends[-1]:.4f}, held-out {final[-1]:.4f}", flush=True
            )
            print(
                f"  against the first {ends[-1] / ends[0] - 1:+.3%}, held-out {final[-1] / final[0] - 1:+.3%}",
                flush=True,
            )
            size = f"m2, {STEPS} steps of {options.batch_tokens} tokens from {start_name} weights"
            record("kernel_curves", name, size, "loss, last 50 steps", ends[-1], "nats", run["device"])
            record("kernel_curves", name, size, "held-out", final[-1], "bits/byte", run["device"])
            write({**setting, "kernels": name}, losses)


def write(names: dict[str, str], losses: list[float]) -> None:
    """Write a curve in place of an earlier one of the same names."""
    with open(CURVES, newline="") as file:
        rows = [row for row in csv.DictReader(file) if not names.items() <= row.items()]
    rows += [{**names, "step": str(5 * (i + 1)), "loss": str(loss)} for i, loss in enumerate(losses)]
    with open(CURVES, "w", newline="") as file:
        writer = csv.DictWriter(file, [*names, "step", "loss"], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def plot() -> None:
    """Draw the curves, and their difference below."""
    import matplotlib.pyplot as plt

    with open(CURVES, newline="") as file:
        rows = list(csv.DictReader(file))
    settings = list(dict.fromkeys((row["batch_tokens"], row["start"], row["data"]) for row in rows))
    size = {"sharex": True, "sharey": "row", "figsize": (5.5 * len(settings), 7), "layout": "constrained"}
    figure, axes = plt.subplots(2, len(settings), squeeze=False, **size)
    for (above, below), (batch, start, data) in zip(axes.T, settings, strict=True):
        curves: dict[str, dict[int, float]] = {}
        for row in rows:
            if (row["batch_tokens"], row["start"], row["data"]) == (batch, start, data):
                curves.setdefault(row["kernels"], {})[int(row["step"])] = float(row["loss"])
        of_first = curves[next(iter(RUNS))]
        for name, losses in curves.items():
            color = f"C{list(RUNS).index(name)}"
            above.plot(losses.keys(), losses.values(), color=color)
            above_first = [100 * (loss / of_first[step] - 1) for step, loss in losses.items()]
            below.plot(losses.keys(), above_first, color=color, label=name)
        above.set_title(f"{int(batch):,} tokens of {data} a step, from {start} weights")
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
    parser.add_argument("--from_trained", action="store_true")
    parser.add_argument("--plot", action="store_true")
    options = parser.parse_args()
    if options.plot:
        plot()
    else:
        measure(options)


if __name__ == "__main__":
    main()
