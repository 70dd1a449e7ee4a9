"""The report of simulated studies: complete, incomplete, empty, damaged; its tables; and the page in a real browser."""

import base64
import hashlib
import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from analysis import load, report, tables
from analysis.report import build
from tests import simulated


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A study with everything that can happen to it."""
    folder = tmp_path_factory.mktemp("results")
    simulation = simulated.Simulation(folder)
    plan = simulated.plan(panels=["frozen_head", "ratios"])
    plan["panels"]["ratios"] = {**plan["panels"]["ratios"], "curves": ["train/loss", "test/surprise"]}
    simulation.submit(plan)
    _not_run, broke, diverged, *others = plan["trials"]
    simulation.trial(**broke, status="failed", failure_class="oom", failure_message="out of memory")
    simulation.trial(**diverged, status="failed", failure_class="nan")
    simulation.run(others)
    simulation.trial("0123456789abcdef", "old_arm", {"labels": 100}, 0)
    return folder


@pytest.fixture(scope="module")
def page(root):
    return build(root, simulated.STUDY)


def text_of(page: Path) -> str:
    """What a reader sees, without tags, pictures and line breaks."""
    body = page.read_text().partition("</head>")[2]
    shown = html.unescape(re.sub(r"<[^>]*>", " ", body)).replace("\u00a0", " ")
    return re.sub(r"\s+", " ", shown)


def test_one_file_that_needs_nothing_else(page, root):
    assert page == root / "reports" / "robmix_ablation-digits" / "index.html"
    source = page.read_text()
    pictures = re.findall(r'<img src="data:image/png;base64,([^"]+)"', source)
    assert len(pictures) == source.count("<img") == 1 + 2 + 2  # contrasts; curves and arms; curves and levels
    assert all(base64.b64decode(picture).startswith(b"\x89PNG") for picture in pictures)
    assert not re.search(r"https?://|<script|<link|@import", source)


def test_figures_and_tables_lie_beside_it(page):
    names = {path.name for path in page.parent.iterdir()}
    figures = [
        "contrasts",
        "frozen_head-curves",
        "frozen_head-arms",
        "ratios-levels",
    ]
    assert {f"{name}.{kind}" for name in figures for kind in ("png", "pdf")} <= names
    assert {f"{name}.{kind}" for name in ("contrasts", "frozen_head", "ratios") for kind in ("md", "tex")} <= names
    assert all(path.stat().st_size > 0 for path in page.parent.iterdir())
    assert not [name for name in names if name.startswith(".")]  # no half-written file stays


def test_it_opens_with_the_question_and_says_what_is_there(page):
    text = text_of(page)
    assert "Which parts of two-headed RobMix matter when 40 % of few labels are wrong?" in text
    assert "4 arms in 4 settings with 4 replicates: 40 trials planned, 38 finished." in text
    assert "Diverged, and counted as chance accuracy: 1." in text
    assert "Missing: 1 not run, 1 oom." in text
    assert "Shown apart, at the end: 1 trial" in text
    assert text.index("Which parts") < text.index("40 trials planned") < text.index("frozen head against full")


def test_declared_contrasts_are_sentences_without_a_verdict(page, root):
    study = load(root, simulated.STUDY)
    row = study.contrasts().iloc[0]
    sentence = report.contrast_sentence(row)
    assert re.fullmatch(
        r"frozen head against full: [+−]\d+\.\d\d percentage points, 95 % interval [+−]\d+\.\d\d to [+−]\d+\.\d\d; "
        r"n = 2, paired by replicate\. Declared to matter from 0\.5 points\.",
        sentence,
    ), sentence
    assert sentence.partition(": ")[2] in text_of(page)
    undeclared = row.copy()
    undeclared["smallest_effect"] = 0.0
    assert report.contrast_sentence(undeclared).endswith("paired by replicate.")
    unpaired = row.copy()
    unpaired[["paired", "n_against", "reason"]] = [False, 3, "noise hashes differ or are absent"]
    assert "n = 2 and 3, unpaired: noise hashes differ" in report.contrast_sentence(unpaired)
    single = row.copy()
    single[["low", "high", "n"]] = [np.nan, np.nan, 1]
    assert "no interval: too few replicates that differ" in report.contrast_sentence(single)
    assert not re.search(
        r"\b(helps|hurts|equivalent|undecided|significant)\b", " ".join([sentence, *report.summary(study)])
    )


def test_every_panel_has_its_caption_table_and_command(page, root):
    text = text_of(page)
    for panel in ("No update of the self-supervised head", "Labelled and unlabelled images"):
        assert panel in text
    assert text.count("lnl report robmix_ablation --preset digits --selection last") == 3
    assert 'load("results", "robmix_ablation", "digits").plot("frozen_head", "last")' in text
    assert "No trial of this panel recorded test/surprise." in text


def test_missing_left_and_provenance(page):
    text = text_of(page)
    assert "full base 0 not run" in text and "full base 1 failed: oom" in text
    assert "old arm 100 labels 1 1" in text
    assert "3.11.9" in text and "0123456789ab" in text and "c0de (38 trials)" in text
    assert "symmetric 40 % 40 40.00 % 4" in text  # as realised, and how many draws


def test_the_same_rows_give_the_same_bytes(page, root, tmp_path):
    again = build(root, simulated.STUDY, out=tmp_path)
    first = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in page.parent.iterdir()}
    second = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in again.parent.iterdir()}
    assert first == second


def test_a_study_that_has_only_been_submitted(tmp_path):
    simulated.Simulation(tmp_path).submit(simulated.plan())
    text = text_of(build(tmp_path, simulated.STUDY))
    assert "148 trials planned, 0 finished. Missing: 148 not run." in text
    assert text.count("No trial of this panel has finished yet.") == 5
    assert "No contrast has finished replicates of both its arms yet." in text
    assert "no finished replicates of both arms in the base setting yet" in text


def test_no_contrasts_no_panels_one_replicate(tmp_path):
    plan = simulated.plan(1, panels=["frozen_head"], contrasts=[])
    simulation = simulated.Simulation(tmp_path)
    simulation.submit(plan)
    simulation.run(plan["trials"])
    text = text_of(build(tmp_path, simulated.STUDY))
    assert "No contrast is declared between arms of this preset." in text and "n = 1 replicate per arm" in text
    simulation.submit({**plan, "panels": {}}, hours=1)
    assert "3 trials planned, 3 finished." in text_of(build(tmp_path, simulated.STUDY))


def test_unreadable_files_are_on_the_page(tmp_path):
    plan = simulated.complete(tmp_path, panels=["frozen_head"])
    first, second = (entry["trial"] for entry in plan["trials"][:2])
    (tmp_path / f"trials/study=robmix_ablation/{first}-1.parquet").write_bytes(b"PAR1")
    (tmp_path / f"epochs/study=robmix_ablation/{second}-1.parquet").write_bytes(b"")
    with pytest.warns(UserWarning, match="Unreadable"):
        text = text_of(build(tmp_path, simulated.STUDY))
    assert "2 result files could not be read and are left out" in text
    assert f"trials/study=robmix_ablation/{first}-1.parquet" in text
    assert f"epochs/study=robmix_ablation/{second}-1.parquet" in text
    assert "Missing: 1 not run." in text


def test_the_oracle_is_marked_and_an_unknown_rule_refused(tmp_path):
    plan = simulated.complete(tmp_path, panels=["frozen_head"])
    alone = {**plan, "panels": {}, "contrasts": simulated.CONTRASTS}
    simulated.Simulation(tmp_path).submit(alone, hours=1)
    text = text_of(build(tmp_path, simulated.STUDY, selection="best_test"))
    assert "Oracle: accuracies are the best over all epochs" in text and "--selection best_test" in text
    assert "Left out: 2 declared contrasts of arms that this preset does not have." in text
    with pytest.raises(ValueError, match="Unknown selection rule"):
        build(tmp_path, simulated.STUDY, selection="best")


@pytest.mark.parametrize("count", [report.MOST_SENTENCES, report.MOST_SENTENCES + 1])
def test_many_contrasts_in_words_are_folded(tmp_path, count):
    contrasts = simulated.CONTRASTS[:1] * count
    simulated.Simulation(tmp_path).submit(simulated.plan(1, panels=["frozen_head"], contrasts=contrasts))
    text = text_of(build(tmp_path, simulated.STUDY))
    assert text.count("frozen head against full : no finished replicates") == count
    assert (f"The {count} declared contrasts in words" in text) == (count > report.MOST_SENTENCES)


def test_names_cannot_break_the_page(tmp_path):
    plan = simulated.plan(2, panels=["frozen_head"], question='Is <b>"a & b"</b> enough?')
    simulated.Simulation(tmp_path).submit(plan)
    source = build(tmp_path, simulated.STUDY).read_text()
    assert "Is &lt;b&gt;&#34;a &amp; b&#34;&lt;/b&gt; enough?" in source


def test_tables_hold_what_was_measured(root):
    study = load(root, simulated.STUDY)
    table = tables.of_panel(study, "ratios", "last")
    assert table.header[:4] == ["labelled : unlabelled", "arm", "n", "accuracy (%)"]
    panel = study.panel("ratios")
    five = panel[panel["unlabelled_ratio"] == 5].groupby("arm", observed=True)["accuracy_last"].mean()
    rows = {(row[0], row[1]): row for row in table.rows}
    assert rows["1 : 5", "full"][2:4] == ["4", f"{100 * five['full']:.2f}"]
    assert rows["1 : 5", "full"][5:] == ["reference", ""]
    assert rows["1 : 5", "mixmatch only"][6].startswith("yes, n = 4, ρ = ")
    assert "selection rule last" in table.caption and "Student's t" in table.caption


def test_markdown_and_latex_are_well_formed(root):
    table = tables.of_panel(load(root, simulated.STUDY), "ratios", "last")
    lines = [line for line in table.markdown().splitlines() if line.startswith("|")]
    assert len(lines) == 2 + len(table.rows) and {line.count("|") for line in lines} == {len(table.header) + 1}
    latex = table.latex("ratios")
    body = latex.partition(r"\midrule")[2].partition(r"\bottomrule")[0].strip().splitlines()
    assert len(body) == len(table.rows) and all(line.endswith(r"\\") for line in body)
    assert {line.count("&") for line in body} == {len(table.header) - 1}
    assert r"accuracy (\%)" in latex and "−" not in latex and "ρ" not in latex
    odd = tables.Table("50 % of a_b & c", ["x|y"], [["{1}", "\\"][:1]], table.frame)
    assert r"50 \% of a\_b \& c" in odd.latex("odd") and r"\{1\}" in odd.latex("odd")
    assert r"x\|y" in odd.markdown()


BROWSER = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)
QUIET = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()


MEASURE = """
const frame = document.querySelector("iframe");
frame.onload = () => {
  const page = frame.contentDocument, images = [...page.images];
  const free = [...page.querySelectorAll("body *")].filter(e => !e.closest(".scroll, .card, pre"));
  document.querySelector("pre").textContent = JSON.stringify({
    width: page.documentElement.scrollWidth,
    outside: free.filter(e => e.getBoundingClientRect().right > frame.clientWidth + 1).map(e => e.tagName),
    pictures: images.length,
    decoded: images.filter(image => image.complete && image.naturalWidth > 0).length,
  });
};
frame.srcdoc = SOURCE;
"""


IN_A_BROWSER = pytest.mark.skipif(BROWSER is None, reason="no Chromium here: the page is not looked at in a browser")


def assert_it_fits(page: Path, tmp_path: Path, width: int, pictures: int) -> None:
    """In a frame of that width: every picture is decoded, and nothing overflows but what scrolls in its own box."""
    source = json.dumps(page.read_text()).replace("</", "<\\/")
    frame = f'<iframe style="border: 0; width: {width}px; height: 900px"></iframe><pre></pre>'
    wrapper = tmp_path / "wrapper.html"
    script = MEASURE.replace("SOURCE", source)
    wrapper.write_text(f"<!doctype html><meta charset=utf-8><body>{frame}<script>{script}</script>")
    command = [BROWSER, *QUIET, f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=5000", "--dump-dom"]
    done = subprocess.run([*command, wrapper.as_uri()], capture_output=True, text=True, timeout=60, check=True)
    found = json.loads(html.unescape(re.search(r"<pre>(.*?)</pre><script>", done.stdout)[1]))
    assert found["width"] <= width and found["outside"] == []
    assert found["decoded"] == found["pictures"] == pictures


@IN_A_BROWSER
@pytest.mark.parametrize("width", [390, 1440])
def test_the_page_fits_a_phone_and_a_desk(page, tmp_path, width):
    assert_it_fits(page, tmp_path, width, pictures=5)


def test_what_methods_believe_has_its_own_section(tmp_path, page, monkeypatch):
    monkeypatch.setattr(
        "analysis.plots._tsne", lambda features: {epoch: points[:, :2] for epoch, points in features.items()}
    )
    assert "Inside the methods" not in text_of(page)  # nothing was recorded there
    simulation, plan = simulated.Simulation(tmp_path, epochs=2, inside=["full"]), simulated.plan(1, ["frozen_head"])
    simulation.submit(plan)
    simulation.run(plan["trials"])
    inside = build(tmp_path, simulated.STUDY)
    source = inside.read_text()
    assert '<a href="#inside">Inside the methods</a>' in source
    for kind in ("selection", "labels", "loss-full", "clean-full", "transition-full", "embeddings-full"):
        assert f'<figure id="inside-{kind}">' in source
        assert (inside.parent / f"inside-{kind}.pdf").stat().st_size > 0
    assert ".plot_inside()" in source and "inside.md" not in source
