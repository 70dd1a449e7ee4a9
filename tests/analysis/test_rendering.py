"""Figures rendered in other processes are those of this one, whatever becomes of the processes."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import psutil
import pytest
from loky import get_reusable_executor
from matplotlib.figure import Figure

from analysis.figures import base
from analysis.report.rendering import FEW, Renderer


@base.drawing()
def line(height: int) -> Figure:
    figure = base.new_figure(2, 3)
    figure.subplots().plot([0, height], [0, 1], label="a line")
    figure.axes[0].set_ylabel("accuracy (%)")
    return figure


@pytest.fixture(autouse=True)
def no_process_is_left() -> Iterator[None]:
    yield
    get_reusable_executor(1).shutdown(kill_workers=True)


def test_other_processes_give_the_same_bytes() -> None:
    renderer, alone = Renderer(processes=1), Renderer(processes=0)
    elsewhere = [renderer.start(line(height), ["png", "pdf"]) for height in range(FEW + 3)]
    here = [alone.start(line(height), ["png", "pdf"]) for height in range(FEW + 3)]
    first = elsewhere[0].elsewhere
    assert first is not None and first.result().keys() == {"png", "pdf"}  # rendered there, not taken back
    assert [rendering.files() for rendering in elsewhere] == [rendering.files() for rendering in here]
    assert len({rendering.files()["png"] for rendering in here}) == FEW + 3


def test_a_few_figures_start_no_process() -> None:
    renderer = Renderer(processes=1)
    renderings = [renderer.start(line(height), ["png"]) for height in range(FEW)]
    assert all(rendering.elsewhere is None for rendering in renderings)
    renderings.append(renderer.start(line(FEW), ["png"]))
    assert all(rendering.elsewhere is not None for rendering in renderings)


def test_a_process_that_is_killed_loses_nothing() -> None:
    renderer = Renderer(processes=1)
    renderings = [renderer.start(line(height), ["png"]) for height in range(FEW + 3)]
    first = renderings[0].elsewhere
    assert first is not None
    first.result()
    for child in psutil.Process().children(recursive=True):
        if "loky" in " ".join(child.cmdline()):
            os.kill(child.pid, signal.SIGKILL)
    assert [rendering.files()["png"] for rendering in renderings] == [base.png(line(n)) for n in range(FEW + 3)]


def test_a_machine_that_starts_no_process_renders_them_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise OSError("no semaphores here")

    monkeypatch.setattr("analysis.report.rendering.get_reusable_executor", refused)
    renderer = Renderer(processes=1)
    renderings = [renderer.start(line(height), ["png"]) for height in range(FEW + 2)]
    assert renderer.processes == 0 and all(rendering.files()["png"] for rendering in renderings)


def test_a_figure_that_cannot_travel_is_rendered_here_and_an_error_is_its_own() -> None:
    class Rooted(Figure):
        def __getstate__(self) -> dict[str, object]:
            raise TypeError("it stays here")

    renderer = Renderer(processes=1)
    renderings = [renderer.start(line(height), ["png"]) for height in range(FEW)]
    rooted = renderer.start(Rooted(figsize=(1, 1)), ["png"])
    broken = line(1)
    broken.axes[0].set_title(r"$\nothing$", parse_math=True)
    wrong = renderer.start(broken, ["png"])
    assert rooted.files()["png"].startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="nothing"):
        wrong.files()
    assert all(rendering.files()["png"] for rendering in renderings)
