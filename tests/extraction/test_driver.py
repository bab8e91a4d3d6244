"""The driver hands each image to a worker once, and again only where one died; without Ray itself."""

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hoarfrost.features.cache import CacheWriter
from hoarfrost.features.datasets import Dataset, FileStamp
from hoarfrost.features.decoding.views import View
from hoarfrost.features.errors import HoarfrostError, Reason
from hoarfrost.features.extraction.cluster import connection, driver
from hoarfrost.features.extraction.cluster.actors import Started, WorkerLostError
from hoarfrost.features.extraction.cluster.connection import Slot
from hoarfrost.features.extraction.cluster.driver import Driver
from hoarfrost.features.extraction.cluster.worker import EmbeddedPiece, Plan, Prepared
from hoarfrost.features.extraction.engines import RayOptions
from hoarfrost.features.extraction.interrupts import StoppedError, StopSignals
from hoarfrost.features.extraction.job import Job
from hoarfrost.features.extraction.plan import ExtractOptions, ImageRecords, LoopCounts
from hoarfrost.features.extraction.recipes import Recipe
from hoarfrost.features.fingerprint import KEY_BYTES
from tests.support.caches import HEADER

BATCH = 4


@dataclass
class Numbers:
    """Images that are their own numbers."""

    numbers: list[int]
    location: str = "/images"

    def subset(self, indices: list[int]) -> "Numbers":
        return Numbers([self.numbers[index] for index in indices])


@dataclass
class Actor:
    """A worker that is an entry in a list."""

    slot: Slot
    name: str
    plan: Plan | None = None
    is_dead: bool = False
    sizes: list[int] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class Asked:
    """A question to a worker."""

    actor: Actor
    method: str
    arguments: tuple[Any, ...]


class NoRay:
    """Replaces `extraction.cluster.actors`: answers come in an order by chance, and some workers die."""

    def __init__(self, dies: Callable[["NoRay", Asked], bool] = lambda *_: False, seed: int = 0) -> None:
        self.dies = dies
        self.chance = random.Random(seed)
        self.started: list[Actor] = []
        self.embedded: list[int] = []
        self.tried_again: list[bool] = []
        self.suspects: list[set[bytes]] = []
        self.refuses: dict[str, str] = {}
        self.busy: set[str] = set()

    def share(self, value: object) -> object:
        return value

    def start(self, slot: Slot) -> Started:
        name = f"worker {len(self.started)}"
        self.started.append(Actor(slot, name))
        return Started(name, slot, self.started[-1])

    def ask(self, actor: Actor, method: str, *arguments: object) -> Asked:
        return Asked(actor, method, arguments)

    def answered(self, asked: list[Asked], timeout_s: float) -> list[Asked]:  # noqa: ARG002 - the signature is Ray's
        there = [each for each in asked if each.actor.slot.host not in self.busy]
        return self.chance.sample(there, self.chance.randint(min(1, len(there)), len(there)))

    def result_of(self, asked: Asked) -> Prepared | EmbeddedPiece | None:
        actor = asked.actor
        actor.is_dead = actor.is_dead or self.dies(self, asked)
        if actor.is_dead:
            raise WorkerLostError("it was killed")
        if asked.method == "is_there":
            return None
        if asked.method == "prepare":
            actor.plan = asked.arguments[0]
            if actor.slot.host in self.refuses:
                raise HoarfrostError(self.refuses[actor.slot.host])
            return Prepared(actor.plan.resumed or "eager", BATCH, [])
        images, paths, suspects, is_tried_again = asked.arguments
        assert paths == [f"{number}.png" for number in images.numbers]
        self.embedded += images.numbers
        self.suspects.append(set(suspects))
        self.tried_again.append(is_tried_again)
        actor.sizes.append(len(paths))
        table = ImageRecords(len(paths))
        for place, number in enumerate(images.numbers):
            if number % 10 == 9:
                table.errors[place] = Reason("no image", "no image: 9")
            else:
                table.set(place, FileStamp(number, 0), number.to_bytes(KEY_BYTES, "big"))
        return EmbeddedPiece(table, LoopCounts("cpu"), [], len(paths), 0.5)

    def end(self, actor: Actor) -> None:
        actor.is_dead = True

    def request_stop(self, actor: Actor) -> None: ...


