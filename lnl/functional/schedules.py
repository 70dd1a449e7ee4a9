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


def restarts(progress: float, first: float, growth: float = 1.5, decay: float = 0.9) -> float:
    """Cosine with warm restarts (Loshchilov & Hutter 2017, eq. 5), `first`: the first cycle's share of training.

    Every cycle is `growth` times as long as the one before it and starts at `decay` times its start; defaults: IEG.
    """
    cycles = progress / first  # in units of the first one
    done = math.floor(math.log(1 + cycles * (growth - 1), growth) + 1e-9)  # else a cycle's very end might not count
    within = cycles / growth**done - (1 - growth**-done) / (growth - 1)
    return decay**done * cosine(min(max(within, 0.0), 1.0))


def fixmatch(progress: float) -> float:
    """cos(7π progress / 16), from 1 to 0.195 (Sohn et al. 2020, section 2.3)."""
    return math.cos(7 * math.pi * progress / 16)


def linear_decay(progress: float, start: float) -> float:
    """1 until `start`, a share of training, and then straight to 0 at its end, as in Co-teaching's code."""
    return 1.0 if progress < start else (1 - progress) / (1 - start) if start < 1 else 0.0


def step_decay(progress: float, milestones: Sequence[float], factor: float) -> float:
    """factor^(number of milestones reached); a milestone is reached when progress equals it."""
    return factor ** sum(progress >= milestone for milestone in milestones)


def first_phase(share: float, epochs: int) -> int:
    """Whole epochs of the first of two phases of training, at least one for each.  Raises ValueError below two."""
    if epochs < 2:
        raise ValueError(f"Training in two phases needs two epochs or more, not {epochs}: raise the trial's epochs.")
    return min(max(int(share * epochs), 1), epochs - 1)


def average_decay(step: int, decay: float) -> float:
    """Decay of the average of the weights with warm-up, min(decay, (1 + step) / (10 + step)).

    Without it an average with decay 0.999 still holds 37 % of the initial weights after 1,000 steps.
    """
    return min(decay, (1 + step) / (10 + step))


def target_decay(progress: float, base: float) -> float:
    """BYOL's tau, from `base` to 1: 1 - (1 - base) (1 + cos(π progress)) / 2 (Grill et al. 2020, section 3.2)."""
    return 1 - (1 - base) * cosine(progress)
