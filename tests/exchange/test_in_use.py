"""A cache of embeddings made elsewhere is trained, scored and reported like any other; images are not embedded for it."""

from pathlib import Path
from typing import NamedTuple

import pytest

from hoarfrost.experiment.experiment import ExperimentConfig, run_experiment
from hoarfrost.features.exchange.importing import ImportOptions, import_embeddings
from hoarfrost.heads.specs import parse_heads
from hoarfrost.inference.predict import predict_dataset
from hoarfrost.report.outputs import report_runs
from hoarfrost.runs import read_run
from hoarfrost.training import TrainingConfig
from tests.support.builders import encode, picture, write_csv
from tests.support.commands import Hoarfrost
from tests.support.foreign import cohort, some_embeddings, write_npz
from tests.support.predicted import read_csv, write_set

UNI = ImportOptions(encoder_name="UNI")


class Made(NamedTuple):
    """A cache of imported embeddings, a run on it, and a folder of images."""

    cache: Path
    run: Path
    images: Path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("made")
    known = cohort(folder)
    import_embeddings(write_npz(folder / "a.npz", known), folder / "c.h5", known.csv, UNI)
    config = ExperimentConfig(training=TrainingConfig(epochs=4), positive=["malignant"])
    run_experiment(folder / "c.h5", folder / "run", parse_heads(["logistic", "mlp:8,members=2"]), config)
    (folder / "images").mkdir()
    (folder / "images" / "a.png").write_bytes(encode(picture()))
    return Made(folder / "c.h5", folder / "run", folder / "images")


def test_run_records_where_the_embeddings_came_from(made: Made) -> None:
    run = read_run(made.run)
    facts = run.config.embeddings
    assert (facts.backbone, facts.weights, facts.n_unseen) == ("elsewhere:UNI", "made elsewhere", 80)
    assert facts.weights_origin.startswith("file a.npz with SHA-256 ")
    assert facts.encoder.dim == 12
    assert run.head(run.selected).val.value("roc_auc") > 0.9


def test_report_says_that_the_embeddings_were_made_elsewhere(made: Made, tmp_path: Path) -> None:
    report_runs((made.run,), output=tmp_path / "report.html", with_images=True)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "The embeddings of 12 values were made elsewhere, by UNI, and imported (file a.npz with SHA-256 " in text
    assert "The bytes of 80 images were not known, because their embeddings were imported" in text


