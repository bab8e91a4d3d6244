"""Stage one as a whole: what is missing is embedded once, and nothing else is touched."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import hoarfrost.features.cache.folding
from hoarfrost.features.cache import CacheFile, CacheWriter, EmbeddedFile, EmbeddingCache, verify
from hoarfrost.features.cache.store import part_paths
from hoarfrost.features.decoding.images import encode_png
from hoarfrost.features.errors import FingerprintMismatchError, HoarfrostError, ImageDecodeError
from hoarfrost.features.extraction.extract import extract
from hoarfrost.features.extraction.plan import ExtractOptions, ExtractSummary

ROOT = Path(__file__).parents[2]
RANDOM = ExtractOptions(weights="random:0", device="cpu", precision="float32", batch_size=4)


def write_images(root: Path, n: int = 6, size: int = 32, seed: int = 0) -> None:
    rng = np.random.default_rng(seed)
    for i in range(n):
        path = root / ("benign" if i % 2 else "malignant") / f"image {i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_png(rng.integers(0, 256, (size, size, 3), np.uint8)))


def embeddings_by_path(cache: Path, dataset: str | None = None) -> dict[str, bytes]:
    with EmbeddingCache(cache) as opened:
        table = opened.dataset(dataset)
        embeddings, readable = opened.arrays(table)
        paths = [path for path, is_readable in zip(table.paths, readable, strict=True) if is_readable]
        return {path: row.tobytes() for path, row in zip(paths, embeddings, strict=True)}


@pytest.fixture
def real_images(tmp_path: Path) -> Path:
    write_images(tmp_path / "images")
    return tmp_path / "images"


@pytest.fixture
def images(real_images: Path, free_backbone: None) -> Path:  # noqa: ARG001 - for what it does
    """Six images, and a backbone that costs nothing: what these tests claim does not depend on it."""
    return real_images


def run(images: Path, **options: object) -> ExtractSummary:
    return extract(images, images.parent / "c.h5", options=ExtractOptions(**{**vars(RANDOM), **options}))


def test_second_extract_runs_no_forward_pass(real_images: Path) -> None:
    first = run(real_images)
    assert (first.images, first.embedded, first.forward_images, first.reused, first.failed) == (6, 6, 6, 0, 0)
    second = run(real_images)
    assert (second.embedded, second.forward_images, second.reused) == (0, 0, 6)


def test_only_what_is_new_or_changed_is_embedded(images: Path) -> None:
    run(images)
    before = embeddings_by_path(images.parent / "c.h5")
    write_images(images / "benign", 1, seed=7)  # benign/malignant/image 0.png
    changed = images / "benign" / "image 1.png"
    changed.write_bytes(encode_png(np.full((9, 9), 77, np.uint8)))
    summary = run(images)
    assert (summary.images, summary.embedded, summary.reused) == (7, 2, 5)
    after = embeddings_by_path(images.parent / "c.h5")
    assert {path for path in before if before[path] != after[path]} == {"benign/image 1.png"}


def test_a_renamed_file_reuses_its_row(images: Path) -> None:
    run(images)
    (images / "benign" / "image 1.png").rename(images / "malignant" / "moved.png")
    summary = run(images)
    assert (summary.forward_images, summary.reused) == (0, 6)
    assert "malignant/moved.png" in embeddings_by_path(images.parent / "c.h5")


def test_a_removed_file_leaves_the_dataset_and_its_row_stays(images: Path) -> None:
    run(images)
    (images / "benign" / "image 1.png").unlink()
    assert run(images).images == 5
    with EmbeddingCache(images.parent / "c.h5") as cache:
        assert cache.n_images == 6
        assert "benign/image 1.png" not in cache.dataset().paths


def test_rehash_distrusts_size_and_mtime(images: Path) -> None:
    run(images)
    path = images / "benign" / "image 1.png"
    status = path.stat()
    other = encode_png(np.random.default_rng(99).integers(0, 256, (32, 32, 3), np.uint8))
    path.write_bytes(other[: status.st_size].ljust(status.st_size, b"\0"))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert run(images).embedded == 0
    summary = run(images, rehash=True)
    assert summary.embedded + summary.failed == 1


def test_relabelling_opens_no_image(images: Path) -> None:
    lines = ["path,label"] + [
        f"{path.relative_to(images)},{path.parent.name}" for path in sorted(images.rglob("*.png"))
    ]
    csv = images / "cohort.csv"
    csv.write_text("\n".join(lines), encoding="utf-8")
    cache = images.parent / "c.h5"
    extract(csv, cache, options=RANDOM)
    csv.write_text(csv.read_text(encoding="utf-8").replace(",malignant", ",cancer"), encoding="utf-8")
    for path in images.rglob("*.png"):
        status = path.stat()
        path.write_bytes(b"\0" * status.st_size)  # they are not images any more
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    summary = extract(csv, cache, options=RANDOM)
    assert (summary.forward_images, summary.failed) == (0, 0)
    with EmbeddingCache(cache) as opened:
        assert set(opened.dataset("cohort").labels) == {"benign", "cancer"}


def test_several_datasets_share_one_cache(images: Path) -> None:
    run(images)
    copy = images.parent / "copy"
    shutil.copytree(images, copy)
    summary = run(copy)
    assert (summary.dataset, summary.forward_images) == ("copy", 0)
    with EmbeddingCache(images.parent / "c.h5") as cache:
        assert cache.dataset_names() == ["copy", "images"]


def test_files_of_the_same_name_size_and_time_elsewhere_are_read(
    images: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = images.parent / "other" / "images"
    for folder, seed in ((images, 1), (other, 2)):
        rng = np.random.default_rng(seed)
        for i in range(6):
            path = folder / "ab"[i % 2] / f"{i}.ppm"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"P6 4 4 255\n" + rng.bytes(48))
            os.utime(path, ns=(0, 0))
    for path in images.rglob("*.png"):
        path.unlink()
    run(images)
    summary = extract(other, images.parent / "c.h5", options=RANDOM)
    assert (summary.dataset, summary.embedded) == ("images", 6)
    assert "was extracted from" in caplog.text


def test_unreadable_images_are_recorded_with_their_reason(images: Path) -> None:
    (images / "benign" / "text.png").write_text("no image")
    (images / "benign" / "empty.png").touch()
    (images / "benign" / "folder.png").mkdir()
    (images / "benign" / "gone.png").symlink_to(images / "nowhere")
    summary = run(images, max_bad=0.5)
    assert (summary.images, summary.embedded, summary.failed) == (10, 6, 4)
    reasons = dict(summary.errors)
    assert "no image format recognised" in reasons["benign/text.png"]
    assert reasons["benign/empty.png"] == "the file is empty"
    assert reasons["benign/folder.png"] == "Is a directory"
    assert reasons["benign/gone.png"] == "No such file or directory"
    with EmbeddingCache(images.parent / "c.h5") as cache:
        table = cache.dataset()
        assert dict(zip(table.paths, table.errors, strict=True))["benign/empty.png"] == "the file is empty"
        assert verify(images.parent / "c.h5").sound


def test_an_image_that_was_fixed_is_tried_again(images: Path) -> None:
    good = (images / "benign" / "image 1.png").read_bytes()
    (images / "benign" / "late.png").write_bytes(b"")
    assert run(images).failed == 1
    (images / "benign" / "late.png").write_bytes(good)
    assert run(images).failed == 0


def test_on_error_fail_stops_and_keeps_what_is_finished(images: Path) -> None:
    (images / "malignant" / "zzz.png").write_text("no image")
    with pytest.raises(ImageDecodeError, match=r"malignant/zzz.png: no image format.*--on-error skip"):
        run(images, on_error="fail", batch_size=1)
    assert run(images, on_error="skip").embedded == 0


def test_no_readable_image_at_all_is_an_error(images: Path) -> None:
    for path in images.rglob("*.png"):
        path.write_text("no image")
    with pytest.raises(HoarfrostError, match="none of the 6 images could be read.*no image format"):
        run(images, max_bad=1.0)


def test_an_embedding_does_not_depend_on_batch_mates_batch_size_or_workers(real_images: Path) -> None:
    images = real_images
    write_images(images, 9)
    reference: dict[str, bytes] = {}
    for batch_size, workers in ((1, 1), (7, 4), (64, 1)):
        cache = images.parent / f"{batch_size}.h5"
        options = ExtractOptions(**{**vars(RANDOM), "batch_size": batch_size, "workers": workers})
        extract(images, cache, options=options)
        reference = reference or embeddings_by_path(cache)
        assert embeddings_by_path(cache) == reference
    reverse = images / "cohort.csv"
    paths = sorted((str(path.relative_to(images)) for path in images.rglob("*.png")), reverse=True)
    reverse.write_text("path,label\n" + "".join(f"{path},{path[0]}\n" for path in paths), encoding="utf-8")
    extract(reverse, images.parent / "reverse.h5", options=RANDOM)
    assert embeddings_by_path(images.parent / "reverse.h5") == reference


def test_bfloat16_does_not_depend_on_batch_mates_either(tmp_path: Path) -> None:
    write_images(tmp_path / "images", 3)
    for batch_size in (1, 3):
        options = ExtractOptions(weights="random:0", device="cpu", precision="bfloat16", batch_size=batch_size)
        extract(tmp_path / "images", tmp_path / f"{batch_size}.h5", options=options)
    assert embeddings_by_path(tmp_path / "1.h5") == embeddings_by_path(tmp_path / "3.h5")


def test_another_precision_or_other_weights_are_refused(images: Path) -> None:
    run(images)
    with pytest.raises(FingerprintMismatchError, match="precision: bfloat16 here, float32 there"):
        run(images, precision="bfloat16")
    with pytest.raises(
        FingerprintMismatchError, match=r"asked for|Asked for --weights random:1, the cache has random:0"
    ):
        run(images, weights="random:1")


def test_auto_continues_with_what_the_cache_was_started_with(images: Path) -> None:
    run(images)
    write_images(images, 8)
    summary = run(images, weights="auto", precision="auto", device="auto")
    assert (summary.weights, summary.precision, summary.embedded) == ("random:0", "float32", 2)


def test_a_resumed_extraction_keeps_the_compute_path_that_it_began_with(images: Path) -> None:
    cache = images.parent / "c.h5"
    run(images)
    with EmbeddingCache(cache) as opened:
        compiled = replace(opened.header, compute="compiled")
    with CacheWriter(cache, compiled, "images") as writer:
        writer.append([EmbeddedFile("benign/new.png", 1, 1, bytes(32))], np.zeros((1, 512), np.float32))
        writer.commit()
    write_images(images, 8)
    with pytest.raises(
        HoarfrostError, match="'compiled', which is not possible on this machine. With 'eager', embeddings would differ"
    ):
        run(images)


def test_an_npz_is_embedded_row_by_row_and_reused(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {}
    for split, n in (("train", 6), ("val", 3), ("test", 3)):
        arrays[f"{split}_images"] = rng.integers(0, 256, (n, 28, 28), np.uint8)
        arrays[f"{split}_labels"] = np.arange(n)[:, None] % 2
    np.savez_compressed(tmp_path / "tiny.npz", **arrays)
    summary = extract(tmp_path / "tiny.npz", tmp_path / "c.h5", options=RANDOM)
    assert (summary.images, summary.embedded) == (12, 12)
    np.savez(tmp_path / "tiny.npz", **arrays)  # another file with the same pixels
    assert extract(tmp_path / "tiny.npz", tmp_path / "c.h5", options=RANDOM).forward_images == 0


# -- as users run it: processes, signals, kills -------------------------------------------------------------------------


def command(images: Path, cache: Path, seconds_a_batch: float, *more: str) -> list[str]:
    return [
        sys.executable, "-m", "tests.support.standin", str(seconds_a_batch), "extract", str(images), "--cache", str(cache),
        "--weights", "random:0", "--device", "cpu", "--precision", "float32", "--batch-size", "4", *more,
    ]  # fmt: skip


def start(images: Path, cache: Path) -> "subprocess.Popen[str]":
    """Start an extraction, and wait until it has committed something."""
    already = len(part_paths(cache))
    process = subprocess.Popen(
        command(images, cache, 0.1), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while len(part_paths(cache)) <= already and process.poll() is None:
        time.sleep(0.02)
    return process


def finish(images: Path, cache: Path) -> dict[str, int]:
    result = subprocess.run(command(images, cache, 0, "--json"), cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    summary: dict[str, int] = json.loads(result.stdout)
    return summary


def test_unchanged_files_are_recognised_without_torch(images: Path) -> None:
    cache = images.parent / "c.h5"
    run(images)
    script = (
        "import sys; from pathlib import Path; from hoarfrost.features.extraction.extract import extract;"
        "from hoarfrost.features.extraction.plan import ExtractOptions;"
        f"s = extract(Path({str(images)!r}), Path({str(cache)!r}), options=ExtractOptions(weights='random:0'));"
        "assert s.reused == 6, s; assert 'torch' not in sys.modules; assert 'PIL' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True)


@pytest.mark.parametrize("stop", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_stop_signal_commits_what_is_finished_and_says_how_to_continue(tmp_path: Path, stop: signal.Signals) -> None:
    write_images(tmp_path / "images", 200)
    cache = tmp_path / "c.h5"
    process = start(tmp_path / "images", cache)
    process.send_signal(stop)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 1, stderr
    assert stderr.startswith("Stopping; saving the current batch. Press Ctrl-C again to stop at once.\n")
    saved = re.search(r"Interrupted; (\d+) of 200 images saved\. Run the same command again to continue\.", stderr)
    assert saved, stderr
    assert "Traceback" not in stderr
    summary = finish(tmp_path / "images", cache)
    assert summary["reused"] == int(saved[1])
    assert summary["embedded"] + summary["reused"] == 200


def test_a_signal_while_folding_lets_it_finish(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, signals = hoarfrost.features.cache.folding.write_cache_file, []

    def signalled(path: Path, *rest: object, **options: object) -> bytes:
        assert path.name == "c.h5"
        signals.append(signal.SIGTERM)
        signal.raise_signal(signals[-1])  # to this thread: to the process, it may come when all is over, and end it
        return write(path, *rest, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(hoarfrost.features.cache.folding, "write_cache_file", signalled)
    assert run(images).embedded == 6
    assert signals == [signal.SIGTERM]
    assert len(embeddings_by_path(images.parent / "c.h5")) == 6


@pytest.mark.slow
def test_kills_at_random_moments_lose_nothing_that_was_committed(tmp_path: Path) -> None:
    write_images(tmp_path / "images", 200)
    cache = tmp_path / "c.h5"
    chance = random.Random(0)
    for _ in range(2):
        process = start(tmp_path / "images", cache)
        time.sleep(chance.uniform(0, 0.5))
        committed = {key for part in part_paths(cache) for key in keys_of(part)}
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert committed <= {key for part in part_paths(cache) for key in keys_of(part)}
        assert verify(cache).sound
    summary = finish(tmp_path / "images", cache)
    assert summary["images"] == 200
    assert summary["reused"] >= len(committed)
    finish(tmp_path / "images", tmp_path / "whole.h5")
    assert embeddings_by_path(cache) == embeddings_by_path(tmp_path / "whole.h5")
    assert verify(cache).sound


def keys_of(part: Path) -> list[bytes]:
    with CacheFile(part) as file:
        return [key.tobytes() for key in file.keys]


def test_seconds_of_an_image_are_recorded_and_kept_where_nothing_is_embedded_again(images: Path) -> None:
    run(images)
    with EmbeddingCache(images.parent / "c.h5") as opened:
        seconds = opened.dataset().seconds_per_image
    assert seconds > 0
    run(images)
    with EmbeddingCache(images.parent / "c.h5") as opened:
        assert opened.dataset().seconds_per_image == seconds
