"""The division of a run into steps, against the recipe's table and rules."""

from typing import Any

import pytest

from llama_code.errors import UserError
from llama_code.training.batches import BatchPlan, plan_batches


def plan(train_tokens: int, **changes: Any) -> BatchPlan:
    values: dict[str, Any] = dict(
        train_tokens=train_tokens,
        row_length=2048,
        batch_tokens=65_536,
        paper_batch_rows=1,
        largest_micro_batch_rows=32,
        num_devices=1,
        per_device_train_batch_size=None,
        gradient_accumulation_steps=None,
        batch_tokens_asked=False,
    )
    return plan_batches(**{**values, **changes})


@pytest.mark.parametrize(("paper_batch_rows", "num_steps"), [(1, 16), (2, 8), (4, 4)])
def test_the_papers_run_is_16_rows(paper_batch_rows: int, num_steps: int) -> None:
    result = plan(32_000, paper_batch_rows=paper_batch_rows)
    assert (result.num_rows, result.batch_rows, result.num_steps) == (16, paper_batch_rows, num_steps)
    assert "as in the paper's run" in result.remark


def test_a_long_run_keeps_the_recipes_batch() -> None:
    result = plan(100_000_000)
    assert result.batch_rows == 32 and result.num_steps == 1526 and not result.remark


def test_a_short_run_shrinks_its_batch_towards_200_steps() -> None:
    result = plan(2_048 * 2_000)
    assert result.batch_rows == 10 and result.num_steps == 200
    assert "instead of the recipe's 32, which would take only 63 steps" in result.remark


def test_a_very_short_run_has_batches_of_one_row() -> None:
    assert plan(2_048 * 50).batch_rows == 1


@pytest.mark.parametrize(
    ("train_tokens", "warmup_steps"), [(32_000, 2), (2_048 * 2_000, 20), (100_000_000, 153), (10**10, 2_000)]
)
def test_warmup_is_a_tenth_at_most_2000(train_tokens: int, warmup_steps: int) -> None:
    assert plan(train_tokens).warmup_steps == warmup_steps


def test_micro_batches_are_the_largest_that_divide() -> None:
    result = plan(100_000_000, largest_micro_batch_rows=12)
    assert (result.micro_batch_rows, result.gradient_accumulation_steps) == (8, 4)


def test_the_batch_stays_when_devices_are_added() -> None:
    result = plan(100_000_000, num_devices=4)
    assert (result.batch_rows, result.micro_batch_rows, result.gradient_accumulation_steps) == (32, 8, 1)


def test_a_batch_that_nobody_asked_for_is_rounded_up_for_the_devices() -> None:
    assert plan(32_000, num_devices=2).batch_rows == 2
    result = plan(2_048 * 2_000, num_devices=4)
    assert result.batch_rows == 12 and "rounded up for 4 devices" in result.remark


def test_a_run_that_ends_early_has_a_schedule_of_its_own() -> None:
    result = plan(100_000_000, max_steps=50)
    assert result.num_steps == 50 and result.warmup_steps == 5


def test_one_asked_number_decides_the_other() -> None:
    assert plan(100_000_000, per_device_train_batch_size=4).gradient_accumulation_steps == 8
    assert plan(100_000_000, gradient_accumulation_steps=2).micro_batch_rows == 16


def test_both_asked_numbers_decide_the_batch() -> None:
    result = plan(100_000_000, per_device_train_batch_size=3, gradient_accumulation_steps=5)
    assert result.batch_rows == 15 and "15 rows as asked for" in result.remark


def test_an_asked_batch_is_kept() -> None:
    assert plan(32_000, batch_tokens=8_192, batch_tokens_asked=True).batch_rows == 4


@pytest.mark.parametrize(
    ("train_tokens", "changes", "message"),
    [
        (2_047, {}, "--train_tokens 2047 is less than one row of 2048 tokens; ask for 2048 or more"),
        (-1, {}, "--train_tokens -1 is less than one row"),
        (10**8, {"batch_tokens": 0}, "--batch_tokens 0 is no positive whole number; ask for 1 or more"),
        (10**8, {"per_device_train_batch_size": 0}, "--per_device_train_batch_size 0 is no positive whole number"),
        (10**8, {"gradient_accumulation_steps": -2}, "--gradient_accumulation_steps -2 is no positive whole number"),
        (
            10**8,
            {"per_device_train_batch_size": 5},
            "32 rows of 2048 tokens cannot be divided by --per_device_train_batch_size 5 x 1 device.*choose divisors",
        ),
        (10**8, {"gradient_accumulation_steps": 7}, "cannot be divided by --gradient_accumulation_steps 7"),
        (10**8, {"batch_tokens": 256.5}, "--batch_tokens 256.5 is no positive whole number"),
        (10**8, {"paper_batch_rows": 0}, "--paper_batch_rows 0 is no positive whole number"),
        (10**8, {"largest_micro_batch_rows": -3}, "--micro_batch_rows -3 is no positive whole number"),
        (32_000, {"max_steps": 17}, "--max_steps 17 is more than the 16 steps that --train_tokens 32000 takes"),
        (10**8, {"num_devices": 3}, "cannot be divided by 3 devices"),
        (
            10**8,
            {"batch_tokens_asked": True, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 4},
            "--batch_tokens 65536 is 32 rows of 2048 tokens, but .* is 16; leave one of the three out",
        ),
        (
            10**8,
            {"batch_tokens_asked": True, "batch_tokens": 5_000},
            "--batch_tokens 5000 is not a multiple of the row of 2048 tokens; ask for 4096",
        ),
    ],
)
def test_contradictions(train_tokens: int, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        plan(train_tokens, **changes)
