"""The results of one study: its newest plan, joined with the rows of the trials that it asks for.

Figures and tables are drawn from these elsewhere; see `analysis.notebook` for what `load` returns.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from analysis import measures, statistics
from analysis.measures import ACCURACY
from analysis.verdicts import FEWEST_REPLICATES, declarations, judge_contrasts
from analysis.words import settings_in_words
from lnl import replicates
from lnl.storage import kept
from lnl.storage.currency import (
    CHANGED_CODE,
    CHANGED_DATA,
    CHANGED_RULE,
    CHANGED_SOURCES,
    Sources,
    latest,
    sources_from,
    why_stale,
)
from lnl.storage.files import shown
from lnl.storage.objects import StorageError
from lnl.storage.outcomes import counting, is_outcome
from lnl.storage.part_names import Kept, attempt_name
from lnl.storage.places import Place, place
from lnl.storage.plan_record import PLANNED_COLUMNS, CellRecord, PanelRecord, PlanRecord, read_records
from lnl.storage.store import Store, by_submission
from lnl.storage.tables import LeftOut

REFINED_ACCURACY, REFINED_NOISE = "oracle/refined_accuracy", "oracle/refined_noise"
# factor -> what a level without a value (null) means; others: "none"
UNSET_LEVELS = {"unlabelled_ratio": "all", "labels": "all"}
SUGGESTION_COLUMNS = (  # of `Results.suggestions`
    *("search", "arm", "searched_arm", "sampler", "setting", "number", "state", "params", "accuracy", "seconds"),
    *("epochs", "diverged", "test", "counts", "own", "curve", "spent", "message", "code_hash"),
)


class LoadError(ValueError):
    """The results asked for are not there; the message says what is."""


@dataclass(frozen=True)
class Results:
    """A plan and what became of its trials.  Accuracies are fractions."""

    root: Place
    name: str
    preset: str
    plan_hash: str
    plan: PlanRecord
    trials: pd.DataFrame  # finished trials of the plan, one row each (diverged ones too); `setting` is a dict
    missing: pd.DataFrame  # planned trials without a finished row, with the failure of their newest attempt
    left: pd.DataFrame  # newest rows of trials that an older plan asked for and this one does not
    suggested: pd.DataFrame  # rows of the plan's searches, as stored; see `suggestions`
    tried: pd.DataFrame  # newest rows of the trials behind them
    unreadable: LeftOut  # files that are left out, and why; grows when `epochs` or `arrays` meets one
    on_other_data: str = ""  # a sentence where results are left out because their data were replaced since
    by_other_code: str = ""  # a sentence where results were made by code that has changed since
    on_data: str = ""  # sentences on what was odd about the images when they were read
    earlier: tuple[int, ...] = ()  # smaller numbers of replicates that were submitted before, without declared looks

    def epochs(self, metrics: Sequence[str]) -> pd.DataFrame:
        """Curves of finished trials, long: trial, arm, setting, replicate, epoch, metric ("split/name"), value.

        Only these metrics are read from disk.  `oracle/refined_noise` is one minus `oracle/refined_accuracy`, and in
        epoch 0 the share of wrong labels among the given ones.
        """
        if REFINED_NOISE in metrics:
            return self._with_noise(metrics)
        parts = [metric.partition("/") for metric in metrics] or [("", "", "")]  # pyarrow refuses an empty list
        where = [("split", "in", [split for split, _, _ in parts]), ("metric", "in", [name for _, _, name in parts])]
        rows = self._of_finished("epochs", ["split", "metric", "value"], self.trials, where)
        rows["metric"] = rows["split"] + "/" + rows["metric"]
        return rows[rows["metric"].isin(metrics)].drop(columns="split")

    def _with_noise(self, metrics: Sequence[str]) -> pd.DataFrame:
        stored = self.epochs(list({*metrics, REFINED_ACCURACY} - {REFINED_NOISE}))
        accuracy = stored[stored["metric"] == REFINED_ACCURACY]
        noise = accuracy.assign(value=1 - accuracy["value"], metric=REFINED_NOISE)
        given = self.trials.set_index("trial")["noise_realised"]
        first = noise.drop_duplicates("trial").assign(epoch=0)
        first["value"] = first["trial"].map(given).astype(float)
        rows = stored if REFINED_ACCURACY in metrics else stored[stored["metric"] != REFINED_ACCURACY]
        return pd.concat([rows, first.dropna(subset="value"), noise], ignore_index=True)

    def arrays(self, trials: Sequence[str], names: Sequence[str] = ()) -> pd.DataFrame:
        """What these finished trials store for figures, long: trial, arm, setting, replicate, epoch, name, array.

        Names are "split/name", as `lnl.trial` writes them.  `names`: only these are read; none given: all.
        """
        chosen = self.trials[self.trials["trial"].isin(trials)]
        where = [("name", "in", [name.partition("/")[2] for name in names])] if names else []
        rows = self._of_finished("arrays", ["split", "name", "shape", "values"], chosen, where)
        rows["name"] = rows["split"] + "/" + rows["name"]
        rows = rows[rows["name"].isin(names or rows["name"])]
        rows["array"] = [values.reshape(shape) for values, shape in zip(rows["values"], rows["shape"], strict=True)]
        return rows.drop(columns=["split", "shape", "values"])

    def predictions(self, trial: str) -> pd.DataFrame:
        """What a finished trial predicts of each test and training image, where it has kept that.

        Columns: subset (test, labelled, unlabelled, probe), index among the data set's test or training images, file
        where these have names, given and true label where there are any, predicted class, confidence (its probability),
        and the probabilities of all classes where there are at most 20.  Raises LoadError where there is no file, or a
        damaged one.
        """
        return self._kept("predictions", trial)

    def beliefs(self, trial: str) -> pd.DataFrame:
        """What a finished trial believes of each given label, the most suspected first, where it has kept that.

        Columns: as `predictions` has them of an image, the probability that its prediction gives to the given label,
        what the method itself tells (clean, coefficient, loss, selected: see `lnl.training.task.Beliefs`), the label
        that it proposes, and `ranked_by`, the column that puts rows in order.  Raises LoadError as `predictions`.
        """
        return self._kept("beliefs", trial)

    def weights(self, trial: str) -> dict[str, np.ndarray]:
        """The final weights of a finished trial by name, where it has kept them.  Raises LoadError as `predictions`."""
        path = self.kept_path("weights", trial)
        try:
            return kept.read_weights(path)
        except FileNotFoundError:
            raise self._without("weights", trial) from None
        except StorageError as error:
            raise LoadError(str(error)) from error

    def kept_path(self, kind: Kept, trial: str) -> Place:
        """The file in which a finished trial keeps its predictions, beliefs or weights, whether it is there or not."""
        rows = self.trials.loc[self.trials["trial"] == trial, "attempt"]
        if rows.empty:
            raise LoadError(
                f"The study {self.name!r} has no finished trial {trial!r}: see the column `trial` of trials."
            )
        return Store(self.root).kept_path(kind, self.name, trial, int(rows.iloc[0]))

    def trials_with(self, kind: Kept) -> pd.DataFrame:
        """The rows of `trials` that have kept their predictions, beliefs or weights."""
        names = list(map(attempt_name, self.trials["trial"], self.trials["attempt"]))
        have = kept.attempts_with(Store(self.root), self.name, [kind])[kind]
        return self.trials[np.isin(np.array(names, dtype=str), list(have))]

    def _kept(self, kind: Kept, trial: str) -> pd.DataFrame:
        """A table of one trial, in the order of its file."""
        path = self.kept_path(kind, trial)
        frame, broken = Store(self.root).read(kind, self.name, files=[path.stem])
        if why := broken.get(path):
            raise LoadError(f"{shown(path)} cannot be read ({why}): remove it; --rerun-unkept then trains it again.")
        if frame.empty:
            raise self._without(kind, trial)
        return frame.drop(columns=["study", "attempt", "schema_version"])

    def _without(self, kind: Kept, trial: str) -> LoadError:
        return LoadError(
            f"The trial {trial} has kept no {kind}: run the study with --keep {kind} --rerun-unkept, which trains it "
            "again."
        )

    def _of_finished(
        self, table: str, columns: Sequence[str], trials: pd.DataFrame, where: Sequence[tuple[str, str, list[str]]] = ()
    ) -> pd.DataFrame:
        """Rows of these finished trials, by epoch, with the trial's arm, setting and replicate; opens no other file."""
        wanted = ["trial", "attempt", "epoch", *columns]
        files = set(map(attempt_name, trials["trial"], trials["attempt"]))
        rows, broken = Store(self.root).read(table, self.name, wanted, where, files=files)
        _report_unreadable({path: broken[path] for path in broken if path not in self.unreadable}, stacklevel=4)
        self.unreadable.update(broken)
        about = trials[["trial", "attempt", "arm", "setting", "replicate"]]
        return about.merge(rows, on=["trial", "attempt"]).drop(columns="attempt")

    def panel(self, name: str) -> pd.DataFrame:
        """Finished trials of a panel; `arm` and one column per crossed factor are ordered categories, as declared."""
        panel = self.declared_panel(name)
        of_panel = self.trials["arm"].isin(panel.arms) & self.trials["setting"].map(set(panel.across).issuperset)
        rows = self.trials[of_panel.astype(bool)]
        rows = rows.assign(arm=pd.Categorical(rows["arm"], list(panel.arms), ordered=True))
        for factor in panel.across:
            values = [_level(factor, s.get(factor, self.plan.base_levels.get(factor))) for s in rows["setting"]]
            rows[factor] = pd.Categorical(values, self.levels(factor), ordered=True)
        return rows.sort_values(["arm", *panel.across, "replicate"], ignore_index=True)

    def levels(self, factor: str) -> list[Any]:
        """Levels of a factor in declared order; the base's own level, if it is not among them, by size or last."""
        declared = [_level(factor, value) for value in self.plan.factors.get(factor, [])]
        base = _level(factor, self.plan.base_levels.get(factor))
        if base in declared:
            return declared
        numbers = all(isinstance(level, int | float) for level in [*declared, base])
        return sorted([*declared, base]) if numbers else [*declared, base]

    def rule(self, selection: str | None) -> str:
        """Return the selection rule to use: the one given, else the plan's."""
        return statistics.check_selection(selection or self.plan.selection)

    def contrasts(self, selection: str | None = None) -> pd.DataFrame:
        """The declared contrasts in the base setting, with their verdicts: see `analysis.verdicts.contrasts`.

        Columns also say when each was declared: `analysis.verdicts.declarations`.  Contrasts of arms that this preset
        does not have are left out.
        """
        contrasts = [contrast for contrast in self.plan.contrasts if contrast.arms <= self.plan.arms.keys()]
        finished, missing = map(in_base, (self.trials, self.missing))
        others = {contrast.metric for contrast in contrasts} - {ACCURACY}
        finished = self._with_metrics(finished, sorted(others), self.rule(selection))
        judged = judge_contrasts(contrasts, finished, missing, self.rule(selection), self.plan.looks)
        ended = dict(zip(self.trials["trial"], self.trials["first_ended_at"], strict=True))
        declared = declarations(self.plan, contrasts, Store(self.root).plans(self.name), ended)
        return pd.concat([judged, declared], axis=1)

    def _with_metrics(self, trials: pd.DataFrame, metrics: Sequence[str], selection: str) -> pd.DataFrame:
        """Finished trials with a column for each of these metrics, under a selection rule."""
        if not metrics:
            return trials
        curves = self.epochs([*metrics, ACCURACY])
        return trials.assign(**{name: measures.under_rule(trials, curves, name, selection) for name in metrics})

    def looks_taken(self) -> pd.DataFrame:
        """What runs saw at the declared looks, oldest first: a row for each contrast at each look."""
        looks = looks_taken(Store(self.root), self.name, self.preset)
        numbers = ["looked", "difference", "low", "high", "p_holm", "p_equivalence_holm"]
        rows = [row for look in looks for row in look["contrasts"]]
        frame = pd.DataFrame(rows, columns=["arm", "against", "metric", "n", *numbers, "verdict"])
        return frame.astype(dict.fromkeys(numbers, float)).fillna({"metric": ACCURACY})

    @property
    def remarks(self) -> tuple[str, ...]:
        """Sentences on results that are left out, on those of other code, and on the data."""
        sentences = (
            self.on_other_data,
            self.by_other_code,
            self._unknown_truth(),
            self._two_precisions(),
            self.on_data,
        )
        return tuple(filter(None, sentences))

    def _unknown_truth(self) -> str:
        """A sentence where results are of data sets whose true labels nobody knows."""
        unknown = self.trials[self.trials["noise_hash"].notna() & self.trials["noise_realised"].isna()]
        names = sorted(set(unknown["dataset"]))
        return (
            f"The true labels of the training images of {', '.join(names)} are not known: there is no rate of wrong "
            "labels, and nothing here compares training labels, or what methods believe of them, with the truth."
            if names
            else ""
        )

    def _two_precisions(self) -> str:
        """A sentence where `precision="auto"` has not become the same for all."""
        chosen = self.trials[self.trials["config"].str.contains('"precision":"auto"', na=False, regex=False)]
        counts = chosen["computed_in"].value_counts()
        return (
            f"Of the trials with precision auto {counts['bfloat16']:,} were computed in bfloat16 and "
            f"{counts['float32']:,} in float32, because of their networks or of the machines that they ran on."
            if len(counts) == 2
            else ""
        )

    @property
    def night(self) -> str | None:
        """The night whose replicates the plan has, an ISO date."""
        return self.plan.night

    @property
    def cells(self) -> Sequence[CellRecord]:
        """The plan's searches: one arm in one setting with one sampler each."""
        return self.plan.cells

    def suggestions(self, selection: str | None = None) -> pd.DataFrame:
        """What the plan's searches have tried, one row per suggestion, by cell and number.

        `accuracy` is the validation objective, `test` the mean test accuracy of its trials (a diverged one is chance),
        `seconds` the second objective where there is one, else those `spent`.  `counts`: complete or pruned, and among
        the first of these that the budget asks for.  `own`: the arm's own values, number 0 unless that one failed.
        """
        tests = dict(zip(self.tried["trial"], statistics.accuracy(self.tried, self.rule(selection)), strict=True))
        rows = [row for cell in self.cells for row in self._suggestions_of(cell, tests)]
        frame = pd.DataFrame(rows, columns=SUGGESTION_COLUMNS)
        numbers = frame[["epochs", "diverged"]].fillna(0)
        kinds = {"number": int, "epochs": int, "diverged": int, "counts": bool, "own": bool}
        floats = dict.fromkeys(("accuracy", "seconds", "spent", "test"), float)
        return frame.assign(epochs=numbers["epochs"], diverged=numbers["diverged"]).astype({**kinds, **floats})

    def _suggestions_of(self, cell: CellRecord, tests: Mapping[str, float]) -> Iterator[dict[str, Any]]:
        """Yield the rows of one search.  `tests`: trial -> its test accuracy."""
        search = self.plan.require_search()
        of_cell = self.suggested[self.suggested["search"] == cell.search].sort_values("number", kind="stable")
        counted = set(counting(of_cell, search.suggestions)["number"])
        for row in statistics.records(of_cell):
            measured = dict(zip(search.objectives, _as_list(row["values"]), strict=False))
            params = _json_object(row["params"])
            yield {
                "search": cell.search,
                "arm": cell.arm,
                "searched_arm": cell.searched_arm,
                "sampler": cell.sampler,
                "setting": cell.setting,
                **{name: row[name] for name in ("number", "state", "message", "epochs", "diverged", "code_hash")},
                "params": params,
                "accuracy": measured.get("accuracy"),
                "seconds": measured.get("seconds", row["seconds"]),
                "spent": row["seconds"],
                "test": np.mean([tests.get(trial, np.nan) for trial in _as_list(row["trials"]) or [""]]),
                "counts": row["number"] in counted,
                "own": params == cell.default,
                "curve": {int(epoch): value for epoch, value in _json_object(row["curve"]).items()},
            }

    def declared_panel(self, name: str) -> PanelRecord:
        """Return a panel as the plan has it.  Raises LoadError for an unknown one."""
        panels = self.plan.panels
        if name not in panels:
            raise LoadError(f"The study {self.name!r} has no panel {name!r}: choose one of {', '.join(panels)}.")
        return panels[name]


