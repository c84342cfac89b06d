"""Two evaluations side by side: `eval_code.py --compare A B`, each a results.json or the folder that holds it."""

import json
import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from scipy.stats import binomtest

from llama_code.errors import UserError
from llama_code.evaluation.metrics import confidence_interval
from llama_code.evaluation.protocol import differing_fields, protocol_hash
from llama_code.evaluation.records import VERDICT, read_verdicts
from llama_code.evaluation.table import markdown_table

# What a model brings with it: these fields differ between models that are evaluated alike.
MODEL_FIELDS = ("document_start", "end_tokens", "rescored.file", "rescored.sha256")
MAX_ROWS = 30
# Where a result has what people are shown, beside its pass@k.
MEASURES = {
    "bits per byte": ("bits_per_byte",),
    "bits per byte of solutions": ("solutions", "bits_per_byte"),
    "samples that parse": ("quality", "structure", "parse"),
    "samples that run": ("quality", "structure", "run"),
    "samples that pass a test": ("quality", "pass_any"),
}
SEED = 0
ANOTHER_VERSION = "it comes from another version or another program; evaluate again with eval_code.py"


class Verdict(NamedTuple):
    """What became of one sample."""

    passed: bool
    reason: str


Verdicts = dict[str, list[Verdict]]


class Pair(NamedTuple):
    """One problem's verdicts in A and in B."""

    task_id: str
    a: list[Verdict]
    b: list[Verdict]

    @property
    def difference(self) -> float:
        """The pass rate of B minus that of A; exactly 0 where they agree."""
        passes_a, passes_b = _passes(self.a), _passes(self.b)
        # One division: of two equal rates, such as 1/3 and 2/6, nothing is left over.
        return (passes_b * len(self.a) - passes_a * len(self.b)) / (len(self.a) * len(self.b))


def compare(a: Path, b: Path) -> str:
    """Compare two evaluations.

    Args:
        a: a results.json or its folder, with verdicts.jsonl beside it where a benchmark was judged.
        b: the other one; differences are B minus A.

    Returns:
        Text to print.

    Raises:
        UserError: one of them is not the result of an evaluation, or they have no task in common.
    """
    path_a, path_b = _results_path(a), _results_path(b)
    results_a, results_b = _read_results(path_a), _read_results(path_b)
    common = [task for task in results_a["tasks"] if task in results_b["tasks"]]
    if not common:
        raise UserError(
            f"--compare {str(path_a)!r} has the tasks {', '.join(results_a['tasks']) or 'none'} and {str(path_b)!r} "
            f"has {', '.join(results_b['tasks']) or 'none'}, and at least one must be in both; evaluate both with the "
            "same --tasks"
        )
    differing = differing_fields(results_a["protocol"], results_b["protocol"])
    obstacles = [field for field in differing if field not in MODEL_FIELDS]
    parts = [
        f"A: {path_a} (model {results_a.get('model')})\nB: {path_b} (model {results_b.get('model')})",
        _protocol_text(differing, obstacles),
    ]
    judged = [task for task in common if "ci95" in results_a["tasks"][task] and "ci95" in results_b["tasks"][task]]
    verdicts_a = _read_verdicts(path_a.with_name("verdicts.jsonl")) if judged else {}
    verdicts_b = _read_verdicts(path_b.with_name("verdicts.jsonl")) if judged else {}
    for task in common:
        parts.append(_scores_text(task, results_a["tasks"][task], results_b["tasks"][task], not obstacles))
        if task in judged:
            of_a = _of_task(task, verdicts_a, path_a, results_a)
            of_b = _of_task(task, verdicts_b, path_b, results_b)
            pairs = [Pair(task_id, of_a[task_id], of_b[task_id]) for task_id in of_a if task_id in of_b]
            alone = len(of_a.keys() ^ of_b.keys())
            parts.append(_problems_text(pairs, alone, not obstacles))
    return "\n\n".join(parts)


def _results_path(path: Path) -> Path:
    if not path.exists():
        raise UserError(f"--compare {str(path)!r} does not exist; give a results.json or the folder that holds it")
    if path.is_dir():
        path /= "results.json"
        if not path.is_file():
            raise UserError(
                f"--compare {str(path.parent)!r} has no results.json, which a finished evaluation leaves; give the "
                "--output_dir of eval_code.py"
            )
    return path


