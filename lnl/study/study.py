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
from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields
from datetime import date
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, TypeAdapter, ValidationError, model_validator

from lnl import replicates as replicates_module
from lnl.declaring import declared, fields_at, sentence
from lnl.storage.places import canonical
from lnl.storage.plan_record import PlanRecord
from lnl.study.cells import _cells, _search_record, _within
from lnl.study.parts import SEARCH_REPLICATES, Contrast, Levels, Overrides, Panel, Preset, Search, _check_looks
from lnl.study.plan import Cell, Plan, Planned, _get, _said, prerequisite_records, trial_records, with_prerequisites
from lnl.trial.config import METHOD, Trial


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
        start = replicates_module.first_replicate(night)

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
        record = PlanRecord.model_validate(
            {
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
                "trials": trial_records(declared),
                "prerequisites": prerequisite_records(trials),
                "search": searching and _search_record(searching, cells, self.selection),
            }
        )
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
        from lnl.cli.main import study_main

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
