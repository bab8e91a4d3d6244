"""`train --lock-test`: a plan that is fixed before training, and looks at the test scores that are counted."""

import csv
import io
import json
import logging
import subprocess
import sys
import zipfile
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
from click.testing import CliRunner

from hoarfrost.cli import main
from hoarfrost.experiment.experiment import ExperimentConfig, run_experiment
from hoarfrost.external.cohort import evaluate_cohort
from hoarfrost.external.predictions import PredictionsConfig, evaluate_predictions
from hoarfrost.external.table import ColumnOptions
from hoarfrost.features.errors import DatasetError, RunError, TrainingError
from hoarfrost.features.files.whole import whole_file
from hoarfrost.heads.specs import parse_heads
from hoarfrost.replay.replaying import replay
from hoarfrost.report.outputs import compare_runs, report_runs
from hoarfrost.report.page import page_of
from hoarfrost.runs import Run, read_run, record_look
from hoarfrost.runs.digests import DIGESTS, changed_files, write_digests
from hoarfrost.runs.lock import LOOKS, ledger_of, locked_runs, read_looks
from hoarfrost.runs.sealed import SEALED
from hoarfrost.training import TrainingConfig
from tests.support.cohorts import write_cohort
from tests.support.labelled import embeddings_of, mixed, write_labelled_cache
from tests.support.predicted import train_on_pictures

LABELS = mixed({"benign": 60, "malignant": 40})
QUICK = TrainingConfig(epochs=3, seeds=1)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return write_labelled_cache(tmp_path / "c.h5", LABELS, attributes={"site": [f"s{i % 2}" for i in range(100)]})


def trained(cache: Path, name: str = "run", *, lock_test: bool = True, **options: object) -> Run:
    config = ExperimentConfig(training=QUICK, lock_test=lock_test, **options)  # type: ignore[arg-type]
    return run_experiment(cache, cache.parent / name, parse_heads(["linear"]), config)


def test_plan_is_that_of_the_data_and_the_settings(cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        plan = trained(cache).config.plan
    assert plan is not None
    assert plan.is_intact
    assert plan.digest in caplog.text  # printed before training
    assert plan.n_test == 23
    again = trained(cache).config.plan
    assert again is not None
    assert (again.test, again.splits, again.labels, again.embeddings) == (
        plan.test, plan.splits, plan.labels, plan.embeddings,
    )  # fmt: skip
    other = trained(cache, "other", operating_point="sensitivity=0.9").config.plan
    assert other is not None
    assert (other.test, other.digest == plan.digest) == (plan.test, False)
    assert other.settings["operating_point"] == "sensitivity=0.9"


def test_training_shows_no_test_score_and_is_no_look(cache: Path) -> None:
    run = cache.parent / "run"
    arguments = ["train", "--cache", str(cache), "--run", str(run), "--head", "linear", "--epochs", "3", "--lock-test"]
    found = CliRunner().invoke(main, arguments)
    assert found.exit_code == 0, found.output
    assert "test AUC" not in found.output
    assert "The test split (23 images) is locked" in found.output
    assert f"Analysis plan SHA-256 {read_run(run).config.plan.digest}" in found.output  # type: ignore[union-attr]
    document = json.loads(CliRunner().invoke(main, [*arguments, "--json"]).stdout)
    assert all(head["test"] is None for head in document["heads"])
    assert document["assessment"] is None
    assert read_looks(run) == ()


def test_each_report_is_a_look_and_the_first_has_no_caution(cache: Path) -> None:
    directory = trained(cache).directory
    for number in (1, 2, 3):
        page = report_runs([directory]).report.read_text()
        assert f"{number} look{'s' * (number > 1)} at its scores" in page
        cautions = [one.text for one in page_of(read_run(directory)).grave if one.title == "Locked test split"]
        assert [f"looked at {number} times" in text for text in cautions] == [True] * (number > 1)
    read_run(directory)  # its digests are those of before
    done = subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=directory, check=False)
    assert done.returncode == 0


