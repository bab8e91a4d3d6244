"""What a file tells besides its picture: its size, its depth, the kinds in its header, and its grey levels."""

import io
import json
import pickle
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hoarfrost.features.decoding.images import Decoding
from hoarfrost.features.decoding.looks import seen_in
from hoarfrost.features.decoding.quarantine import seen_isolated
from hoarfrost.features.decoding.views import View
from hoarfrost.features.facts import (
    MEASURED_PIXELS,
    FileHeader,
    ImageFacts,
    Kinds,
    facts_of,
    grey_moments,
    kind_text,
    sound_text,
)
from tests.support.dicoms import dicom, encoded, grey_values

VIEWS = (View(224),)
MAKE, MODEL = 271, 272


def facts(content: bytes) -> ImageFacts:
    found = seen_in(content, b"", VIEWS, Decoding()).facts
    assert found is not None
    return found


def image(content: np.ndarray, image_format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(content).save(buffer, image_format, **options)
    return buffer.getvalue()


def drawn(*shape: int, dtype: type = np.uint8, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).gamma(2.0, 20.0, shape).astype(dtype)


def exif(**texts: str) -> Image.Exif:
    found = Image.Exif()
    for tag, text in zip((MAKE, MODEL), (texts.get("make"), texts.get("model")), strict=True):
        if text is not None:
            found[tag] = text
    return found


@pytest.mark.parametrize(
    ("content", "header", "channels"),
    [
        (image(drawn(30, 40, 3)), FileHeader(40, 30, 8, Kinds("PNG", "RGB", exif="no")), 3),
        (image(drawn(30, 40)), FileHeader(40, 30, 8, Kinds("PNG", "L", exif="no")), 1),
        (image(drawn(30, 40, dtype=np.uint16)), FileHeader(40, 30, 16, Kinds("PNG", "I;16", exif="no")), 1),
        (image(drawn(30, 40), "JPEG"), FileHeader(40, 30, 8, Kinds("JPEG", "L", exif="no")), 1),
        (image(drawn(30, 40), "TIFF"), FileHeader(40, 30, 8, Kinds("TIFF", "L", exif="no")), 1),
    ],
)
def test_size_depth_and_kinds_are_those_of_the_file(content: bytes, header: FileHeader, channels: int) -> None:
    assert (facts(content).header, facts(content).channels) == (header, channels)


def test_size_is_that_before_a_jpeg_is_decoded_smaller_or_turned() -> None:
    turned = exif()
    turned[274] = 6
    found = facts(image(drawn(1600, 2000), "JPEG", exif=turned))
    assert found.header[:2] == (2000, 1600)
    assert found.header.kinds.exif == "yes"


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP"])
def test_camera_is_read_from_exif(image_format: str) -> None:
    content = image(drawn(30, 40, 3), image_format, exif=exif(make="Canon", model=" EOS  5D\0"))
    kinds = facts(content).header.kinds
    assert (kinds.exif, kinds.manufacturer, kinds.model) == ("yes", "Canon", "EOS 5D")


def test_camera_is_read_from_a_tiff() -> None:
    kinds = facts(image(drawn(30, 40), "TIFF", tiffinfo={MAKE: "Leica", MODEL: "SCN400"})).header.kinds
    assert (kinds.manufacturer, kinds.model) == ("Leica", "SCN400")


@pytest.mark.parametrize("text", ["Doe^Jane", "x" * 65, "a\x01b"])
def test_texts_that_could_be_a_person_or_are_damaged_are_not_kept(text: str) -> None:
    kinds = facts(image(drawn(30, 40), "JPEG", exif=exif(make=text, model=text))).header.kinds
    assert (kinds.exif, kinds.manufacturer, kinds.model) == ("yes", "", "")


@pytest.mark.parametrize("value", [b"ACME\0DOE JOHN", ["GE", "DOE JOHN"], ("GE",), 7, None])
def test_what_is_no_text_is_not_kept(value: object) -> None:
    assert kind_text(value) == sound_text(value) == ""


def test_exif_behind_the_pixels_is_told_by_every_process() -> None:
    content = image(drawn(30, 40, 3), exif=exif(make="Canon"))
    at = content.index(b"eXIf") - 4
    end = at + 12 + int.from_bytes(content[at : at + 4])
    moved = content[:at] + content[end:-12] + content[at:end] + content[-12:]
    assert facts(moved).header.kinds.manufacturer == "Canon"
    assert seen_isolated(moved, b"", VIEWS, Decoding()).facts == facts(moved)


def test_damaged_exif_is_no_error() -> None:
    assert facts(image(drawn(30, 40), "JPEG", exif=b"Exif\0\0garbage")).header.kinds.manufacturer == ""


def test_kinds_of_a_dicom_file_and_nothing_of_the_patient() -> None:
    data = dicom(
        grey_values(), bits=12, Modality="US", Manufacturer="Maker", ManufacturerModelName="M 3", PatientName="Doe^Jane",
        PatientID="4711", StudyDate="20200102", InstitutionName="St. Elsewhere", DeviceSerialNumber="SN-12",
    )  # fmt: skip
    found = facts(encoded(data))
    kinds = Kinds("DICOM, Explicit VR Little Endian", "MONOCHROME2", "US", "Maker", "M 3", "no")
    assert found.header == FileHeader(40, 30, 12, kinds)
    for secret in ("Doe", "Jane", "4711", "2020", "Elsewhere", "SN-12"):
        assert secret not in repr(found)
    data.Manufacturer, data.Modality = "Doe^Jane", None
    assert facts(encoded(data)).header.kinds[2:4] == ("", "")


def test_arrays_have_a_size_and_no_header() -> None:
    found = seen_in(drawn(28, 30), b"", VIEWS, Decoding()).facts
    assert found is not None
    assert found.header == FileHeader(30, 28, 8, Kinds("array", "L"))


@pytest.mark.parametrize(
    "content", [image(drawn(90, 70, 3)), encoded(dicom(grey_values(), bits=12, Manufacturer="Größe"))]
)
def test_another_process_tells_the_same(content: bytes) -> None:
    found = seen_isolated(content, b"", VIEWS, Decoding())
    assert found.facts == facts(content)
    assert pickle.loads(pickle.dumps(found.facts)) == found.facts
    assert json.loads(json.dumps(found.facts)) is not None


def slow_moments(grey: np.ndarray) -> list[float]:
    z = (grey - grey.mean()) / grey.std()
    return [grey.mean(), grey.std(), (z**3).mean(), (z**4).mean()]


@pytest.mark.parametrize("shape", [(30, 40), (64, 64), (30, 40, 3), (1, 1000), (7, 3)])
def test_moments_are_those_of_a_slow_computation(shape: tuple[int, ...]) -> None:
    pixels = drawn(*shape)
    grey = pixels.astype(float) if pixels.ndim == 2 else pixels[:, :, 1].astype(float)
    assert grey.size <= MEASURED_PIXELS
    assert grey_moments(pixels) == pytest.approx(slow_moments(grey), rel=1e-9)


@pytest.mark.parametrize("shape", [(600, 500), (65, 64), (300, 2000), (2000, 2000)])
def test_of_larger_images_about_4096_pixels_are_measured(shape: tuple[int, int]) -> None:
    rows, columns = np.linspace(0, 3, shape[0]), np.linspace(0, 5, shape[1])
    pixels = (100 + 60 * np.sin(rows)[:, None] + 30 * np.cos(columns)[None, :]).astype(np.uint8)
    assert grey_moments(pixels) == pytest.approx(slow_moments(pixels.astype(float)), rel=0.03, abs=0.03)


def test_a_picture_of_one_grey_level_has_no_shape() -> None:
    assert facts_of(np.full((30, 40), 7, np.uint8)).moments == (7.0, 0.0, 0.0, 0.0)
