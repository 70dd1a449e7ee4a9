"""Which version of lnl runs."""

from __future__ import annotations

from importlib import metadata


def installed_version() -> str | None:
    """The installed version; None where nothing is installed, as with a checkout on PYTHONPATH."""
    try:
        return metadata.version("lnl")
    except metadata.PackageNotFoundError:
        return None
