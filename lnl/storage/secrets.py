"""Masking secrets in texts for people: `mask` a text, or all texts in plain data (`masked`).

What code reads back is never masked: a secret may be an everyday word, as `SSH_KEY_NAME=digits` has one.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

NAMES = re.compile("TOKEN|SECRET|PASSW|CREDENTIAL|KEY", re.IGNORECASE)  # of environment variables that hold secrets
SHORTEST = 6  # characters of a secret: TOKENIZERS_PARALLELISM=false and KEYMAP=us are none
LONG = 16  # characters of a secret that nothing else holds by chance; a shorter one may be a part of a name or an id
BEGINS = r"(?:(?<!\w)|(?<=\\[nrt])|(?<=%[0-9A-Fa-f]{2}))"  # a word, also after an escaped line break or sign of a URL
HIDDEN = "***"
PASSWORD = re.compile(r"""(?<=://)([^\s/:@"']*):([^\s/"]+)@""")  # in a URL
IN_QUERY = re.compile(r"""([?&](?:password|passwd|token|secret)=)([^&\s"']+)""", re.IGNORECASE)  # in its query


def mask(text: str) -> str:
    """The text without passwords in URLs and without the values of this process's secret environment variables."""
    text = IN_QUERY.sub(rf"\1{HIDDEN}", PASSWORD.sub(rf"\1:{HIDDEN}@", text))
    for secret in sorted(_secrets(), key=len, reverse=True):
        if len(secret) >= LONG:
            text = text.replace(secret, HIDDEN)
        elif secret in text:
            text = re.sub(BEGINS + re.escape(secret) + r"(?!\w)", HIDDEN, text)
    return text


def masked(value: Any) -> Any:
    """Plain data with every text in it masked."""
    if isinstance(value, Mapping):
        return {key: masked(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [masked(part) for part in value]
    return mask(value) if isinstance(value, str) else value


def _secrets() -> set[str]:
    """The secrets of this process, line by line, in every spelling: as they are, in JSON, in Python, in a URL."""
    values = [value for name, value in os.environ.items() if NAMES.search(name)]
    in_urls = (PASSWORD, IN_QUERY)
    values += [match[1] for value in os.environ.values() for kind in in_urls for match in kind.findall(value)]
    lines = {line.strip() for value in values for line in value.splitlines()}
    spellings = (
        str,
        lambda line: json.dumps(line)[1:-1],
        lambda line: json.dumps(line, ensure_ascii=False)[1:-1],
        lambda line: repr(line)[1:-1],
        lambda line: quote(line, ""),
    )
    return {spelt(line) for line in lines if len(line) >= SHORTEST for spelt in spellings}
