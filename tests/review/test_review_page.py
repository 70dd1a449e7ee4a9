"""The review page as a file, without a browser: what stands in it, and that names cannot become anything but text."""

from __future__ import annotations

import dataclasses
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lnl.review import page, thumbnails
from lnl.review.page import Served, render, write
from lnl.review.thumbnails import Unreadable, thumbnail
from lnl.storage.objects import StorageError
from tests.review.reviews import EVIL, Squares, review


class Parts(HTMLParser):
    """The elements of a page, and the text of its scripts."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag == "script":
            self.scripts.append((dict(attrs), ""))

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1] == "script":
            attributes, text = self.scripts[-1]
            self.scripts[-1] = (attributes, text + data)


def settings(html: str) -> dict:
    return next(json.loads(text) for attributes, text in Parts(html).scripts if attributes.get("id") == "settings")


def rows(html: str) -> list[dict]:
    return [json.loads(text) for attributes, text in Parts(html).scripts if attributes.get("class") == "rows"]


def test_the_rows_stand_in_the_page():
    shown = dataclasses.replace(review(4), probability=np.array([0.91234, np.nan, 0.5, 0]))
    (chunk,) = rows(render(shown))
    assert chunk["index"] == [1, 3, 5, 7] and chunk["given"] == [0, 1, 2, 0] and chunk["proposed"] == [1, 2, 0, 1]
    assert chunk["probability"] == [0.9123, None, 0.5, 0]
    assert chunk["neighbours"][1] == [2, 4] and chunk["neighbour_labels"][1] == [1, 2]


def test_names_stay_text_whatever_they_are():
    end = "</script><script>alert(1)</script>"
    shown = dataclasses.replace(review(2, classes=(EVIL, end)), title=EVIL, facts=(EVIL,), files=[end, "\u2028\udce9"])
    html = render(shown, served=Served("key", EVIL))
    parts = Parts(html)
    assert "img" not in parts.tags and parts.tags.count("script") == 3  # settings, one chunk, the page's own
    assert rows(html)[0]["file"] == [end, "\u2028\\udce9"]  # what is not UTF-8 is shown as it can be
    assert settings(html)["classes"] == [EVIL, end] and settings(html)["server"] == {"key": "key", "reviewer": EVIL}


def test_nothing_external_is_asked_for_and_the_policy_lets_only_its_own_script_run():
    html = render(review(2))
    assert not re.findall(r"""(?:src|href)=["'](?!data:,)""", html) and "http" not in html.replace("http-equiv", "")
    policy = page.content_security_policy()
    assert "default-src 'none'" in policy and "unsafe" not in policy and policy in html.replace("&#39;", "'")


def test_a_page_holds_the_most_suspect_and_says_so(monkeypatch):
    monkeypatch.setattr(page, "MOST_ROWS", 7)
    monkeypatch.setattr(page, "CHUNK", 3)
    html = render(review(9))
    assert [len(chunk["index"]) for chunk in rows(html)] == [3, 3, 1]
    assert "The page holds the 7 most suspect of 9 images; the table has all." in html
    assert "most suspect of" not in render(review(7))


def test_images_of_an_array_get_pictures_of_the_first_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(page, "MOST_PICTURED", 3)
    told = []
    path = write(review(9), tmp_path, lambda done, of: told.append((done, of)))
    assert path == tmp_path / "index.html"
    html = path.read_text(encoding="utf-8")
    pictures = settings(html)["pictures"]
    assert sorted(map(int, pictures)) == [0, 1, 2, 4, 5, 6]  # rows 1, 3, 5 and their neighbours; 3 cannot be read
    assert all(Image.open(tmp_path / address).size == (32, 32) for address in pictures.values())
    assert f"pictures of the first {page.MOST_PICTURED} rows" in html and len(told) == 7


class Files(Squares):
    """Images that are files of a folder."""

    def __init__(self, folder: Path, suffix: str = ".PNG") -> None:
        self.folder, self.suffix = folder, suffix

    def path(self, index: int) -> Path:
        return self.folder / f"a #{index}%20?{self.suffix}"


def test_images_of_a_folder_are_linked_where_they_are(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    pictures = settings(write(review(2, images=Files(tmp_path / "in")), out).read_text(encoding="utf-8"))["pictures"]
    assert pictures["1"] == "../in/a%20%231%2520%3F.PNG" and not (out / "images").exists()


def test_files_that_browsers_do_not_show_get_pictures(tmp_path):
    html = write(review(2, images=Files(tmp_path, ".tif")), tmp_path).read_text(encoding="utf-8")
    assert settings(html)["pictures"]["1"] == "images/1.png" and (tmp_path / "images/1.png").exists()


def test_features_alone_have_no_pictures(tmp_path):
    html = write(dataclasses.replace(review(2), images=None), tmp_path).read_text(encoding="utf-8")
    assert settings(html)["has_images"] is False and "only features, no images" in html


def test_a_folder_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "images").write_text("in the way", encoding="utf-8")
    with pytest.raises(StorageError, match=r"Cannot write .*images"):
        write(review(2), tmp_path)


def test_columns_of_different_lengths_are_refused():
    with pytest.raises(ValueError, match="2 rows, but columns of \\[3\\]"):
        dataclasses.replace(review(2), files=["a", "b", "c"])


def test_another_list_has_another_identity():
    base = review(3)
    others = [
        dataclasses.replace(base, index=base.index + 1),
        dataclasses.replace(base, files=["x", *base.files[1:]]),
        dataclasses.replace(base, class_names=("cat", "dog", "cow")),
        dataclasses.replace(base, given=base.given[::-1]),
    ]
    assert len({base.identity, *(other.identity for other in others)}) == 5
    assert dataclasses.replace(base, probability=base.probability / 2).identity == base.identity


class Given(Squares):
    """One image, as it is given."""

    def __init__(self, image: Image.Image) -> None:
        self.image = image

    def open(self, index: int) -> Image.Image:
        return self.image


@pytest.mark.parametrize(
    "mode, size, suffix, shown",
    [
        ("RGB", (32, 20), "png", (32, 20)),
        ("L", (128, 128), "png", (128, 128)),
        ("RGBA", (40, 40), "png", (40, 40)),
        ("P", (40, 40), "png", (40, 40)),
        ("RGB", (2000, 1000), "jpeg", (512, 256)),
    ],
)
def test_a_thumbnail_is_small_and_opaque(tmp_path, mode, size, suffix, shown):
    made = thumbnail(Given(Image.new(mode, size)), 0)
    (tmp_path / "made").write_bytes(made.content)
    image = Image.open(tmp_path / "made")
    assert (made.suffix, image.size, image.format) == (suffix, shown, suffix.upper()) and image.mode in ("L", "RGB")


def test_a_transparent_image_lies_on_white(tmp_path):
    (tmp_path / "made").write_bytes(thumbnail(Given(Image.new("RGBA", (4, 4), (0, 0, 0, 0))), 0).content)
    assert Image.open(tmp_path / "made").getpixel((0, 0)) == (255, 255, 255)


def test_an_image_that_cannot_be_read_is_told():
    with pytest.raises(Unreadable, match="image 3 cannot be read \\(broken\\)"):
        thumbnail(Squares(), 3)
    assert thumbnails.LARGEST_LOSSLESS < thumbnails.LARGEST