SLOTS = [Slot("1", "alpha", 0, 1, 0.0), Slot("2", "beta", 0, 1, 0.0), Slot("2", "beta", 1, 1, 0.0)]


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "LOOK_SECONDS", 0.0)


def embed(
    folder: Path,
    no_ray: NoRay,
    n: int = 100,
    *,
    slots: list[Slot] = SLOTS,
    stop: StopSignals | None = None,
    started: Sequence[Started] = (),
    max_workers: int | None = None,
) -> tuple[ImageRecords, LoopCounts]:
    images = Numbers(list(range(n)))
    dataset = Dataset("demo", "images", [f"{i}.png" for i in range(n)], ["a"] * n, None, None, images)  # type: ignore[arg-type]
    with pytest.MonkeyPatch.context() as patch, CacheWriter(folder / "c.h5", HEADER, "demo") as writer:
        patch.setattr(driver, "actors", no_ray)
        recipe, stop = Recipe(HEADER, "random:0", None, (View(224),)), stop or StopSignals()
        job = Job(dataset, writer, recipe, ExtractOptions(max_bad=1.0), lambda _: None, stop)
        counts = Driver(job, range(n), "cpu", lambda: slots, started, max_workers).run()
    return job.table, counts


def check(table: ImageRecords, n: int) -> None:
    numbers = [int.from_bytes(key.tobytes(), "big") for key in table.keys]
    assert [numbers[i] for i in range(n) if i % 10 != 9] == [i for i in range(n) if i % 10 != 9]
    assert table.readable.tolist() == [i % 10 != 9 for i in range(n)]
    assert table.errors == {i: Reason("no image", "no image: 9") for i in range(n) if i % 10 == 9}


@pytest.mark.parametrize("n", [1, 3, 4, 5, 100, 1_000])
def test_each_image_is_embedded_once_and_recorded_in_its_place(tmp_path: Path, n: int) -> None:
    no_ray = NoRay()
    table, counts = embed(tmp_path, no_ray, n)
    check(table, n)
    assert sorted(no_ray.embedded) == list(range(n))
    assert not any(no_ray.tried_again)
    assert 1 <= counts.workers <= 3


