"""What a command writes takes no other's place, what cannot be written is known before the work, and what is said is true."""

import importlib
import io
import json
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from hoarfrost.features.cache import EmbeddingCache
from hoarfrost.features.extraction.interrupts import StopSignals
from hoarfrost.runs import read_run
from hoarfrost.training import TrainingConfig
from tests.support.builders import write_images
from tests.support.caches import write_cache
from tests.support.commands import Hoarfrost
from tests.support.labelled import embeddings_of, mixed, write_labelled_cache
from tests.support.predicted import Trained, train_on_pictures
from tests.support.standin import StandIn

pytestmark = pytest.mark.usefixtures("free_backbone")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return train_on_pictures(tmp_path_factory.mktemp("trained"))


# -- contact sheets -----------------------------------------------------------------------------------------------------


@pytest.fixture
def images(tmp_path: Path) -> Path:
    write_images(tmp_path / "images", ["a/1.png", "b/2.png"])
    return tmp_path / "images"


@pytest.mark.parametrize("name", ["images/a/1.png", "other.png", "c.h5", "labels.csv", "folder.png"])
def test_contact_sheet_takes_no_other_files_place(
    images: Path, tmp_path: Path, hoarfrost: Hoarfrost, name: str
) -> None:
    place = tmp_path / name
    if name == "folder.png":
        place.mkdir()
    elif not place.exists():
        place.write_bytes(b"somebody's")
    before = place.read_bytes() if place.is_file() else None
    output = hoarfrost("inspect", images, "--contact-sheet", place)
    assert output.status in {1, 2}
    reasons = (
        "would overwrite a file that is not a hoarfrost contact sheet",
        "Choose a name that ends in .png",
        "is a directory",
    )
    assert any(reason in output.stderr for reason in reasons)
    assert (place.read_bytes() if place.is_file() else None) == before


def test_contact_sheet_takes_an_earlier_ones_place(images: Path, tmp_path: Path, hoarfrost: Hoarfrost) -> None:
    for _ in range(2):
        assert hoarfrost("inspect", images, "--contact-sheet", tmp_path / "new" / "sheet.PNG").status == 0
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["sheet.PNG"]


def test_contact_sheet_of_maps_is_refused_before_anything_is_embedded(
    trained: Trained, tmp_path: Path, hoarfrost: Hoarfrost
) -> None:
    (tmp_path / "labels.csv").write_text("mine")
    places = ["--output", tmp_path / "out", "--contact-sheet", tmp_path / "labels.csv"]
    output = hoarfrost("explain", trained.images, "--run", trained.run, *places)
    assert output.status == 1
    assert "Choose a name that ends in .png" in output.stderr
    assert not (tmp_path / "out").exists()


# -- places that cannot be written --------------------------------------------------------------------------------------


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="there is no folder here that nobody may write to")
def test_place_that_cannot_be_written_is_refused_before_the_work(
    trained: Trained, hoarfrost: Hoarfrost, monkeypatch: pytest.MonkeyPatch
) -> None:
    forwarded = StandIn.forwarded
    monkeypatch.setattr("hoarfrost.experiment.variants.train_heads", lambda *_, **__: pytest.fail("heads were trained"))
    monkeypatch.setattr(
        "hoarfrost.features.extraction.survey.inspect_isolated", lambda *_: pytest.fail("images were decoded")
    )
    for arguments in (
        ["train", "--cache", trained.cache, "--run", "/proc/x"],
        ["predict", trained.images, "--run", trained.run, "--output", "/proc/x.csv"],
        ["inspect", trained.images, "--contact-sheet", "/proc/x.png"],
    ):
        output = hoarfrost(*arguments)
        assert output.status == 1
        assert "Name another" in output.stderr
    assert StandIn.forwarded == forwarded


def test_figures_do_not_go_into_a_runs_folder(trained: Trained, hoarfrost: Hoarfrost) -> None:
    output = hoarfrost("report", "--run", trained.run, "--figures", trained.run, "--no-map", "--no-images")
    assert output.status == 1
    assert "is a run folder, which `train` replaces as a whole" in output.stderr
    assert not list(trained.run.glob("*.svg"))


