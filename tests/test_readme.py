"""The README's commands run as they stand, one after the other, as a newcomer would type them."""

import functools
import http.server
import re
import shlex
import shutil
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.builders import encode, picture, write_csv
from tests.commands import ROOT, Hoarfrost
from tests.dicoms import dicom, encoded, grey_values

ELSEWHERE = {"--engine ray": "test_cluster", "hoarfrost serve": "test_serve_run", "--cache /mnt/": "test_cluster"}


def commands() -> list[str]:
    """Give the lines of all shell blocks that begin with the project's command, without their comments."""
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    lines = [line.split("  #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line.startswith("hoarfrost ")]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give a working folder with what the README takes for granted; untrained weights stand for ImageNet's."""
    import features.backbone

    load = features.backbone.load_weights
    monkeypatch.setattr(
        features.backbone, "load_weights", lambda spec: load("random:0" if spec == "imagenet" else spec)
    )
    monkeypatch.chdir(tmp_path)
    for i in range(60):
        image = picture(40, 40, seed=i).point(lambda value, i=i: value // (1 + i % 2))
        path = tmp_path / "images" / ("benign", "malignant")[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(image))
    (tmp_path / "new").mkdir()
    for i in range(3):
        (tmp_path / "new" / f"{i}.png").write_bytes(encode(picture(40, 40, seed=100 + i)))
    (tmp_path / "scan.dcm").write_bytes(encoded(dicom(grey_values())))
    rows = [["path", "label"], *([f"images/benign/{i}.png", "a"] for i in (0, 2)), ["images/malignant/1.png", "b"]]
    for table in (tmp_path / "mixed.csv", tmp_path / "set" / "labels.csv"):
        write_csv(table, rows)
    shutil.copytree(tmp_path / "images", tmp_path / "set" / "images")
    return tmp_path


@pytest.fixture
def store(place: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Put the images where `s3://archive/chest` is."""
    pytest.importorskip("s3fs")
    server = pytest.importorskip("moto.server").ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    import boto3

    from features.files import remote

    server.start()
    endpoint = "http://{}:{}".format(*server.get_host_and_port())
    keys = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_DEFAULT_REGION": "us-east-1"}
    for name, value in {**keys, "AWS_ENDPOINT_URL": endpoint}.items():
        monkeypatch.setenv(name, value)
    remote._opened.cache_clear()
    client = boto3.Session().client("s3", endpoint_url=endpoint)
    client.create_bucket(Bucket="archive")
    for file in (place / "images").rglob("*.png"):
        client.upload_file(str(file), "archive", f"chest/{file.relative_to(place / 'images')}")
    yield endpoint
    urllib.request.urlopen(urllib.request.Request(f"{endpoint}/moto-api/reset", method="POST")).close()
    server.stop()


@pytest.fixture
def host(place: Path) -> Iterator[str]:
    """Serve what `https://host` has; give its URL."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(place))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.slow
@pytest.mark.usefixtures("store")
def test_the_readmes_commands_run_in_their_order(place: Path, host: str, hoarfrost: Hoarfrost) -> None:
    ran = set()
    for line in commands():
        if any(part in line for part in ELSEWHERE) or "runs/chest" in line:
            continue
        if "linear.safetensors" in line:
            shutil.copy(place / "runs" / "first" / "heads" / "linear.safetensors", place)
        if "--format onnx" in line:
            pytest.importorskip("onnxscript")
        program, *arguments = shlex.split(line.replace("https://host", host))
        done = hoarfrost(*arguments)
        assert done.status == 0, (line, done.stderr)
        ran.add(arguments[0])
    assert ran == {"inspect", "extract", "train", "report", "predict", "heads", "explain", "export"}
    products = (
        "seen.png",
        "runs/first/report.html",
        "new.csv",
        "linear.csv",
        "scan.csv",
        "explained",
        "model/first.onnx",
    )
    assert [name for name in products if not (place / name).exists()] == []


def test_what_is_not_run_here_is_run_by_the_test_that_is_named() -> None:
    for part, test in ELSEWHERE.items():
        assert any(part in line for line in commands()), part
        assert (ROOT / "tests" / f"{test}.py").is_file()
