"""`make report` and friends, as a user runs them, in a fresh copy of the project."""

import json
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from tests.extraction.test_extract import write_images

ROOT = Path(__file__).parents[2]
DATA = "my images ä"
BUSI = ROOT.parent / "shared" / "data" / "busi"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return copy_project(tmp_path / "project")


def copy_project(copy: Path) -> Path:
    """Copy what git would give, without anything that was made here."""
    ignored = shutil.ignore_patterns(".git", ".venv", "artifacts", "__pycache__", ".*_cache", "*.egg-info")
    shutil.copytree(ROOT, copy, ignore=ignored)
    return copy


def make(project: Path, *arguments: str, succeeds: bool = True, python: str = sys.executable) -> str:
    # What runs these tests is a make itself: its variables are not ours.
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    for name in [
        "DATA",
        "CACHE",
        "RUN",
        "WEIGHTS",
        "ENCODER",
        "POSITIVE",
        "HEADS",
        "PYTHON",
        "SLOW",
        "LOCKED",
        "EXPLAIN",
        "JOBS",
    ]:
        environment.pop(name, None)
    result = subprocess.run(
        ["make", *arguments, f"PYTHON={python}"], cwd=project, env=environment, capture_output=True, text=True
    )
    assert (result.returncode == 0) == succeeds, result.stderr
    return result.stdout if succeeds else result.stderr


def reported(project: Path, output: str) -> tuple[Path, dict[str, object]]:
    """Return the run folder that `make report` named, and its metrics."""
    report = project / output.splitlines()[-1].removeprefix("report ")
    assert report.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    metrics = json.loads((report.parent / "metrics.json").read_text(encoding="utf-8"))
    return report.parent, metrics


def selected_auc(metrics: dict[str, object]) -> float:
    heads = {head["name"]: head for head in metrics["heads"]}  # type: ignore[attr-defined]
    return float(heads[metrics["selected"]]["test"]["roc_auc"])


@pytest.mark.slow
def test_make_report_alone_does_everything_on_the_demo_set(project: Path) -> None:
    run, metrics = reported(project, make(project, "report", "WEIGHTS=random:0"))
    assert 0.80 <= selected_auc(metrics) <= 0.98
    text = (run / "report.html").read_text(encoding="utf-8")
    assert "random:0" in text
    assert "lower limit, not a result" in text


@pytest.mark.slow
@pytest.mark.skipif(not BUSI.is_dir(), reason="../shared/data/busi is not on this machine")
def test_busi_with_random_weights_reaches_an_auc_of_three_quarters(project: Path, busi_cache: Path) -> None:
    shutil.copy(busi_cache, project / "c.h5")
    settings = (f"DATA={BUSI}", "CACHE=c.h5", "POSITIVE=malignant", "WEIGHTS=random:0")
    output = make(project, "report", *settings)
    assert "0 embedded, 780 reused" in output
    _, metrics = reported(project, output)
    assert selected_auc(metrics) >= 0.75


@pytest.fixture(scope="module")
def reported_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a folder with a copy of the project, images, and a report of one head on them; tests copy it."""
    folder = tmp_path_factory.mktemp("reported")
    copy_project(folder / "project")
    write_images(folder / DATA, 24)
    make(folder / "project", "report", f"DATA=../{DATA}", "WEIGHTS=random:0", "HEADS=linear")
    return folder


@pytest.fixture
def after_report(reported_once: Path, tmp_path: Path) -> Path:
    shutil.copytree(reported_once, tmp_path / "work")  # modification times are kept
    return tmp_path / "work" / "project"


def metrics_of(project: Path) -> Path:
    return next(project.glob("artifacts/*/random_0/run/metrics.json"))


def head_names(project: Path) -> list[str]:
    return [head["name"] for head in json.loads(metrics_of(project).read_text(encoding="utf-8"))["heads"]]


@pytest.mark.slow
def test_train_needs_no_image_and_no_forward_pass(after_report: Path) -> None:
    shutil.rmtree(after_report.parent / DATA)
    make(after_report, "train", f"DATA=../{DATA}", "WEIGHTS=random:0", "HEADS=mlp:32 mlp:8x3")
    assert head_names(after_report) == ["mlp:32", "mlp:8x3"]


@pytest.mark.slow
def test_report_does_not_train_what_is_trained(reported_once: Path) -> None:
    project = reported_once / "project"
    before = metrics_of(project).stat().st_mtime_ns
    make(project, "report", f"DATA=../{DATA}", "WEIGHTS=random:0")
    assert metrics_of(project).stat().st_mtime_ns == before


@pytest.mark.slow
def test_report_trains_again_when_there_are_new_images(after_report: Path) -> None:
    write_images(after_report.parent / DATA, 26)
    make(after_report, "report", f"DATA=../{DATA}", "WEIGHTS=random:0")
    assert head_names(after_report) == ["logistic", "mlp:256", "quadratic", "mean"]


@pytest.mark.slow
def test_two_datasets_of_one_name_do_not_meet(project: Path, tmp_path: Path) -> None:
    for folder, n in (("a", 4), ("b", 6)):
        write_images(tmp_path / folder / "images", n, seed=n)
        output = make(project, "extract", f"DATA={tmp_path / folder / 'images'}", "WEIGHTS=random:0")
        assert f"{n} embedded, 0 reused" in output
    assert len(list(project.glob("artifacts/images-*/random_0/embeddings.h5"))) == 2


def test_a_wrong_path_ends_make_with_a_message(project: Path) -> None:
    errors = make(project, "report", "DATA=nowhere", "WEIGHTS=random:0", succeeds=False)
    assert "nowhere: no such file or folder" in errors
    assert "Traceback" not in errors


def test_environment_that_lacks_what_is_needed_is_told_what_brings_it(project: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "bare", symlinks=True)
    python = tmp_path / "bare" / "bin" / "python"
    errors = make(project, "extract", "DATA=x", succeeds=False, python=str(python))
    assert (
        f"Missing in this environment: torch, torchvision, h5py, sklearn, click, jinja2. Run {python} -m pip install ."
        in errors
    )
    assert "PYTHON=nowhere: command not found" in make(project, "extract", "DATA=x", succeeds=False, python="nowhere")


def test_switches_that_are_off_and_a_slash_at_the_end_of_a_folder_change_nothing(project: Path) -> None:
    def planned(*arguments: str) -> str:
        return make(project, "--dry-run", "test", *arguments)

    assert '-m "not slow"' in planned("SLOW=0")
    assert planned("SLOW=no") == planned() != planned("SLOW=1")
    for data in ("DATA=nowhere", "DATA=nowhere/"):
        errors = make(project, "extract", data, "WEIGHTS=random:0", succeeds=False)
        assert "Error: nowhere: no such file" in errors
