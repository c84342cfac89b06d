"""Evaluate a model's Python: `python eval_code.py --model PATH_OR_ID_OR_GGUF --tasks perplexity,humaneval,mbpp`.

Works on any causal language model that transformers loads. A run that was cut off goes on with the same command.
`--rescore samples.jsonl --tasks humaneval` judges saved samples again, without a model; `--compare A B` shows how two
results differ.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from llama_code.argument_parser import ArgumentParser
from llama_code.data.corpus import held_out_texts, training_texts
from llama_code.errors import UserError, run_script
from llama_code.evaluation.arguments import EvalArguments
from llama_code.evaluation.compare import compare
from llama_code.evaluation.examples import write_examples
from llama_code.evaluation.fim import infilling_prompt
from llama_code.evaluation.gold import solution_bits
from llama_code.evaluation.healing import HealedPrompt, heal
from llama_code.evaluation.judging import by_complexity, judge_samples, quality, summarize_records
from llama_code.evaluation.loading import ModelSource, find_model, load_model
from llama_code.evaluation.metrics import aggregate
from llama_code.evaluation.perplexity import documents_hash, perplexity, select_documents
from llama_code.evaluation.protocol import (
    SCORING_PACKAGES,
    benchmark_protocol,
    model_protocol,
    output_lock,
    protocol_hash,
    sampling_protocol,
    start_or_take_up,
    weights_hash,
)
from llama_code.evaluation.records import SAMPLE, VERDICT, append_records, take_up
from llama_code.evaluation.samples import Samples, check_whole, numbered, read_samples, sample_record, settle_k
from llama_code.evaluation.sampling import Limits, Sample, Sampler, check_prompts, draw_samples, end_token_ids
from llama_code.evaluation.shown import shown_examples
from llama_code.evaluation.structure import Corpus
from llama_code.evaluation.table import QUALITY_HEADER, RESULT_HEADER, markdown_table, quality_rows, result_rows
from llama_code.evaluation.tasks import Benchmark, load_benchmark
from llama_code.evaluation.until import pass_until
from llama_code.evaluation.vocabulary import Vocabulary
from llama_code.judge.levels import DESCRIPTIONS, choose_level
from llama_code.training.run_record import make_output_dir, versions, write_json

Benchmarks = dict[str, Benchmark]
Prompts = dict[str, dict[str, HealedPrompt]]
# Draws samples of a benchmark's problems by their numbers.
Drawing = Callable[[Benchmark, Mapping[str, Iterable[int]]], Iterator[Sample]]


def main() -> None:
    """Measure, judge, save, print."""
    arguments = parse_arguments()
    if arguments.compare is not None:
        print(compare(*map(Path, arguments.compare)))
        return
    arguments.check_output()
    # before a model is loaded and hours go into sampling
    level = choose_level(arguments.allow_unsafe_judge) if arguments.benchmark_names else ""
    published = load_benchmarks(arguments)
    benchmarks = {name: first_problems(benchmark, arguments.limit) for name, benchmark in published.items()}
    corpus = Corpus(training_texts(arguments.copied_from)) if arguments.copied_from else None
    # what is refused is refused before a folder is made
    saved = read_saved(arguments, published, benchmarks) if arguments.rescore else {}
    source = find_model(arguments.model) if arguments.model else None
    make_output_dir(arguments.output_path)
    with output_lock(arguments.output_path):
        if source is None:
            results, samples, draw = rescored(arguments, benchmarks, level), saved, None
        else:
            results, samples, draw = evaluate(arguments, benchmarks, level, source)
        records = []
        for name, benchmark in benchmarks.items():
            own = {task_id: samples[task_id] for task_id in benchmark.problems}
            entry, judged = judge(arguments, name, benchmark, own, level, corpus)
            if arguments.pass_until and draw:
                print(f"sampling {name} until {arguments.pass_until} samples of a problem pass", flush=True)
                entry["pass_until"] = pass_until(
                    benchmark,
                    own,
                    judged,
                    partial(draw, benchmark),
                    level,
                    arguments.output_path,
                    successes=arguments.pass_until,
                    max_samples=arguments.max_samples,
                    seed=arguments.seed,
                )
            results["tasks"][name] = entry | results["tasks"].get(name, {})
            records += judged
        results["aggregate"] = aggregate(results["tasks"])
        results["protocol_hash"] = protocol_hash(results["protocol"])
        save(arguments, results, shown_examples(benchmarks, samples, records))


def parse_arguments() -> EvalArguments:
    """Read the command line.

    Raises:
        UserError: an option is not known or has a value that it cannot have.
    """
    parser = ArgumentParser([EvalArguments], allow_abbrev=False)  # type: ignore[list-item]
    arguments, unknown = parser.parse_args_into_dataclasses(return_remaining_strings=True)
    if unknown:
        raise UserError(f"{unknown[0]!r} is not an option of eval_code.py; see python eval_code.py --help")
    return arguments


def load_benchmarks(arguments: EvalArguments) -> Benchmarks:
    """Load the benchmarks asked for."""
    folder = Path(arguments.benchmark_dir) if arguments.benchmark_dir else None
    return {name: load_benchmark(name, folder, arguments.mbpp_form) for name in arguments.benchmark_names}


def first_problems(benchmark: Benchmark, limit: int | None) -> Benchmark:
    """Return a benchmark with its first so many problems, with all for None."""
    return benchmark._replace(problems=dict(list(benchmark.problems.items())[:limit]))


def evaluate(
    arguments: EvalArguments, benchmarks: Benchmarks, level: str, source: ModelSource
) -> tuple[dict[str, Any], Samples, Drawing]:
    """Measure a model and draw samples; returns what needs the model in results.json, the samples, what drew them."""
    documents = []
    if "perplexity" in arguments.task_names:
        print(f"reading the held-out files of {arguments.dataset}", flush=True)
        documents = select_documents(held_out_texts(arguments.dataset), arguments.limit)
    model, vocabulary = load_model(source, arguments.quantize)
    prompts = build_prompts(arguments, benchmarks, model, vocabulary)
    protocol: dict[str, Any] = {
        **model_protocol(model, vocabulary, arguments.quantize),
        "limit": arguments.limit,
        "seed": arguments.seed,
        "versions": versions(SCORING_PACKAGES),
        "dataset": arguments.dataset,
        "copied_from": arguments.copied_from,
    }
    if benchmarks:
        protocol |= sampling_protocol(arguments, model, vocabulary) | benchmark_protocol(benchmarks, level)
    if documents:
        protocol["data_hash"] = {**protocol.get("data_hash", {}), "perplexity": documents_hash(documents)}
    weights = weights_hash(model)
    start_or_take_up(arguments.output_path, {"model": arguments.model, "weights_hash": weights, **protocol})
    tasks: dict[str, Any] = {}
    if documents:
        print(f"perplexity on {len(documents):,} held-out files of {arguments.dataset}", flush=True)
        tasks["perplexity"] = perplexity(model, vocabulary, documents)
    for name, benchmark in benchmarks.items():
        bits = solution_bits(model, vocabulary, benchmark.problems)
        tasks[name] = {"solutions": bits} if bits else {}
    results = {
        "model": arguments.model,
        "num_parameters": model.num_parameters(),
        "weights_hash": weights,
        "protocol": protocol,
        "tasks": tasks,
    }
    draw = drawing(arguments, prompts, model, vocabulary)
    return results, draw_missing(arguments, benchmarks, prompts, draw), draw


def build_prompts(
    arguments: EvalArguments, benchmarks: Benchmarks, model: PreTrainedModel, vocabulary: Vocabulary
) -> Prompts:
    """Return the tokens of each benchmark's prompts by task id, each problem once.

    Raises:
        UserError: the vocabulary has no tokens for infilling, or a prompt does not fit the model's context.
    """
    prompts: Prompts = {}
    for name, benchmark in benchmarks.items():
        asked = set().union(*prompts.values())  # mbpp is a part of mbpp-full
        prompts[name] = {
            task_id: heal(vocabulary, problem.prompt)
            if problem.suffix is None
            else infilling_prompt(vocabulary, problem.prompt, problem.suffix)
            for task_id, problem in benchmark.problems.items()
            if task_id not in asked
        }
        check_prompts(model, prompts[name], arguments.max_new_tokens)
    return prompts


def drawing(arguments: EvalArguments, prompts: Prompts, model: PreTrainedModel, vocabulary: Vocabulary) -> Drawing:
    """Return what draws samples of a benchmark's problems by their numbers."""
    everything = {task_id: prompt for own in prompts.values() for task_id, prompt in own.items()}
    ends = frozenset(end_token_ids(model, vocabulary))

    def draw(benchmark: Benchmark, numbers: Mapping[str, Iterable[int]]) -> Iterator[Sample]:
        return draw_samples(
            model,
            vocabulary,
            everything,
            numbers,
            sampler=Sampler(arguments.temperature, arguments.top_p, arguments.top_k),
            limits=Limits(arguments.max_new_tokens, benchmark.stop_strings, ends),
            seed=arguments.seed,
            batch_size=arguments.batch_size,
        )

    return draw


