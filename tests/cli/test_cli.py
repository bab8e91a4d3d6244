"""The command line: what scripts rely on."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
import pytest

from hoarfrost import __version__
from hoarfrost.__main__ import MADE_BETWEEN_SEARCHES
from hoarfrost.cli import main
from hoarfrost.cli.types import SizeType
from hoarfrost.features.decoding.images import encode_png
from hoarfrost.features.errors import HoarfrostError
from tests.support.commands import ROOT, Hoarfrost, RunPython
from tests.support.labelled import NOT_UTF8, mixed, write_labelled_cache


def commands(group: click.Group = main, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Return every command and group, with the words that call it."""
    yield path, group
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


EVERY = [path for path, _ in commands()]
LEAVES = [path for path, command in commands() if not isinstance(command, click.Group)]


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return write_labelled_cache(tmp_path / "cache.h5", mixed({"benign": 30, "malignant": 30}))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Two classes of two images, one of which is a text file."""
    rng = np.random.default_rng(0)
    for label in ("benign", "malignant"):
        (tmp_path / "images" / label).mkdir(parents=True)
        for i in range(2):
            picture = encode_png(rng.integers(0, 256, (8, 8), np.uint8))
            (tmp_path / "images" / label / f"{i}.png").write_bytes(picture)
    (tmp_path / "images" / "benign" / "notes.png").write_text("not an image")
    return tmp_path / "images"


@pytest.fixture
def run(cache: Path, tmp_path: Path, hoarfrost: Hoarfrost) -> Path:
    trained = hoarfrost("train", "--cache", cache, "--run", tmp_path / "run", "--head", "linear", "--epochs", 2)
    assert trained.status == 0, trained.stderr
    return tmp_path / "run"


# -- starting -----------------------------------------------------------------------------------------------------------


def test_help_answers_in_under_0_4_seconds(run_python: RunPython) -> None:
    seconds = []
    for _ in range(3):
        started = os.times()
        assert run_python("-m", "hoarfrost", "--help").status == 0
        ended = os.times()
        seconds.append(ended.children_user + ended.children_system - started.children_user - started.children_system)
    assert min(seconds) < 0.4


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["--version"], ["train"]], ids=" ".join)
def test_answer_that_needs_no_work_loads_neither_torch_nor_numpy(run_python: RunPython, arguments: list[str]) -> None:
    code = f"""
import atexit, sys
atexit.register(lambda: print("loaded:", *({{"torch", "numpy", "h5py", "rich"}} & set(sys.modules)), file=sys.stderr))
from hoarfrost.cli import main
main({arguments!r})
"""
    assert run_python("-c", code).stderr.splitlines()[-1].strip() == "loaded:"


@pytest.mark.parametrize("compiles", [False, True])
def test_process_does_not_take_its_libraries_apart_but_where_leaks_would_be_listed(
    run_python: RunPython, *, compiles: bool
) -> None:
    code = f"""
import atexit, gc, sys
atexit.register(lambda: print(gc.get_freeze_count() > 1000, gc.get_threshold()[0]))  # the last to run
if {compiles}:
    sys.modules["triton"] = None
