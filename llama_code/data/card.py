"""README.md of a prepared corpus, a data card for the Hub, with its plots beside it."""

import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from huggingface_hub import DatasetCard, DatasetCardData

from llama_code.data.screen import CONTAMINATED, DUPLICATE
from llama_code.data.select import NEAR_DUPLICATE
from llama_code.data.split import HELD_OUT_ONE_IN

CARD_FILE = "README.md"
DROPPED_PLOT = "dropped.png"
PROJECTS_PLOT = "projects.png"

MAX_LINES = 40
MAX_LINE_CHARACTERS = 200
MAX_NAME_CHARACTERS = 200
MAX_LABEL_CHARACTERS = 40
NOT_RECORDED = "not recorded"

# huggingface.co/docs/hub/repositories-licenses, those for software, data and documents; others count as "other".
HUB_LICENSES = frozenset(
    "afl-3.0 agpl-3.0 apache-2.0 artistic-2.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear bsl-1.0 c-uda cc "
    "cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 "
    "cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cc-by-nd-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc0-1.0 "
    "cdla-permissive-1.0 cdla-permissive-2.0 cdla-sharing-1.0 ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 gfdl gpl "
    "gpl-2.0 gpl-3.0 isc lgpl lgpl-2.1 lgpl-3.0 lppl-1.3c mit mpl-2.0 ms-pl ncsa odbl odc-by ofl-1.1 osl-3.0 pddl "
    "postgresql unlicense wtfpl zlib".split()
)
SIZES = ("n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M", "10M<n<100M", "100M<n<1B", "1B<n<10B")

# What a browser or a parser would drop, take for the end of a line or let reorder it stands as its escape.
VISIBLE = {
    **{code: f"\\x{code:02x}" for code in (*range(32), *range(0x7F, 0xA0)) if chr(code) != "\t"},
    **{code: f"\\u{code:04x}" for code in (0x200E, 0x200F, *range(0x2028, 0x202F), *range(0x2066, 0x206A), 0xFEFF)},
}
# Okabe and Ito's blue and orange, which are told apart with every kind of colour blindness
COLOURS = ("#0072B2", "#E69F00")


def write_card(folder: Path, meta: Mapping[str, Any], examples: Sequence[Mapping[str, str]]) -> Path:
    """Write README.md and its plots into `folder`, over earlier ones, and return the file.

    Args:
        folder: the prepared corpus.
        meta: its meta.json.
        examples: documents to show, each with its `project`, `path`, `license` and `text`.
    """
    plots = []
    if meta["dropped"]:
        _plot_dropped(folder / DROPPED_PLOT, meta["dropped"])
        plots.append(DROPPED_PLOT)
    if meta["projects"]:
        _plot_projects(folder / PROJECTS_PLOT, meta["projects"])
        plots.append(PROJECTS_PLOT)
    card = DatasetCard(f"---\n{_front_matter(meta).to_yaml()}\n---\n\n{_body(meta, examples, plots)}")
    card.save(folder / CARD_FILE)
    return folder / CARD_FILE


def _front_matter(meta: Mapping[str, Any]) -> DatasetCardData:
    return DatasetCardData(
        pretty_name=f"Python source code from {_visible(meta['source'])}",
        license=_hub_licenses(meta["licenses"]),
        language=["code"],
        size_categories=[_size_category(_total(meta, "documents"))],
        task_categories=["text-generation"],
        tags=["code", "python"],
        viewer=False,  # token ids in .bin files are nothing that the Hub's viewer can show
    )


def _hub_licenses(licenses: Mapping[str, int]) -> list[str]:
    """Return the Hub's names of SPDX ids: lower case, and GPL's with "only" and "or later" are one."""
    found = set()
    for ids in licenses or {"": 0}:
        for spdx in ids.split(","):
            name = re.sub("-(only|or-later)$", "", spdx.strip().lower())
            found.add(name if name in HUB_LICENSES else "other" if name else "unknown")
    return sorted(found)


