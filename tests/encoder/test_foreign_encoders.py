"""Encoders that are not entries: models of timm, programs of torch.export, ONNX files; from images to what is served."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from hoarfrost.demo import write_demo
from hoarfrost.experiment.experiment import ExperimentConfig, run_experiment
from hoarfrost.features.decoding.isolated import Cancellation
from hoarfrost.features.encoder.backbone import Backbone, load_weights
from hoarfrost.features.encoder.families import encoder_from, recorded_encoder, spelled
from hoarfrost.features.encoder.registry import RESNET18
from hoarfrost.features.errors import EncoderError, FingerprintMismatchError, WeightsError
from hoarfrost.features.extraction.extract import extract
from hoarfrost.features.extraction.plan import ExtractOptions
from hoarfrost.features.fingerprint import preprocessing
from hoarfrost.heads.specs import parse_heads
from hoarfrost.inference.explain import open_explainer
from hoarfrost.inference.explain.dataset import explain_dataset
from hoarfrost.inference.export import export_head
from hoarfrost.inference.predict import run_head
from hoarfrost.inference.predict.dataset import predict_dataset
from hoarfrost.inference.serve.limits import Limits
from hoarfrost.inference.serve.reader import opened_reader
from hoarfrost.report.outputs import write_report
from hoarfrost.runs import read_heads
from hoarfrost.training import TrainingConfig
from tests.support.builders import encode, picture
from tests.support.commands import ROOT, Hoarfrost

timm = pytest.importorskip("timm")
pytest.importorskip("onnxruntime")

SIZE, DIM = 32, 24
LIMITS = Limits(max_bytes=1_000_000, max_pixels=1_000_000, seconds=30, at_once=2)
DINO = "timm:vit_small_patch14_dinov2,size=56"


def pixels(n: int, size: int) -> torch.Tensor:
    return torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


# -- files --------------------------------------------------------------------------------------------------------------


class Convolved(nn.Module):
    """A network that returns a map: normalised (B, 3, S, S) to (B, 24, S / 8, S / 8)."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.conv = nn.Conv2d(3, DIM, 8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x).relu()


def write_program(path: Path, *, n: int | None = None) -> Path:
    """Write an exported program of a fixed batch, or of any."""
    shapes = None if n else ({0: torch.export.Dim("n", min=1, max=4096)},)
    example = torch.zeros((n or 2, 3, SIZE, SIZE))
    torch.export.save(torch.export.export(Convolved().eval(), (example,), dynamic_shapes=shapes), path)
    return path


def write_onnx(path: Path, *, n: int | str = 1, pooled: bool = False, as_type: int = TensorProto.FLOAT) -> Path:
    """Write the same network as an ONNX file, with a map or a pooled output (n, 24, 1, 1)."""
    network = Convolved()
    tensors = [numpy_helper.from_array(value.detach().numpy(), name) for name, value in network.named_parameters()]
    names = [tensor.name for tensor in tensors]
    nodes = [
        helper.make_node("Conv", ["images", *names], ["c"], kernel_shape=[8, 8], strides=[8, 8]),
        helper.make_node("Relu", ["c"], ["map"]),
        helper.make_node("GlobalAveragePool", ["map"], ["pooled"]),
    ]
    side = SIZE // 8
    outputs = [("pooled", 1)] if pooled else [("map", side), ("pooled", 1)]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("images", as_type, [n, 3, SIZE, SIZE])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [n, DIM, size, size]) for name, size in outputs],
        tensors,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
    return path


