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
        for name, (low, high) in result.get("ci95", {}).items():
            over = f"{result['num_problems']} problems, {result['num_samples']} sample(s) each"
            rows.append([task, name, f"{result[name]:.1%}", f"{low:.1%} to {high:.1%}", over])
    return rows


RESULT_HEADER = ("task", "measure", "value", "95% interval", "over")
