"""DivideMix: division, targets, loss, views, who learns from whom, and each switch."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.testing import assert_close

from lnl.functional import losses, targets
from lnl.functional.targets import co_guess, co_refine
from lnl.methods.dividemix import Config, DivideMixBatch, Method
from lnl.networks import Network
from lnl.training import task as task_module
from lnl.training.task import Noise, order
from lnl.trial.config import Trial
from lnl.trial.run import run

Make = Callable[..., Method]
IDENTITY = Network(nn.Identity(), {"classifier": nn.Identity()})


@pytest.fixture
def make(tiny: Callable, build: Callable) -> Make:
    """`make(views=1)`: the method before its first step, without warm-up."""

    def made(**settings: Any) -> Method:
        changes = {name if name == "epochs" else f"method.{name}": value for name, value in settings.items()}
        return build(tiny("dividemix", {"method.warm_up": 0, **changes})).method

    return made


def close(actual: Any, expected: Any) -> None:
    actual = torch.as_tensor(actual).double()
    assert_close(actual, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-5)


def states(method: Method) -> list[dict[str, Tensor]]:
    return [copy.deepcopy(learner.network.state_dict()) for learner in method.learners]


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor], part: str = "") -> bool:
    return all(torch.equal(one[name], other[name]) for name in one if name.startswith(part))


def batch_of(method: Method, net: int = 0, size: int = 8, weight: float = 1.0, clean: float = 0.5) -> DivideMixBatch:
    first, second = torch.arange(size), torch.arange(size, 2 * size)
    return method.mixed_batch(net, first, second, torch.full((size,), clean), weight)


# ------------------------------------------------------------------------------------------------------- known answers


def softmaxes(*logits: list[float]) -> Tensor:
    return torch.tensor(logits).float().softmax(-1).unsqueeze(1)


def test_co_refinement() -> None:  # D6
    predictions, given = softmaxes([2, 1, 0], [0, 1, 0]), torch.tensor([[1.0, 0, 0]])
    close(predictions.mean(0), [[0.438591, 0.410423, 0.150986]])
    close(co_refine(given, torch.tensor([0.6]), predictions, 1.0), [[0.775437, 0.164169, 0.060394]])
    close(co_refine(given, torch.tensor([0.6]), predictions, 0.5), [[0.951576, 0.042651, 0.005772]])
    assert torch.equal(co_refine(given, torch.ones(1), predictions, 0.5), given)
    assert_close(co_refine(given, torch.zeros(1), predictions, 0.5), targets.sharpen(predictions.mean(0), 0.5))


def test_co_guessing() -> None:  # D7
    predictions = softmaxes([2, 1, 0], [0, 1, 0], [0, 0, 1], [1, 0, 1])
    close(co_guess(predictions, 1.0), [[0.377861, 0.297037, 0.325102]])
    close(co_guess(predictions, 0.5), [[0.424052, 0.262046, 0.313902]])


@pytest.mark.parametrize(("temperature", "expected"), [(0.5, [0.657895, 0.236842, 0.105263]), (1.0, [0.5, 0.3, 0.2])])
def test_guesses_are_sharpened(temperature: float, expected: list[float]) -> None:  # D5
    close(co_guess(torch.tensor([[[0.5, 0.3, 0.2]]]), temperature), [expected])


@pytest.mark.parametrize(
    ("lambda_u", "warm_up", "expected"),
    [
        (25.0, 10, {9: 0, 10: 0, 10.5: 0.78125, 11: 1.5625, 14: 6.25, 18: 12.5, 26: 25, 40: 25}),
        (150.0, 30, {30: 0, 31: 9.375, 38: 75, 46: 150}),
    ],
)
def test_weight_of_the_unlabelled_loss(make: Make, lambda_u: float, warm_up: int, expected: dict[float, float]) -> None:
    method = make(lambda_u=lambda_u, warm_up=warm_up, epochs=50)  # D8
    assert {epoch: method.weight(epoch) for epoch in expected} == expected
    assert make(lambda_u=lambda_u, warm_up=warm_up, epochs=50, ramp=0).weight(warm_up) == lambda_u


def test_history_of_losses(make: Make) -> None:  # D9
    method = make(co_divide=False, co_guess=False, ensemble="first")
    images = len(method.task.labelled) // 2
    for epoch, row in enumerate([[0.1, 0.2], [0.3, 0.2], [0.5, 0.6], [0.7, 0.8], [0.9, 1.0], [1.0, 0.0]]):
        mean = method.divider.averaged(torch.tensor(row).repeat(images).view(1, 1, -1))
        if epoch < 2:
            close(mean[0, 0, :2], [[0.1, 0.2], [0.2, 0.2]][epoch])
    close(mean, [[[0.68, 0.52] * images]])


LOGITS = torch.tensor([[1.0, 0, -1], [0, 2, 0], [0, 0, 0], [3, 0, 0]])
TARGETS = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.9, 0.05, 0.05], [0.2, 0.3, 0.5]])


def test_loss(make: Make) -> None:  # D10
    labelled, unlabelled, prior = 0.723575, 0.209438, 0.123989
    for weight in (0.0, 2.0):
        batch = DivideMixBatch(LOGITS, TARGETS, weight)
        close(make().objective(IDENTITY, batch), labelled + weight * unlabelled + prior)
        close(make(prior=False).objective(IDENTITY, batch), labelled + weight * unlabelled)
    close(make().objective(IDENTITY, DivideMixBatch(LOGITS, TARGETS, 25.0)), 6.083526)


@pytest.mark.parametrize("seed", range(5))
def test_loss_against_numpy(make: Make, seed: int) -> None:
    generator = np.random.default_rng(seed)
    logits, soft = generator.normal(size=(12, 7)), generator.dirichlet(np.ones(7), 12)
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    expected = -(soft[:6] * np.log(p[:6])).sum(1).mean() + 3 * ((p[6:] - soft[6:]) ** 2).mean()
    expected += (np.log(1 / 7 / p.mean(0)) / 7).sum()
    batch = DivideMixBatch(torch.tensor(logits).float(), torch.tensor(soft).float(), 3.0)
    close(make().objective(IDENTITY, batch), expected)


def test_confidence_penalty(make: Make) -> None:  # D11
    close(losses.negative_entropy(torch.tensor([[0.0, 0, 0], [2, 1, 0]])), [-1.098612, -0.832396])
    assert losses.negative_entropy(torch.tensor([200.0, 0, 0])) == 0  # p log p by p.log() would be NaN
    logits = np.random.default_rng(0).normal(size=(20, 7))
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    close(losses.negative_entropy(torch.tensor(logits)), (p * np.log(p)).sum(1).tolist())
    batch = torch.tensor([[2.0, 1, 0]]), torch.tensor([0])
    close(make(confidence_penalty=1.0).warm_up_objective(IDENTITY, batch), -0.424790)
    close(make().warm_up_objective(IDENTITY, batch), -0.424790 + 0.832396)


def test_one_mixing_coefficient_for_a_batch() -> None:  # D12
    values = torch.tensor([[1.0], [2], [3], [4]])
    mixed, _ = targets.mixup(values, values, torch.tensor([2, 0, 3, 1]), torch.tensor([0.7]))
    close(mixed, [[1.6], [1.7], [3.3], [3.4]])


class Constant(nn.Module):
    def __init__(self, logits: list[float]) -> None:
        super().__init__()
        self.answer = torch.tensor(logits)

    def forward(self, images: Tensor) -> Tensor:
        return self.answer.expand(len(images), -1)


@pytest.mark.parametrize(
    ("ensemble", "expected"),
    [
        ("logits", torch.tensor([1.0, 1.5, 0]).softmax(-1).tolist()),  # their sum, and class 1
        ("probabilities", [0.497967, 0.477107, 0.024926]),  # class 0
        ("first", [0.995067, 0.002467, 0.002467]),
    ],
)
def test_ensemble(make: Make, ensemble: str, expected: list[float]) -> None:  # D13
    method = make(ensemble=ensemble)
    method.first.network = Network(nn.Identity(), {"classifier": Constant([6.0, 0, 0])})
    method.second.network = Network(nn.Identity(), {"classifier": Constant([-4.0, 3, 0])})
    close(method.predict(torch.zeros(2, 1, 8, 8)), [expected] * 2)


# ------------------------------------------------------------------------------------------------------------ division


def test_losses_are_those_of_each_network_at_rest(make: Make) -> None:
    method = make()
    task, before = method.task, states(method)
    division = method.divider.divide()
    assert all(same(one, other) for one, other in zip(states(method), before, strict=True))
    images = task.views["none"](task.images[task.labelled], torch.Generator())
    for net, learner in enumerate(method.learners):
        loss = functional.cross_entropy(
            learner.network.eval()(images), task.labels[task.labelled], reduction="none"
        ).detach()
        assert_close(division.loss[net], (loss - loss.min()) / (loss.max() - loss.min()))
    assert not torch.equal(division.loss[0], division.loss[1])


def test_parts_are_disjoint_and_complete(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:  # D14
    method, drawn = make(), []
    monkeypatch.setattr(task_module, "order", lambda pool, *rest: drawn.append(pool) or order(pool, *rest))

    scalars = method.train_epoch(0)
    everybody = list(range(len(method.task.labelled)))
    for labelled, unlabelled, count in (
        (drawn[0], drawn[1], scalars["labelled_second"]),
        (drawn[2], drawn[3], scalars["labelled_first"]),
    ):
        assert sorted([*labelled.tolist(), *unlabelled.tolist()]) == everybody
        assert len(labelled) == count


@pytest.mark.parametrize(("co_divide", "judges"), [(True, [1, 0]), (False, [0, 1])])
def test_who_learns_from_whose_division(
    make: Make, monkeypatch: pytest.MonkeyPatch, co_divide: bool, judges: list[int]
) -> None:
    method = make(co_divide=co_divide)
    before = copy.deepcopy(method).divider.divide()
    seen: list[tuple[Tensor, Tensor]] = []
    learn = method._learn

    def spy(net: int, epoch: int, clean: Tensor, selected: Tensor) -> Tensor:
        seen.append((clean, selected))
        return learn(net, epoch, clean, selected)

    monkeypatch.setattr(method, "_learn", spy)
    method.train_epoch(0)
    for (clean, selected), judge in zip(seen, judges, strict=True):  # both before the first network learned
        assert torch.equal(clean, before.clean[judge]) and torch.equal(selected, before.selected[judge])
    assert not torch.equal(before.clean[0], before.clean[1])


def with_signals(method: Method, *signals: Tensor) -> Method:
    """The division finds these (L,), one per network, instead of losses."""
    method.divider.signals = lambda net: signals[net].unsqueeze(0)
    return method


def modes(apart: float) -> Tensor:
    """Two halves of 50 signals, normal with deviation 0.1 about 0.3 and `apart` above it."""
    normal = torch.special.ndtri((torch.arange(25) + 0.5) / 25)
    return torch.stack([0.3 + 0.1 * normal, 0.3 + apart + 0.1 * normal]).flatten()


def test_losses_are_averaged_where_their_first_mixture_overlaps(make: Make) -> None:
    clear, blurred = modes(0.6), modes(0.0)
    separated, overlapping = with_signals(make(), clear, clear), with_signals(make(), blurred, blurred)
    assert not separated.divider.divide().averaged
    assert overlapping.divider.divide().averaged
    for method, later in ((separated, blurred), (overlapping, clear)):  # the first division decided
        before, decided = method.division, method.divider.averaging.of(method.task.labelled)
        division = with_signals(method, later, later).divider.divide()
        assert before is None and torch.equal(division.averaged.float().expand(50), decided)
    assert_close(with_signals(separated, clear, clear).divider.divide().loss[0], clear)
    assert_close(with_signals(overlapping, clear, clear).divider.divide().loss[0], (blurred + 2 * clear) / 3)


@pytest.mark.parametrize(("setting", "averaged"), [("always", True), ("never", False)])
def test_averaging_by_order(make: Make, setting: str, averaged: bool) -> None:
    for apart in (0.0, 0.6):
        assert (
            with_signals(make(average_losses=setting), modes(apart), modes(apart)).divider.divide().averaged == averaged
        )


def test_history_goes_back_so_many_epochs(make: Make) -> None:
    method = make(average_losses="always", history=2)
    for value in (0.1, 0.2, 0.6):
        division = with_signals(method, modes(0.6) + value, modes(0.6) - value).divider.divide()
    assert_close(division.loss, torch.stack([modes(0.6) + 0.4, modes(0.6) - 0.4]))


@pytest.mark.parametrize("threshold", [0.0, 1.0])
def test_the_threshold_stays_within_the_probabilities(make: Make, threshold: float) -> None:
    method = with_signals(make(threshold=threshold), modes(0.3), modes(0.4))
    scalars = method.train_epoch(0)
    for which in ("first", "second"):
        assert 0 < scalars[f"labelled_{which}"] < 50
        assert scalars[f"threshold_{which}"] not in (0.0, 1.0)
    assert with_signals(make(), modes(0.3), modes(0.4)).train_epoch(0)["threshold_first"] == 0.5


def test_equal_losses_leave_everybody_clean_and_training_goes_on(make: Make) -> None:
    method = with_signals(make(), torch.zeros(50), torch.zeros(50))
    scalars = method.train_epoch(0)
    assert scalars["loss"].isfinite()
    assert scalars["labelled_first"] == scalars["labelled_second"] == 50


@pytest.mark.parametrize("source", ["neighbours", "fine"])
def test_division_by_features(make: Make, source: str) -> None:
    """Features that show the true class tell which given labels are wrong, whatever the losses."""
    method, place = make(split_source=source), torch.arange(50)
    true, wrong = place % 5, place < 12
    method.task.labels[method.task.labelled] = torch.where(wrong, (true + 1 + place % 3) % 5, true)
    noise = 0.1 * torch.randn(50, 96, generator=torch.Generator().manual_seed(0))
    for learner in method.learners:
        learner.features = lambda images: functional.one_hot(true, 96) + noise
    division = method.divider.divide()
    assert torch.equal(division.selected, ~wrong.expand(2, -1))
    assert division.mixture.shape == (2, 2, 3)


def test_product_and_both_see_loss_and_neighbours(make: Make) -> None:
    def clean(source: str) -> Tensor:
        return make(split_source=source).divider.divide().clean

    assert_close(clean("product"), clean("loss") * clean("neighbours"), atol=1e-5, rtol=1e-4)
    both = make(split_source="both")
    assert torch.equal(both.divider.signals(0)[:1], make().divider.signals(0))
    assert torch.equal(both.divider.signals(0)[1:], make(split_source="neighbours").divider.signals(0))


def test_initial_features_divide_alike_in_every_epoch(make: Make) -> None:
    fixed, current = make(split_source="fine", embedding="initial"), make(split_source="fine")
    found = []
    for method in (fixed, current):
        method.train_epoch(0)
        first = method.division
        method.train_epoch(1)
        found.append((first.loss, method.division.loss))
    assert torch.equal(*found[0]) and torch.equal(found[0][0], found[1][0])
    assert not torch.equal(*found[1])


def test_embedding_initial_needs_features() -> None:
    with pytest.raises(ValueError, match="embedding initial needs a split_source"):
        Config(embedding="initial")


# -------------------------------------------------------------------------------------------------------------- targets


def plain(method: Method, **settings: Any) -> DivideMixBatch:
    method.config = method.config.model_copy(update={"mixup": "none", **settings})
    return batch_of(method)


@pytest.mark.parametrize("views", [1, 2, 3])
def test_targets_by_own_and_other_network(make: Make, views: int) -> None:
    """Against predictions of copies of both networks on the batch's own images."""
    method = make(views=views)
    own, other = copy.deepcopy(method.first), copy.deepcopy(method.second)
    batch = plain(method, temperature=1.0)
    parts = batch.images.split(8)
    mine = torch.stack([own.guess(part) for part in parts])
    theirs = torch.stack([other.logits(part).softmax(-1) for part in parts])
    given = functional.one_hot(method.task.labels[method.task.labelled[:8]], 10).float()
    refined = 0.5 * given + 0.5 * mine[:views].mean(0)
    guessed = (mine[views:].mean(0) + theirs[views:].mean(0)) / 2
    assert_close(batch.targets, torch.cat([refined.repeat(views, 1), guessed.repeat(views, 1)]))
    assert_close(method.refined.of(method.task.labelled[:16])[:, 0], torch.cat([refined, guessed]))
    assert method.refined.of(method.task.labelled[:16])[:, 1].isnan().all()
    assert not batch.targets.requires_grad and batch.targets.grad_fn is None


