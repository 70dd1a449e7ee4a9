"""Co-teaching: its two schedules, and who trains on whose selection."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from lnl.functional import selection
from lnl.methods import co_teaching
from lnl.methods.co_teaching import Config, Method, keep_rate

FIRST = torch.tensor([0.1, 2, 0.5, 0.3, 1.5, 0.05])  # losses of six images under both networks
SECOND = torch.tensor([1, 0.2, 0.6, 0.1, 2.5, 0.3])


def test_the_papers_schedule() -> None:
    rates = [keep_rate(Config(forget_rate=0.5), epoch) for epoch in range(12)]
    assert rates == pytest.approx([1, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.55, 0.5, 0.5])


def test_the_papers_exponent_acts_on_the_epoch() -> None:
    rates = [keep_rate(Config(forget_rate=0.5, exponent=2, ramp=10), epoch) for epoch in (1, 2, 3, 4, 9)]
    assert rates == pytest.approx([0.95, 0.8, 0.55, 0.5, 0.5])


def test_the_codes_schedule() -> None:
    config = Config(forget_rate=0.5, schedule="code")
    forgotten = [1 - keep_rate(config, epoch) for epoch in range(11)]
    assert forgotten == pytest.approx([epoch / 18 for epoch in range(10)] + [0.5])
    assert forgotten[1:9] == pytest.approx([0.0556, 0.1111, 0.1667, 0.2222, 0.2778, 0.3333, 0.3889, 0.4444], abs=1e-4)


def test_the_codes_exponent_acts_on_the_rate_and_jumps() -> None:
    config = Config(forget_rate=0.45, exponent=2, schedule="code")
    assert [1 - keep_rate(config, epoch) for epoch in (9, 10)] == pytest.approx([0.2025, 0.45])


def test_a_ramp_of_one_epoch() -> None:
    for schedule in ("paper", "code"):
        assert keep_rate(Config(forget_rate=0.5, ramp=1, schedule=schedule), 1) == pytest.approx(0.5)


@pytest.mark.parametrize(("kept", "losses"), [(3, (0.783333, 0.466667)), (4, (0.7125, 0.5))])
def test_each_is_trained_on_what_the_other_finds_easy(kept: int, losses: tuple[float, float]) -> None:
    easy_to_first, easy_to_second = selection.smallest(torch.stack([FIRST, SECOND]), kept / 6)
    labels = torch.zeros(6, dtype=torch.long)
    for values, places, expected in ((FIRST, easy_to_second, losses[0]), (SECOND, easy_to_first, losses[1])):
        logits = torch.stack([torch.zeros(6), values.expm1().log()], -1)  # with these losses for label 0
        assert Method.objective(lambda images: images, (logits, labels, places)) == pytest.approx(expected, abs=1e-5)


def test_networks_exchange_their_selections(tiny: Callable, build: Callable) -> None:
    method = build(tiny("co_teaching", {"steps": 1, "method.forget_rate": 0.5, "method.ramp": 1})).method
    seen: dict[str, Any] = {}
    for name in ("first", "second"):
        learner = getattr(method, name)

        def step(objective: Callable, batch: tuple, name: str = name, step: Callable = learner.step) -> Tensor:
            guesses = [one.guess(batch[0]) for one in (method.first, method.second)]
            seen[name] = batch, [-guess.gather(-1, batch[1][:, None]).squeeze(-1).log() for guess in guesses]
            return step(objective, batch)

        learner.step = step
    method.train_epoch(0)
    (batch, (first, second)), (other_batch, (_, second_then)) = seen["first"], seen["second"]
    assert torch.equal(batch[0], other_batch[0]) and torch.equal(second, second_then)
    assert set(batch[2].tolist()) == set(second.argsort()[:8].tolist())
    assert set(other_batch[2].tolist()) == set(first.argsort()[:8].tolist())
    assert set(batch[2].tolist()) != set(other_batch[2].tolist())


def test_labels_of_no_likelihood_are_ranked(tiny: Callable, build: Callable) -> None:
    """Gaps of 150 and 200 between two logits: as softmax both are 0."""
    built = build(
        tiny("co_teaching", {"method.batch_size": 50, "method.forget_rate": 0.5, "method.ramp": 1, "steps": 1})
    )
    task, gaps = built.task, torch.tensor([150.0, 200.0]).repeat(25)
    for one in (built.method.first, built.method.second):
        one.batch_logits = lambda images: torch.stack([gaps, *torch.zeros(9, 50)], -1)
    task.labels[task.labelled] = 1
    built.method.train_epoch(0)
    beliefs = built.method.beliefs()
    assert torch.equal(beliefs.selected == 1, beliefs.loss == 150)
    assert (beliefs.loss == 200).sum(-1).tolist() == [25, 25]


def test_beliefs_are_of_both_networks(tiny: Callable, build: Callable) -> None:
    built = build(tiny("co_teaching", {"method.forget_rate": 0.5, "method.ramp": 1, "steps": 1}))
    assert built.method.beliefs().selected.isnan().all()
    built.method.train_epoch(0)
    beliefs = built.method.beliefs()
    known = beliefs.loss.isfinite()
    assert known.shape == (2, 50) and known.sum() == 2 * 16
    assert (beliefs.selected.nansum(-1) == 8).all()
    for mine, others in ((0, 1), (1, 0)):
        chosen = beliefs.selected[mine] == 1
        assert beliefs.loss[others][chosen].max() < beliefs.loss[others][known[0] & ~chosen].min()


def test_who_predicts(tiny: Callable, build: Callable) -> None:
    built = {name: build(tiny("co_teaching", {"method.prediction": name})) for name in ("first", "ensemble")}
    images = built["first"].truth.test_images[:20]
    method = built["first"].method
    each = [one.logits(images).softmax(-1) for one in (method.first, method.second)]
    assert not torch.allclose(each[0], each[1], atol=1e-3)
    torch.testing.assert_close(method.predict(images), each[0])
    torch.testing.assert_close(built["ensemble"].method.predict(images), (each[0] + each[1]) / 2)


def test_two_networks_are_declared() -> None:
    assert co_teaching.USES == ("labels", "two networks")