def read_results(root: str | Place, study: str, preset: str | None = None, night: str | None = None) -> Results:
    """The newest plan of a study (of one preset, and one night, if given) and its results.

    `root`: a folder or s3://bucket/prefix.  Raises LoadError where it holds no such plan.  Warns of files that it
    cannot read, and of results that it leaves out because their data were replaced since.
    """
    store = Store(place(root))
    plans, unreadable = store.read("studies")
    row = newest_plan(plans, unreadable, store.root, study, preset, night)
    of_preset = plans[(plans["study"] == study) & (plans["preset"] == row["preset"])]
    submitted = dict(zip(of_preset.index, read_records(of_preset), strict=True))
    plan = submitted[row.name]
    results = results_of_plan(store, plan, row["plan_hash"], sources_from(row["current"]), unreadable)
    if results.on_other_data:
        warnings.warn(results.on_other_data, stacklevel=3)  # the caller of `load`, or of the report
    earlier = _earlier_replicates(plan, list(submitted.values()))
    return replace(results, earlier=earlier, on_data=_on_data(row["data_remarks"]))


def _on_data(remarks: str | None) -> str:
    return " ".join(f"{name}: {' '.join(of_data)}" for name, of_data in _json_object(remarks).items())


def _earlier_replicates(plan: PlanRecord, submitted: Sequence[PlanRecord]) -> tuple[int, ...]:
    """Smaller numbers of replicates that allow a verdict and were submitted before, without declared looks."""
    alike = [other for other in submitted if (other.preset, other.night) == (plan.preset, plan.night)]
    counts = {other.replicates for other in alike if not other.looks}
    return tuple(sorted(count for count in counts if FEWEST_REPLICATES <= count < plan.most_replicates))


