"""The first step of a plan: a study, its preset and what is asked for on top become one."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import date
from functools import cached_property
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError

from lnl import replicates as replicates_module
from lnl.declaring import sentence
from lnl.study.arms import changed_base
from lnl.study.parts import SEARCH_REPLICATES, Contrast, Panel, Preset, Search, check_looks
from lnl.trial.config import Trial

if TYPE_CHECKING:
    from lnl.study.study import Study


@dataclass(frozen=True)
class Request:
    """What a plan is asked for beyond the study's declaration; see `Study.plan`."""

    preset: str | None = None
    changes: Mapping[str, Any] | None = None
    replicates: int | None = None
    looks: Sequence[int] | None = None
    reached: Mapping[str, int] | None = None
    search: Mapping[str, Any] | None = None
    night: date | None = None
    arms: Collection[str] | None = None
    method: str | None = None

    def is_to_run(self, arm: str, method: str) -> bool:
        """Whether an arm of this method is to be run: the plan has all arms."""
        return (self.arms is None or arm in self.arms) and self.method in (None, method)


@dataclass(frozen=True)
class Resolved:
    """A study at one size."""

    study: str
    preset: str
    question: str
    request: Request
    base: Trial
    changes: Mapping[str, Any]  # dotted field -> value, that study, preset and request set for all arms
    arms: Mapping[str, Mapping[str, Any]]  # arm -> its own overrides
    factors: Mapping[str, Sequence[Any]]  # factor -> its levels
    panels: Mapping[str, Panel]
    contrasts: Sequence[Contrast]
    replicates: int  # of each arm in the base setting
    replicates_elsewhere: int | None  # of each arm in another one; None: as many
    looks: tuple[int, ...]
    search: Search | None
    selection: str
    embeddings: int

    @property
    def night(self) -> date | None:
        """The night whose replicates it has."""
        return self.request.night

    @cached_property
    def base_levels(self) -> dict[str, Any]:
        """Factor -> the base's level."""
        return {factor: self.base.value(factor) for factor in self.factors}

    @cached_property
    def shifts(self) -> dict[str, int]:
        """Arm -> by how much its replicates are shifted, so that one configuration may be drawn afresh."""
        return {arm: overrides.get("replicate", 0) for arm, overrides in self.arms.items()}

    @cached_property
    def shown_arms(self) -> set[str]:
        """The arms of its panels."""
        return {arm for panel in self.panels.values() for arm in panel.arms}

    @cached_property
    def crossed_factors(self) -> set[str]:
        """The factors across which its panels go."""
        return {factor for panel in self.panels.values() for factor in panel.across}

    def replicates_of(self, arm: str, setting: Mapping[str, Any]) -> range:
        """The indices of an arm's replicates in a setting; in the base setting later looks may have asked for more."""
        elsewhere = self.replicates_elsewhere or self.replicates
        count = elsewhere if setting else (self.request.reached or {}).get(arm, self.replicates)
        first = replicates_module.first_replicate(self.night) + self.shifts[arm]
        return range(first, first + count)


def resolve(study: Study, request: Request) -> Resolved:
    """The study at the size that is asked for.  Raises `ValueError` where it cannot be."""
    preset = _preset(study, request.preset)
    if request.replicates is not None and request.replicates < 1:
        raise ValueError(f"replicates must be at least 1, got {request.replicates}.")
    changes = {**study.shared, **preset.base, **(request.changes or {})}
    if "replicate" in changes:
        raise ValueError("A study sets the field 'replicate' itself: ask for a number of replicates instead.")
    base = changed_base(study.base, changes)
    search = _search(study, preset, request)
    looks = _looks(study, request, search)
    resolved = Resolved(
        study=study.name,
        preset=request.preset or "base",
        question=study.question,
        request=request,
        base=base,
        changes=changes,
        arms={name: {**overrides, **preset.arms.get(name, {})} for name, overrides in study.arms.items()},
        factors=_factors(base, {**study.factors, **preset.factors}),
        panels=_panels(study, preset),
        contrasts=_contrasts(study, preset),
        replicates=looks[0] if looks else request.replicates or preset.replicates or study.replicates,
        replicates_elsewhere=None if request.replicates else preset.replicates_elsewhere,
        looks=looks,
        search=search,
        selection=study.selection,
        embeddings=study.embeddings,
    )
    _check_shifts(resolved)
    most = max(resolved.replicates, *looks) if looks else resolved.replicates
    if (most := most + max(resolved.shifts.values())) > SEARCH_REPLICATES:
        raise ValueError(f"{most} replicates are too many: those from {SEARCH_REPLICATES} on belong to searches.")
    return resolved


