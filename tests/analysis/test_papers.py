"""The registry of reported numbers, and what is said where they are laid beside ours."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pydantic import TypeAdapter

from analysis import load, papers
from analysis.papers import registry
from analysis.results import Results
from analysis.tables.table import Table
from lnl import methods, networks
from lnl.cli.studies import find_study
from lnl.functional.noise import KINDS
from lnl.trial.config import Trial, parse
from tests import simulated

METHODS = {path.stem for path in Path(methods.__file__).parent.glob("*.py")} - {"__init__"}
SEEDS = {
    "000": "robmix_report",
    "001": "lnl_report",
    "002": "stl10_report",
    "003": "bai2021",
    "004": "ieg",
}


@pytest.fixture(scope="module")
def numbers() -> pd.DataFrame:
    return papers.reported()


def one(numbers: pd.DataFrame, **wanted: Any) -> float:
    """The value of the only entry with these fields."""
    rows = numbers
    for field, value in wanted.items():
        rows = rows[rows[field].isna() if value is None else rows[field] == value]
    assert len(rows) == 1, f"{len(rows)} entries for {wanted}"
    return float(rows["value"].iloc[0])


# ---------------------------------------------------------------------------------------------------------- the registr


def test_every_seed_document_and_paper_has_a_file(numbers: pd.DataFrame) -> None:
    assert {source.seed: name for name, source in papers.papers().items() if source.seed} == SEEDS
    silent = {name for name, source in papers.papers().items() if not source.tables}
    assert silent == {"robmix_report", "lnl_report"}, "their results are pictures, and their texts have no number"
    assert set(numbers["paper"]) == set(papers.papers()) - silent


def test_entries_are_of_known_methods_kinds_and_ranges(numbers: pd.DataFrame) -> None:
    assert list(numbers) == list(papers.Entry.model_fields)
    assert set(numbers["method"].dropna()) <= METHODS
    assert set(numbers["noise"]) - set(KINDS) == {"flip", "hierarchical", "web"}, "kinds that we do not draw"
    fractions = numbers[numbers["measure"] != "training loss"]
    assert fractions["value"].between(0.01, 1).all() and fractions["sd"].dropna().between(0, 0.12).all()
    assert numbers["found"].str.len().ge(10).all() and numbers["where"].str.len().ge(4).all()
    assert (numbers["found"].eq("fact sheet") == numbers["evidence"].eq("recalled")).all()


def test_no_number_is_there_twice(numbers: pd.DataFrame) -> None:
    about = numbers.drop(columns=["value", "sd", "notes", "found"])
    assert not about.assign(settings=about["settings"].map(str)).duplicated().any()


@pytest.mark.parametrize("method", sorted(METHODS))
def test_settings_are_fields_of_the_method(method: str, numbers: pd.DataFrame) -> None:
    fields = methods.load(method).Config.model_fields
    for settings in numbers[numbers["method"] == method]["settings"]:
        for key, value in settings.items():
            field, _, part = key.partition(".")
            kind = TypeAdapter(fields[field].rebuild_annotation())
            assert not part or part in fields[field].annotation.model_fields
            kind.validate_python({part: value} if part else value)


@pytest.mark.parametrize(
    ("wanted", "value"),
    [
        ({"paper": "ieg", "name": "Ours, 0.1k", "dataset": "cifar10", "noise": "symmetric", "rate": 0.8}, 0.937),
        ({"paper": "ieg", "name": "Ours, 0.01k", "dataset": "cifar10", "noise": "symmetric", "rate": 0.8}, 0.879),
        ({"paper": "ieg", "name": "Ours-RN29", "where": "Table 2 (CIFAR-100, uniform)", "rate": 0.4}, 0.67),
        ({"paper": "ieg", "name": "Ours-RN50", "dataset": "food101n"}, 0.8757),
        ({"paper": "ieg", "name": "M-8: - λ", "rate": 0.4}, 0.8105),
        ({"paper": "stl10_report", "name": "WRN-45-2", "where": "Table 3", "measure": "test accuracy"}, 0.7517),
        ({"paper": "stl10_report", "name": "ConvNet", "where": "Table 2", "measure": "training loss"}, 23.7),
        (
            {
                "paper": "stl10_report",
                "name": "1:20",
                "network": "resnet18_imagenet",
                "measure": "validation accuracy",
            },
            0.7555,
        ),
        ({"paper": "bai2021", "dataset": "cifar10", "labels": 50}, 0.97),
        ({"paper": "bai2021", "dataset": "cifar100", "rate": 0.5}, 0.855),
        ({"paper": "bai2021", "dataset": "cifar10", "name": "weighted k-NN"}, 0.9845),
        ({"paper": "mixmatch", "name": "MixMatch", "labels": 250, "evidence": "quoted"}, 0.8892),
        ({"paper": "fixmatch", "name": "FixMatch (RA)", "labels": 40}, 0.8619),
        ({"paper": "co_teaching", "where": "README, CIFAR-10", "noise": "pair"}, 0.7285),
        ({"paper": "cifar_n", "name": "Divide-Mix", "column": "worse"}, 0.9256),
        ({"paper": "rescience_cifar_n", "name": "CE", "where": "Table 4 (CIFAR-10N)", "column": "worse"}, 0.7548),
        ({"paper": "mentornet", "name": "mentornet_dd", "dataset": "cifar10", "rate": 0.8}, 0.463),
    ],
)
def test_cells_are_read_as_they_are_printed(wanted: dict[str, Any], value: float, numbers: pd.DataFrame) -> None:
    assert one(numbers, **wanted) == pytest.approx(value, abs=1e-12)


def test_an_error_in_percent_keeps_its_deviation(numbers: pd.DataFrame) -> None:
    row = numbers.query("paper == 'mixmatch' and name == 'MixMatch' and labels == 4000 and evidence == 'quoted'").iloc[
        0
    ]
    assert (row["value"], row["sd"], row["spread"], row["n"]) == (0.9376, 0.0006, "replicates", 5)


@pytest.mark.parametrize(
    ("dataset", "means"),
    [
        ("cifar10", "29.4 42.6 23.0 37.3 19.9 14.2 6.9"),
        ("cifar100", "67.3 53.7 51.9 54.0 62.9 37.5 30.2"),
    ],
)
def test_the_means_that_the_table_of_glc_prints(dataset: str, means: str, numbers: pd.DataFrame) -> None:
    """Its last line of each data set is the mean over kinds of noise and shares of trusted images."""
    rows = numbers[(numbers["paper"] == "glc") & (numbers["dataset"] == dataset)]
    found = 100 * rows.groupby("name", sort=False)["value"].mean()
    np.testing.assert_allclose(found, list(map(float, means.split())), atol=0.0501)


@pytest.mark.parametrize(("dataset", "where"), [("cifar10", "CIFAR-10"), ("cifar100", "CIFAR-100")])
def test_m_correction_is_the_better_of_two_variants_in_each_column(
    dataset: str, where: str, numbers: pd.DataFrame
) -> None:
    own = numbers[(numbers["paper"] == "arazo2019") & (numbers["where"] == f"README, {where}, best")]
    better = own[own["noise"] == "symmetric"].groupby("rate")["value"].max()
    quoted = numbers[(numbers["name"] == "M-correction") & (numbers["dataset"] == dataset) & (numbers["rate"] != 0.4)]
    assert quoted.set_index("rate")["value"].to_dict() == better.to_dict() and len(better) == 4


def test_numbers_that_one_paper_takes_over_from_another(numbers: pd.DataFrame) -> None:
    def values(**wanted: Any) -> list[float]:
        rows = numbers[np.logical_and.reduce([numbers[field] == value for field, value in wanted.items()])]
        return list(rows["value"])

    assert values(paper="elr", name="GCE", dataset="cifar10") == values(paper="gce", name="L_q")
    here = values(paper="ieg", name="Arazo et al. [1]", where="Table 1 (CIFAR-10, uniform)")
    there = values(paper="arazo2019", name="M-DYR-H", where="README, CIFAR-10, best", noise="symmetric")
    assert here == there[:3], "at 20, 50 and 80 %, which the slides print as 20, 40 and 80 %"


def test_last_is_never_better_than_best(numbers: pd.DataFrame) -> None:
    known = numbers[(numbers["evidence"] != "recalled") & numbers["selection"].isin(("best_test", "last", "last10"))]
    keys = ["paper", "name", "dataset", "noise", "rate", "column", "labels"]
    best = known["selection"] == "best_test"
    pairs = known[best].merge(known[~best], on=keys, suffixes=("_best", "_last"))
    assert len(pairs) == 75 and not pairs.duplicated(keys).any()
    assert (pairs["value_best"] >= pairs["value_last"]).all()


def test_what_seed_document_002_says_of_its_tables(numbers: pd.DataFrame) -> None:
    own = numbers[(numbers["paper"] == "stl10_report") & (numbers["measure"] != "training loss")]
    order = ["wide_resnet45_2", "resnet18_imagenet", "convnet_002"]
    for where in ("Table 1", "Table 3"):
        for _, rows in own[own["where"] == where].groupby("measure"):
            assert list(rows.sort_values("value", ascending=False)["network"]) == order
    for _, rows in own[own["where"] == "Table 4"].groupby(["network", "measure"]):
        assert rows.sort_values("unlabelled_ratio")["value"].is_monotonic_increasing
    # and what its notes say that it does not agree with itself about
    test = own[own["measure"] == "test accuracy"].set_index(["where", "network"])["value"]
    assert test["Table 3", "convnet_002"] < test["Table 1", "convnet_002"]
    validation = own[own["measure"] == "validation accuracy"].set_index(["where", "network"])["value"]
    assert validation["Table 3"]["wide_resnet45_2"] < validation["Table 1"]["wide_resnet45_2"]
    features = own[(own["where"] == "Table 2") & (own["measure"] == "validation accuracy")].set_index("network")[
        "value"
    ]
    assert features["resnet18_imagenet"] < features["convnet_002"], "the text claims the opposite order"
    assert any("WRN-45-2" in note and "ConvNet" in note for note in papers.notes("stl10_report"))


def test_the_gains_that_seed_document_004_states(numbers: pd.DataFrame) -> None:
    def of(name: str, **wanted: Any) -> float:
        return one(numbers, paper="ieg", name=name, measure="test accuracy", **wanted)

    hard = {"dataset": "cifar100", "noise": "symmetric", "rate": 0.8}
    assert int(100 * (of("Ours, 1k", **hard) / of("Arazo et al. [1]", **hard) - 1)) == 56
    web = {"dataset": "webvision_mini"}
    assert int(100 * (of("Ours", **web) / of("MentorNet [17]", **web) - 1)) == 25
    easy = {**hard, "dataset": "cifar10"}
    assert of("Ours, 0.1k", **easy) - of("Arazo et al. [1]", **easy) == pytest.approx(0.069)  # "up to 9 %"


@pytest.mark.parametrize("name", sorted(SEEDS.values()))
def test_every_seed_document_has_notes(name: str) -> None:
    assert len(papers.notes(name)) >= 4 and all(note.endswith(".") for note in papers.notes(name))


def test_notes_hold_those_of_tables_once() -> None:
    notes = papers.notes("glc")
    assert notes.count("Over all rates from 0 to 1.") == 1 and notes[: len(papers.paper("glc").notes)] == list(
        papers.paper("glc").notes
    )


def test_an_unknown_paper_is_named() -> None:
    with pytest.raises(papers.PaperError, match="no paper 'dividemx': choose one of arazo2019"):
        papers.paper("dividemx")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(registry, "FOLDER", tmp_path)
    registry.papers.cache_clear()
    registry.entries.cache_clear()
    yield tmp_path
    registry.papers.cache_clear()
    registry.entries.cache_clear()


SHORT = """
title = "A"
authors = "B"
[[tables]]
where = "Table 1"
found = "a test of it"
dataset = "cifar10"
{table}
rows = [{{ name = "C", cells = "{cells}"{row} }}]
"""
RATES = 'noise = "symmetric"\ncolumns = [{ rate = 0.2 }, { rate = 0.5 }]'


@pytest.mark.parametrize(
    ("table", "cells", "row", "message"),
    [
        (RATES, "96.1", "", "a.toml, Table 1, C: 1 cells for 2 columns"),
        (RATES, "96.1 high", "", "'high': neither a number"),
        (RATES, "96.1 961", "", "9.61 ± None is no fraction"),
        (RATES, "96.1 94.6", ', netwrk = "x"', "netwrk"),
        (RATES, "96.1 94.6", ', selection = "best"', "selection"),
        (RATES, "96.1 94.6", ', unit = "percent", spread = "epochs"', None),
        ("rate = 0.2", "96.1", "", "the rate of noise none is 0.2"),
        ("include_true = true", "96.1", "", "include_true belongs to symmetric noise"),
        ('noise = "human"', "96.1", "", "column says which human labels"),
        ('unit = "per mille"', "96.1", "", "unknown unit 'per mille'"),
    ],
)
def test_what_cannot_be_right_is_refused(folder: Path, table: str, cells: str, row: str, message: str | None) -> None:
    (folder / "a.toml").write_text(SHORT.format(table=table, cells=cells, row=row), encoding="utf-8")
    if message is None:
        assert [entry.value for entry in papers.entries()] == [0.961, 0.946]
    else:
        with pytest.raises(papers.PaperError, match=message):
            papers.entries()


def test_a_dash_is_no_number_and_unknown_is_none(folder: Path) -> None:
    row = ', probe = "unknown", network = "unknown", settings = { b = 2 }'
    (folder / "a.toml").write_text(
        SHORT.format(table=RATES + "\nsettings = { a = 1 }", cells="- 94.6±0.3", row=row), encoding="utf-8"
    )
    (entry,) = papers.entries()
    assert (entry.rate, entry.sd, entry.spread, entry.probe, entry.network) == (0.5, 0.003, "unknown", None, None)
    assert entry.settings == {"a": 1, "b": 2}


def test_a_file_that_is_no_toml_is_named(folder: Path) -> None:
    (folder / "a.toml").write_text("title = ", encoding="utf-8")
    with pytest.raises(papers.PaperError, match=r"a\.toml"):
        papers.papers()


# ----------------------------------------------------------------------------------------------- beside our own numbers

TABLE_1 = {  # what the registry knows of DivideMix's Table 1, 50 % symmetric noise, last ten epochs
    "paper": "dividemix",
    "where": "Table 1",
    "found": "a test",
    "name": "DivideMix",
    "method": "dividemix",
    "settings": {"lambda_u": 25.0, "co_guess": True},
    "dataset": "cifar10",
    "noise": "symmetric",
    "rate": 0.5,
    "include_true": True,
    "network": "preact_resnet18",
    "selection": "last10",
    "validation": "none",
    "epochs": 300,
    "n": 5,
    "value": 0.944,
}


def trial(**changes: Any) -> Trial:
    noise = {"kind": "symmetric", "rate": 0.5, "include_true": True}
    said = {"method": "dividemix", "network": "preact_resnet18", "noise": noise, "epochs": 300}
    return parse(said).override(changes)


def flags(entry: dict[str, Any], ours: dict[str, Any], n: int = 5, selection: str = "last10") -> list[tuple[str, str]]:
    """What differs where the entry and our trial differ from `TABLE_1` in this."""
    config = trial(**ours).model_dump(mode="json")
    stated = {key.removeprefix("method."): value for key, value in ours.items() if key.startswith("method.")}
    return [tuple(one) for one in papers.mismatches(papers.Entry(**{**TABLE_1, **entry}), config, stated, selection, n)]


def test_the_same_protocol_differs_in_nothing() -> None:
    assert flags({}, {}) == []
    assert flags({}, {"method.lambda_u": 25.0}) == [], "what the registry knows may be set"
    assert flags({"resize": 224}, {"resize": 224}) == [], "the paper resizes, too"
    beit = {"network": "beit_b_16", "init_from": {"method": "byol", "weights": "beit.pth"}}
    assert flags({"network": "beit_b_16", "initialisation": "BEiT, then byol"}, beit) == []


SYMMETRIC = {"kind": "symmetric", "rate": 0.5, "include_true": False}


@pytest.mark.parametrize(
    ("entry", "ours", "what", "said"),
    [
        ({}, {"dataset": "digits"}, "data set", "digits here, cifar10 in the paper"),
        ({"measure": "validation accuracy"}, {}, "measure", "the paper's number is validation accuracy"),
        ({"evidence": "recalled"}, {}, "evidence", "recalled and not read"),
        ({"noise": "pair", "include_true": None}, {}, "noise", "noise symmetric here, pair in the paper"),
        ({"noise": "asymmetric_block", "include_true": None}, {"noise": {"kind": "asymmetric", "rate": 0.5}}, "noise",
         "noise asymmetric here, asymmetric_block in the paper"),
        ({}, {"noise": SYMMETRIC}, "noise convention", "50.0% of the labels are wrong here, 45.0% in the paper"),
        ({"include_true": None}, {}, "noise convention", "the paper's convention is not known"),
        ({"rate": 0.2}, {}, "noise rate", "45.0% of the labels are wrong here, 18.0% in the paper"),
        ({"labels": 4000}, {}, "labels", "all labels here, 4000 in the paper"),
        ({}, {"labels": 250}, "labels", "250 labels here, all in the paper"),
        ({"probe": 100}, {}, "trusted images", "0 trusted images here, 100 in the paper"),
        ({"probe": None}, {}, "trusted images", "not known how many in the paper"),
        ({}, {"network": "resnet34"}, "network", "resnet34 here, preact_resnet18 in the paper"),
        ({"network": None}, {}, "network", "the paper's network is not known"),
        ({"initialisation": "BEiT"}, {}, "initialisation", "random weights here, BEiT in the paper"),
        ({}, {"init_from": {"method": "simclr", "epochs": 5}}, "initialisation", "simclr here, random weights in"),
        ({}, {"resize": 64}, "image size", "resized to 64 pixels here, as they are in the paper"),
        ({"resize": 224}, {"resize": 64}, "image size", "64 pixels here, resized to 224 pixels in the paper"),
        ({"resize": 224}, {}, "image size", "as they are here, resized to 224 pixels in the paper"),
        ({}, {"weights": "imagenet"}, "initialisation", "starts from ImageNet here, random weights in the paper"),
        ({}, {"weights": "mine.pt"}, "initialisation", "starts from mine.pt here, random weights in the paper"),
        ({}, {"init_from": {"method": "supervised", "dataset": "cifar100"}}, "initialisation",
         "starts from supervised on cifar100 here, random weights in the paper"),
        ({}, {"method.lambda_u": 0.0}, "settings", "lambda_u 0.0 here, 25.0 in the paper"),
        ({}, {"method.co_guess": False}, "variant", "co_guess False here, True in the paper"),
        ({}, {"method.batch_size": 32}, "settings", "set here, and not known of the paper: batch_size"),
        ({"settings": {}}, {}, "settings", "the paper's parameters are not known"),
        ({"settings": {}}, {"method.batch_size": 32}, "settings", "the paper's parameters are not known"),
        ({}, {"epochs": 100}, "epochs", "100 epochs here, 300 in the paper"),
        ({"epochs": None}, {}, "epochs", "the paper's are not known"),
        ({}, {"steps": 40}, "epochs", "an epoch is 40 steps here, one pass in the paper"),
        ({"selection": "best_test"}, {}, "selection rule", "the best test epoch (an oracle, chosen by"),
        ({"selection": "median20"}, {}, "selection rule", "the median of the last 20 checkpoints in the paper"),
        ({"selection": "unknown"}, {}, "selection rule", "the paper's rule is not known"),
        ({"validation": "noisy"}, {}, "validation", "validation labels: none here, noisy in the paper"),
        ({}, {"validation": {"images": 5000}}, "validation", "validation labels: clean here, none in the paper"),
        ({"validation": "unknown"}, {}, "validation", "is not known"),
        ({"n": 1}, {}, "replicates", "one run in the paper"),
        ({"n": 3}, {}, "replicates", "3 runs in the paper, fewer than 4"),
        ({"n": None}, {}, "replicates", "the paper's number of runs is not known"),
        ({"sd": 0.002, "spread": "epochs"}, {}, "±", "± is over epochs in the paper, not over runs"),
        ({"sd": 0.002, "spread": "unknown"}, {}, "replicates", "what ± is over is not known"),
    ],
)  # fmt: skip
def test_one_difference_is_one_flag(entry: dict[str, Any], ours: dict[str, Any], what: str, said: str) -> None:
    found = flags(entry, ours)
    assert [(word, said in sentence) for word, sentence in found] == [(what, True)], found


@pytest.mark.parametrize(("n", "said"), [(1, "one replicate here"), (3, "3 replicates here, fewer than 4")])
def test_our_own_few_replicates_are_a_flag(n: int, said: str) -> None:
    assert flags({}, {}, n=n) == [("replicates", said)]
    assert flags({}, {}, n=4) == []


def test_an_oracle_of_ours_is_called_one() -> None:
    ((what, said),) = flags({}, {}, selection="best_test")
    assert what == "selection rule" and said.startswith("the best test epoch (an oracle, chosen by looking at the test")
    assert flags({"selection": "best_test"}, {}, selection="best_test") == []


def test_two_conventions_with_as_many_wrong_labels_are_the_same_noise() -> None:
    assert flags({}, {"noise": {"kind": "symmetric", "rate": 0.45, "include_true": False}}) == []


def test_a_rate_differs_whether_or_not_the_convention_is_known() -> None:
    found = [what for what, _ in flags({"include_true": None, "rate": 0.2}, {})]
    assert found == ["noise rate", "noise convention"]
    pair, flip = {"noise": {"kind": "pair", "rate": 0.5}}, {"noise": "flip", "include_true": None, "rate": 0.2}
    assert [what for what, _ in flags(flip, pair)] == ["noise", "noise rate"]


def test_a_rate_of_zero_is_no_noise() -> None:
    nothing = {"noise": "none", "rate": 0.0, "include_true": None}
    assert flags(nothing, {"noise": {"kind": "symmetric", "rate": 0.0}}) == []
    few = {"method": "label_propagation", "labels": 50, "noise": {"kind": "symmetric", "rate": 0.0}}
    assert {entry.value for entry in nearest(**few, **{"method.clamp": "hard"})} == {0.97}, "seed document 003"


def test_unlabelled_images_count_where_few_are_labelled() -> None:
    few = {"labels": 250}
    assert flags(few, few) == []
    ((what, said),) = flags({**few, "unlabelled_ratio": 1.0}, few)
    assert (what, said) == (
        "unlabelled images",
        "unlabelled images: all others here, 1 for each labelled one in the paper",
    )


def test_asymmetric_and_human_noise() -> None:
    asymmetric = {"noise": "asymmetric", "include_true": None}
    ours = {"noise": {"kind": "asymmetric", "rate": 0.5}}
    assert flags(asymmetric, ours) == []
    assert [what for what, _ in flags(asymmetric, {**ours, "dataset": "digits"})] == ["data set", "noise"]
    assert [what for what, _ in flags({**asymmetric, "rate": 0.4}, ours)] == ["noise rate"]
    human = {"noise": "human", "column": "worse", "rate": 0.0, "include_true": None}
    assert flags(human, {"noise": {"kind": "human", "column": "worse"}}) == []
    ((what, said),) = flags(human, {"noise": {"kind": "human", "column": "aggre"}})
    assert (what, said) == ("noise", "human labels aggre here, worse in the paper")


@pytest.mark.parametrize(
    ("kind", "rate", "include_true", "dataset", "share"),
    [
        ("symmetric", 0.5, True, "cifar10", 0.45),
        ("symmetric", 0.8, True, "cifar100", 0.792),
        ("symmetric", 0.5, False, "cifar10", 0.5),
        ("asymmetric", 0.4, None, "cifar10", 0.2),
        ("pair", 0.45, None, "cifar10", 0.45),
    ],
)
def test_share_of_wrong_labels(kind: str, rate: float, include_true: bool | None, dataset: str, share: float) -> None:
    assert papers.wrong_share(kind, rate, include_true, dataset) == pytest.approx(share)


def nearest(**changes: Any) -> list[papers.Entry]:
    return [entry for _, entry in papers.closest(trial(**changes).model_dump(mode="json"))]


def test_the_closest_entries_are_of_the_same_question() -> None:
    never = {"method.average_losses": "never"}
    assert {(entry.where, entry.value) for entry in nearest(**never)} == {
        ("Table 1, best", 0.946),
        ("Table 1, last", 0.944),
    }
    assert {entry.dataset for entry in nearest(**never, dataset="digits")} == {"cifar10"}
    assert {entry.dataset for entry in nearest(**never, dataset="cifar100")} == {"cifar100"}
    # another rate: the nearest share of wrong labels, 18 % and not 45 %
    assert {entry.rate for entry in nearest(**never, noise={"kind": "symmetric", "rate": 0.1})} == {0.2}
    assert {entry.column for entry in nearest(noise={"kind": "human", "column": "random2"})} == {"random2"}


def test_test_accuracies_come_before_validation_accuracies_that_are_nearer() -> None:
    """Table 3 of document 002 has test accuracies and no ratio of unlabelled images, Table 4 has ratios alone."""
    semi = find_study("architectures_002").plan("paper")
    config = next(planned.trial for planned in semi.trials if planned.arm == "semi_supervised").model_dump(mode="json")
    for ratio, validation in ((20, 0.5872), (1, 0.5561)):
        here = config | {"unlabelled_ratio": ratio, "network": "convnet_002"}
        nearest = [(entry.where, entry.measure, entry.value) for _, entry in papers.closest(here)]
        assert nearest == [("Table 3", "test accuracy", 0.5563), ("Table 4", "validation accuracy", validation)]
    supervised = config | {"method": {"name": "supervised"}, "network": "convnet_002"}
    assert [entry.where for _, entry in papers.closest(supervised)] == ["Table 1"], "a test accuracy is as near"


def test_a_variant_comes_before_a_rate() -> None:
    backward = nearest(
        method="loss_correction", **{"method.direction": "backward"}, noise={"kind": "human", "column": "aggre"}
    )
    assert {entry.name for entry in backward} == {"Backward T"}
    few = {"labels": 250, "noise": {"kind": "none"}, "network": "wide_resnet28_2"}
    assert {entry.labels for entry in nearest(method="mixmatch", **few)} == {250}


def test_no_entry_where_no_paper_has_the_method_or_the_kind_of_noise() -> None:
    assert nearest(noise={"kind": "instance", "rate": 0.4}) == []
    assert nearest(method="robmix", labels=250) == []


LAST10 = {  # arm: accuracies of its replicates
    "as_published": [0.940, 0.945, 0.950, 0.943, 0.947],
    "better": [0.960, 0.965, 0.970, 0.963, 0.967],
    "few": [0.940, 0.945, 0.950],
    "alike": [0.944, 0.944, 0.944, 0.944],
    "digits": [0.90, 0.91, 0.92, 0.93],
    "robmix": [0.7, 0.8, 0.9, 0.8],
    "old": [0.7, 0.8, 0.9, 0.8],
}
OURS: dict[str, dict[str, Any]] = {
    **{arm: {"method.average_losses": "never"} for arm in LAST10},
    "digits": {"method.average_losses": "never", "dataset": "digits", "method.batch_size": 32},
    "robmix": {"method": "robmix", "labels": 250},
}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Results:
    root = tmp_path_factory.mktemp("papers")
    simulation = simulated.Simulation(root)
    planned = [
        {"trial": simulated.trial_id(arm, {}, replicate), "arm": arm, "setting": {}, "replicate": replicate}
        for arm, values in LAST10.items()
        for replicate in range(len(values))
    ]
    simulation.submit(simulated.plan(arms=OURS, trials=planned, panels=(), contrasts=[]))
    for entry in planned:
        config = trial(**OURS[entry["arm"]], replicate=entry["replicate"]).model_dump(mode="json")
        value = LAST10[entry["arm"]][entry["replicate"]]
        stored = None if entry["arm"] == "old" else json.dumps(config)
        simulation.trial(**entry, accuracy_last10=value, accuracy_last=value, config=stored)
    return load(root, simulated.STUDY)


@pytest.fixture(scope="module")
def frame(study: Results) -> pd.DataFrame:
    return papers.beside(study, "last10")


def test_a_reported_value_in_our_interval(frame: pd.DataFrame) -> None:
    row = frame[(frame["arm"] == "as_published") & (frame["where"] == "Table 1, last")].iloc[0]
    # t(0.975, 4) = 2.776445 times sd / sqrt(5), sd = sqrt(14.5e-6)
    half = 2.776445 * np.sqrt(14.5e-6) / np.sqrt(5)
    assert (row["n"], row["mean"]) == (5, pytest.approx(0.945))
    assert (row["low"], row["high"]) == (pytest.approx(0.945 - half, abs=1e-7), pytest.approx(0.945 + half, abs=1e-7))
    assert (row["paper"], row["reported"], row["n_reported"]) == ("dividemix", 0.944, 1)
    assert row["comparable"] and row["mismatches"] == ["one run in the paper"] and row["differs_in"] == ["replicates"]
    assert row["departures"] == papers.departures(trial().model_dump(mode="json")) and len(row["departures"]) == 3
    assert row["comparison"] == "; ".join(
        ["in our interval, 0.10 points below our mean", "one run in the paper", *row["departures"]]
    )
    assert papers.entries()[row["entry"]].value == 0.944


def test_a_reported_value_outside_our_interval(frame: pd.DataFrame) -> None:
    row = frame[(frame["arm"] == "better") & (frame["where"] == "Table 1, last")].iloc[0]
    assert row["comparable"]
    assert row["comparison"].startswith("outside our interval, 2.10 points below our mean; one run in the paper; ")


def test_best_of_a_paper_is_not_compared_with_our_last_epochs(frame: pd.DataFrame) -> None:
    row = frame[(frame["arm"] == "as_published") & (frame["where"] == "Table 1, best")].iloc[0]
    assert not row["comparable"] and row["comparison"] == "not comparable: selection rule"
    assert row["differs_in"] == ["selection rule", "replicates"]


def test_no_comparison_of_few_replicates_or_of_replicates_that_do_not_differ(frame: pd.DataFrame) -> None:
    def said(arm: str) -> str:
        return str(frame[(frame["arm"] == arm) & (frame["where"] == "Table 1, last")]["comparison"].iloc[0])

    assert said("few").startswith(
        "not compared; one run in the paper; 3 replicates here, fewer than 4; weight decay on"
    )
    assert said("alike").startswith("our replicates do not differ: no interval")


def test_all_that_differs_is_said(frame: pd.DataFrame) -> None:
    row = frame[(frame["arm"] == "digits") & (frame["where"] == "Table 1, last")].iloc[0]
    assert row["comparison"] == "not comparable: data set, settings"
    assert row["mismatches"] == [
        "digits here, cifar10 in the paper",
        "batch_size 32 here, 64 in the paper",
        "one run in the paper",
    ]


def test_arms_without_a_reported_number_stay(frame: pd.DataFrame) -> None:
    rows = frame.set_index("arm")
    assert rows.loc["robmix", "comparison"] == "no paper has a number for it"
    assert rows.loc["old", "comparison"] == "its configuration is not stored"
    assert np.isnan(rows.loc["robmix", "reported"]) and rows.loc["robmix", "mean"] == pytest.approx(0.8)
    assert set(frame["arm"]) == set(LAST10)


def test_a_rule_without_values_gives_no_row(study: Results) -> None:
    assert papers.beside(study, "val_selected").empty
    assert list(papers.beside(study, "val_selected")) == list(papers.beside(study, "last"))


def test_the_table_of_a_study(study: Results) -> None:
    table = papers.table(study, "last10")
    assert isinstance(table, Table) and set(map(len, table.rows)) == {len(table.header)}
    (row,) = [row for row in table.rows if row[0] == "as published" and "last" in row[6]]
    assert row == [
        *("as published", "base", "5", "94.50", "[94.03, 94.97]", "94.40", "dividemix, Table 1, last: DivideMix"),
        "; ".join(
            [
                "in our interval, 0.10 points below our mean; one run in the paper",
                *papers.departures(trial().model_dump(mode="json")),
            ]
        ),
    ]
    assert "(selection rule last10)" in table.caption and "No paper has a number for: old, robmix." in table.caption
    assert "| as published | base | 5 | 94.50 |" in table.markdown()
    assert r"\label{tab:papers}" in table.latex("papers")


def test_the_table_of_a_paper(study: Results) -> None:
    table = papers.registry_table("dividemix", study, "last10")
    assert len(table.frame) == len(table.rows)
    shown = [row for row in table.rows if row[0] == "Table 1, last" and "50 %" in row[2] and row[1] == "DivideMix"]
    assert {row[7] for row in shown} >= {
        "as published: 94.50 [94.03, 94.97], n = 5",
        "alike: 94.40, n = 4",
    }
    assert all(row[6] == "94.40" and row[4] == "the mean of the last ten epochs" for row in shown)
    compared = table.frame["arm"].notna()
    assert table.frame.loc[~compared, "n"].isna().all(), "n is of ours, n_reported of theirs"
    assert set(table.frame.loc[compared, "n"]) == {3, 4, 5} and set(table.frame["n_reported"]) == {1}
    alone = papers.registry_table("dividemix")
    assert len(alone.rows) == sum(entry.paper == "dividemix" for entry in papers.entries())
    assert {row[7] for row in alone.rows} == {""}


@pytest.mark.parametrize("name", sorted(papers.papers()))
def test_every_paper_has_a_table(name: str) -> None:
    table = papers.registry_table(name)
    assert len(table.rows) == sum(entry.paper == name for entry in papers.entries())
    assert papers.paper(name).title in table.caption and "booktabs" in table.latex("paper")


# ----------------------------------------------------------------------------------------------------------- departures


@pytest.mark.parametrize("method", sorted(papers.DEPARTURES))
def test_departures_are_of_known_methods_and_settings_and_stand_in_their_docstrings(method: str) -> None:
    of_method = Trial(method=method)
    said = " ".join((methods.load(method).__doc__ or "").split())
    for text, where in papers.DEPARTURES[method]:
        assert 20 < len(text) < 120 and text.count(" here") == 1
        for key, value in where.items():
            assert of_method.override({key: value}).value(key) == value
    for words, declared in {
        "weight decay on kernels only": "eight decay on kernels only",
        "no warm-up of the learning rate": "no warm-up of the learning rate",
        "YIQ": "YIQ",
        "RandAugment": "RandAugment",
        "BatchNorm": "BatchNorm",
        "share the epochs": "share the trial's epochs",
        "class-balanced": "class-balanced",
        "rounded": "rounded",
        "drawn alike": "both views are drawn from",
        "light network": "light",
        "dropout": "no dropout",
    }.items():
        if any(words in text for text, _ in papers.DEPARTURES[method]):
            assert declared in said or (method == "selfmatch" and "projection head of `simclr`" in said), words


def test_a_departure_ends_where_its_setting_does() -> None:
    def told(method: str, **changes: Any) -> str:
        changes = {key.replace("__", "."): value for key, value in changes.items()}
        return " | ".join(papers.departures(Trial(method=method).override(changes).model_dump(mode="json")))

    assert "no warm-up" in told("simclr") and "no warm-up" not in told("simclr", method__optimizer__warm_up=0.01)
    assert "RandAugment" not in told("fixmatch")
    assert "RandAugment" in told("fixmatch", method__strong__rand_augment="paper")
    light = {"network": "resnet29_ieg"}
    assert "all weights" in told("ieg", network="wide_resnet28_10") and "all weights" not in told("ieg", **light)
    assert "2e-4" in told("ieg", **light) and "2e-4" not in told("ieg", **light, method__optimizer__weight_decay=2e-4)
    assert told("supervised") == ""


# ---------------------------------------------------------------------------------------------------------- the study


def closest_of(preset: str, arm: str, selection: str) -> list[tuple[papers.Entry, list[str]]]:
    """What the registry has for an arm of the study `paper_tables`, in its base, and in what it differs."""
    plan = find_study("paper_tables").plan(preset)
    ours = next(planned.trial for planned in plan.trials if planned.arm == arm and planned.setting == "{}")
    said = plan.record.arms[arm]
    stated = {key.removeprefix("method."): value for key, value in said.items() if key.startswith("method.")}
    config = ours.model_dump(mode="json")
    return [
        (entry, [one.what for one in papers.mismatches(entry, config, stated, selection, 5)])
        for _, entry in papers.closest(config)
    ]


@pytest.mark.parametrize(
    ("arm", "value"),
    [("dividemix", 94.4), ("dividemix_20", 95.7), ("dividemix_90", 75.4), ("dividemix_asymmetric", 92.1)],
)
def test_dividemix_is_run_as_its_paper_does(arm: str, value: float) -> None:
    (last,) = [(entry, differs) for entry, differs in closest_of("paper", arm, "last10") if entry.selection == "last10"]
    assert last[0].value == pytest.approx(value / 100) and last[1] == ["replicates"]


OF_DOCUMENT_004 = (
    *("paper_trusted", "paper_trusted_cifar100", "paper_trusted_asymmetric"),
    *("paper_trusted_semantic", "paper_trusted_semantic_cifar100"),
    *("paper_webvision_mini", "paper_webvision", "paper_food101n"),
)


def test_every_row_of_document_004_is_a_trial_of_its_presets() -> None:
    study = find_study("paper_tables")
    planned: dict[tuple[str, str, str, float], list[Trial]] = {}
    for preset in OF_DOCUMENT_004:
        for trial in (one.trial for one in study.plan(preset, replicates=1).trials):
            key = (trial.method_name, trial.dataset.partition("?")[0], trial.noise.kind, trial.noise.rate)
            planned.setdefault(key, []).append(trial)
    rows = [entry for entry in papers.entries() if entry.paper == "ieg" and entry.found == "seed document 004"]
    assert len(rows) == (26 + 9) + (24 + 8) + 10 + 8 + 16 + 4, "its tables of CIFAR, and of images from the web"
    not_ours = {entry.name for entry in rows if entry.method is None}
    assert not_ours == {"Chen et al. [5]"}
    for entry in (entry for entry in rows if entry.method is not None):
        rate = 0.0 if entry.noise == "semantic" else entry.rate  # realised by the teacher, and not asked for
        kind = "given" if entry.noise == "web" else entry.noise
        trials = planned.get((entry.method or "", entry.dataset, kind, rate), [])
        fits = [trial for trial in trials if entry.probe in (None, trial.probe)]
        if entry.network in networks.names():
            fits = [trial for trial in fits if trial.network == entry.network]
        assert fits, f"{entry.where}, {entry.name}, {entry.noise} {entry.rate}"


def test_human_labels_are_compared_as_their_paper_does() -> None:
    ((entry, differs),) = [
        found for found in closest_of("paper_human", "gce", "best_test") if found[0].paper == "cifar_n"
    ]
    assert entry.value == 0.8066 and differs == []


@pytest.mark.parametrize(
    ("preset", "arm", "value"),
    [
        ("paper_webvision_mini", "ieg", 0.8),
        ("paper_webvision_mini", "ieg_light", 0.78),
        ("paper_webvision", "mentornet", 0.642),
        ("paper_food101n", "self_learning", 0.8511),
    ],
)
def test_labels_from_the_web_are_laid_beside_those_of_document_004(preset: str, arm: str, value: float) -> None:
    entries = {entry.value: differs for entry, differs in closest_of(preset, arm, "last") if entry.paper == "ieg"}
    assert value in entries and not {"noise", "data set"} & set(entries[value])
