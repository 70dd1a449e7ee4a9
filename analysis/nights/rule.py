"""The rule that tells a change between nights from chance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import fdtrc, stdtr, stdtrit

from analysis import verdicts as verdicts_module

ALPHA = 0.05  # of a quiet night, over its cells
NIGHTS = 14  # that are the reference
FEWEST = 4  # quiet nights that make a reference, and nights in a row that make a new level
REPLICATES = 3  # of a cell on a night, for its median to outvote one of them
OUTLYING = 3.0  # standard deviations from the night's median that a replicate counts at most
FINEST = 0.001  # the least standard deviation of a replicate: what a test set of 10,000 images resolves at 99 %
RESTLESS = 0.05  # p of the F test by which a cell's own nights scatter more than its replicates explain
SPANS = 2  # questions: tonight alone, and with the night before

Cell = tuple[str, str]  # arm, setting (canonical JSON)
Values = NDArray[np.float64]


class Judged(NamedTuple):
    """A cell on one night."""

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


class _Surprise(NamedTuple):
    """Fresh nights beside what their reference predicts."""

    mean: float
    expected: float
    error: float
    freedom: float
    deviation: float

    @property
    def p(self) -> float:
        return float(2 * stdtr(self.freedom, -abs(self.mean - self.expected) / self.error))


def replay(nights: Mapping[str, Mapping[Cell, Values]], k: int = NIGHTS) -> dict[str, dict[Cell, Judged]]:
    """Every night judged by those before it, in the order given.  `nights`: accuracies of each cell's replicates."""
    quiet: dict[Cell, list[tuple[str, _Sample]]] = {}
    moving: dict[Cell, list[tuple[str, _Sample]]] = {}
    way: dict[Cell, str] = {}
    verdicts: dict[str, dict[Cell, Judged]] = {}
    for night, values in nights.items():
        samples = {cell: _Sample.of(here) for cell, here in values.items()}
        asked: list[dict[Cell, tuple[list[_Sample], list[_Sample]]]] = [{}, {}]
        for cell, here in samples.items():
            if len(here.values) < REPLICATES:
                continue
            before = quiet.get(cell, [])
            asked[0][cell] = [one for _, one in before[-k:]], [here]
            if before and not moving.get(cell):  # else the night before is known to have moved
                asked[1][cell] = [one for _, one in before[:-1][-k:]], [before[-1][1], here]
        found = [_surprises({cell: pair for cell, pair in one.items() if len(pair[0]) >= FEWEST}) for one in asked]
        cells = list(found[0])
        p = [SPANS * min(one[cell].p for one in found if cell in one) for cell in cells]
        adjusted = dict(zip(cells, verdicts_module.holm(np.minimum(p, 1)) if cells else [], strict=True))
        verdicts[night] = {}
        for cell, here in samples.items():
            before, run = quiet.setdefault(cell, []), moving.setdefault(cell, [])
            if cell not in found[0]:
                names = tuple(name for name, _ in before)
                few = Judged(here.mean, len(here.values), np.nan, np.nan, np.nan, np.nan, "", 1, "", names, np.nan)
                verdicts[night][cell] = few
                if len(here.values) >= REPLICATES:
                    before.append((night, here))
                continue
            alone, both = found[0][cell], found[1].get(cell)
            share = ALPHA / SPANS / len(cells)
            span = 2 if both is not None and both.p < alone.p and alone.p > share else 1
            surprise = both if both is not None and span == 2 else alone
            moved = ("up" if surprise.mean > surprise.expected else "down") if adjusted[cell] <= ALPHA else ""
            reference = before[:-1][-k:] if moved and span == 2 else before[-k:]
            if not moved:
                before.append((night, here))
                run.clear()
            else:
                if moved != way.get(cell):
                    run.clear()
                if span == 2:
                    run.append(before.pop())
                run.append((night, here))
                way[cell] = moved
            half = stdtrit(alone.freedom, 1 - share / 2) * alone.error
            verdicts[night][cell] = Judged(
                mean=alone.mean,
                n=len(here.values),
                expected=alone.expected,
                low=alone.expected - half,
                high=alone.expected + half,
                p_holm=adjusted[cell],
                moved=moved,
                span=span if moved else 1,
                since=run[0][0] if moved else "",
                reference=tuple(name for name, _ in reference),
                deviation=alone.deviation,
            )
            if len(run) >= FEWEST:
                quiet[cell], moving[cell] = list(run), []
    return verdicts


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

    def clamped(self, most: float) -> _Sample:
        """With no replicate farther from the median than this."""
        if self.farthest <= most:
            return self
        centre = np.median(self.values)
        return _Sample.of(np.clip(self.values, centre - most, centre + most))


def _surprises(asked: Mapping[Cell, tuple[list[_Sample], list[_Sample]]]) -> dict[Cell, _Surprise]:
    """How far the fresh nights of each cell lie from its reference nights: (reference, fresh) by cell."""
    spread = _spreads({cell: reference for cell, (reference, _) in asked.items()})
    clamped = {
        cell: tuple([one.clamped(OUTLYING * spread[cell][0]) for one in nights] for nights in pair)
        for cell, pair in asked.items()
    }
    spread = _spreads({cell: reference for cell, (reference, _) in clamped.items()})
    found = {}
    for cell, (old, new) in clamped.items():
        (expected, before), (mean, fresh) = _mean(old), _mean(new)
        deviation, freedom = spread[cell]
        error = deviation * np.sqrt(1 / fresh + 1 / before)
        found[cell] = _Surprise(mean, expected, float(error), freedom, deviation)
    return found


def _mean(nights: Sequence[_Sample]) -> tuple[float, int]:
    """Over all replicates, and how many these are."""
    n = sum(len(one.values) for one in nights)
    return sum(len(one.values) * one.mean for one in nights) / n, n


def _spreads(references: Mapping[Cell, Sequence[_Sample]]) -> dict[Cell, tuple[float, int]]:
    """Standard deviation of a replicate, such that means of nights scatter as they do, and its degrees of freedom.

    These are the replicates' own, but where a cell's nights scatter more than chance lets them.
    """
    within, between, freedom, ratios = {}, {}, {}, []
    for cell, nights in references.items():
        mean, n = _mean(nights)
        freedom[cell] = n - len(nights), len(nights) - 1
        within[cell] = sum(one.squares for one in nights) / max(freedom[cell][0], 1)
        between[cell] = sum(len(one.values) * (one.mean - mean) ** 2 for one in nights) / freedom[cell][1]
        if freedom[cell][0] > 2 and within[cell] > FINEST**2:
            ratios.append(between[cell] / within[cell] * (1 - 2 / freedom[cell][0]))  # 1 is expected of quiet nights
    shared = max(1.0, sum(ratios) / len(ratios)) if ratios else 1.0
    found = {}
    for cell, (inside, outside) in freedom.items():
        usual = max(shared * within[cell], FINEST**2)
        restless = not inside or fdtrc(outside, inside, between[cell] / usual) < RESTLESS
        found[cell] = max(usual, between[cell]) ** 0.5, outside if restless else max(inside, outside)
    return found
