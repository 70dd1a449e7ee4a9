"""Any method as a Ray Tune trainable."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lnl import methods
from lnl.dotted import flatten
from lnl.storage.filenames import file_name
from lnl.system import user_code
from lnl.trial.config import Trial, parse
from lnl.trial.reports import metrics_of
from lnl.trial.run import Execution, run


def trainable(method: str, **base: Any) -> Callable[[dict[str, Any]], None]:
    """Any method for `ray.tune.Tuner`; `base` and the Tuner's `param_space` hold (dotted) fields of `Trial`.

    What a trial starts from (`init_from`, a teacher) is trained within it; only a study trains it once for all.

        tune.Tuner(trainable("mixmatch", dataset="digits", labels=40, epochs=10),
                   param_space={"noise.rate": tune.grid_search([0.2, 0.4]), "noise.kind": "symmetric"}).fit()

    Reports `epoch`, `test_accuracy`, `train_loss`, … once an epoch, with a Ray checkpoint from which a paused or lost
    trial goes on, so that schedulers such as ASHA work.  Choose by `validation_accuracy` (give `validation.images`),
    not by test.
    Raises `ValueError` for an unknown method or field before anything starts.
    """
    start = Trial(method=methods.configure(method)).override(base).model_dump(mode="json")
    own = user_code.carried()

    def train(config: dict[str, Any]) -> None:
        from ray import tune  # only now: whoever imports this function has set up Ray, or has yet to do so

        user_code.receive(own)
        state = None
        if checkpoint := tune.get_checkpoint():
            with checkpoint.as_directory() as folder:
                state = torch.load(Path(folder) / "state.pt", map_location="cpu", weights_only=True)
        for row in run(parse(start).override(flatten(config)), Execution(), state):
            with tempfile.TemporaryDirectory() as folder:
                torch.save(row.snapshot(), Path(folder) / "state.pt")
                tune.report(metrics_of(row), checkpoint=tune.Checkpoint.from_directory(folder))

    # Tune names folders after it, and the name of a user's own method is a path.
    train.__name__ = file_name(start["method"]["name"])
    return train
