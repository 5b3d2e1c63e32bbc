"""HAProxy's configuration as Ray Serve writes it, with what is open to everyone closed."""

from __future__ import annotations

from pathlib import Path

from preceptor_serve.closed_haproxy import close_files, closed, shut_while_empty

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
    assert named.read_text() == shut_while_empty(closed(OPEN)) and other.read_text() == OPEN


EMPTY = """frontend http_frontend
    bind 127.0.0.1:8000
    # Static use_backend selection
    default_backend default_backend
listen stats
    bind 127.0.0.1:8404
"""


def test_requests_find_the_port_shut_while_no_application_is_known() -> None:
    """HAProxy that takes the place of another knows none for a moment, and would answer 404."""
    assert shut_while_empty(EMPTY) == EMPTY.replace("    bind 127.0.0.1:8000\n", "")


def test_with_an_application_it_is_open() -> None:
    with_one = EMPTY.replace("    default_backend", "    use_backend http-app if is_app\n    default_backend")
    assert shut_while_empty(with_one) == with_one
