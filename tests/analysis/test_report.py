"""The report of simulated studies: complete, incomplete, empty, damaged."""

import base64
import hashlib
import html
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from analysis import load, papers, statistics
from analysis.measures import ACCURACY
from analysis.report.build import MANIFEST, build
from analysis.report.page import MOST_OPEN_SENTENCES, Report
from analysis.report.sections import papers_section
from analysis.report.sentences import papers_sentence, rules_sentences, verdict_counts, verdict_in_words
from analysis.tables.table import Table
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
    body = page.read_text(encoding="utf-8").partition("</head>")[2]
    shown = html.unescape(re.sub(r"<[^>]*>", " ", body)).replace("\u00a0", " ")
    return re.sub(r"\s+", " ", shown)


@pytest.mark.slow
def test_one_file_that_needs_nothing_else(page, root):
    assert page == root / "reports" / "robmix_ablation-digits" / "index.html"
    source = page.read_text(encoding="utf-8")
    pictures = re.findall(r'<img src="data:image/png;base64,([^"]+)"', source)
    assert len(pictures) == source.count("<img") == 1 + 2 + 2 + 3 + 1 + 2  # contrasts, two panels, across, rules, cost
    assert all(base64.b64decode(picture).startswith(b"\x89PNG") for picture in pictures)
    assert not re.search(r"https?://|<script|<link|@import", source)


@pytest.mark.slow
def test_figures_and_tables_lie_beside_it(page):
    names = {path.name for path in page.parent.iterdir()}
    figures = [
        "contrasts",
        "cost",
        "frozen_head-curves",
        "frozen_head-arms",
        "ratios-levels",
    ]
    assert {f"{name}.png" for name in figures} <= names and not [name for name in names if name.endswith(".pdf")]
    assert {f"{name}.{kind}" for name in ("contrasts", "frozen_head", "ratios") for kind in ("md", "tex")} <= names
    assert all(path.stat().st_size > 0 for path in page.parent.iterdir())
    assert not [name for name in names if name.startswith(".")]  # no half-written file stays


@pytest.mark.slow
def test_it_opens_with_the_question_and_says_what_is_there(page):
    text = text_of(page)
    assert "Which parts of two-headed RobMix matter when 40 % of few labels are wrong?" in text
    assert "4 arms in 4 settings with 4 replicates: 40 trials planned, 38 finished." in text
    assert "Diverged, and counted as chance accuracy: 1." in text
    assert "Missing: 1 not run, 1 oom." in text
    assert "Shown apart, at the end: 1 trial" in text


def row(**changes: Any) -> dict[str, Any]:
    """A contrast as `Results.contrasts` has it, decided."""
    numbers = {"difference": 0.012, "low": 0.004, "high": 0.02, "p_holm": 0.0041, "p_equivalence_holm": 0.9}
    about = {"arm": "frozen_head", "against": "full", "direction": "any", "smallest_effect": 0.005, "metric": ACCURACY}
    pairs = {"n": 8, "n_against": 8, "paired": True, "reason": "hashes agree"}
    rest = {"why": "", "diverged": 0, "diverged_against": 0, **dict.fromkeys(("more", "look", "looked"), np.nan)}
    return {**about, **numbers, **pairs, "verdict": "helps", **rest, **changes}


UNDECIDED = {"verdict": "undecided", "p_holm": 0.2, "more": 6.0}
NO_VERDICT = {**UNDECIDED, "verdict": "no verdict"}
LOOKS = [4, 6, 8, 10]


