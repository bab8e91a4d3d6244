"""A head on the embeddings of several encoders is evaluated on images, which each encoder embeds."""

from pathlib import Path

import numpy as np
import pytest

from hoarfrost.experiment.experiment import ExperimentConfig, run_experiment
from hoarfrost.external.cohort import CohortConfig, evaluate_cohort
from hoarfrost.features.cache import open_caches
from hoarfrost.features.errors import HoarfrostError, TrainingError
from hoarfrost.features.extraction.extract import extract
from hoarfrost.features.extraction.plan import ExtractOptions
from hoarfrost.heads.specs import parse_heads
from hoarfrost.inference.predict import open_predictor
from hoarfrost.replay.replaying import replay
from hoarfrost.training import TrainingConfig
from tests.support.cohorts import write_cohort
from tests.support.predicted import write_set

pytestmark = pytest.mark.usefixtures("free_backbone")


@pytest.fixture
def both(tmp_path: Path) -> Path:
    """Train a head on the caches of two encoders, and return its run."""
    images = write_set(tmp_path / "images")
    caches = [tmp_path / f"{seed}.h5" for seed in (0, 1)]
    for seed, cache in enumerate(caches):
        extract(images, cache, options=ExtractOptions(weights=f"random:{seed}", precision="float32"))
    config = ExperimentConfig(training=TrainingConfig(epochs=3, seeds=1))
    return run_experiment(caches, tmp_path / "run", parse_heads(["linear"]), config).directory


def test_each_encoder_embeds_the_cohort(both: Path, tmp_path: Path) -> None:
    cohort = write_cohort(tmp_path / "b", n=40)
    config = CohortConfig(cache=tmp_path / "b.h5", options=ExtractOptions(device="cpu"))
    found = evaluate_cohort(cohort, tmp_path / "e", run=both, config=config)
    assert found.external is not None
    assert {one.what: one.n for one in found.external.overlap} == {
        "patients": 0, "identical images": 0, "near-identical images": 0,
    }  # fmt: skip
    with open_caches([tmp_path / "b.h5", tmp_path / "b-2.h5"], "b") as cache:
        table = cache.dataset("b")
        expected = open_predictor(both).predict(cache.embeddings(table.rows)).probabilities
    assert np.allclose(found.predictions.probabilities["linear"], expected, atol=1e-12)
    assert replay(found.directory).is_equal
    again = evaluate_cohort(cohort, tmp_path / "f", run=both)  # in temporary caches
    assert (again.predictions.probabilities["linear"] == found.predictions.probabilities["linear"]).all()


def test_training_images_are_found(both: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="overlaps with the images that the head learned from"):
        evaluate_cohort(tmp_path / "images", tmp_path / "e", run=both, config=CohortConfig(name="again"))


def test_what_is_not_known_of_each_encoder_is_refused(both: Path, tmp_path: Path) -> None:
    cohort = write_cohort(tmp_path / "b", n=20)
    with pytest.raises(HoarfrostError, match="Name its run with --run"):
        evaluate_cohort(cohort, tmp_path / "e", head=str(both / "heads" / "linear.safetensors"))
    with pytest.raises(HoarfrostError, match="--weights names the weights of one encoder"):
        evaluate_cohort(cohort, tmp_path / "e", run=both, config=CohortConfig(weights="random:0"))