def test_switches_of_the_targets(make: Make) -> None:
    full, given = plain(make()), plain(make(), refine=False)
    labels = functional.one_hot(make().task.labels[make().task.labelled[:8]], 10).float()
    assert torch.equal(given.targets[:16], labels.repeat(2, 1))
    assert torch.equal(given.targets[16:], full.targets[16:])
    alone = plain(make(), co_guess=False)
    assert torch.equal(alone.targets[:16], full.targets[:16])
    assert not torch.allclose(alone.targets[16:], full.targets[16:])


@pytest.mark.parametrize(("statistics", "updates"), [("moving", 4), ("batch", 0), ("running", 0)])
def test_who_moves_the_statistics_while_guessing(make: Make, statistics: str, updates: int) -> None:
    method = make(guess_statistics=statistics)
    before = states(method)
    batch = plain(method, temperature=1.0, co_guess=False)
    after = states(method)
    counts = {int(value) for name, value in after[0].items() if name.endswith("num_batches_tracked")}
    assert counts == {updates}
    assert same(after[1], before[1])
    still = copy.deepcopy(make().first)
    by_running = torch.stack([still.logits(part).softmax(-1) for part in batch.images[16:].split(8)]).mean(0)
    assert torch.allclose(batch.targets[16:24], by_running, atol=1e-6) == (statistics == "running")


