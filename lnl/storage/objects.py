"""S3-compatible object storage: `ObjectPath` has those of pathlib's methods that this project uses.

An `ObjectPath` stands wherever the `pathlib.Path` of a results folder may stand; it is plain data (picklable, hashable)
and makes no request before it must.  A write is one PUT: readers see the whole object or none.

Written through obstore (Rust's object_store), because leases need a PUT that fails where an object is there already
(If-None-Match) or has changed since (If-Match): pyarrow's S3 client has neither, and s3fs pins a botocore of its own.
What is written is plain parquet, so that pyarrow, pandas, DuckDB and fsspec read it:

    pandas.read_parquet("s3://bucket/results/trials")      # or "…/trials?endpoint_override=host:port&scheme=http"

The endpoint and the credentials come from the environment of every node: AWS_ENDPOINT_URL (off AWS), AWS_REGION, and
AWS_ACCESS_KEY_ID with AWS_SECRET_ACCESS_KEY or the machine's role.  They are in no URL, row, log or message.
"""

from __future__ import annotations

import errno
import os
import random
import re
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from fnmatch import fnmatchcase
from functools import cache, lru_cache
from pathlib import Path, PurePath, PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

if TYPE_CHECKING:
    from obstore.store import S3Store

SCHEME = "s3"
PATIENCE_S = 90.0  # with an endpoint that has answered before: a moment without it ends no trial
FIRST_PATIENCE_S = 10.0  # with one that never has: more likely a wrong address
CONNECT_S, SILENCE_S, REQUEST_S = 5, 20, 600  # until a connection, a silent answer, a whole request is given up
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 5.0  # between tries; each pause is up to twice the one before
UPLOADS = 4  # parts of a large object on their way at once
KEPT_BYTES, KEPT = 2**16, 1024  # small objects that were read stay in memory, by their tags

T = TypeVar("T")


class StorageError(RuntimeError):
    """Results could not be written or read; the message says what to do."""


class Stat(NamedTuple):
    """As `os.stat`, of an object."""

    st_size: int
    st_mtime_ns: int
    tag: str  # another one after every change of the content

    @property
    def st_mtime(self) -> float:
        return self.st_mtime_ns / 1e9


class Version(NamedTuple):
    """An object as it was at one moment."""

    content: bytes
    about: Stat


