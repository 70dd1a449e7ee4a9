"""The rule that judges a night by the nights before it; `analysis.nights.difference` explains it.

Accuracies in, verdicts out: nothing here reads a store.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import fdtrc, stdtr, stdtrit

from analysis.verdicts import holm

ALARM_RATE = 0.05  # share of quiet nights that may alarm, over all cells
REFERENCE_NIGHTS = 14  # the latest quiet ones that a night is compared with
FEWEST_NIGHTS = 4  # quiet nights that make a reference, and nights in a row that make a new level
REPLICATES_TO_JUDGE = 3  # of a cell on a night, for its median to outvote one of them
OUTLIER_LIMIT = 3.0  # standard deviations from the night's median that a replicate counts at most
LEAST_DEVIATION = 0.001  # of a replicate: what a test set of 10,000 images resolves at 99 %
OVERDISPERSION_P = 0.05  # F test: variance between a cell's nights above that within
QUESTIONS = 2  # asked of every cell: tonight alone, and together with the night before

Cell = tuple[str, str]  # arm, setting (canonical JSON)
Values = NDArray[np.float64]


class CellVerdict(NamedTuple):
    """How a cell on one night compares with the nights before."""

    mean: float  # of tonight, outlying replicates counted as far as they count
    n: int
    expected: float  # NaN where replicates or nights before are too few
    low: float  # outside of which tonight alone is an alarm; all cells' hold together on 95 % of quiet nights
    high: float
    p_holm: float
    moved: str  # up | down | "" (quiet)
    span: int  # 2: it shows in tonight and the night before together
    since: str  # first night of the move
    reference: tuple[str, ...]  # nights
    deviation: float  # of one replicate


class _Prediction(NamedTuple):
    """The mean of fresh nights beside what their reference nights predict."""

    mean: float
    expected: float
    error: float
    freedom: float
    deviation: float

    @property
    def p(self) -> float:
        return float(2 * stdtr(self.freedom, -abs(self.mean - self.expected) / self.error))


@dataclass(frozen=True)
class _Sample:
    """Replicates of a cell on one night."""

    values: Values
    mean: float
    squares: float  # deviations from the mean, squared and summed
    farthest: float  # from the median

    @classmethod
    def of(cls, values: Values) -> _Sample:
        mean = float(values.mean())
        far = float(np.abs(values - np.median(values)).max())
        return cls(values, mean, float(((values - mean) ** 2).sum()), far)

    @property
    def judgeable(self) -> bool:
        return len(self.values) >= REPLICATES_TO_JUDGE

    def clamped(self, limit: float) -> _Sample:
        """Return the sample with no replicate farther from the median than the limit."""
        if self.farthest <= limit:
            return self
        centre = np.median(self.values)
        return _Sample.of(np.clip(self.values, centre - limit, centre + limit))


CellNight = tuple[str, _Sample]  # a night's name, and a cell's replicates on it


@dataclass
class _History:
    """A cell's nights so far, oldest first."""

    quiet: list[CellNight] = field(default_factory=list)  # the reference of later nights
    moving: list[CellNight] = field(default_factory=list)  # the latest in a row on which it moved the same way
    direction: str = ""  # of these: up | down

    def reference(self, k: int, span: int) -> list[CellNight]:
        """The last k quiet nights before tonight or, of a span of 2, before the night before tonight."""
        return self.quiet[: len(self.quiet) - (span - 1)][-k:]

    def record(self, night: CellNight, moved: str, span: int) -> None:
        """Tonight becomes part of the reference, or of a move, which is a new level once it has lasted."""
        if not moved:
            self.quiet.append(night)
            self.moving.clear()
            return
        if moved != self.direction:
            self.moving.clear()
        if span == 2:
            self.moving.append(self.quiet.pop())
        self.moving.append(night)
        self.direction = moved

    def accept_new_level(self) -> None:
        """Nights that have moved the same way for long enough are the reference of later ones."""
        if len(self.moving) >= FEWEST_NIGHTS:
            self.quiet, self.moving = self.moving, []


def judge_nights(
    nights: Mapping[str, Mapping[Cell, Values]], k: int = REFERENCE_NIGHTS
) -> dict[str, dict[Cell, CellVerdict]]:
    """Every night judged by those before it, in the order given.  `nights`: accuracies of each cell's replicates."""
    histories: dict[Cell, _History] = defaultdict(_History)
    verdicts: dict[str, dict[Cell, CellVerdict]] = {}
    for name, values in nights.items():
        samples = {cell: _Sample.of(replicates) for cell, replicates in values.items()}
        alone, together = (_predictions(pairs) for pairs in _comparisons(samples, histories, k))
        p = [QUESTIONS * min(asked[cell].p for asked in (alone, together) if cell in asked) for cell in alone]
        adjusted = dict(zip(alone, holm(np.minimum(p, 1)) if p else [], strict=True))
        verdicts[name] = {}
        for cell, sample in samples.items():
            if cell in alone:
                share = ALARM_RATE / QUESTIONS / len(alone)
                verdict = _judge(
                    (name, sample), histories[cell], alone[cell], together.get(cell), adjusted[cell], share, k
                )
            else:
                verdict = _not_judged((name, sample), histories[cell])
            verdicts[name][cell] = verdict
    return verdicts


_Compared = tuple[list[_Sample], list[_Sample]]  # reference nights, and the fresh ones


