"""A results folder with known truth, written by the project's own store: the shape of the digits preset of RobMix."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from lnl.results import Store, canonical, selection_rules

STUDY = "robmix_ablation"
ARMS: dict[str, dict[str, Any]] = {
    "full": {},
    "mixmatch_only": {"method.topology": "mixmatch_only"},
    "alternating": {"method.topology": "alternating_epoch"},
    "frozen_head": {"method.head_update": "frozen"},
    "stopped_gradient": {"method.gradient": "stop"},
    "reversed_gradient": {"method.gradient": "reverse"},
    "one_optimizer": {"method.optimizers": "single"},
}
EFFECT = {
    "mixmatch_only": -0.04,
    "alternating": -0.02,
    "frozen_head": -0.004,
    "stopped_gradient": -0.03,
    "reversed_gradient": -0.2,
    "one_optimizer": 0.0,
}
PANELS: dict[str, dict[str, Any]] = {
    "noise_and_labels": {
        "title": "Label noise and number of labels",
        "arms": ["mixmatch_only", "alternating", "full"],
        "across": ["labels", "noise.rate"],
        "curves": ["train/loss", "test/accuracy"],
        "reference": "full",
    },
    "frozen_head": {
        "title": "No update of the self-supervised head",
        "arms": ["full", "frozen_head", "stopped_gradient"],
        "across": [],
        "curves": ["train/loss", "test/accuracy"],
        "reference": "full",
    },
    "gradient": {
        "title": "Changed gradient",
        "arms": ["full", "stopped_gradient", "reversed_gradient"],
        "across": [],
        "curves": ["train/gradient_norm_contrastive", "train/gradient_norm_mixmatch", "train/gradient_cosine"],
        "reference": "full",
    },
    "ratios": {
        "title": "Labelled and unlabelled images",
        "arms": ["mixmatch_only", "full"],
        "across": ["unlabelled_ratio"],
        "curves": ["train/loss", "test/accuracy"],
        "reference": "full",
    },
    "combined": {
        "title": "All ablations together",
        "arms": list(ARMS),
        "across": [],
        "curves": ["train/loss", "test/accuracy"],
        "reference": "full",
    },
}
CONTRASTS = [
    {"arm": "frozen_head", "against": "full", "direction": "any", "smallest_effect": 0.005},
    {"arm": "stopped_gradient", "against": "full", "direction": "any", "smallest_effect": 0.005},
    {"arm": "reversed_gradient", "against": "full", "direction": "hurts", "smallest_effect": 0.005},
    {"arm": "mixmatch_only", "against": "full", "direction": "hurts", "smallest_effect": 0.0},
]
START = datetime(2026, 7, 1, 20, 0, tzinfo=UTC)
BASE_LEVELS = {"labels": 40, "noise.rate": 0.4, "unlabelled_ratio": None}
FACTORS = {"labels": [40, 100, 400], "noise.rate": [0.1, 0.2, 0.4], "unlabelled_ratio": [1, 5, 20]}


def plan(replicates: int = 4, panels: Sequence[str] = tuple(PANELS), **changes: Any) -> dict[str, Any]:
    """What the planner writes, for some of the panels."""
    arms = {arm: ARMS[arm] for arm in ARMS if any(arm in PANELS[name]["arms"] for name in panels)}
    wanted = {}  # (arm, setting) in first-seen order
    for panel in (PANELS[name] for name in panels):
        axes = [
            sorted({BASE_LEVELS[factor], *FACTORS[factor]} - {None}) + [None] * (BASE_LEVELS[factor] is None)
            for factor in panel["across"]
        ]
        for arm, levels in itertools.product(panel["arms"], itertools.product(*axes)):
            setting = {f: level for f, level in zip(panel["across"], levels, strict=True) if level != BASE_LEVELS[f]}
            wanted[arm, canonical(setting)] = setting
    return {
        "study": STUDY,
        "preset": "digits",
        "question": "Which parts of two-headed RobMix matter when 40 % of few labels are wrong?",
        "base": {
            "method": {"name": "robmix"},
            "dataset": "digits",
            "network": "small_convnet",
            "labels": 40,
            "epochs": 12,
        },
        "base_levels": BASE_LEVELS,
        "factors": FACTORS,
        "arms": arms,
        "replicates": replicates,
        "selection": "last",
        "panels": {name: PANELS[name] for name in panels},
        "contrasts": [contrast for contrast in CONTRASTS if contrast["arm"] in arms],
        "trials": [
            {"trial": trial_id(arm, setting, replicate), "arm": arm, "setting": setting, "replicate": replicate}
            for (arm, _), setting in wanted.items()
            for replicate in range(replicates)
        ],
        **changes,
    }


def trial_id(arm: str, setting: dict[str, Any], replicate: int) -> str:
    return digest([arm, setting, replicate])


def digest(value: Any) -> str:
    return hashlib.sha256(canonical(value).encode()).hexdigest()[:16]


@dataclass
class Simulation:
    """Writes trials with a known accuracy: 0.9 + effects + a replicate's own deviation, shared by all its arms."""

    root: Path
    epochs: int = 5
    inside: Sequence[str] = ()  # arms that keep arrays and are compared with the truth
    written: list[dict[str, Any]] = field(default_factory=list)

    def submit(self, plan: dict[str, Any], hours: int = 0) -> None:
        identity = {
            "study": STUDY,
            "preset": plan["preset"],
            "plan_hash": digest(plan),
            "git_commit": "0123456789abcdef",
        }
        text = json.dumps(plan)  # keeps the declared order of arms and panels
        Store(self.root).write_plan({**identity, "plan": text, "submitted_at": START + timedelta(hours=hours)})

    def run(self, planned: Sequence[dict[str, Any]], **columns: Any) -> None:
        for entry in planned:
            self.trial(**entry, **columns)

    def trial(
        self, trial: str, arm: str, setting: dict[str, Any], replicate: int, attempt: int = 1, **columns: Any
    ) -> None:
        levels = {**BASE_LEVELS, **setting}
        draw = np.random.default_rng([replicate, int(digest(trial), 16)])
        shared = np.random.default_rng(replicate).normal(0, 0.012)
        ratio = levels["unlabelled_ratio"]
        final = (
            0.93
            + EFFECT.get(arm, 0.0)
            - 0.25 * levels["noise.rate"]
            + 0.03 * np.log(levels["labels"] / 40) / np.log(10)
        )
        final += shared + draw.normal(0, 0.006) - (0 if ratio is None else 0.06 / ratio)
        epoch = np.arange(1, self.epochs + 1)
        accuracy = 0.1 + (final - 0.1) * (1 - np.exp(-epoch / self.epochs * 5)) + draw.normal(0, 0.006, self.epochs)
        loss = 2.3 * np.exp(-epoch / self.epochs * 2) + 0.5 * levels["noise.rate"] + draw.normal(0, 0.03, self.epochs)
        curves = {("train", "loss"): loss, ("test", "accuracy"): accuracy}
        if arm not in ("mixmatch_only", "alternating"):
            curves["train", "gradient_norm_contrastive"] = 1.5 * np.exp(-epoch / self.epochs) + draw.normal(
                0, 0.1, self.epochs
            )
            curves["train", "gradient_norm_mixmatch"] = 0.8 + 0.2 * np.sin(epoch) + draw.normal(0, 0.1, self.epochs)
            curves["train", "gradient_cosine"] = 0.2 * np.cos(epoch / 3) + draw.normal(0, 0.08, self.epochs)
        if arm in self.inside:
            for name in ("selection_auc", "selection_precision", "selection_recall", "memorised"):
                curves["oracle", name] = 0.95 - 0.4 * np.exp(-epoch) + draw.normal(0, 0.01, self.epochs)
        status = columns.get("status", "ok")
        started = START + timedelta(minutes=len(self.written))
        noise = f"{levels['labels']}-{levels['noise.rate']}-{replicate}"
        row = {
            "trial": trial,
            "attempt": attempt,
            "preset": "digits",
            "arm": arm,
            "setting": canonical(setting),
            "replicate": replicate,
            "plan_hash": "p",
            "method": "robmix",
            "dataset": "digits",
            "network": "small_convnet",
            "labels": levels["labels"],
            "noise_kind": "symmetric",
            "noise_rate": levels["noise.rate"],
            "noise_realised": round(levels["noise.rate"] * levels["labels"]) / levels["labels"],
            "transition": json.dumps(symmetric(levels["noise.rate"]).tolist()),
            "data_hash": "digits",
            "noise_hash": noise,
            "split_hash": f"{levels['labels']}-{ratio}-{replicate}",
            "epochs": self.epochs,
            "epochs_done": self.epochs,
            "status": status,
            "seconds": 10.0,
            "device": "cpu",
            "host": "simulated",
            "code_hash": "c0de",
            "git_commit": "0123456789abcdef",
            "git_dirty": False,
            "version_python": "3.11.9",
            "version_torch": "2.15.0",
            "version_ray": "2.60.0",
            "started_at": started,
            "ended_at": started + timedelta(seconds=10),
            **(selection_rules(accuracy) if status == "ok" else {}),
            **columns,
        }
        rows = [
            {
                "trial": trial,
                "attempt": attempt,
                "epoch": int(e),
                "step": int(e) * 10,
                "split": split,
                "metric": metric,
                "value": float(v),
                "seconds": float(e),
            }
            for (split, metric), values in curves.items()
            for e, v in zip(epoch, values, strict=True)
        ]
        kept = inside(trial, attempt, self.epochs, levels["noise.rate"]) if arm in self.inside else []
        Store(self.root).write_attempt(STUDY, row, rows, kept)
        self.written.append(row)


