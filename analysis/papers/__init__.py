"""What papers report, beside what was measured here.

from analysis import load, papers

papers.reported()                                  # every number, one row each
papers.notes("stl10_report")                       # what a paper does not agree with itself about
papers.beside(load("results", "noise_rates"))      # our means with the closest reported numbers and all differences
papers.table(study).markdown()
"""

from analysis.papers.comparison import Mismatch, beside, closest, mismatches, registry_table, table, wrong_share
from analysis.papers.departures import DEPARTURES, departures
from analysis.papers.registry import Entry, Paper, PaperError, entries, notes, paper, papers, reported

__all__ = [
    "DEPARTURES",
    "Entry",
    "Mismatch",
    "Paper",
    "PaperError",
    "beside",
    "closest",
    "departures",
    "entries",
    "mismatches",
    "notes",
    "paper",
    "papers",
    "registry_table",
    "reported",
    "table",
    "wrong_share",
]
