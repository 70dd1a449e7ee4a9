"""What was trained, from a plan and its rows alone: the base, what each arm changes of it, and what else differs.

A study file says how arms differ from a base; an arm that names another method also gets that method's own batch size,
learning rate and so on.  What an arm trains with in fact stands in the rows that it wrote; before there is one, what
the plan says is known.  Fields are dotted, as in `--set`: {"labels": 250, "method.optimizer.learning_rate": 0.03}.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from analysis import statistics
from analysis.results import Results, in_base
from analysis.tables.table import Table
from analysis.words import factor_name, level_name, listed, readable
from lnl.dotted import flatten
from lnl.storage import outcomes
from lnl.storage.places import canonical
from lnl.storage.plan_record import PlanRecord

Fields = dict[str, Any]

COMPARED_FIELDS = {  # what two arms may differ in without a word -> the field
    "batch size": "method.batch_size",
    "unlabelled images for each labelled one in a batch": "method.mu",
    "batch size of the probe": "method.probe_batch_size",
    "optimizer": "method.optimizer.kind",
    "learning rate": "method.optimizer.learning_rate",
    "weight decay": "method.optimizer.weight_decay",
    "learning-rate schedule": "method.optimizer.schedule",
    "weight average": "method.optimizer.average",
    "epochs": "epochs",
    "epochs of pre-training": "method.pretrain_epochs",
    "steps an epoch": "steps",
    "views": "method.views",
    "augmentation": "method.augmentation",
    "strong view": "method.strong_view",
    "precision": "precision",
}
ABSENT_MEANS: Fields = {"method.pretrain_epochs": 0}  # what a method without the field does
PARAMETER_COLUMN = "parameters"
INIT_FROM = "init_from."  # fields of the trial that trains the backbone before
SIMILAR_SIZE = 0.01  # of the parameters: a head more or less is no difference worth naming
MOST_REASONS = 20  # of failures, in the table
OPTIMIZERS = {"sgd": "SGD", "adam": "Adam", "adamw": "AdamW"}


class Remark(NamedTuple):
    """Two arms that are compared, and what they differ in although neither says so: name -> both values, in words."""

    arm: str
    against: str
    differences: dict[str, tuple[str, str]]

    def in_words(self) -> str:
        """Describe the differences: `batch size (64, 128) and learning rate (0.03, 0.01)`."""
        return listed(f"{name} ({first}, {second})" for name, (first, second) in self.differences.items())


# -------------------------------------------------------------------------------------------------- what is known of it


def configurations(plan: PlanRecord, trials: pd.DataFrame) -> dict[str, Fields]:
    """Arm -> its fields in the base setting: from its rows, else as far as the plan tells.

    An arm that names another method than the base has, and no row yet, has none of that method's own fields here.
    `trials`: finished ones, with `config`.
    """
    rows = in_base(trials[trials["config"].notna()]).drop_duplicates("arm") if len(trials) else trials
    known = {str(row["arm"]): flatten(json.loads(row["config"])) for row in statistics.records(rows)}
    return {arm: known.get(arm) or _planned_fields(plan.base, overrides) for arm, overrides in plan.arms.items()}


def _planned_fields(base: Mapping[str, Any], overrides: Mapping[str, Any]) -> Fields:
    """Return the base's fields with an arm's overrides."""
    fields, changes = flatten(base), flatten(overrides)
    name = changes.pop("method", None) or changes.get("method.name")
    if name is not None and name != fields.get("method.name"):
        fields = {key: value for key, value in fields.items() if not key.startswith("method.")} | {"method.name": name}
    for key in changes:
        fields = {other: value for other, value in fields.items() if not other.startswith(f"{key}.")}
    return fields | changes


def parameter_counts(trials: pd.DataFrame) -> dict[str, int]:
    """Return how many weights each arm trains in the base setting, where a row tells."""
    rows = in_base(trials[trials["parameters"].notna()]) if len(trials) else trials
    return {str(arm): int(counts.iloc[0]) for arm, counts in rows.groupby("arm")["parameters"]}


# --------------------------------------------------------------------------------------------- what compared arms share


def compared_arms(plan: PlanRecord) -> list[tuple[str, str]]:
    """Pairs of arms that the report sets against each other, contrasts first, each pair once."""
    pairs = [(contrast.arm, contrast.against) for contrast in plan.contrasts]
    pairs += [(arm, panel.reference) for panel in plan.panels.values() for arm in panel.arms]
    known = set(plan.arms)
    first = {frozenset(pair): pair for pair in reversed(pairs) if len(set(pair)) == 2 and known.issuperset(pair)}
    return sorted(first.values(), key=pairs.index)


def remarks(plan: PlanRecord, trials: pd.DataFrame) -> list[Remark]:
    """What arms that are compared differ in beyond what their overrides say, pair by pair; see `COMPARED_FIELDS`.

    A field counts where an arm has another value than the base and its overrides do not name it: then a default of
    another method brought it.  Numbers of parameters count where the methods differ and no override names the network.
    """
    known, counts, base = configurations(plan, trials), parameter_counts(trials), flatten(plan.base)
    overridden = {arm: set(flatten(overrides)) for arm, overrides in plan.arms.items()}

    def silent(arm: str, field: str) -> bool:
        fields = known[arm]
        return value_of(fields, field) != value_of(base, field) and field not in overridden[arm]

    remarks_found = []
    for arm, against in compared_arms(plan):
        own, other = known[arm], known[against]
        differences = {
            name: (value_in_words(value_of(own, field)), value_in_words(value_of(other, field)))
            for name, field in COMPARED_FIELDS.items()
            if _is_known(own, field) and _is_known(other, field) and value_of(own, field) != value_of(other, field)
            if silent(arm, field) or silent(against, field)
        }
        if (
            own.get("method.name") != other.get("method.name")
            and "network" not in overridden[arm] | overridden[against]
        ):
            first, second = counts.get(arm), counts.get(against)
            if first and second and abs(first - second) > SIMILAR_SIZE * max(first, second):
                differences["number of parameters"] = (f"{first:,}", f"{second:,}")
        if differences:
            remarks_found.append(Remark(arm, against, differences))
    return remarks_found


def _is_known(fields: Fields, field: str) -> bool:
    """Whether the value is known; a method that is known altogether has its batch size among its fields."""
    return field in fields or (field in ABSENT_MEANS and any(key.startswith("method.o") for key in fields))


def value_of(fields: Fields, field: str) -> Any:
    """Return a field's value, or what its absence means."""
    return fields.get(field, ABSENT_MEANS.get(field))


