"""How far a long reading of images is: a line on standard error every ten seconds, and none where it is shorter."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator

import numpy as np

EVERY = 10.0  # seconds


def told(parts: Iterable[np.ndarray], whole: int, what: str) -> Iterator[np.ndarray]:
    """The same parts (n, …) of `whole` images; `what`: what is counted."""
    done, started = 0, time.monotonic()
    told_at = started
    for part in parts:
        yield part
        done, now = done + len(part), time.monotonic()
        if now - told_at >= EVERY and done < whole:
            told_at = now
            minutes = (now - started) / done * (whole - done) / 60
            left = f"about {minutes:.0f} min" if minutes >= 1 else "less than a minute"
            print(f"{what}: {done:,} of {whole:,}, {left} left", file=sys.stderr, flush=True)
