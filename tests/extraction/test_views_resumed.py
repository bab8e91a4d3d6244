"""Extractions with views that end early, whatever ends them, continue to the cache of one that does not."""

import importlib.util
import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

import hoarfrost.features.cache.parts
import hoarfrost.features.extraction.loop
from hoarfrost.features.cache import EmbeddingCache, describe, verify
from hoarfrost.features.cache.store import part_paths
from hoarfrost.features.extraction.extract import extract
from hoarfrost.features.extraction.plan import ExtractOptions, Progress
from tests.support.builders import encode, picture, write_image_folder
from tests.support.commands import ROOT
from tests.support.forks import Forks, forks_of
from tests.support.viewed import MANY, by_key, extracted


@pytest.fixture
def images(tmp_path: Path, free_backbone: None) -> Path:  # noqa: ARG001 - for what it does
    """Twelve images, and a backbone that costs nothing."""
    return write_image_folder(tmp_path / "images", {"a": 6, "b": 6})


class EndedError(Exception):
    """An extraction that ends early."""


def ended_early(images: Path, cache: Path, views: str, n_done: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Extract one image after another, and stop after some; what is finished is committed."""

    def stop(progress: Progress) -> None:
        if progress.done >= n_done:
            raise EndedError

    options = ExtractOptions(
        weights="random:0", device="cpu", precision="float32", batch_size=1, workers=1, views=views
    )
    monkeypatch.setattr(hoarfrost.features.extraction.loop, "SHOW_SECONDS", 0.0)
    with pytest.raises(EndedError):
        extract(images, cache, options=options, on_progress=stop)
    assert part_paths(cache)


@pytest.mark.parametrize(
    ("before", "after", "n_forward"),
    [
        ("224,448", "224,448", 2 * 12 - 2 * 4),
        ("224,448", "224", 12 - 4),  # fewer
        ("224,448", "448,224:flip", 2 * 12 - 4),  # others
        ("224,448", "", 2 * 12 - 2 * 4),  # those of the part
        ("448", "", 12 - 4),
        ("", "224,448", 2 * 12 - 4),  # more
    ],
)
@pytest.mark.parametrize("is_first", [True, False])
def test_what_is_committed_is_not_computed_again_whichever_views_are_asked_for(
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    before: str,
    after: str,
    n_forward: int,
    is_first: bool,
) -> None:
    cache = tmp_path / "c.h5"
    if not is_first:  # the parts are beside a file of version 1
        extracted(write_image_folder(tmp_path / "other", {"a": 1, "b": 1}, size=(5, 5)), cache)
    ended_early(images, cache, before, 4, monkeypatch)
    committed = {}
    for part in part_paths(cache):
        committed |= by_key(part)
    assert len(committed) == 4 * (1 + before.count(","))
    assert verify(cache).sound
    if not (before == "448" and not after and not is_first):  # then 224 is a view of the cache, too
        assert extracted(images, cache, after).forward_images == n_forward
    else:
        assert extracted(images, cache, after).forward_images == n_forward + 12
    found = by_key(cache)
    assert committed.items() <= found.items()
    assert verify(cache).sound
    assert not part_paths(cache)
    extracted(images, tmp_path / "whole.h5", ",".join(view for view in (after, before or "224") if view))
    mine = {key: row for key, row in by_key(tmp_path / "whole.h5").items() if key in found}
    assert mine.items() <= found.items()
    with EmbeddingCache(cache) as opened:
        assert (opened.dataset("images").rows >= 0).all()


def test_a_damaged_part_costs_its_views_of_its_images_alone(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "c.h5"
    monkeypatch.setattr(hoarfrost.features.cache.parts, "COMMIT_SECONDS", 0.0)
    ended_early(images, cache, "224,448", 5, monkeypatch)
    parts = part_paths(cache)
    assert len(parts) == 5
    parts[2].write_bytes(parts[2].read_bytes()[:9000])
    assert extracted(images, cache, "224,448").forward_images == 2 * 12 - 2 * 4
    extracted(images, tmp_path / "whole.h5", "224,448")
    assert by_key(cache) == by_key(tmp_path / "whole.h5")


# -- kills --------------------------------------------------------------------------------------------------------------

SCRIPT = """
import sys
from pathlib import Path
from tests.support.standin import StandIn, stand_in_module
sys.modules["hoarfrost.features.encoder.backbone"] = stand_in_module()
import hoarfrost.features.cache.parts
hoarfrost.features.cache.parts.COMMIT_SECONDS = 0.05
from tests.support.viewed import extracted

def main(images, cache, views, seconds_a_batch, done):
    StandIn.seconds_a_batch = seconds_a_batch
    Path(done).write_text(str(extracted(Path(images), Path(cache), views, batch_size=8).forward_images))
"""


@pytest.mark.slow
def test_kills_at_random_moments_end_in_the_cache_of_none(tmp_path: Path) -> None:
    images, cache, chance = tmp_path / "images", tmp_path / "c.h5", random.Random(0)
    write_image_folder(images, {"a": 120, "b": 120}, size=(24, 20))
    with forks_of(SCRIPT) as forks:
        assert whole(forks, images, cache, "") == 240  # a cache of version 1: views are added to it
        killed_again_and_again(forks, images, cache, chance)
        assert 0 < whole(forks, images, cache, MANY) < 240 * 10
        whole(forks, images, tmp_path / "whole.h5", MANY)
    assert by_key(cache) == by_key(tmp_path / "whole.h5")
    assert verify(cache).sound
    assert describe(cache).datasets[0].lacking == {}


def whole(forks: Forks, images: Path, cache: Path, views: str) -> int:
    """Extract without an end; return how many images the encoder saw."""
    done = cache.with_suffix(".done")
    forks.start(str(images), str(cache), views, 0.0, str(done))
    assert forks.wait() == 0
    return int(done.read_text())


def killed_again_and_again(forks: Forks, images: Path, cache: Path, chance: random.Random) -> None:
    """Start and kill an extraction again and again; all that is committed stays."""
    old = by_key(cache)
    committed: dict[bytes, bytes] = {}
    n_killed = 0
    while n_killed < 10:
        n_parts = len(part_paths(cache))
        process = forks.start(str(images), str(cache), MANY, 0.05, str(cache.with_suffix(".done")))
        at_once = chance.random() < 0.3  # also before anything is committed
        while not at_once and len(part_paths(cache)) <= n_parts and is_alive(process):
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 0.3))
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
        assert forks.wait() == -signal.SIGKILL, "it ended before it was killed: make it slower"
        n_killed += 1
        found: dict[bytes, bytes] = {}
        for part in part_paths(cache):
            found |= by_key(part)
        assert committed.items() <= found.items()
        assert by_key(cache) == old
        committed = found
    assert verify(cache).sound


def is_alive(process: int) -> bool:
    """Return whether a process goes on."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


# -- a cluster ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")
def test_rays_workers_make_the_views_that_one_machine_makes(tmp_path: Path) -> None:
    images = tmp_path / "images"
    for i in range(12):
        path = images / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(picture(40, 30, seed=i % 10)))  # the last two are copies
    views = "224,96:flip,96:tiles=2,128:affine=3"
    run = on_ray(tmp_path, "224", views, "")
    assert [(each["embedded"], each["reused"]) for each in run] == [(10, 2), (10, 2), (0, 12)]
    assert [each["forward_images"] for each in run][0::2] == [10, 0]
    assert run[1]["forward_images"] >= 60  # a copy may be computed twice, by two workers
    local = extracted(images, tmp_path / "local.h5", views)
    assert local.forward_images == 70
    assert by_key(tmp_path / "ray.h5") == by_key(tmp_path / "local.h5")
    assert verify(tmp_path / "ray.h5").sound
    with EmbeddingCache(tmp_path / "ray.h5") as ray, EmbeddingCache(tmp_path / "local.h5") as one:
        assert ray.views == one.views
        assert ray.keys(ray.dataset().rows).tobytes() == one.keys(one.dataset().rows).tobytes()


ON_RAY = """
import json, os, sys
os.environ |= {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0"}  # before Ray is imported
import ray
from pathlib import Path
from hoarfrost.features.extraction.engines import RayOptions
from tests.support.viewed import extracted
if __name__ == "__main__":
    engine = RayOptions(cpus_per_worker=1, max_workers=2)
    for views in sys.argv[3:]:
        done = extracted(Path(sys.argv[1]), Path(sys.argv[2]), views, engine=engine)
        print(json.dumps({"embedded": done.embedded, "reused": done.reused, "forward_images": done.forward_images}))
        ray.init(num_cpus=2, include_dashboard=False, ignore_reinit_error=True)  # the others use this one
"""


def on_ray(folder: Path, *views: str) -> list[dict[str, int]]:
    """Extract, one after the other, in a process of its own: what Ray warns of is not the tests' business."""
    arguments = [str(folder / "images"), str(folder / "ray.h5"), *views]
    done = subprocess.run([sys.executable, "-c", ON_RAY, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
