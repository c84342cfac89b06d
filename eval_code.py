"""Evaluate a model's Python: `python eval_code.py --model PATH_OR_ID_OR_GGUF --tasks perplexity,humaneval`.

Works on any causal language model that transformers loads. `--rescore samples.jsonl --tasks humaneval` judges saved
samples again, without a model.
"""

import hashlib
from pathlib import Path
from typing import Any

from transformers import HfArgumentParser

from llama_code.data.corpus import held_out_texts
from llama_code.errors import UserError, run_script
from llama_code.evaluation.arguments import EvalArguments
from llama_code.evaluation.loading import find_model, load_model
from llama_code.evaluation.metrics import aggregate
from llama_code.evaluation.perplexity import perplexity, select_documents
from llama_code.evaluation.protocol import SCORING_PACKAGES, judge_protocol, model_protocol, sampling_protocol
from llama_code.evaluation.samples import (
    Samples,
    judge_samples,
    read_samples,
    settle_k,
    write_records,
    write_samples,
)
from llama_code.evaluation.sampling import sample
from llama_code.evaluation.table import RESULT_HEADER, markdown_table, result_rows
from llama_code.evaluation.tasks import HUMANEVAL_STOP_STRINGS, humaneval, problems_hash
from llama_code.judge.levels import DESCRIPTIONS, choose_level
from llama_code.training.run_record import make_output_dir, versions, write_json


def main() -> None:
    """Measure, judge, save, print."""
    arguments = parse_arguments()
    arguments.check_output()
    # before a model is loaded and hours go into sampling
    level = choose_level(arguments.allow_unsafe_judge) if "humaneval" in arguments.task_names else None
    results = rescore(arguments, level) if level and arguments.rescore else evaluate(arguments, level)
    results["aggregate"] = aggregate(results["tasks"])
    write_json(arguments.output_path / "results.json", results)
    print("\n" + markdown_table(RESULT_HEADER, result_rows(results["tasks"])))
    print("files:", ", ".join(str(path) for path in sorted(arguments.output_path.glob("*.json*"))))


def parse_arguments() -> EvalArguments:
    """Read the command line.

    Raises:
        UserError: an option is not known or has a value that it cannot have.
    """
    parser = HfArgumentParser([EvalArguments], allow_abbrev=False)  # type: ignore[list-item]
    arguments, unknown = parser.parse_args_into_dataclasses(return_remaining_strings=True)
    if unknown:
        raise UserError(f"{unknown[0]!r} is not an option of eval_code.py; see python eval_code.py --help")
    return arguments


def evaluate(arguments: EvalArguments, level: str | None) -> dict[str, Any]:
    """Run the tasks on a model and return results.json without its aggregate."""
    assert arguments.model and arguments.num_samples and arguments.k
    source = find_model(arguments.model)
    make_output_dir(arguments.output_path)
    documents = []
    if "perplexity" in arguments.task_names:
        print(f"reading the held-out files of {arguments.dataset}", flush=True)
        documents = select_documents(held_out_texts(arguments.dataset), arguments.limit)
    model, vocabulary = load_model(source)
    protocol: dict[str, Any] = {
        **model_protocol(model, vocabulary),
        "limit": arguments.limit,
        "seed": arguments.seed,
        "data_hash": {},
        "versions": versions(SCORING_PACKAGES),
    }
    problems = {}
    if level is not None:
        problems = dict(list(humaneval().items())[: arguments.limit])
        protocol |= sampling_protocol(arguments, model, vocabulary) | {"judge": judge_protocol(level)}
        protocol["data_hash"]["humaneval"] = problems_hash(problems)
    drawn = sample(
        model,
        vocabulary,
        {task_id: problem.prompt for task_id, problem in problems.items()},
        num_samples=arguments.num_samples,
        max_new_tokens=arguments.max_new_tokens,
        temperature=arguments.temperature,
        top_p=arguments.top_p,
        stop_strings=HUMANEVAL_STOP_STRINGS,
        seed=arguments.seed,
        batch_size=arguments.batch_size,
    )
    tasks: dict[str, Any] = {}
    for task in arguments.task_names:
        if task == "perplexity":
            print(f"perplexity on {len(documents):,} held-out files of {arguments.dataset}", flush=True)
            tasks[task] = perplexity(model, vocabulary, documents)
            protocol["dataset"] = arguments.dataset
            protocol["data_hash"][task] = tasks[task]["data_hash"]
        elif level is not None:
            samples = write_samples(arguments.output_path / "samples.jsonl", drawn)
            tasks[task] = judge(arguments, samples, arguments.k, level)
    return {
        "model": arguments.model,
        "num_parameters": model.num_parameters(),
        "protocol": protocol,
        "tasks": tasks,
    }


def rescore(arguments: EvalArguments, level: str) -> dict[str, Any]:
    """Judge saved samples and return results.json without its aggregate."""
    path = Path(arguments.rescore or "")
    problems = humaneval()
    samples = read_samples(path, problems)
    ks = settle_k(arguments.k, samples)
    make_output_dir(arguments.output_path)
    print(f"{sum(map(len, samples.values())):,} samples of {len(samples)} problems, pass@k for k = {ks}", flush=True)
    protocol = {
        "rescored": {"file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()},
        "judge": judge_protocol(level),
        "seed": arguments.seed,
        "data_hash": {"humaneval": problems_hash({task_id: problems[task_id] for task_id in samples})},
        "versions": versions(SCORING_PACKAGES),
    }
    return {"model": None, "protocol": protocol, "tasks": {"humaneval": judge(arguments, samples, ks, level)}}


def judge(arguments: EvalArguments, samples: Samples, ks: list[int], level: str) -> dict[str, Any]:
    """Judge HumanEval samples, save each verdict, and return the benchmark's entry in results.json."""
    print(f"judging at level {level!r}: {DESCRIPTIONS[level]}", flush=True)
    result, verdicts = judge_samples(humaneval(), samples, ks, arguments.seed, level)
    write_records(arguments.output_path / "verdicts.jsonl", verdicts)
    return result


if __name__ == "__main__":
    run_script(main)