@dataclass(frozen=True, order=True)
class ObjectPath:
    """s3://bucket/key.  There are no folders: a key that others begin with is one, and needs no `mkdir`."""

    bucket: str
    key: str = ""
    listed: Stat | None = field(default=None, compare=False, repr=False)  # as `glob` found it

    def __post_init__(self) -> None:
        object.__setattr__(self, "key", "/".join(part for part in self.key.split("/") if part not in ("", ".")))
        if ".." in self.key.split("/"):
            raise ValueError(f"{self}: an object's name has no '..'.")

    def __reduce__(self) -> Any:
        return _received, (self.bucket, self.key)

    # ------------------------------------------------------------------------------------------------------- names

    def __truediv__(self, name: str | PurePath) -> ObjectPath:
        return ObjectPath(self.bucket, f"{self.key}/{name}")

    def __str__(self) -> str:
        return f"{SCHEME}://{self.bucket}/{self.key}".rstrip("/")

    def as_posix(self) -> str:
        return str(self)

    @property
    def _pure(self) -> PurePosixPath:
        return PurePosixPath("/", self.key)

    @property
    def name(self) -> str:
        return self.key.rpartition("/")[2]

    @property
    def stem(self) -> str:
        return self._pure.stem

    @property
    def suffix(self) -> str:
        return self._pure.suffix

    @property
    def parent(self) -> ObjectPath:
        return ObjectPath(self.bucket, self.key.rpartition("/")[0])

    def with_name(self, name: str) -> ObjectPath:
        return self.parent / name

    def with_suffix(self, suffix: str) -> ObjectPath:
        return ObjectPath(self.bucket, str(self._pure.with_suffix(suffix)))

    def is_relative_to(self, other: object) -> bool:
        return isinstance(other, ObjectPath) and other.bucket == self.bucket and self._pure.is_relative_to(other._pure)

    def relative_to(self, other: ObjectPath) -> PurePosixPath:
        if not self.is_relative_to(other):
            raise ValueError(f"{self} is not below {other}.")
        return self._pure.relative_to(other._pure)

    # ----------------------------------------------------------------------------------------------------- reading

    def stat(self) -> Stat:
        """Size, time of change and tag, as `glob` found them or by a request.  Raises `FileNotFoundError`."""
        if self.listed is not None:
            return self.listed
        from obstore import head

        return _stat(self._request(lambda store: head(store, self.key)))

    def exists(self) -> bool:
        """Whether there is an object of exactly this name."""
        try:
            return self.stat() is not None
        except FileNotFoundError:
            return False

    def read(self) -> Version:
        """Content and state at one moment, in one request.  Raises `FileNotFoundError`."""
        from obstore import get

        def act(store: S3Store) -> Version:
            answer = get(store, self.key)
            return Version(bytes(answer.bytes()), _stat(answer.meta))

        return self._request(act)

    def read_bytes(self) -> bytes:
        """The content.  Raises `FileNotFoundError`."""
        if self.listed is not None and self.listed.st_size <= KEPT_BYTES:
            return _kept(self.bucket, self.key, self.listed.tag)
        return self.read().content

    def read_text(self, encoding: str = "utf-8") -> str:
        return self.read_bytes().decode(encoding)

    def glob(self, pattern: str) -> Iterator[ObjectPath]:
        """Objects right below with such names, in order."""
        wild = re.search(r"[*?[]", pattern)
        for path in self._below(pattern[: wild.start()] if wild else pattern):
            if path.parent == self and fnmatchcase(path.name, pattern):
                yield path

    def rglob(self, pattern: str) -> Iterator[ObjectPath]:
        """Objects anywhere below whose last name is such, in order."""
        return (path for path in self._below() if fnmatchcase(path.name, pattern))

    def _below(self, begins: str = "") -> Iterator[ObjectPath]:
        """Objects below, by name; only those whose names begin so are requested, 1,000 at a time."""
        from obstore import list as list_objects

        folder = f"{self.key}/" if self.key else ""
        first = folder + begins

        def act(store: S3Store) -> list[ObjectPath]:
            paths = []
            stream = list_objects(store, self.key or None, offset=first[:-1] if begins else None, chunk_size=1000)
            for chunk in stream:
                for about in chunk:
                    if about["path"].startswith(first):
                        paths.append(ObjectPath(self.bucket, about["path"], _stat(about)))
                    elif about["path"] > first:
                        return paths
            return paths

        return iter(self._request(act))

    # ----------------------------------------------------------------------------------------------------- writing

    def write_bytes(self, content: bytes) -> None:
        from obstore import put

        self._request(lambda store: put(store, self.key, content, max_concurrency=UPLOADS))

    def write_text(self, text: str, encoding: str = "utf-8") -> None:
        self.write_bytes(text.encode(encoding))

    def upload(self, file: Path) -> None:
        """Write the content of a local file."""
        from obstore import put

        self._request(lambda store: put(store, self.key, file, max_concurrency=UPLOADS))

    def exchange(self, content: bytes, tag: str | None) -> str | None:
        """Write if the object still has this tag (None: if there is no object); returns its new tag, or None.

        Of all who try with the same tag exactly one succeeds.  Give content that nobody else would write: a try whose
        answer was lost is recognised by its content.
        """
        from obstore import put
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        try:
            mode: Any = "create" if tag is None else {"e_tag": tag}
            return _tag(self._request(lambda store: put(store, self.key, content, mode=mode)))
        except (AlreadyExistsError, PreconditionError):
            pass
        try:
            version = self.read()
        except FileNotFoundError:
            return None
        return version.about.tag if version.content == content else None

    def check_conditions(self) -> None:
        """Raise `StorageError` where the storage ignores the conditions of a PUT, as some do."""
        probe = self / f".probe-{uuid.uuid4().hex}"
        tag = probe.exchange(b"1", None)
        are_kept = tag is not None and probe.exchange(b"2", None) is None and probe.exchange(b"3", '"another"') is None
        probe.unlink(missing_ok=True)
        if not are_kept:
            raise StorageError(
                f"The storage of {self} ignores the conditions of a PUT (If-None-Match, If-Match), on which "
                "leases rest: use another one, or a newer version of its server."
            )

    def touch(self) -> None:
        self.write_bytes(b"")

    def mkdir(self, parents: bool = False, exist_ok: bool = False) -> None:
        """Do nothing: there are no folders."""

    def unlink(self, missing_ok: bool = False, within: float | None = None) -> None:
        """Raises `FileNotFoundError` unless `missing_ok`, which saves a request; gives up `within` so many seconds."""
        from obstore import delete

        if not missing_ok:
            ObjectPath(self.bucket, self.key).stat()
        self._request(lambda store: delete(store, self.key), within)

    def replace(self, target: ObjectPath) -> ObjectPath:
        """Move it; for a moment it is at both places."""
        from obstore import rename

        self._request(lambda store: rename(store, self.key, target.key))
        return target

    # ---------------------------------------------------------------------------------------------------- requests

    def _request(self, act: Callable[[S3Store], T], within: float | None = None) -> T:
        """Make a request, again while the endpoint does not answer or is overloaded.  Raises `StorageError`."""
        from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError

        client = _client(self.bucket, os.getpid())
        began, pause = time.monotonic(), FIRST_PAUSE_S
        while True:
            try:
                answer = act(client)
            except (FileNotFoundError, AlreadyExistsError, PreconditionError) as error:
                _reached.add(self.bucket)
                if "NoSuchBucket" in str(error):
                    raise StorageError(_message(self.bucket, str(error))) from None
                if isinstance(error, FileNotFoundError):
                    raise FileNotFoundError(errno.ENOENT, "No such object", str(self)) from None
                raise
            except BaseError as error:  # whose text may hold keys: it is never shown
                text = str(error)
                patience = within or (PATIENCE_S if self.bucket in _reached else FIRST_PATIENCE_S)
                if not _is_transient(text) or time.monotonic() - began + pause > patience:
                    raise StorageError(_message(self.bucket, text)) from None
            else:
                _reached.add(self.bucket)
                return answer
            time.sleep(pause * random.uniform(0.5, 1))
            pause = min(2 * pause, LONGEST_PAUSE_S)