sys.argv = ["hoarfrost", "--version"]
from hoarfrost.__main__ import run
run()
"""
    assert run_python("-c", code).stdout.splitlines()[-1] == f"{not compiles} {MADE_BETWEEN_SEARCHES}"
    assert "hoarfrost = hoarfrost.__main__:run\n" in (ROOT / "setup.cfg").read_text(encoding="utf-8")


def test_module_is_the_command(run_python: RunPython) -> None:
    output = run_python("-m", "hoarfrost", "--help")
    assert output.status == 0
    assert output.stdout.startswith("Usage: hoarfrost ")
    assert output.stderr == ""


def test_version_is_the_packages(hoarfrost: Hoarfrost) -> None:
    assert hoarfrost("--version") == (0, f"hoarfrost, version {__version__}\n", "")


@pytest.mark.parametrize("path", EVERY, ids=" ".join)
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_every_command_has_help_with_an_example_that_calls_it(
    hoarfrost: Hoarfrost, path: tuple[str, ...], flag: str
) -> None:
    output = hoarfrost(*path, flag)
    assert output.status == 0
    assert re.search(r"\n  Example:\n    (\$ )?" + " ".join(["hoarfrost", *path]), output.stdout)
    assert output.stderr == ""


@pytest.mark.parametrize("path", LEAVES, ids=" ".join)
def test_every_command_takes_json(path: tuple[str, ...]) -> None:
    command = dict(commands())[path]
    assert "--json" in [name for parameter in command.params for name in parameter.opts]


@pytest.mark.parametrize("path", LEAVES, ids=" ".join)
def test_every_option_is_explained(path: tuple[str, ...]) -> None:
    options = [p for p in dict(commands())[path].params if isinstance(p, click.Option)]
    assert [option.name for option in options if not option.help] == []


def test_commands_are_listed_in_the_order_of_their_use(hoarfrost: Hoarfrost) -> None:
    listed = re.findall(r"^  (\w+)", hoarfrost("--help").stdout.partition("Commands:\n")[2], re.MULTILINE)
    assert listed[:3] == ["extract", "train", "report"]


# -- exit status --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "No such command 'trian'"),
        (["train"], "Missing option '--cache'"),
        (["train", "--cache", "a.h5"], "Missing option '--run'"),
        (["train", "--cache", "a.h5", "--run", "r", "--sedd", "1"], "No such option"),
        (["train", "--cache", "a.h5", "--run", "r", "--epochs", "0"], "Invalid value for '--epochs'"),
        (["train", "--cache", "a.h5", "--run", "r", "--batch-size", "9" * 30], "Invalid value for '--batch-size'"),
        (["train", "--cache", "a.h5", "--run", "r", "--device", "tpu"], "Invalid value for '--device'"),
        (["train", "--cache", "a.h5", "--run", "r", "--label-smoothing", "nan"], "'--label-smoothing': nan is not a"),
        (["train", "--cache", ".", "--run", "r"], "Invalid value for '--cache'"),
        (["extract", "--cache", "a.h5"], "Missing argument 'DATA'"),
        (["extract", ".", "--cache", "a.h5", "--fast", "--precision", "int8"], "--fast chooses the precision"),
        (["report"], "Missing option '--run'"),
        (["demo"], "Missing argument 'DIR'"),
        (["cache", "info"], "Missing argument 'FILE'"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_wrong_usage_is_status_2_with_the_way_to_the_help(
    hoarfrost: Hoarfrost, arguments: list[str], message: str
) -> None:
    output = hoarfrost(*arguments)
    assert output.status == 2
    assert output.stdout == ""
    assert message in output.stderr
    assert "--help' for help" in output.stderr


@pytest.mark.parametrize("as_json", [[], ["--json"]], ids=["text", "json"])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--cache", "{tmp}/no.h5", "--run", "{tmp}/run"], "no.h5. Create it with: hoarfrost extract"),
        (
            ["train", "--cache", "{cache}", "--run", "{tmp}/run", "--head", "cnn"],
            "--head cnn: not a head specification. Expected logistic, linear, mlp",
        ),
        (
            ["train", "--cache", "{cache}", "--run", "{tmp}/run", "--positive", "x"],
            "--positive x: the dataset 'phantoms'",
        ),
        (
            ["train", "--cache", "{cache}", "--run", "{tmp}/run", "--dataset", "x"],
            "Choose one with --dataset: phantoms",
        ),
        (["train", "--cache", "{cache}", "--run", "{tmp}"], "is not empty and does not contain an earlier run"),
        (["train", "--cache", "{cache}", "--run", "{cache}"], "cache.h5 is a file. A run needs a folder"),
        (["report", "--run", "{tmp}/run"], "run is not a run folder (config.json is missing). Create one with"),
        (["extract", "{tmp}/no", "--cache", "{tmp}/new.h5"], "no: no such file or folder"),
        (["cache", "info", "{tmp}/no.h5"], "no.h5. Create it with: hoarfrost extract"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_work_that_fails_is_a_message_on_stderr_and_status_1(
    hoarfrost: Hoarfrost, cache: Path, tmp_path: Path, arguments: list[str], message: str, as_json: list[str]
) -> None:
    output = hoarfrost(*(a.format(cache=cache, tmp=tmp_path) for a in arguments), *as_json)
    assert output.status == 1
    assert output.stdout == ""
    assert output.stderr.startswith("Error: ")
    assert message in output.stderr
    assert "Traceback" not in output.stderr


def test_any_hoarfrost_error_is_a_message_not_a_traceback(
    hoarfrost: Hoarfrost, monkeypatch: pytest.MonkeyPatch, run: Path
) -> None:
    def failing(*_: object, **__: object) -> None:
        raise HoarfrostError("What, where, why. The way out.")

    monkeypatch.setattr("hoarfrost.report.outputs.report_runs", failing)
    assert hoarfrost("report", "--run", run) == (1, "", "Error: What, where, why. The way out.\n")


def test_message_with_a_name_that_is_not_utf8_is_shown(run_python: RunPython) -> None:
    output = run_python("-m", "hoarfrost", "cache", "info", Path(NOT_UTF8) / "no.h5")
    assert output.status == 1
    assert "No cache at" in output.stderr
    assert "Traceback" not in output.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_output_that_cannot_be_written_is_a_message_and_status_1(run: Path) -> None:
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "hoarfrost", "report", "--run", str(run)]
        done = subprocess.run(command, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("Error: standard output: No space left on device.")
    assert "Traceback" not in done.stderr


def test_reader_that_goes_away_ends_a_command_quietly(run: Path) -> None:
    command = [sys.executable, "-m", "hoarfrost", "report", "--run", str(run)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == ""
    assert (run / "report.html").is_file()


def test_defect_of_ours_is_not_dressed_up_as_the_users_mistake(
    hoarfrost: Hoarfrost, monkeypatch: pytest.MonkeyPatch, run: Path
) -> None:
    def failing(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a defect")

    monkeypatch.setattr("hoarfrost.report.outputs.report_runs", failing)
    with pytest.raises(ZeroDivisionError, match="a defect"):
        hoarfrost("report", "--run", run)


# -- JSON ---------------------------------------------------------------------------------------------------------------


def test_extract_prints_one_json_object_and_the_rest_on_stderr(
    hoarfrost: Hoarfrost, images: Path, tmp_path: Path
) -> None:
    output = hoarfrost("extract", images, "--cache", tmp_path / "new.h5", "--weights", "random:0", "--json")
    assert output.status == 0, output.stderr
    summary = json.loads(output.stdout)
    assert {
        "images", "embedded", "reused", "failed", "forward_images", "seconds", "images_per_second", "dataset", "cache",
        "fingerprint", "device", "precision",
    } <= summary.keys()  # fmt: skip
    assert (summary["images"], summary["embedded"], summary["failed"], summary["forward_images"]) == (5, 4, 1, 4)
    assert "notes.png" in output.stderr


def test_train_prints_one_json_object_and_the_rest_on_stderr(hoarfrost: Hoarfrost, cache: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    output = hoarfrost(
        "train", "--cache", cache, "--run", run, "--head", "linear", "--head", "mlp:8", "--epochs", 2, "--json"
    )
    document = json.loads(output.stdout)
    assert document["run"] == str(run)
    assert document["forward_images"] == 0
    metrics = json.loads((run / "metrics.json").read_text())
    assert {key: document[key] for key in metrics} == metrics
    assert output.stdout.count("\n") == 1
    lines = [f"training 2 heads: {head}, epoch 1" for head in ("linear", "mlp:8")]
    assert output.stderr.splitlines() == lines


def test_report_prints_one_json_object(hoarfrost: Hoarfrost, run: Path) -> None:
    output = hoarfrost("report", "--run", run, "--json")
    assert json.loads(output.stdout) == {"report": str(run / "report.html")}


def test_demo_prints_one_json_object(hoarfrost: Hoarfrost, tmp_path: Path) -> None:
    output = hoarfrost("demo", tmp_path / "demo", "--images", 30, "--json")
    assert json.loads(output.stdout)["n_images"] == 30


@pytest.mark.parametrize("command", ["info", "verify", "compact"])
def test_cache_commands_print_one_json_object(hoarfrost: Hoarfrost, cache: Path, command: str) -> None:
    output = hoarfrost("cache", command, cache, "--json")
    assert output.status == 0, output.stderr
    assert json.loads(output.stdout)["images"] == 60


def test_json_of_names_that_are_not_utf8_is_ascii_and_tells_them(hoarfrost: Hoarfrost, tmp_path: Path) -> None:
    cache = write_labelled_cache(tmp_path / "cache.h5", mixed({NOT_UTF8: 20, "b": 20, "c": 20}))
    output = hoarfrost("train", "--cache", cache, "--run", tmp_path / "run", "--head", "linear", "--json")
    assert output.stdout.isascii()
    assert NOT_UTF8 in json.loads(output.stdout)["heads"][0]["test"]["roc_auc_per_class"]


# -- text ---------------------------------------------------------------------------------------------------------------


def test_train_says_which_head_won_by_what_and_where_the_run_is(
    hoarfrost: Hoarfrost, cache: Path, tmp_path: Path
) -> None:
    output = hoarfrost("train", "--cache", cache, "--run", tmp_path / "run", "--head", "linear", "--epochs", 2)
    scores = json.loads((tmp_path / "run" / "metrics.json").read_text())["heads"][0]["test"]
    low, high = scores["roc_auc_ci95"]
    assert f"{scores['roc_auc']:.3f} ({low:.3f} to {high:.3f})" in output.stdout
    lines = (
        r"\* selected by out-of-fold loss",
        r"  Its out-of-fold AUC is optimistic, .*",
        r"\d+ train, \d+ test images, .*",
    )
    assert re.search("\n".join(lines), output.stdout)
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["no_test_split"] is None
    assert output.stdout.endswith(f"run {tmp_path / 'run'}\n")


def test_train_without_a_test_split_says_so_and_calls_nothing_test(hoarfrost: Hoarfrost, tmp_path: Path) -> None:
    labels = mixed({"benign": 30, "malignant": 30})
    splits = ["val" if i % 3 == 0 else "train" for i in range(60)]
    cache = write_labelled_cache(tmp_path / "cache.h5", labels, splits=splits)
    output = hoarfrost("train", "--cache", cache, "--run", tmp_path / "run", "--head", "linear", "--epochs", 2)
    assert "There is no test split. These are validation scores" in output.stdout
    assert "test AUC" not in output.stdout
    assert "test accuracy" not in output.stdout
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    for said in (config["dataset"]["no_test_split"], metrics["no_test_split"]):
        assert said.startswith("There is no test split: all scores are of the images that also chose the head")


def test_finished_work_survives_a_terminal_that_cannot_show_its_names(
    run_python: RunPython, run: Path, tmp_path: Path
) -> None:
    place = run.rename(tmp_path / f"Höhle {NOT_UTF8}")
    output = run_python("-m", "hoarfrost", "report", "--run", place, PYTHONIOENCODING="ascii", LC_ALL="C")
    assert output.status == 0, output.stderr
    assert output.stdout.startswith("report ")
    assert (place / "report.html").is_file()


@pytest.mark.parametrize(
    "arguments", [["cache", "info", ""], ["extract", "", "--cache", "c.h5"], ["cache", "verify", "."]]
)
def test_an_empty_path_or_a_folder_for_a_file_is_wrong_usage(hoarfrost: Hoarfrost, arguments: list[str]) -> None:
    output = hoarfrost(*arguments)
    assert output.status == 2
    assert "path is empty" in output.stderr or "is a directory" in output.stderr


@pytest.mark.parametrize(
    ("text", "n_bytes"),
    [
        ("1GB", 10**9),
        ("500MB", 5 * 10**8),
        ("2GiB", 2 << 30),
        ("1.5g", 15 * 10**8),
        ("64 MiB", 64 << 20),
        ("20000000", 2 * 10**7),
    ],
)
def test_a_size_is_read_as_people_write_it(text: str, n_bytes: int) -> None:
    assert SizeType().convert(text, None, None) == n_bytes


@pytest.mark.parametrize("text", ["", "GB", "1XB", "-1GB", "1e9", "nan", "1GB!", "1MB", "0"])
def test_what_is_no_size_is_wrong_usage(text: str) -> None:
    with pytest.raises(
        click.BadParameter, match="is not a size; write for example 1GB|is too small; the least is 16MB"
    ):
        SizeType().convert(text, None, None)