# -- what is said of what was kept --------------------------------------------------------------------------------------


def test_stopped_prediction_without_a_cache_says_that_nothing_is_kept(
    trained: Trained, tmp_path: Path, hoarfrost: Hoarfrost, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_images(tmp_path / "new", [f"{i}.png" for i in range(40)], size=(33, 21))
    check = StopSignals.check

    def stopped(self: StopSignals, n_left: int, readable: Any) -> None:
        self.received = signal.SIGINT
        check(self, n_left, readable)

    monkeypatch.setattr(StopSignals, "check", stopped)
    arguments = ["predict", tmp_path / "new", "--run", trained.run, "--output", tmp_path / "found.csv"]
    output = hoarfrost(*arguments)
    assert output.status == 1
    assert "Interrupted after" in output.stderr
    assert "No embeddings were kept. To keep them, use --cache FILE." in output.stderr
    assert "same command again" not in output.stderr
    output = hoarfrost(*arguments, "--cache", tmp_path / "c.h5")
    assert "of 40 images saved. Run the same command again to continue." in output.stderr


def test_device_that_is_not_there_is_refused_though_nothing_is_to_be_done(
    trained: Trained, hoarfrost: Hoarfrost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    arguments = ["extract", trained.images, "--cache", trained.cache, "--weights", "random:0", "--precision", "float32"]
    output = hoarfrost(*arguments, "--device", "cuda")
    assert output.status == 1
    assert "cuda" in output.stderr
    output = hoarfrost(*arguments, "--device", "cpu", "--json")
    assert json.loads(output.stdout)["device"] == "cpu"


def test_interrupted_command_says_what_it_left(hoarfrost: Hoarfrost, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(importlib.import_module("hoarfrost.cli.doctor"), "diagnose", interrupted)
    output = hoarfrost("doctor")
    assert output.status == 1
    assert output.stderr == "Error: Interrupted. No file was left half-written.\n"


def test_report_without_the_maps_that_were_asked_for_says_so(
    tmp_path: Path, hoarfrost: Hoarfrost, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hoarfrost.experiment.experiment import ExperimentConfig, run_experiment
    from hoarfrost.heads.specs import parse_heads

    labels = mixed({"benign": 40, "malignant": 30})
    cache = write_labelled_cache(tmp_path / "c.h5", labels, embeddings=embeddings_of(labels))
    run_experiment(
        cache, tmp_path / "run", parse_heads(["linear"]), ExperimentConfig(training=TrainingConfig(epochs=2))
    )
    monkeypatch.setattr("hoarfrost.report.outputs._explainer", lambda *_: object())
    output = hoarfrost("report", "--run", tmp_path / "run", "--explain", "--no-map")
    assert output.status == 0
    assert "warning: --explain: the report does not have explanation maps: " in output.stderr
    assert read_run(tmp_path / "run").selected == "linear"


# -- without a place to print to ----------------------------------------------------------------------------------------


def test_result_that_nobody_hears_is_no_error(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    from hoarfrost.cli import main

    with pytest.raises(SystemExit) as ended:
        main(["heads", str(trained.run)])
    assert not ended.value.code


class Full(io.TextIOWrapper):
    """A log on a full disk."""

    def __init__(self) -> None:
        super().__init__(io.BytesIO())

    def write(self, _: str) -> int:
        raise OSError(28, "No space left on device")


@pytest.mark.parametrize("stderr", [None, Full()], ids=["closed", "full"])
def test_log_that_cannot_be_written_stops_no_extraction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], stderr: Any
) -> None:
    from hoarfrost.cli import main

    write_images(tmp_path / "images", [f"{'ab'[i % 2]}/{i}.png" for i in range(8)])
    monkeypatch.setattr(sys, "stderr", stderr)
    with pytest.raises(SystemExit) as ended:
        main(
            ["extract", str(tmp_path / "images"), "--cache", str(tmp_path / "c.h5"), "--weights", "random:0", "--json"]
        )
    assert not ended.value.code
    assert json.loads(capsys.readouterr().out)["embedded"] == 8
    with EmbeddingCache(tmp_path / "c.h5") as cache:
        assert cache.n_images == 8


# -- messages that lead on ----------------------------------------------------------------------------------------------


def test_cache_of_which_nothing_is_left_sends_nobody_in_a_circle(tmp_path: Path, hoarfrost: Hoarfrost) -> None:
    write_cache(tmp_path / "c.h5")
    content = (tmp_path / "c.h5").read_bytes()
    (tmp_path / "c.h5").write_bytes(content[:5000])
    for command in ("info", "compact"):
        output = hoarfrost("cache", command, tmp_path / "c.h5")
        assert output.status == 1
        assert "Nothing in it can be read. Remove the file and extract again" in output.stderr
        assert "cache verify" not in output.stderr
    assert "Remove the file and extract again" in hoarfrost("cache", "verify", tmp_path / "c.h5").stdout


def test_what_is_no_file_is_not_said_to_be_missing(hoarfrost: Hoarfrost) -> None:
    output = hoarfrost("cache", "info", "/dev/null")
    assert output.status == 1
    assert "/dev/null is not a file, so it cannot be a cache" in output.stderr


@pytest.mark.parametrize("command", ["extract", "compact", "train"])
def test_what_is_no_cache_gets_no_lock_beside_it(tmp_path: Path, hoarfrost: Hoarfrost, command: str) -> None:
    write_images(tmp_path / "images", ["a/1.png", "b/2.png"])
    table = tmp_path / "images" / "labels.txt"
    table.write_text("mine")
    arguments = {
        "extract": ["extract", tmp_path / "images", "--cache", table, "--weights", "random:0"],
        "compact": ["cache", "compact", table],
        "train": ["train", "--cache", table, "--run", tmp_path / "run"],
    }[command]
    assert hoarfrost(*arguments).status == 1
    assert sorted(path.name for path in (tmp_path / "images").iterdir()) == ["a", "b", "labels.txt"]


def test_split_that_was_drawn_is_not_said_to_be_the_datasets(tmp_path: Path, hoarfrost: Hoarfrost) -> None:
    labels = [*["benign"] * 40, *["malignant"] * 40, *["normal"] * 5]
    cache = write_labelled_cache(tmp_path / "c.h5", labels, embeddings=embeddings_of(labels))
    output = hoarfrost("train", "--cache", cache, "--run", tmp_path / "run", "--epochs", "1")
    assert output.status == 1
    assert "--positive LABEL for two classes. (The split was drawn here" in output.stderr
    # Two classes cannot be merged.
    few = ["benign"] * 9 + ["malignant"] * 3
    cache = write_labelled_cache(tmp_path / "few.h5", few, embeddings=embeddings_of(few))
    output = hoarfrost("train", "--cache", cache, "--run", tmp_path / "few", "--epochs", "1", "--positive", "malignant")
    assert output.status == 1
    assert "(The split was drawn here" in output.stderr
    assert "--positive" not in output.stderr


def test_file_in_place_of_a_run_is_said_to_be_one(trained: Trained, hoarfrost: Hoarfrost) -> None:
    output = hoarfrost("report", "--run", trained.cache)
    assert output.status == 1
    assert "is a file. A run is a folder" in output.stderr


def test_option_without_effect_is_wrong_usage(trained: Trained, hoarfrost: Hoarfrost) -> None:
    output = hoarfrost("report", "--run", trained.run, "--weights", "random:1")
    assert output.status == 2
    assert "--weights is for --explain" in output.stderr


@pytest.mark.parametrize(
    "arguments",
    [["extract", "x", "--cache", "c.h5", "--max-bad", "nan"], ["serve", "--run", "r", "--timeout", "nan"]],
    ids=["extract", "serve"],
)
def test_what_is_no_number_is_wrong_usage(hoarfrost: Hoarfrost, arguments: list[str]) -> None:
    output = hoarfrost(*arguments)
    assert output.status == 2
    assert "nan is not a number" in output.stderr
