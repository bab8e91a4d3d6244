"""A run's head as a page and an interface: in a browser, under load, and against what strangers send."""

import base64
import csv
import io
import json
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hoarfrost.runs import Run
from tests.inference.test_serve import bomb
from tests.support.browser import Browser, Tab, open_tab
from tests.support.builders import encode, picture
from tests.support.commands import ROOT, Hoarfrost

pytest.importorskip("fastapi_offline")
httpx = pytest.importorskip("httpx")
pytestmark = pytest.mark.slow

SETTLED = """new Promise(done => { const look = () => {
  const result = document.getElementById("result"), problem = document.getElementById("problem");
  if (!result.hidden || !problem.hidden) done(problem.hidden ? "" : problem.textContent); else setTimeout(look, 20);
}; look(); })"""


@pytest.fixture(scope="module")
def demo(reported: Callable[[str], Run]) -> Run:
    return reported("demo")


@pytest.fixture(scope="module")
def url(demo: Run) -> Iterator[str]:
    command = [sys.executable, "-m", "hoarfrost", "serve", "--run", str(demo.directory), "--port", "0", "--json"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield str(json.loads(process.stdout.readline())["url"])
        process.terminate()
        assert process.wait(20) in {0, -15}


def images_of(run: Run, split: str = "test") -> list[Path]:
    folder = run.directory.parent / "demo"
    return [folder / p for p, s in zip(run.predictions.paths, run.predictions.splits, strict=True) if s == split]


def post(url: str, content: bytes, name: str = "x.png", **parameters: str) -> Any:
    return httpx.post(f"{url}predict", files={"file": (name, content)}, params=parameters, timeout=60)


@pytest.fixture
def tab(browser: Browser, url: str) -> Iterator[Tab]:
    opened = open_tab(browser, url)
    yield opened
    opened.close()


def drop(tab: Tab, content: bytes, name: str) -> str:
    """Drop a file on the page; give what it says is wrong."""
    # The page itself may not fetch this: its policy allows its own host alone.
    tab.call("Page.setBypassCSP", enabled=True)
    script = (
        f"const bytes = Uint8Array.from(atob('{base64.b64encode(content).decode()}'), c => c.charCodeAt(0));"
        f"const data = new DataTransfer(); data.items.add(new File([bytes], {json.dumps(name)}));"
        "document.dispatchEvent(new DragEvent('drop', {dataTransfer: data, bubbles: true, cancelable: true}));"
    )
    tab.run(f"{{ {script} }}")
    return str(tab.run(SETTLED))


def test_dropped_image_shows_answer_map_and_nearest_training_images(tab: Tab, demo: Run, url: str) -> None:
    image = images_of(demo)[0]
    assert drop(tab, image.read_bytes(), image.name) == ""
    answer = post(url, image.read_bytes()).json()
    assert tab.run("document.getElementById('predicted').textContent") == ", ".join(answer["called"])
    threshold = httpx.get(f"{url}about").json()["thresholds"]["malignant"]
    p, of_class = answer["probabilities"]["malignant"], "" if answer["called"] == ["malignant"] else " of malignant"
    assert (p >= threshold["value"]) == (answer["called"] == ["malignant"])
    assert tab.run("document.getElementById('decision').textContent") == (
        f"predicted: {answer['called'][0]}, probability{of_class} {p:.3f}, threshold >= {threshold['value']:.3f} "
        "(Youden's index)"
    )
    assert "Research use only" in tab.run("document.body.textContent")
    tab.run("Promise.all([...document.images].map(image => image.decode()))")
    assert tab.run("document.getElementById('map').naturalWidth") == 224
    assert tab.run("document.getElementById('image').naturalWidth") == 224
    assert tab.run("document.querySelectorAll('#nearest li img').length") == 6
    assert tab.run("document.getElementById('distance').textContent").startswith(f"{answer['distance']:.4g}"[:4])
    assert all(request.startswith((url, "data:", "blob:")) for request in tab.requests)
    assert tab.complaints == []


def test_dropped_rubbish_is_told_and_the_next_image_is_answered(tab: Tab, demo: Run) -> None:
    assert "no image format recognised" in drop(tab, b"a text", "notes.txt")
    assert "at most 20 MB" in drop(tab, bytes(20_000_001), "large.png")
    assert drop(tab, images_of(demo)[1].read_bytes(), "next.png") == ""
    assert tab.run("document.getElementById('name').textContent") == "next.png"


def test_hostile_file_name_is_text(tab: Tab, demo: Run) -> None:
    name = "<img src=x onerror=alert(1)>.png"
    assert drop(tab, images_of(demo)[0].read_bytes(), name) == ""
    assert tab.run("document.getElementById('name').textContent") == name
    assert tab.complaints == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_violation_on_the_page(browser: Browser, url: str, demo: Run, axe: str, scheme: str) -> None:
    tab = open_tab(browser, url, features={"prefers-color-scheme": scheme})
    assert drop(tab, images_of(demo)[0].read_bytes(), "x.png") == ""
    tab.run(f"{axe}; 0")
    found = tab.run("axe.run().then(r => r.violations.map(v => [v.impact, v.id, v.nodes[0].html.slice(0, 200)]))")
    tab.close()
    assert found == []


@pytest.mark.parametrize("width", [360, 1280])
def test_page_never_scrolls_sideways(browser: Browser, url: str, demo: Run, width: int) -> None:
    tab = open_tab(browser, url, width=width)
    assert drop(tab, images_of(demo)[0].read_bytes(), "a" * 200 + ".png") == ""
    wide = tab.run("document.documentElement.scrollWidth")
    tab.close()
    assert wide <= width


def zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("x.png", encode(picture()))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "status"),
    [
        ("noise.png", np.random.default_rng(0).bytes(20_000_000), 415),
        ("large.png", bytes(21_000_000), 413),
        ("x.zip", zipped(), 415),
        ("notes.txt", b"a text", 415),
        ("bomb.jpg", bomb(), 415),
        ("empty.png", b"", 415),
    ],
    ids=["noise", "large", "zip", "text", "bomb", "empty"],
)
def test_rubbish_is_refused_and_the_server_lives(url: str, demo: Run, name: str, content: bytes, status: int) -> None:
    response = post(url, content, name)
    assert response.status_code == status
    assert re.search(r"[a-z]{3} ", response.json()["detail"])
    assert post(url, images_of(demo)[0].read_bytes()).status_code == 200