def symmetric(rate: float) -> np.ndarray:
    """The transition matrix of symmetric noise in ten classes."""
    return np.full((10, 10), rate / 9) + (1 - rate - rate / 9) * np.eye(10)


def inside(trial: str, attempt: int, epochs: int, rate: float) -> list[dict[str, Any]]:
    """Arrays of a method with two networks that learns in `epochs` epochs which of 1,000 labels are wrong."""
    draw = np.random.default_rng(int(digest([trial, "inside"]), 16))
    classes = np.arange(60) % 10
    places = draw.normal(size=(10, 20))
    rows = []
    for epoch in range(1, epochs + 1):
        apart = 0.5 * epoch / epochs  # between the losses of right and of wrong labels
        right, wrong = round(1000 * (1 - rate)), round(1000 * rate)
        losses = draw.normal(0.2, 0.08, (2, right)), draw.normal(0.2 + apart, 0.12, (2, wrong))
        weights = draw.beta(1 + 8 * apart, 1, right), draw.beta(1, 1 + 8 * apart, wrong)
        arrays = {
            ("oracle", "loss_histogram"): histograms(*losses),
            ("oracle", "clean_histogram"): histograms(*weights),
            ("oracle", "coefficient_histogram"): histograms(*weights) * (epoch > 1),  # none in the warm-up
            ("train", "mixture"): np.array([[[1 - rate, 0.2, 0.08], [rate, 0.2 + apart, 0.12]]] * 2),
            ("train", "transition"): symmetric(rate + 0.2 / epoch),
            ("test", "embeddings"): places[classes] * epoch / epochs + draw.normal(size=(60, 20)) * 0.3,
            ("test", "embedding_labels"): classes,
        }
        rows += [
            {
                "trial": trial,
                "attempt": attempt,
                "epoch": epoch,
                "split": split,
                "name": name,
                "shape": list(array.shape),
                "values": array.ravel().astype(np.float32),
            }
            for (split, name), array in arrays.items()
        ]
    return rows


def histograms(right: np.ndarray, wrong: np.ndarray) -> np.ndarray:
    """(2, 40) counts over [0, 1]."""
    return np.stack([np.histogram(values.clip(0, 1), bins=40, range=(0, 1))[0] for values in (right, wrong)])


def complete(root: Path, replicates: int = 4, inside: Sequence[str] = (), **changes: Any) -> dict[str, Any]:
    """A plan, submitted, and every trial of it finished."""
    simulation, submitted = Simulation(root, inside=inside), plan(replicates, **changes)
    simulation.submit(submitted)
    simulation.run(submitted["trials"])
    return submitted
