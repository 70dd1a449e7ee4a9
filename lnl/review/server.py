"""The server of the review page, for this machine only: every decision is on the disk before it is answered.

Who may ask: a browser on this machine that knows the secret key, which is in the address that is printed and stays the
same for a folder, so that a page goes on after the server was started again.  A request for another host (DNS
rebinding), from the page of another site, or without the key is refused.  Images are asked for by their index in the
list, never by a path.
"""

from __future__ import annotations

import asyncio
import datetime
import os
import secrets
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware
from pydantic import BaseModel, ConfigDict, ValidationError

from lnl.review import decisions
from lnl.review.decisions import Action, Decision
from lnl.review.page import MOST_ROWS, Review, Served, content_security_policy, render
from lnl.review.thumbnails import Images, Thumbnail, Unreadable, thumbnail
from lnl.storage.files import lock_file, open_file, printable, reason, shown
from lnl.storage.objects import StorageError

HOST = "127.0.0.1"
NAMES = ("127.0.0.1", "localhost")  # by which a browser on this machine may call it, on any port: one may be forwarded
KEY_NAME = f".review-key-{os.getuid()}"  # each user of a shared folder has one
LARGEST_REQUEST = 2**16  # bytes
CACHED = 1_000  # thumbnails
MOST_DECODED = 4  # images at a time, for a large one takes much memory


class AddressError(ValueError):
    """The server cannot use its port."""


class Answer(BaseModel):
    """What the page asks to save."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    index: int
    action: Action
    label: str | None
    reviewer: str


def tell_now(text: str) -> None:
    """Print, into a pipe too before the server waits."""
    print(text, flush=True)


def serve(review: Review, folder: Path, port: int, reviewer: str, tell: Callable[[str], None] = tell_now) -> None:
    """Serve the page until Ctrl-C, and keep decisions in the folder.  `port` 0: any that is free.

    Raises `AddressError` where the port is taken, `StorageError` where the folder cannot be written.
    """
    key = folder_key(folder)
    for problem in decisions.read(folder).problems:
        tell(f"warning: {problem}")
    try:
        asyncio.run(_serve(application(review, folder, key, reviewer), port, key, tell))
    except KeyboardInterrupt:
        tell(f"Decisions are in {shown(folder / decisions.FILE_NAME)}.")


async def _serve(app: web.Application, port: int, key: str, tell: Callable[[str], None]) -> None:
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        site = web.TCPSite(runner, HOST, port)
        try:
            await site.start()
        except (OSError, OverflowError) as error:
            raise AddressError(f"Port {port} cannot be used ({reason(error)}): choose another with --port.") from error
        address = runner.addresses[0]
        tell(f"Review at http://{address[0]}:{address[1]}/?key={quote(key)} (stop with Ctrl-C)")
        await asyncio.Event().wait()
    finally:
        await runner.cleanup()


def folder_key(folder: Path) -> str:
    """The secret key of a folder, which only its owner may read; made where there is none.  Raises `StorageError`."""
    path = folder / KEY_NAME
    try:
        with lock_file(folder / decisions.LOCK_NAME):
            if path.exists():
                with open_file(path) as file:
                    if len(key := file.read(100).decode("ascii", errors="replace").strip()) >= 32:
                        return key
            key = secrets.token_urlsafe(32)
            path.unlink(missing_ok=True)
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "w", encoding="ascii") as new:
                new.write(key)
        return key
    except OSError as error:
        raise StorageError(
            f"Decisions cannot be kept in {shown(folder)} ({reason(error)}): give a folder that you may write."
        ) from error


def application(review: Review, folder: Path, key: str, reviewer: str) -> web.Application:
    """The server's answers, without a port."""
    server = _Server(review, folder, Served(key, reviewer))
    app = web.Application(middlewares=[_guard(key)], client_max_size=LARGEST_REQUEST)
    app.router.add_get("/", server.page)
    app.router.add_get(r"/image/{index:\d{1,18}}", server.image)
    app.router.add_get("/decisions", server.read)
    app.router.add_post("/decisions", server.save)
    return app


