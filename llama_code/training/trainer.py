"""transformers' Trainer with held-out bits per byte, tokens/s and MFU."""

import time
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from torch import nn
from transformers import Trainer

from llama_code.training.bits_per_byte import CodeLength, code_length
from llama_code.training.optimizers import EIGHT_BITS


class CodeTrainer(Trainer):
    """A Trainer over packed rows.

    What differs from Trainer: `evaluate` measures bits per byte, training logs carry tokens/s and MFU, and of 8-bit
    moments the embedding's stay in fp32. Layers that are compiled for training are evaluated as they are:
    batches of other shapes would be compiled for each.

    Args:
        held_out_rows: token ids, `(num_rows, row_length)`.
        byte_lengths: bytes of each token id's text, 0 for special tokens, `(vocab_size,)`, int64.
        flops_per_token: FLOPs of training on one token.
        peak_flops: FLOP/s of one device, of which MFU is a share.
        z_loss: passed to the model with every batch.
        kwargs: Trainer's own.
    """

    def __init__(
        self,
        *,
        held_out_rows: np.ndarray,
        byte_lengths: torch.Tensor,
        flops_per_token: float,
        peak_flops: float,
        z_loss: float = 0.0,
        **kwargs: Any,
    ):
        # Trainer evaluates during training only if it is given something to evaluate on.
        super().__init__(eval_dataset=held_out_rows, **kwargs)  # type: ignore[arg-type]
        self.held_out_rows = held_out_rows
        self.byte_lengths = byte_lengths
        self.flops_per_token = flops_per_token
        self.peak_flops = peak_flops
        self.z_loss = z_loss
        self.evaluation_seconds = 0.0
        self._last_log: tuple[float, int] | None = None

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """Make the optimizer, with moments of the embedding in fp32."""
        optimizer = super().create_optimizer(*args, **kwargs)
        model: Any = self.model
        embedding = model.get_input_embeddings().weight
        if self.args.optim == EIGHT_BITS and embedding.requires_grad:
            keep_moments_in_fp32(optimizer, embedding)
        return optimizer

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Add the weight of the z-loss to the inputs."""
        return super().compute_loss(model, {**inputs, "z_loss": self.z_loss}, *args, **kwargs)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Measure and log the bits per byte of the held-out rows, each process its share of them."""
        assert self.model is not None
        started = time.perf_counter()
        share = self.held_out_rows[self.args.process_index :: self.args.world_size]
        # In training accelerate wraps the model in autocast; before, nothing does.
        with self.accelerator.autocast(), torch.compiler.set_stance("force_eager"):
            rows_per_batch = self.args.per_device_train_batch_size
            own = code_length(self.model, share, self.byte_lengths, rows_per_batch, self.args.device)
        parts = gather_object([own])
        total = CodeLength(
            sum(part.bits for part in parts),
            sum(part.num_bytes for part in parts),
            sum(part.num_tokens for part in parts),
        )
        metrics = {
            "eval_bits_per_byte": total.bits_per_byte,
            "eval_loss": total.bits * float(np.log(2)) / total.num_tokens,
        }
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self._last_log = (time.perf_counter(), self.state.global_step)  # the time spent here is not training
        self.evaluation_seconds += time.perf_counter() - started
        return metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add tokens/s and MFU since the previous log to the logs of training steps."""
        if "loss" in logs:
            now, step = time.perf_counter(), self.state.global_step
            if self._last_log:
                seconds, steps = now - self._last_log[0], step - self._last_log[1]
                row_length = self.held_out_rows.shape[1]
                rows = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
                tokens_per_second = steps * rows * row_length / seconds
                logs["tokens_per_second"] = round(tokens_per_second, 1)
                logs["mfu"] = tokens_per_second * self.flops_per_token / (self.peak_flops * self.args.world_size)
            self._last_log = (now, step)
        super().log(logs, start_time)


def keep_moments_in_fp32(optimizer: torch.optim.Optimizer, weight: torch.Tensor) -> None:
    """Let AdamW keep a weight's moments in fp32 instead of in 8 bits, also those that are loaded.

    Some tokens are 100,000 times as frequent as others, and their gradients differ as much. Where a block's largest
    moment sets the scale of all, a second moment is rounded to 0 long before its first moment is, and their quotient
    is a huge step (Dettmers et al. 2022, "8-bit Optimizers via Block-wise Quantization", keep 32 bits here too).
    """
    moments = {name: torch.zeros_like(weight, dtype=torch.float32) for name in ("exp_avg", "exp_avg_sq")}
    optimizer.state[weight] = {"step": torch.tensor(0.0), **moments}
    # PyTorch casts what it loads to the weight's dtype: what was saved is put in its place.
    saved: dict[str, torch.Tensor] = {}

    def remember(optimizer: torch.optim.Optimizer, state_dict: dict[str, Any]) -> None:
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        numbers = [number for group in state_dict["param_groups"] for number in group["params"]]
        place = next(i for i, parameter in enumerate(parameters) if parameter is weight)
        saved.update({name: state_dict["state"][numbers[place]][name] for name in moments})

    def restore(optimizer: torch.optim.Optimizer) -> None:
        optimizer.state[weight] |= {name: moment.to(weight.device) for name, moment in saved.items()}
        saved.clear()

    optimizer.register_load_state_dict_pre_hook(remember)
    optimizer.register_load_state_dict_post_hook(restore)