def _size_category(num_documents: int) -> str:
    return SIZES[min(max(len(str(num_documents)) - 3, 0), len(SIZES) - 1)]


def _total(meta: Mapping[str, Any], unit: str) -> int:
    return sum(split[unit] for split in meta["splits"].values())


def _body(meta: Mapping[str, Any], examples: Sequence[Mapping[str, str]], plots: Sequence[str]) -> str:
    sections = [
        f"# Python source code from {_plain(meta['source'])}",
        f"{_total(meta, 'documents'):,} documents, {_total(meta, 'bytes') / 1e6:,.1f} MB, as "
        f"{_total(meta, 'tokens'):,} token ids. Data hash `{_visible(meta['data_hash'])}`: the same hash is the same "
        "documents in the same order.",
        _sizes(meta),
        "## Source",
        _source(meta),
        "## Split",
        _split(meta),
        "## What was dropped",
        _cleaning(meta),
        *([_image("What was dropped, by reason", DROPPED_PLOT)] if DROPPED_PLOT in plots else []),
        _dropped_table(meta["dropped"]),
        "## Licences",
        _licenses(meta["licenses"]),
        *(["## Projects", _image("Tokens of the largest projects", PROJECTS_PLOT)] if PROJECTS_PLOT in plots else []),
        "## Files",
        _files(meta),
        "## How to make it again",
        _command(meta),
        "## Documents to look at",
        _examples(examples),
    ]
    return "\n\n".join(sections) + "\n"


def _sizes(meta: Mapping[str, Any]) -> str:
    rows = []
    for name, split in meta["splits"].items():
        rate = f"{split['bytes'] / split['tokens']:.3f}" if split["tokens"] else ""
        rows.append(
            (name.replace("_", " "), f"{split['documents']:,}", f"{split['bytes']:,}", f"{split['tokens']:,}", rate)
        )
    return _table(("split", "documents", "bytes", "tokens", "bytes per token"), rows)


def _source(meta: Mapping[str, Any]) -> str:
    lines = f"{_plain(meta['source'])}, read with Python {_plain(meta['python'])}."
    if not meta["packages"]:
        return lines
    versions = [(_plain(name), _plain(version)) for name, version in sorted(meta["packages"].items())]
    return f"{lines}\n\n" + _details(
        f"{len(versions):,} packages and their versions", _table(("package", "version"), versions, numbers=False)
    )


def _split(meta: Mapping[str, Any]) -> str:
    text = (
        "Whole projects (packages or repositories) are held out, never single files: always Python's standard "
        f"library, of the others one in {HELD_OUT_ONE_IN}, by BLAKE2b of the name in lower case."
    )
    if meta["held_out_source"] != meta["source"]:
        text += (
            f" None of this source's projects is held out by that; the held-out text is from "
            f"{_plain(meta['held_out_source'])}."
        )
    if meta["read"]["without_project"]:
        text += f" {meta['read']['without_project']:,} documents name no project; their content decides."
    return text


def _cleaning(meta: Mapping[str, Any]) -> str:
    read, dropped = meta["read"], meta["dropped"]
    lines = [
        f"- Read: {read['documents']:,} documents, {read['bytes']:,} bytes",
        f"- Dropped: {_share(sum(counts['documents'] for counts in dropped.values()), read['documents'])}",
        f"- Kept: {_total(meta, 'documents'):,} documents, {_total(meta, 'bytes'):,} bytes"
        + ("" if meta["held_out_source"] == meta["source"] else ", with the held-out text of another source"),
    ]
    for title, reason, looked_for in (
        ("Exact duplicates", DUPLICATE, True),
        ("Near-duplicates", NEAR_DUPLICATE, meta["near_dedup"]),
        ("Documents that hold problems of benchmarks", CONTAMINATED, meta["decontaminate"]),
    ):
        number = dropped[reason]["documents"] if reason in dropped else 0
        lines.append(f"- {title}: {_share(number, read['documents']) if looked_for else 'not looked for'}")
    redacted = ", ".join(f"{count:,} {_plain(kind)}" for kind, count in meta["redacted"].items() if count)
    lines.append(f"- Redacted: {redacted or 'nothing'}")
    lines.append(f"- Filters that were off: {', '.join(map(_plain, meta['filters_off'])) or 'none'}")
    return "\n".join(lines)