def remark_sentences(remarks_found: Sequence[Remark]) -> Iterator[str]:
    """Yield a sentence for all arms that differ from the same arm in the same fields."""
    groups: dict[tuple[str, str], list[str]] = {}
    for remark in remarks_found:
        groups.setdefault((remark.against, remark.in_words()), []).append(readable(remark.arm))
    for (against, about), arms in groups.items():
        if len(arms) == 1:
            yield f"{arms[0]} and {readable(against)} also differ in {about}."
        else:
            yield f"{listed(arms)} differ from {readable(against)} also in {about}."


def same_training_sentences(plan: PlanRecord, trials: pd.DataFrame) -> Iterator[str]:
    """Arms that are one training by construction: they share their trials, or one configuration."""
    of_arm: dict[str, set[str]] = {arm: set() for arm in plan.arms}
    for entry in plan.trials:
        of_arm.setdefault(entry.arm, set()).add(entry.trial)
    known = configurations(plan, trials)
    for first, second in combinations(of_arm, 2):
        names = f"{readable(first)} and {readable(second)}"
        if shared := of_arm[first] & of_arm[second]:
            whole = "" if of_arm[first] == of_arm[second] else f" in {len(shared)} trials"
            yield f"{names} are one training{whole}: the same trials count under both names."
        elif first in known and second in known and _same_but_replicate(known[first], known[second]):
            yield f"{names} are one configuration, drawn afresh: whatever differs between them is chance."


def _same_but_replicate(first: Fields, second: Fields) -> bool:
    return {**first, "replicate": 0} == {**second, "replicate": 0}


# --------------------------------------------------------------------------------------------------------------- tables


