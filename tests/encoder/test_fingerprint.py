"""What decides an embedding's value decides its fingerprint, and nothing else does."""

import json
import re
import tracemalloc
from collections.abc import Iterator
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hoarfrost.features.encoder.registry import RESNET18
from hoarfrost.features.fingerprint import (
    KEY_BYTES,
    Fingerprint,
    bytes_key,
    pixels_key,
    preprocessing,
    weights_digest,
    weights_origin,
)

FIXED = Fingerprint("resnet18", "ab" * 32, {"resize": [224, 224], "mean": [0.485, 0.456]}, "float32")

# -- keys of images -----------------------------------------------------------------------------------------------------


def test_bytes_key_is_the_sha256_of_the_file() -> None:
    assert bytes_key(b"abc").hex() == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@given(st.binary(), st.binary())
def test_bytes_keys_are_equal_for_equal_bytes_only(one: bytes, other: bytes) -> None:
    assert len(bytes_key(one)) == KEY_BYTES
    assert (bytes_key(one) == bytes_key(other)) == (one == other)


def test_pixels_key_is_pinned() -> None:
    pixels = np.arange(12, dtype=np.uint8).reshape(3, 4)
    assert pixels_key(pixels).hex() == "58fa111d99505cbfa5540adbe3f6b988461f46ad8cfc086a332961f2a66afd4a"


def test_pixels_key_copies_no_pixels() -> None:
    pixels = np.zeros((3000, 3000), np.uint8)
    tracemalloc.start()
    pixels_key(pixels)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < pixels.nbytes / 10


def test_pixels_key_distinguishes_shapes() -> None:
    pixels = np.zeros(28 * 28 * 3, np.uint8)
    shapes = [(28, 84), (84, 28), (28, 28, 3), (56, 42)]
    assert len({pixels_key(pixels.reshape(shape)) for shape in shapes}) == len(shapes)


def test_pixels_key_depends_on_the_values_not_on_their_order_in_memory() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 6, 3), np.uint8)
    assert pixels_key(np.asfortranarray(pixels)) == pixels_key(pixels)
    assert pixels_key(pixels[::-1, ::2]) == pixels_key(pixels[::-1, ::2].copy())
    assert pixels_key(pixels[::-1]) != pixels_key(pixels)


# -- digest of weights --------------------------------------------------------------------------------------------------


def tensors() -> dict[str, npt.NDArray[np.float32]]:
    rng = np.random.default_rng(0)
    return {
        "conv1.weight": rng.standard_normal((4, 3, 2, 2), np.float32),
        "bn1.weight": rng.standard_normal(4, np.float32),
        "bn1.bias": np.zeros(4, np.float32),
    }


def test_weights_digest_is_pinned() -> None:
    values = {"b": np.arange(6, dtype="<f4").reshape(2, 3), "a": np.float32([0.5])}
    assert weights_digest(values.items()) == "b1504a08ab8bd14e31cd18e6c686df22882e634201580be177bfef7be4023dea"


def test_weights_digest_is_independent_of_the_order_of_tensors() -> None:
    named = list(tensors().items())
    assert weights_digest(reversed(named)) == weights_digest(named)


def test_weights_digest_is_independent_of_strides() -> None:
    strided = {name: np.asfortranarray(values) for name, values in tensors().items()}
    assert weights_digest(strided.items()) == weights_digest(tensors().items())


def changed_tensors() -> Iterator[dict[str, npt.NDArray[Any]]]:
    whole = tensors()
    value = {name: values.copy() for name, values in whole.items()}
    value["conv1.weight"][3, 2, 1, 1] = np.nextafter(value["conv1.weight"][3, 2, 1, 1], np.float32(9))
    yield value
    yield {name.replace("conv1", "conv2"): values for name, values in whole.items()}
    yield {name: values.reshape(-1) for name, values in whole.items()}
    yield {name: values.astype(np.float64) for name, values in whole.items()}
    yield {name: values for name, values in whole.items() if name != "bn1.bias"}
    yield {**whole, "bn1.weight": whole["bn1.bias"], "bn1.bias": whole["bn1.weight"]}


def test_weights_digest_distinguishes_names_shapes_types_and_values() -> None:
    digests = [weights_digest(changed.items()) for changed in (tensors(), *changed_tensors())]
    assert len(set(digests)) == 7


# -- the fingerprint ----------------------------------------------------------------------------------------------------


def test_digest_of_fixed_parts_is_pinned() -> None:
    # A change of how the digest is made orphans every existing cache.
    assert FIXED.digest == "37390b7f813013fbc1ddc3232b1a30187927be55983ec804d3aa0f3c5ec97d2a"


