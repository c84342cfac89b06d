"""Steps that are not finite are as if they had not been."""

import math

import pytest
import torch
from torch import Tensor, nn

from llama_code.training.loss_spikes import LossSpikes
from llama_code.training.nonfinite_guard import STEPS_IN_A_ROW, NonFiniteGuard, skip_on_device

OPTIMIZERS = {
    "fused AdamW": lambda x: torch.optim.AdamW(x, lr=0.1, weight_decay=0.3, fused=True),
    "AdamW": lambda x: torch.optim.AdamW(x, lr=0.1, weight_decay=0.3, foreach=True),
    "SGD": lambda x: torch.optim.SGD(x, lr=0.1, momentum=0.9),
}
NAN, INF = float("nan"), float("inf")
GOOD = [(1.0, 2.0), (0.5, 1.0), (0.25, 3.0), (2.0, 0.5)]


def train(name: str, steps: list[tuple[float, float]], device: str = "cpu") -> tuple[nn.Module, dict, NonFiniteGuard]:
    """Take steps with given losses and gradients; returns the model, the optimizer's state and the guard."""
    torch.manual_seed(0)
    model = nn.Linear(5, 3).to(device)
    optimizer = OPTIMIZERS[name](model.parameters())
    guard = NonFiniteGuard(torch.device(device), 1)
    for step, (loss, gradient) in enumerate(steps):
        guard.add_loss(torch.full((), loss / 2, device=device))
        guard.add_loss(torch.full((), loss / 2, device=device))
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, gradient if math.isfinite(gradient) else 1.0)
        if not math.isfinite(gradient):
            model.weight.grad[1, 2] = gradient
        norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        skip_on_device(optimizer, model, guard.judge(step, norm))
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer.state_dict()["state"], guard


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("bad", [(NAN, 1.0), (INF, 1.0), (-INF, 1.0), (1.0, NAN), (1.0, INF), (NAN, NAN)])
def test_a_skipped_step_changes_nothing(name: str, bad: tuple[float, float]) -> None:
    """Neither weights nor moments nor the count of steps, first, amid and last."""
    model, state, _ = train(name, GOOD)
    other, other_state, guard = train(name, [bad, *GOOD[:2], bad, bad, *GOOD[2:], bad])
    for ours, theirs in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(ours, theirs) and torch.isfinite(ours).all()
    assert state.keys() == other_state.keys()
    for place, values in state.items():
        for key, value in values.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(other_state[place][key])), key
    assert [skipped.step for skipped in guard.read()] == [0, 3, 4]
    assert [skipped.step for skipped in guard.read(all_steps=True)] == [7]


def test_what_is_told_of_a_skipped_step() -> None:
    _, _, guard = train("fused AdamW", [(1.5, 2.0), (NAN, 1.0), (2.5, INF), (4.0, 1.0)])
    first, second = guard.read()
    assert first.step == 1 and math.isnan(first.loss) and math.isfinite(first.grad_norm)
    assert (second.step, second.loss, second.grad_norm) == (2, 2.5, INF)
    # The mean of all losses that are finite, each once.
    assert guard.mean_loss() == pytest.approx((1.5 + 2.5 + 4.0) / 3)
    assert math.isnan(guard.mean_loss())


def test_many_in_a_row_are_not_forgotten_by_a_good_one() -> None:
    bad = [(NAN, 1.0)]
    _, _, guard = train("SGD", [*GOOD, *bad * (STEPS_IN_A_ROW - 1), *GOOD, *bad * STEPS_IN_A_ROW, *GOOD])
    guard.read(all_steps=True)
    assert guard.first_of_many == 4 + STEPS_IN_A_ROW - 1 + 4
    guard.restart()
    assert guard.first_of_many is None and guard.read(all_steps=True) == []
    _, _, guard = train("SGD", [*GOOD, *bad * (STEPS_IN_A_ROW - 1), *GOOD, *bad])
    guard.read(all_steps=True)
    assert guard.first_of_many is None


def test_requests_are_told_a_step_later() -> None:
    guard = NonFiniteGuard(torch.device("cpu"), 1)
    seen = []
    for step in range(4):
        guard.add_loss(torch.tensor(1.0))
        guard.judge(step, torch.tensor(1.0), stop=step == 2, save=step == 1)
        guard.read()
        seen.append((guard.must_stop, guard.must_save))
    assert seen == [(False, False), (False, False), (False, True), (True, False)]


@pytest.mark.gpu
def test_no_step_waits_for_the_gpu() -> None:
    guard = NonFiniteGuard(torch.device("cuda"), 1)
    model = nn.Linear(500, 300).cuda()
    optimizer = OPTIMIZERS["fused AdamW"](model.parameters())
    x = torch.randn(8, 500, device="cuda")

    def step(number: int) -> Tensor:
        loss = model(x).square().mean()
        loss.backward()
        guard.add_loss(loss.detach())
        norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        skip_on_device(optimizer, model, guard.judge(number, norm))
        optimizer.step()
        optimizer.zero_grad()
        guard.read()
        return loss

    step(0)
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for number in range(1, 5):
            step(number)
    finally:
        torch.cuda.set_sync_debug_mode(before)


@pytest.mark.gpu
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_skipped_step_changes_nothing_on_a_gpu(name: str) -> None:
    model, _, _ = train(name, GOOD, "cuda")
    other, _, guard = train(name, [(NAN, 1.0), *GOOD[:2], (1.0, INF), *GOOD[2:]], "cuda")
    for ours, theirs in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert [skipped.step for skipped in guard.read(all_steps=True)] == [0, 3]


def test_a_spike_is_a_loss_far_above_the_last_ones() -> None:
    spikes = LossSpikes()
    assert all(spikes.z_score(10 / (i + 1) ** 0.3) is None for i in range(60))  # it falls, and fast
    assert spikes.z_score(NAN) is None
    score = spikes.z_score(9.0)
    assert score is not None and score > 6
    assert LossSpikes().z_score(1e9) is None  # nothing to compare it with
