"""One network in training: its gradients, updates, average, schedule and state, and the linear probe."""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import partial

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor
from torch.testing import assert_close

from lnl.networks import Network, heads
from lnl.training.learner import Learner, NetworkBuilder, Optimizer
from lnl.training.readout import linear_probe
from lnl.training.streams import Streams

HEADS = {"classifier": partial(heads.linear, classes=3), "projection": partial(heads.projection, hidden=5, out=4)}
IMAGES = torch.randn(12, 1, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(12) % 3


def learner(
    steps: int = 10,
    replicate: int = 0,
    owners: dict[str, Sequence[str]] | None = None,
    precision: str = "float32",
    replica: str = "",
    **optimizer: object,
) -> Learner:
    builder = NetworkBuilder("small_convnet", (1, 8, 8), torch.device("cpu"), precision, Streams(replicate))
    return Learner(builder, Optimizer(**optimizer), steps, HEADS, owners, replica)


def objective(network: Network, batch: tuple[Tensor, Tensor]) -> Tensor:
    images, labels = batch
    return torch.nn.functional.cross_entropy(network(images), labels)


def values(one: Learner) -> list[Tensor]:
    return [tensor.detach().clone() for tensor in one.parameters]


def is_kernel(tensor: Tensor) -> bool:
    return tensor.ndim > 1


# ----------------------------------------------------------------------------------------------------- initialisation


def test_initial_weights_depend_on_replicate_and_name_alone() -> None:
    one, same, other, second = learner(), learner(), learner(replicate=1), learner(replica="second/")
    assert all(torch.equal(a, b) for a, b in zip(values(one), values(same), strict=True))
    for different in (other, second):
        assert not any(torch.equal(a, b) for a, b in zip(values(one), values(different), strict=True) if is_kernel(a))
    builder = NetworkBuilder("small_convnet", (1, 8, 8), torch.device("cpu"), "float32", Streams(0))
    fewer = builder.build({"classifier": HEADS["classifier"]})  # one head less moves no other weight
    named = dict(one.network.named_parameters())
    assert all(torch.equal(tensor, named[name]) for name, tensor in fewer.named_parameters())


# ---------------------------------------------------------------------------------------------------------- gradients


def test_gradients_are_those_of_autograd_and_none_where_the_objective_does_not_reach() -> None:
    one = learner()
    loss, gradients = one.gradients(objective, (IMAGES, LABELS))
    again = objective(one.network, (IMAGES, LABELS))
    again.backward()
    assert not loss.requires_grad
    assert_close(loss, again.detach())
    for tensor, gradient in zip(one.parameters, gradients, strict=True):
        assert (gradient is None) == (tensor.grad is None)
        if gradient is not None:
            assert_close(gradient, tensor.grad)
    assert [position for position, gradient in enumerate(gradients) if gradient is None] == one.part("heads.projection")
    assert sum(one.parameters[position].numel() for position in one.part("heads.classifier")) == 96 * 3 + 3


def test_half_precision_reaches_the_objective() -> None:
    seen = []

    def spy(network: Network, images: Tensor) -> Tensor:
        logits = network(images)
        seen.append(logits.dtype)
        return logits.float().square().mean()

    for precision in ("float32", "bfloat16"):
        _, gradients = learner(precision=precision).gradients(spy, IMAGES)
        assert {gradient.dtype for gradient in gradients if gradient is not None} == {torch.float32}
        assert learner(precision=precision).logits(IMAGES).dtype == torch.float32
    assert seen == [torch.float32, torch.bfloat16]


# ------------------------------------------------------------------------------------------------------------ updates


@pytest.mark.slow
def test_gradients_in_half_precision_read_no_memory_that_nobody_wrote() -> None:
    """What is freed before is full of NaN: with oneDNN one gradient in four of torch 2.14 had some of it."""
    builder = NetworkBuilder("wide_resnet37_2", (3, 8, 8), torch.device("cpu"), "bfloat16", Streams(0))
    built = Learner.classifier(builder, Optimizer(kind="sgd"), 10, 10)
    images, labels = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(16) % 10
    for _ in range(20):
        freed = [torch.full((size,), float("nan")) for size in (1000, 5000, 20_000, 36_864, 73_728, 147_456) * 20]
        del freed
        _, gradients = built.gradients(objective, (images, labels))
        assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("kind", ["sgd", "adam", "adamw"])
def test_a_gradient_of_none_leaves_a_tensor_alone_and_one_of_zeros_decays_kernels(kind: str) -> None:
    """Known answer (weight 1, rate 0.1, decay 0.5): 0.95 for sgd and adamw; adam's decay is a gradient, so 1 - rate."""
    one = learner(kind=kind, learning_rate=0.1, weight_decay=0.5)
    with torch.no_grad():
        for tensor in one.parameters:
            tensor.fill_(1.0)
    head = one.part("heads.classifier")
    one.apply([torch.zeros_like(p) if i in head else None for i, p in enumerate(one.parameters)])
    for position, tensor in enumerate(one.parameters):
        decayed = (0.9 if kind == "adam" else 0.95) if position in head and is_kernel(tensor) else 1.0
        assert_close(tensor.detach(), torch.full_like(tensor, decayed))
        assert tensor.grad is None


def test_a_frozen_tensor_stays_as_it_is_after_it_has_moved() -> None:
    """Momentum goes on by itself under gradients of zero, but not under None."""
    one = learner(kind="sgd", learning_rate=0.1)
    ones = [torch.ones_like(tensor) for tensor in one.parameters]
    one.apply(ones)
    before = values(one)
    one.apply([None] * len(ones))
    assert all(torch.equal(a, b) for a, b in zip(values(one), before, strict=True))
    one.apply([torch.zeros_like(tensor) for tensor in ones])
    assert not any(torch.equal(a, b) for a, b in zip(values(one), before, strict=True))


@pytest.mark.parametrize(
    "kind",
    [
        "sgd",
        "adam",
        "adamw",
    ],
)
def test_a_tensor_may_get_its_first_gradient_late(kind: str) -> None:
    """As the classifier does after pre-training: its first step is then that of a fresh optimizer."""
    late, fresh = learner(kind=kind, learning_rate=0.1), learner(kind=kind, learning_rate=0.1)
    ones = [torch.ones_like(tensor) for tensor in late.parameters]
    head = late.part("heads.classifier")
    late.apply([None if position in head else gradient for position, gradient in enumerate(ones)])
    late.apply(ones)
    fresh.apply(ones)
    assert all(torch.equal(late.parameters[position], fresh.parameters[position]) for position in head)


def test_owners_update_their_own_parameters_and_may_share_some() -> None:
    owners = {"first": ["backbone", "heads.projection"], "second": ["backbone", "heads.classifier"]}
    one = learner(kind="sgd", learning_rate=1.0, momentum=0.0, owners=owners)
    start, ones = values(one), [torch.ones_like(tensor) for tensor in one.parameters]

    def moved() -> dict[str, float]:
        change = [float((a - b).mean()) for a, b in zip(start, values(one), strict=True)]
        return {
            part: pytest.approx(np.mean([change[p] for p in one.part(part)]), abs=1e-6)
            for part in ("backbone", "heads.projection", "heads.classifier")
        }

    one.apply(ones, "first")
    assert {"backbone": 1, "heads.projection": 1, "heads.classifier": 0} == moved()
    one.apply(ones, "second")
    assert {"backbone": 2, "heads.projection": 1, "heads.classifier": 1} == moved()
    one.apply(ones)
    assert {"backbone": 4, "heads.projection": 2, "heads.classifier": 2} == moved()


@pytest.mark.parametrize(
    ("schedule", "factors"),
    [
        ({"schedule": "constant"}, [1, 1, 1, 1, 1]),
        ({"schedule": "constant", "warm_up": 0.5}, [0, 0.5, 1, 1, 1]),
        ({"schedule": "cosine"}, [1, (1 + 0.5**0.5) / 2, 0.5, (1 - 0.5**0.5) / 2, 0]),
        ({"schedule": "linear", "milestones": (0.5,)}, [1, 1, 1, 0.5, 0]),
        ({"schedule": "step", "milestones": (0.25, 0.75), "factor": 0.1}, [1, 0.1, 0.1, 0.01, 0.01]),
    ],
)
def test_the_schedule_reaches_the_optimizer(schedule: dict, factors: list[float]) -> None:
    """Four steps of training, and a fifth: beyond the end the last factor holds."""
    one = learner(steps=4, kind="sgd", learning_rate=0.5, momentum=0.0, **schedule)
    for factor in factors:
        before = values(one)
        one.apply([torch.ones_like(tensor) for tensor in one.parameters])
        one.advance()
        for old, new in zip(before, values(one), strict=True):
            assert_close(old - new, torch.full_like(old, 0.5 * factor), atol=1e-6, rtol=0)


def test_step_is_gradients_apply_and_advance() -> None:
    one, other = learner(), learner()
    for _ in range(2):
        loss, gradients = other.gradients(objective, (IMAGES, LABELS))
        other.apply(gradients)
        other.advance()
        assert torch.equal(one.step(objective, (IMAGES, LABELS)), loss)
    assert one.done == other.done == 2
    assert all(torch.equal(a, b) for a, b in zip(values(one), values(other), strict=True))


# ------------------------------------------------------------------------------------------------------------ average


@pytest.mark.parametrize(
    ("done", "expected"),
    [
        (1_000_000, 0.999 * 0.9 + 0.001),  # 0.9001
        (0, 2 / 11 * 0.9 + 9 / 11),  # the first step: decay (1 + 1) / (10 + 1)
        (89, 91 / 100 * 0.9 + 9 / 100),
    ],
)
def test_average_known_answers(done: int, expected: float) -> None:
    one = learner(average=0.999)
    with torch.no_grad():
        for network, value in ((one.average, 0.9), (one.network, 1.0)):
            for tensor in (*network.parameters(), *statistics(network)):
                tensor.fill_(value)
    one.done = done
    one.advance()
    for tensor in (*one.average.parameters(), *statistics(one.average)):
        assert_close(tensor, torch.full_like(tensor, expected))


def statistics(network: Network) -> list[Tensor]:
    """BatchNorm's running means and variances."""
    return [tensor for name, tensor in network.named_buffers() if name.endswith(("running_mean", "running_var"))]


def test_the_average_predicts_with_averaged_statistics() -> None:
    plain, averaged = learner(learning_rate=0.01), learner(learning_rate=0.01, average=0.9)
    expected = [tensor.clone() for tensor in statistics(averaged.network)]
    for step in range(1, 4):
        for one in (plain, averaged):
            one.step(objective, (IMAGES, LABELS))
        decay = min((1 + step) / (10 + step), 0.9)
        now = statistics(averaged.network)
        expected = [decay * before + (1 - decay) * tensor for before, tensor in zip(expected, now, strict=True)]
    assert all(torch.equal(a, b) for a, b in zip(values(plain), values(averaged), strict=True))
    for tensor, wanted in zip(statistics(averaged.average), expected, strict=True):
        assert_close(tensor, wanted)
    averaged.guess(IMAGES, averaged=True, update_statistics=True)
    for tensor, wanted in zip(statistics(averaged.average), expected, strict=True):
        assert_close(tensor, wanted)
    assert torch.equal(plain.logits(IMAGES), plain.network.eval()(IMAGES))
    assert torch.equal(averaged.logits(IMAGES), averaged.average.eval()(IMAGES))
    assert torch.equal(averaged.features(IMAGES), averaged.average.features(IMAGES))
    assert not torch.equal(plain.logits(IMAGES), averaged.logits(IMAGES))


# -------------------------------------------------------------------------------------------------- without gradient


def test_guesses_use_the_statistics_of_the_batch_and_move_none_unless_told() -> None:
    one = learner(learning_rate=0.05, average=0.9)
    one.step(objective, (IMAGES, LABELS))
    before = [buffer.clone() for buffer in one.network.buffers()]
    guess = one.guess(IMAGES)
    assert all(torch.equal(a, b) for a, b in zip(one.network.buffers(), before, strict=True))
    assert not guess.requires_grad
    assert not torch.equal(one.guess(IMAGES, averaged=True), guess)
    assert torch.equal(one.guess(IMAGES, update_statistics=True), guess)
    assert not any(torch.equal(a, b) for a, b in zip(one.network.buffers(), before, strict=True))
    assert_close(guess, one.network.train()(IMAGES).softmax(-1).detach())


def test_logits_of_many_images_are_those_of_each() -> None:
    one = learner()
    many = torch.randn(1030, 1, 8, 8, generator=torch.Generator().manual_seed(1))  # more than one evaluation batch
    assert_close(one.logits(many)[1020:], one.logits(many[1020:]))
    assert not one.logits(many).requires_grad
    assert one.features(many).shape == (1030, 96)


# ------------------------------------------------------------------------------------------------------------- state


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_state_goes_to_disk_and_comes_back(kind: str) -> None:
    owners = {"first": ["backbone", "heads.projection"], "second": ["backbone", "heads.classifier"]}
    make = partial(learner, kind=kind, weight_decay=0.1, schedule="cosine", average=0.9, owners=owners)
    straight = make()
    for _ in range(2):
        straight.step(objective, (IMAGES, LABELS))
    stored = io.BytesIO()
    torch.save(straight.state_dict(), stored)
    stored.seek(0)
    resumed = make(replicate=1)
    resumed.load_state_dict(torch.load(stored, weights_only=True))
    for _ in range(2):
        assert torch.equal(resumed.step(objective, (IMAGES, LABELS)), straight.step(objective, (IMAGES, LABELS)))
    assert resumed.done == 4
    assert all(torch.equal(a, b) for a, b in zip(values(resumed), values(straight), strict=True))
    assert torch.equal(resumed.logits(IMAGES), straight.logits(IMAGES))


# ------------------------------------------------------------------------------------------------------- linear probe


@pytest.mark.parametrize("present", [tuple(range(10)), (0, 2, 3, 7), (4, 9)])
def test_linear_probe_is_scikit_learns(present: tuple[int, ...]) -> None:
    """Pixels of digits, some of them constant; classes without an example get nothing; two classes are a case apart."""
    images, digits = load_digits(return_X_y=True)
    chosen = np.flatnonzero(np.isin(digits, present))[:600]
    labels = digits[chosen].copy()
    labels[::3] = np.roll(labels[::3], 1)  # a third of them mostly wrong
    assert (np.ptp(images[chosen], axis=0) == 0).any()
    oracle = make_pipeline(StandardScaler(), LogisticRegression(tol=1e-9, max_iter=10_000)).fit(images[chosen], labels)
    found = linear_probe(torch.tensor(images[chosen]).float(), torch.tensor(labels), 10)(torch.tensor(images).float())
    expected = np.zeros((len(images), 10))
    expected[:, present] = oracle.predict_proba(images)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-3)
    assert (np.delete(found.numpy(), present, axis=1) == 0).all()


