"""What a trial prints, for its log file: `Output` captures it."""

from __future__ import annotations

import contextlib
import io
import logging
import traceback
from collections import deque
from types import TracebackType

HALF = 2**19  # characters of a log that are kept of its beginning, and of its end


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
        """What was captured, with any secrets in it; empty where nothing was printed."""
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
