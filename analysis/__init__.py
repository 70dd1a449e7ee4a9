"""From parquet to paper: reads results only, so it needs neither torch nor Ray.

from analysis import load
study = load("results", "robmix_ablation");  study.contrasts();  study.plot("frozen_head")
"""

from analysis.notebook import load

__all__ = ["load"]
