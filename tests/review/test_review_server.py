"""The server of the review page, without a browser: who may ask, what is answered, and what is on the disk by then."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from aiohttp import ClientResponse
from aiohttp.test_utils import TestClient, TestServer

from lnl.review import decisions, server
from lnl.review.server import AddressError, application, folder_key, serve
from lnl.storage.objects import StorageError
from tests.review.reviews import Squares, decision, review

KEY = "a-key-that-nobody-knows"
IDENTITY = review().identity
KEEP = {"index": 1, "action": "keep", "label": "cat", "reviewer": "ada"}


Question = Callable[[TestClient], Awaitable[ClientResponse]]


def ask(folder: Path, *questions: Question, images: Squares | None = None) -> list[tuple[int, bytes, dict]]:
    """The answers, as status, body and headers, of one server."""

    async def run() -> list[tuple[int, bytes, dict]]:
        async with TestClient(TestServer(application(review(images=images), folder, KEY, "ada"))) as client:
            answers = [await question(client) for question in questions]
            return [(answer.status, await answer.read(), dict(answer.headers)) for answer in answers]

    return asyncio.run(run())


def get(path: str, **headers: str) -> Question:
    return lambda client: client.get(path, headers={"X-Review-Key": KEY} | headers)


def post(said: object = KEEP, after: str = "0", **changed: str | None) -> Question:
    """Save a decision as the page does; a header that is None is left out."""

    def question(client: TestClient) -> Awaitable[ClientResponse]:
        own = f"http://{client.server.host}:{client.server.port}"
        headers = {"X-Review-Key": KEY, "X-Review-Identity": IDENTITY, "Origin": own}
        headers |= {name.replace("_", "-"): value for name, value in changed.items()}
        sent = {name: value for name, value in headers.items() if value is not None}
        return client.post(f"/decisions?after={after}", data=json.dumps(said), headers=sent)

    return question


def test_a_decision_is_on_the_disk_when_it_is_answered(tmp_path):
    ((status, body, _),) = ask(tmp_path, post())
    answer = json.loads(body)
    (saved,) = decisions.read(tmp_path).decisions
    assert status == 200 and answer["decisions"] == [saved.model_dump(mode="json")]
    assert (saved.file, saved.given, saved.label, saved.reviewer) == ("pets/0.png", "cat", "cat", "ada")
    assert answer["end"] == (tmp_path / decisions.FILE_NAME).stat().st_size and answer["problems"] == []


def test_an_answer_has_what_others_saved_since(tmp_path):
    decisions.append(tmp_path, decision(by="grace"))
    known = decisions.read(tmp_path).end
    decisions.append(tmp_path, decision("b.png", by="grace"))
    first, second = ask(tmp_path, post(after=str(known)), get(f"/decisions?after={known}"))
    told = [each["file"] for each in json.loads(first[1])["decisions"]]
    assert told == ["b.png", "pets/0.png"] == [each["file"] for each in json.loads(second[1])["decisions"]]


@pytest.mark.parametrize(
    "change",
    [
        {"X_Review_Key": None},
        {"X_Review_Key": "wrong"},
        {"X_Review_Key": "é"},
        {"Origin": None},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "https://127.0.0.1"},
        {"Host": "evil.example"},
        {"Host": "evil.example:8000"},
        {"Host": "127.0.0.1.evil.example"},
        {"Host": "localhost.evil.example:80"},
        {"Host": "evil.example", "Origin": "http://evil.example"},  # DNS rebinding
    ],
)
def test_another_origin_or_host_or_no_key_is_refused_and_saves_nothing(tmp_path, change):
    ((status, body, _),) = ask(tmp_path, post(**change))
    assert status == 403 and "error" in json.loads(body)
    assert not (tmp_path / decisions.FILE_NAME).exists()


@pytest.mark.parametrize("path", ["/", "/image/1", "/decisions", "/image/../../etc/passwd", "/nothing"])
@pytest.mark.parametrize("headers", [{"X-Review-Key": ""}, {"Host": "evil.example"}, {"Origin": "http://evil.example"}])
def test_reading_is_refused_too(tmp_path, path, headers):
    ((status, body, sent),) = ask(tmp_path, get(path, **headers))
    assert status == 403 and b"pets" not in body and sent["Content-Type"].startswith("application/json")
    assert "Access-Control-Allow-Origin" not in sent


def test_a_forwarded_port_is_this_machine_still(tmp_path):
    forwarded = post(Host="localhost:9000", Origin="http://localhost:9000")
    ((status, _, _),) = ask(tmp_path, forwarded)
    assert status == 200


def test_the_page_comes_with_a_policy(tmp_path):
    page, wrong = ask(tmp_path, lambda client: client.get(f"/?key={KEY}"), lambda client: client.get("/?key=no"))
    assert page[0] == 200 and b"pets/0.png" in page[1] and wrong[0] == 403
    headers = page[2]
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
    assert headers["X-Content-Type-Options"] == "nosniff" and headers["Referrer-Policy"] == "no-referrer"
    assert headers["Cache-Control"] == "no-store"


def test_pictures_are_those_of_the_list_by_index_alone(tmp_path):
    paths = ["1", "4", "1", "3", "61", "-1", "1.5", "..%2F..%2Fetc%2Fpasswd", "9" * 30, "1/"]
    answers = ask(tmp_path, *(get(f"/image/{path}") for path in paths))
    assert [answer[0] for answer in answers] == [200, 200, 200, *[404] * 7]  # of row 0, its neighbour; 3 is broken
    assert answers[0][1].startswith(b"\x89PNG") and answers[0][2]["Content-Type"] == "image/png"
    assert answers[0][1] == answers[2][1] != answers[1][1]


@pytest.mark.parametrize(
    "said, told",
    [
        ({**KEEP, "index": 2}, "no image 2"),
        ({**KEEP, "label": "cow"}, "'cow' is not a class"),
        ({**KEEP, "label": "dog"}, "says the given label"),
        ({**KEEP, "action": "change"}, "another label"),
        ({**KEEP, "action": "erase"}, "no decision"),
        ({**KEEP, "reviewer": ""}, "no decision"),
        ({**KEEP, "reviewer": "x" * 101}, "no decision"),
        ({**KEEP, "at": "2000-01-01T00:00:00Z"}, "no decision"),  # the server says when
        ({**KEEP, "file": "other.png"}, "no decision"),  # and of which file
        ([], "no decision"),
        ("{", "no decision"),
    ],
)
def test_what_is_no_decision_is_told_and_not_saved(tmp_path, said, told):
    ((status, body, _),) = ask(tmp_path, post(said))
    assert status == 400 and told in json.loads(body)["error"]
    assert not (tmp_path / decisions.FILE_NAME).exists()


def test_other_bad_requests_are_told(tmp_path):
    large = {**KEEP, "reviewer": "x" * 2**17}
    answers = ask(tmp_path, post(after="x"), post(after="-1"), get("/decisions?after=x"), post(large), get("/nothing"))
    assert [answer[0] for answer in answers] == [400, 400, 400, 413, 404]
    assert all("error" in json.loads(answer[1]) for answer in answers)


def test_a_page_of_another_list_saves_nothing(tmp_path):
    ((status, body, _),) = ask(tmp_path, post(X_Review_Identity=review(29).identity))
    assert status == 409 and "reload" in json.loads(body)["error"]
    assert not (tmp_path / decisions.FILE_NAME).exists()


def test_a_disk_that_fails_is_told(tmp_path, monkeypatch):
    def fails(folder, decision):
        raise StorageError("No room: free some space.")

    monkeypatch.setattr(decisions, "append", fails)
    ((status, body, _),) = ask(tmp_path, post())
    assert status == 507 and json.loads(body)["error"] == "No room: free some space."


def test_a_torn_line_is_told_to_the_page(tmp_path):
    (tmp_path / decisions.FILE_NAME).write_text('{"index": 7, "fi', encoding="utf-8")
    first, second = ask(tmp_path, get("/decisions"), post())
    assert "incomplete" in json.loads(first[1])["problems"][0]
    assert len(json.loads(second[1])["decisions"]) == 1


def test_thumbnails_in_memory_are_bounded(tmp_path, monkeypatch):
    opened = []

    class Counted(Squares):
        def open(self, index):
            opened.append(index)
            return super().open(index)

    monkeypatch.setattr(server, "CACHED", 2)
    ask(tmp_path, *(get(f"/image/{index}") for index in (1, 2, 2, 1, 4, 2, 1)), images=Counted())
    assert opened == [1, 2, 4, 1]


def test_the_key_of_a_folder_stays_and_is_its_owners(tmp_path):
    key = folder_key(tmp_path)
    assert key == folder_key(tmp_path) and len(key) >= 32
    path = tmp_path / server.KEY_NAME
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.write_text("short", encoding="ascii")  # as after a crash
    assert len(folder_key(tmp_path)) >= 32


def test_a_folder_that_cannot_be_written_is_told_before_anything_is_served(tmp_path):
    with pytest.raises(StorageError, match=r"Decisions cannot be kept in .*nowhere"):
        serve(review(2), tmp_path / "nowhere", 0, "ada")


def test_a_port_that_is_taken_is_told(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(AddressError, match="choose another with --port"):
            serve(review(2), tmp_path, taken.getsockname()[1], "ada")
    with pytest.raises(AddressError, match="Port 99999 cannot be used"):
        serve(review(2), tmp_path, 99999, "ada")


def test_it_listens_on_this_machine_only_until_it_is_interrupted(tmp_path):
    """The address that is bound is the loopback's, which no other machine reaches."""

    told = []

    def tell(text):
        told.append(text)
        if len(told) == 1:
            raise KeyboardInterrupt  # as Ctrl-C does once it waits

    serve(review(2), tmp_path, 0, "ada", tell)
    assert told[0].startswith("Review at http://127.0.0.1:") and f"/?key={folder_key(tmp_path)} " in told[0]
    assert told[1] == f"Decisions are in {tmp_path / decisions.FILE_NAME}."
    assert sorted(os.listdir(tmp_path)) == [decisions.LOCK_NAME, server.KEY_NAME]
