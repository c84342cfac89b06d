from html.parser import HTMLParser

import pytest

from llama_code.evaluation.examples import MAX_CHARACTERS, Example, Shown, write_examples

PROTOCOL = {"temperature": 0.8, "stop_strings": ["\n```", "</pre><script>alert(1)</script>"]}
RESULTS = {"humaneval": {"pass@1": 0.25, "ci95": {"pass@1": [0.1, 0.4]}, "num_problems": 164, "num_samples": 20}}
PASSED = Shown("    return 1\n", True, "passed", "", 0.034)
FAILED = Shown("    retrn 2\n", False, "syntax error", "invalid syntax", 3.1)
TAGS = set(
    "html head meta title style body h1 h2 div table thead tbody tr th td details summary pre code span section p "
    "form label input b".split()
)
VOID = {"meta", "input"}


class Page(HTMLParser):
    """Checks that a page is well formed, has none but the tags and attributes of our own, and collects its text."""

    def __init__(self, text):
        super().__init__()
        self.open, self.sections, self.texts, self.details = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        assert tag in TAGS
        for name, value in attrs:
            assert not name.startswith("on") and name not in ("src", "href"), (name, value)
        if tag == "section":
            self.sections.append(dict(attrs)["class"])
            self.texts.append("")
        if tag == "details":
            self.details.append(dict(attrs))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "section" in self.open:
            self.texts[-1] += data


def write(tmp_path, examples, title="a model"):
    path = tmp_path / "examples.html"
    write_examples(path, title, PROTOCOL, RESULTS, examples)
    text = path.read_text(encoding="utf-8")
    return text, Page(text)


def test_scores_protocol_and_verdicts(tmp_path):
    text, page = write(tmp_path, [Example("HumanEval/0", "def one():\n", [FAILED, PASSED])])
    for part in ("<h1>a model</h1>", "<td>25.0%</td>", "<td>10.0% to 40.0%</td>", "&quot;temperature&quot;: 0.8"):
        assert part in text
    assert "1 of 2 passed" in text
    assert page.sections == ["prompt", "passed", "failed"]
    prompt, passed, failed = page.texts
    assert "def one():" in prompt
    assert "✓ passed" in passed and "0.03 s" in passed and "    return 1" in passed
    assert "✗ failed" in failed and "syntax error" in failed and "invalid syntax" in failed and "3.10 s" in failed


def test_page_needs_nothing_else(tmp_path):
    text, _ = write(tmp_path, [Example("HumanEval/0", "", [PASSED])])
    assert "http:" not in text and "https:" not in text and "<script" not in text and "url(" not in text
    assert "prefers-color-scheme: dark" in text and 'name="viewport"' in text


@pytest.mark.parametrize(
    "evil",
    [
        "</script><script>alert(1)</script>",
        "<img src=x onerror=alert(1)>",
        "</code></pre></section><h1>passed</h1>",
        "'''</style><style>*{display:none}</style>",
        '" onmouseover="alert(1)" \'',
        "<!-- &lt; <![CDATA[",
    ],
)
def test_everything_is_escaped(tmp_path, evil):
    shown = Shown(evil, False, evil, evil, 0.1)
    _, page = write(tmp_path, [Example(evil, evil, [shown])], title=evil)
    assert page.sections == ["prompt", "failed"]
    assert page.texts[0].count(evil) == 1 and page.texts[1].count(evil) == 3


def test_text_that_html_or_utf_8_cannot_hold(tmp_path):
    odd = "\n    x = '\0\r\x1b\x85\u202e\ud800'\n"
    text, page = write(tmp_path, [Example("HumanEval/0", odd, [Shown(odd, False, "exception", odd, 0.1)])])
    assert not set("\0\r\x1b\x85\u202e") & set(text)
    for section, count in zip(page.texts, (1, 2), strict=True):
        assert section.count("\n    x = '\\x00\\x0d\\x1b\\x85\\u202e\\ud800'\n") == count


def test_long_text_is_cut(tmp_path):
    text, page = write(tmp_path, [Example("HumanEval/0", "", [PASSED._replace(completion="y" * 2**20)])])
    assert page.texts[1].count("y") == MAX_CHARACTERS == 20_000
    assert "Cut to the first 20,000 of 1,048,576 characters." in page.texts[1]
    assert len(text) < 50_000
    _, page = write(tmp_path, [Example("HumanEval/0", "", [PASSED._replace(completion="y" * 20_000)])])
    assert "Cut" not in page.texts[1]


def test_at_most_six_completions_passed_ones_first(tmp_path):
    _, page = write(tmp_path, [Example("HumanEval/0", "", [FAILED] * 6 + [PASSED] * 2)])
    assert page.sections == ["prompt"] + ["passed"] * 2 + ["failed"] * 4
    text, page = write(tmp_path, [Example("HumanEval/0", "", [FAILED] * 3 + [PASSED] * 7)])
    assert page.sections == ["prompt"] + ["passed"] * 6
    assert "Left out: 4 of 10 completions (1 passed, 3 failed)." in text
    # It stays in view under "failed", where the note tells of those.
    assert page.details[1]["class"] == "problem has-passed has-failed"


def test_at_most_200_problems_the_first_open(tmp_path):
    text, page = write(tmp_path, [Example(f"apps/{number}", "", [PASSED]) for number in range(203)])
    assert "Left out: 3 of 203 problems; the first 200 are here." in text
    assert "apps/199<" in text and "apps/200<" not in text
    problems = page.details[1:]
    assert len(problems) == 200
    assert ["open" in attributes for attributes in problems] == [True] * 3 + [False] * 197


def test_filter_counts_what_is_shown(tmp_path):
    text, page = write(tmp_path, [Example("mbpp/11", "", [FAILED] * 2 + [PASSED]), Example("mbpp/12", "", [FAILED])])
    for part in ("all <b>4</b>", "passed <b>1</b>", "failed <b>3</b>", 'id="show-all" checked', ":has(#show-passed"):
        assert part in text
    assert [attributes["class"] for attributes in page.details[1:]] == [
        "problem has-passed has-failed",
        "problem has-failed",
    ]


def test_nothing_to_show(tmp_path):
    text, page = write(tmp_path, [])
    assert "There are no completions to show." in text and page.sections == []
    _, page = write(tmp_path, [Example("mbpp/11", "", [PASSED._replace(completion="")])])
    assert page.texts[1].endswith("Empty.")
