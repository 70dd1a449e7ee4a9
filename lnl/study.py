"""Studies as declarations: base, arms, factors, panels, contrasts, presets -> the plan, a list of trials.

    study = Study(
        name="robmix_ablation", question="Which parts matter?",
        base=Trial(method="robmix", labels=250, noise=Noise("symmetric", 0.4)),
        arms={"full": {}, "frozen_head": {"method.head_update": "frozen"}},
        factors={"labels": [250, 1000, 4000], "noise.rate": [0.1, 0.2, 0.4]},
        replicates=5,
        contrasts=[Contrast("frozen_head", against="full", smallest_effect=0.005)],
    )
    if __name__ == "__main__":
        study.main()

Without panels every arm is crossed with every factor.  A `Panel` is a part of the study that becomes one figure: some
of the arms, across some of the factors, the rest at the base.  A trial that several panels share is trained once.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import date
from functools import cached_property, partial
from typing import Annotated, Any, Literal

import pandas as pd
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError, model_validator
from pydantic.dataclasses import dataclass as settings
from pydantic.dataclasses import is_pydantic_dataclass

from lnl import methods, nights
from lnl.declaring import declared, fields_at, sentence
from lnl.provenance import Current
from lnl.results import (
    Sources,
    Store,
    accuracies,
    canonical,
    diverged,
    is_outcome,
    latest,
    leases,
    now,
    short_hash,
    sources_text,
    tell_left_out,
)
from lnl.space import Choice, Integer, Space, Uniform, as_json
from lnl.trial import METHOD, Noise, Trial

_STRICT = ConfigDict(extra="forbid")
_THE_QUESTION = ("replicate", "dataset", "noise", "validation")  # what stays the same for all suggestions
FEWEST_AT_A_LOOK = 4  # replicates: fewer allow no verdict
SEARCH_REPLICATES = nights.A_NIGHT  # searches have the replicates from here on: none sees those of a study or a night


def _plain(value: Any) -> Any:
    """Plain data, as plans are stored: of `Noise(…)` and the like what differs from the defaults."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if is_pydantic_dataclass(type(value)):
        return TypeAdapter(type(value)).dump_python(value, mode="json", exclude_defaults=True)
    if isinstance(value, Mapping):
        return {key: _plain(part) for key, part in value.items()}
    return [_plain(part) for part in value] if isinstance(value, list | tuple) else value


Overrides = Annotated[dict[str, Any], BeforeValidator(_plain)]  # dotted field -> value
Levels = Annotated[list[Any], BeforeValidator(_plain)]


@declared
@settings(frozen=True, config=_STRICT)
class Contrast:
    """A declared comparison of two arms: its direction, and how large a difference must be to matter."""

    arm: str
    against: str
    direction: Literal["any", "helps", "hurts"] = "any"
    smallest_effect: Annotated[float, Field(ge=0, le=1)] = 0.0  # in accuracy, a fraction: 0.005 is half a point

    @model_validator(mode="after")
    def _of_two(self) -> Contrast:
        if self.arm == self.against:
            raise ValueError(f"a contrast compares two arms, and both are '{self.arm}': name another one")
        return self


@declared
@settings(frozen=True, config=_STRICT)
class Panel:
    """A part of a study that becomes one figure: arms across factors, the first arm the reference of differences."""

    title: str
    arms: tuple[str, ...]
    across: tuple[str, ...] = ()
    curves: tuple[str, ...] = ("train/loss", "test/accuracy")


