"""What a trial prints, for its log file; and `mask`, which takes secrets out of every text that people read.

What code reads back is never masked: a secret may be an everyday word, as `SSH_KEY_NAME=digits` has one.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import re
import traceback
from collections import deque
from collections.abc import Mapping
from types import TracebackType
from typing import Any
from urllib.parse import quote

NAMES = re.compile("TOKEN|SECRET|PASSW|CREDENTIAL|KEY", re.IGNORECASE)  # of environment variables that hold secrets
SHORTEST = 6  # characters of a secret: TOKENIZERS_PARALLELISM=false and KEYMAP=us are none
LONG = 16  # characters of a secret that nothing else holds by chance; a shorter one may be a part of a name or an id
BEGINS = r"(?:(?<!\w)|(?<=\\[nrt])|(?<=%[0-9A-Fa-f]{2}))"  # a word, also after an escaped line break or sign of a URL
HIDDEN = "***"
PASSWORD = re.compile(r"""(?<=://)([^\s/:@"']*):([^\s/"]+)@""")  # in a URL
ASKED = re.compile(r"""([?&](?:password|passwd|token|secret)=)([^&\s"']+)""", re.IGNORECASE)  # in its query

HALF = 2**19  # characters of a log that are kept of its beginning, and of its end


def mask(text: str) -> str:
    """The text without passwords in URLs and without the values of this process's secret environment variables."""
    text = ASKED.sub(rf"\1{HIDDEN}", PASSWORD.sub(rf"\1:{HIDDEN}@", text))
    for secret in sorted(_secrets(), key=len, reverse=True):
        if len(secret) >= LONG:
            text = text.replace(secret, HIDDEN)
        elif secret in text:
            text = re.sub(BEGINS + re.escape(secret) + r"(?!\w)", HIDDEN, text)
    return text


def masked(value: Any) -> Any:
    """`mask` for every text in plain data."""
    if isinstance(value, Mapping):
        return {key: masked(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [masked(part) for part in value]
    return mask(value) if isinstance(value, str) else value


def _secrets() -> set[str]:
    """In every spelling that a text may have them in: as they are, in JSON, in Python, in a URL; line by line."""
    values = [value for name, value in os.environ.items() if NAMES.search(name)]
    hidden = (PASSWORD, ASKED)
    values += [found[1] for value in os.environ.values() for kind in hidden for found in kind.findall(value)]
    lines = {line.strip() for value in values for line in value.splitlines()}
    spellings = (
        str,
        lambda line: json.dumps(line)[1:-1],
        lambda line: json.dumps(line, ensure_ascii=False)[1:-1],
        lambda line: repr(line)[1:-1],
        lambda line: quote(line, ""),
    )
    return {spelt(line) for line in lines if len(line) >= SHORTEST for spelt in spellings}


class Output:
    """While entered, keeps what this process prints, warns and logs, and an exception that leaves the block.

    Only what goes through Python: neither what C code writes to the file descriptors, nor, as the text is in memory,
    anything of a process that is killed.
    """

    def __init__(self) -> None:
        self._kept = _Ends()

    def __enter__(self) -> Output:
        self._undo = contextlib.ExitStack()
        self._undo.enter_context(contextlib.redirect_stdout(self._kept))
        self._undo.enter_context(contextlib.redirect_stderr(self._kept))
        handler = logging.StreamHandler(self._kept)
        handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
        logging.getLogger().addHandler(handler)
        self._undo.callback(logging.getLogger().removeHandler, handler)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._undo.close()
        if isinstance(error, Exception):  # the end of a thread or of the program is none of the trial's doing
            self._kept.write("".join(traceback.format_exception(error)))

    def text(self) -> str:
        """Secrets and all; empty where nothing was said."""
        return self._kept.text()


class _Ends(io.TextIOBase):
    """A text stream that keeps its first and its last characters."""

    def __init__(self) -> None:
        self._head: list[str] = []
        self._tail: deque[str] = deque()
        self._room, self._tail_size, self._dropped = HALF, 0, 0

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        first, rest = text[: self._room], text[self._room :]
        self._head.append(first)
        self._room -= len(first)
        if rest:
            self._tail.append(rest[-HALF:])
            self._tail_size += len(self._tail[-1])
            self._dropped += len(rest) - len(self._tail[-1])
            while self._tail_size > HALF + len(self._tail[0]):
                self._tail_size -= len(self._tail[0])
                self._dropped += len(self._tail.popleft())
        return len(text)

    def text(self) -> str:
        head, tail = "".join(self._head), "".join(self._tail)
        if not self._dropped:
            return head + tail
        # whole lines: half a secret is not known for one
        before, after = head.rpartition("\n")[0], tail.partition("\n")[2]
        return f"{before}\n… {self._dropped:,} characters and more are left out here …\n{after}"
