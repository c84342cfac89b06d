"""Results as a table for people: plain text that is also Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return an aligned Markdown table."""
    lines = [header, *rows]
    widths = [max(3, *(len(line[column]) for line in lines)) for column in range(len(header))]

    def written(line: Sequence[str]) -> str:
        return "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |"

    return "\n".join([written(header), written(["-" * width for width in widths]), *map(written, rows)])


def result_rows(tasks: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """Return `[task, measure, value, 95% interval, over]` for each figure of results.json's `tasks`."""
    rows = []
    for task, result in tasks.items():
        if "bits_per_byte" in result:
            over = f"{result['num_files']:,} files, {result['num_bytes']:,} bytes"
            rows.append([task, "bits per byte", f"{result['bits_per_byte']:.4f}", "", over])
        if "solutions" in result:
            solutions = result["solutions"]
            over = f"{solutions['num_solutions']:,} solutions, {solutions['num_bytes']:,} bytes"
            rows.append([task, "bits per byte of solutions", f"{solutions['bits_per_byte']:.4f}", "", over])
        for name, (low, high) in result.get("ci95", {}).items():
            over = f"{result['num_problems']} problems, {result['num_samples']} sample(s) each"
            rows.append([task, name, f"{result[name]:.1%}", f"{low:.1%} to {high:.1%}", over])
        rows += [[task, *row] for row in _sample_rows(result)]
    return rows


def _sample_rows(result: Mapping[str, Any]) -> list[list[str]]:
    """Return `[measure, value, interval, over]` of what is told of a benchmark's samples."""
    rows = []
    if "sample_pass_rate" in result:
        low, high = result["sample_pass_rate"]["ci95"]
        over = f"{result['num_passed']:,} of {result['num_completions']:,} samples"
        rows.append(
            ["samples that pass", f"{result['sample_pass_rate']['rate']:.2%}", f"{low:.2%} to {high:.2%}", over]
        )
    if "pass_until" in result:
        until = result["pass_until"]
        low, high = until["ci95"]
        over = f"{until['num_reached']} of {len(until['rates'])} problems reached {until['successes']} passes"
        over += f", {sum(until['num_samples'].values()):,} samples"
        rows.append(["pass rate by samples until solved", f"{until['rate']:.3%}", f"{low:.3%} to {high:.3%}", over])
    for label, third in (result.get("by_complexity") or {}).items():
        first, last = third["complexity"]
        over = f"{third['num_problems']} problems, complexity {first} to {last}"
        for name in (key for key in third if key.startswith("pass@")):
            rows.append([f"{name}, {label} third", f"{third[name]:.1%}", "", over])
    if "quality" in result:
        structure = result["quality"]["structure"]
        over = f"{structure['num_completions']:,} samples"
        for key in ("parse", "compile", "run"):
            rows.append([f"samples that {key}", f"{structure[key]:.1%}", "", over])
        rows.append(["samples that pass a test", f"{result['quality']['pass_any']:.1%}", "", over])
    return rows


def quality_rows(tasks: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """Return `[task, measure, mean]` of what samples look like; of structure over those that parse."""
    rows = []
    for task, result in tasks.items():
        quality = result.get("quality", {})
        means = dict(quality.get("structure", {}).get("means", {}))
        means["copied_from_corpus"] = quality.get("copied_from_corpus")
        means["seconds_over_reference"] = quality.get("reference", {}).get("seconds_ratio")
        rows += [[task, name.replace("_", " "), f"{mean:.4g}"] for name, mean in means.items() if mean is not None]
    return rows


QUALITY_HEADER = ("task", "what samples look like", "mean (time: median)")
RESULT_HEADER = ("task", "measure", "value", "95% interval", "over")
