"""examples.html: problems with their prompts, completions and verdicts, in one file that needs nothing else."""

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

from llama_code.evaluation.table import RESULT_HEADER, result_rows

MAX_PROBLEMS = 200
MAX_COMPLETIONS = 6
MAX_CHARACTERS = 20_000
NUM_OPEN = 3

# A completion starts within a function: its first newlines and spaces are part of it.
LEXER = PythonLexer(stripnl=False, ensurenl=False)
FORMATTER = HtmlFormatter(nowrap=True)

# What a browser would drop, turn into something else or let reorder the line stands as its escape, which can be seen.
VISIBLE = {
    **{code: f"\\x{code:02x}" for code in (*range(32), *range(0x7F, 0xA0)) if chr(code) not in "\t\n"},
    **{code: f"\\u{code:04x}" for code in (0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))},
}


class Shown(NamedTuple):
    """One completion and its verdict."""

    completion: str
    passed: bool
    reason: str
    detail: str
    seconds: float


class Example(NamedTuple):
    """One problem and all of its completions."""

    task_id: str
    prompt: str
    completions: list[Shown]


def write_examples(
    path: Path,
    title: str,
    protocol: Mapping[str, Any],
    results: Mapping[str, Mapping[str, Any]],
    examples: Sequence[Example],
) -> None:
    """Write the page, over an earlier one if there is one.

    Args:
        path: the file.
        title: its heading, such as the model's name.
        protocol: results.json's `protocol`.
        results: results.json's `tasks`.
        examples: the problems; at most MAX_PROBLEMS are shown, and MAX_COMPLETIONS of each, passed ones first.
    """
    shown = [
        example._replace(completions=sorted(example.completions, key=lambda shown: not shown.passed)[:MAX_COMPLETIONS])
        for example in examples[:MAX_PROBLEMS]
    ]
    problems = [
        _problem(example, chosen, number < NUM_OPEN)
        for number, (example, chosen) in enumerate(zip(examples, shown, strict=False))
    ]
    page = f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{_text(title)}</title>
<style>{_style()}</style>
</head>
<body>
<h1>{_text(title)}</h1>
{_score_table(results)}
<details class="protocol"><summary>Protocol</summary>
<pre>{_text(json.dumps(protocol, indent=2, ensure_ascii=False))}</pre></details>
{_filter(shown)}
{_left_out(examples, shown)}
{"".join(problems)}
</body>
</html>
"""
    # JSON can hold lone surrogates, which UTF-8 cannot.
    path.write_text(page, encoding="utf-8", errors="backslashreplace")


def _text(text: str) -> str:
    return escape(text.translate(VISIBLE))


def _cut_note(text: str) -> str:
    if len(text) <= MAX_CHARACTERS:
        return ""
    return f'<p class="note">Cut to the first {MAX_CHARACTERS:,} of {len(text):,} characters.</p>'


def _code(text: str) -> str:
    if not text:
        return '<p class="note">Empty.</p>'
    code = highlight(text[:MAX_CHARACTERS].translate(VISIBLE), LEXER, FORMATTER)
    # The newline that a parser drops is one right after <pre>; <code> keeps the completion's own.
    return f'{_cut_note(text)}<pre class="code"><code>{code}</code></pre>'


def _score_table(results: Mapping[str, Mapping[str, Any]]) -> str:
    head = "".join(f"<th>{_text(cell)}</th>" for cell in RESULT_HEADER)
    rows = ("".join(f"<td>{_text(cell)}</td>" for cell in row) for row in result_rows(results))
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return f'<div class="scores"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _filter(shown: Sequence[Example]) -> str:
    verdicts = [completion.passed for example in shown for completion in example.completions]
    counts = {"all": len(verdicts), "passed": sum(verdicts), "failed": len(verdicts) - sum(verdicts)}
    choices = (
        f'<label><input type="radio" name="show" id="show-{name}"{" checked" if name == "all" else ""}> '
        f"{name} <b>{count:,}</b></label>"
        for name, count in counts.items()
    )
    return f'<form class="filter"><span>Show</span>{"".join(choices)}</form>'


def _left_out(examples: Sequence[Example], shown: Sequence[Example]) -> str:
    if not examples:
        return '<p class="note">There are no completions to show.</p>'
    notes = []
    if len(examples) > len(shown):
        left_out = len(examples) - len(shown)
        notes.append(f"Left out: {left_out:,} of {len(examples):,} problems; the first {len(shown):,} are here.")
    if any(len(example.completions) > MAX_COMPLETIONS for example in examples):
        notes.append(f"At most {MAX_COMPLETIONS} completions of a problem are here, passed ones first.")
    return f'<p class="note">{" ".join(notes)}</p>' if notes else ""


def _problem(example: Example, chosen: Example, is_open: bool) -> str:
    total, shown = len(example.completions), len(chosen.completions)
    passed = sum(completion.passed for completion in example.completions)
    note = ""
    if total > shown:
        passed_left = passed - sum(completion.passed for completion in chosen.completions)
        note = (
            f'<p class="note">Left out: {total - shown:,} of {total:,} completions '
            f"({passed_left:,} passed, {total - shown - passed_left:,} failed).</p>"
        )
    # By all verdicts and not those shown: a problem whose failures are left out still says so under "failed".
    kinds = " ".join(name for name, holds in (("has-passed", passed), ("has-failed", passed < total)) if holds)
    return f"""<details class="problem {kinds}"{" open" if is_open else ""}>