def write_preprocessing(path: Path) -> Path:
    """Write a graph of a fixed batch of one that subtracts 100 from each value."""
    shape = [1, 3, SIZE, SIZE]
    graph = helper.make_graph(
        [helper.make_node("Sub", ["data", "mean"], ["out"])],
        "pre",
        [helper.make_tensor_value_info("data", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(np.float32(100), "mean")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
    return path


def embedded(text: str, images: torch.Tensor) -> torch.Tensor:
    encoder = encoder_from(text)
    return Backbone(load_weights(encoder.file, encoder)).embed(images)


@torch.no_grad()
def expected(x: torch.Tensor) -> torch.Tensor:
    found: torch.Tensor = Convolved().eval()(x).mean((2, 3))
    return found


@pytest.mark.parametrize("n", [1, 3, "n"])
def test_an_onnx_file_of_any_batch_gives_the_networks_embeddings(tmp_path: Path, n: int | str) -> None:
    images = pixels(5, SIZE)
    mean, std = (torch.tensor(each).view(1, 3, 1, 1) for each in (RESNET18.mean, RESNET18.std))
    found = embedded(f"onnx:{write_onnx(tmp_path / 'net.onnx', n=n)}", images)
    torch.testing.assert_close(found, expected((images / 255 - mean) / std), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("n", [None, 2])
def test_an_exported_program_of_any_batch_gives_the_networks_embeddings(tmp_path: Path, n: int | None) -> None:
    images = pixels(5, SIZE)
    mean, std = (torch.tensor(each).view(1, 3, 1, 1) for each in (RESNET18.mean, RESNET18.std))
    found = embedded(f"torch:{write_program(tmp_path / 'net.pt2', n=n)}", images)
    torch.testing.assert_close(found, expected((images / 255 - mean) / std), rtol=1e-4, atol=1e-5)


def test_what_a_file_takes_is_said_in_options(tmp_path: Path) -> None:
    images, file = pixels(3, SIZE), write_onnx(tmp_path / "net.onnx", pooled=True)
    found = embedded(f"onnx:{file},scale=255,mean=103/116/123,std=2,channels=bgr", images)
    mean = torch.tensor([103.0, 116, 123]).view(1, 3, 1, 1)  # of blue, green and red
    torch.testing.assert_close(found, expected((images.flip(1) - mean) / 2), rtol=1e-4, atol=1e-4)
    raw = embedded(f"onnx:{file},scale=255", images)
    torch.testing.assert_close(raw, expected(images.float()), rtol=1e-4, atol=1e-3)
    before = write_preprocessing(tmp_path / "pre.onnx")
    through = embedded(f"onnx:{file},preprocess={before}", images)
    torch.testing.assert_close(through, expected(images - 100.0), rtol=1e-4, atol=1e-3)


def test_a_map_is_the_networks_and_a_pooled_output_has_none(tmp_path: Path) -> None:
    file = write_onnx(tmp_path / "net.onnx")
    with_map, without = encoder_from(f"onnx:{file}"), encoder_from(f"onnx:{file},output=pooled")
    assert [(stage.dim, stage.cell_pixels) for stage in with_map.stages] == [(DIM, 8)]
    assert (without.stages, without.dim) == ((), DIM)
    backbone = Backbone(load_weights(with_map.file, with_map))
    (maps,) = backbone.feature_maps(pixels(2, SIZE))
    torch.testing.assert_close(maps.mean((2, 3)), backbone.embed(pixels(2, SIZE)))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("onnx:{0}/absent.onnx", r"absent\.onnx cannot be read: No such file or directory"),
        ("onnx:{0}/net.onnx,preprocess=absent.onnx", r"absent\.onnx cannot be read"),
        ("onnx:{0}/text.onnx", r"text\.onnx: the encoder cannot be used"),
        ("torch:{0}/text.onnx", r"text\.onnx: the encoder cannot be used: it is not a program of torch\.export"),
        ("onnx:{0}/bytes.onnx", r"bytes\.onnx: the encoder cannot be used"),
        ("onnx:{0}/net.onnx,output=logits", "it has no output 'logits', but map, pooled"),
        ("onnx:{0}/net.onnx,size=48", "it takes images of 32 x 32 pixels, not 48 x 48"),
        ("onnx:{0}/net.onnx,means=1", "'means' is not an option of onnx:, which has preprocess, size"),
        ("onnx:{0}/net.onnx,mean=1/2", "mean=1/2 is not three numbers"),
        ("onnx:{0}/net.onnx,std=0", "std must be above zero"),
        ("onnx:{0}/net.onnx,mean=a", "mean=a is not a list of numbers"),
        ("onnx:{0}/net.onnx,channels=grb", "channels=grb is not one of rgb, bgr"),
        ("onnx:", "the name is missing"),
        ("timm:vit_small_patch14_dino", "Did you mean vit_small_patch1"),
        ("timm:resnet50.nothing", r"no weights of the name 'nothing'\. It has: a1_in1k"),
        ("timm:resnet18,size=2", "size=2 is not a size in pixels"),
        ("timm:swin_tiny_patch4_window7_224,pool=avg", "'pool' is not an option of timm:, which has size"),
    ],
)
def test_what_cannot_be_an_encoder_is_an_error_that_says_why(tmp_path: Path, text: str, reason: str) -> None:
    write_onnx(tmp_path / "net.onnx")
    write_onnx(tmp_path / "bytes.onnx", as_type=TensorProto.UINT8)
    (tmp_path / "text.onnx").write_text("not a network")
    with pytest.raises(EncoderError, match=reason):
        encoder_from(text.format(tmp_path))


@pytest.mark.parametrize("module", ["timm", "onnxruntime"])
def test_a_missing_library_is_an_error_with_the_way_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str
) -> None:
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == module else find(name, *a))
    extra, text = ("timm", "timm:resnet18") if module == "timm" else ("onnx", f"onnx:{write_onnx(tmp_path / 'n.onnx')}")
    with pytest.raises(EncoderError, match=rf"Run pip install 'hoarfrost\[{extra}\]'"):
        encoder_from(text)