def base_sentence(study: Results) -> str:
    """The base in one sentence; nothing where a plan tells too little of it."""
    rows = dict(_base_rows(study))
    if not {"network", "data set", "method", "training"} <= rows.keys():
        return ""
    network, data, method = (
        rows[name].partition(";")[0].partition(":")[0] for name in ("network", "data set", "method")
    )
    details = [f"{name}: {rows[name]}" for name in ("labelled images", "label noise", "training") if name in rows]
    return f"The base trains {network} on {data} by the method {method}; {'; '.join(details)}."


def base_table(study: Results) -> Table:
    """Tabulate the base configuration in plain words."""
    rows = [list(row) for row in _base_rows(study)]
    caption = "The base configuration, from which the arms differ."
    if all(changed_fields(study.plan, arm) for arm in study.plan.arms):
        caption = "The base configuration, from which the arms differ; no arm trains it as it stands."
    return Table(caption, ["what", "in the base"], rows, pd.DataFrame(rows, columns=["what", "value"]))


def method_table(study: Results) -> Table:
    """Tabulate every field of the base's method."""
    fields = {key: value for key, value in flatten(study.plan.base).items() if key.startswith("method.")}
    rows = [[key, value_in_words(value)] for key, value in fields.items() if key != "method.name"]
    caption = f"All settings of {fields.get('method.name', 'the method')} in the base, as --set names them."
    return Table(caption, ["setting", "value"], rows, pd.DataFrame(rows, columns=["setting", "value"]))


def arms_table(study: Results) -> Table:
    """What each arm changes of the base, and what it trains with in those columns in which arms differ."""
    plan, known, counts = study.plan, configurations(study.plan, study.trials), parameter_counts(study.trials)
    columns: dict[str, Callable[[str], str]] = {
        "method": lambda arm: value_in_words(known[arm].get("method.name", "")),
        "batch size": lambda arm: value_in_words(known[arm].get("method.batch_size", "")),
        "learning rate": lambda arm: value_in_words(known[arm].get("method.optimizer.learning_rate", "")),
        "epochs": lambda arm: value_in_words(known[arm].get("epochs", "")),
        "steps an epoch": lambda arm: value_in_words(known[arm].get("steps", "")),
        PARAMETER_COLUMN: lambda arm: f"{counts[arm]:,}" if arm in counts else "",
    }
    differing = {name: show for name, show in columns.items() if len({show(arm) for arm in plan.arms} - {""}) > 1}
    rows = [
        [readable(arm), changes_in_words(changed_fields(plan, arm)), *(show(arm) for show in differing.values())]
        for arm in plan.arms
    ]
    header = ["arm", "what it changes of the base", *differing]
    caption = "What each arm changes of the base" + (", and what it trains with" if differing else "") + "."
    return Table(caption, header, rows, pd.DataFrame(rows, columns=header))


def failures_table(study: Results) -> Table:
    """Tabulate why trials failed or diverged, in the words of their newest attempts."""
    columns = ["arm", "failure_class", "failure_message"]
    broken = study.trials[outcomes.diverged(study.trials)]
    parts = [part[columns] for part in (broken.drop_duplicates("trial"), study.missing) if len(part)]
    rows = pd.concat(parts) if parts else pd.DataFrame(columns=columns)
    rows = rows[rows["failure_class"].notna()].assign(
        reason=lambda frame: frame["failure_message"].map(_first_line),
        what=lambda frame: frame["failure_class"].map(lambda kind: "diverged" if kind == "nan" else readable(kind)),
    )
    groups = sorted(rows.groupby(["what", "reason"], sort=True), key=lambda group: -len(group[1]))
    cells = [
        [str(what), str(reason), _arms_counted(group["arm"].value_counts()), str(len(group))]
        for (what, reason), group in groups[:MOST_REASONS]
    ]
    caption = "Why trials failed or diverged, in the words of their newest attempt."
    if len(groups) > MOST_REASONS:
        rest = sum(len(group) for _, group in groups[MOST_REASONS:])
        caption += f" {rest} more trials gave {len(groups) - MOST_REASONS} other reasons."
    frame = pd.DataFrame(cells, columns=["what", "reason", "arms", "trials"])
    return Table(caption, ["what", "in its own words", "arms", "trials"], cells, frame)


