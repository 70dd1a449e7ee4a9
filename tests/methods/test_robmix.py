"""RobMix: what its arms have in common, exactly, and where they part."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from lnl.functional import losses
from lnl.functional.gradients import GradNorm
from lnl.training.mixmatch_update import mixmatch_batch, mixmatch_loss
from lnl.training.task import order
from lnl.trial.config import Trial
from lnl.trial.run import run

Train = Callable[..., Any]
PLAIN = {"optimizer.kind": "sgd", "optimizer.momentum": 0.0, "optimizer.weight_decay": 0.0}
SGD = {**PLAIN, "optimizer.learning_rate": 0.05}
MOMENTUM = {**SGD, "optimizer.momentum": 0.9}
ADAM = {"optimizer.kind": "adam", "optimizer.weight_decay": 0.0}
ADAMW = {"optimizer.kind": "adamw", "optimizer.weight_decay": 0.02}
ALTERNATE = {"optimizers": "two_owner", "sync": "alternate"}
UNIT_STEP = {**PLAIN, "optimizer.learning_rate": 1.0}  # a step is then the gradient


@pytest.fixture(scope="session")
def trial(tiny: Callable[..., Trial]) -> Callable[..., Trial]:
    """`trial({"head_update": "frozen"}, steps=1)`: fields of the method in the mapping, of the trial behind it."""

    def make(method: dict[str, Any] | None = None, **settings: Any) -> Trial:
        return tiny("robmix", {**settings, **{f"method.{name}": value for name, value in (method or {}).items()}})

    return make


@pytest.fixture(scope="session")
def train(trial: Callable[..., Trial], build: Callable) -> Train:
    """The method after all epochs of `trial(...)`, or after the first `epochs_done`."""

    def make(method: dict[str, Any] | None = None, epochs_done: int | None = None, **settings: Any) -> Any:
        wanted = trial(method, **settings)
        built = build(wanted).method
        for epoch in range(wanted.total_epochs if epochs_done is None else epochs_done):
            built.train_epoch(epoch)
        return built

    return make


def state(method: Any, *parts: str) -> dict[str, Tensor]:
    """Weights and statistics below the given parts; by default of the whole network."""
    everything = method.learner.network.state_dict()
    return {name: value for name, value in everything.items() if name.startswith(parts or "")}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Bit for bit."""
    assert one and one.keys() == other.keys()
    return all(torch.equal(one[name], other[name]) for name in one)


def distance(one: Any, other: Any) -> float:
    """Largest difference of a weight."""
    pairs = zip(one.learner.parameters, other.learner.parameters, strict=True)
    return max(float((a - b).detach().abs().max()) for a, b in pairs)


# ----------------------------------------------------------------------------------------------------------- optimizers


@pytest.mark.parametrize(
    ("topology", "optimizer"),
    [
        pytest.param("joint_two_head", MOMENTUM, id="joint-momentum"),
        pytest.param("joint_two_head", ADAMW, id="joint-adamw"),
        pytest.param("alternating_epoch", MOMENTUM, id="alternating-momentum"),
        pytest.param("alternating_epoch", ADAMW, id="alternating-adamw"),
    ],
)
def test_an_optimizer_per_module_is_one_optimizer(train: Train, topology: str, optimizer: dict) -> None:
    base = {**optimizer, "topology": topology}
    assert same(state(train({**base, "optimizers": "per_module"})), state(train(base)))


@pytest.mark.parametrize("optimizer", [SGD, MOMENTUM], ids=["plain", "momentum"])
def test_two_owners_are_one_optimizer_under_sgd(train: Train, optimizer: dict) -> None:
    """But for rounding, which grows where it meets a kink of the network: hence two steps."""
    single, two = (train({**optimizer, "optimizers": owners}, epochs=1, steps=2) for owners in ("single", "two_owner"))
    assert distance(two, single) < 1e-6


