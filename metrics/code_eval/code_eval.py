"""`evaluate.load("metrics/code_eval")`: pass@k of programs that a model wrote, run by llama_code's judge.

Takes and returns what Hugging Face's code_eval does, with these differences: programs are isolated; the tests run
apart from them; a k that a problem has too few samples for is an error; each result says why.
"""

from typing import Any

import datasets
import evaluate

import llama_code.evaluation.code_eval

DESCRIPTION = "Runs programs against test text in isolation and estimates pass@k."
CITATION = """\
@article{chen2021evaluating,
    title={Evaluating Large Language Models Trained on Code},
    author={Mark Chen and others},
    journal={arXiv:2107.03374},
    year={2021}
}
"""
INPUTS = """\
Args:
    predictions: a list of programs, complete Python sources, for each problem.
    references: test text for each problem; names that it does not define are the program's.
    k: the k of pass@k, a number or several; by default those of 1, 10 and 100 that every problem has samples for.
    num_workers: how many programs run at once.
    timeout: wall-clock limit of each program in seconds.

Returns:
    pass_at_k: a dictionary with "pass@k" for each k.
    results: for each problem's index a list of (sample index, result); a result has task_id, completion_id, passed,
        result (as Hugging Face words it: "passed", "timed out", "failed: ..."), reason, detail and seconds.
"""


@evaluate.utils.file_utils.add_start_docstrings(DESCRIPTION, INPUTS)
class CodeEval(evaluate.Metric):
    """pass@k by the judge."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
            inputs_description=INPUTS,
            features=datasets.Features(
                {
                    "predictions": datasets.Sequence(datasets.Value("string")),
                    "references": datasets.Value("string"),
                }
            ),
        )

    def compute(self, *, predictions: Any = None, references: Any = None, **options: Any) -> Any:
        """Compute the metric; see `inputs_description`.

        What is given here does not pass through Arrow, which refuses text with lone surrogates: a model may write it.
        """
        if predictions is None and references is None:
            return super().compute(**options)
        return self._compute(predictions, references, **options)

    def _compute(self, predictions: Any, references: Any, **options: Any) -> Any:
        return llama_code.evaluation.code_eval.code_eval(predictions, references, **options)
