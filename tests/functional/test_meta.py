"""The meta step: known answers of a linear model, and agreement of the fast modes with double backward on networks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot, scaled_dot_product_attention
from torch.testing import assert_close

from lnl.functional import meta
from lnl.networks import heads
from lnl.networks.convnet import ChannelDropout
from lnl.training.learner import Learner, NetworkBuilder, Optimizer
from lnl.training.streams import Streams

MODES = get_args(meta.MetaGradient)
EXACT = ("exact", "jvp")

# ------------------------------------------------------------------------ known answers: z = x Wᵀ, three classes, fp64

X = torch.tensor([[1.0, 0], [0, 1], [1, 1]], dtype=torch.float64)
Y = torch.eye(3, dtype=torch.float64)
PROBE_X, PROBE_Y = torch.eye(2, dtype=torch.float64), torch.tensor([0, 2])
GUESS = torch.tensor([[0.8, 0.1, 0.1], [0.2, 0.2, 0.6], [0.1, 0.1, 0.8]], dtype=torch.float64)
ZERO = torch.zeros(3, 2, dtype=torch.float64)
W = torch.tensor([[0.5, -0.2], [0, 0.3], [-0.1, 0.4]], dtype=torch.float64)
THIRD = torch.full((3,), 1 / 3, dtype=torch.float64)
SHARES = torch.full((3,), 0.9, dtype=torch.float64)


def lookahead(logits: Tensor, weights: Tensor, coefficients: Tensor) -> Tensor:
    """Σ w_i CE(λ_i y_i + (1 - λ_i) g_i, z_i)."""
    soft = coefficients[:, None] * Y + (1 - coefficients[:, None]) * GUESS
    return -(weights * (soft * logits.log_softmax(-1)).sum(-1)).sum()


def plain(logits: Tensor, weights: Tensor) -> Tensor:
    return -(weights * (Y * logits.log_softmax(-1)).sum(-1)).sum()


@dataclass
class Probe:
    """The probe's loss; keeps its last value and place."""

    decay: float = 0.0
    value: float = 0.0
    place: Tensor | None = None

    def __call__(self, weights: Sequence[Tensor]) -> Tensor:
        loss = cross_entropy(PROBE_X @ weights[0].T, PROBE_Y) + self.decay / 2 * weights[0].square().sum()
        self.value, self.place = loss.item(), weights[0].detach()
        return loss


def linear(loss: Callable[..., Tensor], coefficients: list[Tensor], weight: Tensor, **settings: Any) -> list[Tensor]:
    settings = {"probe": Probe(), "rate": 0.1, **settings}
    probe = settings.pop("probe")
    return meta.gradients(lambda weights: X @ weights[0].T, loss, coefficients, probe, [weight], **settings)


def check(actual: Tensor, expected: list[Any], tolerance: float = 6e-11) -> None:
    assert_close(actual, torch.tensor(expected, dtype=actual.dtype), rtol=0, atol=tolerance)


@pytest.mark.parametrize("mode", EXACT)
@pytest.mark.parametrize("rate", [None, 0.1, 1.0])
def test_weights_from_zero_are_the_same_for_every_rate(mode: meta.MetaGradient, rate: float | None) -> None:
    """KA-1: L2R at W = 0; standing still on purpose (None) is a virtual step of any length."""
    (gradient,) = linear(plain, [torch.zeros(3, dtype=torch.float64)], ZERO, rate=rate, mode=mode)
    assert_close(gradient, (rate or 1.0) * torch.tensor([-1 / 3, 1 / 6, -1 / 6], dtype=torch.float64))
    check(meta.sample_weights(gradient), [2 / 3, 0, 1 / 3])
    if rate == 0.1:
        check(meta.sample_weights(gradient, 1e-5), [0.66653336, 0, 0.33326668], 5e-9)


