"""What a view shows of an image, against slow and obvious computations; and that it depends on nothing else."""

import math
from functools import cache
from hashlib import sha256

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

import hoarfrost.features.decoding.images
from hoarfrost.features.decoding.images import Decoding, decode_pixels
from hoarfrost.features.decoding.looks import load_image, load_looks
from hoarfrost.features.decoding.quarantine import load_isolated
from hoarfrost.features.decoding.views import View, parse_views
from hoarfrost.features.encoder.registry import RESNET18
from hoarfrost.features.errors import ImageDecodeError
from tests.support.builders import encode, picture

Pixels = npt.NDArray[np.uint8]
KEY = bytes(range(32))
BILINEAR = Image.Resampling.BILINEAR


def views_of(names: str) -> tuple[View, ...]:
    return parse_views(names, RESNET18)


def seen(image: Image.Image, names: str, key: bytes = KEY) -> list[Pixels]:
    """Return the looks at an image, each (S, S) or (S, S, 3)."""
    looks = load_looks(np.asarray(image), key, views_of(names), Decoding())
    return [look[0].numpy() if len(look) == 1 else look.permute(1, 2, 0).numpy() for look in looks]


def assert_close(found: Pixels, expected: Image.Image | Pixels, *, most: int = 2) -> None:
    # torch's weights and Pillow's are both rounded, each in its own way.
    differences = np.abs(found.astype(int) - np.asarray(expected).astype(int))
    assert found.shape == np.asarray(expected).shape
    assert differences.max() <= most


COLOURS = ["RGB", "L"]
SHAPES = [(300, 200), (200, 300), (224, 224), (30, 20), (500, 40), (1, 1), (1, 300), (300, 1), (3000, 1), (1, 3000)]


@pytest.mark.parametrize("mode", COLOURS)
@pytest.mark.parametrize("shape", SHAPES)
def test_stretch_is_what_pillow_resizes_to_a_square(shape: tuple[int, int], mode: str) -> None:
    image = picture(*shape).convert(mode)
    (found,) = seen(image, "224")
    assert_close(found, image.resize((224, 224), BILINEAR))


@pytest.mark.parametrize("mode", COLOURS)
@pytest.mark.parametrize("shape", SHAPES)
def test_pad_is_the_whole_image_between_two_black_sides(shape: tuple[int, int], mode: str) -> None:
    image = picture(*shape).convert(mode)
    (left, right), (top, bottom) = (between_black(side, max(shape)) for side in shape)
    expected = np.zeros_like(seen(image, "224")[0])
    expected[top:bottom, left:right] = image.resize((right - left, bottom - top), BILINEAR)
    assert_close(seen(image, "224:pad")[0], expected)


def between_black(side: int, longest: int) -> tuple[int, int]:
    """Return where an image's side begins and ends in the 224 pixels of the longest side: at least one pixel."""
    share = 224 * side / longest
    start = min(round((224 - share) / 2), 223)
    return start, max(round((224 + share) / 2), start + 1)


@pytest.mark.parametrize("shape", [(1, 3000), (3000, 1), (2, 3001), (449, 1)])
def test_an_image_too_thin_for_one_pixel_is_seen_all_the_same(shape: tuple[int, int]) -> None:
    image = Image.new("L", shape, 255)
    (found,) = seen(image, "224:pad")
    assert (found == 255).sum() == 224
    tiles = seen(image, "224:pad:tiles=3")
    assert [tile.any() for tile in tiles] == [i in ((3, 4, 5) if shape[0] > shape[1] else (1, 4, 7)) for i in range(9)]


@pytest.mark.parametrize("mode", COLOURS)
@pytest.mark.parametrize("shape", [(300, 200), (200, 300), (64, 512), (224, 224), (1, 1), (3000, 2), (2, 3000)])
def test_cover_cuts_off_two_sides(shape: tuple[int, int], mode: str) -> None:
    image = picture(*shape).convert(mode)
    side = min(shape)
    left, top = (shape[0] - side) // 2, (shape[1] - side) // 2
    square = image.crop((left, top, left + side, top + side))
    assert_close(seen(image, "224:cover")[0], square.resize((224, 224), BILINEAR))


