from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Generator, Tensor, nn
from torch.testing import assert_close

from lnl.functional import gradients
from lnl.functional.gradients import GradNorm, gradnorm_objective, pcgrad

seeds = st.integers(0, 2**32 - 1)


def passed_back(boundary: Callable[[Tensor], Tensor], gradient: Tensor) -> Tensor:
    """What arrives before the boundary when `gradient` arrives behind it; the features must come through unchanged."""
    features = torch.randn(gradient.shape, generator=Generator().manual_seed(0)).requires_grad_()
    outputs = boundary(features)
    assert torch.equal(outputs, features)
    outputs.backward(gradient)
    assert features.grad is not None
    return features.grad


@given(seed=seeds, coefficient=st.sampled_from([-1.0, 0.0, 0.1, 2.0]))
def test_scale(seed: int, coefficient: float) -> None:
    gradient = torch.randn(4, 3, generator=Generator().manual_seed(seed))
    assert_close(passed_back(lambda f: gradients.scale(f, coefficient), gradient), coefficient * gradient)


def test_clip_uses_the_norm_of_the_batch() -> None:
    gradient = torch.tensor([[3.0, 0], [0, 4]])  # norm 5
    assert_close(passed_back(lambda f: gradients.clip(f, 1.0), gradient), gradient / 5)
    assert torch.equal(passed_back(lambda f: gradients.clip(f, 6.0), gradient), gradient)
    assert torch.equal(passed_back(lambda f: gradients.clip(f, 1.0), torch.zeros(2, 2)), torch.zeros(2, 2))


def test_noise_is_relative_to_the_gradient() -> None:
    gradient = torch.full((200, 300), 0.02)  # |g| / √d = 0.02
    added = passed_back(lambda f: gradients.noise(f, 0.5, Generator().manual_seed(1)), gradient) - gradient
    assert added.std().item() == pytest.approx(0.01, rel=0.01)
    assert abs(added.mean().item()) < 4 * 0.01 / 60_000**0.5
    again = passed_back(lambda f: gradients.noise(f, 0.5, Generator().manual_seed(1)), gradient) - gradient
    assert torch.equal(again, added)
    assert torch.equal(passed_back(lambda f: gradients.noise(f, 0.0, Generator()), gradient), gradient)


def test_boundary_between_head_and_backbone() -> None:
    """The backbone gets a g1 + g2, the head its own gradient at full rate."""
    torch.manual_seed(0)
    backbone, head, classifier = nn.Linear(5, 4), nn.Linear(4, 3), nn.Linear(4, 2)
    features = backbone(torch.randn(6, 5))

    def first(features: Tensor) -> Tensor:
        return head(features).square().mean()

    second = classifier(features).square().mean()
    total = first(gradients.scale(features, 0.1)) + second
    of_backbone = torch.autograd.grad(total, list(backbone.parameters()), retain_graph=True)
    expected = torch.autograd.grad(0.1 * first(features) + second, list(backbone.parameters()), retain_graph=True)
    assert_close(of_backbone, expected)
    of_head = torch.autograd.grad(total, list(head.parameters()), retain_graph=True)
    assert_close(of_head, torch.autograd.grad(first(features), list(head.parameters())))


def test_boundaries_keep_half_precision() -> None:
    gradient = torch.ones(2, 3, dtype=torch.bfloat16)
    features = torch.zeros(2, 3, dtype=torch.bfloat16, requires_grad=True)
    generator = Generator().manual_seed(0)
    outputs = gradients.noise(gradients.clip(gradients.scale(features, 2.0), 1.0), 0.1, generator)
    outputs.backward(gradient)
    assert outputs.dtype == torch.bfloat16
    assert features.grad is not None and features.grad.dtype == torch.bfloat16


def split(vector: list[float]) -> list[Tensor]:
    """One vector as the gradients of a scalar and of the rest."""
    return [torch.tensor(float(vector[0])), torch.tensor(vector[1:], dtype=torch.float32)]


def flat(parts: list[Tensor | None]) -> list[float]:
    return [value for part in parts if part is not None for value in part.flatten().tolist()]


def test_gradient_lists() -> None:
    first, second = (
        [torch.tensor([3.0, 4]), None, torch.tensor(1.0), None],
        [None, torch.ones(2), torch.tensor(2.0), None],
    )
    total = gradients.add(first, second)
    assert total[3] is None  # not zeros: weight decay would move the parameter
    assert_close(total[:3], [torch.tensor([3.0, 4]), torch.ones(2), torch.tensor(3.0)])
    assert gradients.norm(first).item() == pytest.approx(26**0.5)
    assert gradients.cosine(first, second).item() == pytest.approx(2 / (26 * 6) ** 0.5)
    assert gradients.norm([None, None]).item() == 0
    assert gradients.cosine([torch.ones(2)], [None]).isnan()
    with pytest.raises(ValueError, match="shorter"):
        gradients.add(first, second[:2])


def test_pcgrad_known_answers() -> None:
    assert flat(pcgrad(split([1, 0]), split([-1, 1]), symmetric=True)) == pytest.approx([0.5, 1.5])
    assert flat(pcgrad(split([3, 4]), split([1, -2]), symmetric=True)) == pytest.approx([5.6, 0.8])
    assert flat(pcgrad(split([3, 4]), split([1, -2]), symmetric=False)) == pytest.approx([5, 0])
    # each projection by itself: asymmetric, less the gradient that stays
    projected = flat(pcgrad(split([1, 0]), split([-1, 1]), symmetric=False))
    assert np.subtract(projected, [-1, 1]) == pytest.approx([0.5, 0.5])
    projected = flat(pcgrad(split([-1, 1]), split([1, 0]), symmetric=False))
    assert np.subtract(projected, [1, 0]) == pytest.approx([0, 1])


