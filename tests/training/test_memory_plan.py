"""What a run is said to need, and what is chosen for a card."""

import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, TrainingArguments

import train_clm
from llama_code.errors import UserError, run_script
from llama_code.training.adapters import DEFAULT_ADAPTERS
from llama_code.training.arguments import parse_run
from llama_code.training.memory_plan import GIB, WORKSPACE_GIB, MemoryPlan, choose_plan, num_parameters, plan_memory

RECIPES = Path(train_clm.__file__).parent / "recipes"
OPTIONS = {"compute_bytes": 2, "row_length": 2048, "fused": True}
EIGHT_BITS = {**OPTIONS, "weights_dtype": "bfloat16", "optim": "adamw_torch_8bit"}
FP8 = {**EIGHT_BITS, "fp8": True}
FP32 = {**OPTIONS, "weights_dtype": "float32", "optim": "adamw_torch_fused"}
REFERENCE = {**FP32, "fused": False}
BF16 = {**FP32, "weights_dtype": "bfloat16"}
LORA, QLORA = ({**BF16, "adapters": replace(DEFAULT_ADAPTERS, method=method)} for method in ("lora", "qlora"))
# Most bytes allocated on an H100, in GB (docs/memory.md): size, options, rows, recomputed layers, whether gradients of
# earlier passes are there, peak.
MEASURED = [
    ("m1", FP32, 64, 0, False, 8.31),
    ("m2", FP32, 64, 0, False, 46.43),
    ("m3", FP32, 32, 0, True, 74.04),
    ("m4", EIGHT_BITS, 8, 0, True, 67.3),
    ("m4", EIGHT_BITS, 2, 0, False, 25.15),
    ("m5", EIGHT_BITS, 2, 0, True, 76.20),
    ("m5", EIGHT_BITS, 1, 14, False, 57.47),
    ("m4", FP8, 16, 0, True, 79.6),
    ("m5", FP8, 4, 0, True, 70.2),
    ("m5", FP8, 4, 0, False, 55.9),
    ("m3", LORA, 8, 0, True, 18.45),
    ("m3", QLORA, 8, 0, True, 16.80),
    ("m5", LORA, 4, 0, True, 54.55),
    ("m5", LORA, 1, 7, True, 22.91),
    ("m5", QLORA, 4, 0, True, 42.06),
    ("m5", QLORA, 2, 5, True, 20.85),
    ("m1", FP32, 1, 0, True, 0.526),
    ("m1", FP32, 32, 0, False, 4.54),
    ("m2", FP32, 1, 1, True, 2.78),
    ("m2", LORA, 1, 16, True, 0.505),
    ("m3", QLORA, 1, 23, True, 0.795),
    ("m4", EIGHT_BITS, 2, 0, True, 36.05),
    ("m5", EIGHT_BITS, 2, 0, True, 76.43),
    ("m5", EIGHT_BITS, 4, 0, False, 66.87),
    ("m5", LORA, 1, 12, True, 21.54),
    ("m5", QLORA, 2, 7, True, 19.83),
]


def plan(size: str, options: dict, rows: int, recomputed: int = 0, accumulates: bool = True) -> MemoryPlan:
    config = AutoConfig.from_pretrained(RECIPES / size)
    options = {**options, "micro_batch_rows": rows, "recomputed_layers": recomputed, "accumulates": accumulates}
    return plan_memory(config, num_parameters(config), **options)


def chosen(size: str, budget: float, options: dict = EIGHT_BITS) -> MemoryPlan:
    config = AutoConfig.from_pretrained(RECIPES / size)
    options = {**options, "layers": range(config.num_hidden_layers + 1), "budget": budget * GIB}
    return choose_plan(config, num_parameters(config), rows=(1, 2, 4, 8), step_rows=128, **options)


@pytest.mark.parametrize(("size", "options", "rows", "recomputed", "accumulates", "peak"), MEASURED)
def test_measured_peaks(size: str, options: dict, rows: int, recomputed: int, accumulates: bool, peak: float) -> None:
    assert plan(size, options, rows, recomputed, accumulates).peak / 1e9 == pytest.approx(peak, rel=0.07)


@pytest.mark.parametrize(("size", "rows", "peak"), [("m1", 64, 60.95), ("m2", 32, 57.01), ("m3", 16, 61.00)])
def test_the_reference_is_not_promised_less_than_it_takes(size: str, rows: int, peak: float) -> None:
    """Against transformers' Llama, eager, with weights and states in bf16, which are smaller."""
    assert 0.95 * peak < plan(size, REFERENCE, rows).peak / 1e9 < 1.2 * peak