@pytest.mark.parametrize(
    ("changes", "looks", "word", "said", "numbers"),
    [
        (
            {},
            [],
            "helps",
            "frozen head helps compared with full",
            "+1.20 points [+0.40, +2.00], n = 8 pairs (p = 0.004 after Holm over 5 contrasts); "
            "declared to matter from 0.5 points.",
        ),
        (
            {"verdict": "hurts", "difference": -0.2, "low": -0.3, "high": -0.1, "p_holm": 1e-5, "smallest_effect": 0.0}
            | {"direction": "hurts"},
            [],
            "hurts",
            "frozen head hurts compared with full",
            "−20.00 points [−30.00, −10.00], n = 8 pairs (p < 0.001 after Holm over 5 contrasts); as declared.",
        ),
        (
            {"direction": "hurts", "look": 6.0, "looked": 6.0},
            LOOKS,
            "helps",
            "frozen head helps compared with full",
            "+1.20 points [+0.40, +2.00], n = 8 pairs (p = 0.004 after Holm over 5 contrasts); decided at the look "
            "after 6 replicates (looks at 4, 6, 8, 10); declared to matter from 0.5 points; "
            "against the declared direction.",
        ),
        (
            UNDECIDED | {"direction": "helps", "looked": 4.0},
            LOOKS,
            "undecided",
            "frozen head against full is undecided",
            "+1.20 points [+0.40, +2.00], n = 8 pairs (p = 0.200 after Holm over 5 contrasts); about 6 more replicates "
            "would decide it; looked after 4 replicates (looks at 4, 6, 8, 10); declared to matter from 0.5 points; "
            "declared: helps.",
        ),
        (
            UNDECIDED | {"more": np.nan, "diverged": 1, "diverged_against": 2, "smallest_effect": 0.01},
            LOOKS,
            "undecided",
            "frozen head against full is undecided",
            "+1.20 points [+0.40, +2.00], n = 8 pairs (p = 0.200 after Holm over 5 contrasts); no look yet (looks at "
            "4, 6, 8, 10); 1 trial of frozen head diverged and counts as chance; 2 trials of full diverged and count "
            "as chance; declared to matter from 1 point.",
        ),
        (
            UNDECIDED | {"more": np.inf, "smallest_effect": 0.0}
            | {"paired": False, "n_against": 7, "reason": "no hashes"},
            [],
            "undecided",
            "frozen head against full is undecided",
            "+1.20 points [+0.40, +2.00], n = 8 and 7, unpaired: no hashes (p = 0.200 after Holm over 5 contrasts); "
            "not even 1,000 more replicates would decide it.",
        ),
        (
            {"verdict": "equivalent", "p_equivalence_holm": 0.01},
            [],
            "equivalent",
            "frozen head is equivalent to full",
            "+1.20 points [+0.40, +2.00], n = 8 pairs (p = 0.010 against a difference that matters, after "
            "Holm over 5 contrasts); declared to matter from 0.5 points.",
        ),
        (
            NO_VERDICT | {"why": "1 replicate is too few: a verdict needs 4", "n": 1, "smallest_effect": 0.0}
            | {"low": np.nan, "high": np.nan, "p_holm": np.nan},
            LOOKS,
            "no verdict",
            "no verdict on frozen head against full",
            "+1.20 points, no interval, n = 1 pair; 1 replicate is too few: a verdict needs 4.",
        ),
        (
            NO_VERDICT | {"why": "no finished replicates", "difference": np.nan, "smallest_effect": 0.0},
            [],
            "no verdict",
            "no verdict on frozen head against full",
            "no finished replicates.",
        ),
    ],
)  # fmt: skip
def test_verdicts_in_plain_words(changes, looks, word, said, numbers):
    assert verdict_in_words(row(**changes), 5, looks) == (word, said, numbers, "")


def test_one_contrast_alone_is_no_family():
    assert "(p = 0.004);" in verdict_in_words(row(), 1).numbers


def test_the_count_of_verdicts():
    rows = [row(), row(**UNDECIDED), row(**UNDECIDED), row(verdict="hurts"), row(verdict="hurts")]
    rows += [
        row(verdict="equivalent"),
        row(**NO_VERDICT, why="3 replicates are too few: a verdict needs 4"),
    ]
    counted = verdict_counts(pd.DataFrame(rows))
    assert counted == "Of 7 declared contrasts: 1 helps, 2 hurt, 1 equivalent, 2 undecided, 1 without a verdict."
    assert verdict_counts(pd.DataFrame(rows[:1])) == "Of 1 declared contrast: 1 helps."
    assert verdict_counts(pd.DataFrame()) == ""


