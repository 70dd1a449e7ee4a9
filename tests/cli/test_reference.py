"""The page of reference says what the code says, in words that a reader understands."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field as Bounded

from lnl.cli import reference
from lnl.cli.fields import allowed, default_text, fields_of
from lnl.cli.main import main
from lnl.training.learner import Optimizer
from lnl.training.task import Noise

PAGE = Path(__file__).parents[2] / "docs" / "reference.md"


def test_the_page_is_what_the_code_says(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reference"]) == 0
    assert PAGE.read_text(encoding="utf-8") == capsys.readouterr().out, (
        "run `lnl reference > docs/reference.md` and commit the page"
    )


@pytest.mark.parametrize("kind", reference.KINDS, ids=lambda kind: kind.__name__)
def test_every_field_says_what_it_means(kind: type) -> None:
    without = [field.name for field in fields_of(kind) if not field.meaning]
    assert not without, "write a docstring below these fields"


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (bool, "True or False"),
        (Annotated[int, Bounded(ge=2)], "whole number ≥ 2"),
        (Annotated[float, Bounded(gt=0, le=1)] | None, "number > 0 and ≤ 1 or None"),
        (Literal["sgd", "adam"] | None, "sgd, adam or None"),
        (tuple[float, ...], "list of numbers"),
        (list[Noise], "list of Noise"),
        (tuple[Literal["accuracy"], Literal["seconds"]], "(accuracy, seconds)"),
        (dict[str, Any], "{field: value}"),
        (dict[str, Noise], "{name: Noise}"),
    ],
)
def test_what_a_field_may_be_is_said_in_words(annotation: Any, words: str) -> None:
    assert allowed(annotation) == words


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (1 / 3, "0.3333"),
        ((0.5, 0.75), "0.5, 0.75"),
        ((), "none"),
        ({}, "none"),
        (None, "None"),
        (Optimizer(), "Optimizer()"),
        (Optimizer(kind="sgd", learning_rate=1e-5), "kind sgd, learning_rate 1e-05"),
        (Noise(), "Noise()"),
    ],
)
def test_defaults_are_short(value: Any, words: str) -> None:
    assert default_text(value) == words