def _read_results(path: Path) -> dict[str, Any]:
    try:
        results = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:  # JSONDecodeError, UnicodeDecodeError; nesting without end
        raise UserError(
            f"--compare {str(path)!r} is no JSON ({error}); give the results.json of an evaluation"
        ) from error
    for key in ("tasks", "protocol"):
        if not isinstance(results, dict) or not isinstance(results.get(key), dict):
            raise UserError(f"--compare {str(path)!r} has no object under {key!r}; {ANOTHER_VERSION}")
    for task, result in results["tasks"].items():
        if not isinstance(result, dict) or not isinstance(result.get("ci95", {}), dict):
            raise UserError(
                f"--compare {str(path)!r} has a result of {task!r} that is no object, or whose ci95 is none; "
                f"{ANOTHER_VERSION}"
            )
        for name, value in _scores(result).items():
            if not isinstance(value, int | float) or not math.isfinite(value):
                raise UserError(
                    f"--compare {str(path)!r} has {value!r} as {name} of {task!r}, which must be a finite number; "
                    f"{ANOTHER_VERSION}"
                )
    if results.get("protocol_hash") != protocol_hash(results["protocol"]):
        raise UserError(
            f"--compare {str(path)!r} has a protocol_hash that is not its protocol's, as if it had been edited; "
            "evaluate again"
        )
    return results