@pytest.mark.parametrize(("decay", "expected"), [(0.0, [0.5608093, 0, 0.4391907]), (0.05, [0.5433871, 0, 0.4566129])])
@pytest.mark.parametrize("mode", EXACT)
def test_weight_decay_in_the_probes_loss(mode: meta.MetaGradient, decay: float, expected: list[float]) -> None:
    """KA-8."""
    (gradient,) = linear(plain, [torch.zeros(3, dtype=torch.float64)], W, probe=Probe(decay), rate=None, mode=mode)
    if not decay:
        check(-gradient, [0.2156807, -0.2121022, 0.1689076], 6e-8)
    check(meta.sample_weights(gradient), expected, 6e-8)


@pytest.mark.parametrize("mode", EXACT)
def test_virtual_step_from_zero_weights(mode: meta.MetaGradient) -> None:
    """KA-2."""
    probe = Probe()
    by_weight, by_coefficient = linear(lookahead, [THIRD, SHARES], ZERO, probe=probe, mode=mode)
    assert probe.value == pytest.approx(1.087115710718, abs=1e-12) and probe.place is not None
    check(
        probe.place, [[0.0107777778, -0.0212222222], [-0.0215555556, 0.0087777778], [0.0107777778, 0.0124444444]], 6e-11
    )
    check(by_weight, [-0.0321600415, 0.0138054698, -0.0157927876])
    check(by_coefficient, [-0.0033154682, 0.0100207728, -0.0016281224])
    weights = meta.sample_weights(by_weight, 1e-5)
    check(weights, [0.670520111, 0, 0.329271394], 6e-10)
    assert weights.sum().item() == pytest.approx(0.999791505, abs=1e-9)
    check(meta.label_coefficients(by_coefficient), [1, 0, 1])


@pytest.mark.parametrize("mode", EXACT)
def test_virtual_step_with_and_without_momentum(mode: meta.MetaGradient) -> None:
    """KA-3: (a) alone, (b) with 0.9 of a momentum buffer and weight decay 5e-4."""
    probe = Probe()
    by_weight, by_coefficient = linear(lookahead, [THIRD, SHARES], W, probe=probe, mode=mode)
    assert probe.value == pytest.approx(0.826514693287, abs=1e-12)
    check(by_weight, [-0.0206585636, 0.0182251298, -0.0160903646])
    check(by_coefficient, [-0.0026673360, 0.0101051506, -0.0016588005])
    check(meta.sample_weights(by_weight, 1e-5), [0.5620012502, 0, 0.4377267071])
    check(meta.label_coefficients(by_coefficient), [1, 0, 1])

    buffer = torch.tensor([[0.1, 0], [0, -0.1], [0.05, 0.05]], dtype=torch.float64)
    drift = [5e-4 * W + 0.9 * buffer]
    by_weight, by_coefficient = linear(lookahead, [THIRD, SHARES], W, probe=probe, drift=drift, mode=mode)
    assert probe.value == pytest.approx(0.831353038244, abs=1e-12)
    check(by_weight, [-0.0207254206, 0.0183479778, -0.0161988620])
    check(by_coefficient, [-0.0026758644, 0.0101679834, -0.0016699858])
    check(meta.sample_weights(by_weight, 1e-5), [0.561143176, 0, 0.438586073], 6e-10)


def test_gradients_against_numpy() -> None:
    """-α (p_i - q_i)·dz_i and -α w_i (g_i - y_i)·dz_i, everything written out."""

    def softmax(z: np.ndarray) -> np.ndarray:
        e = np.exp(z)
        return e / e.sum(-1, keepdims=True)

    x, y, g, w = X.numpy(), Y.numpy(), GUESS.numpy(), W.numpy()
    p, q = softmax(x @ w.T), 0.9 * y + 0.1 * g
    ahead = w - 0.1 * ((p - q) / 3).T @ x
    v = ((softmax(PROBE_X.numpy() @ ahead.T) - y[[0, 2]]) / 2).T @ PROBE_X.numpy()
    dz = x @ v.T
    by_weight, by_coefficient = linear(lookahead, [THIRD, SHARES], W)
    np.testing.assert_allclose(by_weight, -0.1 * ((p - q) * dz).sum(-1), rtol=1e-12)
    np.testing.assert_allclose(by_coefficient, -0.1 / 3 * ((g - y) * dz).sum(-1), rtol=1e-12)


