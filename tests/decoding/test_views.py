"""Names of views: each states one way of looking, is read back from its shortest form, or is refused with the reason."""

from contextlib import suppress
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hoarfrost.features.decoding.views import (
    CROP_SHARE,
    GEOMETRIES,
    GRAMMAR,
    MOST_TILES,
    View,
    grouped,
    parse_views,
    standard_view,
)
from hoarfrost.features.encoder.registry import RESNET18
from hoarfrost.features.errors import ViewError

FIXED = replace(RESNET18, title="Fixed", size=518, size_step=None)


def names(text: str) -> list[str]:
    return [view.name for view in parse_views(text, RESNET18)]


@pytest.mark.parametrize(
    ("text", "view"),
    [
        ("224", View(224)),
        ("448:pad:flip", View(448, "pad", flip=True)),
        ("96:cover", View(96, "cover")),
        ("224:crop", View(224, crop=CROP_SHARE)),
        ("224:crop=0.5:rot90", View(224, crop=0.5, turn=90)),
        ("224:tiles=3:rot180:affine=7:flip", View(224, tiles=3, turn=180, seed=7, flip=True)),
        ("224:rot270", View(224, turn=270)),
        ("224:affine=0", View(224, seed=0)),
        ("224:region", View(224, region=True)),
        ("448:region:pad:crop:flip", View(448, "pad", crop=CROP_SHARE, flip=True, region=True)),
    ],
)
def test_a_name_states_how_an_image_is_looked_at(text: str, view: View) -> None:
    assert parse_views(text, RESNET18) == (view,)
    assert view.name == text


@pytest.mark.parametrize(
    ("written", "shortest"),
    [
        ("224:stretch", "224"),
        ("448:flip:pad", "448:pad:flip"),
        ("224:flip:affine=007", "224:affine=7:flip"),
        ("224:crop=0.857", "224:crop"),
        ("224:flip:region", "224:region:flip"),
        ("224:crop=0.50", "224:crop=0.5"),
        (" 224 : flip", ""),
        ("0224", "224"),
        (" 224 ", "224"),
    ],
)
def test_what_means_the_same_has_one_name(written: str, shortest: str) -> None:
    if shortest:
        assert names(written) == [shortest]
    else:  # no blanks within a name
        with pytest.raises(ViewError, match="'224 ' is not a size in pixels"):
            names(written)


views = st.builds(
    View,
    size=st.integers(1, 64).map(lambda n: 32 * n),
    geometry=st.sampled_from(GEOMETRIES),
    crop=st.just(1.0) | st.just(CROP_SHARE) | st.floats(0.1, 1, exclude_max=True),
    turn=st.sampled_from([0, 90, 180, 270]),
    seed=st.none() | st.integers(0, 2**31 - 1),
    flip=st.booleans(),
    region=st.booleans(),
) | st.builds(View, size=st.just(224), tiles=st.integers(2, MOST_TILES), geometry=st.sampled_from(GEOMETRIES))


@given(views)
def test_every_view_is_read_back_from_its_name(view: View) -> None:
    (found,) = parse_views(view.name, RESNET18)
    assert found.name == view.name
    assert found == replace(view, crop=found.crop)
    assert found.crop == pytest.approx(view.crop, abs=1e-3)  # shares near that of "crop" are that of "crop"


