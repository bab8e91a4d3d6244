"""A GPU's forward pass as a CUDA graph, simulated: the same bits, and one kernel after another where it cannot be."""

import logging
from collections.abc import Callable

import pytest
import torch

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


def test_a_cpus_forward_pass_is_the_network_itself() -> None:
    backbone = Backbone(load_weights("random:0"))
    assert (backbone._graph, backbone._forward) == (None, backbone.network)
