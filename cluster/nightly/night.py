"""A night's sweep as one Ray job:   night.py submit   in the evening,   night.py collect   in the morning.

`submit` sends this working tree to the cluster, where studies/nightly.py runs and `lnl diff` compares; a night that is
there already is not submitted again.  `collect` waits for it, prints the comparison as Markdown and says by its exit
code whether somebody should look.  The token is read from $RAY_AUTH_TOKEN, $RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token.

Exit codes: 0 submitted, or a quiet night; 1 error; 2 bad usage; 3 something moved or crashed, or nothing finished.
"""

from __future__ import annotations

import argparse
import logging
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

PROJECT = Path(__file__).parents[2]
MARK = "<!-- lnl diff -->"  # what follows it in the job's log is the comparison

# A sweep that ends incomplete (3), its budget spent, is compared as well.
ENTRYPOINT = """python studies/nightly.py --night {night} --budget-hours {hours}{preset} || test $? -eq 3 || exit 1
lnl diff nightly --night {night}{preset} --markdown night.md
moved=$?; if test $moved -eq 0 || test $moved -eq 3; then echo '{mark}'; cat night.md; fi; exit $moved"""


def parser() -> argparse.ArgumentParser:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("command", choices=("submit", "collect"))
    today = datetime.now(UTC).date()
    asked.add_argument("--night", type=date.fromisoformat, default=today, metavar="DATE", help="default: today, in UTC")
    asked.add_argument("--budget-hours", type=float, default=8, metavar="H", help="device-hours; default: 8")
    asked.add_argument("--preset", help="of studies/nightly.py")
    asked.add_argument(
        "--again", action="store_true", help="submit a night whose job has ended: it runs what is missing"
    )
    asked.add_argument(
        "--address",
        default=os.environ.get("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:8265"),
        metavar="URL",
        help="the cluster's dashboard; default: $RAY_API_SERVER_ADDRESS, else http://127.0.0.1:8265",
    )
    return asked


def main() -> int:
    options = parser().parse_args()
    for stream in (sys.stdout, sys.stderr):  # a locale that lacks a character ends no night
        stream.reconfigure(errors="backslashreplace")
    name = f"nightly-{options.night}"
    address = options.address.rstrip("/")
    try:
        client = connect(address)
        return collect(client, name) if options.command == "collect" else submit(client, name, options)
    except (ConnectionError, RuntimeError) as error:
        print(f"error: {str(error).strip().splitlines()[0]}", file=sys.stderr)
        return 1
    except OSError as error:  # those of `requests` say where in it they come from
        why = f"The cluster at {address} answers no more ({type(error).__name__})"
        print(
            f"error: {why}: a night that it has goes on; collect it once the tunnel to the head is up.", file=sys.stderr
        )
        return 1


def connect(address: str) -> JobSubmissionClient:
    """Raises `ConnectionError` where nobody answers, or where anybody without a token is answered."""
    try:
        urllib.request.urlopen(f"{address}/api/version", timeout=10).close()
    except urllib.error.HTTPError as answer:
        if answer.code not in (401, 403):
            raise ConnectionError(f"What answers at {address} is no Ray dashboard (status {answer.code}).") from None
    except (OSError, ValueError) as error:
        why = getattr(error, "reason", error)
        raise ConnectionError(f"No Ray dashboard answers at {address} ({why}): is the tunnel to the head up?") from None
    else:
        raise ConnectionError(
            f"The cluster at {address} answers without a token, so anybody may run code on it: "
            "start it with RAY_AUTH_MODE=token."
        )
    os.environ["RAY_AUTH_MODE"] = "token"  # counts only before Ray is imported
    os.environ["RAY_API_SERVER_ADDRESS"] = address  # Ray takes this and $RAY_ADDRESS before what its client is given
    import ray
    from ray.job_submission import JobSubmissionClient

    logging.disable(logging.WARNING)  # cron mails what is written
    try:
        return JobSubmissionClient(address)
    except ray.exceptions.AuthenticationError:
        raise ConnectionError(
            f"The cluster at {address} refuses the token: put the cluster's into ~/.ray/auth_token, "
            "$RAY_AUTH_TOKEN_PATH or $RAY_AUTH_TOKEN."
        ) from None


def find(client: JobSubmissionClient, name: str) -> JobDetails | None:
    return next((job for job in client.list_jobs() if job.submission_id == name), None)


def submit(client: JobSubmissionClient, name: str, options: argparse.Namespace) -> int:
    job = find(client, name)
    if job is not None and options.again and job.status.is_terminal():
        client.delete_job(name)
        job = None
    if job is None:
        preset = f" --preset {options.preset}" if options.preset else ""
        words = {"night": options.night, "hours": options.budget_hours, "preset": preset, "mark": MARK}
        try:
            client.submit_job(
                entrypoint=ENTRYPOINT.format(**words),
                submission_id=name,
                runtime_env={"working_dir": str(PROJECT), "env_vars": {"LNL_GIT_COMMIT": commit()}},
            )
            print(f"{name} is submitted.")
            return 0
        except RuntimeError:  # the cluster takes a name once, so that of two at the same time one comes too late
            job = find(client, name)
            if job is None:
                raise
    print(f"{name} is there already: {job.status}.")
    return 0


def collect(client: JobSubmissionClient, name: str) -> int:
    """Waits for the job.  A cluster that was started anew has forgotten its jobs; their results are where they were."""
    if find(client, name) is None:
        raise RuntimeError(f"The cluster knows no job {name}: submit it (what it has finished does not run again).")
    while not (job := client.get_job_info(name)).status.is_terminal():
        time.sleep(2)
    log = client.get_job_logs(name)
    if job.driver_exit_code not in (0, 3):
        print("\n".join(log.splitlines()[-30:]), file=sys.stderr)
        raise RuntimeError(f"{name} ended without a comparison ({job.status}): its last lines stand above.")
    print(log.rpartition(f"\n{MARK}\n")[2].strip())  # the last one: the log goes on where a night is submitted again
    return job.driver_exit_code


def commit() -> str:
    """Of the working tree that is sent, whose repository stays here; empty where that is unknown."""
    if (known := os.environ.get("LNL_GIT_COMMIT")) is not None:  # an image of the project says what it was made from
        return known
    describe = ["git", "-C", str(PROJECT), "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]
    return subprocess.run(describe, capture_output=True, encoding="utf-8", errors="replace", check=False).stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