def test_a_file_runs_in_float32_alone_and_has_its_weights(tmp_path: Path) -> None:
    file = write_onnx(tmp_path / "net.onnx")
    write_demo(tmp_path / "images", n_images=30)
    for options, reason in (
        ({"precision": "bfloat16"}, r"net\.onnx \(ONNX\) does not run in bfloat16\. Pass --precision auto"),
        ({"precision": "int8"}, "does not run in int8"),
        ({"weights": "random:0"}, "--weights random:0: the weights of net.onnx .ONNX. are in its file"),
    ):
        with pytest.raises(EncoderError, match=reason):
            extract(tmp_path / "images", tmp_path / "c.h5", options=ExtractOptions(encoder=f"onnx:{file}", **options))


# -- what a fingerprint records is enough --------------------------------------------------------------------------------


def test_an_encoder_is_known_by_its_fingerprint_without_its_library_or_file(tmp_path: Path) -> None:
    file, before = write_onnx(tmp_path / "net.onnx"), write_preprocessing(tmp_path / "pre.onnx")
    for text in (
        "timm:resnet18,size=64",
        DINO,
        f"onnx:{file},preprocess={before},output=pooled",
        f"torch:{write_program(tmp_path / 'net.pt2', n=2)},channels=bgr,scale=255,mean=3/4/5",
    ):
        encoder = encoder_from(text)
        steps = json.loads(json.dumps(preprocessing(encoder)))
        known = recorded_encoder(encoder.name, steps)
        assert preprocessing(known) == steps
        assert (known.dim, known.size, known.stages) == (encoder.dim, encoder.size, encoder.stages)
        again = encoder_from(spelled(known, encoder.file))
        assert preprocessing(again) == steps
        assert again.file == encoder.file


def test_damaged_facts_in_a_fingerprint_are_an_error() -> None:
    steps = {**preprocessing(encoder_from("timm:resnet18,size=64")), "network": {"dim": 1, "more": 2}}
    with pytest.raises(EncoderError, match="What is recorded of the encoder timm:resnet18 is damaged"):
        recorded_encoder("timm:resnet18", steps)


# -- timm's weights ------------------------------------------------------------------------------------------------------


def test_a_checkpoint_is_read_by_timms_own_names_and_for_another_size(tmp_path: Path) -> None:
    torch.manual_seed(1)
    own = timm.create_model("vit_small_patch14_dinov2", num_classes=0, img_size=56, depth=12).eval()
    large = timm.create_model("vit_small_patch14_dinov2", num_classes=0, img_size=112).eval()
    same = {name: value for name, value in own.state_dict().items() if name != "pos_embed"}
    large.load_state_dict(same, strict=False)
    torch.save({"model": large.state_dict() | {"mask_token": torch.zeros(1, 384)}}, tmp_path / "dinov2.pth")
    encoder = encoder_from(DINO)
    weights = load_weights(str(tmp_path / "dinov2.pth"), encoder)
    assert weights.tensors["pos_embed"].shape == own.pos_embed.shape  # resampled, as timm does it
    torch.testing.assert_close(weights.tensors["blocks.3.mlp.fc1.weight"], own.blocks[3].mlp.fc1.weight)
    torch.save({"other": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(WeightsError, match=r"is not a vit_small_patch14_dinov2 \(timm\): the tensor .* is missing"):
        load_weights(str(tmp_path / "other.pth"), encoder)


def test_published_weights_are_read_from_the_hubs_cache_and_never_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub
    from safetensors.torch import save_file

    encoder = encoder_from("timm:resnet18.a1_in1k,size=64")
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_, **__: None)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: tmp_path)
    with pytest.raises(WeightsError, match=r"not on this machine.*timm.create_model\('resnet18.a1_in1k'.*random:0"):
        load_weights("imagenet", encoder)
    torch.manual_seed(5)
    save_file(timm.create_model("resnet18").state_dict(), tmp_path / "model.safetensors")
    asked: list[str] = []

    def cached(repository: str, name: str, **_: object) -> str:
        asked.append(f"{repository}/{name}")
        return str(tmp_path / "model.safetensors")

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", cached)
    weights = load_weights("imagenet", encoder)
    assert asked == ["timm/resnet18.a1_in1k/model.safetensors"]
    assert weights.name == "pretrained"
    assert weights.sha256 == load_weights("pretrained", encoder).sha256
    assert weights.sha256 == load_weights(str(tmp_path / "model.safetensors"), encoder).sha256


