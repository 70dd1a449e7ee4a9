"""Effects and interactions of the factorial ablations that the arms of a study make up.

As in `analysis.aggregate` the unit of analysis is one replicate.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.aggregate import hash_disagreement, linear, scored_runs
from analysis.results import Results
from analysis.statistics import HASHES_AGREE
from lnl.storage.places import canonical


@dataclass(frozen=True)
class Factorial:
    """A complete 2^k design among the arms of a study: `arms[S]` has the factors whose bits are set in S."""

    factors: tuple[str, ...]  # the arms that change one thing
    arms: tuple[str, ...]  # 2^k, from that which changes nothing to that which changes everything

    def term(self, subset: int) -> tuple[str, ...]:
        return tuple(factor for bit, factor in enumerate(self.factors) if subset >> bit & 1)


def declared_factorials(study: Results) -> list[Factorial]:
    """The factorials among the arms that a study declares; what a search found is no factor."""
    searched = {cell.searched_arm for cell in study.cells}
    return factorials({arm: overrides for arm, overrides in study.plan.arms.items() if arm not in searched})


def factorials(arms: Mapping[str, Mapping[str, Any]]) -> list[Factorial]:
    """Every complete factorial of two or more factors in the overrides of arms that is no part of a larger one.

    A factor is what an arm changes beyond another arm, the origin; two factors never touch the same field.
    """
    named: dict[frozenset[tuple[str, str]], str] = {}
    for arm, overrides in arms.items():
        named.setdefault(frozenset((field, canonical(value)) for field, value in overrides.items()), arm)
    complete: list[Factorial] = []
    for origin in named:
        changes = [items - origin for items in named if items > origin]
        complete.extend(
            Factorial(tuple(named[origin | change] for change in chosen), tuple(named[c] for c in cells))
            for chosen, cells in _extensions((), (origin,), changes, named)
            if len(chosen) > 1
        )
    complete.sort(key=lambda design: -len(design.arms))  # stable: the order of declaration within a size
    largest: list[Factorial] = []
    for design in complete:
        if not any(set(design.arms) <= set(other.arms) for other in largest):
            largest.append(design)
    return largest


Change = frozenset[tuple[str, str]]


def _extensions(
    chosen: tuple[Change, ...], cells: tuple[Change, ...], candidates: Sequence[Change], named: Mapping[Change, str]
) -> Iterator[tuple[tuple[Change, ...], tuple[Change, ...]]]:
    """Factorials that begin with the chosen changes: these, and the sets of items of their 2^k cells."""
    yield chosen, cells
    for place, change in enumerate(candidates):
        added = tuple(cell | change for cell in cells)
        if all(cell in named for cell in added) and not any(_overlap(change, other) for other in chosen):
            yield from _extensions((*chosen, change), (*cells, *added), candidates[place + 1 :], named)


def _overlap(first: Change, second: Change) -> bool:
    """Whether two sets of changes share a field, or one holds a field of the other's."""
    fields = [({field for field, _ in items}) for items in (first, second)]
    return any(a == b or a.startswith(f"{b}.") or b.startswith(f"{a}.") for a in fields[0] for b in fields[1])


def effect_coefficients(factors: int) -> NDArray[np.float64]:
    """Effects of k factors as sums over 2^k cells, (2^k - 1, 2^k); bits of a number are the factors of its cell or row.

    Of one factor: with minus without it.  Of two: how much the effect of one changes with the other; of three, how much
    that changes with the third; all averaged over the other factors.  (Box, Hunter & Hunter halve an interaction of two
    factors and quarter one of three.)
    """
    cells = np.arange(2**factors)
    count = np.array([subset.bit_count() for subset in cells])
    signs = (-1.0) ** count[cells[:, None] & ~cells[None] & (2**factors - 1)]
    return signs[1:] / 2.0 ** (factors - count[1:, None])


def prediction_coefficients(factors: int) -> NDArray[np.float64]:
    """What each cell would be if single effects added up, as sums over cells: (2^k, 2^k)."""
    predicted = np.zeros((2**factors, 2**factors))
    for subset in range(2**factors):
        singles = [1 << bit for bit in range(factors) if subset >> bit & 1]
        predicted[subset, singles] = 1
        predicted[subset, 0] = 1 - len(singles)
    return predicted


def effects(study: Results, factorial: Factorial, selection: str) -> pd.DataFrame:
    """Effects, interactions and additivity in the base setting; empty where a cell has no run.

    kind "effect": `effect_coefficients`.  For each arm that combines factors: kind "measured", its accuracy;
    "additive", what it would be if single effects added up; "residual", the first minus the second.  Columns: kind,
    term (names of factors), arm, value, low, high, p (of accuracies NaN), n (the fewest replicates of a cell), paired,
    reason.
    """
    rows = scored_runs(study, selection)
    rows = rows[rows["where"] == canonical({})]
    tables = [rows[rows["arm"] == arm].set_index("replicate") for arm in factorial.arms]
    columns = ["kind", "term", "arm", "value", "low", "high", "p", "n", "paired", "reason"]
    if any(table.empty for table in tables):
        return pd.DataFrame(columns=columns)
    common = sorted(set.intersection(*(set(table.index) for table in tables)))
    reason = hash_disagreement([table.loc[common, ["hashes"]] for table in tables])
    paired = not reason
    if paired:
        tables, reason = [table.loc[common] for table in tables], HASHES_AGREE
    cells = [table["accuracy"].to_numpy() for table in tables]
    k = len(factorial.factors)
    combined = [subset for subset in range(2**k) if subset.bit_count() > 1]
    identity, predicted = np.eye(2**k), prediction_coefficients(k)
    by_order = sorted(range(1, 2**k), key=lambda subset: (subset.bit_count(), _bits(subset)))
    weights = {
        "effect": (by_order, effect_coefficients(k)[[subset - 1 for subset in by_order]]),
        "measured": (combined, identity[combined]),
        "additive": (combined, predicted[combined]),
        "residual": (combined, (identity - predicted)[combined]),
    }
    parts = []
    for kind, (subsets, coefficients) in weights.items():
        estimate = linear(cells, coefficients, paired)
        parts.append(
            pd.DataFrame(
                {
                    "kind": kind,
                    "term": [factorial.term(subset) for subset in subsets],
                    "arm": [factorial.arms[subset] for subset in subsets],
                    **{name: getattr(estimate, name) for name in ("value", "low", "high", "p")},
                    "n": min(map(len, cells)),
                    "paired": paired,
                    "reason": reason,
                }
            )
        )
    frame = pd.concat(parts, ignore_index=True)
    return frame.assign(p=frame["p"].where(frame["kind"].isin(["effect", "residual"])))[columns]


def _bits(subset: int) -> tuple[int, ...]:
    return tuple(bit for bit in range(subset.bit_length()) if subset >> bit & 1)
