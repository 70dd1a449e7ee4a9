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

from lnl.storage.outcomes import selection_rules
from lnl.storage.places import canonical
from lnl.storage.store import Store
from lnl.system.timing import PHASES

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
    "full_tpe": 0.015,
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
    classes: int = 0  # of the test set whose confusion matrix and calibration are stored; 0: as earlier versions did
    written: list[dict[str, Any]] = field(default_factory=list)

    def submit(self, plan: dict[str, Any], hours: int = 0, **columns: Any) -> None:
        identity = {
            "study": STUDY,
            "preset": plan["preset"],
            "plan_hash": digest(plan),
            "git_commit": "0123456789abcdef",
        }
        text = json.dumps(plan)  # keeps the declared order of arms and panels
        about = {"plan": text, "submitted_at": START + timedelta(hours=hours)}
        Store(self.root).write_plan({**identity, **about, **columns})

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
            **{
                f"seconds_{name}": {"forward": 4.0, "backward": 4.0, "evaluation": 1.0}.get(name, 0.0)
                for name in PHASES
            },
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
        if self.classes:
            rows.append({**rows[-1], "split": "test", "metric": "calibration_error", "value": 0.1 + replicate / 100})
            kept = [*kept, *of_test_set(trial, attempt, self.epochs, confusion(arm, replicate, self.classes))]
        Store(self.root).write_attempt(STUDY, row, rows, kept)
        self.written.append(row)

    def suggest(
        self,
        cell: dict[str, Any],
        number: int,
        params: dict[str, Any],
        accuracy: float,
        test: float | None = None,
        state: str = "complete",
        seconds: float | None = None,
        **columns: Any,
    ) -> None:
        """A finished suggestion with its trial; `seconds` makes it one of two objectives."""
        trial = digest([cell["arm"], cell["setting"], params, 1000])
        status = {"complete": "ok"}.get(state, state)
        failure = {"failure_class": "oom"} if state == "failed" else {}
        self.trial(
            trial,
            cell["arm"],
            cell["setting"],
            1000,
            attempt=Store(self.root).next_attempt(STUDY, trial),
            search=cell["search"],
            suggestion=number,
            status=status,
            accuracy_last=None if state == "failed" else test,
            **failure,
        )
        row = {
            "search": cell["search"],
            "number": number,
            "arm": cell["arm"],
            "setting": canonical(cell["setting"]),
            "sampler": cell["sampler"],
            "state": state,
            "params": json.dumps(params),
            "values": None if state == "failed" else [accuracy] if seconds is None else [accuracy, seconds],
            "trials": [trial],
            "diverged": 0,
            "epochs": self.epochs,
            "seconds": 60.0 if seconds is None else seconds,
            "code_hash": "c0de",
            "preset": "digits",
            **columns,
        }
        Store(self.root).write_suggestion(STUDY, row)


def confusion(arm: str, replicate: int, classes: int) -> np.ndarray:
    """Of 100 images of each class 80 + replicate are seen as what they are, of class 1 20 fewer; the rest as the next.

    The arm `frozen_head` takes all images of class 0 for class 2.
    """
    right = np.full(classes, 80 + replicate)
    right[1] -= 20
    counts = np.diag(right)
    counts[np.arange(classes), (np.arange(classes) + 1) % classes] = 100 - right
    if arm == "frozen_head":
        counts[0] = 100 * (np.arange(classes) == 2)
    return counts


def of_test_set(trial: str, attempt: int, epoch: int, counts: np.ndarray) -> list[dict[str, Any]]:
    """Arrays of a test set whose images are predicted so, half of them with a confidence of 0.5, half of 0.9."""
    bins = np.full((3, 15), np.nan)
    bins[:2] = 0
    bins[:, 7] = counts.sum() / 2, np.trace(counts) / 2, 0.5
    bins[:, 13] = counts.sum() / 2, np.trace(counts) / 2, 0.9
    identity = {"trial": trial, "attempt": attempt, "epoch": epoch, "split": "test"}
    return [
        {**identity, "name": name, "shape": list(array.shape), "values": array.ravel().astype(float).tolist()}
        for name, array in (("confusion", counts), ("reliability", bins))
    ]


SPACE = {
    "method.lambda_mixmatch": {"kind": "uniform", "low": 0.1, "high": 10.0, "log": True},
    "method.optimizer.learning_rate": {"kind": "uniform", "low": 0.0005, "high": 0.05, "log": True},
    "method.head_update": {"kind": "choice", "values": ["joint", "alternating", "frozen"]},
    "method.threshold": {
        "kind": "uniform",
        "low": 0.1,
        "high": 0.9,
        "log": False,
        "when": {"method.head_update": ["joint"]},
    },
}
OWN = {"method.lambda_mixmatch": 1.0, "method.optimizer.learning_rate": 0.002, "method.head_update": "alternating"}
PAPER = {**OWN, "method.optimizer.learning_rate": 0.01, "method.threshold": 0.5}


def cell(arm: str = "full", sampler: str = "tpe", setting: dict[str, Any] | None = None, **changes: Any) -> dict:
    """A search that has not begun, as a plan has it."""
    place = "/".join([STUDY, "digits", f"{arm}_{sampler}", *([canonical(setting)] if setting else [])])
    return {
        "search": f"{place}/01234567",
        "arm": arm,
        "searched_arm": f"{arm}_{sampler}",
        "sampler": sampler,
        "setting": setting or {},
        "space": SPACE,
        "default": OWN,
        "paper": PAPER,
        "finished": 0,
        "winner": None,
        "importance": {},
        **changes,
    }