def test_what_is_always_kept() -> None:
    m5 = plan("m5", EIGHT_BITS, 2)
    count = 7_012_110_336
    assert (m5.weights, m5.gradients, m5.casts) == (2 * count, 4 * count, 0)
    assert 2 * count < m5.optimizer < 2.2 * count
    m3 = plan("m3", FP32, 2)
    count = 496_986_880
    assert (m3.weights, m3.gradients, m3.optimizer, m3.casts) == (4 * count, 4 * count, 8 * count, 2 * count)


def test_fp32_throughout() -> None:
    """Activations are twice as large as under autocast, and no weight is cast."""
    autocast, fp32 = (plan("m3", {**FP32, "compute_bytes": size}, 4) for size in (2, 4))
    assert fp32.casts == 0 and fp32.activations == pytest.approx(2 * autocast.activations, rel=1e-2)
    beside_logits = 4 * 32_000 * 1_280 + WORKSPACE_GIB * GIB  # the head's gradient
    assert fp32.working - beside_logits == pytest.approx(2 * (autocast.working - beside_logits))


def test_beside_adapters_only_they_have_gradients() -> None:
    """nf4 has 4.127 bits a weight: Dettmers et al. 2023, section 3, 0.127 bits for the scales."""
    m5, trained, embedding = 7_012_110_336, 42_475_520, 32_000 * 4_096
    norms = 69 * 4_096
    lora, qlora = plan("m5", LORA, 1), plan("m5", QLORA, 1)
    assert lora.weights == 2 * m5 + 4 * trained
    assert qlora.weights == pytest.approx(
        4.127 / 8 * (m5 - embedding - norms) + 2 * (embedding + norms) + 4 * trained, rel=1e-4
    )
    for planned in (lora, qlora):
        assert (planned.gradients, planned.optimizer, planned.casts) == (4 * trained, 8 * trained, 2 * trained)
        assert planned.loss == 2 * 2 * 2048 * 4096
    assert lora.activations > qlora.activations > plan("m5", BF16, 1).activations
    assert lora.working - WORKSPACE_GIB * GIB == pytest.approx(2 * 2048 * 32_000)
    assert qlora.working - WORKSPACE_GIB * GIB == pytest.approx(2 * 11_008 * (2 * 2048 + 4_096))
    # Frozen fp32 weights are cast as trained ones are.
    assert plan("m3", {**FP32, "adapters": DEFAULT_ADAPTERS}, 1).casts > plan("m3", FP32, 1).casts
    few = replace(DEFAULT_ADAPTERS, targets=("q_proj",))
    assert plan("m5", {**BF16, "adapters": few}, 1).gradients == 4 * 34 * 16 * (4_096 + 4_096)


@pytest.mark.parametrize("compute_bytes", [4, 2])
def test_eager_attention_keeps_a_probability_for_each_pair(compute_bytes: int) -> None:
    """As many bytes more than with PyTorch's attention as are kept for a backward pass."""
    from llama_code.modeling import LlamaCodeForCausalLM

    length, heads = 256, 8
    config = AutoConfig.from_pretrained(RECIPES / "m1", num_hidden_layers=1, hidden_size=64, vocab_size=64)
    config.num_attention_heads, config.num_key_value_heads, config.head_dim = heads, heads, 8
    config.use_cache = False
    kept, planned = {}, {}
    for attention in ("sdpa", "eager"):
        config._attn_implementation = attention
        model, storages = LlamaCodeForCausalLM(config).train(), {}

        def keep(tensor: torch.Tensor, storages: dict = storages) -> torch.Tensor:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
            return tensor

        ids = torch.zeros(2, length, dtype=torch.int64)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            with torch.autocast("cpu", torch.bfloat16, enabled=compute_bytes == 2):
                model(input_ids=ids, labels=ids)
        kept[attention] = sum(storage.nbytes() for storage in storages.values())
        options = {**FP32, "compute_bytes": compute_bytes, "row_length": length, "fused": False}
        options |= {"micro_batch_rows": 2, "recomputed_layers": 0, "accumulates": True, "eager": attention == "eager"}
        planned[attention] = plan_memory(config, model.num_parameters(), **options)
    more = planned["eager"].activations - planned["sdpa"].activations
    assert more == 2 * heads * length**2 * {4: 4, 2: 6}[compute_bytes]
    assert kept["eager"] - kept["sdpa"] == pytest.approx(more, rel=0.1)
    assert planned["eager"].working > planned["sdpa"].working


