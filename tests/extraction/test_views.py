"""A view's embedding depends on the image's bytes and the view's name alone; further views cost what is missing."""

import csv
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from hoarfrost.features.cache import EmbeddingCache, describe, existing_header, verify
from hoarfrost.features.decoding.images import Decoding
from hoarfrost.features.decoding.looks import Seen, load_looks, seen_in
from hoarfrost.features.decoding.quarantine import Quarantine
from hoarfrost.features.decoding.views import View, parse_views
from hoarfrost.features.encoder.backbone import Backbone, load_weights
from hoarfrost.features.encoder.registry import RESNET18
from hoarfrost.features.errors import EncoderError, FingerprintMismatchError, ViewError
from hoarfrost.features.extraction.buffers import Places, images_in_a_batch
from hoarfrost.features.extraction.extract import embed_like
from hoarfrost.features.fingerprint import bytes_key
from tests.support.builders import encode, picture, write_image_folder
from tests.support.standin import StandIn
from tests.support.viewed import MANY, MANY_LOOKS, by_key, by_path, extracted

VIEWS = [view.name for view in parse_views(MANY, RESNET18)]


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a few images of different kinds: colour, grey, wide, high, a JPEG that is decoded at a scale of its own."""
    folder = tmp_path_factory.mktemp("data") / "mixed"
    write_image_folder(folder, {"a": 1, "b": 1}, size=(60, 50))
    (folder / "a" / "grey.png").write_bytes(encode(picture(90, 40, seed=5).convert("L")))
    (folder / "a" / "large.jpg").write_bytes(encode(picture(1100, 900, seed=6), "JPEG"))
    (folder / "b" / "high.png").write_bytes(encode(picture(20, 300, seed=7)))
    return folder


def listed(folder: Path, paths: list[str]) -> Path:
    """Write a table of some images below a folder."""
    table = folder / "t.csv"
    with table.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label"])
        writer.writerows([path, Path(path).parent.name] for path in paths)
    return table


# -- of nothing else -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def expected(mixed: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, bytes]]:
    cache = tmp_path_factory.mktemp("expected") / "c.h5"
    done = extracted(mixed, cache, MANY, batch_size=32, workers=1)
    assert (done.embedded, done.forward_images, done.views) == (5, 5 * MANY_LOOKS, tuple(VIEWS))
    return {view: by_path(cache, view) for view in VIEWS}


@pytest.mark.parametrize(
    ("batch_size", "workers", "seed"),
    [(7, 4, 1), *(pytest.param(*case, marks=pytest.mark.slow) for case in ((1, 1, 0), (64, 2, 2)))],
)
def test_a_view_has_the_same_bits_in_any_batch_order_and_number_of_workers(
    tmp_path: Path, mixed: Path, expected: dict[str, dict[str, bytes]], batch_size: int, workers: int, seed: int
) -> None:
    shutil.copytree(mixed, tmp_path / "mixed")
    write_image_folder(tmp_path / "others", {"a": 2, "b": 1}, size=(33, 44))
    paths = [str(path.relative_to(tmp_path)) for path in sorted(tmp_path.rglob("*.*"))]
    random.Random(seed).shuffle(paths)
    views = ",".join(random.Random(seed).sample(VIEWS, len(VIEWS)))
    extracted(listed(tmp_path, paths), tmp_path / "c.h5", views, batch_size=batch_size, workers=workers)
    for view in VIEWS:
        found = by_path(tmp_path / "c.h5", view)
        assert len(found) == 8
        assert {f"mixed/{path}": row for path, row in expected[view].items()}.items() <= found.items(), view


def test_a_view_has_the_same_bits_without_the_other_images_and_views(
    tmp_path: Path, mixed: Path, expected: dict[str, dict[str, bytes]]
) -> None:
    shutil.copytree(mixed, tmp_path, dirs_exist_ok=True)
    pair = listed(tmp_path, ["a/large.jpg", "b/high.png"])
    for number, view in enumerate(VIEWS):
        extracted(pair, tmp_path / f"{number}.h5", view)
        found = by_path(tmp_path / f"{number}.h5", view)
        assert found == {name: expected[view][name] for name in ("a/large.jpg", "b/high.png")}


def test_each_view_is_the_embedding_of_its_looks(mixed: Path, expected: dict[str, dict[str, bytes]]) -> None:
    backbone = Backbone(load_weights("random:0"))
    for path in sorted(mixed.rglob("*.*")):
        content = path.read_bytes()
        for view in parse_views(MANY, RESNET18):
            looks = load_looks(content, bytes_key(content), (view,), Decoding())
            embeddings = backbone.embed(torch.stack([look.expand(3, -1, -1) for look in looks])).numpy()
            name = str(path.relative_to(mixed))
            assert embeddings.mean(axis=0).tobytes() == expected[view.name][name], (path, view)


def test_bfloat16_does_not_depend_on_batch_mates_either(tmp_path: Path, mixed: Path) -> None:
    views = "224:flip,448,224:tiles=2"
    for batch_size in (1, 32):
        extracted(mixed, tmp_path / f"{batch_size}.h5", views, precision="bfloat16", batch_size=batch_size)
    assert by_key(tmp_path / "1.h5") == by_key(tmp_path / "32.h5")


# -- no class in random views of noise -------------------------------------------------------------------------------------

N_A_CLASS, BATCH = 128, 32


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write images of noise, with nothing of a class in them, but in folders of classes."""
    folder, rng = tmp_path_factory.mktemp("noise") / "noise", np.random.default_rng(0)
    for label in "ab":
        (folder / label).mkdir(parents=True)
        for i in range(N_A_CLASS):
            pixels = rng.integers(0, 256, (16, 16), np.uint8)
            (folder / label / f"{i}.pgm").write_bytes(b"P5 16 16 255\n" + pixels.tobytes())
    return folder


