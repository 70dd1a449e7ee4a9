"""Reports of several epochs in one message, so that trials of short epochs do not keep the driver busy."""

from __future__ import annotations

import time
from collections.abc import Callable

from lnl.trial.reports import Metrics, TrialOutcome

EVERY_S = 1.0  # between two messages of a trial

Message = dict[str, list[Metrics | TrialOutcome]]


class Grouped:
    """Sends a trial's reports as messages {"reports": [...]}: the first at once, then at most one in `every_s`.

    What is left is sent with the report of the attempt's outcome.
    """

    def __init__(self, send: Callable[[Message], object], every_s: float = EVERY_S) -> None:
        self.send, self.every_s = send, every_s
        self.waiting: list[Metrics | TrialOutcome] = []
        self.next = time.monotonic()

    def __call__(self, report: Metrics | TrialOutcome) -> None:
        self.waiting.append(report)
        if "outcome" in report or time.monotonic() >= self.next:
            message: Message = {"reports": self.waiting}
            self.waiting = []
            self.send(message)
            self.next = time.monotonic() + self.every_s
