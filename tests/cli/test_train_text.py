"""What `train` shows: one interval per number, thresholds and calibration in words, progress, Ctrl-C, what it replaces."""

import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hoarfrost.cli.console.progress import interruptible, training_progress
from hoarfrost.cli.console.training import train_text
from hoarfrost.evaluation import Calibration, TemperatureFit
from hoarfrost.experiment.experiment import ExperimentConfig, TrainingProgress
from hoarfrost.features.errors import HoarfrostError
from hoarfrost.heads.config import TrainingConfig
from hoarfrost.runs import Recalibration, Run
from tests.experiment.test_experiment import train
from tests.support.commands import Hoarfrost
from tests.support.labelled import mixed, write_labelled_cache

TWO = {"benign": 40, "malignant": 30}


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return write_labelled_cache(tmp_path / "c.h5", mixed(TWO))


@pytest.fixture
def run(cache: Path) -> Run:
    return train(cache, heads=("linear", "mlp:8"))


# -- the summary --------------------------------------------------------------------------------------------------------


def test_table_states_the_members_and_the_parameters_of_all(run: Run) -> None:
    table = train_text(run).splitlines()
    assert table[0].split()[:3] == ["head", "members", "parameters"]
    assert [head.n_members for head in run.heads[:2]] == [1, 20]
    for head in run.heads:
        row = next(line for line in table if f" {head.name} " in line)
        assert row.removeprefix("*").split()[1:3] == [f"{head.n_members}", f"{head.n_parameters:,}"]


def test_positive_class_is_named_where_two_labels_left_the_choice(run: Run) -> None:
    assert "Positive class: malignant. To choose the other one, use --positive benign." in train_text(run)
    chosen = replace(run.config.dataset, positive=("benign",))
    assert "Positive class" not in train_text(replace(run, config=replace(run.config, dataset=chosen)))


def test_majority_class_is_one_row(run: Run) -> None:
    assert train_text(run).count("majority class") == 1


def test_each_auc_has_one_interval_the_one_that_holds_and_a_footnote_names_its_method(run: Run) -> None:
    shown = train_text(run)
    for result in (*run.heads, *run.references):
        assert result.test is not None
        narrow, wide = result.test.auc, result.test.printed("roc_auc")
        assert wide is not None
        assert f"{wide.value:.3f} ({wide.low:.3f} to {wide.high:.3f})" in shown
        if (narrow.low, narrow.high) != (wide.low, wide.high):
            assert f"({narrow.low:.3f} to {narrow.high:.3f})  " not in shown
    assert "Intervals of the AUC: Newcombe.\nNewcombe's is used for few images of a class" in shown


def test_threshold_is_what_probabilities_are_compared_with_and_the_rules_of_one_are_on_one_line(run: Run) -> None:
    assert run.assessment is not None
    points = run.assessment.classes[0].points
    shown = train_text(run)
    for point in points:
        line = next(
            line
            for line in shown.splitlines()
            if point.point.name in line and "every" not in line and "each" not in line
        )
        assert point.point.threshold is None or line.startswith(f"  threshold >= {point.point.threshold:.3f} (")
    assert shown.count("threshold >= ") == len({point.point.threshold for point in points} - {None})


def recalibration(
    before: float, after: float, chance: float = 0.077, *, at_limit: bool = False, low: float | None = None
) -> Recalibration:
    fit = TemperatureFit(1.07, 0.5, 0.5, at_limit)
    ends = None if low is None else (low, 0.2)
    one, other = (Calibration(error, chance, (), (), error_interval=ends) for error in (before, after))
    return Recalibration(fit, one, other)


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (
            recalibration(0.079, 0.085),
            "Calibration error 0.079, no larger than chance (0.077). Temperature scaling (T = 1.07) did not improve it.",
        ),
        (
            recalibration(0.050, 0.049),
            "no larger than chance (0.077). Temperature scaling (T = 1.07) did not improve it.",
        ),
        (
            recalibration(0.120, 0.060),
            "larger than chance (0.077). Temperature scaling (T = 1.07) reduced it to 0.060.",
        ),
        (recalibration(0.120, 0.120, low=0.01), "0.120, larger than chance (0.077)."),
        (recalibration(0.120, 0.120, low=0.0), "0.120, not clearly larger than chance (0.077)."),
        (recalibration(0.120, 0.120), "0.120, larger than chance (0.077). Temperature scaling (T = 1.07) did not"),
        (
            recalibration(0.079, 0.040),
            "no larger than chance (0.077). Temperature scaling (T = 1.07) reduced it to 0.040.",
        ),
        (
            recalibration(0.2, 0.1, at_limit=True),
            "Temperature scaling (T = 1.07) could not be fitted: T is at its limit.",
        ),
    ],
)
def test_calibration_is_compared_with_chance_and_with_scaling(found: Recalibration, text: str) -> None:
    assert text in found.verdict


# -- progress and Ctrl-C ------------------------------------------------------------------------------------------------