def test_looks_of_concurrent_commands_are_all_counted(cache: Path) -> None:
    directory = trained(cache).directory
    code = (
        "import sys; from pathlib import Path; from hoarfrost.runs import record_look\n"
        "for i in range(20): record_look(Path(sys.argv[1]), f'look, {i}')"
    )
    several = [subprocess.Popen([sys.executable, "-c", code, str(directory)]) for _ in range(4)]
    assert [one.wait(120) for one in several] == [0] * 4
    with (directory / LOOKS).open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert sorted(row["command"] for row in rows) == sorted(f"look, {i}" for i in range(20) for _ in range(4))
    assert record_look(directory, "last") == 81


def test_training_again_on_the_same_images_is_a_look_and_a_locked_one_inherits_them(cache: Path) -> None:
    first = trained(cache).directory
    trained(cache, "open", lock_test=False)
    (look,) = read_looks(first)
    assert look.command == f"train --run {cache.parent / 'open'}"
    assert trained(cache, "second").looks == (look,)
    assert trained(cache).looks == (look,)  # the run was replaced, its looks were not
    assert {path.name for path in locked_runs(cache)} == {"run", "second"}
    report_runs([first])
    assert [one.command for one in trained(cache, "third").looks] == [look.command, "report"]
    assert ledger_of(cache).read_text().count("\n") == 3


def test_an_open_training_does_not_replace_a_locked_run(cache: Path) -> None:
    directory = trained(cache).directory
    with pytest.raises(RunError, match="contains a run with a locked test split"):
        trained(cache, lock_test=False)
    assert read_looks(directory) == ()
    assert trained(cache, lock_test=False, overwrite=True).config.plan is None
    assert record_look(directory, "report") is None


def test_folds_and_sites_do_not_use_locked_images(cache: Path) -> None:
    run = trained(cache, n_folds=3, n_repeats=2, leave_out="site")
    test = run.rows_of("test")
    assert run.out_of_fold is not None
    assert run.by_site is not None
    assert run.repeated is not None
    assert set(np.array(run.out_of_fold.folds)[test]) == set(np.array(run.by_site.folds)[test]) == {-1}
    assert np.isnan(run.repeated[:, test]).all()


def test_what_cannot_be_locked_or_recorded_is_refused(tmp_path: Path) -> None:
    splits = ["train", "val"] * 50
    path = write_labelled_cache(tmp_path / "c.h5", LABELS, splits=splits)
    with pytest.raises(TrainingError, match="has no test split"):
        trained(path)
    other = write_labelled_cache(tmp_path / "d.h5", LABELS)
    with pytest.raises(TrainingError, match="--suspects-in-test looks at the test split"):
        trained(other, suspects_in_test=True)
    directory = trained(other).directory
    (directory / LOOKS).unlink()
    (directory / LOOKS).mkdir()
    with pytest.raises(RunError, match="cannot be recorded"):
        report_runs([directory])


def test_a_plan_that_was_changed_is_named(cache: Path) -> None:
    run = trained(cache)
    path = run.directory / "config.json"
    content = json.loads(path.read_text())
    content["plan"]["settings"]["operating_point"] = "threshold=0.1"
    path.write_text(json.dumps(content))
    write_digests(run.directory)  # as one who hides the change would
    assert any(one.title == "Analysis plan" for one in page_of(read_run(run.directory)).grave)


def test_scores_are_in_no_readable_file_until_the_first_look(cache: Path) -> None:
    open_run = read_run(trained(cache, "open", lock_test=False).directory)
    locked = trained(cache)
    assert all(head.test is None for head in locked.heads)  # nor in what Python's `train` returns
    document = json.loads((locked.directory / "metrics.json").read_text())
    assert {head["test"] for head in document["heads"]} == {None}
    assert (document["assessment"], document["comparisons"], document["learning_curve"]) == (None, [], [])
    assert all(seed["test_roc_auc"] is None for head in document["heads"] for seed in head["seeds"])
    with (locked.directory / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["split"] for row in rows if not row["linear"]} == {"test"}
    assert {row["split"] for row in rows if row["linear"]} == {"train"}
    report_runs([locked.directory])
    assert not (locked.directory / SEALED).exists()
    looked_at = read_run(locked.directory)
    assert looked_at.heads == open_run.heads
    assert looked_at.assessment == open_run.assessment
    assert (looked_at.predictions.probabilities["linear"] == open_run.predictions.probabilities["linear"]).all()
    assert changed_files(locked.directory) == ()


