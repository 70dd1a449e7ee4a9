"""Files of training states: checkpoints, trained prerequisites, the labels of teachers.

Each is one file of tensors and plain data, which `write` writes and `read` verifies.  Its first line holds a format
version and the SHA-256 of all that follows, its second a header as JSON: of which study, trial, code, device and torch
the content is.  So a flipped bit anywhere, a file under another's name and one of an older format are refused: renamed
to `.refused-<time>`, with an event that says why, and made anew.  A process that goes on from a checkpoint asks for the
torch that wrote it, because going on exactly as if never stopped is promised for one version only; trained
prerequisites are results and, as rows, hold for every version.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch

from lnl.storage.atomic import write_atomically
from lnl.storage.files import listed
from lnl.storage.leases import claim
from lnl.storage.objects import StorageError
from lnl.storage.outcomes import is_outcome
from lnl.storage.part_names import partition, study_of
from lnl.storage.places import Place, now
from lnl.storage.store import Store

FORMAT = 1
SIGNATURE = "lnl-state"
LONGEST_LINE = 2**16
BLOCK = 2**20  # bytes that are read at once where they are not kept

_whole: set[tuple[str, int, int]] = set()  # files that this process has read through: path, size, time of change


class Refused(Exception):
    """A file that cannot be used; its message completes a sentence after "because"."""


def write(path: Place, state: Any, header: Mapping[str, str]) -> None:
    """Write tensors and plain data, hashed on the way.  Raises `StorageError`."""

    def to(temporary: Path) -> None:
        with open(temporary, "wb") as file:
            file.write(_first_line("0" * 64))
            body = _Hashing(file)
            body.write(json.dumps({**header, "torch": str(torch.__version__)}).encode() + b"\n")
            torch.save(state, body)  # type: ignore[arg-type]  # of a file it needs no more than these two calls
            file.seek(0)
            file.write(_first_line(body.total.hexdigest()))

    write_atomically(path, to)


def read(path: Place, header: Mapping[str, str]) -> Any:
    """Read what `write` wrote, on the CPU: tensors and plain data, never code.

    Raises `FileNotFoundError`, and `Refused` where it is damaged or its header has something else under these names.
    """
    body = io.BytesIO(_read_through(path, header, keep=True))
    with fitting():
        return torch.load(body, map_location="cpu", weights_only=True)


def check(path: Place, header: Mapping[str, str] | None = None) -> None:
    """Verify a file, reading it in pieces.  Raises as `read`."""
    _read_through(path, header or {}, keep=False)


def header_of(path: Place) -> dict[str, str]:
    """The header, before anything is verified.  Raises `FileNotFoundError` and `Refused`."""
    with _opened(path) as file:
        return _header(file)[0]


@contextlib.contextmanager
def fitting() -> Iterator[None]:
    """Turn errors from content of another kind or shape into `Refused`, but not a lack of memory."""
    try:
        yield
    except (torch.OutOfMemoryError, torch.AcceleratorError):
        raise
    except Exception as error:
        if isinstance(error, StorageError | Refused | MemoryError) or "DefaultCPUAllocator: " in str(error):
            raise
        first = (str(error).strip().splitlines() or [""])[0]
        raise Refused(f"its content does not fit ({type(error).__name__}: {first})") from error


def is_whole(store: Store, study: str, trial: str, path: Place, header: Mapping[str, str]) -> bool:
    """Whether there is a usable file; one that cannot be used is set aside.  Each file is verified once per process."""
    try:
        about = path.stat()
        key = (str(path), about.st_size, about.st_mtime_ns)
        if key not in _whole:
            check(path, header)
            _whole.add(key)
    except FileNotFoundError:
        return False
    except Refused as error:
        set_aside(store, study, trial, path, error)
        return False
    except OSError as error:
        set_aside(store, study, trial, path, Refused(f"it cannot be read ({error})"))
        return False
    return True


def set_aside(store: Store, study: str, trial: str, path: Place, why: Refused) -> None:
    """Rename a refused file and store the event, unless another process has done so.  Raises `StorageError`."""
    aside = path.with_name(f"{path.name}.refused-{now():%Y%m%dT%H%M%S%f}")
    try:
        path.replace(aside)  # type: ignore[arg-type]  # of one kind
    except FileNotFoundError:
        return
    except OSError as error:
        raise StorageError(
            f"{path} cannot be used, because {why}, and not be renamed ({error}): remove it; then run again."
        ) from error
    reason = f"{store.within(path)} was set aside, because {why}; what it held is trained anew."
    store.write_event(study, "checkpoint_refused", trial, reason=reason, file=store.within(aside))


def of_finished(store: Store, study: str | None = None) -> list[tuple[str, str]]:
    """The checkpoints of trials that their code and data have finished, as (study, trial).

    A writer that was killed or frozen has left them.
    """
    folder = store.root / "checkpoints"
    paths = listed(folder, "*.pt", deep=True) if study is None else listed(folder / partition(study), "*.pt")
    finished = []
    for path in paths:
        of, trial = study_of(path), path.stem
        if of is None:
            continue
        columns = ["status", "failure_class", "code_hash", "sources_hash"]
        rows, _ = store.read("trials", of, columns, files=f"{trial}-*")
        with contextlib.suppress(Refused, OSError):  # the next worker that goes on from it sets it aside
            header, outcomes = header_of(path), rows[is_outcome(rows)]
            sources = set(zip(outcomes["code_hash"], outcomes["sources_hash"].map(str), strict=True))
            if (header.get("code"), header.get("data")) in sources:
                finished.append((of, trial))
    return finished


def tidy(store: Store, study: str) -> None:
    """Remove the checkpoints of finished trials."""
    for _, trial in of_finished(store, study):
        lease, _ = claim(store, study, trial)
        if lease is not None:
            with lease:
                store.tidy(study, trial)


# ------------------------------------------------------------------------------------------------------------- bytes


class _Hashing:
    """A file that `torch.save` can write to, and the digest of what it has written."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.total = file, hashlib.sha256()

    def write(self, data: Any) -> int:
        self.total.update(data)
        return self.file.write(data)

    def flush(self) -> None:
        self.file.flush()


