"""Steps whose loss or gradient is not finite never reach the weights, and nobody waits for the device to know.

Whether a step is skipped is decided on the device: PyTorch's fused optimizers take a tensor that says so, the one that
`torch.amp.GradScaler` gives them. Others get no gradients, for which the host has to wait. What happened is copied to
the host and read a step later, when the device has the next step's work.
"""

import math
from collections import deque
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

# Steps in a row after which a run goes back to a checkpoint.
STEPS_IN_A_ROW = 5


class Skipped(NamedTuple):
    """A step that was not taken.

    Attributes:
        step: steps before it.
        loss: of the step, nats a token.
        grad_norm: before clipping.
    """

    step: int
    loss: float
    grad_norm: float


class NonFiniteGuard:
    """Skips steps that are not finite, and sums the losses of those that are.

    Args:
        device: where losses are.
        world_size: processes that train together; what one of them skips all skip.

    Attributes:
        must_stop, must_save: whether one of the processes asked for it.
        first_of_many: the first of so many skipped steps in a row that the run has to go back, None before that.
    """

    def __init__(self, device: torch.device, world_size: int) -> None:
        self.device, self.world_size = device, world_size
        self.must_stop = self.must_save = False
        self.first_of_many: int | None = None
        self._in_a_row: list[int] = []
        # Sum and number of the steps' losses since they were last asked for.
        self._losses = torch.zeros(2, device=device)
        self._step_loss: Tensor | None = None
        self._pending: deque[tuple[int, Tensor, torch.cuda.Event | None]] = deque()

    def add_loss(self, loss: Tensor) -> None:
        """Take the loss of a micro-batch, 0-dimensional, a part of its step's."""
        self._step_loss = loss if self._step_loss is None else self._step_loss + loss

    def judge(self, step: int, grad_norm: Tensor, stop: bool = False, save: bool = False) -> Tensor:
        """Return on the device whether a step is to be skipped, 0-dimensional, float32, 1 or 0.

        Args:
            step: steps before it.
            grad_norm: before clipping, 0-dimensional.
            stop, save: what this process has been asked for; `must_stop` and `must_save` tell it to all of them, a
                step later.
        """
        assert self._step_loss is not None
        loss, norm = self._step_loss.detach().float(), grad_norm.detach().to(self._step_loss.device).float()
        self._step_loss = None
        is_finite = torch.isfinite(loss) & torch.isfinite(norm)
        asked = (torch.full_like(loss, float(flag)) for flag in (stop, save))
        flags = torch.stack([(~is_finite).float(), *asked])
        if self.world_size > 1:
            torch.distributed.all_reduce(flags, torch.distributed.ReduceOp.MAX)
        has_loss = torch.isfinite(loss)
        self._losses += torch.stack([torch.where(has_loss, loss, 0.0), has_loss.float()])
        facts, event = torch.stack([*flags, loss, norm]), None
        if self.device.type == "cuda":
            on_host = torch.empty(len(facts), pin_memory=True)
            on_host.copy_(facts, non_blocking=True)
            facts, event = on_host, torch.cuda.Event()
            event.record()
        self._pending.append((step, facts, event))
        return flags[0]

    def read(self, *, all_steps: bool = False) -> list[Skipped]:
        """Read what is known of all steps but the last, or of all; returns those that were skipped."""
        found = []
        while len(self._pending) > (0 if all_steps else 1):
            step, facts, event = self._pending.popleft()
            if event is not None:
                event.synchronize()
            is_skipped, stop, save, loss, norm = facts.tolist()
            self.must_stop, self.must_save = bool(stop), bool(save)
            if is_skipped:
                found.append(Skipped(step, loss, norm))
                self._in_a_row.append(step)
                if len(self._in_a_row) == STEPS_IN_A_ROW and self.first_of_many is None:
                    self.first_of_many = self._in_a_row[0]
            else:
                self._in_a_row.clear()
        return found

    @property
    def is_in_doubt(self) -> bool:
        """Whether the run may have to go back to a checkpoint before its last steps."""
        return bool(self._in_a_row) or self.first_of_many is not None

    def mean_loss(self) -> float:
        """Mean of the finite losses of the steps since it was last asked for; NaN where none was finite."""
        if self.world_size > 1:
            torch.distributed.all_reduce(self._losses)
        total, count = self._losses.tolist()
        self._losses.zero_()
        return total / count if count else math.nan

    def restart(self) -> None:
        """Forget the steps that a run has gone back behind."""
        self.first_of_many = None
        self._pending.clear()
        self._in_a_row.clear()
        self._losses.zero_()
        self._step_loss = None


def skip_on_device(optimizer: Any, model: nn.Module, skip: Tensor) -> None:
    """Let an optimizer's next step change nothing if `skip` is 1.

    Args:
        optimizer: PyTorch's, not accelerate's around it.
        model: whose gradients are dropped where the optimizer takes no such tensor.
        skip: 0-dimensional, float32, on the gradients' device.
    """
    if getattr(optimizer, "_step_supports_amp_scaling", False):
        optimizer.found_inf = skip
    elif skip.item():
        model.zero_grad()
