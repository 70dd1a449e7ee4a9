import math

import pytest

from lnl.functional.schedules import (
    average_decay,
    cosine,
    first_phase,
    fixmatch,
    linear_decay,
    linear_ramp,
    restarts,
    step_decay,
)


@pytest.mark.parametrize(
    ("length", "weights"),
    [(16_384, [4.6875, 37.5, 75, 75]), (2**20, [0.0732, 0.5859, 1.1719, 37.5])],  # official, YU1ut
)
def test_ramp_of_the_unlabelled_weight(length: int, weights: list[float]) -> None:
    steps = [1024, 8192, 16_384, 524_288]
    assert [75 * linear_ramp(step, length) for step in steps] == pytest.approx(weights, abs=5e-5)


def test_ramp_ends() -> None:
    assert linear_ramp(0, 10) == 0
    assert linear_ramp(10, 10) == linear_ramp(11, 10) == 1
    assert linear_ramp(0, 0) == linear_ramp(5, 0) == 1


@pytest.mark.parametrize(
    ("base", "expected"),
    [
        (0.99, [0.99, 0.99146447, 0.995, 0.99853553, 1]),
        (0.998, [0.998, 0.99829289, 0.999, 0.99970711, 1]),
        (0.9993, [0.9993, 0.99940251, 0.99965, 0.99989749, 1]),
    ],
)
def test_cosine_by_the_target_decay_of_byol(base: float, expected: list[float]) -> None:
    actual = [1 - (1 - base) * cosine(progress) for progress in (0, 0.25, 0.5, 0.75, 1)]
    assert actual == pytest.approx(expected, abs=5e-9)


@pytest.mark.parametrize("progress", [-0.01, 1.01, math.nan])
def test_cosine_refuses_what_is_no_share(progress: float) -> None:
    with pytest.raises(ValueError, match="progress must lie between 0 and 1"):
        cosine(progress)


def test_fixmatch() -> None:
    """Learning rate 0.03 at quarters of training."""
    actual = [0.03 * fixmatch(progress) for progress in (0, 0.25, 0.5, 0.75, 1)]
    assert actual == pytest.approx([0.03, 0.02824632, 0.02319031, 0.01542308, 0.00585271], abs=5e-9)


def test_step_decay() -> None:
    """Arazo 2019: learning rate 0.1, a tenth at epochs 100 and 250 of 300."""
    rates = {epoch: 0.1 * step_decay(epoch / 300, [100 / 300, 250 / 300], 0.1) for epoch in (0, 99, 100, 249, 250, 299)}
    assert rates == pytest.approx({0: 0.1, 99: 0.1, 100: 0.01, 249: 0.01, 250: 0.001, 299: 0.001})
    assert step_decay(0.9, [], 0.1) == 1


def test_average_decay() -> None:
    assert average_decay(0, 0.999) == 0.1
    assert average_decay(90, 0.999) == 0.91
    assert average_decay(8_989, 0.999) < 0.999
    assert average_decay(8_990, 0.999) == average_decay(10**6, 0.999) == 0.999
    kept_with_warm_up = math.prod(average_decay(step, 0.999) for step in range(100))
    kept_without = 0.999**100
    assert kept_without == pytest.approx(0.905, abs=1e-3)
    assert kept_with_warm_up < 1e-12


@pytest.mark.parametrize(
    ("share", "epochs", "expected"), [(0.5, 120, 60), (0.5, 3, 1), (0.01, 10, 1), (0.99, 10, 9), (0.5, 2, 1)]
)
def test_first_phase_leaves_an_epoch_to_each(share: float, epochs: int, expected: int) -> None:
    assert first_phase(share, epochs) == expected


def test_one_epoch_cannot_be_shared() -> None:
    with pytest.raises(ValueError, match="needs two epochs or more, not 1"):
        first_phase(0.5, 1)


def test_restarts() -> None:
    """IEG's cycles of 200,000 steps: the first has 500, each is 1.5 times as long as the one before it."""
    ends = [500, 1250, 2375, 4062.5, 6593.75, 10390.625, 16085.9375, 24628.90625, 37443.359375]
    for cycle, end in enumerate(ends):
        assert restarts(end * (1 - 1e-6) / 200_000, 1 / 400) < 1e-4
        assert restarts(end * (1 + 1e-9) / 200_000, 1 / 400) == pytest.approx(0.9 ** (cycle + 1), rel=1e-4)
    assert restarts(0, 1 / 400) == 1
    assert [restarts(step / 8, 1.0) for step in range(9)] == pytest.approx(
        [*(cosine(step / 8) for step in range(8)), 0.9]
    )


def test_linear_decay_is_that_of_co_teaching() -> None:
    """Fact sheet 5: at epochs 79, 80, 140, 199 of 200, falling from epoch 80, a rate of 1e-3."""
    found = [1e-3 * linear_decay(epoch / 200, 80 / 200) for epoch in (79, 80, 140, 199, 200)]
    assert found == pytest.approx([1e-3, 1e-3, 5e-4, 8.3333e-6, 0], rel=1e-4)
    assert [linear_decay(progress, 1.0) for progress in (0.0, 0.99, 1.0)] == [1, 1, 0]
