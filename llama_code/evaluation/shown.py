"""What of an evaluation is shown to people: prompts and completions with their verdicts."""

from collections.abc import Mapping, Sequence
from typing import Any

from llama_code.evaluation.examples import Example, Shown
from llama_code.evaluation.samples import Samples
from llama_code.evaluation.tasks import Benchmark


def shown_examples(
    benchmarks: Mapping[str, Benchmark], samples: Samples, records: Sequence[Mapping[str, Any]]
) -> list[Example]:
    """Pair each problem's completions with their verdicts, each problem once, in the order of the benchmarks."""
    verdicts: dict[tuple[str, int], Mapping[str, Any]] = {
        (record["task_id"], record["sample"]): record for record in records
    }
    prompts = {task_id: problem.prompt for b in benchmarks.values() for task_id, problem in b.problems.items()}
    examples = []
    for task_id, prompt in prompts.items():
        completions = samples.get(task_id, [])
        shown = []
        for number, completion in enumerate(completions):
            verdict = verdicts[task_id, number]
            shown.append(
                Shown(completion, verdict["passed"], verdict["reason"], verdict["detail"], verdict["seconds"])
            )
        examples.append(Example(task_id, prompt, shown))
    return examples
