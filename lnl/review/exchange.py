"""Corrected labels, and labels to and from other tools: Label Studio's tasks, and plain CSV or JSON as for CVAT.

What another tool has decided is imported as decisions of reviewers, like those of the page.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from urllib.parse import quote, unquote
from xml.sax.saxutils import quoteattr

import pyarrow as pa
import pyarrow.compute
from pydantic import AwareDatetime, BaseModel, ValidationError

from lnl.data import DataError, label_file
from lnl.review import labels
from lnl.review.decisions import Decision, Standing, current
from lnl.review.outputs import About, now
from lnl.storage.files import read_file, reason, shown

CORRECTED = (label_file.FILE, label_file.LABEL, *label_file.CORRECTED)
PLAIN = ("index", "file", "label", "given", "proposed", "probability")
SHOWN = 3  # conflicts that a message lists


# ----------------------------------------------------------------------------------------------------- corrected labels


@dataclass(frozen=True)
class Corrections:
    """All labels after review, and what was changed."""

    table: pa.Table  # with the columns `CORRECTED`
    changed: int  # by reviewers
    accepted: int  # labels that were proposed and nobody has decided on
    kept: int  # given labels that reviewers confirm


def corrected(
    about: About,
    table: pa.Table,
    decisions: Iterable[Decision],
    reviewer: str | None = None,
    accept_above: float | None = None,
) -> Corrections:
    """Each image's label, after what reviewers have decided.

    `table`: as `read_table` gives it.  `reviewer`: whose decisions count where reviewers differ.  `accept_above`: also
    change, to what is proposed, labels that nobody has decided on and whose probability of an error is at least this.
    Raises `DataError` where reviewers differ and none of them is named.
    """
    standing = current(decisions)
    _check_conflicts(standing, reviewer)
    rows = table.select(["index", "file", "given", "proposed", "probability"]).to_pylist()
    made, changed, accepted, kept = [], 0, 0, 0
    for row in sorted(rows, key=lambda row: int(row["index"])):
        decision = _deciding(standing.get(row["file"]), reviewer)
        line: dict[str, object] = {"file": row["file"], "label": row["given"], "given": row["given"]}
        if decision is not None:
            is_change = decision.label != row["given"]
            changed, kept = changed + is_change, kept + (not is_change)
            line |= {
                "label": decision.label,
                "changed_by": decision.reviewer if is_change else None,
                "at": decision.at.isoformat(timespec="seconds"),
                "reason": "decided in review" if is_change else f"confirmed in review by {decision.reviewer}",
            }
        elif row["file"] not in standing and _is_accepted(row["probability"], accept_above):
            accepted += 1
            line |= {
                "label": row["proposed"],
                "changed_by": about.judge,
                "at": about.made.isoformat(timespec="seconds"),
                "reason": f"probability of an error {row['probability']:.4f}, accepted from {accept_above:g} on",
            }
        made.append(line)
    columns = {name: pa.array([line.get(name) for line in made], pa.string()) for name in CORRECTED}
    return Corrections(pa.table(columns), changed, accepted, kept)


def _is_accepted(probability: float | None, accept_above: float | None) -> bool:
    return probability is not None and accept_above is not None and probability >= accept_above


def _check_conflicts(standing: Mapping[str, Standing], reviewer: str | None) -> None:
    conflicts = {file: one for file, one in standing.items() if one.is_conflict and _deciding(one, reviewer) is None}
    if not conflicts:
        return
    listed = "; ".join(
        f"{file}: {' and '.join(f'{one.label} ({one.reviewer})' for one in standing.decisions if one.label)}"
        for file, standing in [*conflicts.items()][:SHOWN]
    )
    more = f"; and {len(conflicts) - SHOWN:,} more" if len(conflicts) > SHOWN else ""
    raise DataError(
        f"Reviewers differ on {len(conflicts):,} images ({listed}{more}): decide them again, or say with --reviewer "
        "NAME whose decision counts there."
    )


def _deciding(standing: Standing | None, reviewer: str | None) -> Decision | None:
    """The decision that counts; None where there is none, or where reviewers differ and the one named is silent."""
    if standing is None:
        return None
    saying = [decision for decision in standing.decisions if decision.label is not None]
    if standing.is_conflict:
        saying = [decision for decision in saying if decision.reviewer == reviewer]
    return saying[-1] if saying else None


# --------------------------------------------------------------------------------------------------------------- export


def to_decide(table: pa.Table) -> pa.Table:
    """The rows of a table that people are asked about: those with a rank, or all where none has one."""
    return table.filter(pyarrow.compute.is_valid(table["rank"])) if "rank" in table.column_names else table


def label_studio_tasks(about: About, table: pa.Table, prefix: str) -> list[dict[str, object]]:
    """Tasks for Label Studio's import, with the proposed label as a prediction.

    `prefix`: what stands before the name of a file, which is percent-encoded, in the address of its image.
    """
    tasks: list[dict[str, object]] = []
    for row in plain_json(table):
        del row["label"]
        value = {"choices": [row["proposed"]]}
        result = [{"from_name": "label", "to_name": "image", "type": "choices", "value": value}]
        predictions = [{"model_version": f"lnl {about.judge}", "score": row["probability"], "result": result}]
        image = f"{prefix}{quote(str(row['file']))}"
        tasks.append({"data": {"image": image, **row}, "predictions": predictions if row["proposed"] else []})
    return tasks


def label_studio_view(class_names: Sequence[str]) -> str:
    """The labelling interface that these tasks need, to be pasted into the settings of a project."""
    choices = "\n".join(f"    <Choice value={quoteattr(name)}/>" for name in class_names)
    return (
        '<View>\n  <Image name="image" value="$image"/>\n  <Text name="given" value="Given label: $given"/>\n'
        f'  <Choices name="label" toName="image" choice="single">\n{choices}\n  </Choices>\n</View>\n'
    )


def plain_table(table: pa.Table) -> pa.Table:
    """One row for each image; `label` is empty, to be filled in where somebody decides."""
    nothing = pa.nulls(len(table), pa.string())
    return pa.table({name: nothing if name == "label" else table[name] for name in PLAIN})


def plain_json(table: pa.Table) -> list[dict[str, object]]:
    """The same as objects."""
    rows: list[dict[str, object]] = plain_table(table).to_pylist()
    return rows


# --------------------------------------------------------------------------------------------------------------- import


@dataclass(frozen=True)
class Answer:
    """What another tool says of an image."""

    file: str
    label: str | None  # None: skipped
    reviewer: str
    at: datetime
    where: str  # in messages


def imported(about: About, table: pa.Table, path: Path, reviewer: str | None) -> list[Decision]:
    """The decisions that another tool's export holds: a .json of Label Studio, or a plain .json or .csv.

    `reviewer`: the name of who has decided, where the file does not say it.  Raises `DataError` with one sentence for
    a file that is none of these, an image that is not there, and a label that is no class.
    """
    given = dict(zip(table["file"].to_pylist(), table["given"].to_pylist(), strict=True))
    index = dict(zip(table["file"].to_pylist(), table["index"].to_pylist(), strict=True))
    files = {label_file.key(file): file for file in given}
    classes = set(about.class_names)
    decisions = []
    for answer in _answers(path, reviewer):
        file = _file_of(answer.file, files)
        if file is None:
            raise DataError(f"{answer.where}: there is no image '{answer.file}' in {shown(about.images)}: correct it.")
        if answer.label is not None and answer.label not in classes:
            listed = labels.listed_classes(about.class_names)
            raise DataError(f"{answer.where}: '{answer.label}' is none of the classes {listed}: correct it.")
        if answer.label is None:
            action = "skip"
        else:
            action = "keep" if answer.label == given[file] else "change"
        decisions.append(
            Decision.model_validate(
                {
                    "index": index[file],
                    "file": file,
                    "given": given[file],
                    "action": action,
                    "label": answer.label,
                    "reviewer": answer.reviewer,
                    "at": answer.at,
                }
            )
        )
    return decisions


def not_yet_there(decisions: Sequence[Decision], earlier: Iterable[Decision]) -> list[Decision]:
    """Decisions that say something else than the same reviewer's last one of the same image."""
    said = {
        (one.reviewer, one.file): (one.action, one.label)
        for standing in current(earlier).values()
        for one in standing.decisions
    }
    new = []
    for decision in decisions:
        key, says = (decision.reviewer, decision.file), (decision.action, decision.label)
        if said.get(key) != says:
            new.append(decision)
            said[key] = says
    return new


