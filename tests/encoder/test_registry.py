"""The registry: ResNet18's entry is what caches hold, and another encoder is one entry and nothing else."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import onnx
import pytest
import torch
from torch import nn

from hoarfrost.demo import write_demo
from hoarfrost.experiment.experiment import ExperimentConfig, run_experiment
from hoarfrost.features.cache import CacheWriter, EmbeddingCache, Header
from hoarfrost.features.cache.layout import CHUNK_BYTES, CHUNK_ROWS, row_bytes, rows_per_chunk
from hoarfrost.features.decoding.isolated import Cancellation
from hoarfrost.features.encoder.backbone import Backbone, Weights, load_weights
from hoarfrost.features.encoder.families import encoder_from
from hoarfrost.features.encoder.registry import ENCODERS, RESNET18, EncoderSpec
from hoarfrost.features.errors import EncoderError, FingerprintMismatchError, HoarfrostError, WeightsError
from hoarfrost.features.extraction.extract import extract
from hoarfrost.features.extraction.plan import ExtractOptions
from hoarfrost.features.fingerprint import Fingerprint, preprocessing, weights_origin
from hoarfrost.heads.files import read_head
from hoarfrost.heads.specs import parse_heads
from hoarfrost.inference.explain import open_explainer
from hoarfrost.inference.export import export_head
from hoarfrost.inference.predict import Predictor, run_head
from hoarfrost.inference.predict.dataset import predict_dataset
from hoarfrost.inference.serve.limits import Limits
from hoarfrost.inference.serve.reader import opened_reader
from hoarfrost.report.outputs import write_report
from hoarfrost.runs import read_heads
from hoarfrost.training import TrainingConfig
from tests.support.builders import encode, picture
from tests.support.caches import some_files, some_images, some_table
from tests.support.commands import RunPython

DIM, SIZE = 96, 64
LIMITS = Limits(max_bytes=1_000_000, max_pixels=1_000_000, seconds=30, at_once=2)


def three_layers() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 32, 5, stride=4, padding=2),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Conv2d(32, DIM, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )


TINY = EncoderSpec(
    name="tiny",
    title="Tiny",
    dim=DIM,
    size=SIZE,
    mean=(0.5, 0.4, 0.3),
    std=(0.2, 0.2, 0.25),
    build=three_layers,
    libraries=("torch",),
    output="pooled last layer",
)


class Made(NamedTuple):
    """What was made with the tiny encoder."""

    images: Path
    cache: Path
    run: Path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Extract and train with an encoder whose entry is all that there is of it."""
    folder = tmp_path_factory.mktemp("tiny")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ENCODERS, "tiny", TINY)
        write_demo(folder / "images", n_images=120)
        options = ExtractOptions(encoder="tiny", weights="random:0", precision="float32")
        extract(folder / "images", folder / "c.h5", options=options)
        heads = parse_heads(["linear", "mlp:8"])
        run_experiment(folder / "c.h5", folder / "run", heads, ExperimentConfig(training=TrainingConfig(epochs=4)))
        yield Made(folder / "images", folder / "c.h5", folder / "run")


# -- another encoder is one entry ---------------------------------------------------------------------------------------


def test_its_cache_holds_embeddings_of_its_dimension_and_records_it(made: Made) -> None:
    with h5py.File(made.cache) as file:
        assert (int(file.attrs["dim"]), file.attrs["backbone"]) == (DIM, b"tiny")
        assert file["images/embedding"].shape[1] == DIM
        steps = json.loads(file.attrs["preprocessing"])
    assert (steps["resize"], steps["mean"], steps["std"]) == ([SIZE, SIZE], [0.5, 0.4, 0.3], [0.2, 0.2, 0.25])
    assert steps["jpeg"].endswith(f"at least {2 * SIZE}")


def test_its_embeddings_are_those_of_the_plain_network() -> None:
    torch.manual_seed(0)
    network = three_layers().eval()
    images = torch.randint(0, 256, (5, 3, SIZE, SIZE), dtype=torch.uint8)
    mean, std = (torch.tensor(each).view(1, 3, 1, 1) for each in (TINY.mean, TINY.std))
    with torch.no_grad():
        expected = network((images / 255 - mean) / std)
    found = Backbone(load_weights("random:0", TINY)).embed(images)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_it_is_read_again_without_a_forward_pass(made: Made) -> None:
    options = ExtractOptions(encoder="tiny", weights="random:0", precision="float32")
    assert extract(made.images, made.cache, options=options).forward_images == 0


