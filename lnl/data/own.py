"""A data set as a function of a user's own: `my_data.py`, which has a function `dataset`, or `my_data.py:function`.

The function is called where the cache does not have what it returned before, and again when its file, what that imports
from its own folder, or a file that it names in `FILES` has changed.  What counts as the data set is what it returns.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType

from lnl.data.cache import file_stamp
from lnl.data.dataset import Contents, DataError, Dataset, Source, Split, chunks
from lnl.storage.files import printable, reason
from lnl.system import user_code

FUNCTION = "dataset"  # its name where the reference says none
FILES = "FILES"  # what a module calls the paths, from its own folder, of files that its function reads


def source(name: str, root: Path) -> Source:
    """Where the data set comes from and how it is read.  Raises `DataError`."""
    try:
        code = user_code.read(name)
        module = user_code.load(code.place)
        function = _function(name, user_code.load(name))
    except ValueError as error:
        raise DataError(f"{printable(name)}: {error}") from error
    path = code.sources[code.module].path
    files = [Path(path).parent / file for file in getattr(module, FILES, ())]
    text = hashlib.sha256(b"\0".join(source.text for _, source in sorted(code.sources.items()))).hexdigest()
    key = f"function-{code.module}-{hashlib.sha256(os.fsencode(f'{path}:{name}')).hexdigest()[:8]}"
    return Source(key, f"{text[:16]} {file_stamp(*files)}", partial(_read, name, function))


def _read(name: str, function: Callable[[], object]) -> Contents:
    """What the function returns.  Raises `DataError` where it fails or returns something else."""
    try:
        returned = function()
    except DataError as error:
        raise DataError(f"{printable(name)}: {error}") from error
    except Exception as error:  # whatever a user's function does
        raise DataError(
            f"{printable(name)} makes no data set ({type(error).__name__}: {reason(error)}): correct the function."
        ) from error
    if not isinstance(returned, Dataset):
        raise DataError(
            f"{printable(name)} must return a Dataset, as lnl.data.from_arrays makes one, not "
            f"{type(returned).__name__}: correct the function."
        )
    return Contents(
        train=Split(chunks(returned.train_images), returned.train_labels, returned.train_files),
        test=Split(chunks(returned.test_images), returned.test_labels, returned.test_files),
        class_names=returned.class_names,
        flip=returned.flip,
        mean=returned.mean,
        std=returned.std,
        given=returned.given,
    )


def _function(name: str, loaded: object) -> Callable[[], object]:
    function = getattr(loaded, FUNCTION, None) if isinstance(loaded, ModuleType) else loaded
    if not callable(function):
        raise DataError(
            f"{printable(name)} has no function '{FUNCTION}': define it, or name another as in "
            f"'{printable(name).partition(':')[0]}:name'."
        )
    return function
