"""`--fast`: 8-bit integers where they at least double the speed, and a reason where they do not."""

from pathlib import Path

import pytest
import torch

import hoarfrost.features.encoder.precision
from hoarfrost.features.encoder.precision import choose_precision, reason_against_int8
from hoarfrost.features.extraction import local
from hoarfrost.features.extraction.extract import extract
from hoarfrost.features.extraction.plan import ExtractOptions
from tests.encoder.test_devices import pretend_processor, pretend_speed
from tests.support.builders import encode, picture, write_image_folder


@pytest.mark.parametrize(
    ("flags", "device", "reason"),
    [
        ("avx2", "cpu", ""),
        ("avx2 avx512f avx512_bf16 avx512_vnni", "cpu", ""),
        ("avx2 avx512_vnni amx_bf16 amx_tile amx_int8", "cpu", "this processor computes bfloat16 nearly as fast"),
        ("sse2 avx", "cpu", "this processor has no fast instructions"),
        ("avx2", "cuda", "they run on CPUs, and the device is cuda"),
    ],
)
def test_fast_is_int8_where_the_processor_doubles_the_speed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, flags: str, device: str, reason: str
) -> None:
    pytest.importorskip("openvino")
    pretend_processor(monkeypatch, tmp_path, flags)
    pretend_speed(monkeypatch, float32_s=1.0, bfloat16_s=1.0)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    assert reason in reason_against_int8(device)
    assert bool(reason) == bool(reason_against_int8(device))
    assert choose_precision("fast", device) == (choose_precision("auto", device) if reason else "int8")


def test_fast_is_bfloat16_where_that_is_fast(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pretend_processor(monkeypatch, tmp_path, "avx2 avx512f avx512_bf16 avx512_vnni")
    pretend_speed(monkeypatch, float32_s=1.0, bfloat16_s=0.5)
    assert choose_precision("fast", "cpu") == "bfloat16"


def test_fast_says_why_it_is_not_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pretend_processor(monkeypatch, tmp_path, "sse2")
    assert choose_precision("fast", "cpu") == "float32"
    assert caplog.messages == [
        "--fast: 8-bit integers are not used, because this processor has no fast instructions for them (AVX2 or VNNI)."
    ]


def test_fast_without_openvino_names_the_way_to_install_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pretend_processor(monkeypatch, tmp_path, "avx2")
    monkeypatch.setattr(hoarfrost.features.encoder.precision.importlib.util, "find_spec", lambda _: None)
    assert reason_against_int8("cpu") == "OpenVINO is not installed (pip install openvino)"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_image_folder(tmp_path / "images", {"benign": 3, "malignant": 3}, size=(50, 40))


def test_fast_embeds_in_int8(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    pytest.importorskip("openvino")
    pretend_processor(monkeypatch, folder.parent, "avx2")
    options = ExtractOptions(weights="random:0", device="cpu", precision="fast")
    summary = extract(folder, folder.parent / "c.h5", options=options)
    assert summary.precision.startswith("int8:")
    assert summary.drift is not None
    assert extract(folder, folder.parent / "c.h5", options=options).reused == 6


@pytest.mark.parametrize(("flags", "n_times"), [("avx2", 1), ("sse2", 0)])
def test_a_long_extraction_recommends_fast_where_it_pays_and_the_cache_is_new(
    monkeypatch: pytest.MonkeyPatch, folder: Path, caplog: pytest.LogCaptureFixture, flags: str, n_times: int
) -> None:
    pytest.importorskip("openvino")
    pretend_processor(monkeypatch, folder.parent, flags)
    monkeypatch.setattr(local, "LEAST_FOR_FAST", 6)
    options = ExtractOptions(weights="random:0", device="cpu")
    extract(folder, folder.parent / "c.h5", options=options)
    found = [message for message in caplog.messages if message.startswith("--fast would embed these 6 images")]
    assert len(found) == n_times
    (folder / "benign" / "new.png").write_bytes(encode(picture(70, 60, seed=70)))
    caplog.clear()
    assert extract(folder, folder.parent / "c.h5", options=options).embedded == 1
    assert not [message for message in caplog.messages if "--fast" in message]