def test_its_heads_take_its_embeddings_and_no_others(made: Made) -> None:
    heads = read_heads(made.run)
    saved = run_head(heads, None)
    assert saved.header.dim == DIM
    with pytest.raises(ValueError, match=rf"must be \(n, {DIM}\), not \(1, 512\)"):
        Predictor(saved).predict(np.zeros((1, 512), np.float32))
    for path in (made.run / "heads").glob("*.safetensors"):
        assert read_head(path).header.dim == DIM


def test_its_report_names_it_and_its_dimension(made: Made) -> None:
    page = write_report(made.run).read_text(encoding="utf-8")
    assert f"by a frozen Tiny up to its pooled last layer ({DIM} values)" in page
    assert f"the image alone: {DIM} values of Tiny" in page
    assert "512" not in page.partition("Each image was embedded once")[2].partition("Preprocessing:")[0]


def test_it_predicts_new_images(made: Made, tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    for i in range(3):
        (tmp_path / "new" / f"{i}.png").write_bytes(encode(picture(seed=i)))
    summary = predict_dataset(tmp_path / "new", tmp_path / "new.csv", run=made.run, cache=tmp_path / "new.h5")
    assert (summary.predicted, summary.forward_images) == (3, 3)
    with EmbeddingCache(tmp_path / "new.h5") as cache:
        assert cache.embeddings().shape == (3, DIM)


def test_it_predicts_the_runs_own_images_as_the_run_did(made: Made, tmp_path: Path) -> None:
    summary = predict_dataset(made.images, tmp_path / "x.csv", run=made.run, cache=made.cache)
    assert (summary.predicted, summary.forward_images) == (120, 0)


@pytest.mark.parametrize(("file_format", "name"), [("torch", "m.pt2"), ("onnx", "m.onnx")])
def test_it_is_exported_with_its_own_input(made: Made, tmp_path: Path, file_format: str, name: str) -> None:
    summary = export_head(made.run, tmp_path / name, file_format=file_format)
    assert summary.n_compared > 0
    assert summary.difference_from_run is not None
    assert summary.difference_from_run < 1e-4
    card = (tmp_path / "model_card.md").read_text(encoding="utf-8")
    assert f"uint8 (N, 3, {SIZE}, {SIZE})" in card
    assert f"resize to {SIZE} x {SIZE}" in card
    if file_format == "onnx":
        model = onnx.load(tmp_path / name)
        shape = [size.dim_value for size in model.graph.input[0].type.tensor_type.shape.dim]
        assert shape[1:] == [3, SIZE, SIZE]


def test_it_is_served_without_maps(made: Made) -> None:
    with opened_reader(made.run, None, LIMITS, weights=None, device="cpu", notes=[]) as reader:
        image = reader.decode(encode(picture()), Cancellation())
        assert image.looks[0].shape[1:] == (SIZE, SIZE)
        [answer] = reader.answer([image])
        assert reader.about.map_cells is None
        assert reader.explain(image, answer).explanation is None


# -- what needs more than its entry has -----------------------------------------------------------------------------------


def test_without_a_feature_map_nothing_is_explained(made: Made) -> None:
    with pytest.raises(
        EncoderError, match="The encoder Tiny does not have a feature map, so its predictions cannot be explained"
    ):
        open_explainer(run_head(read_heads(made.run), None))
    with pytest.raises(EncoderError, match="does not have a feature map"):
        Backbone(load_weights("random:0", TINY)).feature_maps(torch.zeros((1, 3, SIZE, SIZE), dtype=torch.uint8))


def test_without_its_fast_path_int8_is_refused(made: Made, tmp_path: Path) -> None:
    options = ExtractOptions(encoder="tiny", weights="random:0", precision="int8")
    with pytest.raises(EncoderError, match=r"Tiny does not run in int8\. Pass --precision auto"):
        extract(made.images, tmp_path / "c.h5", options=options)
    with pytest.raises(EncoderError, match="does not run in int8"):
        Backbone(load_weights("random:0", TINY), precision="int8:1,2")


def test_without_published_weights_imagenet_is_refused_and_auto_is_random(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(WeightsError, match="--weights imagenet: the encoder Tiny has no published weights"):
        load_weights("imagenet", TINY)
    assert load_weights("auto", TINY).name == "random:0"
    assert "untrained" in caplog.text


def test_a_checkpoint_of_another_encoder_is_refused(tmp_path: Path) -> None:
    torch.save(dict(load_weights("random:0", TINY).tensors), tmp_path / "tiny.pth")
    assert load_weights(str(tmp_path / "tiny.pth"), TINY).sha256 == load_weights("random:0", TINY).sha256
    with pytest.raises(WeightsError, match=r"tiny\.pth is not a ResNet18: the tensor conv1\.weight is missing"):
        load_weights(str(tmp_path / "tiny.pth"))


def test_embeddings_of_two_encoders_are_not_mixed(made: Made) -> None:
    options = ExtractOptions(weights="random:0", precision="float32")
    with pytest.raises(FingerprintMismatchError, match=r"backbone: resnet18 here, tiny there"):
        extract(made.images, made.cache, options=options)


def test_an_unknown_encoder_is_an_error_that_names_those_there_are(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(ENCODERS, "tiny")
    for work in (
        lambda: extract(made.images, made.cache, options=ExtractOptions(encoder="tiny")),
        lambda: run_experiment(made.cache, made.run.with_name("other"), parse_heads(["linear"]), ExperimentConfig()),
        lambda: predict_dataset(made.images, made.run.with_name("x.csv"), run=made.run),
        lambda: write_report(made.run),
    ):
        with pytest.raises(
            EncoderError, match=r"This version of hoarfrost does not have the encoder 'tiny'\. It has: resnet18,"
        ):
            work()


def test_a_wrong_dimension_in_an_entry_is_seen_before_anything_is_committed(tmp_path: Path) -> None:
    keys, embeddings = some_images(3)
    header = Header(Fingerprint("tiny", "ab" * 32, {}, "float32"), DIM, "random:0")
    with (
        CacheWriter(tmp_path / "c.h5", header, "demo") as writer,
        pytest.raises(ValueError, match=r"\(3, 512\), not \(3, 96\)"),
    ):
        writer.append(some_files(keys), embeddings)


# -- ResNet18's entry is what caches hold ----------------------------------------------------------------------------------


def test_resnet18s_fingerprint_is_that_of_the_caches_there_are() -> None:
    # Computed before there was a registry: a change of it orphans every cache.
    own, windowed = preprocessing(RESNET18), preprocessing(RESNET18, "40/400")
    plain = Fingerprint("resnet18", "ab" * 32, own, "float32")
    assert plain.digest == "cb6c58ce938227ab1f93241e500f9b2ecd23b23f4dcd9b63fb58478fdc0cbf47"
    other = Fingerprint("resnet18", "cd" * 32, windowed, "bfloat16")
    assert other.digest == "269ba34df4694882ca4bc81008af395dab0677e5f213a0dae9c608b4674e7ced"
    assert plain.encoder is RESNET18
    assert weights_origin("imagenet", RESNET18) == "torchvision ResNet18_Weights.IMAGENET1K_V1"


def test_resnet18s_random_weights_are_what_they_were() -> None:
    from torchvision.models import resnet18

    torch.manual_seed(0)
    state = {name: value for name, value in resnet18(weights=None).state_dict().items() if not name.startswith("fc.")}
    kept = {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}
    assert load_weights("random:0").sha256 == Weights("", kept, RESNET18).sha256


def test_resnet18_is_written_in_the_format_that_it_always_was(tmp_path: Path) -> None:
    keys, embeddings = some_images(20)
    header = Header(Fingerprint("resnet18", "ab" * 32, preprocessing(RESNET18), "float32"), RESNET18.dim, "random:0")
    with CacheWriter(tmp_path / "c.h5", header, "demo") as writer:
        writer.append(some_files(keys), embeddings)
        writer.finish(some_table(20), keys)
    with h5py.File(tmp_path / "c.h5") as file:
        assert file.attrs.get_id("dim").dtype == np.int64
        assert int(file.attrs["dim"]) == 512
    assert rows_per_chunk(512) == CHUNK_ROWS == 1024


@pytest.mark.parametrize("dim", [1, 96, 384, 512, 768, 1280, 2048, 4096, 1 << 16])
def test_chunks_of_any_dimension_end_where_whole_ones_do(dim: int) -> None:
    n_rows = rows_per_chunk(dim)
    assert CHUNK_ROWS % n_rows == 0
    assert n_rows * row_bytes(dim) <= CHUNK_BYTES
    assert n_rows == CHUNK_ROWS or 2 * n_rows * row_bytes(dim) > CHUNK_BYTES


def test_the_registry_needs_no_torch(run_python: RunPython) -> None:
    code = "import sys, hoarfrost.features.encoder.registry; print(*({'torch', 'numpy', 'torchvision'} & set(sys.modules)))"
    assert run_python("-c", code) == (0, "\n", "")


def test_an_entry_is_found_by_its_name() -> None:
    assert encoder_from("resnet18") is RESNET18
    assert issubclass(EncoderError, HoarfrostError)