@given(st.text("0123456789:=.,abcdefilnoprstuv-", max_size=24))
def test_any_text_is_read_or_refused(text: str) -> None:
    found: tuple[View, ...] = ()
    with suppress(ViewError):  # nothing else
        found = parse_views(text, RESNET18)
    if found:
        assert parse_views(",".join(view.name for view in found), RESNET18) == found


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("", "'' is not a size in pixels"),
        ("flip", "'flip' is not a size in pixels"),
        ("-224", "'-224' is not a size in pixels"),
        ("224.0", "'224.0' is not a size in pixels"),
        ("²²⁴", "'²²⁴' is not a size in pixels"),
        ("9" * 40, "is not a size in pixels"),
        ("225", "the size must be a multiple of 32, and at most 2048"),
        ("0", "the size must be a multiple of 32"),
        ("2080", "the size must be a multiple of 32, and at most 2048"),
        ("224:", "'' is not known"),
        ("224:mirror", "'mirror' is not known"),
        ("224:Flip", "'Flip' is not known"),
        ("224:flip=1", "'flip=1' is not known"),
        ("224:region=0.1", "'region=0.1' is not known"),
        ("224:region:region", "region appears twice"),
        ("224:pad=1", "'pad=1' is not known"),
        ("224:rot90=1", "'rot90=1' is not known"),
        ("224:rot45", "'rot45' is not known"),
        ("224:tiles", "'tiles' is not known"),
        ("224:affine", "'affine' is not known"),
        ("224:tiles=1", "tiles must be a whole number from 2 to 8, not 1"),
        ("224:tiles=9", "tiles must be a whole number from 2 to 8, not 9"),
        ("224:tiles=2.5", "tiles must be a whole number from 2 to 8, not 2.5"),
        ("224:affine=-1", "affine must be a whole number from 0 to 2147483647, not -1"),
        ("224:affine=2147483648", "affine must be a whole number"),
        ("224:crop=1", "crop must be a share of the side from 0.1 to below 1, not 1"),
        ("224:crop=0.09", "crop must be a share"),
        ("224:crop=nan", "crop must be a share"),
        ("224:crop=", "crop must be a share"),
        ("224:crop=half", "crop must be a share of the side from 0.1 to below 1, not half"),
        ("224:crop:tiles=2", "crop and tiles exclude each other"),
        ("224:flip:flip", "flip appears twice"),
        ("224:pad:cover", "geometry appears twice"),
        ("224:rot90:rot180", "turn appears twice"),
        ("224:crop:crop=0.5", "crop appears twice"),
    ],
)
def test_what_is_not_a_view_is_refused_with_the_reason_and_the_grammar(name: str, reason: str) -> None:
    with pytest.raises(ViewError) as refused:
        parse_views(f"224,{name}", RESNET18)
    assert str(refused.value).startswith(f"--views {name}: ")
    assert reason in str(refused.value)
    assert f"A view is {GRAMMAR}; or use standard or high." in str(refused.value)


def test_an_encoder_of_one_size_refuses_others() -> None:
    assert standard_view(FIXED) == View(518)
    assert parse_views("518:flip", FIXED) == (View(518, flip=True),)
    with pytest.raises(ViewError, match="the encoder Fixed takes 518 pixels only"):
        parse_views("224", FIXED)


def test_sets_have_names() -> None:
    assert names("standard") == ["224"]
    assert names("high") == ["224", "224:flip", "224:crop", "448", "448:flip", "448:crop"]
    assert [view.name for view in parse_views("high", FIXED)] == ["518", "518:flip", "518:crop"]


def test_views_stay_in_their_order_and_count_once() -> None:
    assert names("448,224,224:stretch, standard,448:flip") == ["448", "224", "448:flip"]
    assert names("224:tiles=2,high")[:2] == ["224:tiles=2", "224"]


def test_more_than_64_views_are_refused() -> None:
    text = ",".join(f"224:affine={seed}" for seed in range(65))
    with pytest.raises(ViewError, match=r"65 views are more than 64\. Name fewer"):
        parse_views(text, RESNET18)
    assert len(parse_views(text.rpartition(",")[0], RESNET18)) == 64


def test_views_of_one_size_geometry_and_tiles_are_one_group() -> None:
    found = grouped(
        parse_views("224,448:pad,224:flip,224:crop=0.5:rot90,224:tiles=2,448:pad:affine=3,224:region", RESNET18)
    )
    assert {group: [view.name for view in some] for group, some in found.items()} == {
        "224": ["224", "224:flip", "224:crop=0.5:rot90"],
        "448:pad": ["448:pad", "448:pad:affine=3"],
        "224:tiles=2": ["224:tiles=2"],
        "224:region": ["224:region"],
    }


def test_looks_are_counted_by_tiles() -> None:
    assert [view.n_looks for view in parse_views("224,224:tiles=3,448:flip", RESNET18)] == [1, 9, 1]