@pytest.mark.parametrize("mode", COLOURS)
@pytest.mark.parametrize(
    ("name", "shape", "box"),
    [
        ("224:crop=0.5", (300, 200), (75, 50, 225, 150)),
        ("224:crop", (280, 560), (20, 40, 260, 520)),
        ("224:crop=0.1", (400, 200), (180, 90, 220, 110)),
        ("448:crop=0.5:cover", (400, 200), (150, 50, 250, 150)),
        ("32:crop=0.5", (4, 4), (1, 1, 3, 3)),
        ("224:crop", (1, 1), (0, 0, 1, 1)),
        ("224:crop=0.1", (1, 3000), (0, 1350, 1, 1650)),
    ],
)
def test_crop_enlarges_the_centre(name: str, shape: tuple[int, int], box: tuple[int, int, int, int], mode: str) -> None:
    image = picture(*shape).convert(mode)
    (found,) = seen(image, name)
    assert_close(found, image.crop(box).resize(found.shape[:2], BILINEAR))


@pytest.mark.parametrize("mode", COLOURS)
@pytest.mark.parametrize(("n", "shape"), [(2, (300, 200)), (3, (90, 600)), (8, (80, 160)), (2, (2, 2))])
def test_tiles_are_parts_row_by_row(n: int, shape: tuple[int, int], mode: str) -> None:
    image, wide, high = picture(*shape).convert(mode), shape[0] // n, shape[1] // n
    found = seen(image, f"224:tiles={n}")
    assert len(found) == n * n
    for place, tile in enumerate(found):
        top, left = place // n * high, place % n * wide
        assert_close(tile, image.crop((left, top, left + wide, top + high)).resize((224, 224), BILINEAR))


@pytest.mark.parametrize("shape", [(1, 1), (1, 3000), (3000, 1), (5, 3)])
def test_tiles_of_images_with_fewer_pixels_show_pixels_of_the_image(shape: tuple[int, int]) -> None:
    image = picture(*shape)
    pixels = np.asarray(image).reshape(-1, 3)
    for tile in seen(image, "32:tiles=8"):
        assert (pixels.min(axis=0) <= tile).all()
        assert (tile <= pixels.max(axis=0)).all()


def test_tiles_of_a_padded_image_are_those_of_the_padded_square() -> None:
    image = picture(160, 80)
    square = Image.new("RGB", (160, 160))
    square.paste(image, (0, 40))
    found = seen(image, "224:pad:tiles=4")
    for place, tile in enumerate(found):
        top, left = place // 4 * 40, place % 4 * 40
        assert_close(tile, square.crop((left, top, left + 40, top + 40)).resize((224, 224), BILINEAR))
    assert [bool(tile.any()) for tile in found] == [False] * 4 + [True] * 8 + [False] * 4
    half = seen(image, "224:pad:tiles=2")  # the picture starts in the middle of a tile
    assert not half[0][:112].any()
    assert_close(half[0][112:], image.crop((0, 0, 80, 40)).resize((224, 112), BILINEAR))


@pytest.mark.parametrize("mode", COLOURS)
@pytest.mark.parametrize("name", ["224", "224:pad", "224:cover", "224:crop=0.4", "224:tiles=2"])
def test_turns_and_mirror_images_are_of_the_same_look(name: str, mode: str) -> None:
    image = picture(150, 90).convert(mode)
    plain = seen(image, name)
    for i, look in enumerate(plain):
        for turn in (90, 180, 270):
            expected = np.asarray(Image.fromarray(look).rotate(turn))
            np.testing.assert_array_equal(seen(image, f"{name}:rot{turn}")[i], expected)
            np.testing.assert_array_equal(seen(image, f"{name}:rot{turn}:flip")[i], expected[:, ::-1])
        np.testing.assert_array_equal(seen(image, f"{name}:flip")[i], look[:, ::-1])


