"""train_clm.py as its users run it, on a model of a few thousand parameters."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import train_clm
from llama_code.errors import run_script
from llama_code.training.arguments import parse_run
from llama_code.training.events import Events
from llama_code.training.run_requests import RunRequests
from llama_code.training.stop_signals import StopSignals
from llama_code.training.trainer import CodeTrainer

ROOT = Path(train_clm.__file__).parent


@pytest.fixture
def argv(config: Path, corpus: Path, small_tokenizer: Path, tmp_path: Path) -> list[str]:
    return [
        *("--config", str(config), "--dataset", str(corpus), "--tokenizer", str(small_tokenizer)),
        *("--output_dir", str(tmp_path / "run"), "--train_tokens", str(64 * 90 - 30), "--use_cpu", "true"),
    ]


def run(monkeypatch: pytest.MonkeyPatch, argv: list[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["train_clm.py", *argv])
    run_script(train_clm.main)


def test_a_run_learns_saves_and_records(
    argv: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_tokenizer: Path
) -> None:
    run(monkeypatch, argv)
    folder = tmp_path / "run"
    record = json.loads((folder / "run.json").read_text())
    assert record["final"]["bits_per_byte"] < record["initial"]["bits_per_byte"] - 1
    assert record["tokens"] == 64 * 90 - 30 and record["recipe"]["num_steps"] == 90
    assert record["size"] == "tiny" and record["device"].startswith("cpu")
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.config.use_cache and record["config"]["use_cache"]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert record["num_parameters"] == model.num_parameters() and len(tokenizer) == 300
    assert record["flops"] == record["tokens"] * (6 * model.num_parameters() + 6 * 2 * 32 * 64)
    for name in ("data_hash", "versions", "git_commit", "seconds", "config", "passes_over_data", "mfu", "dataset"):
        assert name in record
    assert set(record["versions"]) >= {"python", "torch", "transformers"}
    assert {"modeling_llama_code.py", "configuration_llama_code.py"} <= {path.name for path in folder.iterdir()}
    assert list(folder.rglob("events.out.tfevents*")), "TensorBoard has nothing to show"

    # The same command in a fresh folder gives the same numbers and the same weights.
    argv[argv.index(str(folder))] = str(tmp_path / "again")
    run(monkeypatch, argv)
    again = json.loads((tmp_path / "again" / "run.json").read_text())
    for name in ("initial", "final", "train_loss", "data_hash", "tokens", "flops", "recipe"):
        assert again[name] == record[name]
    other = AutoModelForCausalLM.from_pretrained(tmp_path / "again")
    for name, parameter in model.state_dict().items():
        assert torch.equal(parameter, other.state_dict()[name])


def test_gradient_accumulation_changes_nothing_but_speed(
    argv: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches of 6 rows, the last one of 2, as one forward pass a step and as three."""
    argv[argv.index("--train_tokens") + 1] = str(64 * 50 - 30)
    argv += ["--batch_tokens", str(64 * 6)]
    weights, losses = [], []
    for rows in (6, 2):
        argv[argv.index("--output_dir") + 1] = str(tmp_path / f"by-{rows}")
        run(monkeypatch, [*argv, "--per_device_train_batch_size", str(rows)])
        weights.append(AutoModelForCausalLM.from_pretrained(tmp_path / f"by-{rows}").state_dict())
        losses.append(json.loads((tmp_path / f"by-{rows}" / "run.json").read_text())["train_loss"])
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)
    for name, parameter in weights[0].items():
        torch.testing.assert_close(parameter, weights[1][name], atol=1e-3, rtol=0)