@pytest.mark.parametrize("optimizer", [SGD, MOMENTUM, ADAM, ADAMW], ids=["sgd", "momentum", "adam", "adamw"])
def test_alternating_owners_differ_from_one_optimizer_and_from_owners_together(train: Train, optimizer: dict) -> None:
    alternate = train({**optimizer, **ALTERNATE})
    assert distance(alternate, train(optimizer)) > 1e-3
    assert distance(alternate, train({**optimizer, "optimizers": "two_owner"})) > 1e-3


def test_alternating_owners_step_one_after_the_other(train: Train) -> None:
    """L1's step, then L2's at the new weights: with one step an epoch, what `alternating_epoch` does."""
    alternate = train({**SGD, **ALTERNATE}, epochs=3, steps=1)
    assert distance(alternate, train({**SGD, "topology": "alternating_epoch"}, epochs=3, steps=1)) == 0


def test_two_owners_make_lambda_meaningless_under_adam(train: Train) -> None:
    def effect(optimizers: str) -> Tensor:
        base = {**ADAM, "optimizers": optimizers}
        low, high = (train({**base, "lambda_mixmatch": value}).learner.parameters for value in (2.0, 20.0))
        return torch.cat([(a - b).detach().abs().flatten() for a, b in zip(low, high, strict=True)])

    # Not 0: Adam's epsilon counts beside gradients as small as itself, so leave out the percent that differs most.
    assert effect("two_owner").quantile(0.99) < effect("single").quantile(0.99) / 100


@pytest.mark.parametrize("optimizer", [MOMENTUM, ADAMW], ids=["sgd", "adamw"])
def test_not_updating_the_projection_is_freezing_it(train: Train, optimizer: dict) -> None:
    left_out = train({**optimizer, "optimizers": "per_module", "updated": "classifier"})
    frozen = train({**optimizer, "head_update": "frozen"})
    assert same(state(left_out), state(frozen))


@pytest.mark.parametrize("optimizers", ["per_module", "two_owner"])
def test_updating_the_projection_only_leaves_the_classifier(train: Train, optimizers: str) -> None:
    method, start = train({"optimizers": optimizers, "updated": "projection"}), train(epochs_done=0)
    assert same(state(method, "heads.classifier"), state(start, "heads.classifier"))
    assert not same(state(method, "heads.projection"), state(start, "heads.projection"))
    assert not same(state(method, "backbone"), state(start, "backbone"))


@pytest.mark.parametrize("sync", ["together", "alternate"])
def test_two_owners_of_which_one_steps_are_mixmatch(train: Train, sync: str) -> None:
    method = train({"optimizers": "two_owner", "updated": "classifier", "sync": sync})
    assert same(state(method), state(train({"topology": "mixmatch_only"})))  # the projection moves in neither


def test_pretraining_by_two_owners_is_pretraining_by_one(train: Train) -> None:
    base = {**SGD, "pretrain_epochs": 1}
    one, two = train(base, epochs_done=1), train({**base, "optimizers": "two_owner"}, epochs_done=1)
    assert distance(one, two) < 1e-6


# ----------------------------------------------------------------------------------------------------------------- head


@pytest.mark.parametrize("topology", ["joint_two_head", "alternating_epoch", "simclr_then_linear"])
def test_a_frozen_projection_never_moves(train: Train, topology: str) -> None:
    frozen, trained, start = (
        state(train({"topology": topology, **settings}, **after), "heads.projection")
        for settings, after in [({"head_update": "frozen"}, {}), ({}, {}), ({}, {"epochs_done": 0})]
    )
    assert same(frozen, start)
    assert not same(trained, start)


def test_a_frozen_projection_still_passes_its_gradient_on(train: Train) -> None:
    frozen, trained = (train({"head_update": update}, epochs=1, steps=1) for update in ("frozen", "train"))
    assert same(state(frozen, "backbone", "heads.classifier"), state(trained, "backbone", "heads.classifier"))