def _first_line(message: Any) -> str:
    """The epoch left out, so that trials that broke down alike stand together."""
    lines = message.strip().splitlines() if isinstance(message, str) else []
    return re.sub(r"\bepoch \d+", "epoch …", lines[0]) if lines else "(it left no message)"


def _arms_counted(counts: pd.Series) -> str:
    ordered = sorted(counts.items(), key=lambda item: (-item[1], str(item[0])))
    shown = [f"{readable(str(arm))} ({n})" if len(ordered) > 1 else readable(str(arm)) for arm, n in ordered]
    return ", ".join(shown[:8]) + f" and {len(shown) - 8} more arms" * (len(shown) > 8)


def changed_fields(plan: PlanRecord, arm: str) -> Fields:
    """Return an arm's overrides without those that repeat the base."""
    base, overrides = flatten(plan.base), flatten(plan.arms[arm])
    if "method.name" in overrides:
        overrides = {"method": overrides.pop("method.name"), **overrides}
    base |= {"method": base.get("method.name")}
    return {key: value for key, value in overrides.items() if key not in base or base[key] != value}


def changes_in_words(changes: Mapping[str, Any]) -> str:
    """Describe overrides: `method: gce; learning rate: 0.01`, or `nothing`."""
    start = {key.removeprefix(INIT_FROM): value for key, value in changes.items() if key.startswith(INIT_FROM)}
    parts = [_change(key, value) for key, value in changes.items() if not key.startswith(INIT_FROM)]
    if start:
        method = start.pop("method", None) or start.pop("method.name", None)
        parts.append(
            f"starts from a backbone that {method} has trained" + f" ({changes_in_words(start)})" * bool(start)
        )
    return "; ".join(parts) or "nothing"


def _change(key: str, value: Any) -> str:
    if key == "replicate":
        return f"other replicates, from {value} on"
    name = key.removeprefix("method.")
    return f"{readable(name).replace('.', ' ')}: {value_in_words(value)}"


def _base_rows(study: Results) -> Iterator[tuple[str, str]]:
    """What is known of the base, by name: a plan of an older version, or of another program's, may lack any of it."""
    base = flatten(study.plan.base)
    trials = _base_trials(study)
    yield from _data_rows(study, base, trials)
    yield from _method_rows(study, base)
    yield from _evaluation_rows(base)
    yield from _plan_rows(study)


def _base_trials(study: Results) -> pd.DataFrame:
    """Finished trials of the arm that changes nothing, in the base setting; none where there is no such arm."""
    unchanged = next((arm for arm in study.plan.arms if not changed_fields(study.plan, arm)), "")
    rows = in_base(study.trials)
    return rows[rows["arm"] == unchanged]


def _data_rows(study: Results, base: Fields, trials: pd.DataFrame) -> Iterator[tuple[str, str]]:
    if "dataset" in base:
        resized = f"; images resized to {base['resize']} pixels" if base.get("resize") else ""
        yield "data set", f"{base['dataset']}{resized}"
    if "network" in base:
        count = next(iter(parameter_counts(trials).values()), None)
        network = f"{base['network']}{_initialisation(study.plan.base)}"
        yield "network", network + (f"; {count:,} parameters" if count else "")
    if "labels" in base:
        drawn = ", drawn at random" if base.get("labels_drawn") == "random" else ""
        yield "labelled images", f"{base['labels']:,}, all classes together{drawn}" if base["labels"] else "all"
    if "unlabelled_ratio" in base:
        used = sorted(set(trials["unlabelled"].dropna().astype(int)))
        ratio = base["unlabelled_ratio"]
        number = f": {used[0]:,}" if len(used) == 1 else ""
        yield "unlabelled images", f"{ratio:g} for each labelled one{number}" if ratio else f"all that are left{number}"
    if "noise.kind" in base:
        yield "label noise", _noise(base)


