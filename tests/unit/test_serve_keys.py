"""API keys and their limits: the file, the command, the gate in front of every path."""

from __future__ import annotations

import json
import stat
from dataclasses import asdict
from pathlib import Path

import pytest

from preceptor.cli import main
from preceptor.errors import InputError
from preceptor_serve.keys import KeyRing, add_key, is_loopback, read_keys, remove_key, require_guarded
from preceptor_serve.rates import Bucket
from tests.unit.serving import BODY, SECRET, Clock, Session, assert_refused, client, samples


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


def add(file: Path, name: str = "reco", *, requests: int = 600, documents: int = 60_000) -> str:
    return add_key(file, name, requests_per_minute=requests, documents_per_minute=documents)


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def ask(session: Session, key: str, **changes: object):
    return session.post("/v1/score", json=BODY | changes, headers=bearer(key))


# The file


def test_the_file_holds_no_key_and_only_its_owner_reads_it(file: Path):
    key = add(file)
    assert len(key[13:]) == 43 and key[13:] not in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    add(file, "other")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [found.name for found in read_keys(file)] == ["reco", "other"]
    assert [path.name for path in file.parent.iterdir()] == ["keys.json"]


def test_the_same_secret_never_has_the_same_hash(file: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("secrets.token_urlsafe", lambda size: "s" * 43)
    add(file)
    add(file, "other")
    first, second = read_keys(file)
    assert first.salt != second.salt and first.digest != second.digest


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"keys": [{}]}',
        '{"keys": [{"id": "a"}]}',
        '{"keys": 3}',
        "\x00",
    ],
)
def test_a_file_that_is_none_is_one_line(file: Path, text: str):
    file.write_text(text)
    with pytest.raises(InputError) as caught:
        read_keys(file)
    assert str(file) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [{"salt": "00"}, {"digest": "zz"}, {"id": 3}, {"requests_per_minute": 0}, {"documents_per_minute": 1.5}, {"x": 1}],
)
def test_a_damaged_line_is_refused(file: Path, changes: dict):
    add(file)
    file.write_text(json.dumps({"keys": [asdict(read_keys(file)[0]) | changes]}))
    with pytest.raises(InputError):
        read_keys(file)


def test_a_name_has_one_key(file: Path):
    add(file)
    before = file.read_text()
    with pytest.raises(InputError, match="'reco' has a key"):
        add(file)
    with pytest.raises(InputError, match="no key of 'x'"):
        remove_key(file, "x")
    assert file.read_text() == before


# The command


def test_the_command_prints_the_key_once_and_never_lists_it(file: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["keys", "add", "reco", "--file", str(file), "--requests-per-minute", "5"]) == 0
    shown = capsys.readouterr()
    key = shown.out.strip()
    assert KeyRing(file).find(key) is not None and key not in shown.err
    assert main(["keys", "list", "--file", str(file)]) == 0
    listed = capsys.readouterr().out
    assert "reco" in listed and "5 requests" in listed
    assert key[13:] not in listed and read_keys(file)[0].digest not in listed
    assert main(["keys", "remove", "reco", "--file", str(file)]) == 0
    assert KeyRing(file).find(key) is None


