"""The parts of a study: contrasts, panels, presets and searches."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, model_validator
from pydantic.dataclasses import dataclass as settings
from pydantic.dataclasses import is_pydantic_dataclass

from lnl.declaring import declared
from lnl.replicates import REPLICATES_PER_NIGHT
from lnl.space import Choice, Integer, Uniform
from lnl.storage.outcomes import ACCURACY

_STRICT = ConfigDict(extra="forbid")
SPLITS = ("train", "test", "validation", "oracle")  # of metrics, as results have them
FEWEST_AT_A_LOOK = 4  # replicates: fewer allow no verdict
SEARCH_REPLICATES = REPLICATES_PER_NIGHT  # the first replicate of searches: none sees those of a study or a night


def _plain(value: Any) -> Any:
    """The value as plain data; of `Noise(…)` and other settings only the fields that differ from their defaults."""
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
    """A declared comparison of two arms: on which metric, its direction, and the smallest difference that matters."""

    arm: str
    """the arm that is judged"""
    against: str
    """the arm with which it is compared"""
    direction: Literal["any", "helps", "hurts"] = "any"
    """what is expected of the arm; it changes no test, but the report says where the result contradicts it"""
    smallest_effect: Annotated[float, Field(ge=0, le=1)] = 0.0
    """the smallest difference that matters, in the metric's unit; accuracies are fractions: 0.005 is half a point"""
    metric: str = ACCURACY
    """what is compared, as split/metric, such as oracle/selection_auc, under the study's selection rule; an arm helps
    where it is larger, of a loss or an error where it is smaller"""

    @model_validator(mode="after")
    def _of_two(self) -> Contrast:
        if self.arm == self.against:
            raise ValueError(f"a contrast must compare two different arms, and both are '{self.arm}': name another one")
        split, slash, name = self.metric.partition("/")
        if split not in SPLITS or not slash or not name.isidentifier():
            raise ValueError(
                f"a contrast's metric is split/name, such as {ACCURACY} or oracle/selection_auc, not '{self.metric}'"
            )
        return self


@declared
@settings(frozen=True, config=_STRICT)
class Panel:
    """A part of a study that becomes one figure: arms across factors; differences are taken from the first arm."""

    title: str
    """of the figure"""
    arms: tuple[str, ...]
    """the arms that are shown; the first is the reference of the differences"""
    across: tuple[str, ...] = ()
    """the factors with which they are crossed; all others stay at the base"""
    curves: tuple[str, ...] = ("train/loss", "test/accuracy")
    """what is drawn over the epochs, as split/metric"""


@declared
@settings(frozen=True, config=_STRICT)
class Search:
    """A search nested in every arm: equally many suggestions for each, the first of them the arm's own values.

    Suggestions are chosen by validation accuracy, never by the test set.  The best of each arm is then trained beside
    the arm itself on the study's replicates, none of which the search has seen.
    """

    suggestions: Annotated[int, Field(ge=1)] = 30
    """of each arm and sampler, the arm's own values among them"""
    space: dict[str, Uniform | Integer | Choice] | None = None
    """dotted field -> what may be tried; None: `SEARCH` of each arm's method"""
    parameters: tuple[str, ...] | None = None
    """only these fields of the space, where an arm has them; None: all"""
    arms: tuple[str, ...] | None = None
    """the arms that are searched; None: all"""
    samplers: tuple[Literal["tpe", "random", "qmc", "cmaes", "gp", "nsga2"], ...] = ("tpe",)
    """one search for each"""
    pruner: Literal["none", "asha", "median", "percentile", "successive_halving", "hyperband"] = "none"
    """what ends hopeless suggestions early; asha is Ray Tune's, the others are Optuna's"""
    objectives: tuple[Literal["accuracy"]] | tuple[Literal["accuracy"], Literal["seconds"]] = ("accuracy",)
    """what is optimized: accuracy alone, or accuracy and seconds of training together"""
    selection: Literal["last", "last10", "val_selected"] | None = None
    """how a suggestion's accuracy is read from its validation curve; None: as the study's"""
    replicates: Annotated[int, Field(ge=1)] = 1
    """of each suggestion: their mean counts"""
    settings: Literal["base", "each"] = "base"
    """base: what is best there is used in all settings; each: a search in every setting"""
    seed: Annotated[int, Field(ge=0)] = 0
    """of the samplers"""

    @model_validator(mode="after")
    def _consistent(self) -> Search:
        if self.pruner != "none" and self.replicates > 1:
            raise ValueError("a pruner follows one curve: search with 1 replicate per suggestion, or without a pruner")
        if self.pruner != "none" and len(self.objectives) > 1:
            raise ValueError("a pruner follows one objective: search for accuracy alone, or without a pruner")
        if "cmaes" in self.samplers and len(self.objectives) > 1:
            raise ValueError("CMA-ES supports one objective: choose another sampler, or search for accuracy alone")
        if not self.samplers or len(set(self.samplers)) < len(self.samplers):
            raise ValueError("a search needs at least one sampler, and each only once")
        if self.parameters is not None and not self.parameters:
            raise ValueError("a search needs at least one parameter")
        return self


@declared
@settings(frozen=True, config=_STRICT)
class Preset:
    """The same study at another size: other base, factor levels, replicates, panels, search or details of arms."""

    base: Overrides = Field(default_factory=dict)
    """what it changes of the base; fields of the method hold for every arm whose method has them"""
    factors: dict[str, Levels] = Field(default_factory=dict)
    """other levels of factors that the study has"""
    arms: dict[str, Overrides] = Field(default_factory=dict)
    """further overrides of arms that the study has"""
    panels: tuple[str, ...] | None = None
    """only these panels; None: all"""
    replicates: Annotated[int, Field(ge=1)] | None = None
    """of each arm in each setting; None: as many as the study has"""
    replicates_elsewhere: Annotated[int, Field(ge=1)] | None = None
    """of each arm in settings other than the base, which alone is judged; None: as many as there"""
    smallest_effect: Annotated[float, Field(ge=0, le=1)] | None = None
    """of every contrast, in the unit of its metric; None: each has its own"""
    looks: tuple[int, ...] | None = None
    """other looks; None: the study's, where the preset has no replicates of its own"""
    search: dict[str, Any] = Field(default_factory=dict)
    """fields of the study's search"""

    @model_validator(mode="after")
    def _consistent(self) -> Preset:
        check_looks(self.looks or ())
        return self


def check_looks(looks: Sequence[int]) -> None:
    """Raise `ValueError` where no verdict can come of these looks."""
    rising = all(earlier < later for earlier, later in itertools.pairwise(looks))
    if looks and (looks[0] < FEWEST_AT_A_LOOK or not rising):
        raise ValueError(f"looks must be rising numbers of replicates, at least {FEWEST_AT_A_LOOK}, not {list(looks)}")