def _scores(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return the figures of a task's result by the names that people are shown."""
    scores = {name: result.get(name) for name in result.get("ci95", {})}
    for name, keys in MEASURES.items():
        value: Any = result
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        if keys[0] in result:
            scores[name] = value
    return scores


def _read_verdicts(path: Path) -> Verdicts:
    """Read verdicts.jsonl by task id.

    Raises:
        UserError: the file is missing, a line of it is not a verdict, or a sample has two.
    """
    if not path.is_file():
        raise UserError(
            f"--compare needs {str(path)!r}, which eval_code.py writes beside results.json and which is not there; "
            "put it back or evaluate again"
        )
    return {
        task_id: [Verdict(record["passed"], record["reason"]) for record in records]
        for task_id, records in read_verdicts(path, VERDICT).items()
    }


def _of_task(task: str, verdicts: Verdicts, path: Path, results: Mapping[str, Any]) -> Verdicts:
    """Return the verdicts on a benchmark's problems; verdicts.jsonl may hold those of others.

    Raises:
        UserError: the problems of its score in results.json are not known, or one has no verdict.
    """
    task_ids = results["tasks"][task].get("task_ids")
    if not isinstance(task_ids, list) or not all(isinstance(task_id, str) for task_id in task_ids) or not task_ids:
        raise UserError(f"--compare {str(path)!r} names no problems of {task}; {ANOTHER_VERSION}")
    missing = [task_id for task_id in task_ids if task_id not in verdicts]
    if missing:
        raise UserError(
            f"--compare {str(path.with_name('verdicts.jsonl'))!r} has no verdict on {missing[0]!r}, which the score "
            f"of {task} in results.json beside it counts; evaluate again"
        )
    own = {task_id: verdicts[task_id] for task_id in task_ids}
    num_samples = results["tasks"][task].get("num_samples")
    fewer = next((task_id for task_id, of_one in own.items() if len(of_one) != num_samples), None)
    if fewer is not None:
        raise UserError(
            f"--compare {str(path.with_name('verdicts.jsonl'))!r} has {len(own[fewer])} verdicts on {fewer}, and the "
            f"score of {task} in results.json beside it is of {num_samples} samples a problem; evaluate again"
        )
    rate = sum(map(_passes, own.values())) / (len(own) * num_samples)
    told = results["tasks"][task].get("pass@1", rate)
    if not math.isclose(rate, told, abs_tol=1e-9):
        raise UserError(
            f"--compare {str(path)!r} has {told} as pass@1 of {task}, and the verdicts beside it give {rate}; "
            "evaluate again"
        )
    return own


def _protocol_text(differing: Mapping[str, tuple[str, str]], obstacles: list[str]) -> str:
    if not differing:
        return "The protocols agree."
    # Lines and no table: values such as <|endoftext|> hold the bars that part its columns.
    lines = ["Protocol fields that differ:"]
    lines += [f"  {field}: A {value_a}, B {value_b}" for field, (value_a, value_b) in differing.items()]
    if obstacles:
        lines.append(
            f"The scores are NOT comparable: the protocols differ in {', '.join(obstacles)}. Evaluate both alike to "
            "compare them."
        )
    else:
        lines.append("These belong to the models; the scores are comparable.")
    return "\n".join(lines)


def _scores_text(task: str, a: dict[str, Any], b: dict[str, Any], comparable: bool) -> str:
    scores_a, scores_b = _scores(a), _scores(b)
    same_data = a.get("data_hash") == b.get("data_hash")
    rows = []
    for name in scores_a | scores_b:
        is_rate = not name.startswith("bits")
        row = [task, name]
        row += [
            format(scores[name], ".1%" if is_rate else ".4f") if name in scores else "none"
            for scores in (scores_a, scores_b)
        ]
        if comparable and not (name in scores_a and name in scores_b):
            row.append("none")
        elif comparable and is_rate:
            row.append(f"{100 * (scores_b[name] - scores_a[name]):+.1f} points")
        elif comparable:
            row.append(f"{scores_b[name] - scores_a[name]:+.4f}" if same_data else "none: other files")
        rows.append(row)
    header = ["task", "measure", "A", "B"] + (["B - A"] if comparable else [])
    table = markdown_table(header, rows)
    if "bits_per_byte" in a | b and not same_data:
        table += f"\nBits per byte are of different files: data_hash is {a.get('data_hash')} and {b.get('data_hash')}."
    return table


def _problems_text(pairs: list[Pair], alone: int, comparable: bool) -> str:
    text = f"{len(pairs)} problems in both"
    text += f"; {alone} that only one has do not count below." if alone else "."
    if not pairs:
        return text
    lines = [text]
    if comparable:
        lines += [_sign_test_text(pairs), _interval_text(pairs)]
    differing = sorted((pair for pair in pairs if pair.difference), key=lambda pair: -abs(pair.difference))
    if not differing:
        return "\n".join([*lines, "No problem differs."])
    rows = [
        [
            pair.task_id,
            f"{_passes(pair.a)}/{len(pair.a)}",
            f"{_passes(pair.b)}/{len(pair.b)}",
            _commonest_failure(pair.a),
            _commonest_failure(pair.b),
        ]
        for pair in differing[:MAX_ROWS]
    ]
    left_out = f"; the table leaves out the {len(differing) - MAX_ROWS} that differ least"
    lines.append(f"Problems that differ: {len(differing)}{left_out if len(differing) > MAX_ROWS else ''}.")
    header = ("problem", "passes of A", "passes of B", "commonest failure of A", "commonest failure of B")
    return "\n".join(lines) + "\n\n" + markdown_table(header, rows)


def _sign_test_text(pairs: list[Pair]) -> str:
    better = sum(pair.difference > 0 for pair in pairs)
    worse = sum(pair.difference < 0 for pair in pairs)
    if better + worse == 0:
        return "Sign test: none, as every problem's pass rate is the same in both."
    p_value = binomtest(better, better + worse).pvalue
    return f"Sign test: B is better on {better} and A on {worse} problems, two-sided p = {p_value:.3g}."


def _interval_text(pairs: list[Pair]) -> str:
    differences = [pair.difference for pair in pairs]
    low, high = confidence_interval(differences, SEED)
    mean = sum(differences) / len(differences)
    return (
        f"pass@1, B - A: {100 * mean:+.1f} points, paired bootstrap 95% interval {100 * low:+.1f} to "
        f"{100 * high:+.1f} points."
    )


def _passes(verdicts: list[Verdict]) -> int:
    return sum(verdict.passed for verdict in verdicts)


def _commonest_failure(verdicts: list[Verdict]) -> str:
    reasons = Counter(verdict.reason for verdict in verdicts if not verdict.passed)
    return f"{reasons.most_common(1)[0][0]} ({reasons.most_common(1)[0][1]})" if reasons else ""