def test_dicom_is_answered(url: str) -> None:
    data = pytest.importorskip("pydicom.data")
    path = Path(str(data.get_testdata_file("CT_small.dcm")))
    answer = post(url, path.read_bytes(), path.name, explain="true").json()
    assert sum(answer["probabilities"].values()) == pytest.approx(1)
    assert answer["explanation"]["map"].startswith("data:image/png;base64,")


def test_two_hundred_requests_of_eight_clients_are_all_answered_as_predict_answers(
    url: str, demo: Run, tmp_path: Path, hoarfrost: Hoarfrost
) -> None:
    data = demo.directory.parent / "demo"
    output = hoarfrost("predict", data, "--run", demo.directory, "--output", tmp_path / "p.csv")
    assert output.status == 0, output.stderr
    with (tmp_path / "p.csv").open(encoding="utf-8", newline="") as file:
        predicted = {row["path"]: row for row in csv.DictReader(file)}
    images = images_of(demo)
    wanted = [images[i % len(images)] for i in range(200)]
    contents = {path: path.read_bytes() for path in images}
    with ThreadPoolExecutor(8) as pool:
        responses = list(pool.map(lambda path: post(url, contents[path]), wanted))
    assert {response.status_code for response in responses} == {200}
    for path, response in zip(wanted, responses, strict=True):
        row, answer = predicted[str(path.relative_to(data))], response.json()
        assert answer["probabilities"]["malignant"] == pytest.approx(float(row["probability:malignant"]), abs=1e-6)
        assert "|".join(answer["called"]) == row["class"]
        assert answer["distance"] == pytest.approx(float(row["novelty"]), rel=1e-5)


def test_port_in_use_is_said(url: str, demo: Run, hoarfrost: Hoarfrost) -> None:
    port = url.rstrip("/").rpartition(":")[2]
    output = hoarfrost("serve", "--run", demo.directory, "--port", port)
    assert output.status == 1
    assert "Cannot listen on" in output.stderr


def test_run_that_is_none_is_said(tmp_path: Path, hoarfrost: Hoarfrost) -> None:
    output = hoarfrost("serve", "--run", tmp_path)
    assert output.status == 1
    assert "Traceback" not in output.stderr
