"""File names for what people name freely: arms, panels, presets, studies, settings.

A name is text for people.  Wherever it becomes part of a path, a link, an HTML id or a TeX label it goes through
`file_name`, so that nothing that somebody wrote, or that was read from a store, decides where a file lies.
"""

from __future__ import annotations

import hashlib
import re

LONGEST = 80  # bytes: with an ending and a temporary name's additions still below the 255 of a file system
DEVICES = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|com[0-9]|lpt[0-9])(\..*)?")  # Windows, with any ending
_PLAIN = re.compile(r"[a-z0-9_]([a-z0-9_.,=-]*[a-z0-9_])?")
_HASHED = re.compile(r".*-[0-9a-f]{8}")


def file_name(text: str) -> str:
    """A safe and short file name, another one for every other text, also where upper and lower case are the same.

    Lower-case letters, digits and `_.,=-`, at most `LONGEST` bytes, no leading dot or dash, no device of Windows.  A
    text that is such a name already stays as it is; any other becomes what is plain in it and a hash of all of it.
    """
    plain = _PLAIN.fullmatch(text) and len(text) <= LONGEST
    if plain and not DEVICES.fullmatch(text) and not _HASHED.fullmatch(text):  # else it could be another text's name
        return text
    slug = re.sub(r"[^a-z0-9_]+", "-", text.lower()).strip("-")[: LONGEST - 9].rstrip("-")
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return f"{slug or 'name'}-{digest}"