@pytest.mark.parametrize("kind", [0, 1])
def test_a_probe_image_votes_for_its_own_label(kind: int) -> None:
    """One training image that is also the probe: λ* = 1 where the probe says y, 0 where it says g's class."""
    image, weight = torch.tensor([[0.7, -0.3]], dtype=torch.float64), W.clone()
    given, guess = torch.eye(3, dtype=torch.float64)[:2]

    def loss(logits: Tensor, weights: Tensor, coefficients: Tensor) -> Tensor:
        soft = coefficients[:, None] * given + (1 - coefficients[:, None]) * guess
        return -(weights * (soft * logits.log_softmax(-1)).sum(-1)).sum()

    _, gradient = meta.gradients(
        lambda weights: image @ weights[0].T,
        loss,
        [torch.ones(1, dtype=torch.float64), torch.full((1,), 0.9, dtype=torch.float64)],
        lambda weights: cross_entropy(image @ weights[0].T, torch.tensor([kind])),
        [weight],
        rate=0.1,
    )
    assert meta.label_coefficients(gradient).tolist() == [1 - kind]


@pytest.mark.parametrize(
    ("scale", "expected"),
    [(1e-2, [0.75 / 1.001, 0.25 / 1.001, 0]), (1e-4, [0.681818, 0.227273, 0]), (1e-6, [0.75 / 11, 0.25 / 11, 0])],
)
def test_normalisers(scale: float, expected: list[float]) -> None:
    """KA-4: L2R's weights do not depend on the gradients' size, those of IEG's code do."""
    gradient = -scale * torch.tensor([0.75, 0.25, -1.0], dtype=torch.float64)
    check(meta.sample_weights(gradient), [0.75, 0.25, 0], 1e-12)
    check(meta.sample_weights(gradient, 1e-5), expected, 6e-7)


@pytest.mark.parametrize("normaliser", [0.0, 1e-5])
def test_where_nothing_helps_all_weights_are_zero(normaliser: float) -> None:
    gradient = torch.tensor([[0.3, 0.0, 2.0], [-1.0, -3.0, 0.0]])
    assert_close(
        meta.sample_weights(gradient, normaliser), torch.tensor([[0.0, 0, 0], [0.25, 0.75, 0]]), rtol=1e-5, atol=0
    )


# ------------------------------------------------------------------------------------------- the meta step of a network

IMAGES = torch.randn(12, 1, 8, 8, generator=torch.Generator().manual_seed(0))
PROBE = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(1))
LINEAR = partial(heads.linear, classes=3)
LABELS, PROBE_LABELS = torch.arange(12) % 3, torch.arange(6) % 3
SOFT = torch.rand(12, 3, generator=torch.Generator().manual_seed(2)).softmax(-1)


def learner(
    precision: str = "float32",
    name: str = "small_convnet",
    head: Callable[[int], nn.Module] = LINEAR,
    **optimizer: Any,
) -> Learner:
    builder = NetworkBuilder(name, (1, 8, 8), torch.device("cpu"), precision, Streams(0))
    settings = Optimizer(**{"kind": "sgd", "learning_rate": 0.05, **optimizer})
    one = Learner(builder, settings, 10, {"classifier": head})
    for _ in range(2):
        one.step(objective, (IMAGES, LABELS))
    return one


def double(one: Learner) -> Learner:
    one.network.double()
    for state in one.optimizers["all"].state.values():
        state["momentum_buffer"] = state["momentum_buffer"].double()
    return one


def objective(network: Callable[[Tensor], Tensor], batch: tuple[Tensor, Tensor]) -> Tensor:
    images, labels = batch
    return cross_entropy(network(images), labels)