@pytest.mark.parametrize("topology", ["joint_two_head", "alternating_epoch", "simclr_then_linear"])
def test_a_projection_is_frozen_from_the_stated_share_on(train: Train, topology: str) -> None:
    """Of four epochs, from 0.5 on: after two."""
    settings = {"topology": topology, "head_update": "frozen_after", "head_frozen_from": 0.5}
    heads = [state(train(settings, epochs=4, epochs_done=done), "heads.projection") for done in range(5)]
    assert [same(heads[done], heads[done + 1]) for done in range(4)] == [False, False, True, True]


def test_within_an_epoch_the_share_counts_steps(train: Train) -> None:
    """In one epoch of four steps, from 0.5 on: neither all of it nor none."""
    settings = {**SGD, "head_update": "frozen_after", "lambda_mixmatch": 0.0}
    half = train({**settings, "head_frozen_from": 0.5}, epochs=1, steps=4)
    none, all_of_it = (train({**settings, "head_frozen_from": share}, epochs=1, steps=4) for share in (0.0, 1.0))
    start = state(train(epochs_done=0), "heads.projection")
    heads = [state(method, "heads.projection") for method in (none, half, all_of_it)]
    assert same(heads[0], start)
    assert not same(heads[1], start) and not same(heads[1], heads[2])


def test_a_projection_can_be_trained_in_pretraining_only(train: Train) -> None:
    settings = {"pretrain_epochs": 1, "head_update": "frozen_pretrained"}
    start, pretrained, end = (state(train(settings, epochs_done=done), "heads.projection") for done in (0, 1, 3))
    assert not same(pretrained, start)
    assert same(end, pretrained)


# ------------------------------------------------------------------------------------------------------------- gradient


def test_a_stopped_gradient_is_mixmatch_with_a_probe(train: Train) -> None:
    """All steps of both heads' training: L1 moves the projection only."""
    stopped, mixmatch = train({"head_gradient": "stop"}), train({"topology": "mixmatch_only"})
    assert same(state(stopped, "backbone", "heads.classifier"), state(mixmatch, "backbone", "heads.classifier"))
    assert not same(state(stopped, "heads.projection"), state(mixmatch, "heads.projection"))


@pytest.fixture
def first_step(trial: Callable[..., Trial], build: Callable) -> Callable[..., tuple[Any, ...]]:
    """`first_step(settings)`: a fresh method, L1 and λ·L2 of its first batch, what L1's head sees of it, then what its
    first step takes off each weight, which is the gradient, and that step's scalars.

    The losses are put together here, from the streams' first draws; in replicate 1 their gradients conflict.
    """

    def make(settings: dict[str, Any]) -> tuple[Any, ...]:
        stepped, fresh = (
            build(trial({**UNIT_STEP, **settings}, epochs=1, steps=1, replicate=1)).method for _ in range(2)
        )
        before = [tensor.detach().clone() for tensor in stepped.learner.parameters]
        scalars = stepped.train_epoch(0)
        moved = [old - new.detach() for old, new in zip(before, stepped.learner.parameters, strict=True)]

        config, task, streams, network = fresh.config, fresh.task, fresh.streams, fresh.learner.network.train()
        labelled = order(task.labelled, 16, 1, streams["order"])[0]
        unlabelled = order(task.unlabelled, 16, 1, streams["order/unlabelled"])[0]
        views = task.view(torch.cat([labelled, unlabelled]).repeat(2), "contrastive", streams["augment/contrastive"])
        features = network.features(views)
        first, second = network.heads["projection"](features).chunk(2)
        contrastive = losses.nt_xent(first, second, config.contrastive_temperature).mean()
        mixed = mixmatch_batch(config, task, fresh.learner, streams, labelled, unlabelled, 0.0)
        mixmatch = config.lambda_mixmatch * mixmatch_loss(network, mixed, config.batch_norm)
        return fresh.learner, contrastive, mixmatch, features, moved, scalars

    return make


def of(loss: Tensor, learner: Any) -> list[Tensor]:
    return list(torch.autograd.grad(loss, learner.parameters, retain_graph=True, materialize_grads=True))


