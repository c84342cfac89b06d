"""The ways to train that train_step.py compares: a model, its optimizer, and a micro-batch that fits."""

import contextlib
import gc
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel
from transformers.models.llama import modeling_llama

from llama_code.modeling import LlamaCodeConfig, LlamaCodeForCausalLM
from llama_code.modeling.accumulating_linear import accumulate_in_fp32
from llama_code.modeling.fp8_linear import use_fp8
from llama_code.training.arguments import parse_run
from llama_code.training.compiled import compile_layers
from llama_code.training.model import build_model
from llama_code.training.trainer import keep_moments_in_fp32

RECIPES = Path(__file__).parents[1] / "recipes"
TRAINER_ARM = "llama-code, Trainer"
ROTATE = modeling_llama.apply_rotary_pos_emb
ADAMW: dict = {"lr": 3e-4, "betas": (0.9, 0.95), "weight_decay": 0.1}


@dataclass
class Arm:
    """One way to train, ready to take steps.

    Attributes:
        micro_rows: rows of a forward pass; halved until a step fits.
        autocast: whether the forward pass runs under bf16 autocast.
        rotate: what transformers' Llama calls for RoPE, which Liger replaces for a whole process.
    """

    model: PreTrainedModel
    optimizer: torch.optim.Optimizer
    micro_rows: int
    autocast: bool
    rotate: Callable
    peak_bytes: int = 0
    reserved_bytes: int = 0
    seconds: list[float] = field(default_factory=list)

    def step(self, rows: torch.Tensor) -> None:
        """Take one optimizer step on `rows`, `(batch_rows, row_length)`, int64, on the GPU."""
        modeling_llama.apply_rotary_pos_emb = self.rotate
        # Filled on the GPU: a copy of a number from the host would wait for all that is queued.
        num_items = torch.full((), rows.shape[0] * (rows.shape[1] - 1), device=rows.device)
        for ids in rows.split(self.micro_rows):
            with torch.autocast("cuda", torch.bfloat16) if self.autocast else contextlib.nullcontext():
                loss = self.model(input_ids=ids, labels=ids, num_items_in_batch=num_items, use_cache=False).loss
            loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def move(self, device: str) -> None:
        """Move weights and optimizer states, in place: out of the way of another arm, or back."""
        tensors = [*self.model.parameters(), *self.model.buffers()]
        tensors += [x for state in self.optimizer.state.values() for x in state.values()]
        for x in tensors:
            x.data = x.data.to(device)
        torch.cuda.empty_cache()


def llama(config: LlamaCodeConfig) -> LlamaForCausalLM:
    """Make transformers' Llama of the same shape, in bf16."""
    names = (
        "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads head_dim"
    )
    names += " max_position_embeddings rms_norm_eps tie_word_embeddings rope_parameters"
    fields = {name: getattr(config, name) for name in names.split()}
    with torch.device("cuda"):
        return AutoModelForCausalLM.from_config(
            LlamaConfig(**fields), dtype=torch.bfloat16, attn_implementation="sdpa"
        )


def liger(config: LlamaCodeConfig) -> LlamaForCausalLM:
    """The same with Liger's kernels, patched into this one instance."""
    from liger_kernel.transformers import apply_liger_kernel_to_llama

    classes = modeling_llama.LlamaRMSNorm, modeling_llama.LlamaMLP
    model = llama(config)
    apply_liger_kernel_to_llama(model=model)
    modeling_llama.LlamaRMSNorm, modeling_llama.LlamaMLP = classes
    return model


def liger_recomputing(config: LlamaCodeConfig) -> LlamaForCausalLM:
    """The same, keeping only the inputs of its layers."""
    model = liger(config)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    return model


def compiled_llama(config: LlamaCodeConfig) -> LlamaForCausalLM:
    """The same, compiled as a whole."""
    model = llama(config)
    model.compile()
    return model


def fused(config: LlamaCodeConfig, dtype: torch.dtype = torch.float32, compiled: bool = True) -> LlamaCodeForCausalLM:
    """Make llama-code's model with the fused kernels."""
    config._attn_implementation = "sdpa"
    model = LlamaCodeForCausalLM(config).to("cuda", dtype)
    model.set_kernels("fused", torch.bfloat16)
    if compiled:
        compile_layers(model)
    return model


def fused_fp8(config: LlamaCodeConfig) -> LlamaCodeForCausalLM:
    """Make the same with products in fp8."""
    model = fused(config)
    use_fp8(model)
    return model