def _file_of(name: str, files: Mapping[str, str]) -> str | None:
    """The image that another tool names, perhaps by an address that ends with its file."""
    for candidate in (name, unquote(name), name.partition("?d=")[2], unquote(name.partition("?d=")[2])):
        if (known := files.get(label_file.key(candidate))) is not None:
            return known
    ends = {file for key, file in files.items() if label_file.key(unquote(name)).endswith(f"/{key}")}
    return max(ends, key=len) if ends else None


def _answers(path: Path, reviewer: str | None) -> Iterator[Answer]:
    try:
        text = read_file(path).decode("utf-8-sig")
        if path.suffix != ".json":
            yield from _of_csv(path, text, reviewer)
            return
        content = json.loads(text)
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"{shown(path)} cannot be read ({reason(error)}): export it again.") from error
    if not isinstance(content, list) or not all(isinstance(entry, dict) for entry in content):
        raise DataError(f"{shown(path)} is no list of objects, as Label Studio's 'JSON' export is: export it as that.")
    for number, entry in enumerate(content, 1):
        where = f"{shown(path)}, entry {number}"
        try:
            if "data" in entry:
                yield from _of_task(where, entry, reviewer)
            elif (answer := _of_row(where, entry, reviewer)) is not None:
                yield answer
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            raise DataError(f"{where}: {place}: {first['msg']}: export it again.") from error