@pytest.mark.parametrize(
    "arguments", [["add", "two words"], ["add", "a", "--requests-per-minute", "0"], ["remove", "a"], ["list"]]
)
def test_the_command_refuses_in_one_line(file: Path, capsys: pytest.CaptureFixture[str], arguments: list[str]):
    assert main(["keys", *arguments, "--file", str(file)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("preceptor: InputError: ")
    assert not file.exists()


# The gate


def test_without_a_valid_key_nothing_is_answered_or_read(file: Path):
    key = add(file)
    session = client(keys=KeyRing(file))
    wrong = [key[:-1] + ("a" if key[-1] != "a" else "b"), key[:12], "", "pcp_", key + "x", "é", key.upper()]
    headers = [{}, {"authorization": key}, {"authorization": f"Basic {key}"}]
    headers += [{"authorization": f"Bearer {value}".encode()} for value in wrong]  # type: ignore[dict-item]
    for given in headers:
        for method, path in (("POST", "/v1/score"), ("POST", "/v2/rerank"), ("GET", "/v1/models"), ("GET", "/metrics")):
            response = session.request(method, path, headers=given, content=b"not read")
            assert_refused(response, 401, "unauthorized")
            assert response.headers["www-authenticate"] == "Bearer"
    assert_refused(session.get("/no/such/path"), 401, "unauthorized")


def test_a_valid_key_is_answered_and_probes_need_none(file: Path):
    key = add(file)
    session = client(keys=KeyRing(file))
    assert ask(session, key).status_code == 200
    assert session.get("/metrics", headers={"authorization": f"bearer  {key}"}).status_code == 200
    for path in ("/healthz", "/readyz", "/openapi.json"):
        assert session.get(path).status_code == 200
    document = session.get("/openapi.json").json()
    assert document["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
    assert document["paths"]["/v1/score"]["post"]["security"] == [{"key": []}]
    assert document["paths"]["/healthz"]["get"]["security"] == []


def test_secrets_are_compared_in_constant_time_and_unknown_ids_too(file: Path, monkeypatch: pytest.MonkeyPatch):
    key = add(file)
    ring = KeyRing(file)
    compared: list[tuple[str, str]] = []
    original = __import__("hmac").compare_digest

    def noting(left: str, right: str) -> bool:
        compared.append((left, right))
        return bool(original(left, right))

    monkeypatch.setattr("hmac.compare_digest", noting)
    assert ring.find(key) is not None
    assert ring.find("pcp_00000000_" + key[13:]) is None
    assert ring.find(key[:13] + "a" * 43) is None
    assert len(compared) == 3
    assert all(len(left) == len(right) == 64 for left, right in compared)


def test_a_changed_file_counts_at_the_next_request(file: Path):
    first = add(file)
    session = client(keys=KeyRing(file))
    second = add(file, "other")
    assert ask(session, second).status_code == 200
    remove_key(file, "reco")
    assert_refused(ask(session, first), 401, "unauthorized")
    assert ask(session, second).status_code == 200


def test_a_file_that_turns_unreadable_leaves_the_last_keys_in_force(file: Path, caplog: pytest.LogCaptureFixture):
    key = add(file)
    whole = file.read_text()
    session = client(keys=KeyRing(file))
    for damage in (lambda: file.write_text(whole[:-20]), file.unlink):
        damage()
        assert ask(session, key).status_code == 200
        assert ask(session, key).status_code == 200
    assert caplog.text.count("cannot be read any more") == 2
    assert key[13:] not in caplog.text and digest_of(whole) not in caplog.text
    add(file, "new")
    assert_refused(ask(session, key), 401, "unauthorized")


def digest_of(text: str) -> str:
    return str(json.loads(text)["keys"][0]["digest"])


# Limits


def test_a_bucket_refills_evenly_and_holds_a_minutes_worth():
    bucket = Bucket(60, now_s=0.0)
    assert [bucket.take(20, now_s=0.0) for _ in range(3)] == [0, 0, 0]
    assert bucket.take(10, now_s=0.0) == pytest.approx(10.0)
    assert bucket.take(10, now_s=9.0) == pytest.approx(1.0)
    assert bucket.take(10, now_s=10.0) == 0
    assert bucket.take(61, now_s=1000.0) == 0, "more than the bucket holds, and it was full"
    assert bucket.take(1, now_s=1000.0) == pytest.approx(2.0), "the debt is paid first"


def test_requests_a_minute_are_limited_for_each_key(file: Path):
    clock = Clock()
    key, other = add(file, requests=2), add(file, "other", requests=2)
    session = client(keys=KeyRing(file, clock=clock))
    assert [ask(session, key).status_code for _ in range(2)] == [200, 200]
    refused = ask(session, key)
    assert_refused(refused, 429, "rate_limited")
    assert refused.headers["retry-after"] == "30"
    assert ask(session, other).status_code == 200
    clock.pass_s(30)
    assert ask(session, key).status_code == 200
    assert_refused(session.get("/v1/models", headers=bearer(key)), 429, "rate_limited")


def test_documents_a_minute_are_limited_for_each_key(file: Path):
    clock = Clock()
    key = add(file, documents=3)
    session = client(keys=KeyRing(file, clock=clock))
    assert ask(session, key).status_code == 200
    assert_refused(ask(session, key), 429, "rate_limited")
    assert ask(session, key, documents=["a"]).status_code == 200
    clock.pass_s(60)
    batch = {"requests": [BODY, BODY, BODY]}
    assert session.post("/v1/score", json=batch, headers=bearer(key)).status_code == 200
    assert_refused(ask(session, key, documents=["a"]), 429, "rate_limited")


def test_what_is_refused_for_its_form_spends_no_documents(file: Path):
    key = add(file, documents=2)
    session = client(keys=KeyRing(file, clock=Clock()))
    assert_refused(ask(session, key, documents=["a", ""]), 422, "empty_document", "documents[1]")
    assert ask(session, key).status_code == 200


def test_edges_share_a_keys_limits(file: Path):
    key = add(file, requests=4)
    edges = [client(keys=KeyRing(file, share=1 / 2, clock=Clock())) for _ in range(2)]
    assert [ask(edge, key).status_code for edge in edges for _ in range(3)] == [200, 200, 429] * 2


def test_limits_survive_a_change_of_other_keys(file: Path):
    key = add(file, requests=1)
    session = client(keys=KeyRing(file, clock=Clock()))
    assert ask(session, key).status_code == 200
    add(file, "other")
    assert_refused(ask(session, key), 429, "rate_limited")


def test_names_and_keys_stay_out_of_answers_and_metrics(file: Path):
    key = add(file, SECRET)
    session = client(keys=KeyRing(file))
    assert ask(session, key).status_code == 200
    metrics = session.get("/metrics", headers=bearer(key)).text
    assert SECRET not in metrics and key[4:12] not in metrics
    assert ("preceptor_requests_total", "/v1/score", "200") in samples_with(session, key)


def samples_with(session: Session, key: str) -> dict:
    class Keyed:
        def get(self, path: str):
            return session.get(path, headers=bearer(key))

    return samples(Keyed())  # type: ignore[arg-type]


# Who may open a port


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "::1", "localhost"])
def test_the_loopback_needs_no_keys(host: str):
    assert is_loopback(host)
    require_guarded(host, keys=None, guard="keys")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.7", "example.org", ""])
def test_other_interfaces_need_keys_or_a_gateway(host: str, file: Path):
    with pytest.raises(InputError, match="--keys FILE"):
        require_guarded(host, keys=None, guard="keys")
    require_guarded(host, keys=file, guard="keys")
    require_guarded(host, keys=None, guard="gateway")


def test_the_command_serves_no_one_else_without_keys(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    assert main(["serve", "--bundle", str(tmp_path), "--host", "0.0.0.0"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "--host 0.0.0.0 lets others in" in line and "--behind-gateway" in line
