"""What the tests of figures and reports share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from analysis.figures.base import STYLE


@pytest.fixture(scope="session", autouse=True)
def quick_pdfs() -> Iterator[None]:
    """Fonts as Type 3, which need no subsets: those take a quarter of a report's time.  test_plots.py keeps our own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(STYLE, "pdf.fonttype", 3)
        yield
