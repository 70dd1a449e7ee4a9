"""A laboratory for ablation studies of learning with noisy labels.

    from lnl import Study, Trial, Noise, Validation, Contrast, Panel, Preset     # declare a study
    from lnl import Search, Uniform, Integer, Choice                             # and what to search in each arm
    from lnl import trainable                                         # any method as a Ray Tune trainable

Names load on first use, so that `import lnl.storage.store` needs neither torch nor Ray.
"""

from importlib import import_module
from typing import TYPE_CHECKING

_HOME = {
    "Study": "lnl.study.study",
    "study_main": "lnl.cli.main",
    "Contrast": "lnl.study.parts",
    "Panel": "lnl.study.parts",
    "Preset": "lnl.study.parts",
    "Search": "lnl.study.parts",
    "Uniform": "lnl.space",
    "Integer": "lnl.space",
    "Choice": "lnl.space",
    "Trial": "lnl.trial.config",
    "Noise": "lnl.training.task",
    "Validation": "lnl.training.task",
    "Dataset": "lnl.data.dataset",
    "run": "lnl.trial.run",
    "trainable": "lnl.execution.trainable",
}
__all__ = list(_HOME)

if TYPE_CHECKING:  # the same names for editors and type checkers; tests/test_typing.py holds both lists equal
    from lnl.cli.main import study_main as study_main
    from lnl.data.dataset import Dataset as Dataset
    from lnl.execution.trainable import trainable as trainable
    from lnl.space import Choice as Choice
    from lnl.space import Integer as Integer
    from lnl.space import Uniform as Uniform
    from lnl.study.parts import Contrast as Contrast
    from lnl.study.parts import Panel as Panel
    from lnl.study.parts import Preset as Preset
    from lnl.study.parts import Search as Search
    from lnl.study.study import Study as Study
    from lnl.training.task import Noise as Noise
    from lnl.training.task import Validation as Validation
    from lnl.trial.config import Trial as Trial
    from lnl.trial.run import run as run
else:  # a type checker that saw this function would take every name for one of ours

    def __getattr__(name: str) -> object:
        if name in _HOME:
            return getattr(import_module(_HOME[name]), name)
        raise AttributeError(f"module 'lnl' has no attribute {name!r}")
