"""`--fp8` from the command line; the products themselves are in tests/modeling/test_fp8.py."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import train_clm
from llama_code.errors import UserError
from llama_code.training.arguments import parse_run
from tests.training.test_train_clm import argv, run

RECIPES = Path(train_clm.__file__).parent / "recipes"
__all__ = ["argv"]  # a fixture


def shorten_rows(*folders: Path) -> None:
    """Give configurations rows of 16 tokens, two blocks of a kernel, which are interpreted 4 times as fast as 64."""
    for folder in folders:
        file = folder / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "max_position_embeddings": 16}))


@pytest.fixture
def on_any_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch's CPU has the same products, in a way that nobody would want."""
    monkeypatch.setattr("llama_code.training.arguments.fp8_obstacle", lambda device: "")


@pytest.mark.usefixtures("on_any_device")
def test_a_run_learns_resumes_and_loads(argv: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As its bf16 run learns; what a checkpoint goes on to is what the run itself came to."""
    pytest.importorskip("triton")
    shorten_rows(Path(argv[argv.index("--config") + 1]))
    argv[argv.index("--train_tokens") + 1] = str(16 * 16 - 7)
    argv += ["--kernels", "fused", "--bf16", "true", "--eval_rows", "2"]
    learned = {}
    with torch.compiler.set_stance("force_eager"):
        for name, options in {"bf16": [], "run": ["--fp8", "--save_steps", "8", "--save_strategy", "steps"]}.items():
            argv[argv.index("--output_dir") + 1] = str(tmp_path / name)
            run(monkeypatch, [*argv, *options])
            learned[name] = json.loads((tmp_path / name / "run.json").read_text())
        argv[argv.index("--output_dir") + 1] = str(tmp_path / "resumed")
        run(monkeypatch, [*argv, "--fp8", "--resume_from_checkpoint", str(tmp_path / "run" / "checkpoint-8")])
    assert learned["run"]["recipe"]["fp8"] and not learned["bf16"]["recipe"]["fp8"]
    fall = {name: x["initial"]["bits_per_byte"] - x["final"]["bits_per_byte"] for name, x in learned.items()}
    assert fall["run"] != fall["bf16"] and fall["run"] == pytest.approx(fall["bf16"], rel=0.02)
    whole, resumed = (AutoModelForCausalLM.from_pretrained(tmp_path / name) for name in ("run", "resumed"))
    for (name, ours), theirs in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name


@pytest.mark.usefixtures("on_any_device")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--kernels", "reference"],
            "--fp8 is for the fused kernels in bf16, .* contradicts --kernels reference; leave",
        ),
        (["--peft", "lora", "--model_name_or_path", "x"], "contradicts --peft lora; leave one out"),
        (["--torch_compile", "true"], "contradicts --torch_compile true; leave one out"),
        (["--bf16", "false"], "--fp8 needs --bf16 true, as what is not in fp8 is in bf16; leave --bf16 false out"),
        (["--plan", "--gpu", "A100-40"], "--fp8 needs compute capability 8.9, and A100-40 has less; leave it out, or"),
    ],
)
def test_what_contradicts_it(options: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message) as error:
        parse_run(["--config", "m1", "--output_dir", str(tmp_path), "--use_cpu", "true", "--fp8", *options], RECIPES)
    assert "\n" not in str(error.value)


def test_a_device_without_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--fp8 needs a CUDA GPU, and the run is on cpu; leave it out, or"):
        parse_run(["--config", "m1", "--output_dir", str(tmp_path), "--use_cpu", "true", "--fp8"], RECIPES)


@pytest.mark.usefixtures("on_any_device")
def test_what_the_model_may_not_be(argv: list[str], monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """Rows of a length, or a width, that is no multiple of 16; or kernels that cannot run."""
    pytest.importorskip("triton")
    file = Path(argv[argv.index("--config") + 1]) / "config.json"
    config = json.loads(file.read_text())
    cases = {
        "--fp8 takes rows whose length is a multiple of 16, and the model's max_position_embeddings is 60; change": {
            "max_position_embeddings": 60
        },
        "--fp8 takes linear layers without bias whose widths are multiples of 16, and 0.mlp.gate_proj is": {
            "intermediate_size": 40
        },
    }
    for message, change in cases.items():
        file.write_text(json.dumps({**config, **change}))
        with pytest.raises(SystemExit) as stop:
            run(monkeypatch, [*argv, "--kernels", "fused", "--bf16", "true", "--fp8"])
        error = capsys.readouterr().err
        assert stop.value.code == 2 and error.startswith(f"error: {message}") and error.count("\n") == 1
    file.write_text(json.dumps(config))
    with pytest.raises(SystemExit):
        run(monkeypatch, [*argv, "--bf16", "true", "--fp8"])
    assert "--fp8 needs the fused kernels, which cannot run here" in capsys.readouterr().err