<summary><span class="id">{_text(example.task_id)}</span> \
<span class="tally{" some" if passed else ""}">{passed:,} of {total:,} passed</span></summary>
{note}<div class="body"><section class="prompt"><h2>Prompt</h2>{_code(example.prompt)}</section>
<div class="completions">
{"".join(map(_completion, chosen.completions))}</div></div></details>
"""


def _completion(shown: Shown) -> str:
    word = "passed" if shown.passed else "failed"
    reason = "" if shown.reason == word else f"<span>{_text(shown.reason)}</span>"
    detail = f'<p class="detail">{_text(shown.detail[:MAX_CHARACTERS])}</p>' if shown.detail else ""
    return f"""<section class="{word}"><h2><span class="badge">{"✓" if shown.passed else "✗"} {word}</span>{reason}\
<span class="seconds">{shown.seconds:.2f} s</span></h2>{detail}{_cut_note(shown.detail)}
{_code(shown.completion)}</section>
"""


def _style() -> str:
    """Return the style sheet: layout, and the colours of code in light and dark, free of the red of a failure."""
    return (
        STYLE
        + f"@media not all and (prefers-color-scheme: dark) {{\n{_code_colours('sas')}\n}}\n"
        + f"@media (prefers-color-scheme: dark) {{\n{_code_colours('native')}\n}}\n"
    )


def _code_colours(style: str) -> str:
    rules = HtmlFormatter(style=style).get_style_defs(".code").splitlines()
    # A completion that is cut off is no error to be framed in red, and the page has its own background.
    return "\n".join(rule for rule in rules if rule.startswith(".code .") and not rule.startswith(".code .err"))


STYLE = """
:root {
  color-scheme: light dark;
  --page: #f6f7f9; --card: #ffffff; --text: #1c2128; --soft: #59636e; --line: #d5dae0;
  --good: #116329; --good-back: #d6f3dd; --bad: #a40e26; --bad-back: #ffe1e0; --accent: #0a58ca;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #0f1318; --card: #181d24; --text: #e3e8ee; --soft: #9aa5b1; --line: #323a44;
    --good: #7ee2a0; --good-back: #12381f; --bad: #ffa8a3; --bad-back: #4b1a1c; --accent: #79b8ff;
  }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem clamp(.75rem, 2vw, 2rem) 4rem; max-width: 120rem;
  background: var(--page); color: var(--text); font: 16px/1.5 system-ui, sans-serif; }