def test_the_projects_own_preprocessing_is_pinned() -> None:
    # A change of a step changes its text and this digest: embeddings of both must not be mixed.
    assert (
        replace(FIXED, preprocessing=preprocessing(RESNET18)).digest
        == "cb6c58ce938227ab1f93241e500f9b2ecd23b23f4dcd9b63fb58478fdc0cbf47"
    )


def test_digest_is_independent_of_the_order_of_keys_and_of_tuples() -> None:
    other = replace(FIXED, preprocessing={"mean": (0.485, 0.456), "resize": (224, 224)})
    assert other.digest == FIXED.digest


def test_digest_survives_json() -> None:
    assert Fingerprint(**json.loads(json.dumps(asdict(FIXED)))).digest == FIXED.digest


CHANGED = {
    "backbone": replace(FIXED, backbone="resnet34"),
    "weights_sha256": replace(FIXED, weights_sha256="ac" * 32),
    "precision": replace(FIXED, precision="bfloat16"),
    "layers": replace(FIXED, layers=(3, 4)),
    "preprocessing": replace(FIXED, preprocessing={"resize": [256, 224], "mean": [0.485, 0.456]}),
    "preprocessing, order of values": replace(FIXED, preprocessing={"resize": [224, 224], "mean": [0.456, 0.485]}),
    "preprocessing, less": replace(FIXED, preprocessing={"resize": [224, 224]}),
    "preprocessing, more": replace(FIXED, preprocessing={**FIXED.preprocessing, "window": "40/400"}),
}


def test_every_ingredient_changes_the_digest() -> None:
    assert {field.name for field in fields(Fingerprint)} <= set(CHANGED)
    digests = {fingerprint.digest for fingerprint in (FIXED, *CHANGED.values())}
    assert len(digests) == 1 + len(CHANGED)


@given(st.text(), st.text())
def test_text_cannot_move_from_one_ingredient_to_another(one: str, other: str) -> None:
    swapped = Fingerprint(other, one, {}, "float32")
    assert (Fingerprint(one, other, {}, "float32").digest == swapped.digest) == (one == other)


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        ("backbone", ["backbone: resnet18 here, resnet34 there"]),
        ("weights_sha256", [f"weights (SHA-256): {'ab' * 32} here, {'ac' * 32} there"]),
        ("precision", ["precision: float32 here, bfloat16 there"]),
        ("preprocessing", ["preprocessing.resize: [224,224] here, [256,224] there"]),
        ("preprocessing, less", ["preprocessing.mean: [0.485,0.456] here, absent there"]),
        ("preprocessing, more", ['preprocessing.window: absent here, "40/400" there']),
    ],
)
def test_differences_name_the_part_and_both_values(part: str, expected: list[str]) -> None:
    assert FIXED.differences(CHANGED[part]) == expected


def test_several_differences_are_all_named() -> None:
    other = replace(CHANGED["precision"], backbone="resnet34")
    assert [text.split(":")[0] for text in FIXED.differences(other)] == ["backbone", "precision"]


def test_the_facts_of_another_network_are_no_difference_beside_its_name() -> None:
    timms = replace(FIXED, preprocessing={**FIXED.preprocessing, "network": {"dim": 384}})
    assert FIXED.differences(replace(timms, backbone="timm:vit")) == ["backbone: resnet18 here, timm:vit there"]
    assert timms.differences(replace(timms, preprocessing={**FIXED.preprocessing, "network": {"dim": 768}})) == [
        'preprocessing.network: {"dim":384} here, {"dim":768} there'
    ]


def test_equal_fingerprints_have_no_differences() -> None:
    assert FIXED.differences(replace(FIXED, preprocessing=dict(FIXED.preprocessing))) == []


# -- where weights come from --------------------------------------------------------------------------------------------


def test_origin_of_a_checkpoint_is_its_content_not_its_name(tmp_path: Path) -> None:
    for name, content in (("one.pth", b"same"), ("two.pth", b"same"), ("three.pth", b"other")):
        (tmp_path / name).write_bytes(content)
    one, two, three = (weights_origin(str(tmp_path / name), RESNET18) for name in ("one.pth", "two.pth", "three.pth"))
    assert one == two == f"file with SHA-256 {bytes_key(b'same').hex()}"
    assert three != one


def test_origin_of_random_weights_names_the_seed_and_who_drew_them() -> None:
    assert re.fullmatch(r"random:7 by torch \S+, torchvision \S+", weights_origin("random:7", RESNET18))
    assert weights_origin("random:7", RESNET18) != weights_origin("random:8", RESNET18)


def test_origin_of_a_missing_checkpoint_is_unknown(tmp_path: Path) -> None:
    assert weights_origin(str(tmp_path / "nowhere.pth"), RESNET18) == ""