def test_progress_has_the_stage_with_its_heads_and_folds_and_the_epoch(capsys: pytest.CaptureFixture[str]) -> None:
    config = ExperimentConfig(training=TrainingConfig(seeds=3, epochs=50), n_folds=5)
    with training_progress(2, config) as show:
        for progress in (
            TrainingProgress("heads", "linear", 1), TrainingProgress("heads", "linear", 2), TrainingProgress("scores"),
            TrainingProgress("folds", "linear", 1), TrainingProgress("curve", "linear", 1),
        ):  # fmt: skip
            show(progress)
    assert capsys.readouterr().err.splitlines() == [
        "training 2 heads: linear, epoch 1",
        "training 2 heads in 5 folds: linear, epoch 1",
        "training the selected head on shares of the patients: linear, epoch 1",
    ]


def test_on_a_terminal_progress_is_one_line_that_is_drawn_at_least_twice_a_second(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(type(sys.stderr), "isatty", lambda _: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    with training_progress(1, ExperimentConfig()) as show:
        show(TrainingProgress("heads", "mlp:256", 7))
        time.sleep(1.2)  # an epoch that takes longer
    drawn = capsys.readouterr().err
    assert drawn.count("training 1 head: mlp:256, epoch 7 ") >= 2
    assert "0:00:01" in drawn


def test_ctrl_c_states_that_nothing_was_written(
    cache: Path, tmp_path: Path, hoarfrost: Hoarfrost, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["train", "--cache", cache, "--run", tmp_path / "run", "--head", "linear", "--epochs", 2]

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("hoarfrost.experiment.experiment.score_variants", interrupted)
        output = hoarfrost(*arguments)
        assert (output.status, output.stderr.splitlines()[-1]) == (1, "Error: Interrupted; nothing was written.")
        assert not (tmp_path / "run").exists()
    assert hoarfrost(*arguments).status == 0
    monkeypatch.setattr("hoarfrost.experiment.experiment.score_variants", interrupted)
    kept = f"The earlier run in {tmp_path / 'run'} is unchanged."
    assert hoarfrost(*arguments).stderr.endswith(f"Error: Interrupted; nothing was written. {kept}\n")


def test_ctrl_c_after_the_run_is_in_place_states_that_it_is(tmp_path: Path) -> None:
    def finished() -> None:
        (tmp_path / "metrics.json").write_text("{}")
        raise KeyboardInterrupt

    with pytest.raises(HoarfrostError, match="Interrupted, but the run is complete"), interruptible(tmp_path):
        finished()


# -- an earlier run -----------------------------------------------------------------------------------------------------


def test_run_is_replaced_with_a_note_and_a_report_only_with_overwrite(
    cache: Path, tmp_path: Path, hoarfrost: Hoarfrost
) -> None:
    arguments = ["train", "--cache", cache, "--run", tmp_path / "run", "--head", "linear", "--epochs", 1]
    assert "replaces" not in hoarfrost(*arguments).stderr
    again = hoarfrost(*arguments)
    assert again.status == 0
    assert f"{tmp_path / 'run'}: replaces the run of 2" in again.stderr
    report = tmp_path / "run" / "report.html"
    report.write_text("of the first")
    refused = hoarfrost(*arguments)
    assert refused.status == 1
    assert "and its report (report.html)" in refused.stderr
    assert "--overwrite" in refused.stderr
    assert "training" not in refused.stderr
    assert report.read_text() == "of the first"
    assert hoarfrost(*arguments, "--overwrite").status == 0
    assert not report.exists()


def test_overwrite_does_not_cover_files_that_train_and_report_did_not_write(
    cache: Path, tmp_path: Path, hoarfrost: Hoarfrost
) -> None:
    arguments = ["train", "--cache", cache, "--run", tmp_path / "run", "--head", "linear", "--epochs", 1, "--overwrite"]
    assert hoarfrost(*arguments).status == 0
    (tmp_path / "run" / "new.csv").write_text("path,probability\n")
    output = hoarfrost(*arguments)
    assert output.status == 1
    assert "new.csv, which would be lost. Move new.csv to another place" in output.stderr
    assert (tmp_path / "run" / "new.csv").is_file()


def test_val_scores_are_named_as_such(run: Run) -> None:
    heads = tuple(replace(head, test=None) for head in run.heads)
    references = tuple(replace(one, test=None) for one in run.references)
    shown = train_text(replace(run, heads=heads, references=references))
    assert "There is no test split. These are validation scores" in shown
    assert "test AUC" not in shown


def test_what_images_add_to_clinical_data_is_a_table_and_a_sentence(tmp_path: Path, hoarfrost: Hoarfrost) -> None:
    labels = mixed(TWO)
    age = [str(50 + i % 20 + 6 * (label == "malignant")) for i, label in enumerate(labels)]
    cache = write_labelled_cache(tmp_path / "clinical.h5", labels, attributes={"age": age, "site": ["a", "b"] * 35})
    arguments = ("train", "--cache", cache, "--run", tmp_path / "run", "--head", "linear", "--epochs", "2")
    status, stdout, _ = hoarfrost(*arguments, "--covariates", "age, site")
    assert status == 0
    lines = [line.strip() for line in stdout.splitlines()]
    first = next(i for i, line in enumerate(lines) if line.startswith("Clinical data (age, site) and images"))
    assert [line.split(":")[0] for line in lines[first + 1 : first + 6]] == [
        "clinical data only", "images only", "clinical data and images", "both minus clinical data only",
        "both minus images only",
    ]  # fmt: skip
    assert "the ROC AUC changes by" in lines[first + 6]
    status, _, stderr = hoarfrost(*arguments, "--covariates", "age,,site")
    assert status == 2
    assert "write for example age,sex" in stderr