def parse(text: str) -> ObjectPath:
    """s3://bucket/prefix.  Raises `ValueError`, which never repeats the text: it may hold a password."""
    rest = re.sub(rf"^{SCHEME}:/+", "", text)  # one slash where somebody made a pathlib.Path of it
    bucket, _, key = rest.partition("/")
    if any(character in rest for character in "@?#") or ":" in bucket:
        raise ValueError(
            "An s3:// storage is a bucket and a prefix, such as s3://bucket/results: the endpoint and the keys belong "
            "in the environment of every node (AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY) or its role."
        )
    if not re.fullmatch(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", bucket):
        raise ValueError(f"'{bucket}' is not a bucket's name: give --storage s3://bucket/prefix.")
    return ObjectPath(bucket, key)


_reached: set[str] = set()  # buckets that have answered, here or where a path was sent from


@cache
def _client(bucket: str, process: int) -> S3Store:
    """`process`: threads of connections do not survive a fork."""
    from obstore.store import S3Store

    endpoint = _endpoint()
    if endpoint and not re.fullmatch(
        r"https?://[\w.-]+(:\d+)?(/.*)?|https?://\[[0-9a-fA-F:]+\](:\d+)?(/.*)?", endpoint
    ):
        raise StorageError("AWS_ENDPOINT_URL is not an address: give one such as https://host:9000.")
    options: Any = {
        "connect_timeout": f"{CONNECT_S}s",
        "read_timeout": f"{SILENCE_S}s",
        "timeout": f"{REQUEST_S}s",
        **({"allow_http": True} if endpoint.startswith("http://") else {}),
    }
    try:
        # `_request` tries again; and some S3-compatible storages have no bulk deletion
        return S3Store(bucket, client_options=options, retry_config={"max_retries": 0}, disable_bulk_delete=True)
    except Exception as error:
        raise StorageError(
            f"The AWS_… variables of this machine cannot be used ({type(error).__name__}): correct them."
        ) from None


def _endpoint() -> str:
    """The address of the storage; empty for AWS itself."""
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""


def _received(bucket: str, key: str) -> ObjectPath:
    """A path from another process, which has reached the bucket."""
    _reached.add(bucket)
    return ObjectPath(bucket, key)


@lru_cache(KEPT)
def _kept(bucket: str, key: str, tag: str) -> bytes:
    return ObjectPath(bucket, key).read().content


def _stat(about: Any) -> Stat:
    changed: datetime = about["last_modified"]
    return Stat(about["size"], round(changed.timestamp() * 1e9), _tag(about))


def _tag(about: Any) -> str:
    if not (tag := about["e_tag"]):
        raise StorageError("This object storage gives no ETags, on which leases rest: use another one.")
    return str(tag)


_WITHOUT_KEYS = ("169.254.169.254", "fd00:ec2::254", "latest/api/token", "credential", "Credential")


def _is_transient(text: str) -> bool:
    """Whether the request is worth retrying: no answer, an overloaded or broken server."""
    status = _status(text)
    return not any(word in text for word in _WITHOUT_KEYS) and (status is None or status in (408, 429) or status >= 500)


def _status(text: str) -> int | None:
    match = re.search(r"status code: (\d{3})", text)
    return int(match[1]) if match else None


def _message(bucket: str, text: str) -> str:
    """What an error means and what to do; of its text only the code is quoted, because the rest may hold keys."""
    where, status = f"s3://{bucket} at {_endpoint() or 'AWS'}", _status(text)
    code = re.search(r"<Code>(\w+)</Code>", text)
    what = code[1] if code else f"status {status}" if status else "no answer"
    if "NoSuchBucket" in text:
        return f"There is no bucket {where}: make it, or give another --storage; then run again."
    if any(word in text for word in _WITHOUT_KEYS):
        return (
            f"No credentials for {where}: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY on every node, or give the "
            "machines a role (profiles in ~/.aws are not read)."
        )
    if status in (401, 403):
        return (
            f"{where} refuses these credentials ({what}): set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a role "
            "that may list, read, write and delete there, on every node."
        )
    if status in (301, 307, 400) or "redirect" in text:
        return f"{where} refuses the request ({what}): see that AWS_REGION and AWS_ENDPOINT_URL are the bucket's."
    if status == 501 or "NotImplemented" in text:
        return f"{where} knows no conditional PUT ({what}), on which leases rest: use another object storage."
    return f"{where} does not answer ({what}): see that AWS_ENDPOINT_URL is right and reachable; then run again."