def test_fused_kernels_change_nothing_but_speed(
    argv: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a z-loss and accumulation; interpreted here, and not compiled: that is Inductor's, and another test's."""
    pytest.importorskip("triton")
    argv[argv.index("--train_tokens") + 1] = str(64 * 12 - 30)
    argv += ["--z_loss", "1e-3", "--batch_tokens", "256", "--per_device_train_batch_size", "2", "--eval_rows", "2"]
    records = {}
    for kernels in ("reference", "fused"):
        argv[argv.index("--output_dir") + 1] = str(tmp_path / kernels)
        with torch.compiler.set_stance("force_eager"):
            run(monkeypatch, [*argv, "--kernels", kernels])
        records[kernels] = json.loads((tmp_path / kernels / "run.json").read_text())
        assert records[kernels]["recipe"]["kernels"] == kernels and records[kernels]["recipe"]["z_loss"] == 1e-3
    reference, fused = records["reference"], records["fused"]
    assert fused["train_loss"] == pytest.approx(reference["train_loss"], abs=1e-4)
    assert fused["final"]["bits_per_byte"] == pytest.approx(reference["final"]["bits_per_byte"], abs=1e-4)
    assert fused["config"] == reference["config"]
    weights = [AutoModelForCausalLM.from_pretrained(tmp_path / kernels).state_dict() for kernels in records]
    assert weights[0].keys() == weights[1].keys()
    for name, parameter in weights[0].items():
        torch.testing.assert_close(parameter, weights[1][name], atol=1e-3, rtol=0)


def test_norms_do_not_decay(tmp_path: Path) -> None:
    arguments = parse_run(["--output_dir", str(tmp_path), "--use_cpu", "true"], ROOT / "recipes")
    model = AutoModelForCausalLM.from_config(arguments.config)
    trainer = CodeTrainer(
        model=model,
        args=arguments.training_arguments,
        held_out_rows=None,
        byte_lengths=None,
        flops_per_token=1,
        peak_flops=1,
        events=Events(tmp_path),
        requests=RunRequests(StopSignals(), 0),
        checkpoint_files=lambda step: {},
        describe_rows=lambda step: {},
    )
    optimizer = trainer.create_optimizer()
    decays = {
        id(parameter): group["weight_decay"] for group in optimizer.param_groups for parameter in group["params"]
    }
    assert {name: decays[id(parameter)] for name, parameter in model.named_parameters()} == {
        name: 0.0 if "norm" in name else 0.1 for name, _ in model.named_parameters()
    }
    assert optimizer.param_groups[0]["betas"] == (0.9, 0.95)


def test_warmup_and_cosine_to_a_tenth(argv: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    argv[argv.index("--train_tokens") + 1] = str(64 * 50)
    run(monkeypatch, argv)
    events = EventAccumulator(str(next((tmp_path / "run").rglob("events.out.tfevents*")).parent))
    events.Reload()
    rates = [event.value for event in events.Scalars("train/learning_rate")]
    assert len(rates) == 50 and max(rates) == pytest.approx(1e-2) and rates.index(max(rates)) == 5
    expected = [
        1e-2 * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * (step - 5) / 45))) if step >= 5 else 1e-2 * step / 5
        for step in range(50)
    ]
    assert rates == pytest.approx(expected, rel=1e-4)
    assert len(events.Scalars("train/tokens_per_second")) == len(events.Scalars("train/mfu")) == 50
    assert [event.step for event in events.Scalars("eval/bits_per_byte")] == [0, 50]


def test_a_resumed_run_records_its_own_speed_and_loss(
    argv: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    argv += ["--save_strategy", "steps", "--save_steps", "50", "--logging_steps", "1"]
    run(monkeypatch, argv)
    whole = json.loads((tmp_path / "run" / "run.json").read_text())
    checkpoint = str(tmp_path / "run" / "checkpoint-50")
    argv[argv.index("--output_dir") + 1] = str(tmp_path / "resumed")
    run(monkeypatch, [*argv, "--resume_from_checkpoint", checkpoint])
    resumed = json.loads((tmp_path / "resumed" / "run.json").read_text())
    assert (whole["resumed_from_step"], resumed["resumed_from_step"]) == (0, 50)
    for name in ("initial", "final", "tokens", "flops"):
        assert resumed[name] == whole[name]
    state = json.loads((tmp_path / "run" / "checkpoint-90" / "trainer_state.json").read_text())
    losses = [entry["loss"] for entry in state["log_history"] if "loss" in entry]
    assert whole["train_loss"] == pytest.approx(sum(losses) / 90, rel=1e-4)
    assert resumed["train_loss"] == pytest.approx(sum(losses[50:]) / 40, rel=1e-4)
    assert resumed["tokens_per_second"] == pytest.approx((64 * 40 - 30) / resumed["seconds"], rel=0.01)

    argv[argv.index("--output_dir") + 1] = str(tmp_path / "shorter")
    argv[argv.index("--train_tokens") + 1] = str(64 * 50)
    with pytest.raises(SystemExit):
        run(monkeypatch, [*argv, "--resume_from_checkpoint", checkpoint])
    assert "--train_tokens 5730, and the run is with --train_tokens 3200" in capfd.readouterr().err


def test_bad_input_is_one_sentence(
    argv: list[str],
    config: Path,
    tmp_path: Path,
    corpus: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture,
) -> None:
    finished, unfinished = tmp_path / "finished", tmp_path / "unfinished"
    finished.mkdir()
    (finished / "run.json").touch()
    (unfinished / "checkpoint-10").mkdir(parents=True)
    (tmp_path / "empty").mkdir()
    (tmp_path / "taken").touch()
    (tmp_path / "rows.jsonl").write_text('{"body": 1}\n')
    cases = {
        "--config 'm7' is neither a size": ["--config", "m7"],
        "--train_tokens 63 is less than one row of 64 tokens": ["--train_tokens", "63"],
        "--dataset 'no-such' does not exist": ["--dataset", "no-such"],
        "empty' holds no .py, .jsonl or .parquet file": ["--dataset", str(tmp_path / "empty")],
        "rows.jsonl' has the columns 'body'": ["--dataset", str(tmp_path / "rows.jsonl")],
        "has 32000 tokens but the model's vocab_size is 300; they must be equal": [
            "--tokenizer",
            str(ROOT / "tokenizer"),
        ],
        "--tokenizer 'no-such' cannot be loaded": ["--tokenizer", "no-such"],
        "finished' already holds a finished run, whose run.json was written by another version or changed; name": [
            "--output_dir",
            str(finished),
        ],
        "--output_dir '/proc/x' cannot be written": ["--output_dir", "/proc/x"],
        "makes no model": ["--attn_implementation", "nonsense"],
        "--kernels='fast' is none of auto, reference, fused; choose one": ["--kernels", "fast"],
        "--torch_compile true contradicts --kernels fused, whose layers are compiled one by one; leave one out": [
            *("--kernels", "fused", "--torch_compile", "true")
        ],
        "--optim adamw_torch_8bit needs torchao, which is not installed; pip install torchao": [
            *("--optim", "adamw_torch_8bit")
        ],
        "holds checkpoints of which none is as it was written (checkpoint-10: it has no manifest.json: it was": [
            *("--output_dir", str(unfinished))
        ],
        "taken' is no folder; name one": ["--output_dir", str(tmp_path / "taken")],
        "cannot be divided by --per_device_train_batch_size 3": [
            *("--batch_tokens", "512", "--per_device_train_batch_size", "3")
        ],
    }
    for message, changes in cases.items():
        with pytest.raises(SystemExit) as stop:
            run(monkeypatch, [*argv, *changes])
        error = capfd.readouterr().err
        assert stop.value.code == 2, message
        *progress, sentence = error.strip().split("\n")
        assert message in sentence and sentence.startswith("error: ") and "Traceback" not in error, error
        assert all("screening" in line for line in progress), error


def test_fused_kernels_without_a_gpu_are_one_sentence(
    argv: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(SystemExit) as stop:
        run(monkeypatch, [*argv, "--kernels", "fused"])
    assert stop.value.code == 2
    assert capfd.readouterr().err.strip() == (
        "error: --kernels='fused' needs a CUDA GPU, and the model is on cpu; "
        "use 'reference', or 'auto' to take what can run"
    )


@pytest.mark.parametrize("launcher", [[sys.executable], [sys.executable, "-m", "accelerate.commands.launch"]])
def test_python_and_accelerate_launch(argv: list[str], tmp_path: Path, launcher: list[str]) -> None:
    argv[argv.index("--train_tokens") + 1] = str(64 * 20)
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home")}
    command = [*launcher, str(ROOT / "train_clm.py"), *argv]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "bits per byte on held-out Python" in result.stderr
    assert (tmp_path / "run" / "run.json").exists()
