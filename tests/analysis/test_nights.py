"""Nights: fresh replicates for each, and what `lnl diff` says of them.

Nights are simulated as arrays through the rule itself, and as real result files through the command.  Bounds on rates
are exact binomial ones: a right rate leaves them in one of 10,000 runs, and all draws are seeded.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
from numpy.typing import NDArray

from analysis import load
from analysis.nights.difference import tonight
from analysis.nights.night import read_nights
from analysis.nights.rule import ALARM_RATE, REFERENCE_NIGHTS, REPLICATES_TO_JUDGE, CellVerdict, judge_nights
from analysis.nights.text import markdown
from lnl import Study, Trial, methods
from lnl import replicates as replicates_module
from lnl.cli import main, studies
from lnl.replicates import first_replicate, parse
from lnl.storage.places import canonical, now
from lnl.storage.schema import TRIALS
from lnl.storage.store import Store
from lnl.storage.tables import write_rows
from tests.execution.test_runner import execute_without_ray

Array = NDArray[np.float64]
START = date(2026, 10, 1)
REPLICATES = 4  # of the nightly study


def names(count: int) -> list[str]:
    return [(START + timedelta(days=day)).isoformat() for day in range(count)]


def replayed(values: Array, k: int = REFERENCE_NIGHTS) -> list[list[CellVerdict]]:
    """Verdicts by night and cell of accuracies (nights, cells, replicates)."""
    cells = [(f"arm{place:02}", "{}") for place in range(values.shape[1])]
    history = {night: dict(zip(cells, row, strict=True)) for night, row in zip(names(len(values)), values, strict=True)}
    return [[row[cell] for cell in cells] for row in judge_nights(history, k).values()]


def drawn(
    kind: str, seed: int, count: int, spreads: Sequence[float], replicates: int = REPLICATES, mean: float = 0.9
) -> Array:
    """Accuracies (nights, cells, replicates) with these standard deviations."""
    random = np.random.default_rng(seed)
    shape = (count, len(spreads), replicates)
    if kind == "images":  # a share of 360 test images
        return random.binomial(360, 0.985, shape) / 360
    noise = random.standard_normal(shape)
    if kind == "shared":  # arms of one replicate have much in common
        noise = np.sqrt(0.6) * random.standard_normal((count, 1, replicates)) + np.sqrt(0.4) * noise
    elif kind == "restless":  # nights differ by as much as the mean of a night's replicates does
        noise = noise + random.standard_normal((count, 1, 1)) / np.sqrt(replicates)
    elif kind == "heavy":  # Student's t with five degrees of freedom
        noise = random.standard_t(5, shape) / np.sqrt(5 / 3)
    elif kind == "skewed":  # a gamma distribution of shape 2, its tail below
        noise = (2 - random.gamma(2, 1, shape)) / np.sqrt(2)
    elif kind == "accidents":  # one of fifty replicates falls eight standard deviations
        noise = noise - 8 * (random.random(shape) < 0.02)
    return mean + noise * np.asarray(spreads)[:, None]


SPREADS = np.array([0.001, 0.002, 0.003, 0.003, 0.004, 0.004, 0.005, 0.005, 0.007, 0.01, 0.02, 0.04])


# ------------------------------------------------------------------------------------------------------- quiet nights


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "share"),
    [
        *[(kind, ALARM_RATE) for kind in ("normal", "shared", "restless", "images")],
        # not promised, and known: of independent draws far from normal in every one of 12 cells
        *[("heavy", 0.07), ("skewed", 0.1), ("accidents", 0.12)],
    ],
)
def test_200_quiet_nights_alarm_no_more_often_than_promised(kind: str, share: float) -> None:
    verdicts = replayed(drawn(kind, seed=1, count=220, spreads=SPREADS))[20:]
    alarms = sum(any(cell.moved for cell in night) for night in verdicts)
    assert len(verdicts) == 200 and alarms <= scipy.stats.binom.ppf(1 - 1e-4, 200, share), alarms
    assert all(np.isfinite(cell.p_holm) for night in verdicts for cell in night)


@pytest.mark.slow
def test_the_rate_of_alarms_is_that_of_the_level_where_the_reference_is_short() -> None:
    """Without Holm's step, or the reference's own uncertainty, it would be far above."""
    found = []
    for seed in range(200):
        *_, last = replayed(drawn("normal", seed, 6, np.full(20, 0.004)), k=5)
        found.append(any(cell.moved for cell in last))
    assert sum(found) <= scipy.stats.binom.ppf(1 - 1e-4, 200, ALARM_RATE), sum(found)


def test_the_band_is_students_prediction_interval() -> None:
    """One cell, nights that scatter as replicates explain: the mean of four further ones, from twenty before."""
    values = drawn("normal", 3, 6, [0.004])
    values[:5] += 0.9 - values[:5].mean(axis=2, keepdims=True)  # so that nights do not scatter at all
    *_, (last,) = replayed(values)
    within = values[:5, 0].var(axis=1, ddof=1).mean()
    half = scipy.stats.t.ppf(1 - 0.05 / 2 / 2, 5 * 3) * np.sqrt(within / 4 * (1 + 1 / 5))
    assert (last.low, last.high) == pytest.approx((0.9 - half, 0.9 + half), abs=1e-12)
    for distance, moved in ((-1e-6, ""), (1e-6, "up")):
        values[-1] = last.high + distance
        *_, (edge,) = replayed(values)
        assert edge.moved == moved and edge.p_holm == pytest.approx(ALARM_RATE, abs=1e-3)


def test_nights_that_scatter_more_than_replicates_explain_widen_the_band() -> None:
    random = np.random.default_rng(0)
    offsets = np.array([2, -2, 1, -1, 0, 1, -1, 2, -2, 0, 1, -1, 2, -2, 1])
    values = 0.9 + 0.002 * offsets[:, None, None] + random.normal(0, 0.001, (15, 1, 4))
    *_, (last,) = replayed(values)
    means = values[:14, 0].mean(axis=1)
    half = scipy.stats.t.ppf(1 - 0.05 / 2 / 2, 13) * means.std(ddof=1) * np.sqrt(1 + 1 / 14)
    assert (last.high - last.low) / 2 == pytest.approx(half, rel=0.02), "degrees of freedom are those of the nights"


def test_what_scatters_all_cells_from_night_to_night_widens_the_band_of_each() -> None:
    """One that happened to lie still is not taken for calmer than the machine it runs on."""
    values = drawn("normal", 9, 15, np.full(9, 0.003))
    values[:, :8] += 0.004 * np.array([2, -2, 1, -1, 0, 1, -1, 2, -2, 0, 1, -1, 2, -2, 0])[:, None, None]
    *_, last = replayed(values)
    within = np.sqrt(values[:14, 8].var(axis=1, ddof=1).mean())
    assert last[8].deviation > 2 * within


@pytest.mark.parametrize("replicates", [3, 4, 5, 9])
def test_one_outlying_replicate_is_no_step_and_all_of_them_are(replicates: int) -> None:
    values = drawn("normal", 5, 16, np.full(6, 0.004), replicates)
    values[-1, 0] = 0.9
    values[-1, 0, 0] = 0.1
    values[-1, 1] = 0.1
    *_, last = replayed(values)
    assert [cell.moved for cell in last] == ["", "down", "", "", "", ""]


@pytest.mark.parametrize("replicates", [1, 2])
def test_replicates_that_cannot_outvote_one_are_neither_judged_nor_a_reference(replicates: int) -> None:
    """The median of two lies between them."""
    values = drawn("normal", 5, 16, np.full(2, 0.004))
    history = {
        night: {("full", "{}"): row[0], ("short", "{}"): row[1, : replicates if night in names(16)[8:] else None]}
        for night, row in zip(names(16), values, strict=True)
    }
    history[names(16)[12]]["short", "{}"][0] = 0.1
    history[names(16)[15]]["short", "{}"] = values[15, 1]
    verdicts = judge_nights(history)
    short = [verdicts[night]["short", "{}"] for night in names(16)]
    assert [np.isnan(cell.p_holm) for cell in short] == [True] * 4 + [False] * 4 + [True] * 7 + [False]
    assert not any(cell.moved for cell in short) and list(short[-1].reference) == names(8)
    assert len(verdicts[names(16)[-1]]["full", "{}"].reference) == 14


# --------------------------------------------------------------------------------------------------------------- steps


def found_within(nights_after: int, step: float, spread: float, k: int, replicates: int = REPLICATES) -> float:
    """Share of 48 runs in which the one cell of 42 that made a step is found by then, in its direction."""
    found = []
    for seed in range(48):
        values = drawn("normal", 100 + seed, k + nights_after, np.full(42, spread), replicates)
        values[k:, 0] += step
        after = replayed(values, k)[k:]
        found.append(any(night[0].moved == ("up" if step > 0 else "down") for night in after))
    return float(np.mean(found))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spread", "k", "share"), [(0.003, 14, 1.0), (0.004, 14, 0.9), (0.003, 7, 0.9), (0.005, 14, 0.7)]
)
def test_a_step_of_a_point_is_found_within_two_nights(spread: float, k: int, share: float) -> None:
    assert found_within(2, -0.01, spread, k) >= share


def test_a_step_that_was_missed_does_not_hide_itself() -> None:
    """Nights that moved are no reference: a step alarms until it is the new level, on four nights, and then no more."""
    values = drawn("normal", 11, 40, np.full(10, 0.003))
    values[20:, 4] -= 0.012
    verdicts = [night[4] for night in replayed(values)]
    moved = [place for place, cell in enumerate(verdicts) if cell.moved]
    assert set(range(20, 24)) <= set(moved) and not set(moved) & set(range(25, 40))
    assert {verdicts[place].since for place in range(20, 24)} == {names(40)[20]}
    assert set(verdicts[23].reference) <= set(names(20)), "the old level is the reference until the new one is known"
    assert set(verdicts[30].reference) == set(names(40)[20:30])
    assert verdicts[30].expected == pytest.approx(0.888, abs=0.002)


def test_an_incident_of_one_night_is_no_reference_and_leaves_no_trace() -> None:
    values = drawn("normal", 13, 30, np.full(10, 0.003))
    values[20, 4] -= 0.05
    verdicts = [night[4] for night in replayed(values)]
    assert [place for place, cell in enumerate(verdicts) if cell.moved] == [20]
    assert all(names(30)[20] not in cell.reference for cell in verdicts)
    assert verdicts[21].low > 0.88


@pytest.mark.slow
def test_most_slow_drifts_are_found_before_they_have_cost_two_points() -> None:
    """A fifth of a point a night: the reference goes along, if later."""
    found = []
    for seed in range(20):
        values = drawn("normal", 200 + seed, 40, np.full(20, 0.004))
        values[14:, 3] -= 0.002 * np.arange(1, 27)[:, None]
        moved = [place for place, night in enumerate(replayed(values)) if place >= 14 and night[3].moved == "down"]
        found.append(bool(moved) and moved[0] - 13 <= 10)
    assert np.mean(found) >= 0.75


def test_too_few_nights_are_no_reference() -> None:
    verdicts = replayed(drawn("normal", 1, 6, [0.004, 0.004]))
    assert [np.isnan(night[0].p_holm) for night in verdicts] == [True] * 4 + [False] * 2


def test_equal_results_are_no_certainty() -> None:
    """A method that gets all images right on fifty-six trials may get one wrong on the next."""
    values = np.ones((15, 3, 4))
    values[-1, 0, 0] -= 1 / 360
    values[-1, 1] -= 0.02
    *_, last = replayed(values)
    assert [cell.moved for cell in last] == ["", "down", ""]


# --------------------------------------------------------------------------------------------------------------- files

STUDY = "nightly"
ARMS: dict[str, dict[str, Any]] = {
    "canary": {},
    "canary_again": {"replicate": 500},
    "gce": {"method": "gce"},
    "dividemix": {"method": "dividemix"},
    "robmix": {"method": "robmix"},
}
LEVEL = {"canary": 0.8, "canary_again": 0.8, "gce": 0.85, "dividemix": 0.95, "robmix": 0.9}
SPREAD = 0.003


def write(
    root: Path,
    night: str,
    arms: Mapping[str, dict[str, Any]] = ARMS,
    changes: Mapping[str, Mapping[str, Any]] | None = None,
    absent: Sequence[str] = (),
    effects: Mapping[str, float] | None = None,
    submitted: bool = True,
    replicates: int = REPLICATES,
    prerequisites: Mapping[str, Mapping[str, Any]] | None = None,
    **columns: Any,
) -> None:
    """A night's plan and rows.  `changes`: columns of an arm's rows; `absent`: planned and never run;
    `prerequisites`: their rows by name.
    """
    start, random = first_replicate(date.fromisoformat(night)), np.random.default_rng([1, int(night.replace("-", ""))])
    plan = {
        "study": STUDY,
        "preset": "digits",
        "question": "Has anything moved?",
        "base": {},
        "base_levels": {},
        "factors": {},
        "arms": arms,
        "replicates": replicates,
        "night": night,
        "looks": [],
        "selection": "last",
        "panels": {},
        "contrasts": [],
        "trials": [
            {"trial": f"{arm}-{night}-{r}", "arm": arm, "setting": {}, "replicate": start + own.get("replicate", 0) + r}
            for arm, own in arms.items()
            for r in range(replicates)
        ],
        "prerequisites": [{"trial": f"{arm}-{night}", "arm": arm} for arm in prerequisites or {}],
        "search": None,
    }
    rows = [
        {"trial": f"{arm}-{night}", "arm": arm, "setting": "{}", "replicate": start, "attempt": 1, "preset": "digits"}
        | {"status": "ok", **row}
        for arm, row in (prerequisites or {}).items()
    ]
    for entry in plan["trials"]:
        arm = entry["arm"]
        draw = float(random.normal(LEVEL.get(arm, 0.9) + (effects or {}).get(arm, 0), SPREAD))
        config = {"method": {"name": arm, "temperature": 0.5}, "replicate": entry["replicate"], "epochs": 32}
        rows.append(
            {
                **entry,
                "setting": "{}",
                "attempt": 1,
                "preset": "digits",
                "status": "ok",
                "accuracy_last": draw,
                "accuracy_best_test": draw,
                "config": canonical(config),
                "seconds": 10.0,
                "device": "x86_64 CPU",
                "host": "one",
                "data_hash": "digits",
                "classes": 10,
                "noise_hash": f"noise {entry['replicate']}",
                "split_hash": f"split {entry['replicate']}",
                "code_hash": f"{arm}-c0de",
                "git_commit": "0123456789abcdef",
                "git_dirty": False,
                "version_python": "3.11.9",
                "version_torch": "2.15.0",
                "version_ray": "2.60.0",
                **columns,
                **(changes or {}).get(arm, {}),
            }
        )
    store = Store(root)
    if submitted:
        about = {"study": STUDY, "preset": "digits", "plan_hash": f"hash-{night}", "git_commit": None}
        store.write_plan({**about, "plan": json.dumps(plan), "submitted_at": now()})
    rows = [row for row in rows if row["arm"] not in absent]
    write_rows(root / "trials" / f"study={STUDY}" / f"{night.replace('-', '')}.parquet", TRIALS, rows)


@pytest.fixture(scope="module")
def quiet_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight quiet nights."""
    root = tmp_path_factory.mktemp("quiet")
    for night in names(8):
        write(root, night)
    return root