@pytest.mark.parametrize(
    ("settings", "factor"),
    [
        ({}, 1.0),
        ({"lambda_mixmatch": 3.0, "contrastive_temperature": 0.1}, 1.0),
        ({"head_gradient": "stop"}, 0.0),
        ({"head_gradient": "scale", "gradient_scale": 0.1}, 0.1),
        ({"head_gradient": "scale", "gradient_scale": 10.0, "lambda_mixmatch": 3.0}, 10.0),
        ({"head_gradient": "reverse"}, -1.0),
        ({"head_gradient": "reverse", "gradient_scale": 0.5}, -0.5),
        ({"head_gradient": "clip", "gradient_clip": 1e6}, 1.0),
        ({"head_gradient": "clip", "gradient_clip": 0.01}, None),  # that of the clipping
        ({"head_gradient": "scale_head", "gradient_scale": 0.1}, 1.0),
    ],
)
def test_the_backbone_steps_on_a_factor_of_l1_plus_l2(first_step: Callable, settings: dict, factor: float) -> None:
    """Against torch.autograd.grad of a·L1 + λ·L2; heads always get their own loss at full rate, but for scale_head."""
    learner, contrastive, mixmatch, features, moved, scalars = first_step(settings)
    if factor is None:
        arriving = torch.autograd.grad(contrastive, features, retain_graph=True)[0].norm()
        assert arriving > 0.01
        factor = 0.01 / float(arriving)
    of_head = 0.1 if settings.get("head_gradient") == "scale_head" else 1.0
    on_backbone, on_heads = of(factor * contrastive + mixmatch, learner), of(of_head * contrastive + mixmatch, learner)
    for position, gradient in enumerate(moved):
        expected = on_backbone if position in learner.part("backbone") else on_heads
        assert_close(gradient, expected[position], atol=2e-6, rtol=1e-4)
    assert_close(scalars["loss_contrastive"], contrastive.detach())
    assert_close(scalars["loss"], (contrastive + mixmatch).detach())
    assert_close(scalars["loss_mixmatch"], mixmatch.detach() / settings.get("lambda_mixmatch", 1.0))


@pytest.mark.parametrize("rule", ["pcgrad", "pcgrad_asymmetric"])
def test_conflicting_gradients_are_projected_on_the_backbone(first_step: Callable, rule: str) -> None:
    learner, contrastive, mixmatch, _, moved, scalars = first_step({"head_gradient": rule, "lambda_mixmatch": 3.0})
    backbone = learner.part("backbone")

    def flat(gradients: list[Tensor]) -> Tensor:
        return torch.cat([gradients[position].flatten() for position in backbone])

    g, h = flat(of(contrastive, learner)), flat(of(mixmatch, learner))
    assert g @ h < 0
    projected = g - (g @ h) / (h @ h) * h + h
    if rule == "pcgrad":
        projected = projected - (g @ h) / (g @ g) * g
    assert_close(flat(moved), projected, atol=2e-6, rtol=1e-4)
    total = of(contrastive + mixmatch, learner)
    for position in learner.part("heads"):
        assert_close(moved[position], total[position], atol=2e-6, rtol=1e-4)
    assert_close(scalars["gradient_norm_contrastive"], g.norm())
    # Curves of both losses are without weights, their sum has them.
    assert_close(scalars["loss_contrastive"], contrastive.detach())
    assert_close(scalars["loss_mixmatch"], mixmatch.detach() / 3)
    assert_close(scalars["loss"], (contrastive + mixmatch).detach())
    assert_close(scalars["gradient_norm_mixmatch"], h.norm())
    assert_close(scalars["gradient_cosine"], g @ h / (g.norm() * h.norm()), atol=1e-5, rtol=1e-4)


def test_gradnorm_weighs_both_losses_by_their_gradients_on_the_last_convolution(first_step: Callable) -> None:
    learner, contrastive, mixmatch, _, moved, _ = first_step({"head_gradient": "gradnorm", "lambda_mixmatch": 3.0})
    first, second = of(contrastive, learner), of(mixmatch, learner)
    last = learner.names.index("backbone.layers.8.weight")
    norms = torch.stack([first[last].norm(), second[last].norm()])
    one, other = GradNorm(1.5).update(torch.stack([contrastive, mixmatch]), norms)
    assert one != other
    for gradient, g, h in zip(moved, first, second, strict=True):
        assert_close(gradient, one * g + other * h, atol=2e-6, rtol=1e-4)


