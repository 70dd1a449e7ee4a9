"""Tables: what they hold, that they never mix selection rules, and that GitHub and a real LaTeX read them."""

import re
import shutil
import subprocess

import numpy as np
import pandas as pd
import pytest
from markdown_it import MarkdownIt

from analysis import load, statistics
from analysis.figures.contrasts import contrasts_figure
from analysis.tables.study import contrasts_table, panel_table, rules_table
from analysis.tables.table import TEX_CHARACTERS, Table, interval
from analysis.words import difference_interval, readable
from tests import simulated


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Six replicates; two arms have a validation set, one with noisy and one with clean labels."""
    root = tmp_path_factory.mktemp("results")
    simulation, plan = simulated.Simulation(root), simulated.plan(6, ["frozen_head", "ratios", "noise_and_labels"])
    simulation.submit(plan)
    held = {"frozen_head": "noisy", "stopped_gradient": "clean"}
    for entry in plan["trials"]:
        known = {"validation_labels": held[entry["arm"]]} if entry["arm"] in held and not entry["setting"] else {}
        simulation.trial(**entry, **known, **({"accuracy_val_selected": 0.5} if known else {}))
    return load(root, simulated.STUDY)


@pytest.fixture(scope="module")
def all_tables(study):
    of_panels = {name: panel_table(study, name, "last") for name in study.plan.panels}
    return {"contrasts": contrasts_table(study, "last"), "rules": rules_table(study), **of_panels}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("low", "high", "of_accuracy", "of_difference"),
    [
        (0.25, 0.5, "[25.00, 50.00]", "[+25.00, +50.00]"),
        (-0.125, 0.5, "[0.00, 50.00]", "[−12.50, +50.00]"),
        (0.5, 1.125, "[50.00, 100.00]", "[+50.00, +112.50]"),
        (-1.44, 1.7, "[too few replicates]", "[too few replicates]"),
        (np.nan, np.nan, "", ""),
    ],
)
def test_an_interval_is_cut_where_no_accuracy_is_or_left_out(low, high, of_accuracy, of_difference):
    assert interval(low, high) == of_accuracy and difference_interval(low, high) == of_difference


def test_a_panel_holds_what_was_measured(study, all_tables):
    table = all_tables["ratios"]
    assert table.header[:4] == ["labelled : unlabelled", "arm", "n", "accuracy (%)"]
    panel = study.panel("ratios")
    five = panel[panel["unlabelled_ratio"] == 5].groupby("arm", observed=True)["accuracy_last"].mean()
    rows = {(row[0], row[1]): row for row in table.rows}
    assert rows["1 : 5", "full"][2:4] == ["6", f"{100 * five['full']:.2f}"]
    assert rows["1 : 5", "full"][5:] == ["reference", ""]
    assert rows["1 : 5", "mixmatch only"][6].startswith("yes, n = 6, ρ = ")
    assert "selection rule last" in table.caption and "Student's t" in table.caption


def test_contrasts_have_their_verdicts(study, all_tables):
    table, contrasts = all_tables["contrasts"], study.contrasts("last")
    assert [row[table.header.index("verdict")] for row in table.rows] == contrasts["verdict"].tolist()
    p = table.header.index("p")
    assert [row[p] for row in table.rows] == [f"{v:.3f}" if v >= 0.001 else "< 0.001" for v in contrasts["p_holm"]]
    more = [row[table.header.index("more replicates")] for row in table.rows]
    assert [text == "" for text in more] == contrasts["more"].isna().tolist()
    assert "Holm over 3 contrasts" in table.caption


def test_every_rule_beside_the_others_and_how_far_the_oracle_is_ahead(study):
    base = study.trials[study.trials["setting"].map(len) == 0]
    table = rules_table(study)
    assert [row[0] for row in table.rows] == [readable(arm) for arm in study.plan.arms]
    frame = table.frame.set_index("arm")
    for arm, trials in base.groupby("arm"):
        last, best = trials["accuracy_last"], trials["accuracy_best_test"]
        assert frame.loc[arm, "last"] == pytest.approx(last.mean())
        assert frame.loc[arm, "ahead_of_last"] == pytest.approx((best - last).mean())
        assert frame.loc[arm, "ahead_of_last_most"] == pytest.approx((best - last).max())
    assert frame.loc["frozen_head", "val_selected"] == 0.5 and np.isnan(frame.loc["full", "val_selected"])
    oracle = base.loc[base["arm"] == "frozen_head", "accuracy_best_test"]
    assert frame.loc["frozen_head", "ahead_of_val_selected_most"] == pytest.approx(oracle.max() - 0.5)
    labels = table.header.index("its validation labels")
    said = {row[0]: row[labels] for row in table.rows}
    assert said["frozen head"] == "noisy" and said["stopped gradient"] == "clean" and said["full"] == ""
    assert "best_test, an oracle (%)" in table.header and "oracle: the epoch is chosen" in table.caption


def test_a_diverged_trial_is_chance_under_every_rule(tmp_path):
    simulation, plan = simulated.Simulation(tmp_path), simulated.plan(1, ["frozen_head"])
    simulation.submit(plan)
    simulation.run(plan["trials"], status="failed", failure_class="nan")
    diverged = load(tmp_path, simulated.STUDY)
    table = rules_table(diverged)
    assert (table.frame[list(statistics.SELECTION_RULES)] == 0.1).all(axis=None) and (
        table.frame["ahead_of_last"] == 0
    ).all()
    assert "3 diverged trials counted as chance under every rule" in table.caption
    contrasts = contrasts_table(diverged, "last")  # of one replicate each: no verdict, and nothing to extrapolate
    assert {(row[2], row[-1]) for row in contrasts.rows} == {("no verdict", "")}


def test_no_table_and_no_forest_mixes_selection_rules(study):
    mixed = pd.concat([study.contrasts("last"), study.contrasts("best_test")], ignore_index=True)
    for make in (lambda: Table("", ["a"], [["1"]], mixed), lambda: contrasts_figure(mixed)):
        with pytest.raises(ValueError, match="one selection rule; these rows come from best_test and last: make one"):
            make()
    assert {
        *panel_table(study, "ratios", "last10").frame["selection"],
        *contrasts_table(study, "last10").frame["selection"],
    } == {"last10"}
    assert "selection" not in rules_table(study).frame  # its columns are the rules


ODD = ["a|b \\| c", "p < 0.05 <b>", "*x* _y_ a_b `z`", "~~no~~ λ_u ≥ −0.5 %", "[1, 2] ρ × 10²", "# & $ { } ^ ~ é …\n†"]


def test_markdown_renders_on_github_as_it_was_meant(all_tables):
    """`markdown-it` with GitHub's tables and strikethrough: as many cells, and their very text."""
    github = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    odd = Table("50 % of a_b, *x* <i>", ["x|y", "`z`", ""], [ODD[:3], ODD[3:]], pd.DataFrame())
    for table in [odd, *all_tables.values()]:
        tokens = github.parse(table.markdown())
        assert sum(token.type == "table_open" for token in tokens) == 1
        inline = [token for token in tokens if token.type == "inline"]
        assert all(child.type in ("text", "text_special") for token in inline for child in token.children)
        said = ["".join(child.content for child in token.children) for token in inline]
        cells = [table.caption, *table.header, *(cell for row in table.rows for cell in row)]
        assert [text.strip() for text in said] == [cell.replace("\n", " ").strip() for cell in cells]