def test_warnings_of_a_locked_run_have_no_test_score(cache: Path) -> None:
    planted = write_labelled_cache(
        cache.with_name("planted.h5"), LABELS, attributes={"room": [f"room {label}" for label in LABELS]}
    )
    locked = trained(planted)
    config = json.loads((locked.directory / "config.json").read_text())
    assert not any("A classifier" in text for text in config["warnings"])
    assert locked.acquisition is not None
    assert locked.acquisition.warning().startswith("A classifier that sees no pixel")  # by the validation images
    assert "alone" not in locked.acquisition.warning()
    assert "alone: room 1.00" in report_runs([locked.directory]).report.read_text()


def test_look_that_was_killed_is_completed_by_the_next_one(cache: Path) -> None:
    directory = trained(cache).directory
    archive = (directory / SEALED).read_bytes()
    record_look(directory, "one")
    (directory / SEALED).write_bytes(archive)  # killed before it was removed
    assert read_run(directory).heads[0].test is not None
    assert not (directory / SEALED).exists()
    assert changed_files(directory) == ()
    assert len(read_looks(directory)) == 1


@pytest.mark.parametrize("done", [1, 2, 3])
def test_look_that_was_killed_while_files_were_put_into_place_is_completed(
    cache: Path, monkeypatch: pytest.MonkeyPatch, done: int
) -> None:
    """It is killed after metrics.json, after predictions.csv, or after the digests."""
    directory, written = trained(cache).directory, []

    def killed(path: Path) -> AbstractContextManager[BinaryIO]:
        if len(written) == done:
            raise KeyboardInterrupt
        written.append(path)
        return whole_file(path)

    unlink = Path.unlink

    def killed_at_the_archive(path: Path, missing_ok: bool = False) -> None:
        if path.name == SEALED:
            raise KeyboardInterrupt
        unlink(path, missing_ok=missing_ok)

    with monkeypatch.context() as patched:
        patched.setattr("hoarfrost.runs.sealed.whole_file", killed)
        patched.setattr("hoarfrost.runs.digests.whole_file", killed)
        patched.setattr(Path, "unlink", killed_at_the_archive)
        with pytest.raises(KeyboardInterrupt):
            report_runs([directory])
    assert (directory / SEALED).exists()
    report_runs([directory])
    assert not (directory / SEALED).exists()
    assert changed_files(directory) == ()
    assert [look.command for look in read_looks(directory)] == ["report", "report"]


def test_refused_comparison_is_no_look(cache: Path, tmp_path: Path) -> None:
    locked = trained(cache).directory
    (tmp_path / "elsewhere").mkdir()
    other = trained(write_labelled_cache(tmp_path / "elsewhere" / "d.h5", LABELS[:80]), "other", lock_test=False)
    with pytest.raises(RunError, match="cannot be compared"):
        compare_runs([locked, other.directory])
    assert read_looks(locked) == ()
    assert (locked / SEALED).exists()
    second = trained(cache, "second").directory
    compare_runs([locked, second])
    assert [len(read_looks(one)) for one in (locked, second)] == [1, 1]


def test_replay_shows_no_score_of_a_locked_test_split(cache: Path) -> None:
    directory = trained(cache).directory
    found = replay(directory)
    assert found.is_equal
    assert any("locked test split" in text for text in found.skipped)
    assert read_looks(directory) == ()
    record_look(directory, "report")
    again = replay(directory)
    assert again.is_equal
    assert again.n_figures > found.n_figures


