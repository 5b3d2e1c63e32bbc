"""HAProxy's configuration as Ray Serve writes it, with what is open to everyone closed."""

from __future__ import annotations

from pathlib import Path

from preceptor_serve.closed_haproxy import close_files, closed, patient

OPEN = """global
    stats socket /run/admin.sock mode 666 level admin expose-fd listeners
frontend prometheus
    bind :9101
frontend http_frontend
    bind 10.1.2.3:8000
    http-request set-header x-port :9101
listen stats
  bind *:8404
"""


def test_what_listens_everywhere_listens_on_the_loopback() -> None:
    assert closed(OPEN).splitlines()[3] == "    bind 127.0.0.1:9101"
    assert closed(OPEN).splitlines()[-1] == "  bind 127.0.0.1:8404"


def test_requests_come_in_where_they_were_told_to() -> None:
    assert closed(OPEN).splitlines()[5:7] == OPEN.splitlines()[5:7]


def test_the_admin_socket_is_its_owners_alone() -> None:
    assert "admin.sock mode 600 level admin expose-fd listeners" in closed(OPEN)


def test_what_is_closed_stays_as_it_is() -> None:
    assert closed(closed(OPEN)) == closed(OPEN)


def test_only_the_files_that_are_named_are_mended(tmp_path: Path) -> None:
    named, other = tmp_path / "haproxy.cfg", tmp_path / "other.cfg"
    for file in (named, other):
        file.write_text(OPEN)
    close_files(["-db", "-f", str(named), "-sf", "12"])
    assert named.read_text() == patient(closed(OPEN)) and other.read_text() == OPEN


EMPTY = """frontend http_frontend
    # Static use_backend selection
    default_backend default_backend
backend default_backend
    http-request return status 404 content-type text/plain lf-string "Path '%[path]' not found."
"""


def test_without_an_application_everything_is_there_later() -> None:
    """HAProxy that takes the place of another knows none for a moment: who is told 404 does not ask again."""
    last = patient(EMPTY).splitlines()[-1]
    assert last.startswith("    http-request return status 503 ") and last.endswith(" hdr Retry-After 1")
    assert patient(EMPTY).splitlines()[:-1] == EMPTY.splitlines()[:-1]


def test_beside_an_application_other_paths_are_not_found() -> None:
    beside = EMPTY.replace("    default_backend d", "    use_backend http-app if is_app\n    default_backend d")
    assert patient(beside) == beside
