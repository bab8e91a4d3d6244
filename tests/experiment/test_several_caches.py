"""Heads on the embeddings of several encoders side by side."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from hoarfrost.experiment.experiment import ExperimentConfig, run_experiment
from hoarfrost.features.cache import EmbeddingCache, open_caches
from hoarfrost.features.errors import CacheError, FingerprintMismatchError, TrainingError
from hoarfrost.features.exchange.importing import ImportOptions, import_embeddings
from hoarfrost.features.extraction.extract import extract
from hoarfrost.features.extraction.plan import ExtractOptions
from hoarfrost.heads.files import read_head
from hoarfrost.heads.specs import parse_heads
from hoarfrost.inference.predict import predict_dataset
from hoarfrost.inference.sources import training_keys
from hoarfrost.report.outputs import report_runs
from hoarfrost.runs import read_run
from tests.support.commands import Hoarfrost
from tests.support.foreign import Cohort, cohort, some_embeddings, write_npz
from tests.support.predicted import read_csv, write_set

DIMS = {"UNI": 12, "CONCH": 5}


def two_caches(folder: Path, known: Cohort, n: int = 80) -> list[Path]:
    """Import embeddings of two encoders for the same images, the second in another order."""
    made = []
    for seed, (name, dim) in enumerate(DIMS.items()):
        order = np.random.default_rng(seed).permutation(n)
        shuffled = Cohort(
            known.csv, [known.paths[i] for i in order], (100**seed) * some_embeddings(n, dim, seed)[order]
        )
        folder.mkdir(parents=True, exist_ok=True)
        source = write_npz(folder / f"{name}.npz", shuffled)
        import_embeddings(source, folder / f"{name}.h5", known.csv, ImportOptions(encoder_name=name))
        made.append(folder / f"{name}.h5")
    return made


def trained(folder: Path) -> tuple[list[Path], Path]:
    caches = two_caches(folder, cohort(folder))
    run_experiment(
        caches, folder / "run", parse_heads(["logistic", "mlp:8,members=2"]), ExperimentConfig(positive=["malignant"])
    )
    return caches, folder / "run"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Path], Path]:
    return trained(tmp_path_factory.mktemp("made"))


def test_embeddings_of_an_image_are_side_by_side(made: tuple[list[Path], Path]) -> None:
    caches, _ = made
    with open_caches(caches) as joined:
        table = joined.dataset()
        x = joined.embeddings(table.rows)
        assert joined.header.dim == 17
    assert [*table.paths][:2] == ["scan0.png", "scan1.png"]
    np.testing.assert_array_equal(x[:, :12], some_embeddings(80, 12, 0))
    np.testing.assert_array_equal(x[:, 12:], 100 * some_embeddings(80, 5, 1))


def test_run_and_head_remember_both_fingerprints_and_dimensions(made: tuple[list[Path], Path]) -> None:
    caches, folder = made
    run, digests = read_run(folder), []
    for path in caches:
        with EmbeddingCache(path) as opened:
            digests.append(opened.header.fingerprint.digest)
    assert [one.fingerprint for one in run.config.embeddings.several] == digests
    assert [one.cache for one in run.config.embeddings.of_each] == [str(path) for path in caches]
    header = read_head(next((folder / "heads").glob("mean*.safetensors"))).header
    assert header.dim == 17
    assert [(part["fingerprint"], part["dim"]) for part in header.fingerprint.preprocessing["several"]] == [
        (digests[0], 12), (digests[1], 5),
    ]  # fmt: skip


def test_each_value_is_standardised_by_itself_whatever_its_scale(made: tuple[list[Path], Path]) -> None:
    caches, folder = made
    head = read_head(next((folder / "heads").glob("logistic*.safetensors")))
    std = head.members[0].module.state_dict()["0.std"]
    assert std.shape == (17,)
    assert std[12:].mean() > 5 * std[:12].mean()  # square-rooted, of a hundred times larger numbers


def test_report_names_both(made: tuple[list[Path], Path], tmp_path: Path) -> None:
    report_runs((made[1],), output=tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "made elsewhere, by UNI, and imported" in text
    assert "made elsewhere, by CONCH, and imported" in text
    assert "by these 2 encoders were concatenated (12 and 5 values)" in text


def test_prediction_takes_both_caches_in_any_order(
    made: tuple[list[Path], Path], tmp_path: Path, hoarfrost: Hoarfrost
) -> None:
    caches, folder = made
    for number, places in enumerate((caches, caches[::-1])):
        done = hoarfrost("predict", *places, "--run", folder, "--output", tmp_path / f"{number}.csv")
        assert done.status == 0
    head = folder / "heads" / read_run(folder).head(read_run(folder).selected).weights_file.rpartition("/")[2]
    assert hoarfrost("predict", *caches, "--head", head, "--output", tmp_path / "2.csv").status == 0
    first = [(row["path"], row["class"], row["probability:malignant"]) for row in read_csv(tmp_path / "0.csv")]
    assert first == [(row["path"], row["class"], row["probability:malignant"]) for row in read_csv(tmp_path / "1.csv")]
    assert len(first) == 80
    assert len(training_keys(folder)) == read_run(folder).predictions.splits.count("train")


def test_prediction_by_one_cache_says_which_is_missing(made: tuple[list[Path], Path], tmp_path: Path) -> None:
    caches, folder = made
    with pytest.raises(FingerprintMismatchError, match="needs one cache for each.* has CONCH"):
        predict_dataset(caches[0], tmp_path / "out.csv", run=folder)


def test_prediction_names_the_cache_that_it_does_not_need(
    made: tuple[list[Path], Path], tmp_path: Path, hoarfrost: Hoarfrost
) -> None:
    caches, folder = made
    third = tmp_path / "third.h5"
    shutil.copy(caches[0], third)
    done = hoarfrost("predict", *caches, third, "--run", folder, "--output", tmp_path / "out.csv")
    assert done.status == 1
    assert re.search(r"Leave out .*\.h5, which is not needed", done.stderr)


@pytest.mark.parametrize("command", ["predict", "explain", "export"])
def test_what_embeds_images_is_refused_with_the_way_out(
    made: tuple[list[Path], Path], tmp_path: Path, hoarfrost: Hoarfrost, command: str
) -> None:
    images = write_set(tmp_path / "images", n=4)
    more = ["--format", "torch"] if command == "export" else [images]
    done = hoarfrost(command, *more, "--run", made[1], "--output", tmp_path / "out.pt2")
    assert done.status == 1
    assert "The head takes the embeddings of UNI (embeddings made elsewhere) and CONCH" in done.stderr
    assert "hoarfrost predict first.h5 second.h5" in done.stderr


def test_images_in_one_cache_only_are_an_error_that_names_them(tmp_path: Path) -> None:
    caches = two_caches(tmp_path, cohort(tmp_path))
    fewer = cohort(tmp_path / "fewer", 77)
    source = write_npz(tmp_path / "few.npz", fewer._replace(embeddings=some_embeddings(77, 5, 1)))
    import_embeddings(source, tmp_path / "few.h5", fewer.csv, ImportOptions(encoder_name="CONCH"))
    with pytest.raises(CacheError) as caught:
        run_experiment(
            [caches[0], tmp_path / "few.h5"], tmp_path / "run", parse_heads(["logistic"]), ExperimentConfig()
        )
    assert (
        f"3 images of {caches[0]} are not in {tmp_path / 'few.h5'} (first: scan77.png, scan78.png, scan79.png)"
        in str(caught.value)
    )
    with pytest.raises(CacheError, match="3 images of .* are not in .*few.h5"):
        run_experiment(
            [tmp_path / "few.h5", caches[0]], tmp_path / "run", parse_heads(["logistic"]), ExperimentConfig()
        )
    assert not (tmp_path / "run").exists()


def test_labels_that_differ_between_caches_are_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caches = two_caches(tmp_path, cohort(tmp_path))
    with open_caches(caches):
        assert not caplog.records
    relabelled = cohort(tmp_path / "other")
    text = relabelled.csv.read_text()
    assert text.count("scan0.png,benign") == 1
    relabelled.csv.write_text(text.replace("scan0.png,benign", "scan0.png,malignant"))
    source = write_npz(tmp_path / "other.npz", relabelled._replace(embeddings=some_embeddings(80, 5, 1)))
    import_embeddings(source, tmp_path / "other.h5", relabelled.csv, ImportOptions(encoder_name="CONCH"))
    caplog.clear()
    with open_caches([caches[0], tmp_path / "other.h5"]):
        assert "differ in 1 of 80 images (first: scan0.png). Those of" in caplog.text


def test_two_caches_of_one_fingerprint_are_refused(made: tuple[list[Path], Path], tmp_path: Path) -> None:
    caches, _ = made
    with pytest.raises(CacheError, match="have embeddings of the same fingerprint"):
        run_experiment([caches[0], caches[0]], tmp_path / "run", parse_heads(["logistic"]), ExperimentConfig())


def test_views_are_not_chosen_among_several_caches(made: tuple[list[Path], Path], tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="the first view of each is used"):
        run_experiment(made[0], tmp_path / "run", parse_heads(["logistic"]), ExperimentConfig(views="224"))


def test_streamed_embeddings_train_the_same_heads(made: tuple[list[Path], Path], tmp_path: Path) -> None:
    config = ExperimentConfig(positive=["malignant"], memory_limit=80 * 17 * 4 - 1)
    streamed = run_experiment(made[0], tmp_path / "run", parse_heads(["logistic", "mlp:8,members=2"]), config)
    own = read_run(made[1])
    np.testing.assert_allclose(
        streamed.predictions.probabilities["logistic"], own.predictions.probabilities["logistic"], atol=1e-4
    )


@pytest.mark.usefixtures("free_backbone")
def test_resnet_and_imported_embeddings_meet_by_the_bytes_of_the_images(tmp_path: Path) -> None:
    images = write_set(tmp_path / "images", n=48)
    extract(images, tmp_path / "resnet.h5", options=ExtractOptions(weights="random:0", precision="float32"))
    known = Cohort(images / "labels.csv", [f"{i}.png" for i in range(48)], some_embeddings(48))
    import_embeddings(
        write_npz(tmp_path / "a.npz", known), tmp_path / "uni.h5", images, ImportOptions(encoder_name="UNI")
    )
    caches = [tmp_path / "resnet.h5", tmp_path / "uni.h5"]
    run = run_experiment(caches, tmp_path / "run", parse_heads(["logistic"]), ExperimentConfig(positive=["malignant"]))
    assert run.config.embeddings.n_unseen == 0
    assert run.config.embeddings.encoder.title == "ResNet18 and UNI (embeddings made elsewhere)"
    assert run.config.embeddings.weights.startswith("random:0")  # so that the report warns of it
    assert predict_dataset(caches, tmp_path / "out.csv", run=tmp_path / "run").predicted == 48
