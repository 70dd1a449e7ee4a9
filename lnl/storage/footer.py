"""A checksum of a parquet file's footer, which parquet itself does not have: of the names, types and places of columns.

A flipped bit there may give a column the values of another one, whose own checksum is right, or end the process that
reads it.  The checksum lies between the last page and the footer, where other readers of parquet do not look.
"""

from __future__ import annotations

import zlib

import pyarrow as pa

MARK = b"CRC1"  # then four bytes of CRC-32
TAIL = 8  # a file ends in the footer's length, four bytes, and "PAR1"


def guarded(content: bytes) -> bytes:
    """A file of parquet with the checksum of its footer."""
    start = _start(content)
    return content[:start] + MARK + zlib.crc32(content[start:]).to_bytes(4, "little") + content[start:]


def checked(content: bytes) -> bytes:
    """The same file.  Raises `pyarrow.ArrowInvalid` where its footer is not as it was written.

    Files of earlier versions, and of other programs, have no checksum and are taken as they are.
    """
    start = _start(content)
    mark, checksum = content[start - 8 : start - 4], content[start - 4 : start]
    if start >= 8 and mark == MARK and int.from_bytes(checksum, "little") != zlib.crc32(content[start:]):
        raise pa.ArrowInvalid("the description of its columns is damaged")
    return content


def _start(content: bytes) -> int:
    """Where the footer begins; below 0 where this is no file of parquet."""
    return len(content) - TAIL - int.from_bytes(content[-TAIL:-4], "little")
