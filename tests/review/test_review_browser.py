"""The review page in a real headless browser: by keyboard, with two reviewers, killed servers, and hostile names."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import functools
import http.server
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from lnl.review import decisions, server
from lnl.review.decisions import Decision
from lnl.review.page import write
from lnl.storage.objects import StorageError
from tests.analysis.test_page import CHROMIUM, IN_A_BROWSER, MEASURE, QUIET
from tests.review.reviews import CLASSES, EVIL, decision, review
from tests.review.serving import served

pytestmark = [IN_A_BROWSER, pytest.mark.slow]
REPOSITORY = Path(__file__).parents[2]
Open = Callable[..., Page]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(QUIET))
        yield browser
        browser.close()


@pytest.fixture
def visit(browser: Browser) -> Iterator[Open]:
    """`visit(address)`: a page in a browser of its own; at the end none has complained."""
    said: list[str] = []
    with contextlib.ExitStack() as stack:

        def opened(address: str, width: int = 1440, scheme: str = "light", name: str | None = None) -> Page:
            size = {"width": width, "height": 900}
            context = stack.enter_context(
                contextlib.closing(browser.new_context(viewport=size, color_scheme=scheme, accept_downloads=True))
            )
            page = context.new_page()
            page.set_default_timeout(15_000)
            page.on("console", lambda message: said.append(message.text))
            page.on("pageerror", lambda error: said.append(str(error)))
            page.goto(address)
            if name:
                page.fill("#reviewer", name)
                page.keyboard.press("Enter")
            return page

        yield opened
    assert [text for text in said if "Failed to load resource" not in text] == []


def standing(folder: Path) -> dict[str, tuple[str, str | None]]:
    """File -> what one reviewer did, and the class that is right."""
    current = decisions.current(decisions.read(folder).decisions)
    return {file: (each.decisions[-1].action, each.label) for file, each in current.items()}


def press(page: Page, keys: str) -> None:
    for key in keys:
        page.keyboard.press(key)


TWENTY = "ckcsc1ckc2uckccskcc3ckk"  # 22 decisions on 21 images, of which one is taken back
EXPECTED = {  # row r was given class r mod 3, and r + 1 mod 3 is proposed
    "pets/0.png": ("change", "dog"), "pets/1.png": ("keep", "dog"), "pets/2.png": ("change", "cat"),
    "pets/3.png": ("skip", None), "pets/4.png": ("change", "owl"), "pets/5.png": ("change", "cat"),
    "pets/6.png": ("change", "dog"), "pets/7.png": ("keep", "dog"), "pets/8.png": ("change", "cat"),
    "pets/9.png": ("change", "dog"), "pets/10.png": ("keep", "dog"), "pets/11.png": ("change", "cat"),
    "pets/12.png": ("change", "dog"), "pets/13.png": ("skip", None), "pets/14.png": ("keep", "owl"),
    "pets/15.png": ("change", "dog"), "pets/16.png": ("change", "owl"), "pets/17.png": ("keep", "owl"),
    "pets/18.png": ("change", "dog"), "pets/19.png": ("keep", "dog"), "pets/20.png": ("keep", "owl"),
}  # fmt: skip
COUNTS = "21 of 30 reviewed"
P = np.delete(review().probability[:21], [3, 13])  # of an error, where labels were decided
HALF = 1.96 * np.sqrt((P * (1 - P)).sum())
FOUND = (
    f"Of 19 labels reviewed, 12 were wrong; {P.sum():.1f} ({P.sum() - HALF:.1f} to {P.sum() + HALF:.1f}) were expected."
)


def test_twenty_images_by_keyboard_are_there_after_a_reload(tmp_path, visit):
    with served(review(), tmp_path) as address:
        page = visit(address)
        press(page, TWENTY)
        expect(page.locator("#state")).to_have_text("saved")
        assert standing(tmp_path) == EXPECTED
        page.reload()
        expect(page.locator("#counts")).to_have_text(COUNTS)
        expect(page.locator("#rank")).to_have_text("Rank 22 of 30")
        expect(page.locator("#found")).to_contain_text(FOUND)
        press(page, "u")  # a decision of before the reload can be taken back too
        expect(page.locator("#counts")).to_have_text("20 of 30 reviewed")
        expect(page.locator("#rank")).to_have_text("Rank 21 of 30")
        press(page, "u" * 20)
        expect(page.locator("#counts")).to_have_text("0 of 30 reviewed")
        expect(page.locator("#undo")).to_be_disabled()
        expect(page.locator("#state")).to_have_text("saved")
        assert standing(tmp_path) == {}


def test_a_file_keeps_decisions_in_the_browser_and_exports_them(tmp_path, visit):
    path = write(review(), tmp_path)
    page = visit(path.as_uri())
    press(page, "c")
    expect(page.locator("#alert")).to_contain_text("Write your name first")
    page.fill("#reviewer", "Grace Ö")
    page.keyboard.press("Enter")
    press(page, TWENTY)
    page.reload()
    expect(page.locator("#counts")).to_have_text(COUNTS)
    assert page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth === 32)")
    second = page.context.new_page()
    second.goto(path.as_uri())
    expect(second.locator("#counts")).to_have_text(COUNTS)
    for key, count in (("s", "22 of 30 reviewed"), ("u", COUNTS)):
        press(second, key)
        expect(page.locator("#counts")).to_have_text(count)  # two tabs never overwrite each other
    exported = {}
    for button, name in (("export-json", "decisions.json"), ("export-csv", "decisions.csv")):
        with page.expect_download() as download:
            page.click(f"#{button}")
        assert download.value.suggested_filename == name
        exported[name] = Path(download.value.path()).read_text(encoding="utf-8")
    made = [Decision.model_validate(each) for each in json.loads(exported["decisions.json"])]
    assert {each.file: (each.action, each.label) for each in made} == EXPECTED
    rows = list(csv.DictReader(exported["decisions.csv"].splitlines()))
    assert {row["file"]: (row["action"], row["label"] or None) for row in rows} == EXPECTED
    assert list(rows[0]) == list(Decision.model_fields) and {row["reviewer"] for row in rows} == {"Grace Ö"}
    assert {path.name for path in tmp_path.iterdir()} == {"index.html", "images"}


@contextlib.contextmanager
def process(folder: Path, port: int = 0, kind: str = "stays") -> Iterator[tuple[subprocess.Popen, str]]:
    """A server as a process, and its address."""
    command = [sys.executable, "-m", "tests.review.serving", str(folder), str(port), kind]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, encoding="utf-8") as running:
        try:
            for line in running.stdout:
                if line.startswith("Review at "):
                    break
            yield running, line.split()[2]
        finally:
            running.kill()


def test_a_server_killed_in_the_middle_of_a_save_loses_nothing(tmp_path, visit):
    with process(tmp_path, kind="dies") as (running, address):
        page = visit(address)
        decisions.append(tmp_path, decision("pets/5.png", "change", "dog", "grace"))
        press(page, "c")
        assert running.wait(30) == -9
        expect(page.locator("#alert")).to_contain_text("1 decision is not saved: The server does not answer.")
        expect(page.locator("#state")).to_have_text("1 not saved")
        press(page, "k")  # who reviews goes on
        torn = decisions.read(tmp_path)
        assert [each.file for each in torn.decisions] == ["pets/5.png"] and "incomplete" in torn.problems[0]
    with process(tmp_path, int(address.partition("//")[2].partition("/")[0].partition(":")[2])):
        expect(page.locator("#state")).to_have_text("saved")  # by itself
        expect(page.locator("#alert")).to_be_hidden()
        page.reload()
        expect(page.locator("#counts")).to_have_text("3 of 30 reviewed")
        expect(page.locator("#problems")).to_contain_text("incomplete")
    assert standing(tmp_path) == {
        "pets/5.png": ("change", "dog"), "pets/0.png": ("change", "dog"), "pets/1.png": ("keep", "dog"),
    }  # fmt: skip


def test_a_full_disk_is_told_and_what_was_decided_is_saved_later(tmp_path, visit, monkeypatch):
    with served(review(), tmp_path) as address:
        page = visit(address)
        append = decisions.append
        monkeypatch.setattr(decisions, "append", functools.partial(_fails, "decisions.jsonl: free some space."))
        press(page, "cc")
        expect(page.locator("#alert")).to_contain_text("2 decisions are not saved: decisions.jsonl: free some space.")
        expect(page.locator(".mark.unsaved")).to_have_count(2)
        assert standing(tmp_path) == {}
        page.once("dialog", lambda dialog: dialog.accept())  # leaving asks, but loses nothing either
        page.reload()
        expect(page.locator("#state")).to_have_text("2 not saved")
        monkeypatch.setattr(decisions, "append", append)
        page.click("#again")
        expect(page.locator("#state")).to_have_text("saved")
        assert [*standing(tmp_path)] == ["pets/0.png", "pets/1.png"]


def _fails(message: str, folder: Path, decision: Decision) -> None:
    raise StorageError(message)


def test_two_reviewers_are_both_kept_and_see_each_other(tmp_path, visit):
    """On two servers of one folder, as each may start one."""
    with served(review(), tmp_path) as first, served(review(), tmp_path, "grace") as second:
        ada, grace = visit(first), visit(second)
        press(ada, "cck")
        expect(ada.locator("#state")).to_have_text("saved")
        expect(grace.locator("#counts")).to_have_text("3 of 30 reviewed")  # without being asked
        grace.click("#entry-0")
        expect(grace.locator("#said")).to_contain_text("ada changes it to dog")
        press(grace, "k")
        grace.click("#entry-1")
        press(grace, "c")  # the same as ada
        expect(grace.locator("#state")).to_have_text("saved")
        ada.evaluate("window.dispatchEvent(new Event('focus'))")  # whoever comes back sees it at once
        ada.click("#entry-0")
        expect(ada.locator("#said")).to_contain_text("Reviewers differ")
        expect(ada.locator(".mark.conflict")).to_have_count(1)
        ada.select_option("#by-state", "conflict")
        expect(ada.locator("#counts")).to_have_text("1 of 1 reviewed in this choice, 30 in all")
        expect(ada.locator("#found")).to_contain_text("reviewers differ on 1")
    of_first = decisions.current(decisions.read(tmp_path).decisions)["pets/0.png"]
    assert {each.reviewer: each.label for each in of_first.decisions} == {"ada": "dog", "grace": "cat"}
    assert of_first.is_conflict and standing(tmp_path)["pets/1.png"] == ("change", "owl")


class _Empty(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()

    def log_message(self, *text):
        pass


@contextlib.contextmanager
def other_site() -> Iterator[str]:
    """The address of an empty page."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Empty) as empty:
        thread = threading.Thread(target=empty.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"http://127.0.0.1:{empty.server_port}/"
        finally:
            empty.shutdown()
            thread.join()


def test_the_page_of_another_site_can_neither_save_nor_look(tmp_path, browser, monkeypatch):
    """Another port is another site, and the nearest one: this machine's."""
    refused, refusal = [], server._refusal
    monkeypatch.setattr(server, "_refusal", lambda *asked: refused.append(refusal(*asked)) or refused[-1])
    with served(review(), tmp_path) as address, other_site() as evil, contextlib.closing(browser.new_page()) as page:
        page.goto(evil)
        said = json.dumps({"index": 1, "action": "keep", "label": "cat", "reviewer": "eve"})
        for place in (address, address.replace("127.0.0.1", "localhost")):  # even if it knew the key
            target = place.replace("/?", "/decisions?")
            for mode in ("no-cors", "cors"):
                page.evaluate(
                    "async ([url, body, mode]) => { try { await fetch(url, {method: 'POST', mode, body}) } catch {} }",
                    [target, said, mode],
                )
        assert [answer.status for answer in refused] == [403] * 4 and standing(tmp_path) == {}
        seen = page.evaluate(
            "url => new Promise(done => { const image = new Image(); image.onload = () => done('seen');"
            " image.onerror = () => done('refused'); image.src = url; })",
            address.replace("/?", "/image/1?").partition("key")[0],
        )
        assert seen == "refused" and refused.pop().status == 403
        page.set_content(f"<iframe src='{address}'></iframe>")
        page.wait_for_timeout(300)
        assert page.frames[1].evaluate("document.querySelector('#keep')") is None  # framed pages are blocked


def test_hostile_names_are_text(tmp_path, visit):
    classes = (EVIL, "dog", "</script><b>")
    shown = dataclasses.replace(review(6, classes=classes), files=[EVIL, "\u202eevil", *"abcd"])
    made = decision(EVIL, "change", "dog", EVIL)
    decisions.append(tmp_path, made.model_copy(update={"given": EVIL}))
    with served(shown, tmp_path, EVIL) as address:
        page = visit(address)
        expect(page.locator("#reviewer")).to_have_value(EVIL)
        page.click("#entry-0")
        for place in ("#file", "#given", "#said", "#list", "#classes", "#keep", "#neighbours"):
            expect(page.locator(place)).to_contain_text("<img src=x")
        page.keyboard.press("/")
        expect(page.locator("#options")).to_contain_text("<img src=x")
        page.keyboard.press("Enter")
        expect(page.locator("#state")).to_have_text("saved")
        assert page.title().startswith("Review labels") and page.locator("img[src=x], b b").count() == 0
    assert standing(tmp_path)[EVIL] == ("keep", EVIL)
    page = visit(write(shown, tmp_path).as_uri(), name="eve")
    expect(page.locator("#file")).to_have_text(EVIL)
    assert page.title().startswith("Review labels") and page.locator("img[src=x]").count() == 0


def test_fifty_thousand_rows_scroll(tmp_path, visit):
    with served(review(50_000), tmp_path) as address:
        page = visit(address)
        expect(page.locator("#counts")).to_have_text("0 of 50,000 reviewed")
        expect(page.locator("#rank")).to_have_text("Rank 1 of 50,000")
        assert page.locator(".row").count() < 40
        page.evaluate("() => { const list = document.querySelector('#list'); list.scrollTop = list.scrollHeight; }")
        last = page.locator("#entry-49999")
        expect(last).to_contain_text("pets/49999.png")
        assert page.locator(".row").count() < 40
        last.click()
        expect(page.locator("#rank")).to_have_text("Rank 50,000 of 50,000")
        press(page, "c")
        expect(page.locator("#rank")).to_have_text("Rank 1 of 50,000")  # the first that is open
        page.fill("#by-file", "pets/4321")
        expect(page.locator("#counts")).to_have_text("0 of 11 reviewed in this choice, 50,000 in all")
        with page.expect_response(lambda response: response.request.method == "POST"):  # answered once it is saved
            page.evaluate("document.dispatchEvent(new KeyboardEvent('keydown', {key: 'c'}))")
    assert standing(tmp_path) == {"pets/49999.png": ("change", "owl"), "pets/4321.png": ("change", "owl")}


def test_images_are_grouped_by_given_and_proposed_class(tmp_path, visit):
    with served(review(10), tmp_path) as address:
        page = visit(address)
        page.focus("#order")
        page.select_option("#order", "pair")
        expect(page.locator(".pair b")).to_have_text(["cat → dog", "dog → owl", "owl → cat"])
        expect(page.locator(".pair small").first).to_have_text("4 images, 0 reviewed")
        expect(page.locator("#file")).to_have_text("pets/0.png")
        press(page, "ck")
        expect(page.locator("#file")).to_have_text("pets/6.png")  # the next of the same pair
        expect(page.locator(".pair small").first).to_have_text("4 images, 2 reviewed")
        page.select_option("#by-given", label="dog (3)")
        expect(page.locator(".pair b")).to_have_text(["dog → owl"])
        page.select_option("#by-given", label="any")
        page.select_option("#by-state", "reviewed")
        expect(page.locator(".row")).to_have_count(2)
        page.select_option("#by-state", "skipped")
        expect(page.locator("#list")).to_contain_text("No image fits these choices.")
        expect(page.locator("#image")).to_be_hidden()
        press(page, "cksu")  # nothing to decide on but an undo, which shows its image again
        expect(page.locator("#file")).to_have_text("pets/3.png")
    assert standing(tmp_path) == {"pets/0.png": ("change", "dog")}


def test_a_class_is_searched_for_among_many(tmp_path, visit):
    classes = tuple(f"kind {number}" for number in range(500)) + CLASSES
    with served(review(6, classes=classes), tmp_path) as address:
        page = visit(address)
        expect(page.locator("#classes")).to_be_hidden()
        press(page, "5")  # no digits with so many
        page.keyboard.press("/")
        expect(page.locator("#options")).to_contain_text("403 more")
        page.keyboard.type("OW")
        expect(page.locator(".option")).to_have_text(["owl"])
        page.keyboard.press("Enter")
        page.keyboard.press("/")
        page.keyboard.type("kind 49")
        page.keyboard.press("ArrowDown")
        page.keyboard.press("Enter")
        expect(page.locator("#state")).to_have_text("saved")
        page.keyboard.press("/")
        page.keyboard.type("c")  # decides nothing while a class is searched for
        page.keyboard.press("Escape")
    assert standing(tmp_path) == {"pets/0.png": ("change", "owl"), "pets/1.png": ("change", "kind 490")}


def test_keys_count_as_soon_as_a_class_is_chosen(tmp_path, visit):
    """Until the browser draws the next frame, the focus is still in the field that has been closed."""
    classes = tuple(f"kind {number}" for number in range(500)) + CLASSES
    with served(review(6, classes=classes), tmp_path) as address:
        page = visit(address)
        page.evaluate(
            """() => {
              for (const key of ["/", "Enter", "k", "/", "Escape"]) {
                const event = new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true });
                document.activeElement.dispatchEvent(event);
              }
            }"""
        )
        expect(page.locator("#choose")).to_be_visible()
        expect(page.locator("#state")).to_have_text("saved")
    assert standing(tmp_path) == {"pets/0.png": ("keep", "kind 0"), "pets/1.png": ("keep", "kind 1")}


def test_what_was_found_is_said_against_what_was_expected(tmp_path, visit):
    shown = dataclasses.replace(review(30), probability=np.full(30, 0.9))
    with served(shown, tmp_path) as address:
        page = visit(address)
        press(page, "k" * 20)
        expect(page.locator("#found")).to_contain_text(
            "Of 20 labels reviewed, 0 were wrong; 18.0 (15.4 to 20.0) were expected. That is fewer than expected"
        )
        page.click("#bins summary")
        expect(page.locator("#bins tbody td")).to_have_text(["80 to 100 %", "20", "18.0", "0"])


def test_images_without_a_label_or_a_picture(tmp_path, visit):
    """As `lnl label next` has them, and features."""
    none, proposed = np.full(4, -1), np.array([1, 2, -1, -1])
    shown = dataclasses.replace(review(4), given=none, proposed=proposed, images=None)
    with served(shown, tmp_path) as address:
        page = visit(address)
        expect(page.locator("#keep")).to_be_disabled()
        expect(page.locator("#picture")).to_have_text("no image: only features")
        expect(page.locator("#change")).to_contain_text("Label as dog")
        expect(page.locator("#doubt")).to_have_text("90 % likely to be right")
        press(page, "kc3")
        expect(page.locator("#change")).to_be_disabled()
        expect(page.locator("#found")).to_have_text("2 labelled, 0 skipped.")
        press(page, "c1")
        expect(page.locator("#state")).to_have_text("saved")
    assert standing(tmp_path) == {
        "pets/0.png": ("change", "dog"), "pets/1.png": ("change", "owl"), "pets/2.png": ("change", "cat"),
    }  # fmt: skip


OUTSIDE = """() => [...document.querySelectorAll("body *")]
  .filter(e => !e.closest("[hidden], dialog, script"))
  .filter(e => { const box = e.getBoundingClientRect(); return box.right > innerWidth + 1 || box.left < -1; })
  .map(e => e.outerHTML.slice(0, 80))"""


@pytest.mark.parametrize("width", [390, 1440])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_and_a_desk_and_can_be_read_in_light_and_dark(tmp_path, visit, width, scheme):
    long = "a-very-long-name-without-a-break-" * 6
    classes = (f"{long}cat", "dog", "owl")
    shown = dataclasses.replace(review(40, classes=classes), title=long, files=[f"{long}{n}.png" for n in range(40)])
    decisions.append(tmp_path, decision(f"{long}0.png", "change", "dog", long[:90]).model_copy(update={"given": None}))
    decisions.append(tmp_path, decision(f"{long}0.png", "change", "owl", "ada").model_copy(update={"given": None}))
    (tmp_path / decisions.FILE_NAME).open("a", encoding="utf-8").write(f'{{"file": "{long}\n')
    with served(shown, tmp_path) as address:
        page = visit(address, width, scheme)
        page.click("#entry-0")
        page.wait_for_function("[...document.images].every(image => image.complete)")
        found = page.evaluate(MEASURE)
        assert found["width"] <= found["screen"] == width and page.evaluate(OUTSIDE) == []
        assert found["faint"] == [] and (found["ground"] < 0.05) == (scheme == "dark")
        assert found["decoded"] == found["pictures"] > 2
        page.keyboard.press("/")
        assert page.evaluate("document.querySelector('#choose').getBoundingClientRect().right") <= width
