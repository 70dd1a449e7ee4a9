"""Figures of a user's own on the page: what can be drawn is, what cannot is a sentence."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from analysis.figures.own import NotDrawn, own_figures
from analysis.notebook import load
from lnl.cli.main import main
from tests import simulated

FIGURES = '''
from matplotlib import pyplot
from matplotlib.figure import Figure


def spread(study):
    """How far replicates lie apart, in $ and %.

    Not shown.
    """
    figure, axes = pyplot.subplots(figsize=(3, 2))
    axes.hist(study.trials["seconds"])
    return figure


def contrasts(study):
    return study.plot_contrasts()


def broken(study):
    return _helper(study)["nothing"]


def number(study):
    return 3


def _helper(study):
    return {}


class NoFigure:
    pass
'''


@pytest.fixture
def root(own_folder: Path) -> Path:
    simulation = simulated.Simulation(own_folder / "results")
    plan = simulated.plan(1, panels=["frozen_head"])
    simulation.submit(plan)
    simulation.run(plan["trials"])
    (own_folder / "my_figures.py").write_text(FIGURES, encoding="utf-8")
    return own_folder / "results"


@pytest.mark.slow
def test_the_page_shows_them_in_a_section_of_their_own(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", simulated.STUDY, "--storage", str(root), "--figures", "my_figures.py", "--pdf"]) == 0
    (page,) = root.glob("reports/*/index.html")
    text = page.read_text(encoding="utf-8")
    section = re.search(r"<h2[^>]*>Figures of your own</h2>(.*?)</section>", text, re.DOTALL)
    assert section is not None
    assert section[1].count("<img") == 2 and "<figcaption>How far replicates lie apart" in section[1]
    assert "Not shown" not in section[1] and "--figures my_figures.py --pdf" in section[1]
    assert "<li>`broken` could not be drawn (KeyError: &#39;nothing&#39;; my_figures.py, line 21).</li>" in section[1]
    assert (
        "<li>`number` could not be drawn (TypeError: it must return a matplotlib Figure, not int).</li>" in section[1]
    )
    assert {path.name for path in page.parent.glob("own-*")} == {
        *("own-spread.png", "own-spread.pdf"), *("own-contrasts.png", "own-contrasts.pdf", "own-contrasts.csv"),
    }  # fmt: skip


def test_what_has_no_figures_is_refused_before_anything_is_drawn(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, text in (("empty.py", "import math"), ("wrong.py", "import nothing_at_all")):
        Path(name).write_text(text, encoding="utf-8")
    for name, sentence in (
        ("empty.py", "empty.py defines no figure: write a function that takes a study and returns a Figure."),
        (
            "wrong.py",
            "wrong.py cannot be loaded (ModuleNotFoundError: No module named 'nothing_at_all'; wrong.py, line 1).",
        ),
        ("absent.py", "there is no file 'absent.py' in "),
    ):
        assert main(["report", simulated.STUDY, "--storage", str(root), "--figures", name]) == 2
        assert capsys.readouterr().err.startswith(f"error: {sentence}")
    assert not list(root.glob("reports"))


def test_a_function_by_itself(root: Path) -> None:
    study = load(root, simulated.STUDY)
    figures = {figure.name: figure for figure in own_figures("my_figures.py")}
    assert list(figures) == ["spread", "contrasts", "broken", "number"]
    assert figures["spread"].draw(study).caption == figures["spread"].title
    with pytest.raises(NotDrawn):
        figures["broken"].draw(study)
