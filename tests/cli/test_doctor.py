"""Open doors of a cluster, behind real sockets; a real dashboard stands in tests/cluster/test_nightly_submission.py."""

from __future__ import annotations

import http.server
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lnl.cli import doctor
from lnl.system import machine


@contextmanager
def dashboard(host: str, status: int) -> Iterator[int]:
    """What answers /api/version as Ray's dashboard does, with 200 or, where it asks for a token, 401."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = b'{"version": "4", "ray_version": "2.60.0"}' if status == 200 else b"Unauthorized"
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer((host, 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine of no cluster, with a token of its own; returns the token's path."""
    token = tmp_path / "token"
    token.write_text("secret", encoding="utf-8")
    token.chmod(0o600)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
    monkeypatch.setattr(machine, "CLUSTER_FILE", tmp_path / "ray_current_cluster")
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)
    return token


def test_closed_doors_are_not_told() -> None:
    with dashboard("127.0.0.1", 401) as port:
        assert list(doctor.of_cluster(port)) == []
    with socket.create_server(("127.0.0.1", 0)) as silent:
        free = silent.getsockname()[1]
    assert list(doctor.of_cluster(free)) == [], "nobody listens"


def test_a_dashboard_without_a_token_is_told() -> None:
    with dashboard("127.0.0.1", 200) as port:
        (told,) = doctor.of_cluster(port)
    assert f"port {port} answers without a token" in told and "RAY_AUTH_MODE=token" in told


def test_a_dashboard_on_every_address_is_told() -> None:
    with dashboard("0.0.0.0", 401) as port:
        (told,) = doctor.of_cluster(port)
    assert "listens on outer addresses" in told and "--dashboard-host=127.0.0.1" in told


def test_a_token_that_others_can_read_and_a_cluster_without_one_are_told(
    alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone.chmod(0o644)
    assert list(doctor.of_cluster(1)) == [], "this machine belongs to no cluster"
    monkeypatch.setenv("RAY_ADDRESS", "local")
    assert list(doctor.of_cluster(1)) == [], "nor does it so"
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    (told,) = doctor.of_cluster(1)
    assert told == f"the token {alone} can be read by others: chmod 600 {alone}."
    monkeypatch.delenv("RAY_ADDRESS")
    alone.unlink()
    assert list(doctor.of_cluster(1)) == [], "this machine belongs to no cluster"
    (tmp_path / "ray_current_cluster").write_text("10.0.0.1:6379", encoding="utf-8")
    (told,) = doctor.of_cluster(1)
    assert "belongs to a Ray cluster without a token" in told
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    assert list(doctor.of_cluster(1)) == []
