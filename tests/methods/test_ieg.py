"""IEG: known answers of the fact sheet, its objective against numpy, the split, the switches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from lnl.data import DataError
from lnl.functional import losses, schedules, targets
from lnl.methods import ieg
from lnl.methods.ieg import Config, IegBatch, Method
from lnl.trial.config import Trial

Make = Callable[..., Method]


@pytest.fixture(name="make")
def _make(tiny: Callable[..., Trial], build: Callable[[Trial], Any]) -> Make:
    def make(**changes: Any) -> Method:
        return build(tiny("ieg", {f"method.{name}": value for name, value in changes.items()})).method

    return make


# -------------------------------------------------------------------------------------------------------- known answers


def test_defaults_are_the_papers() -> None:
    config = Config()
    optimizer = config.optimizer
    assert (config.views, config.temperature, config.alpha, config.initial_coefficient) == (2, 0.5, 0.5, 0.9)
    assert (config.mixed_weight, config.consistency_weight, config.meta_rate, config.meta_momentum) == (5, 20, 0.1, 0.9)
    assert (optimizer.learning_rate, optimizer.momentum, optimizer.nesterov) == (0.1, 0.9, False)
    assert (optimizer.weight_decay, optimizer.average) == (5e-4, 0.999)


@pytest.mark.parametrize(
    ("step", "rate"),
    [
        (0, 0.1), (125, 0.0853553), (250, 0.05), (375, 0.0146447), (500, 0.09), (875, 0.045), (1250, 0.081),
        (2375, 0.0729), (50_000, 0.0104008), (100_000, 0.0234506), (199_999, 0.0251501),
    ],
)  # fmt: skip
def test_restarts(step: int, rate: float) -> None:
    """KA-9, of 200,000 steps."""
    assert 0.1 * Config().optimizer.scale(step / 200_000) == pytest.approx(rate, abs=6e-8)


def test_average() -> None:
    """KA-10."""
    decays = [schedules.average_decay(step, 0.999) for step in (0, 10, 90, 990, 8_990, 10**6)]
    assert decays == pytest.approx([0.1, 0.55, 0.91, 0.991, 0.999, 0.999])


VIEWS = torch.tensor([[[2.0, 1, 0], [0, 0, 1]], [[1.0, 2, 0], [0, 1, 2]]])


@pytest.mark.parametrize(
    ("normalised", "expected"),
    [
        (False, [[0.490399, 0.490399, 0.019202], [0.049539, 0.113298, 0.837163]]),
        (True, [[0.539064, 0.432256, 0.028680], [0.066383, 0.137302, 0.796315]]),
    ],
)
def test_pseudo_labels_and_consistency(normalised: bool, expected: list[list[float]]) -> None:
    """KA-5."""
    assert_close(ieg.pseudo_labels(VIEWS, 0.5, normalised), torch.tensor(expected), rtol=0, atol=1e-6)
    mean = ieg.pseudo_labels(VIEWS, 1.0, False)
    assert_close(
        mean, torch.tensor([[0.454985, 0.454985, 0.090031], [0.150986, 0.228335, 0.620679]]), rtol=0, atol=1e-6
    )
    sharp = targets.sharpen(torch.tensor([0.5, 0.3, 0.2]), 0.5)
    assert_close(sharp, torch.tensor([0.657895, 0.236842, 0.105263]), rtol=0, atol=1e-6)
    divergence = losses.kl_divergence(VIEWS[0], VIEWS[1])
    assert_close(divergence, torch.tensor([0.420512485, 0.068102808]), rtol=0, atol=1e-7)
    assert divergence.mean().item() == pytest.approx(0.244307646, abs=1e-7)


@pytest.mark.parametrize(
    ("classes", "confidence", "entropy", "guess"), [(10, 0.756964, 0.278439, 0.988676), (100, 0.995744, 0.004265, None)]
)
def test_normalised_logits_cap_confidence(classes: int, confidence: float, entropy: float, guess: float | None) -> None:
    """KA-6: however large the logits."""
    logits = 1e3 * (torch.eye(classes)[:1] - 1 / classes)
    probability = ieg.logit_norm(logits).softmax(-1)[0, 0]
    assert probability.item() == pytest.approx(confidence, abs=1e-6)
    assert losses.cross_entropy(ieg.logit_norm(logits), torch.tensor([0])).item() == pytest.approx(entropy, abs=1e-6)
    if guess:
        assert ieg.pseudo_labels(logits[None], 0.5, True)[0, 0].item() == pytest.approx(guess, abs=1e-6)


def test_mixing_shares() -> None:
    """KA-7, and the means of both laws."""
    uniform = torch.tensor([0, 0.25, 0.5, 1])
    assert ieg.approximate_share(uniform, 0.5).tolist() == [1, 0.96875, 0.875, 0.5]
    generator = torch.Generator().manual_seed(0)
    approximate = ieg.approximate_share(torch.rand(100_000, generator=generator), 0.5)
    assert approximate.mean().item() == pytest.approx(0.8333, abs=2e-3)
    assert targets.mixup_coefficients(0.5, 100_000, generator).mean().item() == pytest.approx(0.8183, abs=2e-3)


@pytest.mark.parametrize(("average", "expected"), [("paper", 11.5), ("code", 10.5)])
def test_totals(average: str, expected: float) -> None:
    """KA-13."""
    terms = [torch.tensor(value) for value in (1.2, 0.8, 1.0, 1.5, 0.05)]
    assert ieg.total_loss(Config(loss_average=average), *terms).item() == pytest.approx(expected)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("switch", "missing"),
    [
        ({"use_weights": False}, 1.2),
        ({"use_coefficients": False}, 0.8),
        ({"use_probe": False}, 1.0),
        ({"mixed_weight": 0.0}, 7.5),
        ({"consistency_weight": 0.0}, 1.0),
    ],
)
def test_each_switch_takes_one_term_away(switch: dict[str, Any], missing: float) -> None:
    terms = [torch.tensor(value) for value in (1.2, 0.8, 1.0, 1.5, 0.05)]
    assert ieg.total_loss(Config(**switch), *terms).item() == pytest.approx(11.5 - missing)


def test_supervised_losses_of_the_linear_model() -> None:
    """KA-3 (a): L_w and L_λ, and the official code's half."""
    x, w = torch.tensor([[1.0, 0], [0, 1], [1, 1]]), torch.tensor([[0.5, -0.2], [0, 0.3], [-0.1, 0.4]])
    guess = torch.tensor([[0.8, 0.1, 0.1], [0.2, 0.2, 0.6], [0.1, 0.1, 0.8]])
    weights, chosen = torch.tensor([0.5620012502, 0, 0.4377267071]), torch.tensor([1.0, 0, 1])
    softened = ieg.blend(torch.eye(3), guess, torch.full((3,), 0.9))
    weighted = (weights * losses.soft_cross_entropy(x @ w.T, softened)).sum()
    relabelled = losses.soft_cross_entropy(x @ w.T, ieg.blend(torch.eye(3), guess, chosen))
    assert weighted.item() == pytest.approx(0.9186625598, abs=3e-7)
    assert_close(relabelled, torch.tensor([0.767949549, 1.037576326, 1.098612289]))
    nothing = torch.zeros(())
    total = ieg.total_loss(Config(loss_average="code"), weighted, relabelled.mean(), nothing, nothing, nothing)
    assert total.item() == pytest.approx(0.9433543072, abs=3e-7)