@pytest.mark.slow
def test_the_page_opens_with_the_verdicts_of_the_study(page, root):
    contrasts = load(root, simulated.STUDY).contrasts("last")
    text = text_of(page)
    assert text.index("Which parts") < text.index("Of 3 declared contrasts") < text.index("Label noise as realised")
    for each in statistics.records(contrasts):
        word, said, numbers, _ = verdict_in_words(each, len(contrasts))
        assert f"{word} {said} {numbers}" in text
    source = page.read_text(encoding="utf-8")
    assert source.index("Of 3 declared") < source.index('<figure id="contrasts">') < source.index("trials planned")


@pytest.mark.slow
def test_every_figure_names_its_rows_and_what_draws_it_again(page, root):
    """The Python under a figure, run as it stands, draws the rows that lie beside the page."""
    source = page.read_text(encoding="utf-8")
    figures = re.findall(r'<figure id="([^"]+)">(.*?)</figure>', source, re.DOTALL)
    assert len(figures) == source.count("<img") == 11
    for stem, body in figures:
        assert f"lnl report robmix_ablation --preset digits --selection last --storage {root}" in body
        rows = int(re.search(r"Draws (\d+) rows?: <a href=\"([^\"]+)\"", body)[1])
        imports, code = html.unescape(re.search(r"<code>(from analysis.*?)</code>", body, re.DOTALL)[1]).split("\n")
        names: dict[str, Any] = {}
        exec(imports, names)
        plot = eval(code, names)
        assert len(plot.drawn) == rows
        with (page.parent / f"{stem}.csv").open() as file:
            written = pd.read_csv(file, keep_default_na=False, na_values=[""])
        assert written.columns.tolist() == plot.drawn.columns.tolist()
        numbers = plot.drawn.select_dtypes("number").columns
        np.testing.assert_allclose(written[numbers].astype(float), plot.drawn[numbers].astype(float), rtol=1e-9)


@pytest.mark.slow
def test_every_file_that_the_page_links_to_lies_beside_it(page):
    linked = set(re.findall(r'href="([^"#]+)"', page.read_text(encoding="utf-8")))
    assert linked == {path.name for path in page.parent.iterdir()} - {"index.html", MANIFEST}


@pytest.mark.parametrize(
    ("ahead", "epochs", "said"),
    [
        ([0.014, 0.002, np.nan], 300, ["above its last epoch by 0.2 to 1.4 points on average, by arm."]),
        ([0.014], 300, ["above its last epoch by 1.4 points on average."]),
        ([0.014], 10, ["last epoch by 1.4 points on average.", "last10 averages all of them, the first ones too."]),
        ([np.nan], 11, []),
    ],
)
def test_what_the_choice_of_epoch_changes_in_words(ahead, epochs, said):
    found = list(rules_sentences(pd.DataFrame({"epochs": [2, epochs]}), pd.DataFrame({"ahead_of_last": ahead})))
    assert len(found) == len(said) and all(sentence.endswith(end) for sentence, end in zip(found, said, strict=True))


@pytest.mark.parametrize(
    ("comparable", "said"),
    [
        ([False, False], "Nothing to compare: of the 2 reported numbers nearest"),
        ([True, False], "Of the 2 reported numbers nearest to what was measured here, 1 comes from the same protocol."),
        ([True, True], "Of the 2 reported numbers nearest to what was measured here, 2 come from the same protocol."),
    ],
)
def test_whether_papers_can_be_compared_is_said_first(comparable, said):
    found = pd.DataFrame({"entry": [4, 7, None], "comparable": [*comparable, False]})  # the last: no paper has it
    assert papers_sentence(found).startswith(said)