# -- random motion --------------------------------------------------------------------------------------------------------


def drawn(name: str, key: bytes) -> tuple[float, float]:
    """Return the angle in degrees and the scale, as the documentation states them."""
    digest = sha256(key + name.encode()).digest()
    shares = [int.from_bytes(digest[at : at + 8], "big") / 2**63 - 1 for at in (0, 8)]
    return 10 * shares[0], 1 + 0.1 * shares[1]


def turned_and_scaled(look: Pixels, degrees: float, scale: float) -> Pixels:
    """Take each pixel from where it was, by bilinear interpolation; black beyond the image."""
    size, angle = len(look), math.radians(degrees)
    padded = np.zeros((size + 2, size + 2), np.float64)
    padded[1:-1, 1:-1] = look
    found = np.zeros_like(look)
    for row in range(size):
        for column in range(size):
            x, y = column - (size - 1) / 2, row - (size - 1) / 2
            from_x = (math.cos(angle) * x - math.sin(angle) * y) / scale + (size - 1) / 2
            from_y = (math.sin(angle) * x + math.cos(angle) * y) / scale + (size - 1) / 2
            left, top = math.floor(from_x), math.floor(from_y)
            if -1 <= left < size and -1 <= top < size:
                u, v = from_x - left, from_y - top
                cells = padded[top + 1 : top + 3, left + 1 : left + 3]
                found[row, column] = round(float(np.array([1 - v, v]) @ cells @ np.array([1 - u, u])))
    return found


@pytest.mark.parametrize("key", [KEY, bytes(32), bytes([255] * 32)])
@pytest.mark.parametrize("name", ["96:affine=1", "96:affine=2", "96:pad:affine=1"])
def test_affine_turns_and_scales_about_the_centre_by_what_the_key_and_the_name_draw(name: str, key: bytes) -> None:
    image = picture(96, 96).convert("L")
    (plain,) = seen(image, name.partition(":affine")[0])
    degrees, scale = drawn(name, key)
    assert abs(degrees) <= 10
    assert 0.9 <= scale <= 1.1
    assert_close(seen(image, name, key)[0], turned_and_scaled(plain, degrees, scale))


def test_each_image_and_each_seed_has_a_motion_of_its_own() -> None:
    image = picture(60, 60)
    looks = [seen(image, name, key)[0].tobytes() for name in ("96:affine=1", "96:affine=2") for key in (KEY, bytes(32))]
    assert len(set(looks)) == 4
    assert seen(image, "96:affine=1")[0].tobytes() == looks[0]


