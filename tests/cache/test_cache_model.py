"""Any interleaving of add, change, rename, remove, kill and compact leaves the embeddings that the files call for."""

import functools
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

import hoarfrost.features.cache.folding
import hoarfrost.features.cache.parts
import hoarfrost.features.encoder.backbone
from hoarfrost.features.cache import EmbeddingCache, compact, verify
from hoarfrost.features.cache.writing import write_cache_file, write_index
from hoarfrost.features.decoding.images import encode_png
from hoarfrost.features.extraction.extract import extract
from hoarfrost.features.extraction.plan import ExtractOptions
from tests.support.caches import rows_per_tiny_shard
from tests.support.standin import StandIn

names = st.sampled_from([f"{label}/{i}.png" for label in "ab" for i in range(5)])
contents = st.integers(0, 7)


def picture(content: int) -> bytes:
    return encode_png(np.full((4, 4), 20 * content, np.uint8))


class KilledError(BaseException):
    """The process ends here, as far as the disk can tell."""


class Kill:
    """Ends the process at one of its writes, of a part, a file, a shard or an index: before it, or right after it."""

    def __init__(self, patch: pytest.MonkeyPatch, write: int, after: bool) -> None:
        self.left, self.after, self.dead = write, after, False
        patch.setattr(hoarfrost.features.cache.parts, "write_cache_file", self.wrapped(write_cache_file))
        patch.setattr(hoarfrost.features.cache.folding, "write_cache_file", self.wrapped(write_cache_file))
        patch.setattr(hoarfrost.features.cache.folding, "write_index", self.wrapped(write_index))

    def wrapped(self, function: Callable[..., object]) -> Callable[..., object]:
        def write(*arguments: object, **options: object) -> object:
            if self.dead:
                raise KilledError
            self.left -= 1
            self.dead = self.left < 0
            written = function(*arguments, **options) if not self.dead or self.after else None
            if self.dead:
                raise KilledError
            return written

        return write


class CacheMachine(RuleBasedStateMachine):
    """The files as they are, and a cache that is to follow them."""

    @initialize()
    def begin(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.root = self.folder / "images"
        self.cache = self.folder / "c.h5"
        self.files: dict[str, int] = {}
        self.clock = 1_000_000_000
        self.compacted = False
        for name, content in (("a/first.png", 8), ("b/first.png", 9)):
            self.write(name, content)

    def write(self, name: str, content: int) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(content))
        self.clock += 1
        os.utime(path, ns=(self.clock, self.clock))
        self.files[name] = content

    @rule(name=names, content=contents)
    def add_or_change(self, name: str, content: int) -> None:
        self.write(name, content)

    @rule(old=names, new=names)
    def rename(self, old: str, new: str) -> None:
        if old in self.files and old != new:
            (self.root / old).rename(self.root / new)
            self.files[new] = self.files.pop(old)

    @rule(name=names)
    def remove(self, name: str) -> None:
        if name in self.files:
            (self.root / name).unlink()
            del self.files[name]

    @rule(shard_size=st.sampled_from([30_000, 50_000]))
    def run(self, shard_size: int) -> None:
        before = StandIn.forwarded
        summary = extract(self.root, self.cache, options=replace(OPTIONS, shard_size=shard_size))
        assert summary.forward_images == StandIn.forwarded - before
        assert summary.failed == 0
        self.check()
        before = StandIn.forwarded
        extract(self.root, self.cache, options=OPTIONS)
        assert StandIn.forwarded == before, "computed twice"

    @rule(write=st.integers(0, 6), after=st.booleans())
    def run_and_kill(self, write: int, after: bool) -> None:
        with pytest.MonkeyPatch.context() as patch:
            Kill(patch, write, after)
            try:
                extract(self.root, self.cache, options=OPTIONS)
            except KilledError:
                pass
            else:
                self.check()

    @precondition(lambda self: self.cache.exists())
    @rule()
    def compact(self) -> None:
        compact(self.cache)
        assert verify(self.cache).sound

    @precondition(lambda self: self.cache.exists())
    @rule(write=st.integers(0, 2), after=st.booleans())
    def compact_and_kill(self, write: int, after: bool) -> None:
        with pytest.MonkeyPatch.context() as patch:
            Kill(patch, write, after)
            try:
                compact(self.cache)
            except KilledError:
                assert verify(self.cache).sound

    def check(self) -> None:
        assert verify(self.cache).sound, verify(self.cache).problems
        with EmbeddingCache(self.cache) as cache:
            table = cache.dataset()
            embeddings, readable = cache.arrays(table)
            assert readable.all()
            assert (
                dict(zip(table.paths, (embeddings[:, 0] / 20).round().astype(int).tolist(), strict=True)) == self.files
            )

    def teardown(self) -> None:
        extract(self.root, self.cache, options=OPTIONS)
        self.check()
        compact(self.cache)
        with EmbeddingCache(self.cache) as cache:
            assert cache.n_images == len(set(self.files.values()))
        self.check()
        shutil.rmtree(self.folder)


OPTIONS = ExtractOptions(weights="random:0", device="cpu", precision="float32", batch_size=2, workers=2)


def test_any_history_ends_in_exactly_the_embeddings_that_the_files_call_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hoarfrost.features.encoder.backbone, "Backbone", StandIn)
    monkeypatch.setattr(
        hoarfrost.features.encoder.backbone,
        "load_weights",
        functools.cache(hoarfrost.features.encoder.backbone.load_weights),
    )
    monkeypatch.setattr(hoarfrost.features.cache.parts, "COMMIT_SECONDS", -1.0)  # a part for each batch
    monkeypatch.setattr(hoarfrost.features.cache.folding, "rows_per_shard", rows_per_tiny_shard)
    run_state_machine_as_test(
        CacheMachine,
        settings=settings(
            max_examples=6, stateful_step_count=15, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