def test_gradient_noise_reaches_the_backbone_only_and_comes_from_its_own_stream(train: Train) -> None:
    noisy, plain = (train({"head_gradient": arm}, epochs=1, steps=1) for arm in ("noise", "flow"))
    assert same(state(noisy, "heads"), state(plain, "heads"))
    assert not same(state(noisy, "backbone"), state(plain, "backbone"))


# ----------------------------------------------------------------------------------------------------------- topologies


def test_mixmatch_only_is_the_method_mixmatch(trial: Callable[..., Trial], tiny: Callable[..., Trial]) -> None:
    ours, theirs = list(run(trial({"topology": "mixmatch_only"}))), list(run(tiny("mixmatch")))
    for row, other in zip(ours, theirs, strict=True):
        assert {key: row.metrics[key] for key in other.metrics} == other.metrics
        assert row.metrics["train", "loss_mixmatch"] == row.metrics["train", "loss"]


def test_simclr_then_linear_never_moves_the_classifier(train: Train) -> None:
    method, start = train({"topology": "simclr_then_linear"}), train(epochs_done=0)
    assert same(state(method, "heads.classifier"), state(start, "heads.classifier"))
    assert not same(state(method, "backbone"), state(start, "backbone"))
    images = method.task.view(method.task.labelled, "none", method.streams["none"])
    assert not torch.equal(method.predict(images), method.learner.logits(images).softmax(-1))  # a probe predicts


def test_pretraining_is_simclr_and_comes_on_top(trial: Callable[..., Trial]) -> None:
    alone = list(run(trial({"topology": "simclr_then_linear"})))
    assert len(alone) == 2
    for topology in ("pretrain_then_ssl", "joint_two_head"):
        rows = list(run(trial({"topology": topology, "pretrain_epochs": 2})))
        assert [row.epoch for row in rows] == [1, 2, 3, 4]
        losses = [row.metrics["train", "loss_contrastive"] for row in rows[:2]]
        assert losses == [row.metrics["train", "loss_contrastive"] for row in alone]
        assert ["loss_mixmatch" in {name for _, name in row.metrics} for row in rows] == [False, False, True, True]
        in_the_end = {name for _, name in rows[-1].metrics}
        assert ("loss_contrastive" in in_the_end) == (topology == "joint_two_head")


def test_alternating_is_a_pass_of_each_loss(train: Train, trial: Callable[..., Trial]) -> None:
    """The first pass is an epoch of SimCLR; MixMatch makes as many steps as in any other topology."""
    rows, alone = (list(run(trial({"topology": t}))) for t in ("alternating_epoch", "simclr_then_linear"))
    assert rows[0].metrics["train", "loss_contrastive"] == alone[0].metrics["train", "loss_contrastive"]
    assert [row.step for row in rows] == [6, 12]
    for row in rows:
        parts = row.metrics["train", "loss_contrastive"] + row.metrics["train", "loss_mixmatch"]
        assert row.metrics["train", "loss"] == pytest.approx(parts)
    halved = next(run(trial({"topology": "alternating_epoch", "lambda_mixmatch": 0.5}))).metrics
    parts = halved["train", "loss_contrastive"] + 0.5 * halved["train", "loss_mixmatch"]
    assert halved["train", "loss"] == pytest.approx(parts)
    without = train({"topology": "alternating_epoch", **SGD, "lambda_mixmatch": 0.0})
    assert distance(without, train({"topology": "simclr_then_linear", **SGD})) == 0