def test_motions_are_spread_evenly() -> None:
    found = np.array([drawn("224:affine=1", sha256(bytes([i % 256, i // 256])).digest()) for i in range(2000)])
    assert np.abs(found.mean(axis=0) - [0, 1]).max() < 0.5
    assert found[:, 0].std() == pytest.approx(20 / math.sqrt(12), rel=0.05)
    assert found[:, 1].std() == pytest.approx(0.2 / math.sqrt(12), rel=0.05)


# -- a view depends on nothing else ---------------------------------------------------------------------------------------

MANY = "224,448,224:flip,448:pad,224:crop,32,224:tiles=2,96:affine=4,224:rot90,224:crop=0.2,64:tiles=8,448:cover:flip"
PICTURES = {  # made when they are asked for: the large ones take seconds, and every test process collects all tests
    "PNG": lambda: encode(picture(700, 500)),
    "grey PNG": lambda: encode(picture(500, 700).convert("L")),
    "small JPEG": lambda: encode(picture(300, 260), "JPEG"),
    "JPEG": lambda: encode(picture(1100, 900), "JPEG"),
    "large JPEG": lambda: encode(picture(3700, 3600), "JPEG"),
    "large grey JPEG": lambda: encode(picture(2000, 1800).convert("L"), "JPEG"),
    "thin JPEG": lambda: encode(picture(3000, 1), "JPEG"),
    "one pixel": lambda: encode(picture(1, 1)),
}


@cache
def file_of(kind: str) -> bytes:
    return PICTURES[kind]()


@pytest.mark.parametrize("kind", PICTURES)
def test_a_view_has_the_same_bits_alone_and_with_others_and_in_another_process(kind: str) -> None:
    content, views = file_of(kind), views_of(MANY)
    together = load_looks(content, KEY, views, Decoding())
    assert [len(look[0]) for look in together] == [view.size for view in views for _ in range(view.n_looks)]
    alone = [look for view in views for look in load_looks(content, KEY, (view,), Decoding())]
    reverse = load_looks(content, KEY, views[::-1], Decoding())
    elsewhere = load_isolated(content, KEY, views, Decoding())
    first_last = [look for view in views for look in reverse[slice_of(view, views[::-1])]]
    for one, *others in zip(together, alone, first_last, elsewhere, strict=True):
        assert all(torch.equal(one, other) for other in others)
    assert torch.equal(together[0], load_image(content))


def slice_of(view: View, views: tuple[View, ...]) -> slice:
    start = sum(other.n_looks for other in views[: views.index(view)])
    return slice(start, start + view.n_looks)


@pytest.mark.parametrize(
    ("kind", "names", "n_decoded"),
    [
        ("PNG", MANY, 1),
        ("small JPEG", MANY.replace(",32,", ","), 1),
        ("JPEG", "224,224:flip,224:pad", 1),  # at 1/2
        ("JPEG", "224,448", 2),  # at 1/2 and whole
        ("JPEG", "448,32,224,64", 4),  # whole, at 1/8, 1/2 and 1/4
        ("large JPEG", "224,224:crop,448,448:flip", 2),
        ("large JPEG", "448,224:tiles=2", 1),  # tiles show as much detail as the whole at twice the size
        ("large JPEG", "1024,1536,2048", 1),
    ],
)
def test_a_file_is_decoded_once_for_all_views_of_one_scale(
    monkeypatch: pytest.MonkeyPatch, kind: str, names: str, n_decoded: int
) -> None:
    decode, decoded = hoarfrost.features.decoding.images._pixels, []

    def counted(image: Image.Image) -> Pixels:
        decoded.append(image.size)
        return decode(image)

    monkeypatch.setattr(hoarfrost.features.decoding.images, "_pixels", counted)
    load_looks(file_of(kind), KEY, views_of(names), Decoding())
    assert len(decoded) == len(set(decoded)) == n_decoded


@pytest.mark.parametrize(
    ("name", "least"), [("224", 448), ("448", 896), ("224:tiles=2", 896), ("224:crop", 448), ("224:crop=0.25", 896)]
)
def test_a_large_jpeg_keeps_the_detail_that_a_view_shows(name: str, least: int) -> None:
    (view,) = views_of(name)
    pixels = decode_pixels(file_of("large JPEG"), Decoding().at(view.decoded_size))
    assert least <= min(pixels.shape[:2]) < 2 * least + 2


def test_looks_are_in_the_order_of_the_views_and_shared_pixels_stay_as_they_are() -> None:
    content = np.asarray(picture(224, 224)).copy()
    before = content.copy()
    looks = load_looks(content, KEY, views_of("224,224:flip,224:crop=0.5"), Decoding())
    looks[0].zero_()
    looks[2].zero_()
    np.testing.assert_array_equal(content, before)
    np.testing.assert_array_equal(looks[1].permute(1, 2, 0).numpy(), before[:, ::-1])


def test_damage_is_the_same_error_for_every_view() -> None:
    damaged = file_of("JPEG")[:20_000]
    for names in ("224", "448", MANY):
        with pytest.raises(ImageDecodeError, match="damaged or truncated image"):
            load_looks(damaged, KEY, views_of(names), Decoding())
