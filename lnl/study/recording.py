"""The last step of a plan: its record, which is stored beside the results."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from lnl import methods
from lnl.storage.plan_record import (
    CellRecord,
    ContrastRecord,
    PanelRecord,
    PlanRecord,
    PrerequisiteRecord,
    SearchRecord,
    TrialRecord,
)
from lnl.study.crossing import Crossed
from lnl.study.parts import Contrast, Panel, Search
from lnl.study.plan import Cell, Plan, Planned
from lnl.study.resolve import Resolved
from lnl.trial.config import Trial


def record(resolved: Resolved, crossed: Crossed) -> Plan:
    """The plan of these trials, with the record of what was asked for."""
    search = resolved.search
    content = PlanRecord(
        study=resolved.study,
        preset=resolved.preset,
        question=resolved.question,
        base=resolved.base.model_dump(mode="json"),
        method_changes={key: value for key, value in resolved.base.identity()["method"].items() if key != "name"},
        base_levels=resolved.base_levels,
        factors={factor: tuple(levels) for factor, levels in resolved.factors.items()},
        arms={arm: dict(own) for arm, own in resolved.arms.items() if arm in resolved.shown_arms},
        replicates=resolved.replicates,
        night=resolved.night.isoformat() if resolved.night else None,
        looks=resolved.looks,
        selection=resolved.selection,
        embeddings=resolved.embeddings,
        panels={name: _panel_record(panel) for name, panel in resolved.panels.items()},
        contrasts=tuple(
            _contrast_record(contrast)
            for contrast in resolved.contrasts
            if {contrast.arm, contrast.against} <= resolved.shown_arms
        ),
        trials=trial_records(crossed.declared),
        prerequisites=prerequisite_records(crossed.trials),
        search=_search_record(search, crossed.cells, resolved.selection) if search else None,
    )
    return Plan(crossed.trials, content, search, crossed.cells, crossed.without)


def trial_records(declared: Iterable[Planned]) -> tuple[TrialRecord, ...]:
    """The declared trials, without their prerequisites, as a plan's record lists them."""
    return tuple(
        TrialRecord(
            trial=planned.id,
            arm=planned.arm,
            setting=json.loads(planned.setting),
            replicate=planned.trial.replicate,
        )
        for planned in declared
    )


def prerequisite_records(trials: Iterable[Planned]) -> tuple[PrerequisiteRecord, ...]:
    """Those of a plan's trials from which others start, as its record lists them."""
    return tuple(PrerequisiteRecord(trial=planned.id, arm=planned.arm) for planned in trials if planned.prerequisite)


def _panel_record(panel: Panel) -> PanelRecord:
    return PanelRecord(
        title=panel.title, arms=panel.arms, across=panel.across, curves=panel.curves, reference=panel.arms[0]
    )


def _contrast_record(contrast: Contrast) -> ContrastRecord:
    return ContrastRecord(
        arm=contrast.arm,
        against=contrast.against,
        direction=contrast.direction,
        smallest_effect=contrast.smallest_effect,
        metric=contrast.metric,
    )


def _search_record(search: Search, cells: Sequence[Cell], selection: str) -> SearchRecord:
    return SearchRecord(
        suggestions=search.suggestions,
        pruner=search.pruner,
        replicates=search.replicates,
        settings=search.settings,
        seed=search.seed,
        objectives=search.objectives,
        selection=search.selection or selection,
        validation_labels=" or ".join(sorted({cell.trial.validation.labels for cell in cells})),
        cells=tuple(map(_cell_record, cells)),
    )


def _cell_record(cell: Cell) -> CellRecord:
    return CellRecord(
        search=cell.name,
        arm=cell.arm,
        searched_arm=cell.searched_arm,
        sampler=cell.sampler,
        setting=json.loads(cell.setting),
        space=dict(cell.space),
        default=cell.default,
        paper={key: value for key, value in _paper_values(cell).items() if value is not None},
    )


def _paper_values(cell: Cell) -> dict[str, Any]:
    """The defaults of the method's own fields, which are its paper's."""
    paper = Trial(method=methods.configure(cell.trial.method_name))
    return {key: paper.value(key) for key in cell.space if key.startswith("method.")}