class _Value(BaseModel):
    choices: list[str] = []


class _Result(BaseModel):
    value: _Value = _Value()


class _Person(BaseModel):
    email: str = ""
    id: int | None = None


class _Annotation(BaseModel):
    """What a person has said of a task in Label Studio."""

    result: list[_Result] = []
    was_cancelled: bool = False
    completed_by: _Person | int | None = None
    created_at: AwareDatetime | None = None
    updated_at: AwareDatetime | None = None

    def who(self) -> str | None:
        if isinstance(self.completed_by, _Person):
            return self.completed_by.email or (None if self.completed_by.id is None else f"user {self.completed_by.id}")
        return None if self.completed_by is None else f"user {self.completed_by}"


class _TaskData(BaseModel):
    image: str
    file: str | None = None


class _Task(BaseModel):
    """A task of Label Studio with its annotations."""

    data: _TaskData
    annotations: list[_Annotation] = []


def _of_task(where: str, entry: Mapping[str, object], reviewer: str | None) -> Iterator[Answer]:
    task = _Task.model_validate(entry)
    for annotation in task.annotations:
        choices = [choice for result in annotation.result for choice in result.value.choices]
        if len(choices) > 1:
            raise DataError(f"{where}: an annotation has the choices {', '.join(choices)}: an image has one class.")
        if choices or annotation.was_cancelled:
            yield Answer(
                task.data.file or task.data.image,
                None if annotation.was_cancelled else choices[0],
                reviewer or annotation.who() or "Label Studio",
                annotation.updated_at or annotation.created_at or now(),
                where,
            )


class _Row(BaseModel):
    """A line of a plain file."""

    file: str
    label: str | None = None
    action: str | None = None
    reviewer: str | None = None
    at: AwareDatetime | None = None


def _of_row(where: str, entry: Mapping[str, object], reviewer: str | None) -> Answer | None:
    row = _Row.model_validate({name: value for name, value in entry.items() if value not in ("", None)})
    if row.label is None and row.action != "skip":
        return None
    label = None if row.label is None else label_file.normal(row.label)
    return Answer(row.file, label, reviewer or row.reviewer or "import", row.at or now(), where)


def _of_csv(path: Path, text: str, reviewer: str | None) -> Iterator[Answer]:
    rows = csv.DictReader(io.StringIO(text, newline=""), delimiter=label_file.separator(text), strict=True)
    if missing := {"file", "label"} - {*(rows.fieldnames or ())}:
        raise DataError(f"{shown(path)} has no column '{min(missing)}': let its first line be file,label.")
    for row in rows:
        where = f"{shown(path)}, line {rows.line_num}"
        entry = {name: value for name, value in row.items() if name in _Row.model_fields}
        try:
            answer = _of_row(where, entry, reviewer)
        except ValidationError as error:
            first = error.errors()[0]
            raise DataError(f"{where}: {first['loc'][0]}: {first['msg']}: correct it.") from error
        if answer is not None:
            yield answer
