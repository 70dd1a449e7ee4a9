"""Rendering of a report's figures: in processes of their own, while this one draws the next."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from loky import get_reusable_executor
from matplotlib.figure import Figure

from analysis.figures import base
from lnl.system.machine import cpus

FEW = 8  # figures that are not worth a process, which takes as long to start as some of them to render
IDLE_SECONDS = 20  # after which a process ends; the next report of a session may find it
RENDERERS = {"png": base.png, "pdf": base.pdf}


@dataclass
class Rendering:
    """A figure's bytes by kind of file, once they are asked for."""

    figure: Figure
    kinds: Sequence[str]  # of RENDERERS
    elsewhere: Future[dict[str, bytes]] | None = None

    def files(self) -> dict[str, bytes]:
        """The bytes, from the process that has begun with them; else, and where that has failed, from this one."""
        if self.elsewhere is not None and not self.elsewhere.cancel():
            try:
                return self.elsewhere.result()
            except Exception:  # it was killed, or a figure of the user's own cannot travel: an error comes again here
                pass
        return _render(self.figure, self.kinds)


@dataclass
class Renderer:
    """Renders figures in as many processes as there are CPUs beside this one's; a few figures need none."""

    processes: int = field(default_factory=lambda: cpus() - 1)
    _waiting: list[Rendering] = field(default_factory=list)
    _figures: int = 0

    def start(self, figure: Figure, kinds: Sequence[str]) -> Rendering:
        """Begin with a figure, or let it wait until there are enough to begin with."""
        rendering = Rendering(figure, kinds)
        self._waiting.append(rendering)
        self._figures += 1
        if self.processes and self._figures > FEW:
            self._hand_out()
        return rendering

    def _hand_out(self) -> None:
        try:
            executor = get_reusable_executor(self.processes, timeout=IDLE_SECONDS)
            for waiting in self._waiting:
                waiting.elsewhere = executor.submit(_render, waiting.figure, waiting.kinds)
        except (OSError, ImportError):  # no semaphores, no memory: this process renders them all
            self.processes = 0
        self._waiting.clear()


def _render(figure: Figure, kinds: Sequence[str]) -> dict[str, bytes]:
    return {kind: RENDERERS[kind](figure) for kind in kinds}