h1 { margin: .25rem 0 1rem; font-size: 1.5rem; line-height: 1.25; overflow-wrap: anywhere; }
h2 { display: flex; flex-wrap: wrap; align-items: baseline; gap: .25rem .6rem; margin: 0; font-size: .9rem;
  font-weight: 600; overflow-wrap: anywhere; }
pre { margin: 0; overflow: auto; font: 13px/1.5 ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace;
  tab-size: 4; }
code { font: inherit; }
.code span { text-decoration: none !important; } /* what is underlined looks like a link */
summary { cursor: pointer; padding: .6rem .25rem; }
.note { margin: .5rem 0; color: var(--soft); font-size: .875rem; }
.scores { overflow-x: auto; border: 1px solid var(--line); border-radius: .5rem; background: var(--card); }
table { width: 100%; border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .45rem .8rem; text-align: left; white-space: nowrap; }
th { color: var(--soft); font-size: .8rem; font-weight: 600; }
td { border-top: 1px solid var(--line); }
td:nth-child(3) { font-weight: 700; }
.protocol { margin: .5rem 0; color: var(--soft); }
.protocol pre { max-height: 24rem; padding: .75rem; border: 1px solid var(--line); border-radius: .5rem;
  background: var(--card); color: var(--text); }
.filter { position: sticky; top: 0; z-index: 2; display: flex; flex-wrap: wrap; align-items: center; gap: .25rem .5rem;
  padding: .6rem 0; background: var(--page); border-bottom: 1px solid var(--line); }
.filter span { color: var(--soft); }
.filter label { display: flex; align-items: center; gap: .4rem; padding: .25rem .7rem; border: 1px solid var(--line);
  border-radius: 2rem; background: var(--card); cursor: pointer; }
.filter label:has(:checked) { border-color: var(--accent); box-shadow: inset 0 0 0 1px var(--accent); }
.filter input { margin: 0; accent-color: var(--accent); }
.problem { border-bottom: 1px solid var(--line); }
.problem[open] { padding-bottom: 1rem; }
.id { font-weight: 700; overflow-wrap: anywhere; }
.tally { margin-left: .5rem; color: var(--bad); font-size: .875rem; white-space: nowrap; }
.tally.some { color: var(--good); }
.body { display: grid; grid-template-columns: minmax(0, 1fr) minmax(0, 2fr); align-items: start; gap: .75rem; }
.completions { display: grid; grid-auto-flow: column; grid-auto-columns: minmax(26rem, 1fr); align-items: start;
  gap: .75rem; overflow-x: auto; }
section { display: flex; flex-direction: column; gap: .5rem; min-width: 0; padding: .75rem;
  border: 1px solid var(--line); border-radius: .5rem; background: var(--card); }
section pre { max-height: 30rem; }
.prompt pre { white-space: pre-wrap; overflow-wrap: anywhere; }
.passed { border-top: 3px solid var(--good); }
.failed { border-top: 3px solid var(--bad); }
.badge { padding: .05rem .55rem; border-radius: 1rem; white-space: nowrap; }
.passed .badge { color: var(--good); background: var(--good-back); }
.failed .badge { color: var(--bad); background: var(--bad-back); }
.seconds { margin-left: auto; color: var(--soft); font-weight: 400; white-space: nowrap; }
.detail { margin: 0; max-height: 7.5rem; overflow: auto; color: var(--soft); font-size: .875rem; white-space: pre-wrap;
  overflow-wrap: anywhere; }
body:has(#show-passed:checked) :is(section.failed, .problem:not(.has-passed)),
body:has(#show-failed:checked) :is(section.passed, .problem:not(.has-failed)) { display: none; }
@media (max-width: 60rem) {
  .body { grid-template-columns: minmax(0, 1fr); }
  .completions { grid-auto-columns: minmax(88%, 1fr); scroll-snap-type: x proximity; }
  .completions section { scroll-snap-align: start; }
  .prompt pre { max-height: 16rem; }
}
@media (max-width: 30rem) {
  th, td { padding: .4rem .5rem; font-size: .8125rem; }
  .filter span { display: none; }
  .filter label { padding: .25rem .6rem; font-size: .9rem; }
}
"""
