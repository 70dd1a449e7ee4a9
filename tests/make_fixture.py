"""Make `tests/fixture/results`, the small store of real results on which the notebooks run: 8 × 8 digits, on a CPU.

    python studies/robmix_ablation.py --preset digits --replicates 6
    python studies/noise_rates.py --preset digits --replicates 4 --set labels=500 --set epochs=40 \\
        --arms cross_entropy,mixup,gce_truncated,lc_forward,co_teaching,bootstrapping,dividemix
    python studies/label_ratios.py --preset digits      # its slowest network, wide_resnet45_2, taken out
    python studies/search_lambda.py --preset digits --trials 8 --arms robmix,mixmatch_only
    python -m tests.make_fixture results

Per study the newest plan, narrowed to the arms that ran, and of the rows those that a notebook shows, in one file per
table.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from analysis import load
from analysis.figures.inside import ORACLE_METRICS
from lnl.storage.schema import TABLES

FIXTURE = Path(__file__).parent / "fixture" / "results"
SHOWN_INSIDE = {  # arms whose arrays a notebook shows: of the first replicate in the base setting
    "robmix_ablation": (),
    "noise_rates": ("co_teaching", "lc_forward", "dividemix"),
    "label_ratios": (),
    "search_lambda": (),
}


def make(results: Path, out: Path = FIXTURE) -> None:
    """Write the fixture from a results folder."""
    for name, arms in SHOWN_INSIDE.items():
        study = load(results, name, "digits")
        rows = {table: _read(results, table, name) for table in ("trials", "epochs", "arrays", "suggestions")}
        done = study.trials["trial"].tolist()
        first = study.trials[~study.trials["setting"].map(bool).astype(bool) & (study.trials["replicate"] == 0)]
        metrics = {metric for panel in study.plan.panels.values() for metric in panel.curves}.union(
            *ORACLE_METRICS.values()
        )
        measured = pc.binary_join_element_wise(rows["epochs"]["split"], rows["epochs"]["metric"], "/")
        rows["epochs"] = rows["epochs"].filter(pc.is_in(measured, pa.array(sorted(metrics))))
        kept = {
            "trials": _among(rows["trials"], "trial", [*done, *study.tried["trial"]]),
            "epochs": _among(rows["epochs"], "trial", done),
            "arrays": _among(rows["arrays"], "trial", first.loc[first["arm"].isin(arms), "trial"]),
            "suggestions": _among(rows["suggestions"], "search", [cell.search for cell in study.cells]),
        }
        kept["trials"] = _with(kept["trials"], "host", "fixture")
        for table, part in kept.items():
            if part.num_rows:
                _write(part, out / table / f"study={name}" / "all.parquet")
        plan = _among(_read(results, "studies"), "plan_hash", [study.plan_hash])
        narrow = json.dumps(_narrowed(study.plan.as_json(), set(study.trials["arm"])), ensure_ascii=False)
        _write(_with(plan, "plan", narrow), out / "studies" / f"{name}.parquet")


def _narrowed(plan: dict[str, Any], arms: set[str]) -> dict[str, Any]:
    """The plan of some of its arms."""
    narrow = json.loads(json.dumps(plan))
    narrow["arms"] = {arm: overrides for arm, overrides in plan["arms"].items() if arm in arms}
    for panel in narrow["panels"].values():
        panel["arms"] = [arm for arm in panel["arms"] if arm in arms]
    narrow["contrasts"] = [one for one in plan["contrasts"] if {one["arm"], one["against"]} <= arms]
    narrow["trials"] = [one for one in plan["trials"] if one["arm"] in arms]
    if plan.get("search"):
        narrow["search"]["cells"] = [cell for cell in plan["search"]["cells"] if cell["arm"] in arms]
    return narrow


def _read(results: Path, table: str, study: str | None = None) -> pa.Table:
    """All rows of a study, in the order of the files' names."""
    folder = results / table / f"study={study}" if study else results / table
    parts = [pq.ParquetFile(path).read().cast(TABLES[table]) for path in sorted(folder.glob("[!.]*.parquet"))]
    return pa.concat_tables(parts) if parts else TABLES[table].empty_table()


def _among(rows: pa.Table, column: str, values: Iterable[str]) -> pa.Table:
    return rows.filter(pc.is_in(rows[column], pa.array(list(values), pa.string())))


def _with(rows: pa.Table, column: str, value: str) -> pa.Table:
    index = rows.schema.get_field_index(column)
    return rows.set_column(index, rows.schema.field(index), pa.array([value] * rows.num_rows))


def _write(rows: pa.Table, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(rows.combine_chunks(), path, compression="zstd", compression_level=19, write_page_checksum=True)


if __name__ == "__main__":
    make(Path(sys.argv[1]))
