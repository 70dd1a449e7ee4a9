"""Schedules: a step, or the share of training that is done (0 to 1), -> a factor."""

from __future__ import annotations

import math
from collections.abc import Sequence


def linear_ramp(step: float, length: float) -> float:
    """From 0 at step 0 to 1 at `length` and after; 1 throughout for length 0."""
    return min(1.0, step / length) if length > 0 else 1.0


def cosine(progress: float) -> float:
    """(1 + cos(π progress)) / 2, from 1 to 0 (Loshchilov & Hutter 2017, eq. 5).  Raises ValueError outside [0, 1]."""
    if not 0 <= progress <= 1:
        raise ValueError(f"progress must lie between 0 and 1, got {progress}: divide the step by the number of steps.")
    return (1 + math.cos(math.pi * progress)) / 2


def step_decay(progress: float, milestones: Sequence[float], factor: float) -> float:
    """factor^(number of milestones reached); a milestone is reached when progress equals it."""
    return factor ** sum(progress >= milestone for milestone in milestones)


def average_decay(step: int, decay: float) -> float:
    """Decay of the average of the weights with warm-up, min(decay, (1 + step) / (10 + step)).

    Without it an average with decay 0.999 still holds 37 % of the initial weights after 1,000 steps.
    """
    return min(decay, (1 + step) / (10 + step))
