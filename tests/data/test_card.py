"""The data card: what it says, that the Hub's own class reads it, and that no document breaks out of its block."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import DatasetCard

from llama_code.data.card import (
    CARD_FILE,
    DROPPED_PLOT,
    HUB_LICENSES,
    MAX_LINE_CHARACTERS,
    MAX_LINES,
    PROJECTS_PLOT,
    write_card,
)
from llama_code.data.screen import CONTAMINATED, DUPLICATE
from llama_code.data.select import NEAR_DUPLICATE

HOSTILE_TEXTS = {
    "fence": "x = 1\n```\n</details>\n# Not a heading\n```python\n",
    "longer fence": "`````````\n# Not a heading\n~~~~~~~~~~~~\n",
    "only backticks": "`" * 150,
    "unclosed html": "</code></pre></summary></details><!-- <script>alert(1)</script> <style>\n",
    "front matter": "---\nlicense: mit\n---\n",
    "control characters": "a\0b\x07c\rd\x1b[31me\x85f\u2028g\u2029h\u202ei\x0c\ufeff\n",
    "carriage returns": "```\r# Not a heading\r</details>\r",
    "long line": "x" * 1_000_000,
    "many lines": "pass\n" * 100_000,
    "table": "| a | b |\n|---|---|\n",
    "empty": "",
    "lone surrogate": "name = '\udce9'\n",
    "indented": "    code\n\n\n\ttabs\n",
}
HOSTILE_NAMES = [
    "a\n---\nlicense: mit\n---\n# Not a heading",
    "</summary></details><script>alert(1)</script>",
    "| a | `b` | *c* | [d](e) | $f$ $$g$$ \\",
    "\udcff\x00\x1b\u202e",
    "n" * 100_000,
    "",
]


def example(text: str = "x = 1\n", path: str = "module.py", project: str = "project", license: str = "MIT") -> dict:
    return {"project": project, "path": path, "license": license, "text": text}


@pytest.fixture
def meta() -> dict[str, Any]:
    return {
        "source": "bigcode/the-stack-v2",
        "held_out_source": "bigcode/the-stack-v2",
        "command": "python -m llama_code.data.prepare --dataset bigcode/the-stack-v2 --tokenizer tokenizer",
        "data_hash": "00112233445566778899aabbccddeeff",
        "python": "3.11.7",
        "packages": {"numpy": "2.4.6", "torch": "2.11.0"},
        "dtype": "uint16",
        "vocab_size": 32_000,
        "splits": {
            "train": {"documents": 9_000, "bytes": 90_000_000, "tokens": 20_000_000},
            "held_out": {"documents": 500, "bytes": 5_000_000, "tokens": 1_250_000},
        },
        "read": {"documents": 16_000, "bytes": 160_000_000, "without_project": 12},
        "dropped": {
            DUPLICATE: {"documents": 4_000, "bytes": 40_000_000},
            NEAR_DUPLICATE: {"documents": 2_000, "bytes": 20_000_000},
            "empty": {"documents": 420, "bytes": 0},
            CONTAMINATED: {"documents": 80, "bytes": 5_000_000},
        },
        "licenses": {"MIT": 5_000, "Apache-2.0,GPL-3.0-only": 3_000, "Beerware": 900, "": 100},
        "projects": {f"project-{i:02}": 10**7 // (i + 1) for i in range(20)},
        "redacted": {"e-mail address": 123, "key": 0},
        "filters_off": ["does not parse"],
        "near_dedup": True,
        "decontaminate": True,
        "fim_rate": 0.5,
    }


@pytest.fixture
def without_plots(meta: dict[str, Any]) -> dict[str, Any]:
    return meta | {"dropped": {}, "projects": {}}


def written(folder: Path, meta: dict[str, Any], *examples: dict) -> str:
    return write_card(folder, meta, examples).read_text(encoding="utf-8")


def test_front_matter_reads_back_with_the_hub_s_own_class(tmp_path: Path, meta: dict[str, Any]) -> None:
    text = written(tmp_path, meta, example())
    card = DatasetCard.load(tmp_path / CARD_FILE)
    assert str(card) == text
    assert card.data.to_dict() == {
        "pretty_name": "Python source code from bigcode/the-stack-v2",
        "language": ["code"],
        "license": ["apache-2.0", "gpl-3.0", "mit", "other", "unknown"],
        "size_categories": ["1K<n<10K"],
        "task_categories": ["text-generation"],
        "tags": ["code", "python"],
        "viewer": False,
    }
    assert set(card.data.license) <= HUB_LICENSES | {"other", "unknown"}


def test_figures(tmp_path: Path, meta: dict[str, Any]) -> None:
    text = written(tmp_path, meta, example())
    for expected in (
        "9,500 documents, 95.0 MB, as 21,250,000 token ids. Data hash `00112233445566778899aabbccddeeff`",
        "| train | 9,000 | 90,000,000 | 20,000,000 | 4.500 |",
        "| held out | 500 | 5,000,000 | 1,250,000 | 4.000 |",
        "- Read: 16,000 documents, 160,000,000 bytes",
        "- Dropped: 6,500 documents (40.62% of those read)",
        "- Kept: 9,500 documents, 95,000,000 bytes\n",
        "- Exact duplicates: 4,000 documents (25.00% of those read)",
        "- Near-duplicates: 2,000 documents (12.50% of those read)",
        "- Documents that hold problems of benchmarks: 80 documents (0.50% of those read)",
        "- Redacted: 123 e-mail address\n",
        "- Filters that were off: does not parse\n",
        "| empty | 420 | 0 |",
        "| torch | 2.11.0 |",
        "| MIT | 5,000 |",
        "| Apache-2.0,GPL-3.0-only | 3,000 |",
        "| not recorded | 100 |",
        "one in 20",
        "12 documents name no project",
        "a share of 0.5 of the documents is cut for infilling",
        f"```bash\n{meta['command']}\n```",
        'numpy.memmap("train.bin", dtype="uint16", mode="r")',
        f"]({DROPPED_PLOT})",
        f"]({PROJECTS_PLOT})",
        "<summary>1. project: module.py (licence: MIT)</summary>\n\n```python\nx = 1\n```\n\n</details>",
    ):
        assert expected in text


def test_what_a_source_lacks_is_said(tmp_path: Path, meta: dict[str, Any]) -> None:
    meta |= {"licenses": {"": 9_000}, "packages": {}, "redacted": {}, "filters_off": [], "fim_rate": 0.0}
    meta |= {"held_out_source": "python-stdlib", "near_dedup": False, "decontaminate": False}
    meta["dropped"] = {}
    meta["projects"] = {}
    text = written(tmp_path, meta)
    for expected in (
        "licences are not recorded by this source",
        "the held-out text is from python-stdlib.",
        "- Kept: 9,500 documents, 95,000,000 bytes, with the held-out text of another source",
        "- Near-duplicates: not looked for",
        "- Documents that hold problems of benchmarks: not looked for",
        "- Redacted: nothing",
        "- Filters that were off: none",
        "Nothing was dropped.",
        "No document is cut for infilling.",
        "None were drawn.",
    ):
        assert expected in text
    assert DatasetCard.load(tmp_path / CARD_FILE).data.license == ["unknown"]
    assert "![" not in text and "packages and their versions" not in text
    assert not list(tmp_path.glob("*.png"))


@pytest.mark.parametrize("licenses", [{}, {"": 5}])
def test_no_licence_is_unknown_to_the_hub(
    tmp_path: Path, without_plots: dict[str, Any], licenses: dict[str, int]
) -> None:
    written(tmp_path, without_plots | {"licenses": licenses})
    assert DatasetCard.load(tmp_path / CARD_FILE).data.license == ["unknown"]


@pytest.mark.parametrize(
    ("number", "category"),
    [
        (1, "n<1K"),
        (999, "n<1K"),
        (1_000, "1K<n<10K"),
        (99_999, "10K<n<100K"),
        (100_000, "100K<n<1M"),
        (5_000_000, "1M<n<10M"),
        (57_000_000, "10M<n<100M"),
        (100_000_000, "100M<n<1B"),
        (1_000_000_000, "1B<n<10B"),
    ],
)
def test_size_categories(tmp_path: Path, without_plots: dict[str, Any], number: int, category: str) -> None:
    without_plots["splits"] = {"train": {"documents": number, "bytes": 1, "tokens": 0}}
    written(tmp_path, without_plots)
    assert DatasetCard.load(tmp_path / CARD_FILE).data.size_categories == [category]


def rendered(text: str) -> tuple[list[str], list[str], str]:
    """Headings, contents of blocks of code, and all HTML of a card, by a CommonMark parser that others wrote."""
    parser = pytest.importorskip("markdown_it").MarkdownIt("commonmark").enable("table")
    tokens = parser.parse(DatasetCard(text).text)
    headings = [tokens[i + 1].content for i, token in enumerate(tokens) if token.type == "heading_open"]
    code = [token.content for token in tokens if token.type == "fence"]
    inline = [child for token in tokens for child in token.children or []]
    html = "".join(token.content for token in [*tokens, *inline] if token.type in ("html_block", "html_inline"))
    assert not [token for token in tokens if token.type == "code_block"]
    return headings, code, html


@pytest.mark.parametrize("text", HOSTILE_TEXTS.values(), ids=HOSTILE_TEXTS)
def test_a_document_stays_in_its_block(tmp_path: Path, without_plots: dict[str, Any], text: str) -> None:
    harmless = rendered(written(tmp_path, without_plots, example("a"), example("b")))
    headings, code, html = rendered(written(tmp_path, without_plots, example(text), example("b")))
    assert (headings, html) == (harmless[0], harmless[2])
    assert len(code) == len(harmless[1]) and code[-1] == "b\n"
    card = DatasetCard.load(tmp_path / CARD_FILE)
    assert card.data.size_categories == ["1K<n<10K"]
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\ufeff\ud800-\udfff]", card.text)
    assert (tmp_path / CARD_FILE).stat().st_size < 20_000


def test_what_can_be_seen_is_shown_as_it_is(tmp_path: Path, without_plots: dict[str, Any]) -> None:
    source = "def naïve(x):\n\treturn '``` 漢字 👩‍👧 <b>&amp;</b> \\n'\n\n\n    # end\n"
    assert rendered(written(tmp_path, without_plots, example(source)))[1][-1] == source


def test_escapes_stand_for_what_cannot_be_seen(tmp_path: Path, without_plots: dict[str, Any]) -> None:
    code = rendered(written(tmp_path, without_plots, example("a\rb\0c\u202ed\udce9e")))[1][-1]
    assert code == "a\\x0db\\x00c\\u202ed\\udce9e\n"


def test_long_documents_are_cut_and_say_so(tmp_path: Path, without_plots: dict[str, Any]) -> None:
    source = "".join(f"line_{number}\n" for number in range(MAX_LINES + 5)) + "\n"
    text = written(tmp_path, without_plots, example("y" * (MAX_LINE_CHARACTERS + 1_234)), example(source))
    assert f"\n{'y' * MAX_LINE_CHARACTERS} … 1,234 more characters\n" in text
    assert f"line_{MAX_LINES - 1}\n```\n\n6 more lines.\n" in text and f"line_{MAX_LINES}\n" not in text


@pytest.mark.parametrize("name", HOSTILE_NAMES, ids=range(len(HOSTILE_NAMES)))
def test_names_stay_in_their_places(tmp_path: Path, meta: dict[str, Any], name: str) -> None:
    headings, code, html = rendered(written(tmp_path, meta, example()))
    meta |= {"source": name, "held_out_source": name, "command": f"run {name}", "python": name, "filters_off": [name]}
    meta |= {"packages": {name: name, "torch": "2.11.0"}, "licenses": {name: 3}, "projects": {name: 5, "a": 2}}
    meta |= {"redacted": {name: 2}, "dropped": {name: {"documents": 1, "bytes": 1}, "b": {"documents": 1, "bytes": 1}}}
    new_headings, new_code, new_html = rendered(written(tmp_path, meta, example("x = 1\n", name, name, name)))
    assert len(new_headings) == len(headings) and len(new_code) == len(code)
    assert re.findall(r"</?\w+>", new_html) == re.findall(r"</?\w+>", html)
    card = DatasetCard.load(tmp_path / CARD_FILE)
    assert card.data.task_categories == ["text-generation"]
    assert set(card.data.license) <= HUB_LICENSES | {"other", "unknown"}
    rows = [line for line in card.text.splitlines() if line.startswith("| ")]
    assert {len(re.findall(r"(?<!\\)(?:\\\\)*\|", row)) for row in rows} == {3, 4, 6}


@pytest.mark.parametrize("num_bytes", [10**7, 0])
def test_plots(tmp_path: Path, meta: dict[str, Any], num_bytes: int) -> None:
    from PIL import Image

    for counts in meta["dropped"].values():
        counts["bytes"] = num_bytes
    meta["projects"] = {"$x$ 漢字 " + "n" * 500: 3, "$x$ 漢字 " + "n" * 501: 2, "": 1} | meta["projects"]
    written(tmp_path, meta)
    for name in (DROPPED_PLOT, PROJECTS_PLOT):
        with Image.open(tmp_path / name) as image:
            assert image.size[0] == 900 and image.size[1] > 200
            pixels = image.convert("RGB").tobytes()
        assert pixels.count(b"\xff\xff\xff") > len(pixels) // 12  # of a quarter at least
        assert pixels.count(b"\x00\x72\xb2") > 1000


def test_the_same_corpus_makes_the_same_files(tmp_path: Path, meta: dict[str, Any]) -> None:
    contents = []
    for _ in range(2):
        written(tmp_path, meta, example())
        contents.append({path.name: path.read_bytes() for path in tmp_path.iterdir()})
    assert contents[0] == contents[1] and set(contents[0]) == {CARD_FILE, DROPPED_PLOT, PROJECTS_PLOT}


def test_matplotlib_is_imported_only_to_draw_and_without_pyplot(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; import llama_code.data.card as card; "
        "assert 'matplotlib' not in sys.modules and 'torch' not in sys.modules; "
        f"card._plot_projects(Path({str(tmp_path / 'plot.png')!r}), {{'a': 1}}); "
        "assert 'matplotlib.figure' in sys.modules and 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