def large(config: LlamaCodeConfig, fp8: bool = False) -> LlamaCodeForCausalLM:
    """Make llama-code's model as m4 and m5 are trained: bf16 weights, fp32 gradients; with fp8 bf16 ones."""
    config._attn_implementation = "sdpa"
    with torch.device("cuda"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    accumulate_in_fp32(model)
    if fp8:
        use_fp8(model)
    model.set_kernels("fused")
    compile_layers(model)
    return model


def adapted(config: LlamaCodeConfig, method: str) -> PreTrainedModel:
    """Make llama-code's model with adapters, as train_clm.py does from weights that it loads."""
    with tempfile.TemporaryDirectory() as folder:
        with torch.device("cuda"):
            AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
        argv = ["--config", folder, "--model_name_or_path", folder, "--peft", method, "--learning_rate", "3e-4"]
        argv += ["--batch_tokens", "2048", "--paper_batch_rows", "1", "--micro_batch_rows", "1", "--report_to", "none"]
        return build_model(parse_run(argv, RECIPES))


def adamw(model: PreTrainedModel) -> torch.optim.Optimizer:
    """Make AdamW with states in the weights' dtype."""
    return torch.optim.AdamW(model.parameters(), fused=True, **ADAMW)


def adamw_8bit(model: PreTrainedModel) -> torch.optim.Optimizer:
    """Make the optimizer of m4 and m5."""
    from torchao.optim import AdamW8bit

    optimizer = AdamW8bit(model.parameters(), bf16_stochastic_round=True, **ADAMW)
    keep_moments_in_fp32(optimizer, model.get_input_embeddings().weight)
    return optimizer


# By arm: what makes its model, and whether it runs under autocast.
ARMS: dict[str, tuple[Callable[[LlamaCodeConfig], PreTrainedModel], bool]] = {
    "transformers, eager": (llama, False),
    "transformers, torch.compile": (compiled_llama, False),
    "transformers, Liger": (liger, False),
    "llama-code, fused": (fused, True),
    "llama-code, fused, bf16 weights": (lambda config: fused(config, torch.bfloat16), False),
    "llama-code, fused, not compiled": (lambda config: fused(config, compiled=False), True),
    "transformers, Liger, recomputing": (liger_recomputing, False),
    "llama-code, fused, fp8": (fused_fp8, True),
    "llama-code, fused, 8-bit AdamW": (large, False),
    "llama-code, fused, fp8, 8-bit AdamW": (lambda config: large(config, fp8=True), False),
    "llama-code, fused, LoRA": (lambda config: adapted(config, "lora"), True),
    "llama-code, fused, QLoRA": (lambda config: adapted(config, "qlora"), True),
}
DEFAULT_ARMS = ["transformers, eager", "transformers, torch.compile", "transformers, Liger", "llama-code, fused"]
DEFAULT_ARMS += [TRAINER_ARM]
LARGE_ARMS = ["transformers, Liger", "transformers, Liger, recomputing", "llama-code, fused, 8-bit AdamW"]
LARGE_ARMS += ["llama-code, fused, fp8, 8-bit AdamW", "llama-code, fused, LoRA", "llama-code, fused, QLoRA"]


def build(name: str, config: LlamaCodeConfig, rows: torch.Tensor, micro_rows: int) -> Arm:
    """Make an arm and let it take a step, with the largest micro-batch up to `micro_rows` that fits."""
    torch.manual_seed(0)
    make, autocast = ARMS[name]
    model = make(config).train()
    optimizer = adamw_8bit(model) if "8-bit AdamW" in name else adamw(model)
    rotate = modeling_llama.apply_rotary_pos_emb if make in (liger, liger_recomputing) else ROTATE
    arm = Arm(model, optimizer, micro_rows, autocast, rotate)
    seconds = fit(arm, rows)
    print(f"  {name}: {arm.micro_rows} rows, first step {seconds:.1f} s", flush=True)
    return arm


def fit(arm: Arm, rows: torch.Tensor) -> float:
    """Halve an arm's micro-batch until a step fits; return the seconds of that step."""
    while True:
        gc.collect()
        torch.cuda.empty_cache()
        started = time.perf_counter()
        try:
            arm.step(rows)
            torch.cuda.synchronize()
            return time.perf_counter() - started
        except torch.cuda.OutOfMemoryError:
            arm.micro_rows //= 2
            arm.optimizer.zero_grad(set_to_none=True)


def timed(arm: Arm, rows: torch.Tensor, least_seconds: float = 0.4) -> None:
    """Let an arm take steps for a while, and note the seconds of one, and the most memory that they took."""
    fit(arm, rows)  # with optimizer states now, which the first step of all did without
    torch.cuda.reset_peak_memory_stats()
    ends: list[torch.cuda.Event] = []
    started = time.perf_counter()
    while not ends or time.perf_counter() - started < least_seconds:
        arm.step(rows)
        ends.append(torch.cuda.Event())
        ends[-1].record()
        if len(ends) > 1:  # as in training the host is ahead of the GPU, here by a step
            ends[-2].synchronize()
    torch.cuda.synchronize()
    arm.seconds.append((time.perf_counter() - started) / len(ends))
    arm.peak_bytes = max(arm.peak_bytes, torch.cuda.max_memory_allocated())
    arm.reserved_bytes = max(arm.reserved_bytes, torch.cuda.max_memory_reserved())
