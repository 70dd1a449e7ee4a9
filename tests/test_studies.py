"""The study files: declarations that plan, at every size."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from lnl.cli import find_study
from lnl.study import Study

FILES = sorted(Path(__file__).parents[1].glob("studies/*.py"))
NAMES = [path.stem for path in FILES if path.stem != "__init__"]


@pytest.fixture(scope="module", params=NAMES)
def study(request: pytest.FixtureRequest) -> Study:
    return find_study(request.param)


def test_the_studies_of_the_seed_documents_are_there() -> None:
    declared = "architectures_002 augmentation_strategies dividemix_ablation label_ratios noise_rates probe_size"
    assert {*declared.split(), "robmix_ablation", "students"} <= set(NAMES)


def test_a_study_is_named_after_its_file_and_has_every_size(study: Study) -> None:
    assert study.name in NAMES and study.question.endswith("?")
    assert {"smoke", "digits", "cifar10", "paper"} <= set(study.presets)
    assert study.contrasts


def test_every_preset_plans(study: Study) -> None:
    for preset in [None, *study.presets]:
        plan = study.plan(preset)
        assert plan.trials and len({planned.id for planned in plan.trials}) == len(plan.trials)
        assert plan.record["arms"]
    smoke = study.plan("smoke")
    assert {planned.trial.dataset for planned in smoke.trials} == {"digits"}, "a bare machine has no other images"
    assert len(smoke.trials) <= 100


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_studies_are_declarations(path: Path) -> None:
    """No function, no loop, no import but of what declares."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        assert not isinstance(node, ast.FunctionDef | ast.ClassDef | ast.For | ast.While | ast.With | ast.Try), path
        if isinstance(node, ast.ImportFrom):
            assert (node.module or "").split(".")[0] == "lnl"
