"""A review server for the browser: in a thread of the tests, or as a process that can be killed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from aiohttp import web

from lnl.review import decisions
from lnl.review.page import Review
from lnl.review.server import HOST, application, folder_key, serve
from tests.review.reviews import review


@contextlib.contextmanager
def served(shown: Review, folder: Path, reviewer: str = "ada") -> Iterator[str]:
    """The address of a page that a thread serves."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    key = folder_key(folder)
    runner = web.AppRunner(application(shown, folder, key, reviewer), access_log=None)

    async def start() -> str:
        await runner.setup()
        await web.TCPSite(runner, HOST, 0).start()
        return f"http://{HOST}:{runner.addresses[0][1]}/?key={key}"

    try:
        yield asyncio.run_coroutine_threadsafe(start(), loop).result(30)
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(30)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def _write_half_and_die(descriptor: int, line: bytes) -> None:
    os.write(descriptor, line[: len(line) // 2])
    os.kill(os.getpid(), signal.SIGKILL)


def main(folder: str, port: str, kind: str) -> None:
    """Serve; of the kind `dies`, be killed once half of a decision is written."""
    if kind == "dies":
        decisions._append = _write_half_and_die
    serve(review(), Path(folder), int(port), "ada")


if __name__ == "__main__":
    main(*sys.argv[1:])