PACKAGES = r"\documentclass{article}\usepackage{array,booktabs,longtable,pdflscape}\begin{document}"


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no pdflatex here: LaTeX tables are not compiled")
def test_latex_compiles_and_stays_on_its_page(all_tables, tmp_path):
    """Nothing sticks out of its line or page by a visible amount, whatever is in the cells."""
    frame = pd.DataFrame()
    signs = sorted({*TEX_CHARACTERS, *map(chr, range(0x21, 0x180)), *map(chr, range(0x391, 0x3CA)), "漢", "†"})
    rows = all_tables["ratios"].rows
    made = {
        **all_tables,
        "signs": Table("", ["sign"] * 8, [signs[i : i + 8] for i in range(0, len(signs) - 7, 8)], frame),
        "odd": Table("", ["a", "[b]", "c"], [ODD[:3], ODD[3:], ["[0.1, 0.2]", "[", "]"]], frame),
        "wide": Table("", [f"column {i}" for i in range(14)], [["some words that wrap"] * 14] * 3, frame),
        "long": Table("Over pages", all_tables["ratios"].header, rows * 20, frame),
        "words": Table("", ["name", "note"], [["x", "a sentence that goes on and on " * 8]] * 40, frame),
    }
    pages = "\\clearpage\n".join(table.latex(name) for name, table in made.items())
    (tmp_path / "all.tex").write_text(f"{PACKAGES}\n{pages}\\end{{document}}\n", encoding="utf-8")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "all.tex"]
    for _ in range(2):  # the widths of long tables are known after the first
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, encoding="utf-8", timeout=60)
        assert done.returncode == 0, done.stdout[-2000:]
    log = (tmp_path / "all.log").read_text(errors="replace")
    assert [float(points) for points in re.findall(r"Overfull \\[hv]box \(([\d.]+)pt", log) if float(points) > 1] == []
    assert "Float too large" not in log and "Missing character" not in log
    pdf = (tmp_path / "all.pdf").read_bytes()
    assert pdf.startswith(b"%PDF") and int(re.search(r"all.pdf \((\d+) pages", log)[1]) > len(made)


def test_latex_names_its_packages_and_chooses_its_form(all_tables):
    small, rows = all_tables["frozen_head"].latex("head"), all_tables["ratios"].rows
    assert small.splitlines()[0] == r"% \usepackage{array,booktabs}" and r"\begin{table}" in small
    assert r"\label{tab:head}" in small and r"accuracy (\%)" in small and "\u00a0" not in small
    long = Table("Long", all_tables["ratios"].header, rows * 20, pd.DataFrame()).latex("long")
    assert "longtable" in long.splitlines()[0] and long.count(r"\endhead") == 1 and r"\begin{table}" not in long
    wide = Table("Wide", ["difference"] * 14, [["differences"] * 14], pd.DataFrame()).latex("wide")
    assert "pdflscape" in wide.splitlines()[0] and r"\begin{landscape}" in wide
    assert wide.partition(r"\midrule")[2].partition(r"\\")[0].count("&") == 13