def test_replay_counts_differing_predictions_of_a_locked_test_split_and_shows_none(cache: Path) -> None:
    directory = trained(cache).directory
    with zipfile.ZipFile(directory / SEALED) as archive:
        rows = list(csv.reader(io.StringIO(archive.read("predictions.csv").decode())))
        metrics = archive.read("metrics.json")
    place = rows[0].index("linear")
    test = [row for row in rows if row[rows[0].index("split")] == "test"]
    train = next(row for row in rows if row[rows[0].index("split")] == "train")
    for row in (*test[:3], train):
        row[place] = repr(1 - float(row[place]))
    table = io.StringIO()
    csv.writer(table, lineterminator="\n").writerows(rows)
    with zipfile.ZipFile(directory / SEALED, "w") as archive:
        archive.writestr("metrics.json", metrics)
        archive.writestr("predictions.csv", table.getvalue())
    write_digests(directory)
    found = replay(directory)
    assert read_looks(directory) == ()
    of_predictions = [one for one in found.differing if one.place.startswith("predictions.csv")]
    assert not any(row[0] in one.place for row in test for one in of_predictions)
    assert any(train[0] in one.place for one in of_predictions)
    (hidden_ones,) = (one for one in of_predictions if one.place.endswith("locked test split"))
    assert (hidden_ones.recorded, hidden_ones.again) == ("23 predictions", "3 differ")
    record_look(directory, "report")
    assert sum(row[0] in one.place for row in test for one in replay(directory).differing) == 3


def test_archive_that_is_damaged_is_named(cache: Path) -> None:
    directory = trained(cache).directory
    archive = (directory / SEALED).read_bytes()
    for content in (b"no archive", with_other_metrics(archive), archive[:100] + b"x" + archive[101:]):
        (directory / SEALED).write_bytes(content)
        with pytest.raises(RunError, match=r"locked.zip was changed after the run was written"):
            report_runs([directory])
        with pytest.raises(RunError, match=r"locked.zip was changed after the run was written"):
            read_run(directory, before_look=True)
        assert (directory / SEALED).read_bytes() == content
        assert read_looks(directory) == ()
    assert read_run(directory).heads[0].test is None
    digests = (directory / DIGESTS).read_text()
    (directory / DIGESTS).write_text("".join(one for one in digests.splitlines(keepends=True) if SEALED not in one))
    with pytest.raises(RunError, match=r"locked.zip was changed after the run was written"):
        report_runs([directory])
    (directory / DIGESTS).write_text(digests)
    (directory / SEALED).write_bytes(archive)
    report_runs([directory])


def with_other_metrics(archive: bytes) -> bytes:
    """Return the archive with another metrics.json."""
    found = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as old, zipfile.ZipFile(found, "w") as new:
        new.writestr("metrics.json", old.read("metrics.json").replace(b'"value": 0.', b'"value": 0.9'))
        new.writestr("predictions.csv", old.read("predictions.csv"))
    return found.getvalue()


def commands_of(run: Path) -> list[str]:
    return [look.command for look in read_looks(run)]


def test_predictions_of_a_locked_run_are_refused_before_the_first_look_and_then_counted(
    cache: Path, tmp_path: Path
) -> None:
    run = trained(cache, positive=["malignant"]).directory
    own, copy = run / "predictions.csv", tmp_path / "copy.csv"
    config = PredictionsConfig(columns=ColumnOptions(positive=("malignant",)), validation_split="train")
    copy.write_bytes(own.read_bytes())
    for file in (own, copy):
        with pytest.raises(RunError, match="is locked, and nobody has looked at it yet.*hoarfrost report --run"):
            evaluate_predictions([file], tmp_path / "e", config=config)
    assert read_looks(run) == ()
    record_look(run, "report")
    copy.write_bytes(own.read_bytes())
    for number, file in enumerate((own, copy), start=2):
        found = evaluate_predictions([file], tmp_path / f"e{number}", config=config)
        assert commands_of(run)[-1] == f"evaluate --predictions {file}"
        assert f"{file} has predictions of the locked test split of {run}. This is look number {number}." in (
            report_runs([found.directory]).report.read_text()
        )
    with pytest.raises(DatasetError):  # what is refused is no look
        evaluate_predictions([own], tmp_path / "f", config=replace(config, validation_split="test"))
    aggregate = replace(config, aggregate=tmp_path / "a.json")
    evaluate_predictions([own], None, config=aggregate)
    assert len(read_looks(run)) == 4