def search(cells: Sequence[dict[str, Any]], suggestions: int = 6, **changes: Any) -> dict[str, Any]:
    """The search of a plan's record."""
    return {
        "suggestions": suggestions,
        "selection": "last",
        "validation_labels": "noisy",
        "objectives": ["accuracy"],
        "pruner": "none",
        "replicates": 1,
        "settings": "base",
        "seed": 0,
        "cells": list(cells),
        **changes,
    }


def drawn(number: int, seed: int = 0) -> dict[str, Any]:
    """A point of `SPACE`; number 0 is the arm's own."""
    if number == 0:
        return dict(OWN)
    draw = np.random.default_rng([seed, number])
    params: dict[str, Any] = {
        "method.lambda_mixmatch": float(np.exp(draw.uniform(np.log(0.1), np.log(10)))),
        "method.optimizer.learning_rate": float(np.exp(draw.uniform(np.log(0.0005), np.log(0.05)))),
        "method.head_update": ["joint", "alternating", "frozen"][draw.integers(3)],
    }
    if params["method.head_update"] == "joint":
        params["method.threshold"] = float(draw.uniform(0.1, 0.9))
    return params


def landscape(params: dict[str, Any]) -> float:
    """Test accuracy at a point: best at a weight of 3, a rate of 0.01 and an updated head."""
    weight = np.log10(params["method.lambda_mixmatch"] / 3)
    rate = np.log10(params["method.optimizer.learning_rate"] / 0.01)
    head = {"joint": 0.0, "alternating": 0.01, "frozen": 0.05}[params["method.head_update"]]
    return float(0.95 - 0.08 * weight**2 - 0.1 * rate**2 - head - 0.05 * abs(params.get("method.threshold", 0.6) - 0.6))


def searched(
    root: Path,
    arms: Sequence[str] = ("full", "frozen_head"),
    suggestions: int = 24,
    replicates: int = 4,
    **changes: Any,
) -> dict[str, Any]:
    """A confirmed plan: every arm searched, some suggestions pruned or failed, and the winners trained beside the arms.

    The last arm's search has spent half of its budget, and so has no winner yet, where there is more than one.
    """
    simulation = Simulation(root, epochs=5)
    cells = [cell(arm) for arm in arms]
    two = len(changes.get("objectives", ["accuracy"])) > 1
    for seed, one in enumerate(cells):
        draw = np.random.default_rng(seed)
        budget = suggestions // 2 if seed and one is cells[-1] else suggestions
        told, number = {}, 0
        while one["finished"] < budget:
            params = drawn(number, seed)
            test = landscape(params) - 0.02 * seed + draw.normal(0, 0.004)
            accuracy = 0.6 * test + draw.normal(0, 0.01)  # validation labels are wrong, and few
            state = {5: "pruned", 9: "failed", 13: "pruned"}.get(number, "complete")
            curve = (accuracy * (1 - 0.6 * np.exp(-np.arange(1, 6) / 1.5))).tolist()
            if state == "pruned":
                accuracy, test, curve = curve[1], curve[1] / 0.6, curve[:2]
            by_epoch = json.dumps({str(epoch): value for epoch, value in enumerate(curve, 1)})
            seconds = 30 * params["method.lambda_mixmatch"] ** 0.5 + draw.uniform(0, 15) if two else None
            simulation.suggest(
                one, number, params, accuracy, test, state, seconds,
                epochs=len(curve), curve=by_epoch if changes.get("pruner", "none") != "none" else None,
                message="out of memory" if state == "failed" else None,
            )  # fmt: skip
            one["finished"] += state != "failed"
            if state == "complete":
                told[number] = (accuracy, params)
            number += 1
        if budget == suggestions:
            best = max(told, key=lambda number: told[number][0])
            one["winner"] = {"number": best, "params": told[best][1], "values": [told[best][0]]}
            shares = {"method.lambda_mixmatch": 0.5, "method.optimizer.learning_rate": 0.4, "method.head_update": 0.1}
            one["importance"] = {**shares, "method.threshold": 0.0}
    submitted = plan(replicates, panels=["frozen_head"])
    winners = {one["searched_arm"]: one["winner"]["params"] for one in cells if one["winner"]}
    submitted["arms"] |= winners
    submitted["trials"] += [
        {"trial": trial_id(arm, {}, replicate), "arm": arm, "setting": {}, "replicate": replicate}
        for arm in winners
        for replicate in range(replicates)
    ]
    panel = {**PANELS["frozen_head"], "title": "Searched values", "arms": ["full", *winners]}
    submitted["panels"] = {"search": panel, **submitted["panels"]}
    against = {one["searched_arm"]: one["arm"] for one in cells if one["winner"]}
    contrasts = [
        {"arm": arm, "against": own, "direction": "any", "smallest_effect": 0.0} for arm, own in against.items()
    ]
    submitted["contrasts"] = contrasts + submitted["contrasts"]
    submitted["search"] = search(cells, suggestions, **changes)
    simulation.submit(submitted)
    simulation.run(submitted["trials"])
    return submitted


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
            **({("test", "embeddings_before"): np.random.default_rng(1).normal(size=(60, 20))} if epoch == 1 else {}),
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
