"""Where a trial's time goes: seconds by phase, of which each counts once.

    clock = Clock()
    with clock.running(), phase("evaluation"):
        …

What is timed inside of a phase counts there and not in the outer one, but for `evaluation`, which is told as a whole.
Times are the host's.  A GPU works behind the host, which waits for it where it needs a number: in training that is the
end of an epoch, so there `rest` holds the GPU's time, and only the sum of the phases of training has a meaning.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal, get_args

Phase = Literal[
    "views", "forward", "backward", "update", "meta", "inference", "rest", "evaluation", "checkpoint", "report"
]
PHASES: tuple[Phase, ...] = get_args(Phase)
WHOLE = ("evaluation",)  # phases in which nothing is told apart

_running: ContextVar[Clock | None] = ContextVar("the clock of the trial that is being trained", default=None)


class Clock:
    """The seconds of one trial by phase."""

    def __init__(self, seconds: Mapping[str, float] | None = None) -> None:
        """`seconds`: of earlier attempts that this one continues."""
        self.seconds: dict[Phase, float] = {name: (seconds or {}).get(name, 0.0) for name in PHASES}
        self._open: list[Phase] = []
        self._since = 0.0  # when the innermost open phase was entered or returned to

    @contextmanager
    def running(self) -> Iterator[None]:
        """Within the block, `phase` is told to this clock."""
        token = _running.set(self)
        try:
            yield
        finally:
            _running.reset(token)

    def enter(self, name: Phase) -> None:
        """Begin a phase, within the one that is open."""
        self._count()
        self._open.append(self._open[-1] if self._open and self._open[-1] in WHOLE else name)

    def leave(self) -> None:
        """End the innermost phase."""
        self._count()
        self._open.pop()

    def _count(self) -> None:
        now = time.perf_counter()
        if self._open:
            self.seconds[self._open[-1]] += now - self._since
        self._since = now


class phase:  # a context manager, and quicker than one by a generator: steps enter several
    """Within the block, the time of the running clock counts for this phase; without a clock nothing is timed."""

    __slots__ = ("clock", "name")

    def __init__(self, name: Phase) -> None:
        self.name = name

    def __enter__(self) -> None:
        self.clock = _running.get()
        if self.clock is not None:
            self.clock.enter(self.name)

    def __exit__(self, *error: object) -> None:
        if self.clock is not None:
            self.clock.leave()