def mixed(logits: Tensor, weights: Tensor, coefficients: Tensor) -> Tensor:
    soft = coefficients[:, None] * one_hot(LABELS, 3) + (1 - coefficients[:, None]) * SOFT
    return -(weights * (soft * logits.log_softmax(-1)).sum(-1)).sum()


def virtual(one: Learner, mode: meta.MetaGradient, **settings: Any) -> list[Tensor]:
    start = [torch.full((12,), 1 / 12), torch.full((12,), 0.9)]
    options = {"rate": 0.1, "momentum": 0.9, "weight_decay": 5e-4, **settings}
    start = [tensor.to(one.parameters[0].dtype) for tensor in start]
    images, probe = IMAGES.to(start[0].dtype), PROBE.to(start[0].dtype)
    return one.virtual(mixed, start, images, objective, (probe, PROBE_LABELS), mode=mode, **options)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["small_convnet", "preact_resnet18"])
def test_modes_agree_under_batch_norm(name: str) -> None:
    one = learner(name=name)
    exact = virtual(one, "exact")
    for fast, truth in zip(virtual(one, "jvp"), exact, strict=True):
        assert_close(fast, truth, rtol=1e-4, atol=1e-5 * truth.abs().max().item())
    for rough, truth in zip(virtual(one, "finite_difference"), exact, strict=True):
        assert torch.cosine_similarity(rough, truth, dim=0) > 0.999
        assert_close(rough, truth, rtol=0.05, atol=0.02 * truth.abs().max().item())


class Attention(nn.Module):
    """Features (B, 96) as 8 tokens that attend to each other -> logits (B, 3)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.last = nn.Linear(width, 3)

    def forward(self, features: Tensor) -> Tensor:
        tokens = features.unflatten(-1, (1, 8, -1))
        return self.last(scaled_dot_product_attention(tokens, tokens, tokens).flatten(1))


def test_modes_agree_through_attention() -> None:
    """Its fused kernels have no second derivative."""
    one = learner(head=Attention)
    exact = virtual(one, "exact")
    for mode in ("jvp", "finite_difference"):
        for fast, truth in zip(virtual(one, mode), exact, strict=True):  # type: ignore[arg-type]
            assert torch.cosine_similarity(fast, truth, dim=0) > 0.999


class Dropout(nn.Module):
    """Features (B, 96), a quarter of them set to zero by another mask in every pass -> logits (B, 3)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dropout, self.last = ChannelDropout(0.25, index=0), nn.Linear(width, 3)

    def forward(self, features: Tensor) -> Tensor:
        return self.last(self.dropout(features[..., None, None]).flatten(1))


@pytest.mark.parametrize("rate", [0.1, None])
def test_modes_agree_under_dropout(rate: float | None) -> None:
    one = double(learner(head=Dropout))
    exact = virtual(one, "exact", rate=rate)
    for rough, truth in zip(virtual(one, "finite_difference", rate=rate), exact, strict=True):
        assert torch.cosine_similarity(rough, truth, dim=0) > 0.999
    one.guess(IMAGES.double())  # the next pass draws other masks
    for now, before in zip(virtual(one, "exact", rate=rate), exact, strict=True):
        assert torch.cosine_similarity(now, before, dim=0) < 0.99


@pytest.mark.parametrize("head", [LINEAR, Dropout])
@pytest.mark.parametrize("settings", [{}, {"momentum": 0.0}, {"weight_decay": 0.1}, {"rate": None}, {"rate": 1.0}])
def test_jvp_is_double_backward_in_double_precision(settings: dict[str, Any], head: Callable[[int], nn.Module]) -> None:
    one = double(learner(head=head))
    for fast, truth in zip(virtual(one, "jvp", **settings), virtual(one, "exact", **settings), strict=True):
        assert_close(fast, truth, rtol=1e-8, atol=1e-10 * truth.abs().max().item())