def results_of_plan(
    store: Store,
    plan: PlanRecord,
    plan_hash: str,
    current: Mapping[str, Sources],
    unreadable: LeftOut | None = None,
) -> Results:
    """Join a plan's record, submitted or not, with its results.

    `current`: the code and data that its trials, by id, and searches, by name, would use; of a stored plan those when
    it was submitted.  Results on other data are left out, and count as not run: no mean and no pair goes over two
    versions of a data set.  `unreadable`: files already known to be so.
    """
    name = plan.study
    rows, broken = store.read("trials", name)
    searches = [cell.search for cell in plan.cells]
    suggested, broken_suggestions = store.read("suggestions", name, filters=[("search", "in", searches or [""])])
    unreadable = {**(unreadable or {}), **broken, **broken_suggestions}
    _report_unreadable(unreadable)
    changed = why_stale(suggested.assign(trial=suggested["search"]), current)
    suggested = suggested[~changed.isin([CHANGED_DATA, CHANGED_SOURCES])]
    ended = rows["ended_at"].where(is_outcome(rows).astype(bool))
    rows = rows.assign(first_ended_at=ended.groupby(rows["trial"]).transform("min"))  # of all attempts of a trial
    rows = latest(rows, {**_sources_of_suggestions(suggested, current), **current})
    on_other_data = is_on_other_data(rows, current)
    # the plan names a trial's arm and setting: a row may be older than a change of names
    planned = pd.DataFrame(plan.trial_rows(), columns=PLANNED_COLUMNS)
    rows_of_plan = rows.drop(columns=["arm", "setting", "replicate"])
    finished = is_outcome(rows).astype(bool)
    trials = planned.merge(rows_of_plan[finished & ~on_other_data], on="trial")
    failures = rows_of_plan[["trial", "status", "failure_class", "failure_message"]]
    failures = failures.assign(status=failures["status"].mask(finished & on_other_data, "stale"))
    missing = planned[~planned["trial"].isin(trials["trial"])].merge(failures, on="trial", how="left")
    left_out = int((missing["status"] == "stale").sum())
    left = rows[_no_longer_planned(rows, plan)]
    return Results(
        root=store.root,
        name=name,
        preset=plan.preset,
        plan_hash=plan_hash,
        plan=plan,
        trials=trials,
        missing=missing.assign(status=missing["status"].fillna("not run")),
        left=left.assign(setting=left["setting"].map(_json_object)).reset_index(drop=True),
        suggested=suggested,
        tried=rows[rows["trial"].isin([trial for trials in suggested["trials"] for trial in _as_list(trials)])],
        unreadable=unreadable,
        on_other_data=_on_other_data_sentence(len(trials) + left_out, left_out),
        by_other_code=_by_other_code_sentence(trials["stale"]),
    )