def draw_missing(arguments: EvalArguments, benchmarks: Benchmarks, prompts: Prompts, draw: Drawing) -> Samples:
    """Draw the samples that samples.jsonl does not have yet, and return all by task id."""
    assert arguments.num_samples
    path = arguments.output_path / "samples.jsonl"
    drawn = numbered(take_up(path, SAMPLE))
    asked = [task_id for own in prompts.values() for task_id in own]
    alien = drawn.keys() - {(task_id, number) for task_id in asked for number in range(arguments.num_samples)}
    if alien:
        task_id, number = min(alien)
        raise UserError(
            f"{str(path)!r} holds sample {number} of {task_id!r}, which this run does not draw; name another "
            "--output_dir"
        )
    for name, own in prompts.items():
        numbers = {
            task_id: [number for number in range(arguments.num_samples) if (task_id, number) not in drawn]
            for task_id in own
        }
        if any(numbers.values()):
            print(f"sampling {name}", flush=True)
            append_records(path, map(sample_record, draw(benchmarks[name], numbers)))
    return read_samples(path, asked) if asked else {}


def read_saved(arguments: EvalArguments, published: Benchmarks, benchmarks: Benchmarks) -> Samples:
    """Read saved samples of published problems, and return those that are asked for."""
    path = Path(arguments.rescore or "")
    samples = read_samples(path, [task_id for benchmark in published.values() for task_id in benchmark.problems])
    check_whole(path, samples, {name: list(benchmark.problems) for name, benchmark in benchmarks.items()})
    asked = {task_id: samples[task_id] for benchmark in benchmarks.values() for task_id in benchmark.problems}
    arguments.k = settle_k(arguments.k, min(map(len, asked.values())))
    print(f"{sum(map(len, asked.values())):,} samples of {len(asked)} problems, pass@k for k = {arguments.k}")
    return asked


