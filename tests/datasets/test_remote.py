"""Images at URLs: an S3-compatible store and a plain web server on this machine."""

import errno
import functools
import html
import http.server
import io
import json
import os
import threading
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pytest

from hoarfrost.experiment.experiment import ExperimentConfig, run_experiment
from hoarfrost.features.cache import EmbeddingCache
from hoarfrost.features.datasets import read_dataset
from hoarfrost.features.errors import DatasetError, ImageDecodeError, RemoteError
from hoarfrost.features.extraction.extract import extract
from hoarfrost.features.extraction.plan import ExtractOptions
from hoarfrost.features.files import read, remote, stamp_of
from hoarfrost.heads.specs import parse_heads
from hoarfrost.training import TrainingConfig
from tests.support.builders import encode, picture, write_csv, write_image_folder
from tests.support.commands import Hoarfrost
from tests.support.dicoms import dicom, encoded, grey_values

pytest.importorskip("s3fs")
moto_server = pytest.importorskip("moto.server")

KEYS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_DEFAULT_REGION": "us-east-1"}


class Store(NamedTuple):
    """An S3-compatible server, and a client of it."""

    endpoint: str
    client: Any

    def put(self, root: Path, bucket: str) -> str:
        """Upload a folder; give its URL."""
        self.client.create_bucket(Bucket=bucket)
        for file in root.rglob("*"):
            if file.is_file():
                self.client.upload_file(str(file), bucket, str(file.relative_to(root)))
        return f"s3://{bucket}"


@pytest.fixture(scope="module")
def s3_server() -> Iterator[str]:
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    import boto3

    for name, value in {**KEYS, "AWS_ENDPOINT_URL": s3_server}.items():
        monkeypatch.setenv(name, value)

    remote._opened.cache_clear()
    yield Store(s3_server, boto3.Session().client("s3", endpoint_url=s3_server))
    urllib.request.urlopen(urllib.request.Request(f"{s3_server}/moto-api/reset", method="POST")).close()


