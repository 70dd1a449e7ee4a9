"""Reports that travel together: none is lost, none comes late, and the order stays."""

from __future__ import annotations

import pytest

from lnl.execution.grouped import Grouped, Message
from lnl.trial.reports import TrialOutcome

DONE: TrialOutcome = {"outcome": "done"}


def test_the_first_epoch_is_told_at_once_and_the_rest_with_the_outcome() -> None:
    sent: list[Message] = []
    report = Grouped(sent.append, every_s=3600)
    for epoch in (1, 2, 3):
        report({"epoch": epoch})
    assert sent == [{"reports": [{"epoch": 1}]}]
    report(DONE)
    assert sent[1:] == [{"reports": [{"epoch": 2}, {"epoch": 3}, DONE]}]


def test_without_an_interval_every_epoch_is_a_message_of_its_own() -> None:
    sent: list[Message] = []
    report = Grouped(sent.append, every_s=0)
    report({"epoch": 1})
    report({"epoch": 2})
    report(DONE)
    assert sent == [{"reports": [{"epoch": 1}]}, {"reports": [{"epoch": 2}]}, {"reports": [DONE]}]


def test_a_message_that_fails_is_not_sent_again() -> None:
    """Its error goes through; the attempt's outcome then comes alone."""
    sent: list[Message] = []

    def send(message: Message) -> None:
        sent.append(message)
        if len(sent) == 1:
            raise ConnectionError("the driver is gone")

    report = Grouped(send, every_s=0)
    with pytest.raises(ConnectionError):
        report({"epoch": 1})
    report(DONE)
    assert sent == [{"reports": [{"epoch": 1}]}, {"reports": [DONE]}]
