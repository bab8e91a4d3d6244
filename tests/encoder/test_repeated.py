"""A GPU's forward pass as a CUDA graph, simulated: the same bits, and one kernel after another where it cannot be."""

import logging
import weakref
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch

from hoarfrost.features.devices import captured
from hoarfrost.features.encoder.backbone import Backbone, forward, load_weights, repeated
from hoarfrost.features.encoder.backbone.repeated import WARM_UP, Repeated
from tests.support.launches import recorded

N_GROUPS = WARM_UP + 3


def noise(n_images: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n_images, 3, 224, 224), dtype=torch.uint8, generator=generator)


@pytest.fixture
def captures(monkeypatch: pytest.MonkeyPatch) -> list[Callable[[], None]]:
    """Let a CPU repeat operations as a GPU repeats a graph's; return what was captured."""
    found: list[Callable[[], None]] = []

    def capture(work: Callable[[], None]) -> Callable[[], None]:
        found.append(work)
        return recorded(work)

    monkeypatch.setattr(forward, "is_gpu", lambda _: True)
    monkeypatch.setattr(repeated, "captured", capture)
    return found


def test_repeated_groups_have_the_bits_of_the_network_also_a_padded_one(captures: list[Callable[[], None]]) -> None:
    weights = load_weights("random:0")
    backbone = Backbone(weights, batch_size=8)
    groups = [noise(8 if i < N_GROUPS - 1 else 5, i) for i in range(N_GROUPS)]
    found = [backbone.embed(group) for group in groups]
    assert len(captures) == 1
    plain = Repeated(backbone.network, (0,))
    for group, embeddings in zip(groups, found, strict=True):
        padded = torch.cat([group, torch.zeros((8 - len(group), 3, 224, 224), dtype=torch.uint8)])
        assert torch.equal(embeddings, plain(padded)[: len(group)])


def test_embeddings_of_a_group_stay_when_the_next_is_computed(captures: list[Callable[[], None]]) -> None:
    run = Repeated(lambda images: images.float().mean((2, 3)), (2, 3, 4, 4))
    groups = [torch.full((2, 3, 4, 4), i, dtype=torch.uint8) for i in range(N_GROUPS)]
    found = [run(group) for group in groups]
    assert [int(one.sum()) for one in found] == [6 * i for i in range(N_GROUPS)]
    assert len(captures) == 1
    assert run(torch.ones((1, 3, 4, 4), dtype=torch.uint8)).tolist() == [[1, 1, 1]]  # of another shape


def test_a_smaller_group_is_captured_again(captures: list[Callable[[], None]]) -> None:
    backbone = Backbone(load_weights("random:0"), batch_size=8)
    for seed in range(N_GROUPS):
        backbone.embed(noise(8, seed))
    backbone._halve_group(torch.OutOfMemoryError("CUDA out of memory"))
    for seed in range(WARM_UP):
        backbone.embed(noise(8, seed))
    assert (backbone.group, len(captures)) == (4, 2)


def test_where_it_cannot_be_captured_it_is_logged_once_and_computed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(forward, "is_gpu", lambda _: True)  # this torch, or this machine, has no CUDA
    caplog.set_level(logging.DEBUG, "hoarfrost")
    run = Repeated(lambda images: images.float().mean((2, 3)), (2, 3, 4, 4))
    groups = [torch.full((2, 3, 4, 4), i, dtype=torch.uint8) for i in range(N_GROUPS)]
    assert [int(run(group).sum()) for group in groups] == [6 * i for i in range(N_GROUPS)]
    assert ["is not a CUDA graph (" in message for message in caplog.messages] == [True]


# -- captures that an error breaks off ----------------------------------------------------------------------------------


