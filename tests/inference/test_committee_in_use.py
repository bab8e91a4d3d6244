"""A committee of several kinds is predicted with, exported, explained and served as any head is."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from hoarfrost.features.cache import EmbeddingCache
from hoarfrost.features.decoding.images import Decoding
from hoarfrost.features.decoding.looks import Seen
from hoarfrost.features.encoder.backbone import Backbone, load_weights
from hoarfrost.features.extraction.extract import extract
from hoarfrost.features.extraction.plan import ExtractOptions
from hoarfrost.heads.files import SavedHead, head_bytes
from hoarfrost.inference.explain import Cases, Explainer
from hoarfrost.inference.export.exporting import _trial_images
from hoarfrost.inference.export.formats import exported_program, onnx_bytes, run_onnx, run_torch, torch_bytes
from hoarfrost.inference.export.model import Classifier
from hoarfrost.inference.predict import Predictor, predict_dataset
from hoarfrost.inference.serve.limits import Limits
from tests.support.predicted import read_csv, write_set
from tests.support.saved_heads import MIXED, member, members, saved_head

TASKS = {
    "two classes": saved_head(),
    "three classes": saved_head(names=("a", "b", "c")),
    "labels": saved_head(names=("mass", "a|b", "c"), multilabel=True),
    "one member": saved_head([member("quadratic,C=3")]),
}


@pytest.fixture(params=TASKS)
def head(request: pytest.FixtureRequest) -> SavedHead:
    return TASKS[request.param]


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.from_numpy(_trial_images(7, 224))


@pytest.fixture(scope="module")
def embedded(images: torch.Tensor) -> np.ndarray:
    return Backbone(load_weights("random:0")).embed(images).numpy()


# -- predicted ----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("free_backbone")
def test_a_committee_in_a_file_predicts_images_under_its_own_name(tmp_path: Path) -> None:
    write_set(tmp_path / "images", n=12)
    extract(tmp_path / "images", tmp_path / "c.h5", options=ExtractOptions("random:0", precision="float32"))
    with EmbeddingCache(tmp_path / "c.h5") as cache:
        head, x = saved_head(header=cache.header), cache.embeddings()
    (tmp_path / "mean.safetensors").write_bytes(head_bytes(head))
    summary = predict_dataset(tmp_path / "images", tmp_path / "p.csv", head=str(tmp_path / "mean.safetensors"))
    assert summary.head == "mean"
    found = sorted(float(row["mean"]) for row in read_csv(tmp_path / "p.csv"))
    assert found == sorted(Predictor(head).predict(x).probabilities[:, 1].tolist())


# -- exported -----------------------------------------------------------------------------------------------------------


def test_the_module_predicts_what_predict_does(head: SavedHead, images: torch.Tensor, embedded: np.ndarray) -> None:
    calibrated, uncalibrated = (found.numpy() for found in Classifier(load_weights("random:0"), head)(images))
    wanted = Predictor(head).predict(embedded)
    np.testing.assert_allclose(uncalibrated, wanted.probabilities, rtol=0, atol=1e-5)
    np.testing.assert_allclose(calibrated, wanted.calibrated, rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("writer", "runner"), [(torch_bytes, run_torch), (onnx_bytes, run_onnx)], ids=["torch", "onnx"]
)
def test_the_file_predicts_what_predict_does(
    head: SavedHead,
    images: torch.Tensor,
    embedded: np.ndarray,
    writer: Callable[..., bytes],
    runner: Callable[..., list],
) -> None:
    content = writer(exported_program(Classifier(load_weights("random:0"), head)), {"use": "tests"})
    wanted = Predictor(head).predict(embedded)
    for n in (1, 7):
        calibrated, uncalibrated = runner(content, images[:n].numpy())
        np.testing.assert_allclose(uncalibrated, wanted.probabilities[:n], rtol=0, atol=1e-4)
        np.testing.assert_allclose(calibrated, wanted.calibrated[:n], rtol=0, atol=1e-4)


@pytest.mark.slow
def test_the_graph_has_the_weights_of_each_member_once() -> None:
    weights, one = load_weights("random:0"), saved_head(members([MIXED[0]]))
    small, large = (
        len(torch_bytes(exported_program(Classifier(weights, head)), {"use": "tests"}))
        for head in (one, saved_head(members([MIXED[0], *["quadratic,C=3"] * 2])))
    )
    assert large - small < 1.1 * 2 * (2 * 512 * 512 * 4)


# -- explained and served -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return Backbone(load_weights("random:0"))


def test_evidence_is_that_of_the_probabilities_beside_it(
    head: SavedHead, images: torch.Tensor, backbone: Backbone
) -> None:
    for one in Explainer(Predictor(head), backbone, Decoding()).explain(
        [Seen([image], (224, 224)) for image in images]
    ):
        number = head.names.index(one.subject)
        logarithms = np.log(one.probabilities)
        if head.is_multilabel:
            wanted = logarithms[number] - np.log1p(-one.probabilities[number])
        else:
            wanted = logarithms[number] - np.delete(logarithms, number).mean()
        assert one.evidence == pytest.approx(wanted, abs=1e-4)


def test_a_committee_is_served(head: SavedHead, images: torch.Tensor, embedded: np.ndarray, backbone: Backbone) -> None:
    pytest.importorskip("pydantic")
    from hoarfrost.inference.serve.reader import HeadReader

    explainer = Explainer(Predictor(head), backbone, Decoding())
    cases = Cases(explainer, run=None, n=0)  # type: ignore[arg-type]
    reader = HeadReader(explainer, backbone, cases, Limits(max_bytes=10**6, max_pixels=10**6, seconds=2, at_once=8))
    seen = [Seen([image], (224, 224)) for image in images]
    answers = reader.answer(seen)
    assert reader.about.head == answers[0].head == head.name
    found = np.array([[one.probabilities[name] for name in head.names] for one in answers])
    np.testing.assert_allclose(found, Predictor(head).predict(embedded).calibrated, rtol=0, atol=1e-6)
    assert reader.explain(seen[0], answers[0]).explanation is not None
