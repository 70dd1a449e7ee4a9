"""Dynamic bootstrapping: its targets and objective, and when they begin."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lnl.functional import mixtures, targets
from lnl.methods.dynamic_bootstrapping import Config, Method, bootstrapped

LOGITS = torch.tensor([[1.0, 0, -1], [0, 2, 0]])
GIVEN = targets.one_hot(torch.tensor([0, 2]), 3)
GUESS = targets.one_hot(torch.tensor([0, 1]), 3)
CLEAN = torch.tensor([0.9, 0.1])


def test_known_answer() -> None:
    """Two brackets .423575 and 1.873575 under lambda = .6, partners swapped, and R = .212794."""
    refined = bootstrapped(GIVEN, GUESS, CLEAN)
    swap = torch.tensor([1, 0])
    for coefficient, expected in ((1.0, 0.423575), (0.0, 1.873575), (0.6, 1.003575)):
        _, soft = targets.mixup(LOGITS, refined, swap, torch.tensor([coefficient]))
        assert Method.objective(lambda images: LOGITS, (LOGITS, soft, 0.0)) == pytest.approx(expected, abs=1e-5)
    assert Method.objective(lambda images: LOGITS, (LOGITS, soft, 1.0)) == pytest.approx(1.216369, abs=1e-5)


def test_objective_against_numpy() -> None:
    """Arazo et al., equations 8 to 11, for a batch of eight: four cross-entropies and R."""
    random = np.random.default_rng(0)
    logits, w, mixing = random.normal(size=(8, 5)), random.uniform(size=8), 0.37
    y, z, partner = random.integers(5, size=8), random.integers(5, size=8), random.permutation(8)
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    rows = range(8)

    def bracket(of: Any) -> Any:
        return (1 - w[of]) * -np.log(p[rows, y[of]]) + w[of] * -np.log(p[rows, z[of]])

    prior = sum(np.log((1 / 5) / p.mean(0)) / 5)
    expected = (mixing * bracket(np.arange(8)) + (1 - mixing) * bracket(partner)).mean() + 0.8 * prior

    hard = [targets.one_hot(torch.from_numpy(labels), 5) for labels in (y, z)]
    refined = bootstrapped(*hard, torch.from_numpy(1 - w).float())
    _, soft = targets.mixup(refined, refined, torch.from_numpy(partner), torch.tensor([mixing]))
    found = Method.objective(lambda images: images, (torch.from_numpy(logits), soft, 0.8))
    assert found == pytest.approx(expected, abs=1e-5)


def test_a_label_is_trusted_as_far_as_it_is_clean() -> None:
    assert torch.equal(bootstrapped(GIVEN, GUESS, torch.ones(2)), GIVEN)
    assert torch.equal(bootstrapped(GIVEN, GUESS, torch.zeros(2)), GUESS)
    torch.testing.assert_close(bootstrapped(GIVEN, GUESS, CLEAN), torch.tensor([[1, 0, 0], [0, 0.9, 0.1]]))


def batches(method: Method, epoch: int) -> list[tuple[Tensor, Tensor, float]]:
    """What the learner is given in an epoch."""
    seen, step = [], method.learner.step
    method.learner.step = lambda objective, batch: (seen.append(batch), step(objective, batch))[1]
    method.train_epoch(epoch)
    return seen


def test_plain_mixup_before_bootstrapping(tiny: Callable, build: Callable) -> None:
    """The targets before mix two given labels, those after also guesses; R belongs to the latter."""
    method = build(tiny("dynamic_bootstrapping", {"steps": 1})).method
    (_, soft, weight), *_ = batches(method, 0)
    assert weight == 0 and ((soft > 0).sum(-1) <= 2).all()
    (_, soft, weight), *_ = batches(method, 1)
    assert weight == 1 and ((soft > 0).sum(-1) > 2).any()
    torch.testing.assert_close(soft.sum(-1), torch.ones(16))


def test_the_mixture_is_of_the_losses_at_the_beginning_of_the_epoch(tiny: Callable, build: Callable) -> None:
    built = build(tiny("dynamic_bootstrapping", {"method.loss_augmentation": "none"}))
    method, task = built.method, built.task
    method.train_epoch(0)
    likelihoods = method.predict(task.view(task.labelled, "none", torch.Generator()))
    losses = -likelihoods.gather(-1, task.labels[task.labelled][:, None]).squeeze(-1).log()
    method.train_epoch(1)
    beliefs = method.beliefs()
    torch.testing.assert_close(beliefs.loss, mixtures.normalise(losses), atol=1e-4, rtol=1e-4)
    expected = mixtures.beta_mixture(losses)
    torch.testing.assert_close(beliefs.clean, expected.clean, atol=1e-3, rtol=0)
    shown = beliefs.mixture[:, 1:] * (losses.max() - losses.min())
    shown[:, 0] += losses.min()
    torch.testing.assert_close(shown, expected.components[:, 1:], atol=1e-3, rtol=0)
    assert 0 < beliefs.mixture[0, 1] < beliefs.mixture[1, 1] < 1


def test_guessing_moves_the_statistics_once_a_step(tiny: Callable, build: Callable) -> None:
    """Beside the mixed images: once before bootstrapping, twice after."""
    method = build(tiny("dynamic_bootstrapping")).method

    def passes() -> set[int]:
        state = method.learner.network.state_dict()
        return {int(value) for name, value in state.items() if name.endswith("num_batches_tracked")}

    method.train_epoch(0)
    assert passes() == {3}
    method.train_epoch(1)
    assert passes() == {3 + 2 * 3}


@pytest.mark.parametrize("guess", ["hard", "soft", "dynamic_mixup"])
def test_guesses(guess: str, tiny: Callable, build: Callable) -> None:
    built = build(
        tiny("dynamic_bootstrapping", {"method.guess": guess, "method.bootstrap_from": 0.2, "method.hardest_from": 0.6})
    )
    images = built.truth.test_images[:16]
    plain = built.method.learner.guess(images)
    early, middle, late = (built.method.guess(images, progress) for progress in (0.2, 0.4, 0.8))
    expected = {
        "hard": [targets.one_hot(plain.argmax(-1), 10)] * 3,
        "soft": [plain] * 3,
        "dynamic_mixup": [targets.sharpen(plain, temperature) for temperature in (1, 0.5005, 0.001)],
    }
    for found, wanted in zip((early, middle, late), expected[guess], strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)


def test_the_temperature_falls_as_in_the_official_code(
    tiny: Callable, build: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """linspace(1, .001, 200 - 111), one value an epoch from the 111th of 300 on, and the last one from the 199th."""
    official = np.linspace(1, 0.001, 200 - 111)
    share = 110 / 300  # of training before the 111th epoch; the last value is reached 88 epochs later
    settings = {
        "method.guess": "dynamic_mixup",
        "method.bootstrap_from": share,
        "method.hardest_from": share + 88 / 300,
    }
    method = build(tiny("dynamic_bootstrapping", settings)).method
    monkeypatch.setattr(targets, "sharpen", lambda probabilities, temperature: temperature)
    images = torch.zeros(2, 1, 8, 8)
    for epoch in (111, 112, 155, 198, 199, 200, 300):
        found = method.guess(images, (epoch - 1) / 300)
        assert found == pytest.approx(official[min(epoch - 111, len(official) - 1)])
    assert Config().hardest_from == pytest.approx(share + 88 / 300, abs=0.01)


def test_dynamic_mixup_mixes_by_trust(tiny: Callable, build: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images in proportion to 1 - w, targets half and half."""
    built = build(tiny("dynamic_bootstrapping", {"method.guess": "dynamic_mixup", "steps": 1}))
    method, task = built.method, built.task
    trusted = torch.rand(50, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(method, "fit", lambda: method.clean.note(task.labelled, trusted))
    views, partners = [], []
    monkeypatch.setattr(
        type(task), "view", lambda self, index, *_: (views.append(index), self.images[index].float())[1]
    )
    permute = torch.randperm
    monkeypatch.setattr(torch, "randperm", lambda *a, **k: (partners.append(permute(*a, **k)), partners[-1])[1])
    (images, soft, _), *_ = batches(method, 1)
    index, partner = views[-1], partners[-1]
    trust = dict(zip(task.labelled.tolist(), trusted.tolist(), strict=True))
    for row in range(16):
        mine, others = int(index[row]), int(index[partner[row]])
        share = trust[mine] / (trust[mine] + trust[others])
        expected = share * task.images[mine].float() + (1 - share) * task.images[others].float()
        torch.testing.assert_close(images[row], expected)
        assert soft[row, task.labels[mine]] >= trust[mine] / 2 - 1e-6
        assert soft[row, task.labels[others]] >= trust[others] / 2 - 1e-6


def test_defaults_are_the_papers() -> None:
    config = Config()
    assert (config.bootstrap_from, config.alpha, config.batch_size) == (105 / 300, 32, 128)
    assert [round(300 * share) for share in config.optimizer.milestones] == [100, 250]