def auc_of_motion(cache: Path) -> float:
    """Return how well classes are predicted from what a random view changes: out of fold, by a linear classifier."""
    with EmbeddingCache(cache) as opened:
        table = opened.dataset()
        rows = opened.view_rows(table.rows, ["224", "224:affine=1"])
        changes = opened.embeddings(rows[:, 1]) - opened.embeddings(rows[:, 0])
        y = np.array([label == "b" for label in table.labels])
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000))
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    return float(roc_auc_score(y, cross_val_predict(model, changes, y, cv=folds, method="decision_function")))


class SharedDraws:
    """Draws one motion for each batch of a folder: the trap."""

    def __init__(self) -> None:
        self.n = 0

    def __call__(self, content: bytes, _: bytes, views: tuple[View, ...], decoding: Decoding, region: None) -> Seen:
        self.n += 1
        return seen_in(content, bytes([(self.n - 1) // BATCH]) * 32, views, decoding, region)


@pytest.mark.usefixtures("free_backbone")
def test_random_views_of_noise_do_not_carry_the_class_and_shared_draws_would(
    tmp_path: Path, noise: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"batch_size": 2 * BATCH, "workers": 1}  # two views: batches of 32 images
    extracted(noise, tmp_path / "own.h5", "224,224:affine=1", **options)
    standard_error = np.sqrt((2 * N_A_CLASS + 1) / (12 * N_A_CLASS**2))  # of the AUC of scores without any information
    assert abs(auc_of_motion(tmp_path / "own.h5") - 0.5) < 3 * standard_error
    shared = SharedDraws()
    monkeypatch.setattr(Quarantine, "load", lambda _, *arguments: shared(*arguments))
    extracted(noise, tmp_path / "shared.h5", "224,224:affine=1", **options)
    assert shared.n == 2 * N_A_CLASS
    assert auc_of_motion(tmp_path / "shared.h5") > 0.9


# -- what is missing alone -------------------------------------------------------------------------------------------------


@pytest.fixture
def images(tmp_path: Path, free_backbone: None) -> Path:  # noqa: ARG001 - for what it does
    """Six images, and a backbone that costs nothing."""
    return write_image_folder(tmp_path / "images", {"a": 3, "b": 3})


def test_further_views_cost_what_is_missing(images: Path, tmp_path: Path) -> None:
    cache = tmp_path / "c.h5"
    first = extracted(images, cache)
    assert (first.embedded, first.forward_images, first.views) == (6, 6, ("224",))
    before = by_key(cache)
    more = extracted(images, cache, "224,224:flip,224:tiles=2")
    assert (more.embedded, more.reused, more.forward_images) == (6, 0, 30)
    again = extracted(images, cache, "224:flip,224")
    assert (again.embedded, again.reused, again.forward_images) == (0, 6, 0)
    after = by_key(cache)
    assert len(after) == 18
    assert before.items() <= after.items()


def test_an_image_that_is_new_gets_all_views_of_the_cache(images: Path, tmp_path: Path) -> None:
    cache = tmp_path / "c.h5"
    extracted(images, cache, "224,448")
    write_image_folder(images, {"c": 2}, size=(20, 20))
    done = extracted(images, cache)
    assert (done.views, done.embedded, done.forward_images) == (("224", "448"), 2, 4)
    assert describe(cache).views == {"224": 8, "448": 8}
    assert describe(cache).datasets[0].lacking == {}


def test_images_that_lack_a_view_are_counted(images: Path, tmp_path: Path) -> None:
    cache = tmp_path / "c.h5"
    extracted(images, cache, "224,448")
    write_image_folder(images, {"c": 2}, size=(20, 20))
    done = extracted(images, cache, "224")
    assert (done.embedded, done.forward_images) == (2, 2)
    info = describe(cache)
    assert info.views == {"224": 8, "448": 6}
    assert info.datasets[0].lacking == {"448": 2}
    with EmbeddingCache(cache) as opened:
        rows = opened.view_rows(opened.dataset().rows, ["448", "224"])
        assert (rows[:, 0] < 0).sum() == 2
        assert (rows[:, 1] >= 0).all()
        assert opened.views == ("224", "448")
    assert verify(cache).sound


def test_a_cache_can_do_without_the_encoders_own_view(images: Path, tmp_path: Path) -> None:
    cache = tmp_path / "c.h5"
    extracted(images, cache, "448,448:flip")
    assert describe(cache).views == {"448": 6, "448:flip": 6}
    assert extracted(images, cache).forward_images == 0
    header = existing_header(cache)
    assert header is not None
    assert header.views == ("448", "448:flip")
    with EmbeddingCache(cache) as opened:
        assert opened.arrays(opened.dataset())[0].tobytes() == opened.embeddings(opened.rows_of(
            opened.keys(opened.dataset().rows), "448")).tobytes()  # fmt: skip


def test_duplicates_are_embedded_once_in_each_view(images: Path, tmp_path: Path) -> None:
    for i in range(5):
        (images / "a" / f"twin{i}.png").write_bytes((images / "b" / "1.png").read_bytes())
    StandIn.forwarded = 0
    done = extracted(images, tmp_path / "c.h5", "224,224:flip,448", batch_size=3, workers=3)
    assert done.forward_images == StandIn.forwarded == 18
    assert (done.embedded, done.reused) == (6, 5)
    assert len(by_path(tmp_path / "c.h5", "448")) == 11


def test_unreadable_images_are_unreadable_in_all_views(images: Path, tmp_path: Path) -> None:
    (images / "a" / "bad.png").write_bytes(b"no image")
    done = extracted(images, tmp_path / "c.h5", "224,448")
    assert (done.failed, done.embedded, done.forward_images) == (1, 6, 12)
    assert len(by_key(tmp_path / "c.h5")) == 12


def test_rehash_reads_every_file_and_computes_nothing(images: Path, tmp_path: Path) -> None:
    extracted(images, tmp_path / "c.h5", "224,448")
    done = extracted(images, tmp_path / "c.h5", rehash=True)
    assert (done.reused, done.forward_images) == (6, 0)


def test_views_that_do_not_follow_the_grammar_are_refused_before_anything_is_written(
    images: Path, tmp_path: Path
) -> None:
    with pytest.raises(ViewError, match="multiple of 32"):
        extracted(images, tmp_path / "c.h5", "224,225")
    assert not (tmp_path / "c.h5").exists()


def test_batches_are_of_looks_and_whole_groups() -> None:
    def n_images(batch_size: int, names: str) -> int:
        return images_in_a_batch(batch_size, Places(parse_views(names, RESNET18)))

    assert n_images(32, "224") == 32
    assert n_images(32, "224,448") == 32
    assert n_images(32, "224,224:flip,224:crop") == 8
    assert n_images(256, "high") == 80
    assert n_images(32, "224:tiles=8") == 1
    assert n_images(4, "224,224:flip") == 2


# -- embedding like others -------------------------------------------------------------------------------------------------


def test_embedding_like_others_copies_the_views_that_another_cache_has(images: Path, tmp_path: Path) -> None:
    extracted(images, tmp_path / "trained.h5", "224,448")
    write_image_folder(images, {"c": 2}, size=(20, 20))  # two images that the cache does not have
    header = existing_header(tmp_path / "trained.h5")
    assert header is not None
    wanted = header.with_views(["224:flip"])
    with EmbeddingCache(tmp_path / "trained.h5") as source:
        found = embed_like(images, tmp_path / "new.h5", wanted, source_cache=source)
    assert found.forward_images == 6 + 2 * 3  # flips of the known images, all views of the others
    extracted(images, tmp_path / "whole.h5", "224,448,224:flip")
    assert by_key(tmp_path / "new.h5") == by_key(tmp_path / "whole.h5")
    with EmbeddingCache(tmp_path / "new.h5") as opened:
        assert opened.views == ("224", "448", "224:flip")
        assert (opened.rows_of(found.keys, "224:flip") >= 0).all()
    again = embed_like(images, tmp_path / "new.h5", wanted)
    assert again.forward_images == 0


def test_embedding_like_others_adds_to_a_cache_of_other_views(images: Path, tmp_path: Path) -> None:
    extracted(images, tmp_path / "c.h5", "224,448")
    header = existing_header(tmp_path / "c.h5")
    assert header is not None
    found = embed_like(images, tmp_path / "c.h5", header.of_views(["224:flip"]).with_views([]))
    assert found.forward_images == 6
    assert describe(tmp_path / "c.h5").views == {"224": 6, "448": 6, "224:flip": 6}


# -- layers ----------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("free_backbone")
def test_layers_are_part_of_the_fingerprint_and_are_checked_before_anything_is_written(tmp_path: Path) -> None:
    data = write_image_folder(tmp_path / "few", {"a": 1, "b": 1})
    extracted(data, tmp_path / "plain.h5")
    before = (tmp_path / "plain.h5").read_bytes()
    with pytest.raises(FingerprintMismatchError, match=r"layers: 3,4 here, the last there.*another --cache"):
        extracted(data, tmp_path / "plain.h5", layers=(3, 4))
    with pytest.raises(EncoderError, match=r"--layers: the encoder ResNet18 has no layer 5\. Its layers: 1, 2, 3, 4\."):
        extracted(data, tmp_path / "other.h5", layers=(3, 5))
    assert (tmp_path / "plain.h5").read_bytes() == before
    assert not (tmp_path / "other.h5").exists()