@declared
@settings(frozen=True, config=_STRICT)
class Search:
    """A search nested in every arm: as many suggestions for each, the arm's own values the first.

    Suggestions are chosen by validation accuracy, never by the test set.  The best of each arm is then trained beside
    the arm itself on the study's replicates, none of which the search has seen.
    """

    suggestions: Annotated[int, Field(ge=1)] = 30  # of each arm and sampler, the arm's own values among them
    space: dict[str, Uniform | Integer | Choice] | None = None  # dotted field -> what may be tried; None: SEARCH of
    # each arm's method
    parameters: tuple[str, ...] | None = None  # only these fields of the space, where an arm has them; None: all
    arms: tuple[str, ...] | None = None  # that are searched; None: all
    samplers: tuple[Literal["tpe", "random", "qmc", "cmaes", "gp", "nsga2"], ...] = ("tpe",)  # one search for each
    pruner: Literal["none", "asha", "median", "percentile", "successive_halving", "hyperband"] = "none"  # asha: Tune's
    objectives: tuple[Literal["accuracy"]] | tuple[Literal["accuracy"], Literal["seconds"]] = ("accuracy",)
    selection: Literal["last", "last10", "val_selected"] | None = None  # of the validation curve; None: the study's
    replicates: Annotated[int, Field(ge=1)] = 1  # of each suggestion: their mean counts
    settings: Literal["base", "each"] = "base"  # base: what is best there is used in all settings
    seed: Annotated[int, Field(ge=0)] = 0  # of the samplers

    @model_validator(mode="after")
    def _consistent(self) -> Search:
        if self.pruner != "none" and self.replicates > 1:
            raise ValueError("a pruner looks at one curve: search with 1 replicate a suggestion, or without a pruner")
        if self.pruner != "none" and len(self.objectives) > 1:
            raise ValueError("a pruner looks at one objective: search for accuracy alone, or without a pruner")
        if "cmaes" in self.samplers and len(self.objectives) > 1:
            raise ValueError("CMA-ES has one objective: choose another sampler, or search for accuracy alone")
        if not self.samplers or len(set(self.samplers)) < len(self.samplers):
            raise ValueError("a search needs a sampler, and each but once")
        if self.parameters is not None and not self.parameters:
            raise ValueError("a search needs at least one parameter")
        return self


@declared
@settings(frozen=True, config=_STRICT)
class Preset:
    """The same study at another size: other base, factor levels, replicates, panels, search or details of arms."""

    base: Overrides = Field(default_factory=dict)
    factors: dict[str, Levels] = Field(default_factory=dict)
    arms: dict[str, Overrides] = Field(default_factory=dict)  # further overrides of arms that exist
    panels: tuple[str, ...] | None = None
    replicates: Annotated[int, Field(ge=1)] | None = None
    looks: tuple[int, ...] | None = None  # None: the study's, where the preset has no replicates of its own
    search: dict[str, Any] = Field(default_factory=dict)  # fields of the study's search

    @model_validator(mode="after")
    def _consistent(self) -> Preset:
        _check_looks(self.looks or ())
        return self


@dataclass(frozen=True)
class Planned:
    """A trial's place in a plan."""

    trial: Trial
    arm: str
    setting: str  # canonical JSON of the factor values that differ from the base
    prerequisite: bool = False  # other trials of the plan start from what it has learnt
    search: str | None = None  # name of the search that asks for it, and the number of the suggestion
    suggestion: int | None = None

    @cached_property  # a hash over all fields, asked for again and again
    def id(self) -> str:
        return self.trial.id


@dataclass(frozen=True)
class Cell:
    """Where a search is nested: one arm in one setting with one sampler."""

    name: str  # study/preset/arm_sampler, the setting, and a hash of all that makes two suggestions comparable
    arm: str
    setting: str
    sampler: str
    trial: Trial  # the arm in that setting, replicate 0
    space: Mapping[str, Space]

    @property
    def searched_arm(self) -> str:
        """The arm with the values that the search finds."""
        return f"{self.arm}_{self.sampler}"

    @property
    def place(self) -> str:
        """The name without the hash: what stays when the declaration of the search changes."""
        return self.name.rpartition("/")[0]

    def holds(self, key: str, params: Mapping[str, Any]) -> bool:
        """Whether the field is searched beside these values, the others being the arm's own."""
        conditions = self.space[key].when.items()
        return all((params[one] if one in params else _get(self.trial, one)) in values for one, values in conditions)

    @property
    def default(self) -> dict[str, Any]:
        """The arm's own values of the fields that are searched there."""
        return {key: _get(self.trial, key) for key in self.space if self.holds(key, {})}


@dataclass(frozen=True)
class Plan:
    """What is to be run, and the words to store it under."""

    study: str
    preset: str
    trials: tuple[Planned, ...]
    record: Mapping[str, Any]  # JSON-able; see `Study.plan`
    search: Search | None = None
    cells: tuple[Cell, ...] = ()

    def of_arms(self, arms: Sequence[str] | None) -> set[str]:
        """Ids of these arms' trials (None: of all), with those that they start from."""
        by_id = {planned.id: planned.trial for planned in self.trials}
        entries = self.record["trials"]  # where two arms are the same, under both
        waiting = [entry["trial"] for entry in entries if arms is None or entry["arm"] in arms]
        ids = set()
        while waiting:
            ids.add(trial := waiting.pop())
            waiting += [before.id for before in by_id[trial].prerequisites.values()]
        return ids

    @property
    def hash(self) -> str:
        return short_hash(canonical(self.record))