def _comparisons(
    samples: Mapping[Cell, _Sample], histories: Mapping[Cell, _History], k: int
) -> tuple[dict[Cell, _Compared], dict[Cell, _Compared]]:
    """What is compared for each of the two questions, of cells whose reference is long enough."""
    alone: dict[Cell, _Compared] = {}
    together: dict[Cell, _Compared] = {}
    for cell, sample in samples.items():
        history = histories[cell]
        if not sample.judgeable:
            continue
        alone[cell] = [night for _, night in history.reference(k, span=1)], [sample]
        if history.quiet and not history.moving:  # else the night before is known to have moved
            before = history.quiet[-1][1]
            together[cell] = [night for _, night in history.reference(k, span=2)], [before, sample]

    def long_enough(asked: Mapping[Cell, _Compared]) -> dict[Cell, _Compared]:
        return {cell: pair for cell, pair in asked.items() if len(pair[0]) >= FEWEST_NIGHTS}

    return long_enough(alone), long_enough(together)


def _judge(
    night: CellNight,
    history: _History,
    alone: _Prediction,
    together: _Prediction | None,
    p_holm: float,
    share: float,
    k: int,
) -> CellVerdict:
    """A cell's verdict, which becomes part of its history.  `share`: the p that one question of one cell may claim."""
    span = 2 if together is not None and together.p < alone.p and alone.p > share else 1
    decisive = together if together is not None and span == 2 else alone
    moved = ("up" if decisive.mean > decisive.expected else "down") if p_holm <= ALARM_RATE else ""
    span = span if moved else 1
    reference = history.reference(k, span)
    history.record(night, moved, span)
    half = stdtrit(alone.freedom, 1 - share / 2) * alone.error
    verdict = CellVerdict(
        mean=alone.mean,
        n=len(night[1].values),
        expected=alone.expected,
        low=alone.expected - half,
        high=alone.expected + half,
        p_holm=p_holm,
        moved=moved,
        span=span,
        since=history.moving[0][0] if moved else "",
        reference=tuple(name for name, _ in reference),
        deviation=alone.deviation,
    )
    history.accept_new_level()
    return verdict


def _not_judged(night: CellNight, history: _History) -> CellVerdict:
    """The verdict of a cell with too few replicates or too few nights before; a whole night joins its reference."""
    nan = float("nan")
    names = tuple(name for name, _ in history.quiet)
    sample = night[1]
    if sample.judgeable:
        history.quiet.append(night)
    return CellVerdict(sample.mean, len(sample.values), nan, nan, nan, nan, "", 1, "", names, nan)


def _predictions(comparisons: Mapping[Cell, _Compared]) -> dict[Cell, _Prediction]:
    """Compare the fresh nights of each cell with what its reference nights predict."""
    deviations = _deviations({cell: reference for cell, (reference, _) in comparisons.items()})
    clamped: dict[Cell, _Compared] = {}
    for cell, (reference, fresh) in comparisons.items():
        limit = OUTLIER_LIMIT * deviations[cell][0]
        clamped[cell] = [night.clamped(limit) for night in reference], [night.clamped(limit) for night in fresh]
    deviations = _deviations({cell: reference for cell, (reference, _) in clamped.items()})
    predictions = {}
    for cell, (reference, fresh) in clamped.items():
        (expected, n_reference), (mean, n_fresh) = _mean_and_count(reference), _mean_and_count(fresh)
        deviation, freedom = deviations[cell]
        error = deviation * np.sqrt(1 / n_fresh + 1 / n_reference)
        predictions[cell] = _Prediction(mean, expected, float(error), freedom, deviation)
    return predictions


def _mean_and_count(nights: Sequence[_Sample]) -> tuple[float, int]:
    """Return the mean over all replicates, and how many these are."""
    n = sum(len(night.values) for night in nights)
    return sum(len(night.values) * night.mean for night in nights) / n, n


def _deviations(references: Mapping[Cell, Sequence[_Sample]]) -> dict[Cell, tuple[float, int]]:
    """Standard deviation of a replicate, such that means of nights scatter as they do, and its degrees of freedom.

    It is estimated within nights, except where a cell's nights scatter more than chance lets them.
    """
    within, between, freedom, ratios = {}, {}, {}, []
    for cell, nights in references.items():
        mean, n = _mean_and_count(nights)
        freedom[cell] = n - len(nights), len(nights) - 1
        within[cell] = sum(night.squares for night in nights) / max(freedom[cell][0], 1)
        between[cell] = sum(len(night.values) * (night.mean - mean) ** 2 for night in nights) / freedom[cell][1]
        if freedom[cell][0] > 2 and within[cell] > LEAST_DEVIATION**2:
            ratios.append(between[cell] / within[cell] * (1 - 2 / freedom[cell][0]))  # 1 is expected of quiet nights
    shared = max(1.0, sum(ratios) / len(ratios)) if ratios else 1.0
    deviations = {}
    for cell, (freedom_within, freedom_between) in freedom.items():
        usual = max(shared * within[cell], LEAST_DEVIATION**2)
        p = fdtrc(freedom_between, freedom_within, between[cell] / usual) if freedom_within else 0.0
        own_freedom = freedom_between if p < OVERDISPERSION_P else max(freedom_within, freedom_between)
        deviations[cell] = max(usual, between[cell]) ** 0.5, own_freedom
    return deviations
