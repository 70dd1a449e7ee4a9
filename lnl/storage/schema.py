"""The columns of each table of results, and the keys that name parts and tell rows apart."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pyarrow as pa

from lnl.storage.plan_record import read_records

SCHEMA_VERSION = 1
TIME = pa.timestamp("us", tz="UTC")

TRIALS = pa.schema(
    [
        # identity
        ("trial", pa.string()),  # hash of the identity fields of the configuration
        ("attempt", pa.int32()),  # 1, 2, … : executions of this trial
        ("preset", pa.string()),
        ("arm", pa.string()),
        ("setting", pa.string()),  # JSON: factor -> value where it differs from the base
        ("replicate", pa.int32()),
        ("plan_hash", pa.string()),
        # what was asked for
        ("method", pa.string()),
        ("dataset", pa.string()),
        ("network", pa.string()),
        ("labels", pa.int64()),  # labelled training images, all classes together
        ("unlabelled", pa.int64()),  # unlabelled training images
        ("noise_kind", pa.string()),
        ("noise_rate", pa.float64()),  # nominal
        ("epochs", pa.int32()),
        ("config", pa.string()),  # canonical JSON of the whole trial
        # what was realised
        ("noise_realised", pa.float64()),  # share of labelled images whose label is wrong
        ("transition", pa.string()),  # JSON K × K: realised P(given label | true label)
        ("classes", pa.int32()),  # K of the data set
        ("class_names", pa.string()),  # JSON: K texts, in the order of the labels; null in older files
        ("parameters", pa.int64()),
        ("computed_in", pa.string()),  # float32 | bfloat16: what the precision has become; null in older files
        ("data_hash", pa.string()),  # of the data set's images and labels
        ("sources_hash", pa.string()),  # of all data behind the trial: its data set, human labels, prerequisites' data
        ("noise_hash", pa.string()),
        ("split_hash", pa.string()),  # labelled, probe and validation images
        ("unlabelled_hash", pa.string()),
        ("init_hash", pa.string()),
        # where a search asked for it, see lnl.search; null in all other trials
        ("search", pa.string()),
        ("suggestion", pa.int32()),
        # outcome
        ("status", pa.string()),  # ok | failed | preempted | pruned
        ("failure_class", pa.string()),  # oom | nan | preempted | timeout | code_error | data_error
        ("failure_message", pa.string()),
        ("epochs_done", pa.int32()),
        ("accuracy_last", pa.float64()),
        ("accuracy_last10", pa.float64()),
        ("accuracy_val_selected", pa.float64()),
        ("epoch_val_selected", pa.int32()),
        ("validation_labels", pa.string()),  # clean | noisy
        ("accuracy_best_test", pa.float64()),  # oracle: chosen by looking at the test set
        # cost and provenance
        ("seconds", pa.float64()),  # of all attempts that this one continues
        # of which so many in each phase, see `lnl.system.timing`; null in older files
        ("seconds_views", pa.float64()),  # augmenting and normalising images
        ("seconds_forward", pa.float64()),
        ("seconds_backward", pa.float64()),
        ("seconds_update", pa.float64()),  # optimizer and average
        ("seconds_meta", pa.float64()),  # virtual steps
        ("seconds_inference", pa.float64()),  # passes without gradient while training, such as guesses of labels
        ("seconds_rest", pa.float64()),  # of training: batches, selection, on a GPU the waiting for it
        ("seconds_evaluation", pa.float64()),
        ("seconds_checkpoint", pa.float64()),
        ("seconds_report", pa.float64()),  # until the driver has looked at an epoch
        ("peak_memory_mb", pa.float64()),  # accelerator memory that the process held; null on CPU
        ("device_memory_mb", pa.float64()),  # that the accelerator has; null on CPU
        ("device", pa.string()),
        ("cpus", pa.float64()),
        ("gpus", pa.float64()),
        ("host", pa.string()),
        ("code_hash", pa.string()),  # of the code that can change its numbers, see `lnl.trial.code_hash`
        ("git_commit", pa.string()),
        ("git_dirty", pa.bool_()),
        ("version_python", pa.string()),
        ("version_torch", pa.string()),
        ("version_ray", pa.string()),
        ("started_at", TIME),
        ("ended_at", TIME),
        ("schema_version", pa.int32()),
    ]
)
EPOCHS = pa.schema(
    [
        ("trial", pa.string()),
        ("attempt", pa.int32()),
        ("epoch", pa.int32()),  # 1-based: the state after this many epochs
        ("step", pa.int64()),  # optimizer steps so far
        ("split", pa.string()),  # train | validation | test | oracle (true labels of training images)
        ("metric", pa.string()),
        ("value", pa.float64()),  # NaN: computed but undefined
        ("seconds", pa.float64()),  # since the trial began, earlier attempts included
        ("schema_version", pa.int32()),
    ]
)
ARRAYS = pa.schema(
    [
        ("trial", pa.string()),
        ("attempt", pa.int32()),
        ("epoch", pa.int32()),
        ("split", pa.string()),
        ("name", pa.string()),  # see lnl.trial.evaluation.diagnose and embed
        ("shape", pa.list_(pa.int32())),
        ("values", pa.list_(pa.float32())),  # row by row
        ("schema_version", pa.int32()),
    ]
)
_IMAGE = [  # columns of one image that is kept, see `lnl.trial.outputs`
    ("trial", pa.string()),
    ("attempt", pa.int32()),
    ("epoch", pa.int32()),  # the last one
    ("subset", pa.string()),  # test | labelled | unlabelled | probe: of which the image is one
    ("index", pa.int64()),  # among the data set's test images, or its training images
    ("file", pa.string()),  # name of the image, where the data set has names
    ("given", pa.int32()),  # label that the method saw; null where it saw none
    ("true", pa.int32()),  # null where it is not known
    ("predicted", pa.int32()),  # most probable class
]
PREDICTIONS = pa.schema(
    [
        *_IMAGE,
        ("confidence", pa.float32()),  # probability of the predicted class
        ("probabilities", pa.list_(pa.float32())),  # of all classes; null where there are more than 20
        ("schema_version", pa.int32()),
    ]
)
BELIEFS = pa.schema(  # rows: the labelled images, the most suspected given label first
    [
        *_IMAGE,
        ("given_probability", pa.float32()),  # that the prediction gives to the given label
        ("clean", pa.float32()),  # what the method itself tells, see `lnl.training.task.Beliefs`; null: nothing
        ("coefficient", pa.float32()),
        ("loss", pa.float32()),
        ("selected", pa.float32()),
        ("proposed", pa.int32()),  # the method's refined label, and how sure it is of that
        ("proposed_probability", pa.float32()),
        ("ranked_by", pa.string()),  # clean | coefficient | loss | given_probability: what put rows in order
        ("schema_version", pa.int32()),
    ]
)
SUGGESTIONS = pa.schema(
    [
        ("search", pa.string()),  # name of the search, in Optuna's storage too
        ("number", pa.int32()),  # 0, 1, … : the arm's own values are the first
        ("arm", pa.string()),
        ("setting", pa.string()),  # JSON, as in trials
        ("sampler", pa.string()),
        ("state", pa.string()),  # complete | pruned | failed
        ("params", pa.string()),  # JSON: dotted field -> value, of the fields that were searched
        ("values", pa.list_(pa.float64())),  # one per objective: means over the replicates; of a pruned one the last
        ("trials", pa.list_(pa.string())),  # one per replicate
        ("diverged", pa.int32()),  # replicates that diverged, and counted as chance
        ("epochs", pa.int32()),  # trained, all replicates together
        ("seconds", pa.float64()),  # of training, all replicates together
        ("message", pa.string()),  # why it failed
        ("refused", pa.bool_()),  # it failed because its values cannot be trained with
        ("curve", pa.string()),  # JSON: epoch -> validation accuracy, where a pruner looked at it
        ("code_hash", pa.string()),
        ("sources_hash", pa.string()),  # of the data behind its trials, as in trials
        ("space", pa.string()),  # JSON: the whole space it was drawn from
        ("preset", pa.string()),
        ("asked_at", TIME),
        ("told_at", TIME),
        ("schema_version", pa.int32()),
    ]
)
STUDIES = pa.schema(
    [
        ("study", pa.string()),
        ("preset", pa.string()),
        ("plan_hash", pa.string()),
        ("plan", pa.string()),  # JSON, see lnl.study.study.Study.plan
        ("current", pa.string()),  # JSON: the code and data that its trials would use when it was submitted
        ("data_remarks", pa.string()),  # JSON: data set -> sentences on its images; null in older files
        ("submitted_at", TIME),
        (
            "first_submitted_at",
            TIME,
        ),  # of the same plan; null where an earlier version submitted it
        ("git_commit", pa.string()),
        ("sequence", pa.int64()),  # 1, 2, … within the study, see `by_submission`; null in older files
        ("schema_version", pa.int32()),
    ]
)
EVENTS = pa.schema(
    [
        ("at", TIME),
        ("study", pa.string()),
        ("trial", pa.string()),
        ("kind", pa.string()),  # run_started | run_resized | run_ended | retried | lost | failed | looked
        ("payload", pa.string()),  # JSON
        ("schema_version", pa.int32()),
    ]
)
TABLES = {
    "trials": TRIALS,
    "epochs": EPOCHS,
    "arrays": ARRAYS,
    "predictions": PREDICTIONS,
    "beliefs": BELIEFS,
    "suggestions": SUGGESTIONS,
    "studies": STUDIES,
    "events": EVENTS,
}
ATTEMPT_KEY = ("trial", "attempt")
PART_KEYS = {  # what names a part: all of its rows have the same
    "trials": ATTEMPT_KEY,
    "epochs": ATTEMPT_KEY,
    "arrays": ATTEMPT_KEY,
    "predictions": ATTEMPT_KEY,
    "beliefs": ATTEMPT_KEY,
    "suggestions": ("search", "number"),
    "studies": ("study", "preset", "plan_hash"),
    "events": ("at", "kind"),
}
ROW_KEYS = PART_KEYS | {  # what no two rows of a table have in common
    "epochs": (*ATTEMPT_KEY, "epoch", "split", "metric"),
    "arrays": (*ATTEMPT_KEY, "epoch", "split", "name"),
    "predictions": (*ATTEMPT_KEY, "subset", "index"),
    "beliefs": (*ATTEMPT_KEY, "subset", "index"),
    "events": ("at", "study", "trial", "kind", "payload"),
}
PARTITIONED = ("trials", "epochs", "arrays", "predictions", "beliefs", "suggestions")
PARTITION = pa.field("study", pa.string())  # their only partition key
PART, STAMP = pa.field("part", pa.string()), pa.field("stamp", pa.string())  # of a joined file: whose rows, and when

# Columns, and fields of an event, whose text is for people and may contain secrets: masked before writing.  No other
# column is masked, because code reads it back.
FREE_TEXT_COLUMNS = ("failure_message", "message", "reason", "stopped")


def renamed(trials: pd.DataFrame, plans: pd.DataFrame) -> pd.DataFrame:
    """Rows of trials under the names that their arms have by now: a row keeps the name that its arm had when it ran.

    `plans`: submitted ones of the study, oldest first.  The newest with the trial names its arm, one of the row's own
    preset before others.
    """
    names: dict[Any, str] = {}
    for preset, plan in zip(plans["preset"], read_records(plans), strict=True):
        arms = {planned.trial: planned.arm for planned in plan.prerequisites}
        arms |= {planned.trial: planned.arm for planned in plan.trials}
        names |= arms | {(trial, preset): arm for trial, arm in arms.items()}
    shown = [
        names.get((trial, preset), names.get(trial, arm))
        for trial, preset, arm in zip(trials["trial"], trials["preset"], trials["arm"], strict=True)
    ]
    return trials.assign(arm=pd.Series(shown, index=trials.index, dtype=object))