def _sources_of_suggestions(suggested: pd.DataFrame, current: Mapping[str, Sources]) -> dict[str, Sources]:
    """Map each trial of a search to the code and data that the search would use."""
    return {
        trial: current[search]
        for search, trials in zip(suggested["search"], suggested["trials"], strict=True)
        if search in current
        for trial in _as_list(trials)
    }


def _no_longer_planned(rows: pd.DataFrame, plan: PlanRecord) -> pd.Series:
    """Whether each row is of a trial that an older plan of this preset and night asked for, and this one does not."""
    nights = rows["replicate"] // replicates.REPLICATES_PER_NIGHT
    same_range = nights == first_replicate_of(plan) // replicates.REPLICATES_PER_NIGHT
    outside = ~rows["trial"].isin(plan.trial_ids) & (rows["preset"] == plan.preset) & rows["search"].isna() & same_range
    return outside.astype(bool)


def is_on_other_data(rows: pd.DataFrame, current: Mapping[str, Sources]) -> pd.Series:
    """Rows on another version of their data than the one that counts.

    That is the one of `current`; where it is not known there (plans of earlier versions, data that the driver lacked),
    the one of the newest result on that data set.
    """
    hashes = [current[trial].data_hash if trial in current else None for trial in rows["trial"]]
    wanted = pd.Series(hashes, rows.index, dtype=object)
    ended = rows[is_outcome(rows).astype(bool) & rows["data_hash"].notna()].sort_values("ended_at", kind="stable")
    newest = ended.groupby("dataset")["data_hash"].last()
    newest.update(wanted.groupby(rows["dataset"]).last().dropna())
    counting_hash = rows["dataset"].map(newest)
    other = rows["data_hash"].notna() & counting_hash.notna() & (rows["data_hash"] != counting_hash)
    return rows["stale"].isin([CHANGED_DATA, CHANGED_SOURCES]) | (wanted.isna() & other)