def rescored(arguments: EvalArguments, benchmarks: Benchmarks, level: str) -> dict[str, Any]:
    """Return results.json of saved samples, without scores."""
    path = Path(arguments.rescore or "")
    protocol = {
        "rescored": {"file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()},
        "limit": arguments.limit,
        "seed": arguments.seed,
        "versions": versions(SCORING_PACKAGES),
        "copied_from": arguments.copied_from,
        **benchmark_protocol(benchmarks, level),
    }
    start_or_take_up(arguments.output_path, protocol)
    return {"model": None, "protocol": protocol, "tasks": {}}


def judge(
    arguments: EvalArguments, name: str, benchmark: Benchmark, samples: Samples, level: str, corpus: Corpus | None
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Judge a benchmark's samples; returns its entry in results.json and a record of each verdict."""
    assert arguments.k
    print(f"judging {name} at level {level!r}: {DESCRIPTIONS[level]}", flush=True)
    path = arguments.output_path / "verdicts.jsonl"
    records = judge_samples(benchmark, samples, level, path, take_up(path, VERDICT))
    entry = summarize_records(records, arguments.k, arguments.seed)
    entry["by_complexity"] = by_complexity(benchmark, records, arguments.k)
    return entry | {"quality": quality(benchmark, samples, records, level, corpus)}, records


def save(arguments: EvalArguments, results: dict[str, Any], examples: list[Any]) -> None:
    """Write results.json last: a run that has it is finished."""
    folder = arguments.output_path
    table = markdown_table(RESULT_HEADER, result_rows(results["tasks"]))
    looks = markdown_table(QUALITY_HEADER, quality_rows(results["tasks"]))
    (folder / "results.md").write_text(f"{table}\n\n{looks}\n", encoding="utf-8")
    if examples:
        title = arguments.model or arguments.rescore or ""
        write_examples(folder / "examples.html", title, results["protocol"], results["tasks"], examples)
    write_json(folder / "results.json", results)
    print("\n" + table)
    files = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    print("files:", ", ".join(map(str, files)))


if __name__ == "__main__":
    run_script(main)
