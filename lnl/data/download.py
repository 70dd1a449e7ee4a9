"""Downloads through torchvision, with a limit on waiting and with failures in one sentence."""

from __future__ import annotations

import pickle
import socket
import tarfile
import zlib
from pathlib import Path
from typing import Any

from lnl.data.dataset import DataError
from lnl.storage.files import reason, shown

PATIENCE = 10.0  # seconds without an answer; torchvision itself waits for ever


def through_torchvision(name: str, dataset: Any, root: Path, **settings: object) -> Any:
    """`dataset(root, download=True, **settings)`: uses what is below `root`, fetches the rest, checks MD5 sums."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(PATIENCE)  # the only way to reach the calls inside torchvision
    try:
        return dataset(root, download=True, **settings)
    except (OSError, RuntimeError, EOFError, ValueError, tarfile.TarError, zlib.error, pickle.UnpicklingError) as error:
        raise DataError(
            f"{name} is not below {shown(root)} and could not be fetched ({reason(error)}): try again with a network, "
            f"put {dataset.filename} (from {dataset.url}) or {name}.npz (x_train y_train x_test y_test) into that "
            "folder, or use the data set 'digits', which needs no download."
        ) from error
    finally:
        socket.setdefaulttimeout(before)