def _guard(key: str) -> Middleware:
    """Refuses who may not ask, and says to browsers what an answer may do."""

    policy = f"{content_security_policy()}; frame-ancestors 'none'"

    @web.middleware
    async def guarded(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            response = _refusal(request, key) or await handler(request)
        except web.HTTPException as error:
            response = _error(error.status, error.reason)
        response.headers["Cache-Control"] = response.headers.get("Cache-Control", "no-store")
        response.headers["Content-Security-Policy"] = policy
        response.headers["Cross-Origin-Resource-Policy"] = "same-origin"
        response.headers["Referrer-Policy"] = "no-referrer"
        response.headers["X-Content-Type-Options"] = "nosniff"
        return response

    return guarded


def _refusal(request: web.Request, key: str) -> web.Response | None:
    """Why a request is refused; None: it is not."""
    if request.host.rpartition(":")[0] not in NAMES and request.host not in NAMES:
        return _error(403, f"This server answers only to {' and '.join(NAMES)}.")
    origin = request.headers.get("Origin")
    if origin != f"http://{request.host}" and (origin is not None or request.method not in ("GET", "HEAD")):
        return _error(403, "Only this server's own page may ask.")
    told = request.headers.get("X-Review-Key") or request.query.get("key", "")
    if not secrets.compare_digest(told.encode(), key.encode()):
        return _error(403, "The key is missing or wrong: open the address that lnl label review printed.")
    return None


def _error(status: int, message: str) -> web.Response:
    return web.json_response({"error": message}, status=status)


class _Server:
    """Answers the page's requests; what touches the disk runs in threads."""

    def __init__(self, review: Review, folder: Path, served: Served) -> None:
        self._review, self._folder = review, folder
        self._names = tuple(map(printable, review.class_names))  # as the page has them
        self._html = render(review, served=served)
        self._identity = review.identity
        self._rows = {index: row for row, index in enumerate(review.index[:MOST_ROWS].tolist())}
        self._shown = frozenset(review.pictured(MOST_ROWS))
        self._decoding = asyncio.Semaphore(MOST_DECODED)
        self._thumbnails: OrderedDict[int, Thumbnail] = OrderedDict()  # the latest last

    async def page(self, request: web.Request) -> web.Response:
        """The page, with its rows."""
        return web.Response(text=self._html, content_type="text/html")

    async def image(self, request: web.Request) -> web.Response:
        """A picture of one of the images that the page shows."""
        index = int(request.match_info["index"])
        if self._review.images is None or index not in self._shown:
            return _error(404, f"The list shows no image {index}.")
        try:
            picture = await self._thumbnail(self._review.images, index)
        except Unreadable as error:
            return _error(404, str(error))
        headers = {"Cache-Control": "private, max-age=3600"}
        return web.Response(body=picture.content, content_type=picture.media_type, headers=headers)

    async def _thumbnail(self, images: Images, index: int) -> Thumbnail:
        async with self._decoding:
            if (known := self._thumbnails.get(index)) is None:
                self._thumbnails[index] = known = await asyncio.to_thread(thumbnail, images, index)
                if len(self._thumbnails) > CACHED:
                    self._thumbnails.popitem(last=False)
        return known

    async def read(self, request: web.Request) -> web.Response:
        """The decisions after a byte of their file."""
        if (after := _byte(request)) is None:
            return _error(400, "'after' must be a whole number.")
        return await self._read(after)

    async def save(self, request: web.Request) -> web.Response:
        """Save a decision, then answer with all that are new."""
        if (after := _byte(request)) is None:
            return _error(400, "'after' must be a whole number.")
        if request.headers.get("X-Review-Identity") != self._identity:
            return _error(
                409, "The list has changed since this page was loaded. Export what is not saved, then reload."
            )
        try:
            decision = self._decision(Answer.model_validate_json(await request.read()))
        except ValidationError as error:
            return _error(400, f"This is no decision: {error.errors()[0]['msg']}.")
        except ValueError as error:
            return _error(400, str(error))
        try:
            await asyncio.to_thread(decisions.append, self._folder, decision)
        except StorageError as error:
            return _error(507, str(error))
        return await self._read(after)

    async def _read(self, after: int) -> web.Response:
        try:
            reading = await asyncio.to_thread(decisions.read, self._folder, after)
        except StorageError as error:
            return _error(500, str(error))
        return web.json_response(
            {
                "decisions": [decision.model_dump(mode="json") for decision in reading.decisions],
                "start": reading.start,
                "end": reading.end,
                "problems": reading.problems,
            }
        )

    def _decision(self, answer: Answer) -> Decision:
        """The decision with what the server knows of its image.  Raises ValueError."""
        if answer.index not in self._rows:
            raise ValueError(f"The list has no image {answer.index}.")
        if answer.label is not None and answer.label not in self._names:
            raise ValueError(f"'{answer.label}' is not a class of this list.")
        row = self._rows[answer.index]
        given = int(self._review.given[row])
        return Decision(
            index=answer.index,
            file=printable(self._review.files[row]),
            given=self._names[given] if given >= 0 else None,
            action=answer.action,
            label=answer.label,
            reviewer=answer.reviewer,
            at=datetime.datetime.now(datetime.UTC),
        )


def _byte(request: web.Request) -> int | None:
    """The byte of the file of decisions after which to read; None: it is none."""
    after = request.query.get("after", "0")
    return int(after) if after.isascii() and after.isdecimal() and len(after) < 16 else None
