"""The study files: declarations that plan, at every size."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from lnl import methods
from lnl.cli.studies import find_study
from lnl.study.study import Study

FILES = sorted(Path(__file__).parents[1].glob("studies/*.py"))
NAMES = [path.stem for path in FILES if path.stem != "__init__"]


@pytest.fixture(scope="module", params=NAMES)
def study(request: pytest.FixtureRequest) -> Study:
    return find_study(request.param)


def test_the_studies_of_the_seed_documents_are_there() -> None:
    declared = "architectures_002 annotation augmentation_strategies coefficients dividemix_ablation label_ratios"
    more = "noise_rates probe_size robmix_ablation sensitivity students"
    searches = "search search_lambda search_temperature search_probe_size search_threshold"
    assert {*declared.split(), *more.split(), *searches.split()} <= set(NAMES)


SIZES = {  # of no published paper
    "embeddings": {"smoke", "embeddings", "simclr", "search", "images"},
    "label_errors": {"smoke", "digits", "embeddings", "features"},
    "precision": {"smoke", "digits", "vectors", "cifar10"},
}


def test_a_study_is_named_after_its_file_and_has_every_size(study: Study) -> None:
    assert study.name in NAMES and study.question.endswith("?")
    assert SIZES.get(study.name, {"smoke", "digits", "cifar10", "paper"}) <= set(study.presets)
    assert study.contrasts


def test_every_preset_plans(study: Study) -> None:
    for preset in [None, *study.presets]:
        plan = study.plan(preset)
        assert plan.trials and len({planned.id for planned in plan.trials}) == len(plan.trials)
        assert plan.record.arms
    smoke = study.plan("smoke")
    bundled = {"digits", "digits_vectors", "letters"}
    assert {planned.trial.dataset for planned in smoke.trials} <= bundled, "a bare machine has no other images"
    assert len(smoke.trials) <= 150


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("search")])
def test_a_search_is_of_every_size_and_chooses_by_images_of_its_own(name: str) -> None:
    declared = find_study(name)
    for preset in [None, *declared.presets]:
        plan = declared.plan(preset)
        assert plan.cells and {cell.arm for cell in plan.cells} <= set(plan.record.arms)
        for cell in plan.cells:
            assert cell.trial.validation.images and cell.trial.validation.labels == "noisy"
            assert cell.trial.validation.source == "train", "the test set chooses nothing"
    smoke = declared.plan("smoke")
    assert smoke.search is not None and smoke.search.suggestions * len(smoke.cells) <= 50


def test_the_search_of_all_methods_tries_what_each_declares_but_no_more_trusted_images() -> None:
    plan = find_study("search").plan("digits")
    assert {cell.arm for cell in plan.cells} == set(methods.names())
    for cell in plan.cells:
        assert cell.arm == cell.trial.method_name
        assert set(cell.space) <= set(methods.load(cell.arm).SEARCH) - {"probe"}
    assert len({(cell.trial.labels, cell.trial.probe, cell.trial.noise, cell.trial.steps) for cell in plan.cells}) == 1


def test_robmix_starts_from_one_pre_training_per_replicate_whatever_the_setting() -> None:
    for preset in ("smoke", "paper"):
        trials = [planned.trial for planned in find_study("robmix_ablation").plan(preset).trials]
        start = next(trial for trial in trials if trial.init_from and trial.replicate == 0)
        settings = [{"labels": 60, "noise.rate": 0.1}, {"labels": 80, "unlabelled_ratio": 5}, {"replicate": 1}]
        of_settings = [start, *map(start.override, settings)]
        ids = [trial.prerequisites["initialisation"].id for trial in of_settings]
        assert ids[0] == ids[1] == ids[2] != ids[3]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_studies_are_declarations(path: Path) -> None:
    """No function, no loop, no import but of what declares."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        assert not isinstance(node, ast.FunctionDef | ast.ClassDef | ast.For | ast.While | ast.With | ast.Try), path
        if isinstance(node, ast.ImportFrom):
            assert (node.module or "").split(".")[0] == "lnl"