def _share(number: int, total: int) -> str:
    return f"{number:,} documents" + (f" ({number / total:.2%} of those read)" if total else "")


def _dropped_table(dropped: Mapping[str, Mapping[str, int]]) -> str:
    if not dropped:
        return "Nothing was dropped."
    rows = [
        (_plain(reason), f"{counts['documents']:,}", f"{counts['bytes']:,}")
        for reason, counts in _by_documents(dropped)
    ]
    return _table(("reason", "documents", "bytes"), rows)


def _by_documents(dropped: Mapping[str, Mapping[str, int]]) -> list[tuple[str, Mapping[str, int]]]:
    return sorted(dropped.items(), key=lambda item: (-item[1]["documents"], item[0]))


def _licenses(licenses: Mapping[str, int]) -> str:
    if not any(licenses):
        return f"The documents' licences are {NOT_RECORDED} by this source; each project has its own."
    rows = [
        (_plain(ids) or NOT_RECORDED, f"{number:,}")
        for ids, number in sorted(licenses.items(), key=lambda item: (-item[1], item[0]))
    ]
    return _table(("licence of training documents (SPDX)", "documents"), rows)


def _files(meta: Mapping[str, Any]) -> str:
    fim = "No document is cut for infilling."
    if meta["fim_rate"]:
        fim = (
            f"In the training split a share of {meta['fim_rate']:g} of the documents is cut for infilling "
            "(fill-in-the-middle, arXiv 2207.14255), half prefix-suffix-middle and half suffix-prefix-middle."
        )
    return (
        "`train.bin` and `held_out.bin` are token ids in a row with an end-of-text token before each document: "
        f'`numpy.memmap("train.bin", dtype="{_visible(meta["dtype"])}", mode="r")`. The vocabulary has '
        f"{meta['vocab_size']:,} tokens. {fim}\n\n"
        "`meta.json` has the figures of this page; `near_duplicates.jsonl` and `contaminated.jsonl` list what was "
        "dropped for its likeness to another document or to a benchmark's problem."
    )


def _command(meta: Mapping[str, Any]) -> str:
    return (
        f"{_fenced(meta['command'], 'bash')}\n\nThe same source, Python {_plain(meta['python'])} and version of this "
        "project give the data hash above; what parses differs between versions of Python."
    )


def _examples(examples: Sequence[Mapping[str, str]]) -> str:
    if not examples:
        return "None were drawn."
    shown = [_example(number, example) for number, example in enumerate(examples, 1)]
    head = f"{len(examples)} documents drawn at random by the data hash, the first {MAX_LINES} lines of each."
    return "\n\n".join([head, *shown])


def _example(number: int, example: Mapping[str, str]) -> str:
    lines = example["text"].removesuffix("\n").split("\n")
    content = _fenced("\n".join(map(_cut, lines[:MAX_LINES])), "python")
    if len(lines) > MAX_LINES:
        content += f"\n\n{len(lines) - MAX_LINES:,} more lines."
    name = ": ".join(part for part in (example["project"], example["path"]) if part)
    return _details(f"{number}. {name} (licence: {example['license'] or NOT_RECORDED})", content)


def _cut(line: str) -> str:
    left_out = len(line) - MAX_LINE_CHARACTERS
    return f"{line[:MAX_LINE_CHARACTERS]} … {left_out:,} more characters" if left_out > 0 else line