class Gpu:
    """Torch's part in a capture, as in version 2.11: what an error during it leaves is not undone.

    `waits` stands for an operation that is not allowed in a capture: it raises an error, and so does the end.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.default, self.of_captures = SimpleNamespace(device_index=0), SimpleNamespace(device_index=0)
        self.stream, self.capturing, self.is_broken, self.cannot_begin = self.default, set[int](), False, False
        self.pools, self.is_reset, gpu = set[int](), False, self

        class Graph:
            replay = staticmethod(lambda: None)

            def reset(self) -> None:
                gpu.is_reset = True

        class Capture:
            def __init__(self, _: Graph, pool: int = 7, *, capture_error_mode: str) -> None:
                assert capture_error_mode == "thread_local"
                self.pool = pool

            def __enter__(self) -> None:
                gpu.stream = gpu.of_captures
                gpu.pools.add(self.pool)
                if gpu.cannot_begin:
                    raise RuntimeError("CUDA error: the capture cannot begin")
                gpu.capturing.add(self.pool)

            def __exit__(self, *_: object) -> None:
                gpu.capturing.remove(self.pool)
                if gpu.is_broken:
                    raise RuntimeError("CUDA error: operation failed due to a previous error during capture")
                gpu.pools.remove(self.pool)
                gpu.stream = gpu.default

        def end_pool(device: int, pool: int) -> None:
            assert device == 0
            if pool not in gpu.pools:
                raise RuntimeError("endAllocatePool: not currently recording to mempool_id")
            gpu.pools.remove(pool)

        monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
        monkeypatch.setattr(torch.cuda, "graph", Capture)
        monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: 7)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda: self.stream)
        monkeypatch.setattr(torch.cuda, "set_stream", lambda stream: setattr(self, "stream", stream))
        monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", end_pool)

    def waits(self) -> None:
        self.is_broken = True
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing")

    @property
    def is_as_before(self) -> bool:
        return self.stream is self.default and not self.capturing and not self.pools


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    return Gpu(monkeypatch)


def raising(error: BaseException) -> Callable[[], None]:
    def work() -> None:
        raise error

    return work


def test_a_capture_that_an_error_breaks_off_is_ended_and_raises_that_error(gpu: Gpu) -> None:
    with pytest.raises(RuntimeError, match="not permitted when stream is capturing") as raised:
        captured(gpu.waits)
    assert raised.value.__context__ is None
    assert gpu.is_as_before
    assert gpu.is_reset


@pytest.mark.parametrize("is_broken", [False, True])
@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), KeyboardInterrupt()])
def test_no_error_of_a_captures_end_is_in_the_way_of_the_first(gpu: Gpu, error: BaseException, is_broken: bool) -> None:
    gpu.is_broken = is_broken
    with pytest.raises(type(error)):
        captured(raising(error))
    assert gpu.is_as_before


def test_a_capture_that_cannot_begin_or_end_leaves_the_stream_and_the_allocator(gpu: Gpu) -> None:
    gpu.is_broken = True
    with pytest.raises(RuntimeError, match="a previous error during capture"):
        captured(lambda: None)
    assert gpu.is_as_before
    gpu.cannot_begin = True
    with pytest.raises(RuntimeError, match="cannot begin"):
        captured(lambda: None)
    assert gpu.is_as_before


def test_a_capture_that_succeeds_is_as_torch_leaves_it(gpu: Gpu) -> None:
    captured(lambda: None)
    assert gpu.is_as_before
    assert not gpu.is_reset


def test_a_forward_pass_whose_capture_is_broken_off_is_computed_and_keeps_nothing_of_it(gpu: Gpu) -> None:
    made: list[weakref.ref[torch.Tensor]] = []

    def forward(images: torch.Tensor) -> torch.Tensor:
        found = images.float().mean((2, 3))
        if gpu.capturing:
            made.append(weakref.ref(found))
            gpu.is_broken = True  # only the end of the capture says so
        return found

    run = Repeated(forward, (2, 3, 4, 4))
    groups = [torch.full((2, 3, 4, 4), i, dtype=torch.uint8) for i in range(N_GROUPS)]
    assert [int(run(group).sum()) for group in groups] == [6 * i for i in range(N_GROUPS)]
    assert [one() for one in made] == [None]  # of the graph's own memory
    assert gpu.is_as_before


def test_a_cpus_forward_pass_is_the_network_itself() -> None:
    backbone = Backbone(load_weights("random:0"))
    assert (backbone._graph, backbone._forward) == (None, backbone.network)