# -- from images to what is served ----------------------------------------------------------------------------------------


class Made(NamedTuple):
    """What was made with an encoder."""

    images: Path
    new: Path
    cache: Path
    run: Path


def make(folder: Path, encoder: str, *, n_images: int = 40, **options: Any) -> Made:
    made = Made(folder / "images", folder / "new", folder / "c.h5", folder / "run")
    write_demo(made.images, n_images=n_images)
    made.new.mkdir()
    for i in range(3):
        (made.new / f"{i}.png").write_bytes(encode(picture(seed=i)))
    extract(made.images, made.cache, options=ExtractOptions(encoder=encoder, precision="float32", **options))
    config = ExperimentConfig(training=TrainingConfig(epochs=3), positive=("malignant",))
    run_experiment(made.cache, made.run, parse_heads(["linear"]), config)
    return made


def check_use(made: Made, title: str, dim: int) -> None:
    """Check the cache, the report, new predictions and the server."""
    with h5py.File(made.cache) as file:
        assert file["images/embedding"].shape[1] == int(file.attrs["dim"]) == dim
    page = write_report(made.run).read_text(encoding="utf-8")
    assert f"by a frozen {title} up to its" in page
    assert f"({dim} values)" in page
    assert "ResNet18" not in page
    summary = predict_dataset(made.new, made.new.with_suffix(".csv"), run=made.run, cache=made.new.with_suffix(".h5"))
    assert (summary.predicted, summary.forward_images) == (3, 3)
    with opened_reader(made.run, None, LIMITS, weights=None, device="cpu", notes=[]) as reader:
        [answer] = reader.answer([reader.decode((made.new / "0.png").read_bytes(), Cancellation())])
        assert set(answer.probabilities) == {"benign_or_normal", "malignant"} or len(answer.probabilities) == 2


def check_export(made: Made, folder: Path, formats: Mapping[str, str]) -> None:
    for file_format, name in formats.items():
        summary = export_head(made.run, folder / name, file_format=file_format)
        assert summary.difference_from_run is not None
        assert summary.difference_from_run < 1e-3
        (folder / "model_card.md").unlink()
        (folder / name).unlink()


@pytest.mark.usefixtures("few_references")
def test_a_small_dinov2_goes_from_images_to_what_is_served(tmp_path: Path) -> None:
    made = make(tmp_path, DINO, weights="random:0")
    check_use(made, "vit_small_patch14_dinov2 (timm)", 384)
    with pytest.raises(EncoderError, match="is its class token, not the mean of a map.*--layers 12"):
        open_explainer(run_head(read_heads(made.run), None))
    check_export(made, tmp_path, {"torch": "m.pt2", "onnx": "m.onnx"})
    again = extract(
        made.images, made.cache, options=ExtractOptions(encoder=DINO, weights="random:0", precision="float32")
    )
    assert again.forward_images == 0


@pytest.mark.usefixtures("few_references")
def test_its_patch_tokens_can_be_embedded_and_then_explained(tmp_path: Path) -> None:
    made = make(tmp_path, DINO, weights="random:0", layers=(12,))
    check_use(made, "vit_small_patch14_dinov2 (timm)", 384)
    assert explain_dataset(made.new, tmp_path / "maps", run=made.run).explained == 3


@pytest.mark.slow
@pytest.mark.usefixtures("few_references")
def test_a_resnet50_goes_from_images_to_what_is_served(tmp_path: Path) -> None:
    made = make(tmp_path, "resnet50", weights="random:0")
    check_use(made, "ResNet50", 2048)
    assert explain_dataset(made.new, tmp_path / "maps", run=made.run).explained == 3
    check_export(made, tmp_path, {"torch": "m.pt2", "onnx": "m.onnx"})