def test_training_on_another_cache_counts_in_the_locked_run_whose_splits_it_keeps(cache: Path, tmp_path: Path) -> None:
    locked = trained(cache).directory
    other = write_labelled_cache(tmp_path / "elsewhere" / "d.h5", LABELS, embeddings=embeddings_of(LABELS, seed=1))
    trained(other, "open", lock_test=False)
    assert read_looks(locked) == ()
    trained(other, "kept", lock_test=False, splits_from=locked)
    assert commands_of(locked) == [f"train --run {other.parent / 'kept'}"]
    looks = trained(other, "also locked", splits_from=locked).looks
    assert {Path(look.command).name for look in looks} == {"open", "kept"}
    assert set(read_looks(locked)) < set(looks)


def test_training_before_the_lock_is_a_look(cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    trained(cache, "open", lock_test=False)
    other = write_labelled_cache(cache.with_name("other.h5"), LABELS)
    trained(other, "of other", lock_test=False)
    first = trained(cache)
    assert [look.command for look in first.looks] == [f"train --run {cache.parent / 'open'}"]
    assert "it shows scores of 23 of the images that are locked now" in caplog.text
    page = report_runs([first.directory]).report.read_text()
    assert "2 looks at its scores" in page
    trained(cache, "after", lock_test=False)
    second = trained(cache, "second")
    assert sorted(look.command.split()[0] for look in second.looks) == ["report", "train", "train"]
    replaced = trained(write_labelled_cache(cache.with_name("third.h5"), LABELS), "same", lock_test=False).directory
    assert trained(cache.with_name("third.h5"), "same").looks[0].run == str(replaced)


def test_locked_run_that_is_no_longer_there_is_named(cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    locked, moved = trained(cache).directory, cache.parent / "moved"
    locked.rename(moved)
    trained(cache, "open", lock_test=False)
    assert f"{locked}: this run with a locked test split is no longer there" in caplog.text
    assert read_looks(moved) == ()
    ledger_of(cache).write_text(f"{moved}\n")
    caplog.clear()
    trained(cache, "open", lock_test=False)
    assert "no longer there" not in caplog.text
    assert commands_of(moved) == [f"train --run {cache.parent / 'open'}"]


@pytest.mark.usefixtures("free_backbone")
def test_looks_by_the_python_interface_are_counted(tmp_path: Path) -> None:
    pictures, cohort = train_on_pictures(tmp_path), write_cohort(tmp_path / "b")
    locked = trained(pictures.cache, "locked").directory
    assert evaluate_cohort(cohort, tmp_path / "e", run=locked).external.drops  # type: ignore[union-attr]
    assert commands_of(locked) == [f"train --run {pictures.run}", f"evaluate {cohort}"]


@pytest.mark.usefixtures("free_backbone")
def test_every_command_that_shows_test_scores_is_a_look_and_predict_is_none(tmp_path: Path) -> None:
    pictures = train_on_pictures(tmp_path)
    locked, cohort = trained(pictures.cache, "locked").directory, write_cohort(tmp_path / "hospital_b")

    def command(*arguments: object) -> None:
        found = CliRunner().invoke(main, list(map(str, arguments)))
        assert found.exit_code == 0, found.output

    command("predict", pictures.images, "--run", locked, "--output", tmp_path / "p.csv")
    before = f"train --run {pictures.run}"
    assert commands_of(locked) == [before]
    command("heads", locked)
    command("plan", "--run", locked, "--auc", 0.9)
    command("evaluate", cohort, "--run", locked, "--output", tmp_path / "e")
    command("report", "--run", locked, "--run", pictures.run, "--output", tmp_path / "both.html")
    command("report", "--run", tmp_path / "e")  # it is no run, and was counted when it was written
    assert commands_of(locked) == [before, "heads", "plan", f"evaluate {cohort}", "report"]
