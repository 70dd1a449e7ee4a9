"""The notebooks run top to bottom on a small store of real results, and say what its rows say."""

import re
import shutil
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from nbclient import NotebookClient
from scipy.stats import ttest_1samp

import analysis
from analysis import load
from analysis.results import LoadError
from analysis.verdicts import ALPHA
from tests.make_fixture import FIXTURE

NOTEBOOKS = sorted((Path(analysis.__file__).parent / "notebooks").glob("*.ipynb"))
HEAVY = ("torch", "torchvision", "ray", "optuna")
TRIALS = {  # of the plan: finished, and in the base setting
    "robmix_ablation": (234, 102),
    "noise_rates": (56, 28),
    "label_ratios": (72, 20),
    "search_lambda": (32, 32),
}


def read(path):
    return nbformat.read(path, as_version=4)


def code_cells(book):
    return [cell for cell in book.cells if cell.cell_type == "code"]


def execute(book, folder):
    """Run it; a kernel of which somebody took a port between its choice and its use is started again."""
    for attempts_left in (2, 1, 0):
        client = NotebookClient(book, timeout=100, kernel_name="python3", resources={"metadata": {"path": str(folder)}})
        try:
            return client.execute()
        except RuntimeError as error:  # before its first cell
            if "before replying to kernel_info" not in str(error) or not attempts_left:
                raise


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """The places of a checkout: its results, and the folder in which Jupyter runs a notebook."""
    root = tmp_path_factory.mktemp("checkout")
    shutil.copytree(FIXTURE, root / "results")
    (root / "analysis" / "notebooks").mkdir(parents=True)
    return root


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs_top_to_bottom_without_ray_and_torch(path, checkout, monkeypatch):
    monkeypatch.delenv("LNL_STORAGE", raising=False)
    monkeypatch.setenv("PYTHONPATH", str(Path(analysis.__file__).parents[1]))
    book = read(path)
    book.cells.append(nbformat.v4.new_code_cell(f"import sys\nprint(sorted({set(HEAVY)} & set(sys.modules)))"))
    folder = checkout / "analysis" / "notebooks"
    execute(book, folder)
    *cells, imported = code_cells(book)
    assert imported.outputs[0].text == "[]\n"
    for cell in cells:
        shown = "".join(str(output.get("data", "")) for output in cell.outputs)
        assert not [output for output in cell.outputs if output.get("name") == "stderr"], cell.source  # no warning
        if re.search(r"plot\w*\(", cell.source):
            assert "data:image/png;base64,iVBOR" in shown, cell.source
    assert not list(folder.iterdir())  # a notebook writes nothing


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_is_stored_without_outputs(path):
    book = read(path)
    nbformat.validate(book)
    assert book.cells[0].source.startswith("# ") and book.cells[0].source.splitlines()[0].endswith("?")
    for cell in code_cells(book):
        assert cell.outputs == [] and cell.execution_count is None
    assert all(cell.metadata == {} for cell in book.cells)


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_results_elsewhere_are_named_by_the_environment(path, monkeypatch, tmp_path):
    first = code_cells(read(path))[0].source
    monkeypatch.setenv("LNL_STORAGE", str(FIXTURE))
    names: dict = {}
    exec(first, names)
    assert names["study"].root == FIXTURE
    monkeypatch.setenv("LNL_STORAGE", str(tmp_path))
    with pytest.raises(LoadError, match="no study has been submitted there"):
        exec(first, {})


@pytest.mark.parametrize("name", TRIALS)
def test_the_fixture_is_complete(name):
    study = load(FIXTURE, name)
    finished, in_base = TRIALS[name]
    assert len(study.trials) == len(study.plan.trials) == finished
    assert (study.trials["setting"].map(len) == 0).sum() == in_base
    assert study.missing.empty and study.left.empty and study.unreadable == {}
    curves = study.epochs(["test/accuracy"])
    assert len(curves) == study.trials["epochs_done"].sum()  # read from files of many attempts


def test_arrays_are_those_that_a_notebook_shows():
    study = load(FIXTURE, "noise_rates")
    arrays = study.arrays(study.trials["trial"].tolist())
    assert set(arrays["arm"]) == {"co_teaching", "lc_forward", "dividemix"} and set(arrays["replicate"]) == {0}
    estimated = arrays[arrays["name"] == "train/transition"]["array"].iloc[-1]
    assert estimated.sum(axis=1) == pytest.approx(1, abs=1e-4)


def test_the_fixture_is_small_and_tells_nothing_of_the_machine_it_was_made_on():
    files = [path for path in FIXTURE.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 1.5e6
    for path in files:
        rows = pd.read_parquet(path)
        text = rows.select_dtypes("str").to_csv()
        assert not re.search(r"/(tmp|home|root|work|usr|opt)\b", text), path
        assert set(rows.get("host", ["fixture"])) == {"fixture"}


@pytest.mark.parametrize("name", ["robmix_ablation", "noise_rates", "label_ratios"])
def test_contrasts_are_those_of_the_rows(name):
    """Student's t by SciPy on the rows as pandas reads them; Holm and the verdict by their definitions."""
    rows = pd.read_parquet(FIXTURE / "trials")
    base = rows[(rows["study"] == name) & (rows["setting"] == "{}")]
    assert (base.groupby("replicate")[["data_hash", "split_hash", "noise_hash"]].nunique() == 1).all(axis=None)
    accuracy = base.pivot(index="replicate", columns="arm", values="accuracy_last")
    said = load(FIXTURE, name).contrasts()
    tested = [ttest_1samp(accuracy[row.arm] - accuracy[row.against], 0) for row in said.itertuples()]
    ranked = sorted(range(len(said)), key=lambda i: tested[i].pvalue)
    corrected, worst = {}, 0.0
    for rank, i in enumerate(ranked):
        corrected[i] = worst = max(worst, min(1, tested[i].pvalue * (len(said) - rank)))
    for i, row in enumerate(said.itertuples()):
        differences = accuracy[row.arm] - accuracy[row.against]
        assert row.n == len(accuracy) and row.paired
        assert row.difference == pytest.approx(differences.mean())
        assert row.deviation == pytest.approx(differences.std())
        assert (row.low, row.high) == pytest.approx(tuple(tested[i].confidence_interval()))
        assert row.p == pytest.approx(tested[i].pvalue)
        assert row.p_holm == pytest.approx(corrected[i])
        if row.verdict in ("helps", "hurts"):
            assert corrected[i] < ALPHA and (row.verdict == "helps") == (row.difference > 0)
        else:
            assert corrected[i] >= ALPHA or row.p_equivalence_holm < ALPHA