@pytest.mark.parametrize(
    "arm", [{}, {"head_gradient": "noise"}, {"head_update": "frozen"}, {"optimizers": "two_owner"}]
)
def test_one_loss_more_moves_no_draw_of_the_other(trial: Callable[..., Trial], arm: dict) -> None:
    ours = next(run(trial(arm, epochs=1, steps=1)))
    alone = next(run(trial({"topology": "mixmatch_only"}, epochs=1, steps=1)))
    for name in ("noise_hash", "split_hash", "init_hash"):
        assert ours.facts[name] == alone.facts[name]
    assert ours.metrics["train", "loss_mixmatch"] == alone.metrics["train", "loss_mixmatch"]


# ------------------------------------------------------------------------------------------------------------ BatchNorm


@pytest.mark.parametrize(
    ("topology", "batch_norm", "passes"),
    [
        ("joint_two_head", "first", 1),  # a step: the first interleaved group
        ("joint_two_head", "mixmatch", 1),  # all mixed images at once
        ("joint_two_head", "all", 3),  # contrastive views, guesses, mixed images
        ("mixmatch_only", "all", 2),
        ("alternating_epoch", "first", 1),
        ("alternating_epoch", "all", 3),
        ("simclr_then_linear", "first", 1),
        ("simclr_then_linear", "all", 1),
    ],
)
def test_who_moves_the_statistics(train: Train, topology: str, batch_norm: str, passes: int) -> None:
    network = train({"topology": topology, "batch_norm": batch_norm}, epochs=1, steps=3).learner.network
    assert {int(value) for name, value in network.named_buffers() if name.endswith("batches_tracked")} == {3 * passes}


def test_contrastive_views_leave_the_statistics_of_mixmatch(train: Train) -> None:
    """Exactly those of MixMatch alone, at the first step, at which the weights are the same."""
    for batch_norm in ("first", "mixmatch", "all"):
        joint, alone = (
            train({"topology": topology, "batch_norm": batch_norm}, epochs=1, steps=1).learner.network
            for topology in ("joint_two_head", "mixmatch_only")
        )
        equal = [torch.equal(a, b) for a, b in zip(joint.buffers(), alone.buffers(), strict=True)]
        assert all(equal) if batch_norm != "all" else not any(equal)


# -------------------------------------------------------------------------------------------------------- configuration


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"topology": "pretrain_then_ssl"}, "topology pretrain_then_ssl needs pretrain_epochs"),
        ({"head_update": "frozen_pretrained"}, "head_update frozen_pretrained needs pretrain_epochs"),
        (
            {"topology": "mixmatch_only", "pretrain_epochs": 1},
            "topology mixmatch_only has one loss and takes no pretrain_epochs",
        ),
        (
            {"topology": "simclr_then_linear", "pretrain_epochs": 1},
            "topology simclr_then_linear has one loss and takes no pretrain_epochs",
        ),
        *(
            ({"topology": topology, "head_gradient": rule}, f"head_gradient {rule} needs topology joint_two_head")
            for topology in ("alternating_epoch", "mixmatch_only")
            for rule in ("pcgrad", "pcgrad_asymmetric", "gradnorm")
        ),
        *(
            (
                {"optimizers": "two_owner", "head_gradient": rule},
                f"head_gradient {rule} joins what optimizers two_owner keeps apart",
            )
            for rule in ("pcgrad", "pcgrad_asymmetric", "gradnorm")
        ),
        (
            {"head_gradient": "scale_head"},
            "head_gradient scale_head does nothing under Adam: choose optimizer.kind sgd",
        ),
        (
            {"topology": "alternating_epoch", "optimizers": "two_owner"},
            "optimizers two_owner needs topology joint_two_head",
        ),
        ({"sync": "alternate"}, "sync alternate needs optimizers two_owner"),
        ({"sync": "alternate", "optimizers": "per_module"}, "sync alternate needs optimizers two_owner"),
        ({"updated": "classifier"}, "updated needs optimizers per_module or two_owner"),
    ],
)
def test_inconsistent_settings_get_one_sentence(trial: Callable[..., Trial], changes: dict, sentence: str) -> None:
    with pytest.raises(ValueError) as caught:
        trial(changes)
    assert str(caught.value) == f"method: {sentence}."


# ------------------------------------------------------------------------------------------------------------- learning