@pytest.fixture
def folder(quiet_folder: Path, tmp_path: Path) -> Path:
    """A copy to which a ninth may be added."""
    import shutil

    return Path(shutil.copytree(quiet_folder, tmp_path / "results"))


TONIGHT = names(9)[-1]


def diff(capsys: pytest.CaptureFixture[str], root: Path, *flags: str) -> tuple[int, str]:
    code = main.main(["diff", STUDY, "--storage", str(root), *flags])
    return code, capsys.readouterr().out


def test_a_quiet_night_is_exit_code_0_and_says_so(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(folder, TONIGHT)
    code, text = diff(capsys, folder)
    assert code == 0
    assert "Quiet; 5 cells judged" in text and "against 8 nights before it (2026-10-01 to 2026-10-08)" in text
    assert "A/A: canary − canary_again" in text and "holds zero; alarms on" in text and "of 9 nights" in text


@pytest.mark.slow
def test_a_step_is_exit_code_3_with_what_changed_beside_it(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = canonical({"method": {"name": "dividemix", "temperature": 0.7}, "replicate": 9, "epochs": 32})
    changed = {
        "code_hash": "another-code",
        "config": config,
        "version_torch": "2.16.0",
        "git_commit": "fedcba9876543210",
    }
    write(
        folder,
        TONIGHT,
        changes={"dividemix": {**changed, "host": "two", "seconds": 25.0}},
        effects={"dividemix": -0.01},
    )
    markdown, figure = tmp_path / "night.md", tmp_path / "night.png"
    code, text = diff(capsys, folder, "--markdown", str(markdown), "--figure", str(figure))
    assert code == 3
    assert "1 down; 5 cells judged" in text and "down    dividemix: -" in text
    for part in ("code dividemix-c0 → another-code", "commit 0123456 → fedcba9", "torch 2.15.0 → 2.16.0",
                 "host one → two", "method.temperature 0.5 → 0.7", f"since {names(8)[-1]}"):  # fmt: skip
        assert part in text, part
        assert part in markdown.read_text(encoding="utf-8"), part
    assert "replicate 9" not in text, "replicates differ every night"
    assert "Slower: dividemix (10 → 25 s a trial)" in text
    assert markdown.read_text(encoding="utf-8").startswith("### nightly, preset digits, night 2026-10-09")
    assert "lnl report nightly --preset digits --night 2026-10-09" in markdown.read_text(encoding="utf-8")
    assert figure.read_bytes().startswith(b"\x89PNG")
    code, text = diff(capsys, folder, "--json")
    assert code == 3
    told = json.loads(text)
    (moved,) = [cell for cell in told["cells"] if cell["moved"]]
    assert (moved["arm"], moved["moved"], told["quiet"]) == ("dividemix", "down", False) and moved["changes"]
    assert diff(capsys, folder, "--night", names(8)[-1])[0] == 0, "the night before is still what it was"


@pytest.mark.slow
def test_a_crashed_arm_is_flagged_until_it_is_known(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    crash = {"gce": {"status": "failed", "failure_class": "code_error", "failure_message": "KeyError: 'x' | <b>\nTrace",
                     "accuracy_last": None}}  # fmt: skip
    for night in names(13)[8:]:
        write(folder, night, changes=crash)
    code, text = diff(capsys, folder, "--night", TONIGHT)
    assert code == 3 and "crashed gce: 4 of 4, code_error: KeyError: 'x'" in text and "Trace" not in text
    code, text = diff(capsys, folder)
    assert code == 0 and "Still crashing, as on the 4 nights before: gce" in text


def crashed(message: str = "KeyError: 'x'", kind: str = "code_error") -> dict[str, Any]:
    return {"status": "failed", "failure_class": kind, "failure_message": message, "accuracy_last": None}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tonight", "arms", "text"),
    [
        (crashed("OutOfMemoryError: 3 GB", "oom"), ["gce"], "4 of 4, oom: OutOfMemoryError: 3 GB"),  # another class
        (crashed("IndexError: 3"), ["gce"], "4 of 4, code_error: IndexError: 3"),  # another error
        (crashed(), ["gce", "robmix"], "crashed robmix: 4 of 4"),  # another cell
        (crashed("KeyError: 'y'"), ["gce"], ""),  # the same, as far as it can be told
    ],
)
def test_a_known_crash_hides_no_other(
    folder: Path, capsys: pytest.CaptureFixture[str], tonight: dict[str, Any], arms: list[str], text: str
) -> None:
    for night in names(12)[8:]:
        write(folder, night, changes={"gce": crashed()})
    write(folder, names(13)[-1], changes=dict.fromkeys(arms, tonight))
    code, said = diff(capsys, folder)
    assert (code, text in said) == (3 if text else 0, True), said


@pytest.mark.slow
def test_a_known_crash_hides_no_larger_one(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for night in names(13)[8:]:  # two of its four trials
        write(folder, night, absent=["gce"])
        rows = [
            {"trial": f"gce-{night}-{place}", "arm": "gce", "setting": "{}", "attempt": 1, "preset": "digits"}
            | {"replicate": first_replicate(date.fromisoformat(night)) + place, **crashed()}
            for place in range(2)
        ]
        write_rows(folder / "trials" / f"study={STUDY}" / f"{night}-gce.parquet", TRIALS, rows)
    assert diff(capsys, folder, "--night", names(13)[-1])[0] == 0
    write(folder, names(14)[-1], changes={"gce": crashed()})
    code, text = diff(capsys, folder)
    assert code == 3 and "crashed gce: 4 of 4" in text


@pytest.mark.slow
def test_a_crashed_prerequisite_is_a_crash(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {"init_from: simclr": {}}
    write(folder, names(9)[-1], prerequisites=before)
    assert diff(capsys, folder)[0] == 0
    write(folder, names(10)[-1], prerequisites={"init_from: simclr": crashed()}, absent=["robmix"])
    code, text = diff(capsys, folder)
    assert code == 3 and "1 crashed; 4 cells judged" in text and "Missing, not run: robmix." in text
    assert "crashed init_from: simclr: 1 of 1, code_error: KeyError: 'x'" in text
    assert f"Look deeper: lnl report nightly --preset digits --night {names(10)[-1]} --storage {folder}, " in text
    assert f"lnl logs nightly --preset digits --storage {folder}" in text


@pytest.mark.slow
def test_the_commands_of_a_night_name_the_storage_that_it_came_from(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it is the default of the machine that compares: the message is read on another one."""
    monkeypatch.setenv("LNL_STORAGE", str(folder))
    found = tonight(folder, STUDY)
    assert [f"--storage {folder}" in command for command in found.deeper] == [True] * len(found.deeper)
    assert f"--storage {folder}`" in markdown(found)
    other = folder.rename(folder.with_name("another folder"))
    assert tonight(other, STUDY).deeper[0].endswith(f"--storage '{other}'")


@pytest.mark.slow
def test_a_night_in_which_nothing_finished_is_not_quiet(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(folder, TONIGHT, absent=list(ARMS))
    code, text = diff(capsys, folder)
    assert code == 3 and text.splitlines()[1] == "Nothing finished tonight."
    code, text = diff(capsys, folder, "--json")
    assert code == 3 and json.loads(text)["finished"] is False
    write(folder, names(10)[-1], changes=dict.fromkeys(ARMS, crashed()))
    code, text = diff(capsys, folder)
    assert code == 3 and text.splitlines()[1] == "Nothing finished tonight, 5 crashed."
    code, text = diff(capsys, folder, "--night", TONIGHT, "--against", names(8)[-1])
    assert code == 3 and text.splitlines()[1] == "Nothing finished here."


def test_too_few_replicates_are_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(folder, TONIGHT, replicates=2, effects={"gce": -0.5})
    code, text = diff(capsys, folder)
    assert code == 0 and "Nothing can be judged yet: it takes 3 replicates." in text


def test_crashes_are_told_of_study_against_study(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    elsewhere = tmp_path / "elsewhere"
    write(folder, TONIGHT, changes={"gce": crashed(), "robmix": crashed()})
    write(elsewhere, TONIGHT, changes={"gce": crashed(), "dividemix": crashed("OSError: gone")})
    code, text = diff(capsys, folder, "--against-storage", str(elsewhere))
    assert code == 3 and "crashed robmix: 4 of 4, code_error: KeyError: 'x'" in text and "crashed gce" not in text
    assert "Crashing in both: gce (4 of 4" in text and "Crashed in the other: dividemix (4 of 4" in text


def test_another_storage_is_asked_for_the_same_night(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    elsewhere = tmp_path / "elsewhere"
    for night in names(8)[-2:]:
        write(elsewhere, night)
    flags = ("--against-storage", str(elsewhere))
    code, text = diff(capsys, folder, "--night", names(8)[-2], *flags)
    assert code == 0 and text.splitlines()[0].count(f"night {names(8)[-2]}") == 2
    assert f"lnl report nightly --preset digits --night {names(8)[-2]} --storage {folder}" in text


def test_what_did_not_run_is_missing_and_infrastructure_is_nobodys_fault(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lost = {"status": "failed", "failure_class": "preempted", "failure_message": "gone", "accuracy_last": None}
    write(folder, TONIGHT, absent=["robmix"], changes={"gce": lost})
    code, text = diff(capsys, folder)
    assert code == 0
    assert "Missing, not run: robmix." in text and "Missing, preempted: gce." in text
    assert "3 cells judged" in text


def test_new_and_vanished_arms_are_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arms = {**{arm: own for arm, own in ARMS.items() if arm != "gce"}, "mixup": {"method": "mixup"}}
    write(folder, TONIGHT, arms=arms)
    code, text = diff(capsys, folder)
    assert code == 0
    assert (
        "New: mixup." in text
        and "Vanished since 2026-10-08: gce." in text
        and "Not judged yet, 4 quiet nights make a reference: mixup." in text
    )


def test_a_diverged_trial_counts_as_chance_and_is_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nan = {"status": "failed", "failure_class": "nan", "failure_message": "loss", "accuracy_last": float("nan")}
    write(folder, TONIGHT, changes={"gce": nan})
    code, text = diff(capsys, folder)
    assert code == 3
    assert "down    gce" in text and "→ 10.00" in text
    assert "Diverged, and counted as chance: gce (4 of 4; before, 0 of 32)." in text


def test_a_rule_without_a_value_is_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(folder, TONIGHT)
    code, text = diff(capsys, folder, "--selection", "val_selected")
    assert code == 0 and "Nothing can be judged yet: no trial has an accuracy under the selection rule." in text
    assert "Without an accuracy under the selection rule: canary, canary_again, gce, dividemix, robmix." in text


def test_twins_that_differ_are_an_alarm_of_their_own(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Quiet nights hold zero but by chance; a pipeline that treats the second name otherwise does not."""
    write(folder, TONIGHT, effects={"canary_again": 0.03})
    _, text = diff(capsys, folder)
    assert "ALARM, zero lies outside" in text


def test_twins_whose_replicates_agree_are_told_as_such(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(folder, TONIGHT, changes={arm: {"accuracy_last": 0.8} for arm in ("canary", "canary_again")})
    _, text = diff(capsys, folder)
    assert "A/A: canary − canary_again: +0.00 points, without an interval: the replicates of each agree." in text


def test_the_wrong_night_study_or_number_gets_one_sentence(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for flags, words in (
        (["--night", "2026-12-24"], ["no night 2026-12-24", "2026-10-08"]),
        (["--preset", "paper"], ["'paper'", "--night today"]),
        (["--nights", "2"], ["2 nights are too few"]),
        (["--against", "elsewhere"], ["'elsewhere'", "nightly digits"]),
        (["--against", "digits", "--figure", "x.png"], ["--against"]),
        (["--figure", "x.jpg"], ["takes a .png or a .pdf, not 'x.jpg'"]),
    ):
        assert main.main(["diff", STUDY, "--storage", str(folder), *flags]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and all(word in error for word in words), error
    assert main.main(["diff", "nothing", "--storage", str(folder)]) == 2


@pytest.mark.slow
def test_study_against_study(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One night against another, unpaired; the same replicates elsewhere, paired."""
    night = names(8)[-1]
    write(folder, TONIGHT, effects={"robmix": 0.02})
    code, text = diff(capsys, folder, "--against", night)
    assert code == 3 and "1 up; 5 cells judged" in text and "up      robmix: +" in text and "unpaired" in text
    elsewhere = tmp_path / "elsewhere"
    write(elsewhere, TONIGHT, effects={"robmix": 0.02}, version_torch="2.16.0")
    code, text = diff(capsys, folder, "--against-storage", str(elsewhere))
    assert code == 0 and "Quiet; 5 cells judged" in text
    code, text = diff(capsys, folder, "--against", "hash-2026-10-09", "--against-storage", str(elsewhere), "--json")
    told = json.loads(text)
    assert code == 0 and {cell["paired"] for cell in told["cells"]} == {True}


def test_files_are_judged_by_the_rule(folder: Path) -> None:
    write(folder, TONIGHT)
    found = tonight(folder, STUDY)
    stored, *_ = read_nights(Store(folder), STUDY)
    again = judge_nights({night.name: night.values() for night in stored})
    assert [night.name for night in stored] == names(9)
    assert again[TONIGHT]["gce", "{}"].p_holm == found.cells.set_index("arm").loc["gce", "p_holm"]
    assert found.cells["n"].tolist() == [REPLICATES] * 5


# --------------------------------------------------------------------------------------------------------- the planner


def study(**fields: Any) -> Study:
    base = Trial(method="supervised", dataset="digits", network="small_convnet", labels=50, epochs=1, steps=1)
    return Study(name="tiny", question="Does it run?", base=base, **{"replicates": 2, **fields})


@pytest.mark.slow
def test_nights_never_share_a_replicate_with_each_other_a_study_or_a_search() -> None:
    declared = study()
    seen: set[int] = set()
    for night in (None, date(2020, 1, 1), date(2026, 11, 20), date(2026, 11, 21), replicates_module.LAST):
        plan = declared.plan(replicates=1000, night=night)
        replicates = {planned.trial.replicate for planned in plan.trials}
        assert len(replicates) == 1000 and not replicates & (seen | set(range(1000, 2000)))
        assert max(replicates) < 2**31, "they are stored as int32"
        assert plan.record.night == (night and night.isoformat())
        seen |= replicates
    with pytest.raises(ValueError, match="1001 replicates are too many"):
        declared.plan(replicates=1001, night=date(2026, 11, 20))


@pytest.mark.parametrize("text", ["2019-12-31", "7500-01-01", "yesterday", "2026-13-01"])
def test_what_is_no_night_is_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main.main(["plan", "nightly", "--night", text])
    assert ended.value.code == 2 and text in capsys.readouterr().err
    assert parse("today") >= date(2026, 1, 1)


def test_nights_go_with_a_fixed_number_of_replicates_only(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    flags = ["--night", "2026-11-21", "--storage", str(tmp_path)]
    assert main.main(["plan", "robmix_ablation", *flags, "--until-decided", "--max-replicates", "9"]) == 2
    assert "--until-decided" in capsys.readouterr().err
    assert main.main(["plan", "search", *flags]) == 2
    assert "search" in capsys.readouterr().err
    assert main.main(["plan", "robmix_ablation", "--preset", "smoke", *flags]) == 0
    assert "night 2026-11-21, plan" in capsys.readouterr().out


def test_one_configuration_under_two_names_is_drawn_afresh() -> None:
    declared = study(arms={"canary": {}, "canary_again": {"replicate": 500}}, replicates=3)
    plan = declared.plan(night=date(2026, 11, 21))
    by_arm = {arm: [p.trial.replicate for p in plan.trials if p.arm == arm] for arm in ("canary", "canary_again")}
    start = first_replicate(date(2026, 11, 21))
    assert by_arm == {"canary": [start, start + 1, start + 2], "canary_again": [start + 500, start + 501, start + 502]}
    assert [p.arm for p in plan.trials] == ["canary", "canary_again"] * 3, "whole replicates first"
    assert len({planned.id for planned in plan.trials}) == 6
    with pytest.raises(ValueError, match="shift one by 3 replicates"):
        study(arms={"canary": {}, "canary_again": {"replicate": 2}}, replicates=3).plan()
    with pytest.raises(ValueError, match="Shifted replicates"):
        declared.plan(looks=(4, 6))


def test_the_nightly_study_leaves_no_method_out() -> None:
    declared = studies.find_study("nightly")
    for preset in (None, *declared.presets):
        plan = declared.plan(preset, night=date(2026, 11, 21))
        assert {planned.trial.method_name for planned in plan.trials} == set(methods.names())
        assert plan.record.replicates == (REPLICATES_TO_JUDGE if preset == "smoke" else REPLICATES)
    twins = [arm for arm, own in declared.arms.items() if not set(own) - {"replicate"}]
    assert len(twins) == 2


@pytest.mark.slow
def test_a_night_runs_once_and_others_are_not_left_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two nights in one folder, really trained: the second submission of one trains nothing."""
    flags = ["--preset", "smoke", "--set", "epochs=1", "--replicates", "1", "--arms", "canary,canary_again"]
    for night in ("2026-11-20", "2026-11-20", "2026-11-21"):
        ended = execute_without_ray(Path("studies/nightly.py").resolve(), tmp_path, *flags, "--night", night)
        assert ended.returncode == 0, ended.stderr
    rows, _ = Store(tmp_path).read("trials")
    assert len(rows) == 4 and set(rows["attempt"]) == {1} and set(rows["status"]) == {"ok"}
    assert rows["noise_hash"].nunique() == 4, "fresh draws"
    for night in ("2026-11-20", "2026-11-21"):
        loaded = load(tmp_path, "nightly", night=night)
        assert len(loaded.trials) == 2 and loaded.left.empty and loaded.earlier == () and loaded.night == night
    assert load(tmp_path, "nightly").night == "2026-11-21"
    assert main.main(["report", "nightly", "--storage", str(tmp_path)]) == 0
    assert "2026-11-21" in (tmp_path / "reports" / "nightly-smoke-night" / "index.html").read_text(encoding="utf-8")
    assert main.main(["diff", "nightly", "--storage", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "Nothing can be judged yet: it takes 3 replicates." in text and "Missing, not run: mixup" in text