def test_optimizers_have_their_own_states() -> None:
    m3 = plan("m3", FP32, 2).optimizer
    assert plan("m3", {**FP32, "optim": "sgd"}, 2).optimizer == 0
    assert plan("m3", {**FP32, "optim": "sgd", "optim_args": "momentum=0.9"}, 2).optimizer == m3 / 2
    assert m3 / 4 < plan("m3", {**FP32, "optim": "adamw_bnb_8bit"}, 2).optimizer < m3 / 3


def test_what_fits_is_chosen() -> None:
    """Without recomputing where that fits, in more rows where they do, and recomputing no more than it takes."""
    assert (chosen("m5", 77.9).micro_batch_rows, chosen("m5", 77.9).recomputed_layers) == (2, 0)
    assert (chosen("m4", 77.9).micro_batch_rows, chosen("m4", 77.9).recomputed_layers) == (8, 0)
    tight = chosen("m5", 64)
    assert tight.micro_batch_rows == 1 and 0 < tight.recomputed_layers < 34
    assert plan("m5", EIGHT_BITS, 1, tight.recomputed_layers - 1).needed > 64 * GIB >= tight.needed


def test_what_cannot_fit_says_what_would() -> None:
    with pytest.raises(
        UserError, match=r"needs 5\d\.\d GiB with 1 row\(s\).* and may use 38\.0; a card or --memory_b"
    ):
        chosen("m5", 38)
    with pytest.raises(UserError, match="with --weights_dtype bfloat16 --optim adamw_torch_8bit"):
        chosen("m4", 38, FP32)
    with pytest.raises(
        UserError, match=r"do, as would --peft lora \(\d\d GiB\), --peft qlora \(\d GiB\) or a smaller"
    ):
        chosen("m5", 38)
    with pytest.raises(UserError, match=r"of 1\d GiB would do, as would --peft qlora \(\d GiB\) or a smaller size"):
        chosen("m5", 12, LORA)
    with pytest.raises(UserError, match=r"of \d GiB would do, as would a smaller size$"):
        chosen("m5", 3, QLORA)
    with pytest.raises(
        UserError, match=r"would do, as would --fp8 true \(4\d GiB\), --peft lora \(\d\d GiB\), --peft"
    ):
        chosen("m5", 50, {**EIGHT_BITS, "has_fp8": True})
    for options, budget in ((EIGHT_BITS, 50), ({**EIGHT_BITS, "has_fp8": True}, 40), (FP8, 40)):
        with pytest.raises(UserError, match="--peft qlora .* or a smaller size") as error:
            chosen("m5", budget, options)
        assert "--fp8" not in str(error.value)


