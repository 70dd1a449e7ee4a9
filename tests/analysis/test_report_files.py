"""A report's files: safe names whatever people and stores say, nothing left of an earlier build, nothing outside."""

import html
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt

from analysis import load, statistics
from analysis.report.build import MANIFEST, build
from lnl.cli import main
from lnl.storage.store import Store
from tests import simulated

ROOT = Path(__file__).parents[2]
MAIN = "import sys; from lnl.cli.main import main; sys.exit(main(sys.argv[1:]))"
HOSTILE = ["$\\nosuch{$", "<img src=x onerror=alert(1)>", "a/b", "..", "x" * 285, "Größe 你好", "#", "%20", "con"]
HOSTILE += ["../../outside/x", "/tmp/lnl-outside/x"]


def tree(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {
        path.relative_to(folder).as_posix(): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def renamed(plan: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    """The plan with other names of arms."""
    panels = {
        name: {**panel, "arms": [names[arm] for arm in panel["arms"]], "reference": names[panel["reference"]]}
        for name, panel in plan["panels"].items()
    }
    return {
        **plan,
        "arms": {names[arm]: overrides for arm, overrides in plan["arms"].items()},
        "panels": panels,
        "contrasts": [{**one, **{role: names[one[role]] for role in ("arm", "against")}} for one in plan["contrasts"]],
        "trials": [{**entry, "arm": names[entry["arm"]]} for entry in plan["trials"]],
    }


def hostile(root: Path, preset: str, replicates: int = 1) -> None:
    """A plan whose arms, panels and preset have such names: one panel of many arms, each other one empty."""
    plan = simulated.plan(replicates, panels=["combined"], contrasts=simulated.CONTRASTS[:2])
    plan = renamed(plan, dict(zip(plan["arms"], HOSTILE, strict=False)))
    plan["panels"] = {HOSTILE[0]: plan["panels"]["combined"]}
    plan["panels"] |= {name: {**plan["panels"][HOSTILE[0]], "arms": ["nobody"]} for name in HOSTILE[1:]}
    simulation = simulated.Simulation(root)
    simulation.submit({**plan, "preset": preset})
    simulation.run(plan["trials"], preset=preset)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile")
    hostile(folder / "results", "../../../escaped/<b>")
    return build(folder / "results", simulated.STUDY, pdf=True)


@pytest.mark.slow
def test_names_from_a_store_write_nothing_outside_the_folder_of_the_report(page: Path) -> None:
    results = page.parents[2]
    assert page.parents[1] == results / "reports" and not list(results.parent.glob("escaped*"))
    assert [path.name for path in results.parent.iterdir()] == ["results"]
    assert not Path("/tmp/lnl-outside").exists()
    assert all(re.fullmatch(r"[a-z0-9_.=,-]{1,90}", path.name) for path in page.parent.iterdir())


@pytest.mark.slow
def test_names_are_text_on_the_page_and_links_lead_to_its_files(page: Path) -> None:
    source = page.read_text(encoding="utf-8")
    assert "<img src=x" not in source and "<b>&#34;" not in source
    linked = set(re.findall(r'href="([^"#]+)"', source))
    assert linked == {path.name for path in page.parent.iterdir()} - {"index.html", MANIFEST}
    ids = re.findall(r'\sid="([^"]*)"', source)
    assert len(ids) == len(set(ids)) and set(re.findall(r'href="#([^"]*)"', source)) <= set(ids)
    shown = html.unescape(source)
    for name in HOSTILE[:4]:
        assert name in shown, "as people wrote it"


@pytest.mark.slow
def test_names_are_text_in_tables(page: Path) -> None:
    written = "".join(path.read_text(encoding="utf-8") for path in page.parent.glob("*.md"))
    assert "<img" not in MarkdownIt("commonmark").render(written).replace("&lt;img", "")
    for path in page.parent.glob("*.tex"):
        text = path.read_text(encoding="utf-8")
        assert r"\nosuch" not in text.replace(r"\textbackslash{}nosuch", "") and "\\label{tab:" in text
        assert re.search(r"\\label\{tab:[a-z0-9_.=,-]+\}", text)


@pytest.mark.slow
def test_what_the_page_prints_can_be_run(page: Path) -> None:
    """Names with quotes and spaces, and a storage that is not the default, in shell and in Python."""
    shown = html.unescape(page.read_text(encoding="utf-8"))
    command = re.search(r"<code>(lnl report.*?)</code>", shown)
    assert command is not None
    words = shlex.split(command[1])
    options = words[words.index("--preset") + 1], words[words.index("--storage") + 1]
    assert options == ("../../../escaped/<b>", str(page.parents[2]))
    code = re.search(r"load\(.*?\)(?=\.plot_contrasts)", shown)
    assert code is not None and eval(code[0], {"load": load}).name == simulated.STUDY


def test_a_plan_of_another_name_than_its_file_reads_and_writes_within_the_results(tmp_path: Path) -> None:
    plan = {**simulated.plan(1, panels=["frozen_head"]), "study": "../../../escaped"}
    row = {"study": simulated.STUDY, "preset": "digits", "plan_hash": "0" * 12, "submitted_at": simulated.START}
    Store(tmp_path / "results").write_plan({**row, "plan": json.dumps(plan)})
    found = build(tmp_path / "results", simulated.STUDY)
    assert found.parents[2] == tmp_path / "results" and [path.name for path in tmp_path.iterdir()] == ["results"]


def test_a_plan_has_a_safe_file_whatever_its_preset_is_called(tmp_path: Path) -> None:
    for preset in ("x" * 285, "../up", "con"):
        row = {"study": "quick", "preset": preset, "plan_hash": "0123456789ab", "submitted_at": simulated.START}
        Store(tmp_path).write_plan({**row, "plan": "{}"})
    assert [path.parent.name for path in tmp_path.rglob("*.parquet")] == ["studies"] * 3
    assert set(Store(tmp_path).plans("quick")["preset"]) == {"x" * 285, "../up", "con"}


# ------------------------------------------------------------------------------------------------- what an arm leaves


def test_a_report_holds_what_its_newest_build_made_and_nothing_else_is_touched(tmp_path: Path) -> None:
    root, mine = tmp_path / "results", tmp_path / "page"
    simulation, plan = simulated.Simulation(root), simulated.plan(1, panels=["frozen_head"])
    simulation.submit(plan)
    mine.mkdir()
    (mine / "notes.md").write_text("mine", encoding="utf-8")
    (mine / "precious.png").symlink_to(tmp_path / "target.png")
    build(root, simulated.STUDY, output=mine)
    before = {path.name for path in mine.iterdir()}
    assert {"contrasts.md", "contrasts.tex", "trained.md"} <= before
    outside = tmp_path / "outside.md"
    outside.write_text("not of the report", encoding="utf-8")
    listed = json.loads((mine / MANIFEST).read_text(encoding="utf-8"))
    (mine / MANIFEST).write_text(json.dumps([*listed, "../outside.md", "notes", str(outside)]), encoding="utf-8")
    simulation.submit({**plan, "contrasts": []}, hours=1)
    build(root, simulated.STUDY, output=mine)
    after = {path.name for path in mine.iterdir()}
    assert before - after == {"contrasts.md", "contrasts.tex"}
    written = set(json.loads((mine / MANIFEST).read_text(encoding="utf-8")))
    assert after == written | {MANIFEST, "notes.md", "precious.png"}
    assert outside.exists() and (mine / "notes.md").read_text(encoding="utf-8") == "mine"
    assert (mine / "precious.png").is_symlink()


@pytest.mark.slow
def test_another_folder_leaves_the_results_as_they_are(tmp_path: Path) -> None:
    """Also where they cannot be written to: mounted read-only, where this machine can do that."""
    root = tmp_path / "results"
    simulated.Simulation(root).submit(simulated.plan(1, panels=["frozen_head"]))
    before = tree(root)
    arguments = ["report", simulated.STUDY, "--storage", str(root), "--output", str(tmp_path / "page")]
    assert main.main(arguments) == 0
    assert (tmp_path / "page" / "index.html").is_file() and tree(root) == before
    mount = f"mount --bind {root} {root} && mount -o remount,bind,ro {root} && ! touch {root}/x 2>/dev/null"
    if subprocess.run(["unshare", "-m", "sh", "-c", mount], capture_output=True, check=False).returncode == 0:
        run = f"{mount} && exec {shlex.join([sys.executable, '-c', MAIN, *arguments[:-1], str(tmp_path / 'other')])}"
        done = subprocess.run(
            ["unshare", "-m", "sh", "-c", run], cwd=ROOT, capture_output=True, encoding="utf-8", check=False, timeout=60
        )
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "other" / "index.html").is_file() and tree(root) == before


def test_a_link_out_of_the_results_is_not_followed(tmp_path: Path) -> None:
    root, home = tmp_path / "results", tmp_path / "home"
    simulated.Simulation(root).submit(simulated.plan(1, panels=["frozen_head"]))
    home.mkdir()
    (root / "reports").mkdir()
    (root / "reports" / f"{simulated.STUDY}-digits").symlink_to(home)
    with pytest.raises(ValueError, match="is a link out of the results: remove it, or give another folder"):
        build(root, simulated.STUDY)
    assert not list(home.iterdir())


@pytest.mark.slow
def test_figures_do_not_heed_the_names_markup(page: Path) -> None:
    """`$\\nosuch{$` was an error of matplotlib's mathtext; here it is drawn, in the rows of every figure."""
    drawn = "".join(path.read_text(encoding="utf-8") for path in page.parent.glob("*.csv"))
    assert "$\\nosuch{$" in drawn and len(list(page.parent.glob("*.pdf"))) >= 4
    found = load(page.parents[2], simulated.STUDY)
    assert len(statistics.records(found.contrasts())) == 2
