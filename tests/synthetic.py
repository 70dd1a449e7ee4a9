"""A method whose validation accuracy is a known function of its settings, for tests of searches.

`lab` writes the method as a file of a user's own, a study beside it, and a data set whose images show their own class.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
IMAGES = 1_000  # of validation, evaluated in one part: what the accuracy is a multiple of
OPTIMUM = {"method.x": 0.3, "method.rate": 0.1, "method.kind": "curved", "method.y": 0.7}  # accuracy 1
START = {"method.x": 0.9, "method.rate": 0.9, "method.kind": "plain", "method.y": 0.1}  # the method's own values
SPACE = """{
    "method.x": Uniform(0.0, 1.0),
    "method.rate": Uniform(1e-4, 1.0, log=True),
    "method.kind": Choice(("plain", "curved")),
    "method.y": Uniform(0.0, 1.0, when={"method.kind": ("curved",)}),
}"""

METHOD = """
'''Right for as large a part of the images as a function of the settings says.'''
import math, time
from typing import Literal
import torch
from lnl.settings import Settings

USES = ("labels",)
SEARCH = {}


class Config(Settings):
    x: float = 0.9
    rate: float = 0.9
    kind: Literal["plain", "curved"] = "plain"
    y: float = 0.1
    repeat: int = 0  # without effect: arms that differ in nothing else
    pause: float = 0.0  # seconds an epoch


class Method:
    def __init__(self, config, task, network, streams):
        self.config = config

    def train_epoch(self, epoch):
        time.sleep(self.config.pause)
        return {"loss": torch.zeros(())}

    def predict(self, images):
        c = self.config
        share = 1 - (c.x - 0.3) ** 2 - (math.log10(c.rate) + 1) ** 2 / 16
        share -= (c.y - 0.7) ** 2 if c.kind == "curved" else 0.2
        classes = (images[:, 0, 0, 0] > 0).long()
        wrong = torch.arange(len(images)) >= round(share * len(images))
        return torch.nn.functional.one_hot(torch.where(wrong, 1 - classes, classes), 2).float()

    def features(self, images):
        return torch.ones(len(images), 1)
"""

STUDY = """
from lnl import Choice, Search, Study, Trial, Uniform, Validation

study = Study(
    name="synthetic", question="Does a search find what is known?",
    base=Trial(method="known.py", dataset="npz:{data}", network="small_convnet", labels=10, epochs=1, steps=1,
               validation=Validation(images={images})),
    arms={arms}, replicates=1,
    search=Search(space={space}, {search}),
)
if __name__ == "__main__":
    study.main()
"""


def accuracy(params: Mapping[str, Any]) -> float:
    """What the method reaches with these fields, to the last digit."""
    x, rate, kind, y = ({**START, **params}[key] for key in ("method.x", "method.rate", "method.kind", "method.y"))
    share = 1 - (x - 0.3) ** 2 - (math.log10(rate) + 1) ** 2 / 16
    share -= (y - 0.7) ** 2 if kind == "curved" else 0.2
    return max(0, round(share * IMAGES)) / IMAGES


@dataclass(frozen=True)
class Lab:
    """A folder with a study, its method and its data."""

    folder: Path
    study: Path

    @property
    def environment(self) -> dict[str, str]:
        """Of every process that trains or plans."""
        data = str(self.folder / "data")
        return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "LNL_DATA": data}


def lab(folder: Path, arms: Mapping[str, Mapping[str, Any]], search: str) -> Lab:
    """`search`: further fields of the study's `Search`, as source."""
    (folder / "known.py").write_text(METHOD, encoding="utf-8")
    data, study = folder / "classes.npz", folder / "synthetic.py"
    classes = np.arange(IMAGES + 20) % 2
    images = np.zeros((len(classes), 8, 8), np.uint8)
    images[:, 0, 0] = 255 * classes
    np.savez(data, x_train=images, y_train=classes, x_test=images[:20], y_test=classes[:20], flip=False)
    study.write_text(
        STUDY.format(data=data, images=IMAGES, arms=dict(arms), space=SPACE, search=search), encoding="utf-8"
    )
    return Lab(folder, study)