@pytest.mark.parametrize("head", [LINEAR, Dropout])
def test_the_virtual_step_is_a_step_of_sgd(head: Callable[[int], nn.Module]) -> None:
    """A little more weight on image 3 in the optimizer's own step changes the probe's loss by the gradient.

    Dropout draws there for the step and then for the probe.
    """

    def after(more: float) -> float:
        one = double(learner(head=head, weight_decay=0.01))
        weights = torch.full((12,), 1 / 12, dtype=torch.float64)
        weights[3] += more
        shares = torch.full_like(weights, 0.9)
        one.apply(one.gradients(lambda network, images: mixed(network(images), weights, shares), IMAGES.double())[1])
        decay = sum(0.01 / 2 * tensor.square().sum() for tensor in one.parameters if tensor.ndim > 1)
        return (objective(one.network, (PROBE.double(), PROBE_LABELS)) + decay).item()

    slope = (after(1e-5) - after(-1e-5)) / 2e-5
    one = double(learner(head=head, weight_decay=0.01))
    by_weight, _ = virtual(one, "jvp", rate=0.05, momentum=0.9, weight_decay=0.01)
    assert by_weight[3].item() == pytest.approx(slope, rel=1e-4)


@pytest.mark.parametrize("mode", MODES)
def test_nothing_moves(mode: meta.MetaGradient) -> None:
    """Weights, running statistics, dropout's count and the optimizer stay; no gradient is left behind."""
    one = learner(head=Dropout)
    assert one.network.heads["classifier"].dropout.draws == 2
    before = {name: tensor.clone() for name, tensor in one.network.state_dict().items()}
    buffers = [state["momentum_buffer"].clone() for state in one.optimizers["all"].state.values()]
    result = virtual(one, mode)
    assert all(not tensor.requires_grad and tensor.isfinite().all() for tensor in result)
    assert all(torch.equal(tensor, before[name]) for name, tensor in one.network.state_dict().items())
    assert all(tensor.grad is None and tensor.requires_grad for tensor in one.parameters)
    now = [state["momentum_buffer"] for state in one.optimizers["all"].state.values()]
    assert all(torch.equal(a, b) for a, b in zip(now, buffers, strict=True))


@pytest.mark.parametrize("mode", MODES)
def test_half_precision_of_the_network_does_not_reach_the_meta_step(mode: meta.MetaGradient) -> None:
    one, half = learner(), learner("bfloat16")
    half.load_state_dict(one.state_dict())
    with torch.autocast("cpu", dtype=torch.bfloat16):  # not even from outside
        rough = virtual(half, mode)
    for actual, expected in zip(rough, virtual(one, mode), strict=True):
        assert actual.dtype == torch.float32 and torch.equal(actual, expected)


def test_the_order_of_the_images_does_not_matter() -> None:
    one, order = learner(), torch.randperm(12, generator=torch.Generator().manual_seed(3))

    def moved(logits: Tensor, weights: Tensor, coefficients: Tensor) -> Tensor:
        return mixed(logits[order.argsort()], weights[order.argsort()], coefficients[order.argsort()])

    start = [torch.full((12,), 1 / 12), torch.full((12,), 0.9)]
    there = one.virtual(moved, start, IMAGES[order], objective, (PROBE, PROBE_LABELS), rate=0.1, momentum=0.9)
    for actual, expected in zip(there, virtual(one, "jvp", weight_decay=0.0), strict=True):
        assert_close(actual, expected[order], rtol=1e-4, atol=1e-7)


def test_a_probe_without_gradient_asks_for_nothing() -> None:
    one = learner()
    for mode in MODES:
        for tensor in one.virtual(
            mixed,
            [torch.full((12,), 1 / 12), torch.full((12,), 0.9)],
            IMAGES,
            lambda network, images: network(images).sum() * 0,
            PROBE,
            rate=0.1,
            mode=mode,
        ):
            assert (tensor == 0).all()