def test_the_plan_is_printed_without_a_gpu_or_torchao(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    argv = ["train_clm.py", "--config", "m5", "--train_tokens", "1000000000", "--plan", "--gpu"]
    monkeypatch.setattr(sys, "argv", [*argv, "h100-80"])
    run_script(train_clm.main)
    printed = capsys.readouterr().out
    assert "2 row(s) a forward pass, nothing recomputed" in printed and "weights 13.06" in printed
    title, card, parts, _ = printed.splitlines()
    assert title.startswith("m5, 1,000,000,000 tokens (--train_tokens plans another number): 954 steps of 1,048,576, ")
    assert title.endswith("each 256 pass(es) of 2 row(s)")
    assert card == "card h100-80: 79.2 GiB, of which the run may use 78.0"
    assert parts.endswith("working 0.54, loss 0.55; working is logits and the head's gradient")
    monkeypatch.setattr(sys, "argv", [*argv, "a100-40"])
    with pytest.raises(SystemExit) as stop:
        run_script(train_clm.main)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.startswith("error: the run needs") and error.count("\n") == 1


def test_the_plan_of_adapters_is_printed_without_a_gpu_a_library_or_weights(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    argv = ["--config", "m5", "--peft", "qlora", "--plan", "--gpu", "rtx3090-24"]
    monkeypatch.setattr(sys, "argv", ["train_clm.py", *argv])
    run_script(train_clm.main)
    printed = capsys.readouterr().out
    assert printed.startswith("m5, 209,715,200 tokens (--train_tokens plans another number): 200 steps of 1,048,576,")
    assert "qlora: 42,475,520 parameters are trained, of rank 16 beside q_proj, " in printed
    assert "weights 3.71, gradients 0.16, optimizer 0.32" in printed and "peak 18.4 GiB" in printed


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["--plan", "--gpu", "abacus"],
            r"--gpu 'abacus' is none of h200-141, .* and no number of GiB; give one",
        ),
        (
            ["--plan", "--gpu", "80", "--memory_budget", "81"],
            "--memory_budget 81 is neither auto nor a number of GiB",
        ),
        (["--plan", "--gpu", "80", "--memory_budget", "some"], "--memory_budget some is neither auto nor a number"),
        (["--plan", "--gpu", "80", "--memory_budget", "0"], "--memory_budget 0 is neither auto nor a number"),
        (["--gpu", "h100-80"], "--gpu 'h100-80' is for --plan alone; add it, or leave --gpu out"),
        (["--plan", "--gpu", "80", "--kernels", "fast"], "--kernels='fast' is none of auto, reference, fused; choose"),
        (
            ["--plan", "--gpu", "80", "--kernels", "fused", "--torch_compile", "true"],
            "--torch_compile true contradicts --kernels fused, whose layers are compiled one by one; leave one out",
        ),
        (
            ["--kernels", "fused", "--fp16", "true", "--use_cpu", "true"],
            "--kernels fused takes bf16 or fp32 and a head_dim of at most 256, and the run has --fp16 true; leave",
        ),
        (
            ["--weights_dtype", "bfloat16", "--optim", "adamw_torch_8bit", "--fp16", "true"]
            + ["--optim_args", "bf16_stochastic_round=True"],
            "--weights_dtype bfloat16 contradicts --fp16 true, with which products are in float16; give --bf16 true",
        ),
        (["--optim_args", "momentum"], "--optim_args 'momentum' is no list of options; write it as name=value"),
        (["--weights_dtype", "int3"], "--weights_dtype 'int3' is none of float32, bfloat16; choose one"),
        (["--weights_dtype", "bfloat16"], "--weights_dtype bfloat16 with --optim adamw_torch_fused loses updates"),
        (["--memory_budget", "20", "--use_cpu", "true"], "--memory_budget 20 is of a GPU, and the run has none"),
    ],
)
def test_mistakes_are_one_sentence(argv: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message) as error:
        parse_run(["--config", "m1", "--output_dir", str(tmp_path), *argv], RECIPES)
    assert "\n" not in str(error.value)