class Web(http.server.SimpleHTTPRequestHandler):
    """Serves a folder; `refusals` are statuses that the next requests of a path get."""

    refusals: ClassVar[dict[str, list[int]]] = {}

    left: ClassVar[int] = 1000

    def send_head(self) -> Any:
        """Refuse, or begin to answer GET and HEAD; after so many that are left, credentials are wanted."""
        Web.left -= 1
        if Web.left < 0:
            self.send_error(401)
            return None
        waiting = self.refusals.get(self.path, [])
        if not waiting:
            return super().send_head()
        self.send_error(waiting.pop(0))
        return None

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@contextmanager
def served_by(handler: Callable[..., http.server.BaseHTTPRequestHandler]) -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def web(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(Web, "refusals", {})
    monkeypatch.setattr(Web, "left", 1000)
    monkeypatch.setattr(remote, "PAUSES_S", (0.01, 0.01, 0.01))
    served = tmp_path / "served"
    served.mkdir()
    with served_by(functools.partial(Web, directory=str(served))) as url:
        yield url


def embeddings_of(cache: Path) -> dict[str, bytes]:
    with EmbeddingCache(cache) as opened:
        table = opened.dataset()
        embeddings, readable = opened.arrays(table)
        paths = [path for path, there in zip(table.paths, readable, strict=True) if there]
        return {path: row.tobytes() for path, row in zip(paths, embeddings, strict=True)}


@pytest.mark.usefixtures("free_backbone")
def test_a_folder_in_s3_is_embedded_as_the_same_folder_on_a_disk(
    s3: Store, tmp_path: Path, hoarfrost: Hoarfrost
) -> None:
    folder = write_image_folder(tmp_path / "busi", {"train/benign ü#1": 3, "train/b+c%20d": 3, "test/benign ü#1": 2})
    for data, cache in ((folder, "local.h5"), (s3.put(folder, "busi"), "remote.h5")):
        output = hoarfrost("extract", data, "--cache", tmp_path / cache, "--weights", "random:0")
        assert output.status == 0, output.stderr
    assert embeddings_of(tmp_path / "remote.h5") == embeddings_of(tmp_path / "local.h5")


def test_images_at_a_url_are_predicted_and_explained_as_those_on_a_disk(
    s3: Store, tmp_path: Path, hoarfrost: Hoarfrost
) -> None:
    folder = write_image_folder(tmp_path / "x", {"train/a": 4, "train/b": 4, "val/a": 2, "val/b": 2})
    run, new = tmp_path / "run", tmp_path / "new"
    extract(folder, tmp_path / "c.h5", options=ExtractOptions(weights="random:0"))
    run_experiment(tmp_path / "c.h5", run, parse_heads(["linear"]), ExperimentConfig(training=TrainingConfig(epochs=2)))
    write_image_folder(new, {"any": 3})
    url = s3.put(new, "new")
    for data, output in ((new, "disk.csv"), (url, "store.csv"), (f"{url}/any/0.png", "one.csv")):
        found = hoarfrost("predict", data, "--run", run, "--output", tmp_path / output)
        assert found.status == 0, found.stderr
    assert (tmp_path / "disk.csv").read_text() == (tmp_path / "store.csv").read_text()
    assert len((tmp_path / "one.csv").read_text().splitlines()) == 2
    found = hoarfrost("explain", url, "--run", run, "--output", tmp_path / "explained")
    assert found.status == 0, found.stderr
    assert len(list((tmp_path / "explained").glob("*.png"))) == 3


@pytest.mark.usefixtures("free_backbone")
def test_an_unchanged_store_is_listed_and_not_read_again(
    s3: Store, tmp_path: Path, hoarfrost: Hoarfrost, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = s3.put(write_image_folder(tmp_path / "x", {"a": 2, "b": 2}), "again")
    arguments = ("extract", url, "--cache", tmp_path / "c.h5", "--weights", "random:0")
    assert hoarfrost(*arguments).status == 0
    s3.client.put_object(Bucket="again", Key="a/0.png", Body=encode(picture(seed=77)))
    wanted: list[str] = []
    monkeypatch.setattr("hoarfrost.features.datasets.table.read", lambda place: wanted.append(place) or read(place))
    assert hoarfrost(*arguments).status == 0
    assert wanted == ["s3://again/a/0.png"]


def test_same_size_put_within_a_second_is_seen_by_its_tag(s3: Store) -> None:
    s3.client.create_bucket(Bucket="tags")
    stamps = []
    for content in (b"first", b"other"):
        s3.client.put_object(Bucket="tags", Key="x", Body=content)
        stamps.append(stamp_of("s3://tags/x"))
    assert stamps[0].size == stamps[1].size
    assert stamps[0].mtime_ns != stamps[1].mtime_ns


def test_csv_on_disk_may_name_urls_beside_paths(s3: Store, web: str, tmp_path: Path) -> None:
    s3.put(write_image_folder(tmp_path / "in-s3", {"x": 1}), "mixed")
    write_image_folder(tmp_path / "served", {"y z": 1})
    write_image_folder(tmp_path / "z", {"z": 1})
    rows = [["path", "label"], ["s3://mixed/x/0.png", "a"], [f"{web}/y%20z/0.png", "b"], ["z/0.png", "b"]]
    dataset = read_dataset(write_csv(tmp_path / "z" / "x.csv", [*rows[:3], ["z/0.png", "b"]]))
    contents = [reading() for _, reading in dataset.images.contents(range(3))]
    assert contents == [encode(picture(12, 10, seed=0))] * 3


def test_csv_at_a_url_names_files_beside_it(web: str, tmp_path: Path) -> None:
    write_image_folder(tmp_path / "served" / "set", {"a ä": 1, "b": 1})
    write_csv(tmp_path / "served" / "set" / "labels.csv", [["path", "label"], ["a ä/0.png", "x"], ["b/0.png", "y"]])
    for url in (f"{web}/set/labels.csv", f"{web}/set", f"{web}/set/"):
        dataset = read_dataset(url)
        assert (dataset.name, dataset.paths) == ("set", ["a ä/0.png", "b/0.png"])
        assert [reading() for _, reading in dataset.images.contents([0])] == [encode(picture(12, 10, seed=0))]


def test_folder_on_a_plain_web_server_is_a_dataset(web: str, tmp_path: Path) -> None:
    write_image_folder(tmp_path / "served" / "set", {"be nign": 2, "malignant/deeper": 1})
    dataset = read_dataset(f"{web}/set")
    assert dataset.paths == ["be nign/0.png", "be nign/1.png", "malignant/deeper/0.png"]
    assert dataset.labels == ["be nign", "be nign", "malignant"]
    assert len(list(dataset.images.contents(range(3)))) == 3


def test_dicom_file_without_suffix_and_preamble_is_found_at_a_url_too(web: str, tmp_path: Path) -> None:
    write_image_folder(tmp_path / "served", {"a": 1, "b": 1})
    (tmp_path / "served" / "a" / "IM1").write_bytes(encoded(dicom(grey_values()))[132:])
    (tmp_path / "served" / "a" / "notes").write_bytes(b"\x08\0\x05\0\0\0\0\0")
    assert read_dataset(f"{web}/", name="x").paths == ["a/0.png", "a/IM1", "b/0.png"]


ODD_NAMES = ["a?b.png", "a#b.png", "a&b.png", "a%20b.png", "a b.png", "ä.png", "=;+,.png"]


class EscapingWeb(Web):
    """Writes links as servers do that escape a quoted name for HTML once more, and begin it with "./"."""

    def list_directory(self, path: Any) -> io.BytesIO:
        names = (name + "/" * os.path.isdir(os.path.join(path, name)) for name in os.listdir(path))
        links = (html.escape(urllib.parse.quote(name, safe="/&+;=,")) for name in names)
        page = '<a href="?C=N;O=D">Name</a>' + "".join(f'<a href="./{link}">it</a>' for link in links)
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        return io.BytesIO(page.encode())


@pytest.mark.usefixtures("web")
@pytest.mark.parametrize("handler", [Web, EscapingWeb])
def test_no_image_on_a_web_server_is_lost_for_its_name(tmp_path: Path, handler: type[Web]) -> None:
    for label in ("a", "b"):
        (tmp_path / "served" / label).mkdir()
        for name in ODD_NAMES:
            (tmp_path / "served" / label / name).write_text(name)
    with served_by(functools.partial(handler, directory=str(tmp_path / "served"))) as url:
        dataset = read_dataset(url, name="odd")
        assert sorted(dataset.paths) == sorted(f"{label}/{name}" for label in "ab" for name in ODD_NAMES)
        for index, reading in dataset.images.contents(range(len(dataset))):
            assert dataset.paths[index][2:].encode() == reading()


@pytest.mark.parametrize("end", ["?x=secret", "#part", "/a?x=secret"])
def test_a_folder_with_a_query_is_refused_for_it_would_hold_itself_without_end(
    web: str, tmp_path: Path, end: str
) -> None:
    write_image_folder(tmp_path / "served", {"a": 1, "b": 1})
    with pytest.raises(DatasetError, match="URL of a folder must not have a part after") as caught:
        read_dataset(web + end)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("path", ["../x.png", "/x.png", "a/../../x.png"])
def test_csv_at_a_url_names_nothing_outside_its_folder(web: str, tmp_path: Path, path: str) -> None:
    write_csv(tmp_path / "served" / "x.csv", [["path", "label"], [path, "a"]])
    with pytest.raises(DatasetError, match=r"line 2: .* is outside the CSV's folder http"):
        read_dataset(f"{web}/x.csv")


def test_what_passes_is_asked_for_again(web: str, tmp_path: Path) -> None:
    (tmp_path / "served" / "x.png").write_bytes(b"content")
    Web.refusals["/x.png"] = [503, 429, 500]
    assert read(f"{web}/x.png") == b"content"


def test_an_answer_that_stays_an_error_costs_one_image(web: str, tmp_path: Path) -> None:
    (tmp_path / "served" / "x.png").write_bytes(b"content")
    Web.refusals["/x.png"] = [500] * 9
    with pytest.raises(ImageDecodeError, match="answers HTTP 500"):
        read(f"{web}/x.png")


def test_missing_and_forbidden_files_are_told_apart(web: str) -> None:
    with pytest.raises(ImageDecodeError, match=f"^{os.strerror(errno.ENOENT)}$"):
        read(f"{web}/absent.png?signature=secret")
    Web.refusals["/closed.png"] = [403] * 9
    with pytest.raises(ImageDecodeError, match="access denied"):
        read(f"{web}/closed.png")


def test_missing_credentials_end_the_extraction_and_say_where_they_come_from(web: str) -> None:
    Web.refusals["/x.png"] = [401] * 9
    with pytest.raises(RemoteError, match=r"credentials are missing, wrong or expired .*\.netrc"):
        read(f"{web}/x.png")


@pytest.mark.usefixtures("free_backbone")
@pytest.mark.usefixtures("s3")
def test_missing_bucket_is_named(tmp_path: Path, hoarfrost: Hoarfrost) -> None:
    output = hoarfrost("extract", "s3://absent/folder", "--cache", tmp_path / "c.h5", "--weights", "random:0")
    assert output.status == 1
    assert "s3://absent/folder: nothing was found at this URL" in output.stderr


def test_bad_images_at_a_url_are_rows_as_locally(web: str, tmp_path: Path, hoarfrost: Hoarfrost) -> None:
    folder = write_image_folder(tmp_path / "served" / "set", {"a": 3, "b": 3})
    (folder / "a" / "bad.png").write_bytes(b"no image")
    Web.refusals["/set/b/0.png"] = [403] * 9
    output = hoarfrost(
        "extract", f"{web}/set", "--cache", tmp_path / "c.h5", "--weights", "random:0", "--max-bad", "0.5"
    )
    assert output.status == 0, output.stderr
    with EmbeddingCache(tmp_path / "c.h5") as cache:
        table = cache.dataset()
    reasons = {path: error for path, error in zip(table.paths, table.errors, strict=True) if error}
    assert set(reasons) == {"a/bad.png", "b/0.png"}
    assert "access denied" in reasons["b/0.png"]


@pytest.mark.slow
@pytest.mark.usefixtures("free_backbone")
def test_credentials_that_expire_midway_lose_nothing(
    web: str, tmp_path: Path, hoarfrost: Hoarfrost, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_image_folder(tmp_path / "served" / "set", {"a": 20, "b": 20})
    arguments = ("extract", f"{web}/set", "--cache", tmp_path / "c.h5", "--weights", "random:0", "--batch-size", 4)
    monkeypatch.setattr(Web, "left", 60)
    output = hoarfrost(*arguments, "--json")
    assert output.status == 1
    assert "credentials are missing, wrong or expired" in output.stderr
    monkeypatch.setattr(Web, "left", 1000)
    output = hoarfrost(*arguments, "--json")
    assert output.status == 0, output.stderr
    summary = json.loads(output.stdout)
    assert summary["images"] == 40
    assert 0 < summary["reused"] < 40


@pytest.mark.slow
@pytest.mark.usefixtures("free_backbone")
def test_report_without_its_server_says_so_and_is_written(
    tmp_path: Path, hoarfrost: Hoarfrost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "PAUSES_S", (0.01,))
    served = write_image_folder(tmp_path / "served", {"a": 20, "b": 20})
    with served_by(functools.partial(Web, directory=str(served))) as url:
        hoarfrost("extract", f"{url}/", "--cache", tmp_path / "c.h5", "--weights", "random:0", "--name", "set")
        hoarfrost("train", "--cache", tmp_path / "c.h5", "--run", tmp_path / "run", "--head", "linear", "--epochs", 1)
    output = hoarfrost(
        "report", "--run", tmp_path / "run", "--no-map", "--images-from", url.split("//")[1].partition(":")[0]
    )
    assert output.status == 0, output.stderr
    assert "does not answer" in (tmp_path / "run" / "report.html").read_text()


def test_server_without_dates_is_read_again(web: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "served" / "x.png").write_bytes(b"content")
    original = Web.send_header

    def without_dates(self: Web, keyword: str, value: str) -> None:
        if keyword != "Last-Modified":
            original(self, keyword, value)

    monkeypatch.setattr(Web, "send_header", without_dates)
    assert stamp_of(f"{web}/x.png") != stamp_of(f"{web}/x.png")


def test_a_scheme_in_capitals_is_the_same(s3: Store, tmp_path: Path) -> None:
    url = s3.put(write_image_folder(tmp_path / "images", {"a": 1, "b": 1}), "capitals")
    assert read_dataset(url.replace("s3", "S3")).paths == ["a/0.png", "b/0.png"]
    manifest = write_csv(tmp_path / "x.csv", [["path", "label"], ["S3://capitals/a/0.png", "a"], ["b.png", "b"]])
    assert read_dataset(manifest).paths[0] == "s3://capitals/a/0.png"


def test_inspect_reads_dicom_and_pages_at_a_url(web: str, tmp_path: Path, hoarfrost: Hoarfrost) -> None:
    from PIL import Image

    folder = write_image_folder(tmp_path / "served" / "set", {"a": 1, "b": 1})
    pages = [Image.fromarray(np.full((8, 8), value, np.uint8)) for value in (1, 2, 3)]
    pages[0].save(folder / "b" / "pages.tif", save_all=True, append_images=pages[1:])
    assert len(read_dataset(f"{web}/set")) == 5
    output = hoarfrost("inspect", f"{web}/set")
    assert output.status == 0, output.stderr
