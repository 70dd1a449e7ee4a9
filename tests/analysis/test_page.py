"""The page in a real headless browser: on a phone and a desk, in light and dark, without a network."""

import shutil
from pathlib import Path
from typing import Any, Literal

import pytest
from playwright.sync_api import sync_playwright

from analysis.report.build import build
from tests import simulated

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
IN_A_BROWSER = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: the page is not looked at in a browser")
QUIET = ("--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync")
MEASURE = """() => {
  document.querySelectorAll("details").forEach(e => e.open = true);
  const root = document.documentElement, images = [...document.images];
  const free = [...document.querySelectorAll("body *")].filter(e => !e.closest(".scroll, .card, pre"));
  const numbers = colour => colour.match(/[\\d.]+/g).map(Number);
  const light = colour => numbers(colour).slice(0, 3).map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = e => {
    const colour = getComputedStyle(e).backgroundColor;
    return numbers(colour)[3] === 0 && e.parentElement ? ground(e.parentElement) : colour;
  };
  const texts = [...document.querySelectorAll("body *")]
    .filter(e => [...e.childNodes].some(node => node.nodeType === 3 && node.data.trim()));
  const contrast = e => {
    const [a, b] = [light(getComputedStyle(e).color), light(ground(e))].sort((x, y) => y - x);
    return (a + 0.05) / (b + 0.05);
  };
  return {
    width: root.scrollWidth, screen: root.clientWidth,
    outside: free.filter(e => e.getBoundingClientRect().right > root.clientWidth + 1).map(e => e.tagName),
    pictures: images.length,
    decoded: images.filter(image => image.complete && image.naturalWidth > 0).length,
    cards: [...new Set([...document.querySelectorAll(".card:has(img)")].map(e => JSON.stringify(
      [getComputedStyle(e).backgroundColor, getComputedStyle(e.querySelector("img")).filter])))].map(JSON.parse),
    hints: [...document.querySelectorAll("figure:has(img):has(figcaption)")].map(e => [
      e.querySelector("img").width > e.clientWidth,
      getComputedStyle(e.querySelector("figcaption"), "::before").content.includes("scrolls")]),
    ground: light(getComputedStyle(document.body).backgroundColor),
    faint: texts.filter(e => contrast(e) < 4.5).map(e => e.outerHTML.slice(0, 80)),
  };
}"""  # contrast: WCAG 2.1, whose level AA asks for 4.5


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("results")
    simulated.complete(root, panels=["frozen_head"])
    return build(root, simulated.STUDY)


def look(page: Path, width: int, scheme: Literal["light", "dark"] = "light") -> dict[str, Any]:
    """What `MEASURE` finds on a screen of that width, with what the console said and what was asked of a network."""
    said: list[str] = []
    asked: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(QUIET))
        tab = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True)
        tab.on("console", lambda message: said.append(message.text))
        tab.on("pageerror", lambda error: said.append(str(error)))
        tab.on("request", lambda request: asked.append(request.url))
        tab.goto(page.as_uri())
        tab.wait_for_function("[...document.images].every(image => image.complete)")
        found = dict(tab.evaluate(MEASURE))
        browser.close()
    beyond = [url for url in asked if not url.startswith("data:") and url != page.as_uri()]
    return {**found, "said": said, "beyond": beyond}


def assert_it_fits(page: Path, width: int) -> None:
    """Every picture is decoded, nothing overflows but what scrolls in its own box, and nothing else is asked for."""
    found = look(page, width)
    assert found["width"] <= found["screen"] == width and found["outside"] == []
    assert found["decoded"] == found["pictures"] == page.read_text(encoding="utf-8").count("<img") > 0
    assert found["said"] == [] and found["beyond"] == []


@pytest.mark.slow
@IN_A_BROWSER
@pytest.mark.parametrize("width", [390, 1440])
def test_the_page_fits_a_phone_and_a_desk(page, width):
    assert_it_fits(page, width)
    hints = look(page, width)["hints"]
    assert all(scrolls == told for scrolls, told in hints) and any(told for _, told in hints) == (width == 390)


@pytest.mark.slow
@IN_A_BROWSER
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_can_be_read_in_light_and_dark(page, scheme):
    found = look(page, 1440, scheme)
    assert found["faint"] == []
    assert (found["ground"] < 0.05) == (scheme == "dark")  # it follows the reader's choice
    cards = {"light": ("rgb(255, 255, 255)", "none"), "dark": ("rgb(22, 22, 22)", "invert(0.914) hue-rotate(180deg)")}
    assert found["cards"] == [list(cards[scheme])]  # figures are drawn on white, and inverted on a dark page


@pytest.mark.slow
@IN_A_BROWSER
def test_a_page_without_results_fits_too(tmp_path):
    simulated.Simulation(tmp_path).submit(simulated.plan(question="Is this-very-long-" + "word-" * 40 + "too long?"))
    page = build(tmp_path, simulated.STUDY)
    found = look(page, 390)
    assert found["width"] <= 390 and found["outside"] == [] and found["pictures"] == 0 and found["said"] == []


@pytest.mark.slow
@IN_A_BROWSER
def test_what_is_wrong_is_seen(tmp_path):
    """The measures see a page that overflows, a picture that is none, faint text, an error and a request."""
    bad = tmp_path / "bad.html"
    bad.write_text(
        "<!doctype html><body style='background: #fff'><p style='width: 900px; color: #ccc'>faint</p>"
        "<img src='data:image/png;base64,AAAA'><img src='http://example.org/x.png'><script>nothing()</script>",
        encoding="utf-8",
    )
    found = look(bad, 390)
    assert found["width"] == 908 and "P" in found["outside"] and found["decoded"] == 0 and found["pictures"] == 2
    assert len(found["faint"]) == 1 and found["beyond"] == ["http://example.org/x.png"]
    assert any("nothing is not defined" in text for text in found["said"])
