"""A laboratory for ablation studies of learning with noisy labels.

    from lnl import Study, Trial, Noise, Validation, Contrast, Panel, Preset     # declare a study
    from lnl import Search, Uniform, Integer, Choice                             # and what to search in each arm
    from lnl import trainable                                         # any method as a Ray Tune trainable

Names load on first use, so that `import lnl.results` needs neither torch nor Ray.
"""

from importlib import import_module
from typing import Any

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


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'lnl' has no attribute {name!r}")