def _first_line(digest: str) -> bytes:
    return f"{SIGNATURE} {FORMAT} {digest}\n".encode()


def _opened(path: Place) -> BinaryIO:
    if not isinstance(path, Path):
        return io.BytesIO(path.read_bytes())
    if not stat.S_ISREG(path.stat().st_mode):  # a pipe would be waited for
        raise Refused("it is not a regular file")
    return open(path, "rb")


def _header(file: BinaryIO) -> tuple[dict[str, str], str, bytes]:
    """The header, the digest of all that follows the first line, and the header's bytes."""
    words = file.readline(LONGEST_LINE).decode(errors="replace").removesuffix("\n").split(" ")
    if len(words) != 3 or words[0] != SIGNATURE:
        raise Refused("it is damaged, or of a format of older versions, which had no digest")
    if words[1] != str(FORMAT):
        raise Refused(f"its format is {words[1]!r}, and this version of lnl reads {FORMAT}")
    line = file.readline(LONGEST_LINE)
    try:
        header = json.loads(line)
        assert isinstance(header, dict)
    except (ValueError, AssertionError):
        raise Refused("its header is damaged") from None
    return header, words[2], line


def _read_through(path: Place, wanted: Mapping[str, str], *, keep: bool) -> bytes:
    """Verify the digest and the header; the body where it is to be kept.  Raises `FileNotFoundError` and `Refused`."""
    try:
        with _opened(path) as file:
            header, digest, line = _header(file)
            total, body = hashlib.sha256(line), b""
            while block := file.read(-1 if keep else BLOCK):
                total.update(block)
                body = block
    except FileNotFoundError:
        raise
    except OSError as error:
        raise Refused(f"it cannot be read ({error})") from error
    if total.hexdigest() != digest:
        raise Refused("it is damaged: its content has another digest than when it was written")
    for name, value in wanted.items():
        if header.get(name) != value:
            raise Refused(f"its {name} is {header.get(name)!r}, not {value!r}")
    return body if keep else b""
