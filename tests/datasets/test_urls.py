"""URLs that lead to nothing, to what is refused, or to more than was meant: each is told."""

import http.server
import os
import time
from pathlib import Path

import pytest

from hoarfrost.features.datasets import read_dataset
from hoarfrost.features.errors import DatasetError
from hoarfrost.features.files import is_url, join, remote
from tests.datasets.test_remote import KEYS, served_by
from tests.support.builders import write_csv
from tests.support.commands import Hoarfrost


@pytest.mark.parametrize(
    ("place", "answer"),
    [("s3://bucket/a.png", True), ("https://host/x", True), ("/a://b", False), ("a.png", False), ("C:/a.png", False)],
)
def test_a_url_is_told_from_a_path(place: str, answer: bool) -> None:
    assert is_url(place) is answer


class RefusingStore(http.server.BaseHTTPRequestHandler):
    """An S3 that has one answer to all."""

    status, code = 403, "AccessDenied"

    def do_GET(self) -> None:
        """Refuse."""
        content = f"<Error><Code>{self.code}</Code><Message>No.</Message></Error>".encode()
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content if self.command == "GET" else b"")

    do_HEAD = do_GET  # noqa: N815 - the library's name

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.mark.parametrize(
    ("status", "code", "said"),
    [
        (403, "AccessDenied", "cannot be listed: access denied by s3://closed"),
        (403, "InvalidAccessKeyId", "s3://closed: credentials are missing, wrong or expired"),
        (403, "SignatureDoesNotMatch", "s3://closed: credentials are missing, wrong or expired"),
        (400, "ExpiredToken", "s3://closed: credentials are missing, wrong or expired"),
    ],
)
def test_refused_credentials_say_where_they_come_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hoarfrost: Hoarfrost, status: int, code: str, said: str
) -> None:
    monkeypatch.setattr(RefusingStore, "status", status)
    monkeypatch.setattr(RefusingStore, "code", code)
    with served_by(RefusingStore) as endpoint:
        for name, value in {**KEYS, "AWS_ENDPOINT_URL": endpoint}.items():
            monkeypatch.setenv(name, value)
        remote._opened.cache_clear()
        output = hoarfrost("extract", "s3://closed", "--cache", tmp_path / "c.h5", "--weights", "random:0")
    assert output.status == 1
    assert said in output.stderr
    assert "AWS_ACCESS_KEY_ID" in output.stderr
    assert "Traceback" not in output.stderr


@pytest.mark.slow
def test_server_that_is_not_there_ends_the_extraction(tmp_path: Path, hoarfrost: Hoarfrost) -> None:
    rows = [["path", "label"], ["http://127.0.0.1:9/a.png", "a"], ["http://127.0.0.1:9/b.png", "b"]]
    data = write_csv(tmp_path / "x.csv", rows)
    started = time.monotonic()
    output = hoarfrost("extract", data, "--cache", tmp_path / "c.h5", "--weights", "random:0")
    assert output.status == 1
    assert "does not answer after 4 attempts" in output.stderr
    assert time.monotonic() - started < 120


def test_signed_urls_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [["path", "label"], ["https://127.0.0.1:9/a.png?sig=1", "a"], ["https://127.0.0.1:9/b.png", "b"]]
    read_dataset(write_csv(tmp_path / "x.csv", rows))
    assert "1 URLs have a '?'" in caplog.text


def test_password_in_a_url_is_refused() -> None:
    with pytest.raises(DatasetError, match=r"a password in a URL would be stored in the cache") as raised:
        read_dataset("https://me:hunter2@host/set")
    assert "hunter2" not in str(raised.value)


def test_unknown_kind_of_url_is_named() -> None:
    with pytest.raises(DatasetError, match="URLs of this kind are not supported"):
        read_dataset("nosuch://host/set")


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://[::1/x", "not a well-formed URL"),
        ("http://", "the server is missing"),
        ("https:///x", "the server is missing"),
        ("s3://", "the bucket is missing"),
        ("github://x/y.png", "needs more than a URL"),
        ("zip://x.zip", "needs more than a URL"),
    ],
)
def test_a_url_that_leads_nowhere_is_refused_as_data_and_in_a_csv(tmp_path: Path, url: str, reason: str) -> None:
    with pytest.raises(DatasetError, match=reason):
        read_dataset(url)
    manifest = write_csv(tmp_path / "x.csv", [["path", "label"], [url, "a"], ["b.png", "b"]])
    with pytest.raises(DatasetError, match=f"x.csv line 2: .*{reason}"):
        read_dataset(manifest)


def test_npz_at_a_url_is_refused_with_the_way_out() -> None:
    with pytest.raises(DatasetError, match="Copy it to a disk"):
        read_dataset("https://127.0.0.1:9/set.npz")


def test_names_are_quoted_over_http_alone() -> None:
    assert join("https://h/a", "b c#1.png") == "https://h/a/b%20c%231.png"
    assert join("s3://h/a", "b c#1.png") == "s3://h/a/b c#1.png"
    assert join("s3://h/a", "https://other/x.png") == "https://other/x.png"
    assert join("/a", "b.png") == os.path.join("/a", "b.png")