@declared
class Study(BaseModel, frozen=True, extra="forbid"):
    """One question, declared in one file."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9_]{1,60}$")]
    question: str
    base: Trial
    arms: dict[str, Overrides] = {"base": {}}
    factors: dict[str, Levels] = Field(default_factory=dict)
    panels: dict[str, Panel] = Field(default_factory=dict)
    replicates: Annotated[int, Field(ge=1)] = 5
    contrasts: list[Contrast] = Field(default_factory=list)
    presets: dict[str, Preset] = Field(default_factory=dict)
    selection: Literal["last", "last10", "val_selected"] = "last"
    looks: tuple[int, ...] = ()  # replicates after which contrasts are judged; those that are undecided get more
    search: Search | None = None
    embeddings: Annotated[int, Field(ge=0)] = 0  # test images whose features replicate 0 keeps, over the epochs

    @model_validator(mode="after")
    def _consistent(self) -> Study:
        _check_looks(self.looks)
        for where, arms in [
            *((f"panel '{name}'", panel.arms) for name, panel in self.panels.items()),
            *((f"contrast '{c.arm}'", (c.arm, c.against)) for c in self.contrasts),
            *((f"preset '{name}'", tuple(preset.arms)) for name, preset in self.presets.items()),
            *([("the search", self.search.arms)] if self.search and self.search.arms else []),
        ]:
            if missing := [arm for arm in arms if arm not in self.arms]:
                raise ValueError(f"{where} names arm '{missing[0]}', which the study does not have")
        if not self.arms or (empty := [name for name, panel in self.panels.items() if not panel.arms]):
            raise ValueError(f"panel '{empty[0]}' has no arm" if self.arms else "a study needs at least one arm")
        for name, panel in self.panels.items():
            if missing := [factor for factor in panel.across if factor not in self.factors]:
                raise ValueError(f"panel '{name}' goes across '{missing[0]}', which is no factor of the study")
        for name, preset in self.presets.items():
            if missing := [panel for panel in preset.panels or () if panel not in self.panels]:
                raise ValueError(f"preset '{name}' names panel '{missing[0]}', which the study does not have")
            if missing := [factor for factor in preset.factors if factor not in self.factors]:
                raise ValueError(f"preset '{name}' sets '{missing[0]}', which is no factor of the study")
        return self

    def plan(
        self,
        preset: str | None = None,
        *,
        changes: Mapping[str, Any] | None = None,
        replicates: int | None = None,
        looks: Sequence[int] | None = None,
        reached: Mapping[str, int] | None = None,
        search: Mapping[str, Any] | None = None,
        night: date | None = None,
        arms: Collection[str] | None = None,
        method: str | None = None,
    ) -> Plan:
        """Every trial of the study in a fixed order, and the record that is stored with the results.

        `changes`: dotted overrides of the base, last to apply.  Fields of the method that they or the preset's base set
        in dotted form, such as "method.batch_size", hold for every arm, also for one of another method, unless the arm
        sets them itself.  Those that stand in an object of the whole method, such as the base trial's, are that
        method's alone.
        `looks`: in place of the declared ones; the first is the number of replicates.  `reached`: of arms that go on to
        later looks, their replicates in the base setting.  `search`: fields of its search, last to apply; a study that
        declares none gets one where they are given.  `night`: with replicates of that night, fresh ones.  An arm's
        override "replicate" shifts its replicates, so that one configuration may be drawn afresh under a second name.
        `arms`, `method`: only these arms, or those of this method, are to be run; the plan has all.

        Raises `ValueError` for unknown presets and keys, for looks or a search that cannot be, where an arm that is to
        be run is of a method without a field that was set for all, and where two arms are the same configuration (they
        would count as evidence twice).
        """
        if preset is not None and preset not in self.presets:
            raise ValueError(
                f"Study {self.name} has no preset '{preset}': choose one of {', '.join(self.presets) or 'none'}."
            )
        if replicates is not None and replicates < 1:
            raise ValueError(f"{replicates} replicates are none: ask for at least 1.")
        chosen = self.presets[preset] if preset else Preset()
        changed = {**chosen.base, **(changes or {})}
        base = self.base.override(changed)
        factors = {
            factor: [_said(base, factor, value) for value in levels]
            for factor, levels in {**self.factors, **chosen.factors}.items()
        }
        own = {name: {**overrides, **chosen.arms.get(name, {})} for name, overrides in self.arms.items()}
        if "replicate" in changed:
            raise ValueError("A study sets the field 'replicate' itself: ask for a number of replicates instead.")
        shifts = {arm: overrides.get("replicate", 0) for arm, overrides in own.items()}
        if wrong := [arm for arm, shift in shifts.items() if type(shift) is not int or shift < 0]:
            raise ValueError(
                f"Arm '{wrong[0]}': 'replicate' is how far its replicates are shifted, a whole number from 0 on, "
                f"not {shifts[wrong[0]]!r}."
            )
        if empty := [factor for factor, levels in factors.items() if not levels]:
            raise ValueError(f"Factor '{empty[0]}' has no level: give it at least one.")
        panels = self.panels or {"all": Panel(self.question, tuple(own), tuple(factors))}
        panels = {name: panel for name, panel in panels.items() if chosen.panels is None or name in chosen.panels}
        searching = self._search({**chosen.search, **(search or {})}, wanted=search is not None)
        if looks and searching is not None:
            raise ValueError("A study that searches has a fixed number of replicates: search without looks.")
        if night is not None and (looks or searching is not None):
            what = "looks" if looks else "a search"
            raise ValueError(f"A night has fixed replicates and no room for {what}: leave out one of the two.")
        if looks is None and replicates is None and searching is None and night is None:
            looks = self.looks_of(preset)
        _check_looks(looks := tuple(looks or ()))
        if any(shifts.values()) and (looks or searching is not None):
            what = "looks" if looks else "a search"
            raise ValueError(f"Shifted replicates of an arm and {what} do not go together: leave out one of the two.")
        count = looks[0] if looks else replicates or chosen.replicates or self.replicates
        if (most := max((count, *looks)) + max(shifts.values())) > SEARCH_REPLICATES:
            raise ValueError(f"{most} replicates are too many: those from {SEARCH_REPLICATES} on belong to searches.")
        level = {factor: _get(base, factor) for factor in factors}
        start = nights.first_replicate(night)

        found: dict[str, Planned] = {}
        for panel in panels.values():
            for values in itertools.product(*(factors[factor] for factor in panel.across)):
                asked = dict(zip(panel.across, values, strict=True))
                there = base.override(asked)
                setting = {f: _get(there, f) for f in panel.across if _get(there, f) != level[f]}
                for arm in panel.arms:
                    for replicate in range(count if setting else (reached or {}).get(arm, count)):
                        index = start + shifts[arm] + replicate
                        trial, lost = _of_arm(arm, base, changed, {**asked, **own[arm], "replicate": index})
                        if lost and (arms is None or arm in arms) and method in (None, trial.method_name):
                            raise ValueError(
                                f"Arm '{arm}' is of method {trial.method_name}, which has no field '{lost[0]}', and "
                                "that is set for all arms: set it in the arms that have it, or choose those by --arms."
                            )
                        planned = Planned(trial, arm, canonical(setting))
                        other = found.setdefault(planned.id, planned)
                        if other.arm != arm:
                            place = setting or "the base"
                            shifted = shifts[other.arm] != shifts[arm]
                            remedy = f"shift one by {count} replicates" if shifted else "drop one"
                            raise ValueError(
                                f"Arms '{other.arm}' and '{arm}' are the same configuration at {place}: {remedy}."
                            )
                        if other.setting != planned.setting:
                            raise ValueError(
                                f"Arm '{arm}' undoes the factor in {setting}: leave it out of panels that go across it."
                            )
        # whole replicates first
        declared = tuple(sorted(found.values(), key=lambda planned: planned.trial.replicate - shifts[planned.arm]))
        trials = with_prerequisites(declared)
        here = {arm for panel in panels.values() for arm in panel.arms}
        crossed = {factor for panel in panels.values() for factor in panel.across}
        cells: tuple[Cell, ...] = ()
        if searching:
            cells = _cells(searching, self.name, preset or "base", found.values(), crossed, self.selection)
            if both := [name for cell in cells if (name := f"search_{cell.arm}") in panels]:
                raise ValueError(f"The panel '{both[0]}' has the name of the one that shows a search: rename it.")
        record = {
            "study": self.name,
            "preset": preset or "base",
            "question": self.question,
            "base": base.model_dump(mode="json"),
            "method_changes": {key: value for key, value in base.identity()["method"].items() if key != "name"},
            "base_levels": level,
            "factors": factors,
            "arms": {arm: own[arm] for arm in own if arm in here},
            "replicates": count,
            "night": night and night.isoformat(),
            "looks": list(looks),
            "selection": self.selection,
            "embeddings": self.embeddings,
            "panels": {
                name: {
                    "title": p.title,
                    "arms": list(p.arms),
                    "across": list(p.across),
                    "curves": list(p.curves),
                    "reference": p.arms[0],
                }
                for name, p in panels.items()
            },
            "contrasts": [
                {"arm": c.arm, "against": c.against, "direction": c.direction, "smallest_effect": c.smallest_effect}
                for c in self.contrasts
                if {c.arm, c.against} <= here
            ],
            **trials_record(declared, trials),
            "search": searching and _search_record(searching, cells, self.selection),
        }
        return Plan(self.name, preset or "base", trials, record, searching, cells)

    def looks_of(self, preset: str | None) -> tuple[int, ...]:
        """The declared looks at this size; none where the preset has a fixed number of replicates."""
        chosen = self.presets.get(preset or "", Preset())  # an unknown one is refused by the plan
        if chosen.looks is not None:
            return chosen.looks
        return self.looks if chosen.replicates is None else ()

    def _search(self, changes: Mapping[str, Any], wanted: bool) -> Search | None:
        """The study's search with these fields changed, or None.  Raises `ValueError` with one sentence."""
        if self.search is None and not wanted:
            return None
        own = {field.name: getattr(self.search or Search(), field.name) for field in fields(Search)}
        if unknown := sorted(set(changes) - set(own)):
            raise ValueError(f"A search has no field '{unknown[0]}': there are {', '.join(own)}.")
        wished = {**own, **changes}
        try:
            return TypeAdapter(Search).validate_python(wished)
        except ValidationError as error:
            raise ValueError(f"Search: {sentence(error, Search, wished)}") from None

    def trials(self) -> list[Trial]:
        """The base plan's configurations, in a fixed order."""
        return [planned.trial for planned in self.plan().trials]

    def main(self) -> None:
        """The study as a command line: `python studies/<name>.py --plan --preset digits …`."""
        from lnl.cli import study_main

        raise SystemExit(study_main(self))