def test_one_network_learns_while_the_other_rests(make: Make) -> None:  # D14
    method = make()
    division, before = method.divider.divide(), states(method)
    method._learn(0, 0, division.clean[1], division.selected[1])
    after = states(method)
    assert not same(after[0], before[0]) and same(after[1], before[1])


def test_what_a_step_gets(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trusted images with their probability, the others, and a weight that rises within an epoch."""
    method = make(lambda_u=16.0, ramp=1, epochs=3)
    division, steps = method.divider.divide(), []
    mix = method.mixed_batch
    monkeypatch.setattr(method, "mixed_batch", lambda *arguments: steps.append(arguments) or mix(*arguments))
    method._learn(0, 0, division.clean[1], division.selected[1])
    for _, labelled, unlabelled, clean, _ in steps:
        assert division.selected[1, labelled].all() and not division.selected[1, unlabelled].any()
        assert torch.equal(clean, division.clean[1, labelled])
    close([weight for *_, weight in steps], [0.0, 16 / 3, 32 / 3])


@pytest.mark.parametrize(("mixup", "coefficients"), [("batch", 1), ("image", 32), ("none", 0)])
def test_who_shares_a_mixing_coefficient(make: Make, mixup: str, coefficients: int) -> None:
    method, still = make(mixup=mixup), plain(make())
    batch = batch_of(method)
    if not coefficients:
        assert torch.equal(batch.images, still.images) and torch.equal(batch.targets, still.targets)
        return
    own, mixed = (torch.cat([one.images.flatten(1), one.targets], -1) for one in (still, batch))
    difference = own[:, None] - own
    share = ((mixed[:, None] - own) * difference).sum(-1) / difference.square().sum(-1)
    error = (share[..., None] * difference + own - mixed[:, None]).abs().amax(-1).nan_to_num(torch.inf)
    moved = (own != mixed).any(-1)
    found = share.gather(-1, error.argmin(-1, keepdim=True)).squeeze(-1)[moved]
    assert moved.sum() > 20 and error.min(-1).values[moved].max() < 1e-4
    assert found.min() >= 0.5 - 1e-4
    assert (found.max() - found.min() < 1e-3) == (coefficients == 1)


# --------------------------------------------------------------------------------------------------------------- views


def counted(method: Method) -> dict[str, int]:
    """How many images each view makes from now on."""
    counts: dict[str, int] = {}

    def counting(name: str, view: Callable) -> Callable:
        def call(images: Tensor, generator: torch.Generator) -> Tensor:
            counts[name] = counts.get(name, 0) + len(images)
            return view(images, generator)

        return call

    method.task = replace(method.task, views={name: counting(name, view) for name, view in method.task.views.items()})
    method.divider.task = method.task
    return counts


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, {"weak": 32}),  # Runtime-W, which is DivideMix
        ({"guess_view": "strong", "train_view": "strong"}, {"strong": 32}),  # Runtime-S
        ({"separate_views": True}, {"weak": 64}),  # AugDesc-WW
        ({"train_view": "strong"}, {"weak": 32, "strong": 32}),  # AugDesc-WS
    ],
)
def test_images_of_a_step(make: Make, settings: dict[str, Any], expected: dict[str, int]) -> None:
    method = make(**settings)
    counts = counted(method)
    batch_of(method)
    assert counts == expected


def test_one_set_of_views_is_guessed_on_and_learned_from(make: Make) -> None:
    """Runtime-W: bit for bit the images that the guesses were made on."""
    method = make()
    index = method.task.labelled[:16]
    index = torch.cat([index[:8].repeat(2), index[8:].repeat(2)])
    guessed_on = method.task.view(index, "weak", make().streams["augment"])
    assert torch.equal(plain(method).images, guessed_on)
    assert not torch.equal(plain(make(separate_views=True)).images, guessed_on)


@pytest.mark.parametrize("settings", [{"train_view": "strong"}, {"train_view": "none"}, {"separate_views": True}])
def test_the_descent_view_leaves_the_targets(make: Make, settings: dict[str, Any]) -> None:
    usual, other = batch_of(make()), batch_of(make(**settings))
    assert torch.equal(other.targets, usual.targets)
    assert not torch.equal(other.images, usual.images)


@pytest.mark.parametrize("guess_view", ["none", "strong"])
def test_the_analysis_view_leaves_the_images(make: Make, guess_view: str) -> None:
    usual, other = (batch_of(make(separate_views=True, guess_view=view)) for view in ("weak", guess_view))
    assert torch.equal(other.images, usual.images)
    assert not torch.equal(other.targets, usual.targets)


def test_looking_at_losses_moves_no_other_view(make: Make) -> None:
    batches = []
    for view in ("none", "weak"):
        method = make(loss_view=view)
        division = method.divider.divide()
        batches.append(batch_of(method))
    assert not torch.equal(division.loss, make().divider.divide().loss)
    assert torch.equal(batches[0].images, batches[1].images)
    assert torch.equal(batches[0].targets, batches[1].targets)


@pytest.mark.parametrize("field", ["warm_up_view", "loss_view"])
def test_views_of_warm_up_and_of_the_loss(make: Make, field: str) -> None:
    method = make(**{field: "strong", "warm_up": int(field == "warm_up_view")})
    counts = counted(method)
    method.train_epoch(0)
    assert counts == ({"strong": 2 * 3 * 32} if field == "warm_up_view" else {"strong": 100, "weak": 2 * 3 * 64})


# ------------------------------------------------------------------------------------------------------------- learning


def test_a_warm_up_of_the_head_alone(make: Make) -> None:
    method = make(warm_up=1, warm_up_updates="head")
    before = states(method)
    method.train_epoch(0)
    for now, then in zip(states(method), before, strict=True):
        assert same(now, then, "backbone.")
        assert not same(now, then, "heads.")
    method.train_epoch(1)
    assert not same(method.first.network.state_dict(), before[0], "backbone.")


def test_the_second_network_is_made_only_where_something_depends_on_it(make: Make) -> None:
    alone = {"co_divide": False, "co_guess": False}
    one, two = make(**alone, ensemble="first"), make(**alone, ensemble="probabilities")
    assert (len(one.learners), len(two.learners)) == (1, 2)
    for epoch in range(2):
        one.train_epoch(epoch), two.train_epoch(epoch)
    assert same(one.first.network.state_dict(), two.first.network.state_dict())
    assert not same(two.first.network.state_dict(), two.second.network.state_dict())
    for field, value in (("co_divide", True), ("co_guess", True), ("ensemble", "logits")):
        assert len(make(**{**alone, "ensemble": "first", field: value}).learners) == 2


def test_networks_differ_from_the_start(make: Make) -> None:
    method = make()
    assert not same(*states(method))


def test_an_epoch_is_a_pass_over_the_labelled_part(tiny: Callable, build: Callable) -> None:
    changes = {"steps": None, "unlabelled_ratio": 0.2, "method.batch_size": 4, "method.warm_up": 1}
    method = build(tiny("dividemix", changes)).method
    method.train_epoch(0)
    assert (method.first.done, method.second.done) == (7, 7)  # 50 images in batches of 8
    scalars = method.train_epoch(1)
    for learner, judge in ((method.first, "second"), (method.second, "first")):
        assert learner.done == 7 + int(np.ceil(int(scalars[f"labelled_{judge}"]) / 4))


@pytest.mark.slow
def test_with_unlabelled_images_an_epoch_is_as_long_as_that_of_other_methods(tiny: Callable, build: Callable) -> None:
    changes = {"steps": None, "unlabelled_ratio": 6, "method.batch_size": 8, "method.warm_up": 1}
    built = build(tiny("dividemix", changes))
    for epoch in range(2):
        built.method.train_epoch(epoch)
        assert built.method.first.done == (epoch + 1) * 19 == (epoch + 1) * built.task.steps_per_epoch(16)


def rates(method: Method, epochs: int) -> list[list[float]]:
    """Learning rates of the first network's steps, by epoch."""
    found: list[list[float]] = []
    (optimizer,) = method.first.optimizers.values()
    step = optimizer.step
    optimizer.step = lambda: (found[-1].append(optimizer.param_groups[0]["lr"]), step())[-1]
    for epoch in range(epochs):
        found.append([])
        method.train_epoch(epoch)
    return found


@pytest.mark.parametrize("schedule", ["step", "cosine"])
def test_the_learning_rate_goes_by_epochs_whatever_their_lengths(
    tiny: Callable, build: Callable, schedule: str
) -> None:
    changes = {"steps": None, "unlabelled_ratio": 0.2, "epochs": 4}
    changes |= {"method.batch_size": 4, "method.optimizer.schedule": schedule}
    found = rates(build(tiny("dividemix", changes)).method, 4)
    assert len({len(epoch) for epoch in found}) > 1
    for epoch, values in enumerate(found):
        progress = (epoch + np.arange(len(values)) / len(values)) / 4
        expected = np.where(progress < 0.5, 1, 0.1) if schedule == "step" else (1 + np.cos(np.pi * progress)) / 2
        assert values == pytest.approx(0.02 * expected)


@pytest.mark.parametrize("warm_up", [2, 10])
def test_a_run_of_nothing_but_warm_up_is_refused(make: Make, warm_up: int) -> None:
    sentence = rf"^A warm-up of {warm_up} epochs leaves none of 2 for DivideMix: [^\n]+\.$"
    with pytest.raises(ValueError, match=sentence):
        make(warm_up=warm_up)


def test_a_warm_up_of_the_head_needs_a_warm_up() -> None:
    with pytest.raises(ValueError, match="warm_up_updates head needs a warm-up"):
        Config(warm_up=0, warm_up_updates="head")


def test_beliefs(make: Make) -> None:
    method = make(warm_up=1)
    method.train_epoch(0)
    assert set(vars(method.beliefs()).values()) == {None}
    method.train_epoch(1)
    beliefs, division = method.beliefs(), method.division
    assert torch.equal(beliefs.selected == 1, division.clean > division.threshold[:, None])
    assert torch.equal(beliefs.clean, division.clean) and torch.equal(beliefs.loss, division.loss)
    known = beliefs.labels.isfinite().all(-1)
    assert beliefs.labels.shape == (2, 50, 10) and known.double().mean() > 0.8
    assert_close(beliefs.labels[known].sum(-1), torch.ones(int(known.sum())))


@pytest.mark.slow
def test_it_finds_wrong_labels_and_does_not_learn_them() -> None:
    trial = Trial(
        method={"name": "dividemix", "batch_size": 32, "warm_up": 4, "ramp": 4},
        dataset="digits",
        network="small_convnet",
        labels=400,
        noise=Noise("symmetric", 0.5),
        epochs=7,
        steps=12,
    )
    rows = list(run(trial))
    auc = [row.metrics["oracle", "selection_auc"] for row in rows[4:]]
    last = rows[-1].metrics
    assert auc[-1] > max(0.95, auc[0])
    assert last["oracle", "memorised"] < 0.05
    assert last["test", "accuracy"] > 0.85