@pytest.mark.usefixtures("few_references")
def test_an_onnx_file_goes_from_images_to_maps_and_is_not_exported(tmp_path: Path) -> None:
    file, before = write_onnx(tmp_path / "net.onnx"), write_preprocessing(tmp_path / "pre.onnx")
    made = make(tmp_path, f"onnx:{file},preprocess={before}")
    check_use(made, "net.onnx (ONNX)", DIM)
    assert explain_dataset(made.new, tmp_path / "maps", run=made.run).explained == 3
    with pytest.raises(EncoderError, match=r"net\.onnx \(ONNX\) runs in ONNX Runtime, so it cannot be exported"):
        export_head(made.run, tmp_path / "m.onnx", file_format="onnx")
    # Moved files are found again by --weights; others of the same name are refused.
    place = tmp_path / "place"
    place.mkdir()
    for path in (file, before):
        shutil.move(path, place / path.name)
    with pytest.raises(WeightsError, match=r"net\.onnx .ONNX. cannot be read.*pass its path with --weights"):
        predict_dataset(made.new, tmp_path / "x.csv", run=made.run, cache=tmp_path / "x.h5")
    moved = f"{place / 'net.onnx'},preprocess={place / 'pre.onnx'}"
    assert (
        predict_dataset(made.new, tmp_path / "x.csv", run=made.run, cache=tmp_path / "x.h5", weights=moved).predicted
        == 3
    )
    write_onnx(place / "net.onnx", pooled=True)
    with pytest.raises(FingerprintMismatchError, match="are not those that made the existing embeddings"):
        predict_dataset(made.new, tmp_path / "x.csv", run=made.run, cache=tmp_path / "y.h5", weights=moved)


@pytest.mark.usefixtures("few_references")
def test_an_exported_program_goes_from_images_to_an_exported_model(tmp_path: Path) -> None:
    made = make(tmp_path, f"torch:{write_program(tmp_path / 'net.pt2')}")
    check_use(made, "net.pt2 (exported program)", DIM)
    assert explain_dataset(made.new, tmp_path / "maps", run=made.run).explained == 3
    check_export(made, tmp_path, {"torch": "m.pt2"})


def test_a_cache_of_another_encoder_is_refused_with_the_way_out(tmp_path: Path) -> None:
    file = write_onnx(tmp_path / "net.onnx")
    made = make(tmp_path, f"onnx:{file}")
    with pytest.raises(FingerprintMismatchError) as raised:
        extract(made.images, made.cache, options=ExtractOptions(weights="random:0"))
    way_out = str(raised.value).rpartition("pass --encoder ")[2].removesuffix(".")
    assert extract(made.images, made.cache, options=ExtractOptions(encoder=way_out)).forward_images == 0


CNTK = ROOT.parent / "shared" / "weights"


@pytest.mark.slow
@pytest.mark.skipif(not (CNTK / "resnet18-cntk.onnx").exists(), reason="the network of 2018 is not on this machine")
def test_a_real_encoder_of_2018_goes_from_pixels_to_a_report(tmp_path: Path) -> None:
    files = f"{CNTK}/resnet18-cntk.onnx,preprocess={CNTK}/resnet18-cntk-preprocess.onnx"
    check_use(make(tmp_path, f"onnx:{files}"), "resnet18-cntk.onnx (ONNX)", 512)


def test_the_command_takes_any_encoder_and_refuses_an_unknown_one(hoarfrost: Hoarfrost, tmp_path: Path) -> None:
    images, file = tmp_path / "images", write_onnx(tmp_path / "net.onnx")
    write_demo(images, n_images=30)
    made = hoarfrost("extract", images, "--cache", tmp_path / "c.h5", "--encoder", f"onnx:{file}", "--json")
    summary = json.loads(made.stdout)
    assert (summary["embedded"], summary["weights"], summary["precision"]) == (30, "net.onnx", "float32")
    assert "onnx:net.onnx" in hoarfrost("cache", "info", tmp_path / "c.h5").stdout
    refused = hoarfrost("extract", images, "--cache", tmp_path / "d.h5", "--encoder", "resnet-50")
    assert refused.status == 1
    assert "Did you mean resnet50?" in refused.stderr
    assert not (tmp_path / "d.h5").exists()