def _of_arm(arm: str, base: Trial, changed: Mapping[str, Any], own: Mapping[str, Any]) -> tuple[Trial, list[str]]:
    """The arm's trial, and which fields of `changed`, set for all arms, its method does not have."""
    try:
        kept, lost = _shared(changed, own)
        return base.override({**kept, **own}), lost
    except ValueError as error:
        raise ValueError(f"Arm '{arm}': {error}") from None


def _shared(changed: Mapping[str, Any], own: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Of what is set for all arms, what one with a method of its own keeps, and what its method does not have.

    A new method starts from its own defaults, so what the base has there by now is lost.
    """
    kept: dict[str, Any] = {}
    lost: list[str] = []
    if (name := _method_of(own)) is None:
        return kept, lost
    for key, value in changed.items():
        *parents, field = key.split(".")
        if not parents or parents[0] != "method" or key in METHOD or _sets(own, key):
            continue
        if field in fields_at(Trial, parents, {"method": name}):
            kept[key] = value
        else:
            lost.append(key)
    return kept, lost


def _method_of(own: Mapping[str, Any]) -> str | None:
    """The name of the method that these settings choose, if they do."""
    for key in METHOD:
        if key in own:
            return own[key].get("name") if isinstance(own[key], Mapping) else own[key]
    return None


def _sets(own: Mapping[str, Any], key: str) -> bool:
    """Whether these settings hold the field: by itself, within a larger one, or in an object of the whole method."""
    whole = own.get("method")
    within_whole = isinstance(whole, Mapping) and key.split(".")[1] in whole
    return within_whole or any(_within(key, other) for other in own if other not in METHOD)


def _check_looks(looks: Sequence[int]) -> None:
    """Raise `ValueError` where no verdict can come of them."""
    if looks and (looks[0] < FEWEST_AT_A_LOOK or any(one >= other for one, other in itertools.pairwise(looks))):
        raise ValueError(f"looks are rising numbers of replicates, from {FEWEST_AT_A_LOOK} on, not {list(looks)}")


def _cells(
    search: Search, study: str, preset: str, planned: Iterable[Planned], crossed: set[str], selection: str
) -> tuple[Cell, ...]:
    """One cell for each arm, sampler and setting to search in.  Raises `ValueError` for a space that cannot be."""
    places: dict[tuple[str, str], Trial] = {}
    planned = list(planned)
    arms = {one.arm: one.trial for one in planned}
    known = dict.fromkeys(key for trial in arms.values() for key in _declared_space(search, trial))
    if unknown := [key for key in search.parameters or () if key not in known]:
        raise ValueError(f"The search has no parameter '{unknown[0]}': there are {', '.join(known)}.")
    if strange := [arm for arm in search.arms or () if arm not in arms]:
        raise ValueError(f"The search names arm '{strange[0]}', which is not planned: there are {', '.join(arms)}.")
    planned = [one for one in planned if search.arms is None or one.arm in search.arms]
    for one in planned:
        if one.trial.replicate == 0 and (search.settings == "each" or one.setting == "{}"):
            places[one.arm, one.setting] = one.trial
    if absent := sorted({one.arm for one in planned} - {arm for arm, _ in places}):
        raise ValueError(
            f"Arm '{absent[0]}' is not planned in the base setting, where the search would be: add the base's levels "
            "to the factors, or search with settings='each'."
        )
    cells = []
    for (arm, setting), trial in places.items():
        if not trial.validation.images:
            raise ValueError(
                f"A search chooses by validation images, and arm '{arm}' has none: give the base some, such as "
                "validation.images=200."
            )
        if not (space := _space(search, arm, trial, crossed)):
            continue
        for sampler in search.samplers:
            comparable = {
                "trial": trial.identity(),
                "space": {key: as_json(one) for key, one in space.items()},
                "selection": search.selection or selection,
                **{name: getattr(search, name) for name in ("objectives", "replicates", "pruner", "seed")},
            }
            if f"{arm}_{sampler}" in arms:
                raise ValueError(f"The searched arm '{arm}_{sampler}' has the name of another arm: rename that one.")
            digest = short_hash(canonical(comparable))[:8]
            words = [study, preset, f"{arm}_{sampler}", *([setting] if setting != "{}" else []), digest]
            cells.append(Cell("/".join(words), arm, setting, sampler, trial, space))
    if not cells:
        raise ValueError("There is nothing to search: no parameter matters in any of the arms.")
    return tuple(cells)


def _within(key: str, other: str) -> bool:
    return key == other or key.startswith(f"{other}.")


def _declared_space(search: Search, trial: Trial) -> dict[str, Space]:
    return dict(search.space or methods.load(trial.method_name).SEARCH)


def _space(search: Search, arm: str, trial: Trial, crossed: set[str]) -> dict[str, Space]:
    """What is searched in an arm: the fields that can matter there, but for those that the study crosses itself.

    Nothing where none does.

    Raises `ValueError` where a field does not exist or is no question for a search, a condition cannot be asked, or the
    arm's own value lies outside.
    """
    space = _declared_space(search, trial)
    of = f"The search of arm '{arm}'"
    asked = (*(search.space or {}), *(search.parameters or ()))
    if both := [key for key in asked if any(_within(key, factor) or _within(factor, key) for factor in crossed)]:
        raise ValueError(f"'{both[0]}' is a factor of the study and cannot be searched: leave one of the two out.")
    wanted = set(space if search.parameters is None else search.parameters) - crossed
    space = {key: one for key, one in space.items() if key in wanted}
    if outside := [key for key in space if key.partition(".")[0] in _THE_QUESTION]:
        raise ValueError(
            f"{of} cannot search the field '{outside[0]}': suggestions would be scored on different images or labels."
        )
    if trial.noise.teacher is not None and (taught := sorted({"probe", "epochs", "steps", "labels"} & set(space))):
        raise ValueError(
            f"{of} cannot search the field '{taught[0]}', which changes the teacher of its noise, too: leave it out."
        )
    own = {}
    for place, (key, one) in enumerate(space.items()):
        for other in (key, *one.when):
            try:
                own[other] = _get(trial, other)
            except ValueError:
                raise ValueError(f"{of} names '{other}', which is no field of its trials.") from None
        if late := [other for other in one.when if other in list(space)[place:]]:
            raise ValueError(f"{of} asks for '{late[0]}' too late: it comes before '{key}', which depends on it.")
    mattering: dict[str, Space] = {}
    for key, one in space.items():
        fixed = {other: values for other, values in one.when.items() if other not in mattering}
        if all(own[other] in values for other, values in fixed.items()):
            mattering[key] = one
    for key, one in mattering.items():
        if all(own[other] in values for other, values in one.when.items()) and own[key] not in one:
            raise ValueError(
                f"{of} does not hold the arm's own value of '{key}', {own[key]!r}, which is always tried first: widen "
                "its range, or search other parameters."
            )
    return mattering


def _search_record(search: Search, cells: Sequence[Cell], selection: str) -> dict[str, Any]:
    """The search as it stands in a plan's record."""
    validation = {cell.trial.validation.labels for cell in cells}
    return {
        **{name: getattr(search, name) for name in ("suggestions", "pruner", "replicates", "settings", "seed")},
        "objectives": list(search.objectives),
        "selection": search.selection or selection,
        "validation_labels": " or ".join(sorted(validation)),
        "cells": [
            {
                "search": cell.name,
                "arm": cell.arm,
                "searched_arm": cell.searched_arm,
                "sampler": cell.sampler,
                "setting": json.loads(cell.setting),
                "space": {key: as_json(one) for key, one in cell.space.items()},
                "default": cell.default,
                "paper": {key: value for key, value in _papers_values(cell).items() if value is not None},
                "finished": 0,
                "winner": None,
                "importance": {},
            }
            for cell in cells
        ],
    }


def _papers_values(cell: Cell) -> dict[str, Any]:
    """Defaults of the method's own fields, which are its paper's."""
    paper = Trial(method=methods.configure(cell.trial.method_name))
    return {key: _get(paper, key) for key in cell.space if key.startswith("method.")}


def trials_record(declared: Iterable[Planned], trials: Iterable[Planned]) -> dict[str, Any]:
    """The part of a plan's record that lists its trials; `trials`: the declared ones with their prerequisites."""
    return {
        "trials": [
            {"trial": p.id, "arm": p.arm, "setting": json.loads(p.setting), "replicate": p.trial.replicate}
            for p in declared
        ],
        "prerequisites": [{"trial": p.id, "arm": p.arm} for p in trials if p.prerequisite],
    }


def with_prerequisites(declared: Sequence[Planned]) -> tuple[Planned, ...]:
    """The declared trials with those that they start from, each once and before them.

    One that the study has as an arm of its own keeps that arm; the others are named after what they are for.
    """
    arms = {planned.id: planned for planned in reversed(declared)}
    ordered: dict[str, Planned] = {}

    def add(planned: Planned) -> None:
        for role, trial in planned.trial.prerequisites.items():
            add(replace(arms.get(trial.id, Planned(trial, f"{role}: {trial.method_name}", "{}")), prerequisite=True))
        if planned.id not in ordered or planned.prerequisite:
            ordered[planned.id] = planned

    for planned in declared:
        add(planned)
    return tuple(ordered.values())


def _said(base: Trial, factor: str, value: Any) -> Any:
    """A level as plans name it: of settings with fields of their own only what differs from the defaults."""
    return _get(base.override({factor: value}), factor) if isinstance(value, Mapping) else value


def _get(trial: Trial, key: str) -> Any:
    """The value at a dotted key; of the method its name."""
    key = "method.name" if key == "method" else key
    place: Any = trial.model_dump(mode="json")
    for part in key.split("."):
        if not isinstance(place, Mapping) or part not in place:
            raise ValueError(f"Factor '{key}' is no field of the trial.")
        place = place[part]
    if key == "noise":
        return {name: value for name, value in place.items() if value != getattr(Noise(), name)}
    return place


# ------------------------------------------------------------------------------------------------------- reconciling

State = Literal["done", "failed", "missing", "stale", "running"]


@dataclass(frozen=True)
class Status:
    """A planned trial beside what the store has of it."""

    planned: Planned
    state: State
    seconds: float | None  # measured where done, else expected from finished trials of the same kind; None: unknown
    accuracy: float | None = None  # on test images under the plan's selection rule; of one that diverged chance
    failure: str | None = None
    diverged: bool = False  # one that is done, or stale
    device: str = ""  # on which `seconds` are expected
    changed: str = ""  # what has changed since a stale trial ran: `lnl.results.CHANGED_…`


def sources_of(plan: Plan, current: Current) -> dict[str, Sources]:
    """The code and data that the plan's trials, by id, and its searches, by name, would use now."""
    trials = {planned.id: current.sources(planned.trial) for planned in plan.trials}
    return trials | {cell.name: current.sources(cell.trial) for cell in plan.cells}


def reconcile(plan: Plan, store: Store, current: Current | None = None) -> list[Status]:
    """Done, failed, stale (done by other code or data), running (leased by a living process) or missing, per trial.

    `failed` are accidents (out of memory, errors), which the next run tries again; a method that diverged is done.
    `current`: what a new trial would use; by default this process's code and the default folder of data.
    """
    columns = [
        "trial",
        "attempt",
        "status",
        "failure_class",
        "failure_message",
        "classes",
        "transition",
        "data_hash",
        f"accuracy_{plan.record['selection']}",
        "seconds",
        "code_hash",
        "sources_hash",
        "method",
        "dataset",
        "network",
        "preset",
        "epochs_done",
        "device",
        "ended_at",
    ]
    rows, unreadable = store.read("trials", plan.study, columns)
    tell_left_out(unreadable)
    rows = latest(rows, sources_of(plan, current or Current()))
    finished = is_outcome(rows) if len(rows) else pd.Series(dtype=bool)
    timings = rows[finished] if len(rows) else rows
    pace = _Pace(timings)
    rows = rows.assign(finished=finished, accuracy=accuracies(rows, plan.record["selection"]), diverged=diverged(rows))
    by_id = rows.set_index("trial").to_dict("index") if len(rows) else {}
    held = {trial for (_, trial), lease in leases(store, plan.study).items() if lease["alive"]}
    statuses = []
    for planned in plan.trials:
        trial, row = planned.trial, by_id.get(planned.id)
        expected = partial(Status, planned, seconds=pace.seconds(trial, plan.preset), device=pace.device)
        if planned.id in held:
            statuses.append(expected("running"))
        elif row is None:
            statuses.append(expected("missing"))
        elif not row["finished"]:
            statuses.append(expected("failed", failure=f"{row['failure_class']}: {row['failure_message']}"))
        else:
            state: State = "stale" if row["stale"] else "done"
            failure = row["failure_message"] if row["status"] != "ok" else None
            seconds, accuracy = _known(row["seconds"]), _known(row["accuracy"])
            has_diverged, changed = bool(row["diverged"]), str(row["stale"])
            statuses.append(Status(planned, state, seconds, accuracy, failure, has_diverged, changed=changed))
    return statuses


def _known(value: float) -> float | None:
    return None if pd.isna(value) else value


class _Pace:
    """Seconds of an epoch as measured, by method, data set and network, on the device that was used last."""

    def __init__(self, timings: pd.DataFrame) -> None:
        """`timings`: rows of finished trials."""
        self.device = ""
        self.measured: dict[Any, float] = {}
        if len(timings):
            timings = timings.assign(device=timings["device"].fillna("")).sort_values("ended_at", kind="stable")
            self.device = timings["device"].iloc[-1]
            here = timings[timings["device"] == self.device]
            for kind in (["method", "dataset", "network"], ["method", "dataset", "network", "preset"]):
                totals = here.groupby(kind)[["seconds", "epochs_done"]].sum()
                totals = totals[totals["epochs_done"] > 0]
                self.measured |= (totals["seconds"] / totals["epochs_done"]).to_dict()

    def seconds(self, trial: Trial, preset: str) -> float | None:
        """Of the same preset where it has been timed: others may make longer epochs."""
        kind = (trial.method_name, trial.dataset, trial.network)
        pace = self.measured.get((*kind, preset), self.measured.get(kind))
        return None if pace is None else pace * trial.total_epochs


def plan_row(plan: Plan, git_commit: str | None, current: Current | None = None) -> dict[str, Any]:
    """The row of table `studies`."""
    return {
        "study": plan.study,
        "preset": plan.preset,
        "plan_hash": plan.hash,
        "plan": json.dumps(plan.record),  # in declared order: figures and tables keep it
        "current": sources_text(sources_of(plan, current or Current())),
        "submitted_at": now(),
        "git_commit": git_commit,
    }


def by_state(statuses: Sequence[Status]) -> dict[str, int]:
    """How many trials are in each state."""
    return {
        state: sum(status.state == state for status in statuses)
        for state in ("done", "stale", "running", "failed", "missing")
    }
