"""Detectors of wrong labels (`lnl.labelling`), so that studies compare them: nothing else is trained.

A detector judges the given labels by the features of the trial's network as it starts, so that what they are worth is
decided by `init_from` or `weights`; of a data set of vectors, network `linear` leaves them as they are.  What the
ranking is worth stands in `oracle/selection_auc` and `oracle/error_average_precision`, the flags in
`oracle/error_precision` and `oracle/error_recall`, the likeliest classes in `oracle/refined_accuracy`.

Predictions are those of a linear classifier on the same features, fitted to the labels that are not flagged: test
accuracy says what the flags are worth to who leaves these labels out (Northcutt et al. 2021, arXiv:1911.00068, sec. 4).
All epochs are alike: one is enough.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.utils import skip_init

from lnl.functional.targets import one_hot
from lnl.labelling import logistic
from lnl.labelling.detectors import DETECTORS
from lnl.labelling.folds import NONE
from lnl.labelling.problem import Labels
from lnl.settings import Settings
from lnl.space import Space, Uniform
from lnl.training.learner import Learner, NetworkBuilder, Optimizer
from lnl.training.streams import Streams
from lnl.training.task import Beliefs, Record, Task

USES = ("labels",)


class Config(Settings):
    name: Literal["label_errors"] = "label_errors"
    detector: Literal["probe", "neighbours", "propagation", "cleanlab"] = "probe"
    """who judges the labels; cleanlab needs its library"""
    penalty: float = Field(default=1e-4, gt=0)
    """of the squared weights of the linear classifier, whose inputs have a total variance of 1"""


SEARCH: dict[str, Space] = {"method.penalty": Uniform(1e-6, 1e-2, log=True)}


class Method:
    def __init__(self, config: Config, task: Task, network: NetworkBuilder, streams: Streams) -> None:
        self.config, self.task, self.seed = config, task, streams.seed("label_errors")
        self.learner = Learner(network, Optimizer(), 0, {})  # takes no step
        self.bank = task.over(task.labelled, self.features).float()
        self.clean, self.wrong, self.selected = Record(task), Record(task), Record(task)
        self.class_probabilities = Record(task, task.classes)
        self.classifier = skip_init(nn.Linear, self.bank.shape[1], task.classes, device=self.bank.device)
        for part in self.classifier.parameters():
            nn.init.zeros_(part.requires_grad_(False))

    def train_epoch(self, epoch: int) -> dict[str, Tensor]:
        """`loss`: one minus the mean probability of the given labels by the detector.

        `flagged`: share of the labels that it holds to be wrong.
        """
        index = self.task.labelled
        given = self.task.labels[index]
        if epoch == 0:
            self._judge(index, given)
            self._fit(given)
        likelihood = self.class_probabilities.of(index).gather(-1, given[:, None])
        return {"loss": 1 - likelihood.mean(), "flagged": 1 - self.selected.of(index).mean()}

    def beliefs(self) -> Beliefs:
        """`clean`: one minus the detector's score; `wrong`: its probability of an error; `selected`: not flagged."""
        index = self.task.labelled
        return Beliefs(
            clean=self.clean.of(index),
            wrong=self.wrong.of(index),
            selected=self.selected.of(index),
            labels=self.class_probabilities.of(index),
        )

    def predict(self, images: Tensor) -> Tensor:
        return self.classifier(self.features(images).float()).softmax(-1)

    def features(self, images: Tensor) -> Tensor:
        return self.learner.features(images)

    def _judge(self, index: Tensor, given: Tensor) -> None:
        labels = Labels(self.bank.cpu().numpy(), given.cpu().numpy(), self.task.classes)
        found = DETECTORS[self.config.detector](labels, self.seed, lambda done, of: None)
        score = np.where(np.isfinite(found.score), found.score, np.nan)
        for record, values in (
            (self.clean, 1 - score),
            (self.wrong, found.probability),
            (self.selected, ~found.flagged),
            (self.class_probabilities, found.class_probabilities),
        ):
            record.note(index, torch.from_numpy(values).to(index.device))

    def _fit(self, given: Tensor) -> None:
        """Fit the classifier to standardised features, and write it for features as they are."""
        mean, deviation = self.bank.mean(0), self.bank.std(0, correction=0)
        scale = torch.where(deviation > 0, deviation, torch.inf) * len(mean) ** 0.5  # to a total variance of 1
        kept = one_hot(given, self.task.classes) * self.selected.of(self.task.labelled)[:, None]
        standardised = ((self.bank - mean) / scale).cpu().numpy()
        nowhere = np.full(len(given), NONE)  # no fold is left out: one classifier
        fitted = logistic.fit(standardised, kept.cpu().numpy(), nowhere, self.config.penalty, folds=1)
        weights = torch.from_numpy(fitted[:, 0]).float().to(mean.device)
        slopes = weights[:-1] / scale[:, None]
        self.classifier.weight.copy_(slopes.T)
        self.classifier.bias.copy_(weights[-1] - mean @ slopes)