def _method_rows(study: Results, base: Fields) -> Iterator[tuple[str, str]]:
    if "method.name" in base:
        changed = flatten(study.plan.method_changes)
        own = {key: value for key, value in changed.items() if f"method.{key}" not in COMPARED_FIELDS.values()}
        texts = [_change(key, value) for key, value in own.items() if not key.startswith("optimizer.")]
        yield "method", base["method.name"] + (f": {'; '.join(texts)}" if texts else "")
    if "method.optimizer.kind" in base:
        yield "optimizer", _optimizer(base)
    if "method.batch_size" in base:
        mu = base.get("method.mu")
        yield "batch", f"{base['method.batch_size']} images" + f", and {mu} unlabelled ones for each" * bool(mu)
    if "epochs" in base:
        yield "training", _training(base)
    if "precision" in base:
        yield "precision", base["precision"]


def _evaluation_rows(base: Fields) -> Iterator[tuple[str, str]]:
    if "validation.images" in base:
        images = base["validation.images"]
        split = "test" if base.get("validation.source") == "test" else "training"
        text = f"{images:,} images cut from the {split} set, with {base.get('validation.labels')} labels"
        yield "validation", text if images else "none"
    if "probe" in base:
        yield "trusted images (probe)", f"{base['probe']:,}" if base["probe"] else "none"


def _plan_rows(study: Results) -> Iterator[tuple[str, str]]:
    plan = study.plan
    looks = plan.looks
    judged = f"; contrasts are judged after {', '.join(map(str, looks))}" if looks else ""
    elsewhere = Counter((trial.arm, canonical(trial.setting)) for trial in plan.trials if trial.setting)
    counts = {plan.replicates, *elsewhere.values()}
    where = "each setting" if len(counts) == 1 else f"the base setting, {min(counts)} in others"
    yield "replicates", f"{plan.replicates} of each arm in {where}{judged}"
    crossed = {factor for panel in plan.panels.values() for factor in panel.across}
    for factor in plan.factors:
        if factor in crossed:
            levels = ", ".join(level_name(factor, level) for level in study.levels(factor))
            yield f"crossed: {factor_name(factor)}", levels


def _initialisation(base: Mapping[str, Any]) -> str:
    """Describe where the backbone starts, unless its weights are drawn at random."""
    if base.get("weights"):
        return f", which starts from the weights {base['weights']}"
    if start := base.get("init_from"):
        return f", which {changes_in_words(flatten({'init_from': start}))}"
    return ""


def _noise(base: Fields) -> str:
    kind, rate = base["noise.kind"], base.get("noise.rate", 0)
    if kind == "none":
        return "none"
    parts = ["labels that people gave" if kind == "given" else readable(kind)]
    parts += [f"{100 * rate:g} % of the labels"] if rate else []
    parts += [f"column {base['noise.column']}"] if base.get("noise.column") else []
    parts += ["the true class may be drawn again"] if base.get("noise.include_true") else []
    return ", ".join(parts)


def _optimizer(base: Fields) -> str:
    of = {key.removeprefix("method.optimizer."): value for key, value in base.items() if ".optimizer." in key}
    parts = [OPTIMIZERS.get(of["kind"], of["kind"])]
    if of["kind"] == "sgd" and of.get("momentum"):
        parts.append(f"{'Nesterov ' * bool(of.get('nesterov'))}momentum {of['momentum']:g}")
    parts.append(f"learning rate {of.get('learning_rate', 0):g}, {of.get('schedule', 'constant')}")
    parts += [f"weight decay {of['weight_decay']:g}"] if of.get("weight_decay") else []
    parts += [f"weights averaged with decay {of['average']:g}"] if of.get("average") else []
    return "; ".join(parts)


def _training(base: Fields) -> str:
    epochs, steps = base["epochs"], base.get("steps")
    if steps:
        text = f"{epochs:,} epochs of {steps:,} steps, {epochs * steps:,} in all"
    else:
        text = f"{epochs:,} epochs, each one pass over the larger part of the images"
    before = base.get("method.pretrain_epochs")
    return text + (f", after {before:,} epochs of pre-training" if before else "")


def value_in_words(value: Any) -> str:
    """Name a field's value: `none`, `yes`, `0.03`, or a list's values."""
    if value is None:
        return "none"
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    return ", ".join(map(value_in_words, value)) if isinstance(value, list | tuple) else str(value)
