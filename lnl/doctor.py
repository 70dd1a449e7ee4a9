"""What `lnl doctor` looks for around a Ray cluster: doors that are open to everybody.

Whoever reaches the dashboard of a cluster without a token runs code on it (CVE-2023-48022).
"""

from __future__ import annotations

import http.client
import ipaddress
import os
from collections.abc import Iterator
from pathlib import Path

import psutil

DASHBOARD = 8265  # Ray's default port
TOKEN = Path("~/.ray/auth_token")  # where Ray looks for one
CLUSTER_FILE = Path("/tmp/ray/ray_current_cluster")  # written by `ray start` on every node


def of_cluster(port: int = DASHBOARD) -> Iterator[str]:
    """Sentences on the cluster that this machine belongs to, and on its token's file."""
    if (version := _answers(port)) is not None:
        yield (
            f"the dashboard on port {port} answers without a token ({version}): whoever reaches it runs code here; "
            "restart the cluster with RAY_AUTH_MODE=token."
        )
    if _listens_outside(port):
        yield (
            f"port {port} (Ray's dashboard) listens on outer addresses: start the head with "
            "--dashboard-host=127.0.0.1 and use a tunnel."
        )
    belongs = bool(os.environ.get("RAY_ADDRESS")) or CLUSTER_FILE.exists()
    token = Path(os.environ.get("RAY_AUTH_TOKEN_PATH", TOKEN)).expanduser()
    mode = os.environ.get("RAY_AUTH_MODE")
    if belongs and (mode == "disabled" or (mode != "token" and not token.exists())):
        yield "this machine belongs to a Ray cluster without a token: set RAY_AUTH_MODE=token on all of its machines."
    if belongs and token.exists() and token.stat().st_mode & 0o077:  # Ray itself leaves one so where it needs none
        yield f"the token {token} can be read by others: chmod 600 {token}."


def _answers(port: int) -> str | None:
    """What a dashboard on this machine says of itself to somebody without a token."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=3)
    try:
        connection.request("GET", "/api/version")
        answer = connection.getresponse()
        text = answer.read(200).decode(errors="replace")
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()
    return " ".join(text.split()) if answer.status == 200 and "ray_version" in text else None


def _listens_outside(port: int) -> bool:
    try:
        doors = psutil.net_connections("tcp")
    except psutil.AccessDenied:  # of other users' processes, on some systems
        return False
    here = [door.laddr.ip for door in doors if door.status == psutil.CONN_LISTEN and door.laddr.port == port]
    return any(not ipaddress.ip_address(address).is_loopback for address in here)
