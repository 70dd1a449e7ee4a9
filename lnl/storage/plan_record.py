"""The record of a plan: what a study asked for, as it is stored beside the results.

`lnl.study` makes one for each plan; `lnl.search` adds what its searches found; the store keeps it as JSON in the table
`studies`.  Reports, notebooks and commands read it back with `read_record`, also where an earlier version wrote it:
fields that came later have defaults, and fields that this version does not know are left out.
"""

from __future__ import annotations

from typing import Annotated, Any

import pandas as pd
from pydantic import (
    BaseModel,
    BeforeValidator,
    PlainSerializer,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
)

from lnl import space
from lnl.storage.objects import StorageError
from lnl.storage.outcomes import ACCURACY

Fields = dict[str, Any]  # dotted field of a trial -> value, such as {"noise.rate": 0.4}
StoredSpace = Annotated[space.Space, BeforeValidator(space.from_json), PlainSerializer(space.as_json)]


class PlanRecordError(StorageError):
    """A stored plan is none of ours, or lacks what every plan has; the message names its study."""


class TrialRecord(BaseModel, frozen=True):
    """A planned trial.  Where two arms share a trial, each has a record of it."""

    trial: str  # its id
    arm: str
    setting: Fields  # the factors' levels, where they differ from the base's
    replicate: int


class PrerequisiteRecord(BaseModel, frozen=True):
    """A trial that others start from."""

    trial: str
    arm: str  # "role: method", unless the study has it as an arm of its own


class PanelRecord(BaseModel, frozen=True):
    """A part of the study that becomes one figure."""

    title: str
    arms: tuple[str, ...]
    across: tuple[str, ...] = ()
    curves: tuple[str, ...] = ()
    reference: str  # the arm from which differences are taken


class ContrastRecord(BaseModel, frozen=True):
    """A declared comparison of two arms."""

    arm: str
    against: str
    direction: str = "any"  # or helps, hurts
    smallest_effect: float = 0.0  # in the metric's own unit: accuracies are fractions
    metric: str = ACCURACY  # as split/metric

    @model_serializer(mode="wrap")
    def _as_before(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """The metric where it is another than test accuracy: plans and looks that were stored stay what they are."""
        fields: dict[str, Any] = handler(self)
        return fields if self.metric != ACCURACY else {key: fields[key] for key in fields if key != "metric"}

    @property
    def arms(self) -> frozenset[str]:
        """Both arms."""
        return frozenset((self.arm, self.against))


class WinnerRecord(BaseModel, frozen=True):
    """The best suggestion of a search that has spent its budget."""

    number: int
    params: Fields
    values: tuple[float, ...]  # its objectives


class CellRecord(BaseModel, frozen=True):
    """One search: of one arm, in one setting, with one sampler."""

    search: str  # its name in the table `suggestions`
    arm: str
    searched_arm: str  # the arm with the values that the search found
    sampler: str
    setting: Fields
    space: dict[str, StoredSpace]  # dotted field -> what may be tried
    default: Fields = {}  # the arm's own values
    paper: Fields = {}  # those of the method's paper
    finished: int = 0  # suggestions that count, at the time of the plan
    winner: WinnerRecord | None = None  # None until the budget is spent
    importance: dict[str, float] = {}  # dotted field -> its share


class SearchRecord(BaseModel, frozen=True):
    """What is searched, and how."""

    suggestions: int  # the budget of each cell
    pruner: str = "none"
    replicates: int = 1  # of each suggestion
    settings: str = "base"  # or each
    seed: int = 0
    objectives: tuple[str, ...] = ("accuracy",)
    selection: str = "last"
    validation_labels: str = "noisy"
    cells: tuple[CellRecord, ...] = ()


class PlanRecord(BaseModel, frozen=True):
    """All of a plan that outlives its run.  Arms, panels and contrasts stand in declared order."""

    study: str
    preset: str
    question: str = ""
    base: dict[str, Any] = {}  # the base trial, nested as it is configured
    method_changes: Fields = {}  # of the base's method, what differs from that method's defaults
    base_levels: Fields = {}  # factor -> the base's level
    factors: dict[str, tuple[Any, ...]] = {}  # factor -> its levels
    arms: dict[str, Fields]  # arm -> its overrides
    replicates: int = 1  # of each arm in each setting; with looks at the first of them
    night: str | None = None  # the night whose replicates these are, an ISO date
    looks: tuple[int, ...] = ()  # numbers of replicates at which contrasts are judged; none: at the end only
    selection: str = "last"
    embeddings: int = 0
    panels: dict[str, PanelRecord] = {}
    contrasts: tuple[ContrastRecord, ...] = ()
    trials: tuple[TrialRecord, ...]
    prerequisites: tuple[PrerequisiteRecord, ...] = ()
    search: SearchRecord | None = None

    def as_json(self) -> dict[str, Any]:
        """Plain data, as the store keeps it."""
        return self.model_dump(mode="json")

    @property
    def cells(self) -> tuple[CellRecord, ...]:
        """Its searches; none where it has none."""
        return self.search.cells if self.search else ()

    def require_search(self) -> SearchRecord:
        """Its search.  Raises `ValueError` where it has none."""
        if self.search is None:
            raise ValueError(f"The plan of study '{self.study}' has no search: declare one, or use `lnl search`.")
        return self.search

    @property
    def most_replicates(self) -> int:
        """Of an arm in the base setting, if every look is taken."""
        return self.looks[-1] if self.looks else self.replicates

    @property
    def trial_ids(self) -> set[str]:
        """Ids of its trials and of those that they start from."""
        return {planned.trial for planned in self.trials} | {planned.trial for planned in self.prerequisites}

    def trial_rows(self) -> list[tuple[str, str, Fields, int]]:
        """Its trials, as rows of `PLANNED_COLUMNS`."""
        return [(one.trial, one.arm, one.setting, one.replicate) for one in self.trials]


PLANNED_COLUMNS = tuple(TrialRecord.model_fields)


def read_records(plans: pd.DataFrame) -> list[PlanRecord]:
    """The plans in these rows of the table `studies`.  Raises `PlanRecordError`."""
    return [read_record(text, study) for study, text in zip(plans["study"], plans["plan"], strict=True)]


def read_record(text: str, study: str) -> PlanRecord:
    """A plan as the store keeps it; `study`: the one that its row names.

    Raises `PlanRecordError` with one sentence where it is no plan.
    """
    try:
        return PlanRecord.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        place, reason = ".".join(map(str, first["loc"])), first["msg"].removeprefix("Value error, ")
        raise PlanRecordError(
            f"A stored plan of study '{study}' is not one that this version can read "
            f"({f'{place}: ' if place else ''}{reason}): remove its file from studies/ in the results folder, or "
            "update lnl if a later version wrote it."
        ) from None