def test_training_states_which_check_could_not_run(
    made: Made, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run_experiment(made.cache, tmp_path / "run", parse_heads(["logistic"]), ExperimentConfig())
    assert "the bytes of 80 images are not known, because their embeddings were imported" in caplog.text


@pytest.mark.parametrize(
    "arguments",
    [
        ("predict", "IMAGES", "--run", "RUN", "--output", "out.csv"),
        ("explain", "IMAGES", "--run", "RUN", "--output", "out"),
        ("export", "--run", "RUN", "--format", "torch", "--output", "model.pt2"),
        ("serve", "--run", "RUN"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_what_needs_the_encoder_is_refused_with_the_way_out(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hoarfrost: Hoarfrost, arguments: tuple[str, ...]
) -> None:
    if arguments[0] == "serve":
        pytest.importorskip("fastapi_offline")
    monkeypatch.chdir(tmp_path)
    done = hoarfrost(*({"IMAGES": made.images, "RUN": made.run}.get(one, one) for one in arguments))
    assert done.status == 1
    assert "These embeddings were made elsewhere, by UNI. This program does not have that encoder" in done.stderr
    assert "hoarfrost cache import FILE --dataset CSV --cache new.h5 --encoder-name 'UNI'" in done.stderr
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_extract_adds_no_images_to_it(made: Made, hoarfrost: Hoarfrost) -> None:
    before = made.cache.read_bytes()
    images = write_set(made.images.parent / "set", n=8)
    done = hoarfrost("extract", images, "--cache", made.cache, "--weights", "random:0")
    assert done.status == 1
    assert "holds embeddings that were made elsewhere" in done.stderr
    assert made.cache.read_bytes() == before


def test_info_says_where_they_were_made(made: Made, hoarfrost: Hoarfrost) -> None:
    done = hoarfrost("cache", "info", made.cache)
    assert "made elsewhere: elsewhere:UNI, imported from file a.npz with SHA-256 " in done.stdout


@pytest.mark.parametrize("option", ["--cache", "--weights"])
def test_options_for_images_are_refused_with_a_cache(
    made: Made, tmp_path: Path, hoarfrost: Hoarfrost, option: str
) -> None:
    arguments = ("predict", made.cache, "--run", made.run, "--output", tmp_path / "out.csv", option, tmp_path / "x.h5")
    done = hoarfrost(*arguments)
    assert done.status == 1
    assert "--cache and --weights are for images" in done.stderr


def test_report_explains_no_image_of_it(made: Made, tmp_path: Path, hoarfrost: Hoarfrost) -> None:
    done = hoarfrost("report", "--run", made.run, "--output", tmp_path / "r.html", "--explain")
    assert done.status == 1
    assert "made elsewhere" in done.stderr


def test_head_predicts_from_another_imported_cache(made: Made, tmp_path: Path) -> None:
    new = cohort(tmp_path, 20, seed=7)
    new.embeddings[2, 0] = float("nan")
    import_embeddings(write_npz(tmp_path / "new.npz", new), tmp_path / "new.h5", new.csv, UNI)
    summary = predict_dataset(tmp_path / "new.h5", tmp_path / "out.csv", run=made.run)
    rows = read_csv(tmp_path / "out.csv")
    assert (summary.predicted, summary.failed, summary.forward_images) == (19, 1, 0)
    assert rows[2]["error"] == "the imported embedding is not finite (NaN or infinity)"
    assert [row["path"] for row in rows] == new.paths
    assert summary.in_training_split == ()
    found = [row["class"] == "malignant" for row in rows if row["class"]]
    assert sum(a == bool(i % 2) for a, i in zip(found, [0, 1, *range(3, 20)], strict=True)) >= 15


def test_predictions_from_the_runs_own_cache_are_the_runs(made: Made, tmp_path: Path) -> None:
    summary = predict_dataset(made.cache, tmp_path / "out.csv", run=made.run)
    run = read_run(made.run)
    own = dict(zip(run.predictions.paths, run.predictions.probabilities[run.selected][:, 1], strict=True))
    rows = read_csv(tmp_path / "out.csv")
    test = {path for path, split in zip(run.predictions.paths, run.predictions.splits, strict=True) if split == "test"}
    column = next(name for name in rows[0] if name == run.selected)
    assert all(float(row[column]) == pytest.approx(own[row["path"]], abs=1e-6) for row in rows if row["path"] in test)
    assert "(by path and embedding)" in " ".join(summary.notes)


def test_cache_of_another_encoder_is_not_predicted(made: Made, tmp_path: Path, hoarfrost: Hoarfrost) -> None:
    new = cohort(tmp_path, 20)
    source = write_npz(tmp_path / "new.npz", new)
    import_embeddings(source, tmp_path / "new.h5", new.csv, ImportOptions(encoder_name="CONCH"))
    done = hoarfrost("predict", tmp_path / "new.h5", "--run", made.run, "--output", tmp_path / "out.csv")
    assert done.status == 1
    assert "backbone: elsewhere:CONCH here, elsewhere:UNI there" in done.stderr
    assert not (tmp_path / "out.csv").exists()


def test_without_a_name_only_the_same_file_compares(tmp_path: Path, hoarfrost: Hoarfrost) -> None:
    for name, seed in (("a", 0), ("b", 1)):
        known = cohort(tmp_path / name, seed=seed)
        import_embeddings(write_npz(tmp_path / f"{name}.npz", known), tmp_path / f"{name}.h5", known.csv)
    run_experiment(tmp_path / "a.h5", tmp_path / "run", parse_heads(["logistic"]), ExperimentConfig())
    done = hoarfrost("predict", tmp_path / "b.h5", "--run", tmp_path / "run", "--output", tmp_path / "out.csv")
    assert done.status == 1
    assert "Embeddings imported without --encoder-name compare with those of the same file only." in done.stderr
    assert predict_dataset(tmp_path / "a.h5", tmp_path / "out.csv", run=tmp_path / "run").predicted == 80


def test_identical_files_in_two_splits_are_found_where_the_images_are_here(
    tmp_path: Path, hoarfrost: Hoarfrost
) -> None:
    rows = [["path", "label", "split"]]
    rows += [[f"{i}.png", "ab"[i % 2], ("train", "test")[i // 2 % 2]] for i in range(40)]
    write_csv(tmp_path / "labels.csv", rows)
    for i in range(40):
        (tmp_path / f"{i}.png").write_bytes(f"image {0 if i == 2 else i}".encode())  # 0 is for training, 2 for testing
    embeddings = some_embeddings(40)
    embeddings[2] = embeddings[0]
    known = cohort(tmp_path / "other", 40)._replace(paths=[f"{i}.png" for i in range(40)], embeddings=embeddings)
    import_embeddings(write_npz(tmp_path / "a.npz", known), tmp_path / "c.h5", tmp_path / "labels.csv", UNI)
    done = hoarfrost("train", "--cache", tmp_path / "c.h5", "--run", tmp_path / "run", "--head", "logistic")
    assert done.status == 1
    assert "leak" in done.stderr


def test_near_duplicates_are_found_by_imported_embeddings(tmp_path: Path) -> None:
    known = cohort(tmp_path)
    rows = [["path", "label", "split"]]
    rows += [[path, "ab"[i % 2], ("train", "test")[i // 2 % 2]] for i, path in enumerate(known.paths)]
    write_csv(tmp_path / "labels.csv", rows)
    known.embeddings[2] = known.embeddings[0] * 1.0001
    import_embeddings(write_npz(tmp_path / "a.npz", known), tmp_path / "c.h5", tmp_path / "labels.csv", UNI)
    run = run_experiment(tmp_path / "c.h5", tmp_path / "run", parse_heads(["logistic"]), ExperimentConfig())
    assert run.leakage is not None
    assert run.leakage.n_near_duplicates >= 1