def test_a_model_that_is_divided_among_devices_has_no_plan(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """m4 in fp32 does not fit one of these cards."""
    monkeypatch.setattr("llama_code.training.arguments._card_bytes", lambda *_: 24 * GIB)
    argv = ["--config", "m4", "--output_dir", str(tmp_path), "--weights_dtype", "float32", "--optim", "adamw_torch"]
    with pytest.raises(UserError, match="the run needs"):
        parse_run(argv, RECIPES)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert parse_run(argv, RECIPES).memory is None

    with pytest.raises(
        UserError, match="--plan counts a model that is whole on its device, and FSDP or DeepSpeed div"
    ):
        parse_run([*argv, "--plan"], RECIPES)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--attn_implementation", "nonsense"],
            "--config 'm1' with --attn_implementation 'nonsense' makes no model (",
        ),
        (["--model_name_or_path", "/no/such"], "--model_name_or_path '/no/such' is no such folder, and no Hub id"),
    ],
)
def test_a_plan_says_what_the_run_would(
    options: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(sys, "argv", ["train_clm.py", "--plan", "--gpu", "80", *options])
    with pytest.raises(SystemExit):
        run_script(train_clm.main)
    assert capsys.readouterr().err.startswith(f"error: {message}")


def test_a_plan_is_of_the_precision_that_is_asked_for() -> None:
    """Wherever it is made; bf16 weights without autocast are computed with in bf16."""

    def planned(*argv: str) -> MemoryPlan | None:
        return parse_run(["--plan", "--gpu", "80", "--per_device_train_batch_size", "1", *argv], RECIPES).memory

    m3 = planned("--config", "m3")
    assert m3 is not None and planned("--config", "m3", "--bf16", "true") == m3
    fp32 = planned("--config", "m3", "--bf16", "false")
    assert fp32 is not None and fp32.casts == 0 and fp32.activations > 1.9 * m3.activations
    m5 = ["--config", "m5", "--gpu", "h100-80"]
    assert planned(*m5, "--bf16", "false") == planned(*m5)
    fp16 = planned("--config", "m3", "--fp16", "true")
    assert fp16 is not None and fp16.activations > 1.3 * m3.activations  # of the reference


def test_a_plan_without_train_tokens_is_of_the_recipes_steps() -> None:
    argv = ["--config", "m5", "--plan", "--gpu", "h100-80"]
    assert parse_run(argv, RECIPES).plan.batch_rows * 2048 == 2**20
    assert parse_run([*argv, "--train_tokens", "32000"], RECIPES).plan.batch_rows == 4
    assert parse_run([*argv, "--batch-tokens", "8192"], RECIPES).plan.batch_rows == 4


@pytest.mark.filterwarnings("error::FutureWarning")
@pytest.mark.parametrize("name", ["gradient_checkpointing", "activation_checkpointing"])
def test_recomputing_is_asked_for_by_either_name(name: str) -> None:
    if name not in TrainingArguments.__dataclass_fields__:
        pytest.skip("a name of later versions")
    run = parse_run(["--plan", "--gpu", "80", f"--{name}", "true"], RECIPES)
    assert run.memory is not None and run.memory.recomputed_layers == run.config.num_hidden_layers
    assert run.training_arguments.gradient_checkpointing


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to plan for")
def test_a_plan_without_a_gpu_needs_its_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--plan needs a GPU to plan for, and this machine has none; name one with"):
        parse_run(["--plan", "--output_dir", str(tmp_path)], RECIPES)


def test_bf16_weights_are_of_one_device(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(TrainingArguments, "world_size", 2)
    with pytest.raises(UserError, match="--weights_dtype bfloat16 trains on one device, and this run has 2; start"):
        parse_run(["--config", "m4", "--output_dir", str(tmp_path)], RECIPES)


@pytest.mark.gpu
@pytest.mark.parametrize("recomputed", [0, 3, 5])
def test_the_peak_of_a_small_model(recomputed: int) -> None:
    """Of m2 with five layers, where a mistake of one tensor would be seen."""
    from llama_code.modeling import LlamaCodeForCausalLM
    from llama_code.training.compiled import compile_layers, recompute_layers

    config = AutoConfig.from_pretrained(RECIPES / "m2")
    config.num_hidden_layers, config.use_cache, config._attn_implementation = 5, False, "sdpa"
    model = LlamaCodeForCausalLM(config).cuda().train()
    model.set_kernels("fused", torch.bfloat16)
    recompute_layers(model, recomputed)
    compile_layers(model)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    ids = torch.randint(10, config.vocab_size, (16, 2048), device="cuda")
    for _ in range(3):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        for _ in range(2):
            with torch.autocast("cuda", torch.bfloat16):
                model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    others = before - 12 * model.num_parameters()  # of earlier tests
    options = {**FP32, "micro_batch_rows": 16, "recomputed_layers": recomputed, "accumulates": True}
    expected = plan_memory(config, model.num_parameters(), **options).peak
    assert torch.cuda.max_memory_allocated() - others == pytest.approx(expected, rel=0.07)


@pytest.mark.parametrize(
    ("argv", "advised"),
    [
        (["--config", "m5", "--gpu", "10", "--peft", "lora", "--bf16", "false"], ["--peft", "lora"]),
        (["--config", "m3", "--gpu", "2", "--fp16", "true"], []),
        (["--config", "m5", "--gpu", "10"], []),
        (["--config", "m3", "--gpu", "4"], []),
    ],
)
def test_what_is_advised_fits(argv: list[str], advised: list[str]) -> None:
    with pytest.raises(UserError, match="would do") as refused:
        parse_run([*argv, "--plan"], RECIPES)
    message = str(refused.value)
    gib = re.search(r"budget of (\d+) GiB", message)[1]
    named = re.findall(
        r"--(?:bf16|weights_dtype|optim|optim_args) [^ ,]+", message.split(";")[1].split(" as would")[0]
    )
    options = [word for option in named for word in option.split()]
    rows = ["--batch_tokens", "8192", "--per_device_train_batch_size", "1", "--gradient_checkpointing", "true"]
    run = parse_run(["--config", argv[1], "--gpu", gib, "--plan", *advised, *options, *rows], RECIPES)
    assert run.memory.needed / GIB <= float(gib) - 1.25