@given(seed=seeds, symmetric=st.booleans(), sign=st.sampled_from([-1, 1]))
def test_pcgrad_against_numpy(seed: int, symmetric: bool, sign: int) -> None:
    g, h = np.random.default_rng(seed).normal(size=(2, 6))
    h = h * sign * np.sign(g @ h)  # conflict, or agreement
    g_free, h_free = g, h
    if g @ h < 0:
        g_free = g - (g @ h) / (h @ h) * h
        h_free = h - (g @ h) / (g @ g) * g if symmetric else h
    actual = pcgrad(split(g.tolist()), split(h.tolist()), symmetric)
    np.testing.assert_allclose(flat(actual), g_free + h_free, atol=1e-4)


def test_pcgrad_where_a_loss_does_not_reach() -> None:
    first, second = (
        [torch.tensor([1.0, 0]), torch.tensor(2.0), None, None],
        [torch.tensor([-1.0, 1]), None, torch.tensor(3.0), None],
    )
    zero = torch.tensor(0.0)
    dense = pcgrad([*first[:2], zero, zero], [second[0], zero, second[2], zero], symmetric=True)
    actual = pcgrad(first, second, symmetric=True)
    assert actual[3] is None
    assert_close(actual[:3], dense[:3])


@pytest.mark.parametrize("symmetric", [True, False])
def test_pcgrad_with_a_zero_gradient_is_the_sum(symmetric: bool) -> None:
    zero, one = [torch.zeros(2)], [torch.tensor([1.0, 2])]
    assert_close(pcgrad(zero, one, symmetric), one)
    assert_close(pcgrad(one, zero, symmetric), one)
    assert_close(pcgrad([None], one, symmetric), one)


@pytest.mark.parametrize(("alpha", "value"), [(0.0, 1.5), (0.12, 1.603270), (1.5, 2.744087)])
def test_gradnorm_objective_known_answers(alpha: float, value: float) -> None:
    weights = torch.ones(2, requires_grad=True)
    objective = gradnorm_objective(weights, torch.tensor([2, 0.5]), torch.tensor([0.5, 1]), alpha)
    assert objective.item() == pytest.approx(value, abs=1e-6)
    assert_close(torch.autograd.grad(objective, weights), (torch.tensor([2, -0.5]),))


@given(seed=seeds, alpha=st.sampled_from([0.0, 0.12, 1.5]))
def test_gradnorm_update_against_numpy(seed: int, alpha: float) -> None:
    random = np.random.default_rng(seed)
    balance = GradNorm(alpha, tasks=3, learning_rate=0.1)
    weights, initial = np.ones(3), None
    for _ in range(5):
        losses, norms = random.uniform(0.5, 2, size=(2, 3))
        initial = losses if initial is None else initial
        relative = norms / norms.mean()
        ratios = losses / initial / (losses / initial).mean()
        own = weights * relative
        slope = own * np.sign(own - own.mean() * ratios**alpha)  # of the objective, by log w
        near_kink = np.abs(own - own.mean() * ratios**alpha).min() < 1e-5
        weights = weights * np.exp(-0.1 * slope)
        weights = 3 * weights / weights.sum()
        actual = balance.update(torch.tensor(losses), torch.tensor(norms))
        if near_kink:
            return
        np.testing.assert_allclose(actual.numpy(), weights, rtol=1e-4)


def test_gradnorm_balances_very_different_gradients() -> None:
    balance, norms = GradNorm(alpha=0.0), torch.tensor([100.0, 1.0])
    for _ in range(1000):
        weights = balance.update(torch.ones(2), norms)
        assert (weights > 0).all()
        assert weights.sum().item() == pytest.approx(2, abs=1e-5)
    assert_close(weights, torch.tensor([2 / 101, 200 / 101]), rtol=0.05, atol=0)


def test_gradnorm_pulls_towards_the_task_that_lags() -> None:
    balance = GradNorm(alpha=1.5)
    for losses in ([1.0, 1.0], [0.5, 1.0], [0.25, 1.0]):
        weights = balance.update(torch.tensor(losses), torch.ones(2))
    assert weights[1] > weights[0]


def test_gradnorm_ignores_the_scale_of_losses_and_gradients() -> None:
    small, large = GradNorm(alpha=0.5), GradNorm(alpha=0.5)
    for losses, norms in [([1.0, 2.0], [3.0, 1.0]), ([0.5, 1.8], [2.0, 1.5])]:
        expected = small.update(torch.tensor(losses), torch.tensor(norms))
        actual = large.update(1e3 * torch.tensor(losses), 1e3 * torch.tensor(norms))
    assert_close(actual, expected)


def test_gradnorm_resumes_exactly() -> None:
    steps = [(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 1.0])), (torch.tensor([0.5, 1.8]), torch.tensor([2.0, 1.5]))]
    straight = GradNorm(alpha=0.5)
    straight.update(*steps[0])
    resumed = GradNorm(alpha=0.5)
    resumed.load_state_dict(straight.state_dict())
    assert all(isinstance(value, Tensor) for value in straight.state_dict().values())
    with torch.no_grad():
        assert torch.equal(resumed.update(*steps[1]), straight.update(*steps[1]))
