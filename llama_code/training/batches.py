"""How many rows make a step, a micro-batch and a run."""

import math
from dataclasses import dataclass, replace

from llama_code.errors import UserError

PAPER_TRAIN_TOKENS = 32_000
FEWEST_STEPS = 200
WARMUP_SHARE = 0.1
MAX_WARMUP_STEPS = 2_000


@dataclass(frozen=True)
class BatchPlan:
    """The run's length and its division into steps.

    Attributes:
        num_rows: rows of the run; the last one may be used in part.
        batch_rows: rows of one optimizer step over all devices.
        micro_batch_rows: rows of one forward pass on one device.
        gradient_accumulation_steps: forward passes of one step on one device.
        num_steps: optimizer steps; the last one may have fewer rows.
        remark: what was decided against the recipe's own batch size and why; empty if nothing was.
    """

    num_rows: int
    batch_rows: int
    micro_batch_rows: int
    gradient_accumulation_steps: int
    num_steps: int
    remark: str = ""

    @property
    def warmup_steps(self) -> int:
        """Steps of linear warmup: a tenth of the run, at most 2,000."""
        return min(MAX_WARMUP_STEPS, math.ceil(WARMUP_SHARE * self.num_steps))

    @property
    def device_rows(self) -> int:
        """Rows of one optimizer step on one device."""
        return self.micro_batch_rows * self.gradient_accumulation_steps

    def in_micro_batches(self, rows: int) -> "BatchPlan":
        """The same steps in forward passes of another number of rows, which divides a device's."""
        assert self.device_rows % rows == 0
        return replace(self, micro_batch_rows=rows, gradient_accumulation_steps=self.device_rows // rows)


def plan_batches(
    *,
    train_tokens: int,
    row_length: int,
    batch_tokens: int,
    paper_batch_rows: int,
    largest_micro_batch_rows: int,
    num_devices: int,
    per_device_train_batch_size: int | None,
    gradient_accumulation_steps: int | None,
    batch_tokens_asked: bool,
    max_steps: int = -1,
) -> BatchPlan:
    """Divide a run into steps.

    Args:
        train_tokens: length of the run in tokens.
        row_length: tokens of a row.
        batch_tokens: the recipe's batch in tokens.
        paper_batch_rows: rows of a step in the paper's run of 32,000 tokens.
        largest_micro_batch_rows: rows that one forward pass may have if nobody asks for a number.
        num_devices: processes that train together.
        per_device_train_batch_size: rows of one forward pass, where the user asks for a number.
        gradient_accumulation_steps: forward passes of a step, where the user asks for a number.
        batch_tokens_asked: whether `batch_tokens` stands on the command line; it is then kept as it is.
        max_steps: steps after which the run ends early, if positive.

    Raises:
        UserError: the numbers contradict each other.
    """
    if train_tokens < row_length:
        raise UserError(
            f"--train_tokens {train_tokens} is less than one row of {row_length} tokens; ask for {row_length} or more"
        )
    for name, value in (
        ("batch_tokens", batch_tokens),
        ("paper_batch_rows", paper_batch_rows),
        ("micro_batch_rows", largest_micro_batch_rows),
        ("per_device_train_batch_size", per_device_train_batch_size),
        ("gradient_accumulation_steps", gradient_accumulation_steps),
    ):
        if value is not None and (value < 1 or value != int(value)):
            raise UserError(f"--{name} {value} is no positive whole number; ask for 1 or more")
    num_rows = math.ceil(train_tokens / row_length)
    batch_rows, remark = _recipe_batch_rows(
        num_rows, train_tokens, row_length, batch_tokens, paper_batch_rows, batch_tokens_asked, num_devices
    )
    if per_device_train_batch_size and gradient_accumulation_steps:
        product = per_device_train_batch_size * gradient_accumulation_steps * num_devices
        if batch_tokens_asked and product != batch_rows:
            raise UserError(
                f"--batch_tokens {batch_tokens} is {batch_rows} rows of {row_length} tokens, but "
                f"--per_device_train_batch_size {per_device_train_batch_size} x --gradient_accumulation_steps "
                f"{gradient_accumulation_steps} x {num_devices} device(s) is {product}; leave one of the three out"
            )
        batch_rows, remark = product, f"batch of {product} rows as asked for on the command line"
    given = per_device_train_batch_size or gradient_accumulation_steps or 1
    if batch_rows % (given * num_devices):
        name = "per_device_train_batch_size" if per_device_train_batch_size else "gradient_accumulation_steps"
        asked = f"--{name} {given} x {num_devices} device(s)" if given > 1 else f"{num_devices} devices"
        raise UserError(
            f"a batch of {batch_rows} rows of {row_length} tokens cannot be divided by {asked}; "
            "choose divisors of the batch or another --batch_tokens"
        )
    device_rows = batch_rows // num_devices
    if per_device_train_batch_size:
        micro_batch_rows = per_device_train_batch_size
    elif gradient_accumulation_steps:
        micro_batch_rows = device_rows // gradient_accumulation_steps
    else:
        micro_batch_rows = max(n for n in range(1, largest_micro_batch_rows + 1) if device_rows % n == 0)
    num_steps = math.ceil(num_rows / batch_rows)
    if max_steps > num_steps:
        raise UserError(
            f"--max_steps {max_steps} is more than the {num_steps} steps that --train_tokens {train_tokens} takes; "
            "leave it out or ask for more tokens"
        )
    return BatchPlan(
        num_rows=num_rows,
        batch_rows=batch_rows,
        micro_batch_rows=micro_batch_rows,
        gradient_accumulation_steps=device_rows // micro_batch_rows,
        num_steps=max_steps if max_steps > 0 else num_steps,
        remark=remark,
    )


def _recipe_batch_rows(
    num_rows: int,
    train_tokens: int,
    row_length: int,
    batch_tokens: int,
    paper_batch_rows: int,
    batch_tokens_asked: bool,
    num_devices: int,
) -> tuple[int, str]:
    if batch_tokens_asked:
        if batch_tokens % row_length:
            raise UserError(
                f"--batch_tokens {batch_tokens} is not a multiple of the row of {row_length} tokens; "
                f"ask for {max(1, round(batch_tokens / row_length)) * row_length}"
            )
        return batch_tokens // row_length, ""
    whole_batch = max(1, batch_tokens // row_length)
    if train_tokens != PAPER_TRAIN_TOKENS and math.ceil(num_rows / whole_batch) >= FEWEST_STEPS:
        return whole_batch, ""
    if train_tokens == PAPER_TRAIN_TOKENS:
        batch_rows, reason = paper_batch_rows, f"as in the paper's run of {train_tokens:,} tokens"
    else:
        batch_rows = max(1, num_rows // FEWEST_STEPS)
        reason = (
            f"instead of the recipe's {whole_batch}, which would take only {math.ceil(num_rows / whole_batch)} steps; "
            f"at least {FEWEST_STEPS} are aimed at"
        )
    if batch_rows % num_devices:
        batch_rows = math.ceil(batch_rows / num_devices) * num_devices
        reason += f"; rounded up for {num_devices} devices"
    return batch_rows, f"batch of {batch_rows} rows, {reason}"