def _on_other_data_sentence(results: int, left_out: int) -> str:
    if not left_out:
        return ""
    return (
        f"{left_out} of {results} results were made on data that have been replaced since (the data set, human labels, "
        "or the data of what a trial starts from) and are left out: --rerun-stale trains them again."
    )


def _by_other_code_sentence(stale: pd.Series) -> str:
    sentences = {
        CHANGED_CODE: "results were made by code that has changed since",
        CHANGED_RULE: "results were stored by an earlier version of lnl, whose hashes of code cannot be compared",
    }
    counts = {reason: int((stale == reason).sum()) for reason in sentences}
    parts = [f"{count} of {len(stale)} {sentences[reason]}" for reason, count in counts.items() if count]
    return "; ".join(parts) + ": --rerun-stale trains them again." if parts else ""


def first_replicate_of(plan: PlanRecord) -> int:
    """The first replicate of a plan's own range: that of its night, if it has one."""
    night = plan.night
    return replicates.first_replicate(replicates.parse(night) if night else None)


def in_base(rows: pd.DataFrame) -> pd.DataFrame:
    """Return those of these trials that are in the base setting."""
    return rows[~rows["setting"].map(bool).astype(bool)]


def looks_taken(store: Store, study: str, preset: str) -> list[dict[str, Any]]:
    """What runs saw at the declared looks of a study, oldest first: plan, looks, and the contrasts as they stood.

    Two drivers that took one look together count once.
    """
    of_study = [("kind", "==", "looked"), ("study", "==", study)]
    rows, broken = store.read("events", filters=of_study, files="*-looked-*")
    _report_unreadable(broken)
    payloads = [json.loads(payload) for payload in rows.sort_values("at")["payload"].drop_duplicates()]
    return [payload for payload in payloads if payload["preset"] == preset]


