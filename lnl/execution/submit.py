"""Submitting a plan: `submit` stores it with its commit, and makes jobs of its trials."""

from __future__ import annotations

import functools
import os
import secrets
import subprocess
from collections.abc import Callable
from pathlib import Path

from lnl.execution.job import Job
from lnl.storage.store import Store
from lnl.study.plan import Plan, Planned, plan_row
from lnl.trial.provenance import Current

JobOf = Callable[[Planned], Job]


def submit(plan: Plan, store: Store, current: Current, rerun_stale: bool) -> JobOf:
    """Store the plan as submitted; returns the function that makes a job of a planned trial."""
    identity, run = store.identity(), secrets.token_hex(8)
    commit, dirty = git_state()
    store.write_plan(plan_row(plan, commit, current))

    def job(planned: Planned) -> Job:
        return Job(
            trial=planned.trial.model_dump(mode="json"),
            arm=planned.arm,
            setting=planned.setting,
            prerequisite=planned.prerequisite,
            search=planned.search,
            suggestion=planned.suggestion,
            embeddings=plan.record.embeddings,
            store=identity,
            run=run,
            rerun_stale=rerun_stale or planned.search is not None,  # a search compares what one code gives
            study=plan.study,
            preset=plan.preset,
            plan_hash=plan.hash,
            selection=plan.record.selection,
            sources=current.sources(planned.trial),
            git_commit=commit,
            git_dirty=dirty,
        )

    return job


@functools.cache
def git_state() -> tuple[str | None, bool | None]:
    """Commit of the running code and whether it has uncommitted changes; (None, None) outside a repository."""
    if sent := os.environ.get("LNL_GIT_COMMIT"):  # by who sent the code here without its repository
        return sent.removesuffix("-dirty"), sent.endswith("-dirty")
    folder = Path(__file__).parent

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(folder), *words],
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            check=True,
            timeout=10,
        ).stdout.strip()

    try:
        return git("rev-parse", "HEAD"), bool(git("status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.SubprocessError):
        return None, None
