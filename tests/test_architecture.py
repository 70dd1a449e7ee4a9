"""The house: who may import whom, and a line of words for everything public."""

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
LINT = Path(sys.executable).parent / "lint-imports"


def lint(folder):
    return subprocess.run([LINT, "--no-cache"], cwd=folder, capture_output=True, encoding="utf-8", timeout=60)


def test_imports_run_as_declared():
    done = lint(REPOSITORY)
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    "file, line, contract",
    [
        ("lnl/training/streams.py", "from lnl.trial import run", "imports run strictly downwards"),
        ("lnl/functional/noise.py", "from lnl.training import streams", "imports run strictly downwards"),
        ("lnl/strange.py", "", "imports run strictly downwards"),
        ("lnl/methods/mixmatch.py", "from lnl.methods import supervised", "methods never import each other"),
        ("analysis/tables/study.py", "import torch", "analysis reads results: no torch, no Ray, no Optuna"),
        (
            "analysis/results.py",
            "from lnl.study import plan",
            "analysis reads results: no torch, no Ray, no Optuna",
        ),
        ("lnl/study/plan.py", "import ray", "Ray only in execution"),
        ("lnl/search/searches.py", "import ray", "Ray only in execution"),
        ("lnl/execution/runner.py", "import ray", "Ray is imported once its environment is prepared"),
        ("lnl/execution/runner.py", "import optuna", "Optuna only in search"),
        ("lnl/methods/simclr.py", "from ray import tune", "Ray only in execution"),
    ],
)
def test_every_rule_of_the_house_is_kept_up(tmp_path, file, line, contract):
    """A house with one wrong import more does not pass, and the rule it breaks is named."""
    for name in ("lnl", "analysis", "studies"):
        shutil.copytree(REPOSITORY / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPOSITORY / "pyproject.toml", tmp_path)
    with open(tmp_path / file, "a", encoding="utf-8") as text:
        text.write(f"\n{line}\n")
    done = lint(tmp_path)
    assert done.returncode == 1 and f"{contract} BROKEN" in done.stdout, done.stdout


@pytest.mark.slow
def test_results_and_analysis_need_neither_torch_nor_ray():
    """Contracts see the imports that are written; this sees those that happen."""
    modules = sorted(
        ".".join(path.relative_to(REPOSITORY).with_suffix("").parts)
        for path in (REPOSITORY / "analysis").rglob("*.py")
        if path.stem != "__init__"
    )
    imports = "; ".join(["import sys, lnl, lnl.storage.store, analysis", *(f"import {name}" for name in modules)])
    code = f"{imports}; print(sorted({{'torch', 'torchvision', 'ray', 'optuna'}} & sys.modules.keys()))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, encoding="utf-8", timeout=60
    )
    assert (done.stdout, done.returncode) == ("[]\n", 0), done.stderr


def test_the_names_of_the_package_are_there():
    import lnl

    for name in lnl.__all__:
        if name != "trainable":  # lives in the runner, which imports Ray
            assert getattr(lnl, name).__doc__
    with pytest.raises(AttributeError, match="'Studdy'"):
        _ = lnl.Studdy


def test_everything_public_has_a_docstring():
    """Modules, functions and classes.  A method's Config and Method are described by its module and by the Protocol."""
    silent = []
    for path in [
        *REPOSITORY.glob("lnl/**/*.py"),
        *REPOSITORY.glob("analysis/**/*.py"),
        *REPOSITORY.glob("studies/*.py"),
    ]:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        told = {"Config", "Method"} if path.parent.name == "methods" and path.stem != "__init__" else set()
        silent += [
            f"{path.relative_to(REPOSITORY)}:{getattr(node, 'lineno', 1)} {getattr(node, 'name', 'the module')}"
            for node in [tree, *tree.body]
            if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef)
            and not getattr(node, "name", "").startswith("_")
            and getattr(node, "name", "") not in told
            and not ast.get_docstring(node)
        ]
    assert not silent, "\n".join(silent)
