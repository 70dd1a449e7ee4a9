"""A user's own code by reference: found, read once, imported under no other module's name, and carried elsewhere."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lnl.system import user_code

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("name", "is_own"),
    [
        ("mine.py", True),
        ("folder/mine.py:narrow", True),
        ("package.module", True),
        ("package.module:narrow", True),
        ("gce", False),
        ("wide_resnet28_2", False),
        ("npz:folder/images.npz", False),
        ("folder:images.py/", False),
        ("..", False),
    ],
)
def test_a_reference_is_told_from_a_name(name: str, is_own: bool) -> None:
    assert user_code.is_reference(name) == is_own


def test_a_path_is_the_same_on_every_machine(own_folder: Path) -> None:
    assert user_code.normalised("./parts//mine.py:narrow") == "parts/mine.py:narrow"
    assert user_code.normalised(f"{own_folder}/parts/mine.py") == "parts/mine.py"
    assert user_code.normalised("package.module:name") == "package.module:name"
    with pytest.raises(
        ValueError, match=r"^'/elsewhere/mine.py' lies outside of the study's folder and .* give its path"
    ):
        user_code.normalised("/elsewhere/mine.py")


def test_a_file_with_all_that_it_imports_from_its_folder(own_folder: Path) -> None:
    write(
        "mine.py",
        "import torch, json\nfrom parts.losses import two\ndef four():\n    import late\n    return late.three + two",
    )
    write("parts/losses.py", "from . import numbers_\nfrom .. import beyond\ntwo = numbers_.one + 1")
    write("parts/numbers_.py", "one = 1")
    write("late.py", "three = 3")
    write("not_imported.py", "raise RuntimeError")
    code = user_code.read("mine.py")
    assert code.module == "mine"
    assert sorted(code.sources) == ["late", "mine", "parts", "parts.losses", "parts.numbers_"]
    write("parts/losses.py", "from . import numbers_\ntwo = numbers_.one + 1")  # too late: it has been read
    with pytest.raises(ValueError, match=r"^mine.py cannot be loaded \(ImportError: .*; losses.py, line 2\)\.$"):
        user_code.load("mine.py")
    assert user_code.load("mine.py:four")() == 5  # type: ignore[operator]  # corrected, and read anew


def test_of_a_study_s_folder_before_the_current_one(own_folder: Path) -> None:
    write("study/mine.py", "place = 'study'")
    write("mine.py", "place = 'here'")
    user_code.search_in(own_folder / "study")
    assert user_code.load("mine.py:place") == "study"


def test_what_was_read_is_what_is_run_and_carried(own_folder: Path) -> None:
    write("mine.py", "from inside.other import one\nclass Mine:\n    value = one")
    write("inside/other.py", "one = 1")
    user_code.read("mine.py")
    content = user_code.carried()
    write("mine.py", "raise RuntimeError")
    assert user_code.load("mine.py:Mine.value") == 1
    with pytest.raises(ValueError, match=r"mine.py has changed since this process read it: start it again\.$"):
        user_code.carried()
    elsewhere = own_folder / "elsewhere"
    elsewhere.mkdir()
    (own_folder / "inside" / "other.py").unlink()
    code = (
        f"from lnl.system import user_code; user_code.receive({content!r}); print(user_code.load('mine.py').Mine.value)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], cwd=elsewhere, env=environment, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("1\n", "")


@pytest.mark.parametrize(
    ("reference", "sentence"),
    [
        ("nothing.py", r"there is no file 'nothing.py' in \S+\."),
        ("my-method.py", r"'my-method.py' cannot be imported: rename the file, .*\."),
        ("broken.py", r"broken.py cannot be loaded \(SyntaxError: .*broken.py, line 2\)\)\."),
        ("raising.py", r"raising.py cannot be loaded \(KeyError: 'x'; raising.py, line 1\)\."),
        ("mine.py:nothing", r"mine.py has no 'nothing': it defines first, Second\."),
        ("uses_random.py", r"\S+/random.py has the name of a module of Python itself: rename it\."),
        ("torch.py", r"torch.py needs \S+/torch.py, but 'torch' is already \S+: rename one of the two\."),
        ("inside/mine.py", r"inside/mine.py needs \S+, but 'mine' is already \S+: rename one of the two\."),
        ("no_such.package:name", r"there is no module 'no_such.package' that can be imported: .*\."),
        ("json.nothing", r"there is no file of Python with the module 'json.nothing' in \S+\."),
    ],
)
def test_what_cannot_be_loaded_is_refused_in_one_sentence(reference: str, sentence: str, own_folder: Path) -> None:
    write("mine.py", "from json import loads\ndef first(): ...\nclass Second: ...\n_third = first")
    for file in ("my-method.py", "random.py", "torch.py", "inside/mine.py"):
        write(file, "")
    write("broken.py", "x = 1\nx = = 2")
    write("raising.py", "{}['x']")
    write("uses_random.py", "import random")
    user_code.load("mine.py")
    with pytest.raises(ValueError, match=f"^{sentence}$"):
        user_code.load(reference)


def test_a_module_of_an_installed_package(own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write("site/their_package/__init__.py", "")
    write("site/their_package/parts.py", "from their_package.numbers_ import one\ndef get():\n    return one")
    write("site/their_package/numbers_.py", "one = 1")
    monkeypatch.syspath_prepend(str(own_folder / "site"))
    assert user_code.load("their_package.parts:get")() == 1  # type: ignore[operator]
    assert set(user_code.read("their_package.parts").sources) == {
        "their_package", "their_package.parts", "their_package.numbers_"
    }  # fmt: skip


def write(path: str, text: str) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text, encoding="utf-8")
