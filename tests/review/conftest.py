"""What tests of a user's images share."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.review.photos import write_photos


@pytest.fixture
def photos(tmp_path: Path) -> Callable[..., Path]:
    """`photos(each=8)`: a folder of digits, `photos`, in the test's own one."""
    return partial(write_photos, tmp_path / "photos")