@pytest.mark.parametrize(("dataset", "sections"), [("digits", 0), ("folder:pets", 0), ("cifar10", 1)])
def test_papers_stand_beside_data_that_they_use(tmp_path, monkeypatch, dataset, sections):
    rows = pd.DataFrame({"entry": [4], "comparable": [False], "paper": [None]})
    monkeypatch.setattr(papers, "table", lambda *_: Table("beside", ["arm"], [["full"]], rows))
    study = SimpleNamespace(trials=pd.DataFrame({"dataset": [dataset]}))
    assert len(list(papers_section(Report(study, "last", tmp_path)))) == sections


@pytest.mark.slow
def test_tables_as_papers_have_them_are_folded(page):
    source = page.read_text(encoding="utf-8")
    for stem, heading in (("ratios-levels", "As tables of papers have it"), ("ratios", None)):
        before = source[: source.index(f'href="{stem}.md"')]
        folded = before.rindex("<details>") > before.rindex("</details>")
        assert folded == (heading is not None)
        assert heading is None or before[before.rindex("<summary>") :].startswith(f"<summary>{heading}</summary>")


@pytest.mark.slow
def test_the_choice_of_epoch_has_its_section(page):
    text = text_of(page)
    assert "last10 averages all of them" in text  # of five epochs
    assert "What the choice of epoch changes" in text and "best_test, an oracle (%)" in text
    assert "oracle ahead of last (points)" in text and "val_selected" not in text  # no trial had a validation set


@pytest.mark.slow
def test_every_panel_has_its_caption_table_and_command(page, root):
    text = text_of(page)
    for panel in ("No update of the self-supervised head", "Labelled and unlabelled images"):
        assert panel in text
    assert f'load("{root}", "robmix_ablation", "digits").plot("frozen_head", "last")["arms"]' in text
    assert "No trial of this panel recorded test/surprise." in text


@pytest.mark.slow
def test_missing_left_and_provenance(page):
    text = text_of(page)
    assert "full base 0 not run" in text and "full base 1 failed: oom" in text
    assert "old arm 100 labels 1 1" in text
    assert "3.11.9" in text and "0123456789ab" in text and "c0de (38 trials)" in text
    assert "symmetric 40 % 40 40.00 % 4" in text  # as realised, and how many draws


@pytest.mark.slow
def test_the_same_rows_give_the_same_bytes(page, root, tmp_path):
    again = build(root, simulated.STUDY, output=tmp_path)
    first = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in page.parent.iterdir()}
    second = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in again.parent.iterdir()}
    assert first == second


@pytest.mark.slow
def test_a_study_that_has_only_been_submitted(tmp_path):
    simulated.Simulation(tmp_path).submit(simulated.plan())
    text = text_of(build(tmp_path, simulated.STUDY))
    assert "148 trials planned, 0 finished. Missing: 148 not run." in text
    assert text.count("No trial of this panel has finished yet.") == 5
    assert "No contrast has finished replicates of both its arms yet." in text
    assert "no finished replicates of both arms in the base setting" in text


@pytest.mark.slow
def test_no_contrasts_no_panels_one_replicate(tmp_path):
    plan = simulated.plan(1, panels=["frozen_head"], contrasts=[])
    simulation = simulated.Simulation(tmp_path)
    simulation.submit(plan)
    simulation.run(plan["trials"])
    text = text_of(build(tmp_path, simulated.STUDY))
    assert "No contrast is declared between arms of this preset." in text and "n = 1 replicate per arm" in text
    simulation.submit({**plan, "panels": {}}, hours=1)
    assert "3 trials planned, 3 finished." in text_of(build(tmp_path, simulated.STUDY))


