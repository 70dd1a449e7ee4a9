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

from collections.abc import Collection, Mapping, Sequence
from datetime import date
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, model_validator

import lnl
from lnl.declaring import declared
from lnl.storage.part_names import Kept
from lnl.study.arms import is_of_method
from lnl.study.crossing import cross
from lnl.study.parts import Contrast, Levels, Overrides, Panel, Preset, Search, check_looks
from lnl.study.plan import Plan
from lnl.study.recording import record
from lnl.study.resolve import Request, resolve
from lnl.trial.config import Trial


@declared
class Study(BaseModel, frozen=True, extra="forbid"):
    """One question, declared in one file."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9_]{1,60}$")]
    """results are stored under it: small letters, digits and _"""
    question: str
    """the title of its report"""
    base: Trial
    """the trial from which all others differ"""
    shared: Overrides = Field(default_factory=dict)
    """fields of the method, such as "method.batch_size", for every arm whose method has them"""
    arms: dict[str, Overrides] = {"base": {}}
    """what is compared: by name, what each changes of the base"""
    factors: dict[str, Levels] = Field(default_factory=dict)
    """dotted fields that are crossed with the arms, and their levels"""
    panels: dict[str, Panel] = Field(default_factory=dict)
    """parts that become one figure each; none: every arm is crossed with every factor"""
    replicates: Annotated[int, Field(ge=1)] = 5
    """of each arm in each setting"""
    contrasts: list[Contrast] = Field(default_factory=list)
    """declared comparisons, which get a verdict"""
    presets: dict[str, Preset] = Field(default_factory=dict)
    """the same study at other sizes, by name"""
    selection: Literal["last", "last10", "val_selected"] = "last"
    """how a trial's accuracy is read from its curve: the last epoch, the mean of the last ten, or the epoch that
    validation chooses"""
    looks: tuple[int, ...] = ()
    """replicates after which contrasts are judged; those that are undecided get more"""
    search: Search | None = None
    """a search of the parameters of every arm"""
    embeddings: Annotated[int, Field(ge=0)] = 0
    """test images whose features replicate 0 keeps, from before training on"""
    keep: tuple[Kept, ...] = ()
    """what every trial keeps at its end, which is part neither of its id nor of the plan"""

    @model_validator(mode="after")
    def _consistent(self) -> Study:
        check_looks(self.looks)
        _check_shared(self)
        _check_arms(self)
        _check_panels(self)
        _check_presets(self)
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

        `changes`: dotted overrides of the base, last to apply.  Fields of the method that they, the preset's base or
        `shared` set in dotted form, such as "method.batch_size", hold for every arm whose method has them, unless the
        arm sets them itself.  Those that stand in an object of the whole method, such as the base trial's, are that
        method's alone.
        `looks`: in place of the declared ones; the first is the number of replicates.  `reached`: of arms that go on to
        later looks, their replicates in the base setting.  `search`: fields of its search, last to apply; a study that
        declares none gets one where they are given.  `night`: with replicates of that night, fresh ones.  An arm's
        override "replicate" shifts its replicates, so that one configuration may be drawn afresh under a second name.
        `arms`, `method`: only these arms, or those of this method, are to be run; the plan has all.

        Raises `ValueError` for unknown presets and keys, for looks or a search that cannot be, where a field is
        set for all that no arm's method has, and where two arms are the same configuration (they would count as
        evidence twice).
        """
        resolved = resolve(self, Request(preset, changes, replicates, looks, reached, search, night, arms, method))
        crossed = cross(resolved)
        return record(resolved, crossed)

    def looks_of(self, preset: str | None) -> tuple[int, ...]:
        """The declared looks at this size; none where the preset has a fixed number of replicates."""
        chosen = self.presets.get(preset or "", Preset())  # an unknown one is refused by the plan
        if chosen.looks is not None:
            return chosen.looks
        return self.looks if chosen.replicates is None else ()

    def trials(self) -> list[Trial]:
        """The base plan's configurations, in a fixed order."""
        return [planned.trial for planned in self.plan().trials]

    def main(self) -> None:
        """Run the study's command line: `python studies/<name>.py --plan --preset digits …`."""
        raise SystemExit(lnl.study_main(self))


def _check_shared(study: Study) -> None:
    """Raise `ValueError` where something is shared that is no field of a method: the base has that already."""
    if wrong := [key for key in study.shared if not is_of_method(key)]:
        raise ValueError(
            f"shared: '{wrong[0]}' is no field of the method, such as 'method.batch_size': set it in the base, which "
            "all arms start from"
        )


def _check_arms(study: Study) -> None:
    """Raise `ValueError` where the study has no arm, or a part of it names one that there is not."""
    if not study.arms:
        raise ValueError("a study needs at least one arm")
    named: list[tuple[str, Collection[str]]] = [
        *((f"panel '{name}'", panel.arms) for name, panel in study.panels.items()),
        *((f"contrast '{contrast.arm}'", (contrast.arm, contrast.against)) for contrast in study.contrasts),
        *((f"preset '{name}'", preset.arms) for name, preset in study.presets.items()),
    ]
    if study.search is not None and study.search.arms:
        named.append(("the search", study.search.arms))
    for part, arms in named:
        _check_names(part, arms, study.arms, "names arm '{}', which the study does not have")


def _check_panels(study: Study) -> None:
    """Raise `ValueError` where a panel has no arm, or goes across a factor that there is not."""
    for name, panel in study.panels.items():
        if not panel.arms:
            raise ValueError(f"panel '{name}' has no arm")
        _check_names(
            f"panel '{name}'", panel.across, study.factors, "goes across '{}', which is no factor of the study"
        )


def _check_presets(study: Study) -> None:
    """Raise `ValueError` where a preset names a panel or a factor that there is not."""
    for name, preset in study.presets.items():
        part = f"preset '{name}'"
        _check_names(part, preset.panels or (), study.panels, "names panel '{}', which the study does not have")
        _check_names(part, preset.factors, study.factors, "sets '{}', which is no factor of the study")


def _check_names(part: str, names: Collection[str], known: Collection[str], complaint: str) -> None:
    if missing := [name for name in names if name not in known]:
        raise ValueError(f"{part} {complaint.format(missing[0])}")
