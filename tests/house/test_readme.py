"""The README's commands run as they stand, one after the other, as a newcomer would type them."""

import configparser
import functools
import http.server
import re
import shlex
import shutil
import threading
import urllib.request
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.support.builders import encode, picture, write_csv
from tests.support.commands import ROOT, Hoarfrost, RunPython
from tests.support.dicoms import dicom, encoded, grey_values

# What is not run here, by how a line begins: the test that runs the like of it.
ELSEWHERE = {
    "make report": "house/test_main_job::test_make_report_alone_does_everything_on_the_demo_set",
    "make train": "house/test_main_job::test_train_needs_no_image_and_no_forward_pass",
    "hoarfrost extract /mnt/": "extraction/test_cluster::test_two_hosts_make_the_cache_that_one_machine_makes",
    "ray ": "extraction/test_cluster::test_two_hosts_make_the_cache_that_one_machine_makes",
    "hoarfrost train --cache /mnt/": "extraction/test_cluster::test_two_hosts_make_the_cache_that_one_machine_makes",
    "hoarfrost report --run runs/chest": "house/test_main_job::test_make_report_alone_does_everything_on_the_demo_set",
    "hoarfrost serve": "inference/test_serve_run::test_dropped_image_shows_answer_map_and_nearest_training_images",
    "curl ": "inference/test_serve_run::test_two_hundred_requests_of_eight_clients_are_all_answered_as_predict_answers",
    "hoarfrost doctor": "cli/test_doctor::test_everything_is_looked_at_and_nothing_is_broken_here",
    "pip install 'hoarfrost[": "house/test_readme::test_extras_in_the_readme_are_those_that_there_are",
    "pip wheel": "house/test_packaging::test_wheel_made_from_the_sdist_works_where_the_sources_are_not",
    "pip install --no-index": "house/test_packaging::test_wheel_made_from_the_sdist_works_where_the_sources_are_not",
    "cpu/bin/pip install .": "house/test_packaging::test_wheel_made_from_the_sdist_works_where_the_sources_are_not",
}
BY_OTHERS = ("make test", "python3 -m venv cpu")  # .ci/run; Python's own
NEVER = ("cpu/bin/pip install torch torchvision --index-url ",)  # which the README says


def lines_of_shell() -> list[str]:
    """Give the lines of all shell blocks, without their comments."""
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    lines = [re.split(r"  +#", line)[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line]


def commands() -> list[str]:
    """Give the lines that are run here."""
    return [line for line in lines_of_shell() if line.startswith("hoarfrost ") and not line.startswith((*ELSEWHERE,))]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give a working folder with what the README takes for granted; untrained weights stand for ImageNet's."""
    import hoarfrost.features.encoder.backbone

    load = hoarfrost.features.encoder.backbone.load_weights
    monkeypatch.setattr(
        hoarfrost.features.encoder.backbone,
        "load_weights",
        lambda spec, encoder: load("random:0" if spec == "imagenet" else spec, encoder),
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
    names = [("benign", "malignant")[i % 2] for i in range(60)]
    cohort = [[f"images/{name}/{i}.png", name, f"p{i // 4}-{i % 2}", "AB"[i % 3 % 2]] for i, name in enumerate(names)]
    write_csv(tmp_path / "cohort.csv", [["path", "label", "patient", "scanner"], *cohort])
    rows = [["path", "label"]]
    for i in range(40):
        (tmp_path / "archive").mkdir(exist_ok=True)
        (tmp_path / "archive" / f"IM{i:04d}").write_bytes(encoded(dicom(grey_values(seed=i), PatientID=f"{i // 2}")))
        rows.append([f"IM{i:04d}", "ab"[i // 2 % 2]])
    write_csv(tmp_path / "archive" / "labels.csv", rows)
    return tmp_path


@pytest.fixture
def store(place: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Put the images where `s3://archive/chest` is."""
    pytest.importorskip("s3fs")
    server = pytest.importorskip("moto.server").ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    import boto3

    from hoarfrost.features.files import remote

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
@pytest.mark.skipif(find_spec("onnxscript") is None, reason="onnxscript is not installed")
def test_the_readmes_commands_run_in_their_order(place: Path, host: str, hoarfrost: Hoarfrost) -> None:
    ran = set()
    for line in commands():
        if "linear.safetensors" in line:
            shutil.copy(place / "runs" / "first" / "heads" / "linear.safetensors", place)
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


def test_every_line_is_run_here_or_by_the_test_that_is_named_or_said_to_be_run_by_none() -> None:
    lines = lines_of_shell()
    for begins in (*ELSEWHERE, *BY_OTHERS, *NEVER):
        assert any(line.startswith(begins) for line in lines), begins
    assert [line for line in lines if not line.startswith(("hoarfrost ", *ELSEWHERE, *BY_OTHERS, *NEVER))] == []
    for named in ELSEWHERE.values():
        file, test = named.split("::")
        assert f"def {test}(" in (ROOT / "tests" / f"{file}.py").read_text(encoding="utf-8")
    assert "make test" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_extras_in_the_readme_are_those_that_there_are() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    named = set(re.findall(r"hoarfrost\[(\w+)\]", (ROOT / "README.md").read_text(encoding="utf-8")))
    assert named <= set(setup["options.extras_require"])
    assert named >= {"dicom", "remote", "gs", "onnx", "serve", "ray"}


def test_completion_is_what_the_readme_says(run_python: RunPython, monkeypatch: pytest.MonkeyPatch) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for shell in ("bash", "zsh", "fish"):
        assert f"{shell}_source" in readme
        monkeypatch.setenv("_HOARFROST_COMPLETE", f"{shell}_source")
        output = run_python("-c", "from hoarfrost.cli import main; main(prog_name='hoarfrost')")
        assert output.status == 0
        assert "hoarfrost" in output.stdout