@pytest.mark.slow
def test_unreadable_files_are_on_the_page(tmp_path):
    plan = simulated.complete(tmp_path, panels=["frozen_head"])
    first, second = (entry["trial"] for entry in plan["trials"][:2])
    (tmp_path / f"trials/study=robmix_ablation/{first}-1.parquet").write_bytes(b"PAR1")
    (tmp_path / f"epochs/study=robmix_ablation/{second}-1.parquet").write_bytes(b"")
    with pytest.warns(UserWarning, match="Unreadable"):
        text = text_of(build(tmp_path, simulated.STUDY))
    assert "2 result files are left out" in text
    assert f"trials/study=robmix_ablation/{first}-1.parquet" in text
    assert f"epochs/study=robmix_ablation/{second}-1.parquet" in text
    assert "Missing: 1 not run." in text


@pytest.mark.slow
def test_the_oracle_is_marked_and_an_unknown_rule_refused(tmp_path):
    plan = simulated.complete(tmp_path, panels=["frozen_head"])
    alone = {**plan, "panels": {}, "contrasts": simulated.CONTRASTS}
    simulated.Simulation(tmp_path).submit(alone, hours=1)
    text = text_of(build(tmp_path, simulated.STUDY, selection="best_test"))
    assert "Oracle: accuracies are the best over all epochs" in text and "--selection best_test" in text
    assert "Left out: 2 declared contrasts of arms that this preset does not have." in text
    with pytest.raises(ValueError, match="Unknown selection rule"):
        build(tmp_path, simulated.STUDY, selection="best")


@pytest.mark.slow
@pytest.mark.parametrize("count", [MOST_OPEN_SENTENCES, MOST_OPEN_SENTENCES + 1])
def test_many_contrasts_in_words_are_folded(tmp_path, count):
    contrasts = simulated.CONTRASTS[:1] * count
    simulated.Simulation(tmp_path).submit(simulated.plan(1, panels=["frozen_head"], contrasts=contrasts))
    text = text_of(build(tmp_path, simulated.STUDY))
    assert text.count("no verdict on frozen head against full no finished replicates") == count
    assert (f"The {count} verdicts in words" in text) == (count > MOST_OPEN_SENTENCES)


def test_names_cannot_break_the_page(tmp_path):
    plan = simulated.plan(2, panels=["frozen_head"], question='Is <b>"a & b"</b> enough?')
    simulated.Simulation(tmp_path).submit(plan)
    source = build(tmp_path, simulated.STUDY).read_text(encoding="utf-8")
    assert "Is &lt;b&gt;&#34;a &amp; b&#34;&lt;/b&gt; enough?" in source


@pytest.mark.slow
def test_what_methods_believe_has_its_own_section(tmp_path, page, monkeypatch):
    monkeypatch.setattr(
        "analysis.figures.inside._tsne", lambda features: {epoch: points[:, :2] for epoch, points in features.items()}
    )
    assert "Inside the methods" not in text_of(page)  # nothing was recorded there
    simulation, plan = simulated.Simulation(tmp_path, epochs=2, inside=["full"]), simulated.plan(1, ["frozen_head"])
    simulation.submit(plan)
    simulation.run(plan["trials"])
    inside = build(tmp_path, simulated.STUDY)
    source = inside.read_text(encoding="utf-8")
    assert '<a href="#inside">Inside the methods</a>' in source
    for kind in ("selection", "labels", "loss-full", "clean-full", "transition-full", "embeddings-full"):
        assert f'<figure id="inside-{kind}">' in source
        assert (inside.parent / f"inside-{kind}.png").stat().st_size > 0
    assert ".plot_inside()" in source and "inside.md" not in source

    monkeypatch.setattr("analysis.figures.inside.MOST_ARMS_TOGETHER", 0)  # as for a study of many arms
    source = build(tmp_path, simulated.STUDY).read_text(encoding="utf-8")
    assert '<figure id="inside-clean-arms">' in source and '<figure id="inside-loss-arms">' in source
    assert '<figure id="inside-clean-full">' not in source and '<figure id="inside-transition-full">' in source