def newest_plan(
    plans: pd.DataFrame, broken: LeftOut, root: Place, study: str, preset: str | None, night: str | None
) -> pd.Series:
    """The plan that was submitted last of those asked for.  Raises LoadError where there is none."""
    chosen = plans[(plans["study"] == study) & ((plans["preset"] == preset) | (preset is None))]
    if night is not None:
        chosen = chosen[[record.night == night for record in read_records(chosen)]]
    if len(chosen):
        return by_submission(chosen).iloc[-1]
    known_studies = [f"{name} ({', '.join(sorted(set(group['preset'])))})" for name, group in plans.groupby("study")]
    wanted = repr(study) + (f" with preset {preset!r}" if preset else "") + (f" of the night {night}" if night else "")
    known = (
        f"the studies there are: {', '.join(known_studies)}" if known_studies else "no study has been submitted there"
    )
    unread = f"; {len(broken)} plan files there cannot be read" if broken else ""
    raise LoadError(f"No plan of study {wanted} in {root}: {known}{unread}.")


def _level(factor: str, value: Any) -> Any:
    """A level that can be a category: null gets a word, settings the words of their values, a list its JSON text."""
    if value is None:
        return UNSET_LEVELS.get(factor, "none")
    if isinstance(value, dict):
        return settings_in_words(value) or "none"
    return json.dumps(value) if isinstance(value, list) else value


def _json_object(text: str | None) -> dict[str, Any]:
    """Parse a JSON object; an empty one where there is no text."""
    return dict(json.loads(text)) if isinstance(text, str) and text else {}


def _as_list(values: Any) -> list[Any]:
    """Return a list column's value; an empty list where it is null."""
    return [] if values is None else list(values)


def _report_unreadable(parts: LeftOut, stacklevel: int = 3) -> None:
    if parts:
        names = [f"{shown(path)} ({why})" for path, why in parts.items()]
        listed = ", ".join(names[:5]) + f" and {len(names) - 5} more" * (len(names) > 5)
        warnings.warn(f"Unreadable and left out ({len(names)}): {listed}.", stacklevel=stacklevel)