def test_linear_probe_gives_nothing_to_a_class_without_an_example() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.tensor([0, 2, 3]).repeat(20)  # of five classes
    features = torch.randn(60, 4, generator=generator) + labels[:, None] * torch.tensor([3.0, 0, 100, 0])
    found = linear_probe(features, labels, classes=5)(features[:9] + 0.1)
    assert found.shape == (9, 5)
    assert (found[:, [1, 4]] == 0).all()
    assert_close(found.sum(-1), torch.ones(9))
    assert (found.argmax(-1) == labels[:9]).all()


def test_linear_probe_neither_draws_nor_needs_the_callers_gradients() -> None:
    features = torch.randn(60, 5, generator=torch.Generator().manual_seed(0), requires_grad=True)
    labels = torch.arange(60) % 3
    state = torch.random.get_rng_state()
    found = linear_probe(features, labels, classes=3)(features)
    with torch.no_grad():
        again = linear_probe(features, labels, classes=3)(features)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(found, again) and not found.requires_grad and features.grad is None


def test_linear_probe_ignores_a_feature_that_was_constant() -> None:
    labels = torch.arange(60) % 3
    features = torch.nn.functional.one_hot(labels).float() + 0.1 * torch.randn(
        60, 3, generator=torch.Generator().manual_seed(0)
    )
    probe = linear_probe(torch.cat([features, torch.full((60, 1), 0.1)], -1), labels, classes=3)
    queries = torch.cat([features, torch.full((60, 1), 0.6)], -1)
    assert (probe(queries).argmax(-1) == labels).all()


def test_linear_probe_of_one_class_is_refused() -> None:
    with pytest.raises(ValueError, match="needs labelled images of at least two classes"):
        linear_probe(torch.randn(4, 2), torch.ones(4, dtype=torch.long), classes=3)


def test_linear_probe_of_features_that_are_not_finite_is_refused() -> None:
    features = torch.randn(4, 2)
    features[1, 1] = torch.nan
    with pytest.raises(FloatingPointError, match="needs finite features"):
        linear_probe(features, torch.arange(4) % 2, classes=2)
