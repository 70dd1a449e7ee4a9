"""A laboratory for ablation studies of learning with noisy labels.

    from lnl import Study, Trial, Noise, Validation, Contrast, Panel, Preset     # declare a study
    from lnl import Search, Uniform, Integer, Choice                             # and what to search in each arm
    from lnl import trainable                                         # any method as a Ray Tune trainable

Names load on first use, so that `import lnl.results` needs neither torch nor Ray.
"""

from importlib import import_module
from typing import TYPE_CHECKING

_HOME = {
    "Study": "lnl.study",
    "Contrast": "lnl.study",
    "Panel": "lnl.study",
    "Preset": "lnl.study",
    "Search": "lnl.study",
    "Uniform": "lnl.space",
    "Integer": "lnl.space",
    "Choice": "lnl.space",
    "Trial": "lnl.trial",
    "Noise": "lnl.trial",
    "Validation": "lnl.trial",
    "run": "lnl.trial",
    "trainable": "lnl.runner",
}
__all__ = list(_HOME)

if TYPE_CHECKING:  # the same names for editors and type checkers; tests/test_typing.py holds both lists equal
    from lnl.runner import trainable as trainable
    from lnl.space import Choice as Choice
    from lnl.space import Integer as Integer
    from lnl.space import Uniform as Uniform
    from lnl.study import Contrast as Contrast
    from lnl.study import Panel as Panel
    from lnl.study import Preset as Preset
    from lnl.study import Search as Search
    from lnl.study import Study as Study
    from lnl.trial import Noise as Noise
    from lnl.trial import Trial as Trial
    from lnl.trial import Validation as Validation
    from lnl.trial import run as run
else:  # a type checker that saw this function would take every name for one of ours

    def __getattr__(name: str) -> object:
        if name in _HOME:
            return getattr(import_module(_HOME[name]), name)
        raise AttributeError(f"module 'lnl' has no attribute {name!r}")