@settings(max_examples=40)
@given(seed=st.integers(0, 10**6), share=st.floats(0, 0.25), n=st.integers(1, 300))
def test_workers_that_die_by_chance_change_nothing(
    tmp_path_factory: pytest.TempPathFactory, seed: int, share: float, n: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(driver, "MOST_ATTEMPTS", 10**6)
        patch.setattr(driver, "MOST_STARTS", 10**6)
        no_ray = NoRay(lambda self, _: self.chance.random() < share, seed)
        table, _ = embed(tmp_path_factory.mktemp("c"), no_ray, n)
    check(table, n)
    assert sorted(no_ray.embedded) == list(range(n))  # those that died answered nothing


def test_what_a_dead_worker_had_is_tried_again_with_what_it_died_at_under_suspicion(tmp_path: Path) -> None:
    key = bytes(range(KEY_BYTES))

    def dies(self: NoRay, asked: Asked) -> bool:
        is_first = asked.method == "embed" and not any(actor.is_dead for actor in self.started)
        if is_first:
            (tmp_path / f"c.h5.trying-{asked.actor.name}").write_bytes(bytes(KEY_BYTES) + key)
        return is_first

    no_ray = NoRay(dies)
    table, _ = embed(tmp_path, no_ray)
    check(table, 100)
    assert all(key in suspects for suspects, again in zip(no_ray.suspects, no_ray.tried_again, strict=True) if again)
    assert any(no_ray.tried_again)
    assert len(no_ray.started) == 4  # another in its place
    assert not list(tmp_path.glob("*trying*"))


def test_images_that_end_every_worker_are_named(tmp_path: Path) -> None:
    no_ray = NoRay(lambda _, asked: asked.method == "embed" and 50 in asked.arguments[0].numbers)
    with pytest.raises(HoarfrostError, match=r"4 workers were lost .*it was killed.*is saved") as caught:
        embed(tmp_path, no_ray)
    first, last = map(int, re.findall(r"(\d+)\.png", str(caught.value)))
    assert first <= 50 <= last
    assert 50 not in no_ray.embedded


def test_a_worker_that_was_started_early_is_one_of_the_crew_and_not_trusted_more(tmp_path: Path) -> None:
    no_ray = NoRay()
    early = no_ray.start(SLOTS[1])
    table, _ = embed(tmp_path, no_ray, started=[early])
    check(table, 100)
    assert [actor.slot for actor in no_ray.started] == [SLOTS[1], SLOTS[0], SLOTS[2]]
    assert early.actor.sizes
    no_ray = NoRay(lambda no_ray, asked: asked.actor is no_ray.started[0])
    table, _ = embed(tmp_path / "again", no_ray, started=[no_ray.start(SLOTS[0])])
    check(table, 100)


def test_workers_that_never_get_ready_are_not_started_for_ever(tmp_path: Path) -> None:
    no_ray = NoRay(lambda _, asked: asked.method == "prepare")
    with pytest.raises(HoarfrostError, match="no worker could be started there: it was killed"):
        embed(tmp_path, no_ray)
    assert len(no_ray.started) == 3 * driver.MOST_STARTS


def test_a_host_that_cannot_take_part_is_named_and_done_without(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    no_ray = NoRay()
    no_ray.refuses["beta"] = "/images: there are no images here"
    table, counts = embed(tmp_path, no_ray)
    check(table, 100)
    assert counts.workers == 1
    assert caplog.text.count("beta does not take part: /images: there are no images here") == 1
    no_ray.refuses["alpha"] = "/images: nor here"
    with pytest.raises(HoarfrostError, match="there are no images here|nor here"):
        embed(tmp_path, no_ray)


def test_a_host_that_is_at_work_for_others_holds_nobody_up(tmp_path: Path) -> None:
    no_ray = NoRay()
    no_ray.busy = {"alpha"}
    table, counts = embed(tmp_path, no_ray)
    check(table, 100)
    assert counts.workers == 2
    assert no_ray.started[0].plan is None


@pytest.mark.parametrize("most", [1, 2, 3, 9])
def test_no_more_workers_are_started_than_there_may_be(tmp_path: Path, most: int) -> None:
    no_ray = NoRay()
    table, counts = embed(tmp_path, no_ray, max_workers=most)
    check(table, 100)
    assert len(no_ray.started) == min(most, 3)
    assert counts.workers <= most


def test_the_only_worker_that_may_be_is_elsewhere_where_a_host_cannot_take_part(tmp_path: Path) -> None:
    no_ray = NoRay()
    no_ray.refuses["alpha"] = "/images: there are no images here"
    table, _ = embed(tmp_path, no_ray, max_workers=1)
    check(table, 100)
    no_ray = NoRay(lambda _, asked: asked.actor.slot.host == "alpha")
    table, _ = embed(tmp_path / "again", no_ray, max_workers=1)
    check(table, 100)


def test_the_only_worker_that_may_be_is_elsewhere_where_a_host_is_busy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "BUSY_SECONDS", 0.0)
    no_ray = NoRay()
    no_ray.busy = {"alpha"}

    def comes_late(self: NoRay, _: Asked) -> bool:
        if len(self.embedded) > 20:
            self.busy = set()
        return False

    no_ray.dies = comes_late
    table, counts = embed(tmp_path, no_ray, 1_000, max_workers=1)
    check(table, 1_000)
    assert counts.workers == 1
    alpha, beta = no_ray.started[:2]
    assert alpha.plan is None  # beta had come in its place
    assert beta.sizes


def test_the_first_worker_settles_the_compute_path_and_the_others_follow(tmp_path: Path) -> None:
    no_ray = NoRay()
    embed(tmp_path, no_ray, 1_000)
    plans = [actor.plan for actor in no_ray.started if actor.plan is not None]
    assert [plan.resumed for plan in plans] == [None, "eager", "eager"]
    assert {plan.n_images for plan in plans} == {1_000}


def test_pieces_are_whole_batches_and_get_small_towards_the_end(tmp_path: Path) -> None:
    no_ray = NoRay()
    embed(tmp_path, no_ray, 2_000)
    sizes = [size for actor in no_ray.started for size in actor.sizes]
    assert sum(size % BATCH > 0 for size in sizes) <= 1
    assert max(sizes) > 10 * min(sizes)
    assert all(actor.sizes[-1] <= 4 * BATCH for actor in no_ray.started)


def test_a_signal_ends_it(tmp_path: Path) -> None:
    stop = StopSignals()

    def dies(self: NoRay, _: Asked) -> bool:
        if len(self.embedded) > 20:
            stop._receive(2, None)
        return False

    with (
        stop,
        pytest.raises(StoppedError, match=r"^Interrupted; \d+ of 1,000 images saved\. Run the same command again"),
    ):
        embed(tmp_path, NoRay(dies), 1_000, stop=stop)


# -- room for workers ---------------------------------------------------------------------------------------------------


def node(name: str, **resources: float) -> dict[str, Any]:
    return {"NodeID": name, "NodeManagerHostname": f"host {name}", "Alive": True, "Resources": resources}


@pytest.mark.parametrize(
    ("options", "device", "expected"),
    [
        ({}, "cpu", [("1", 4, 0.0), ("2", 8, 0.0)]),
        ({"cpus_per_worker": 4}, "cpu", [("1", 4, 0.0), ("2", 4, 0.0), ("2", 4, 0.0)]),
        ({"cpus_per_worker": 5}, "cpu", [("2", 5, 0.0)]),
        ({"cpus_per_worker": 9}, "cpu", []),
        ({}, "cuda", [("2", 4, 1.0), ("2", 4, 1.0)]),
        ({"gpus_per_worker": 0.5}, "cuda", [("2", 2, 0.5)] * 4),
        ({"gpus_per_worker": 1 / 3}, "cuda", [("2", 1, 1 / 3)] * 6),
        ({"gpus_per_worker": 0.2}, "cuda", [("2", 0, 0.2)] * 10),
        ({"cpus_per_worker": 8}, "cuda", [("2", 8, 1.0)]),
    ],
)
def test_hosts_are_cut_into_room_for_workers(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], device: str, expected: list[tuple[str, int, float]]
) -> None:
    nodes = [node("0", CPU=0.0, GPU=2.0), node("1", CPU=4.0), node("2", CPU=8.0, GPU=2.0)]
    monkeypatch.setattr(connection, "_nodes", lambda: nodes)
    found = connection.slots(RayOptions(**options), device)
    assert [(slot.node_id, slot.cpus, slot.gpus) for slot in found] == expected
    assert len({(slot.node_id, slot.number) for slot in found}) == len(found)


def test_an_image_table_takes_a_piece_in_its_place() -> None:
    table, piece = ImageRecords(6), ImageRecords(2)
    piece.set(0, FileStamp(5, 7), b"\1" * KEY_BYTES)
    piece.errors[1] = Reason("no image", "no image: 9")
    table.take(np.array([1, 4]), piece)
    assert table.readable.tolist() == [False, True, False, False, False, False]
    assert (table.sizes[1], table.mtimes_ns[1], table.keys[1].tobytes()) == (5, 7, b"\1" * KEY_BYTES)
    assert table.errors == {4: Reason("no image", "no image: 9")}