def _details(summary: str, content: str) -> str:
    """A part that opens on a click; between the empty lines `content` is Markdown again."""
    return f"<details>\n<summary>{escape(_visible(summary))}</summary>\n\n{content}\n\n</details>"


def _fenced(text: str, language: str) -> str:
    """`text` in a block of code whose fence is longer than every run of backticks in it."""
    code = "\n".join(map(_visible, text.split("\n")))
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", code)), default=0))
    return f"{fence}{language}\n{code}\n{fence}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], numbers: bool = True) -> str:
    rule = ["---", *["---:" if numbers else "---"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, rule, *rows))


def _image(title: str, file: str) -> str:
    return f"![{title}]({file})"


def _visible(text: str) -> str:
    """`text` on one line, with escapes for what cannot be seen or is not Unicode (names of files in odd encodings)."""
    return text.encode("utf-8", "backslashreplace").decode().translate(VISIBLE)


def _plain(text: str) -> str:
    """A name as Markdown that shows it as it is, cut where it is very long."""
    shown = _visible(text[:MAX_NAME_CHARACTERS]) + ("…" if len(text) > MAX_NAME_CHARACTERS else "")
    return re.sub(r"([\\`*_\[\]<>#|~&!$])", r"\\\1", shown)


def _plot_dropped(path: Path, dropped: Mapping[str, Mapping[str, int]]) -> None:
    rows = _by_documents(dropped)
    documents = [float(counts["documents"]) for _, counts in rows]
    sizes = [float(counts["bytes"]) for _, counts in rows]
    unit, scale = ("MB", 1e6) if max(sizes) >= 1e6 else ("kB", 1e3)
    panels = [
        ("documents dropped", "{:,.0f}", documents),
        (f"{unit} dropped", "{:,.1f}", [size / scale for size in sizes]),
    ]
    _plot_bars(path, [reason for reason, _ in rows], panels)


def _plot_projects(path: Path, projects: Mapping[str, int]) -> None:
    rows = sorted(projects.items(), key=lambda item: (-item[1], item[0]))[:20]
    unit, scale = ("million", 1e6) if rows[0][1] >= 1e6 else ("thousand", 1e3)
    tokens = [number / scale for _, number in rows]
    names = [name or "(no project named)" for name, _ in rows]
    _plot_bars(path, names, [(f"{unit} training tokens of the largest projects", "{:,.2f}", tokens)])


def _plot_bars(path: Path, names: Sequence[str], panels: Sequence[tuple[str, str, Sequence[float]]]) -> None:
    """Draw horizontal bars, a row a name and a panel a measure, each `(label, format, values)`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(9, 0.9 + 0.32 * len(names)), layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for ax, (label, number_format, values), colour in zip(axes, panels, COLOURS, strict=False):
        bars = ax.barh(range(len(names)), values, height=0.7, color=colour)
        ax.bar_label(bars, fmt=number_format, padding=3, fontsize=9)
        ax.set_xlabel(label)
        ax.set_xlim(0, 1.2 * max(values) or 1)  # room for the numbers
        ax.margins(y=0.01)
        ax.xaxis.set_major_locator(MaxNLocator(5))
        ax.xaxis.set_major_formatter("{x:,g}")
        ax.spines[["top", "right", "left"]].set_visible(False)
        ax.tick_params(axis="y", length=0)
    axes[0].set_yticks(range(len(names)), [_label(name) for name in names])
    axes[0].invert_yaxis()
    # Without the version of matplotlib in it, the same numbers make the same file.
    FigureCanvasAgg(figure).print_png(path, metadata={"Software": None})


def _label(name: str) -> str:
    """A name that any font has and that is not read as a formula."""
    text = ascii(name)[1:-1]
    return (text if len(text) <= MAX_LABEL_CHARACTERS else f"{text[: MAX_LABEL_CHARACTERS - 1]}…").replace("$", r"\$")