# ------------------------------------------------------------------------------------------------------- the objective


def test_the_weak_view_alone_moves_running_statistics(make: Make) -> None:
    """BatchNorm's momentum of .1 on the weak view's statistics; with `all` strong and mixed images move them, too."""
    moved = {}
    for who in ("weak", "all"):
        method = make(batch_norm=who)
        task = method.task
        batch = method.batch(task.labelled[:16], task.probe[:8])
        layer = next(part for part in method.learner.network.modules() if isinstance(part, nn.BatchNorm2d))
        seen: list[Tensor] = []
        layer.register_forward_hook(lambda _, given, __, seen=seen: seen.append(given[0].detach()))
        before = layer.running_mean.clone()
        method.objective(method.learner.network.train(), batch)
        expected = before
        for images in seen[: 1 if who == "weak" else 3]:
            expected = 0.9 * expected + 0.1 * images.mean((0, 2, 3))
        assert len(seen) == 3  # weak, strong, mixed
        assert_close(layer.running_mean, expected)
        moved[who] = layer.running_mean
    assert not torch.equal(moved["weak"], moved["all"])


class Linear(nn.Module):
    """(B, 1, 1, 3) -> (B, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = torch.tensor([[1.0, -0.5, 0.2], [0.3, 0.8, -1.0], [-0.7, 0.1, 0.6]])

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1) @ self.kernel.T


@pytest.mark.parametrize("normalised", [False, True])
@pytest.mark.parametrize("views", [2, 3])
def test_objective_against_numpy(make: Make, views: int, normalised: bool) -> None:
    method = make(views=views, logit_norm=normalised)
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    size, total = 4, 4 * (1 + views)
    batch = IegBatch(
        views=[draw(size, 1, 1, 3) for _ in range(views)],
        given=torch.eye(3)[torch.tensor([0, 1, 2, 0])],
        guess=draw(size, 3).softmax(-1),
        weights=torch.tensor([0.5, 0, 0.2, 0.3]),
        coefficients=torch.tensor([1.0, 0, 0, 1]),
        mixed=draw(total, 1, 1, 3),
        mixed_targets=draw(total, 3).softmax(-1),
        counted=torch.tensor([1.0, 1, 1, 1, *[1.0, 0, 1, 0] * (views - 1)]),
    )

    def z(images: Tensor) -> np.ndarray:
        return images.flatten(1).double().numpy() @ Linear().kernel.double().numpy().T

    def log_p(z: np.ndarray) -> np.ndarray:
        return z - np.log(np.exp(z).sum(-1, keepdims=True))

    y, g, w, chosen = (t.double().numpy() for t in (batch.given, batch.guess, batch.weights, batch.coefficients))
    weak = log_p(z(batch.views[0]))
    weighted = -(w * ((0.9 * y + 0.1 * g) * weak).sum(-1)).sum()
    relabelled = -(np.where(chosen[:, None] > 0, y, g) * weak).sum(-1).mean()
    groups = np.split(z(batch.mixed), 1 + views)
    if normalised:
        groups = [group / np.sqrt((group**2).mean() + 1e-8) for group in groups]
    each = -(batch.mixed_targets.double().numpy() * log_p(np.concatenate(groups))).sum(-1)
    counted = batch.counted.numpy() > 0
    consistency = np.mean([(np.exp(weak) * (weak - log_p(z(view)))).sum(-1).mean() for view in batch.views[1:]])
    expected = weighted + relabelled + each[:4].mean() + 5 * each[4:][counted].mean() + 20 * consistency
    assert method.objective(Linear(), batch).item() == pytest.approx(expected, rel=1e-5)  # type: ignore[arg-type]


# ----------------------------------------------------------------------------------------------------------- one batch


def first(method: Method, size: int = 12) -> IegBatch:
    return method.batch(method.task.labelled[:size], method.task.probe)


def test_a_batch(make: Make) -> None:
    method = make(views=3, mixup="none")
    before = {name: tensor.clone() for name, tensor in method.learner.network.state_dict().items()}
    batch = first(method)
    assert [len(view) for view in batch.views] == [12, 12, 12]
    assert_close(batch.guess.sum(-1), torch.ones(12))
    assert 0 < batch.weights.sum() <= 1 + 1e-6 and (batch.weights >= 0).all()
    assert set(batch.coefficients.tolist()) <= {0.0, 1.0}
    assert torch.equal(batch.mixed[12:], torch.cat(batch.views))  # unmixed; without a threshold everybody keeps g
    assert torch.equal(batch.mixed_targets[12:], batch.guess.repeat(3, 1))
    assert (batch.counted == 1).all()
    trusted = batch.mixed_targets[:12]
    assert trusted.sum(-1).tolist() == [1] * 12 and set(trusted.flatten().tolist()) == {0.0, 1.0}
    tensors = (batch.guess, batch.weights, batch.coefficients, batch.mixed, batch.mixed_targets)
    assert not any(tensor.requires_grad for tensor in tensors)  # no gradient through a pseudo-label
    assert all(torch.equal(tensor, before[name]) for name, tensor in method.learner.network.state_dict().items())
    beliefs = method.beliefs()
    assert torch.equal(beliefs.coefficient[:12], batch.coefficients) and beliefs.coefficient[12:].isnan().all()
    refined = torch.where(batch.coefficients[:, None] > 0, batch.given, batch.guess)
    assert torch.equal(beliefs.labels[:12], refined) and beliefs.labels[12:].isnan().all()
    assert torch.equal(beliefs.clean[:12], batch.weights)


def test_the_split_by_threshold(make: Make) -> None:
    method = make(views=2, mixup="none", threshold=1.0)
    batch = first(method)
    believed = batch.weights >= 1 / 12
    assert 0 < believed.sum() < 12
    _, weak, strong = batch.mixed.split(12)
    _, weak_targets, strong_targets = batch.mixed_targets.split(12)
    assert torch.equal(weak, batch.views[0]) and torch.equal(weak_targets, strong_targets)
    assert torch.equal(weak_targets, torch.where(believed[:, None], batch.given, batch.guess))
    assert torch.equal(strong[~believed], batch.views[1][~believed])
    assert torch.equal(batch.counted, torch.cat([torch.ones(12), (~believed).float()]))


def test_mixed_images_are_mainly_themselves(make: Make) -> None:
    plain, mixed = first(make(mixup="none")), first(make())
    keep = (mixed.mixed_targets * plain.mixed_targets).sum(-1) / plain.mixed_targets.square().sum(-1)
    assert (keep > 0.49).all() and keep.mean() < 0.99


def test_pseudo_labels_and_coefficients_do_not_need_the_other_terms(make: Make) -> None:
    """The official code loses its pseudo-labels with p = 0."""
    method = make(mixed_weight=0.0, consistency_weight=0.0, use_probe=False)
    scalars = method.train_epoch(0)
    assert scalars["loss"].isfinite() and 0 < scalars["share_weighted"] < 1
    assert not method.beliefs().labels.isnan().all()


def test_without_weights_coefficients_and_threshold_there_is_no_meta_step(make: Make, monkeypatch: Any) -> None:
    method = make(use_weights=False, use_coefficients=False)
    monkeypatch.setattr(method.learner, "virtual", lambda *_, **__: pytest.fail("a meta step for nobody"))
    assert method.train_epoch(0)["loss"].isfinite()


def test_all_weights_zero_is_finite(make: Make, monkeypatch: Any) -> None:
    method = make(threshold=1.0)
    monkeypatch.setattr(method.learner, "virtual", lambda *_, **__: [torch.ones(16), torch.ones(16)])
    scalars = method.train_epoch(0)
    assert scalars["loss"].isfinite() and scalars["share_weighted"] == 0 and scalars["coefficient"] == 0
    assert all(tensor.isfinite().all() for tensor in method.learner.parameters)


def test_modes_train_alike(make: Make) -> None:
    exact, fast = make(meta_gradient="exact"), make(meta_gradient="jvp")
    one, other = first(exact), first(fast)
    assert_close(other.weights, one.weights, rtol=1e-3, atol=1e-5)
    assert torch.equal(other.coefficients, one.coefficients)
    assert_close(fast.train_epoch(0)["loss"], exact.train_epoch(0)["loss"], rtol=1e-3, atol=0)


# ------------------------------------------------------------------------------------------------------------ sentences


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"views": 1}, "one view is consistent with nothing"),
        ({"optimizer": {"kind": "adamw"}}, "meta_momentum goes on with sgd's momentum"),
        ({"optimizer": {"kind": "sgd", "momentum": 0}}, "meta_momentum goes on with sgd's momentum"),
    ],
)
def test_bad_combinations(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Config(**fields)


def test_one_view_and_no_consistency(make: Make) -> None:
    method = make(views=1, consistency_weight=0.0)
    assert method.train_epoch(0)["loss"].isfinite()


def test_without_a_probe_there_is_a_sentence(tiny: Callable[..., Trial], build: Callable[[Trial], Any]) -> None:
    with pytest.raises(DataError, match=r"^ieg learns from trusted images: give the trial a probe"):
        build(tiny("ieg", {"probe": 0}))