def _preset(study: Study, name: str | None) -> Preset:
    if name is not None and name not in study.presets:
        raise ValueError(
            f"Study {study.name} has no preset '{name}': choose one of {', '.join(study.presets) or 'none'}."
        )
    return study.presets[name] if name else Preset()


def _factors(base: Trial, declared: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
    """Factor -> its levels, as the record stores them."""
    factors = {
        factor: [_normalise_level(base, factor, value) for value in levels] for factor, levels in declared.items()
    }
    if empty := [factor for factor, levels in factors.items() if not levels]:
        raise ValueError(f"Factor '{empty[0]}' has no level: give it at least one.")
    return factors


def _normalise_level(base: Trial, factor: str, value: Any) -> Any:
    """The level as the record stores it: of nested settings only the fields that differ from their defaults."""
    return base.override({factor: value}).value(factor) if isinstance(value, Mapping) else value


def _contrasts(study: Study, preset: Preset) -> list[Contrast]:
    """The study's contrasts, with the preset's smallest effect where it has one."""
    if preset.smallest_effect is None:
        return study.contrasts
    return [replace(contrast, smallest_effect=preset.smallest_effect) for contrast in study.contrasts]


def _panels(study: Study, preset: Preset) -> dict[str, Panel]:
    """The preset's panels; without any, one that crosses every arm with every factor."""
    factors = {**study.factors, **preset.factors}
    panels = study.panels or {"all": Panel(study.question, tuple(study.arms), tuple(factors))}
    return {name: panel for name, panel in panels.items() if preset.panels is None or name in preset.panels}


def _search(study: Study, preset: Preset, request: Request) -> Search | None:
    """The study's search with the preset's and the request's fields; None where there is none."""
    if study.search is None and request.search is None:
        return None
    declared = study.search or Search()
    settings = {field.name: getattr(declared, field.name) for field in fields(Search)}
    changes = {**preset.search, **(request.search or {})}
    if unknown := sorted(changes.keys() - settings):
        raise ValueError(f"A search has no field '{unknown[0]}': there are {', '.join(settings)}.")
    settings |= changes
    try:
        return TypeAdapter(Search).validate_python(settings)
    except ValidationError as error:
        raise ValueError(f"Search: {sentence(error, Search, settings)}") from None


def _looks(study: Study, request: Request, search: Search | None) -> tuple[int, ...]:
    """The looks that are asked for, or the declared ones where nothing else fixes the number of replicates."""
    looks = request.looks
    if looks and search is not None:
        raise ValueError("A study that searches has a fixed number of replicates: search without looks.")
    if request.night is not None and (looks or search is not None):
        other = "looks" if looks else "a search"
        raise ValueError(
            f"A night has a fixed number of replicates and cannot be combined with {other}: leave out one of the two."
        )
    if looks is None and request.replicates is None and search is None and request.night is None:
        looks = study.looks_of(request.preset)
    looks = tuple(looks or ())
    check_looks(looks)
    return looks


def _check_shifts(resolved: Resolved) -> None:
    shifts = resolved.shifts
    if wrong := [arm for arm, shift in shifts.items() if type(shift) is not int or shift < 0]:
        raise ValueError(
            f"Arm '{wrong[0]}': 'replicate' is how far its replicates are shifted, a whole number from 0 on, "
            f"not {shifts[wrong[0]]!r}."
        )
    if any(shifts.values()) and (resolved.looks or resolved.search is not None):
        other = "looks" if resolved.looks else "a search"
        raise ValueError(f"Shifted replicates of an arm cannot be combined with {other}: leave out one of the two.")
