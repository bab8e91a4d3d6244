"""The compiled network: the same embeddings, one graph, and back again."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from hoarfrost.features.encoder.backbone import Backbone, load_weights
from tests.support.commands import RunPython


def some_noise(n_images: int) -> torch.Tensor:
    return torch.randint(0, 256, (n_images, 3, 224, 224), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_a_backbone_that_could_not_be_compiled_is_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("no C++ compiler")

    monkeypatch.setattr(torch, "compile", lambda *_, **__: broken)
    backbone, images = Backbone(load_weights("random:0"), batch_size=4), some_noise(3)
    before = backbone.embed(images)
    with pytest.raises(RuntimeError, match="no C\\+\\+ compiler"):
        backbone.compile()
    assert backbone.compute == "eager"
    assert torch.equal(backbone.embed(images), before)


@pytest.mark.parametrize(("batch_size", "group"), [(4, 4), (32, 32), (64, 32), (1024, 32)])
def test_a_cpus_compiled_code_takes_no_more_than_32_at_once(batch_size: int, group: int) -> None:
    assert Backbone(load_weights("random:0"), batch_size=batch_size).compiled_group == group


def test_compiled_code_is_given_whole_batches_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[int] = []

    def pretend(network: torch.nn.Module, **_: object) -> Callable[[torch.Tensor], torch.Tensor]:
        return lambda images: network(given.append(len(images)) or images)

    monkeypatch.setattr(torch, "compile", pretend)
    backbone = Backbone(load_weights("random:0"), batch_size=4)
    backbone.compile()
    given.clear()
    backbone.embed(some_noise(6))
    assert (backbone.compute, given) == ("compiled", [4, 4])
    backbone.uncompile()
    backbone.embed(some_noise(6))
    assert (backbone.compute, given) == ("eager", [4, 4])


@dataclass(frozen=True)
class Compiled:
    """What a backbone gave before, while and after it was compiled; `some` by how many images it was given."""

    before: torch.Tensor
    compute: str
    all: torch.Tensor
    some: dict[int, torch.Tensor]
    reversed: torch.Tensor
    n_compiled_again: int
    after: torch.Tensor
    compute_after: str


@pytest.fixture(scope="module")
def compiled() -> Compiled:
    images = some_noise(11)
    backbone = Backbone(load_weights("random:0"), batch_size=8)
    before = backbone.embed(images)
    backbone.compile()
    n_compiled = n_graphs_compiled()
    compute, embeddings = backbone.compute, backbone.embed(images)
    some = {n: backbone.embed(images[-n:]) for n in (1, 5, 8)}
    backwards = backbone.embed(images.flip(0)).flip(0)
    n_compiled_again = n_graphs_compiled() - n_compiled
    backbone.uncompile()
    after = backbone.embed(images)
    return Compiled(before, compute, embeddings, some, backwards, n_compiled_again, after, backbone.compute)


def n_graphs_compiled() -> int:
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


@pytest.mark.slow
def test_compiled_embeddings_are_the_networks_but_for_rounding(compiled: Compiled) -> None:
    assert compiled.compute == "compiled"
    assert (torch.nn.functional.cosine_similarity(compiled.all, compiled.before) >= 0.99999).all()
    assert (compiled.all - compiled.before).abs().max() <= 1e-4 * compiled.before.abs().max()


@pytest.mark.slow
def test_a_compiled_embeddings_bits_do_not_depend_on_the_number_of_images(compiled: Compiled) -> None:
    assert all(torch.equal(some, compiled.all[-n:]) for n, some in compiled.some.items())


@pytest.mark.slow
def test_a_compiled_embeddings_bits_do_not_depend_on_its_batch_mates(compiled: Compiled) -> None:
    assert torch.equal(compiled.reversed, compiled.all)


@pytest.mark.slow
def test_a_last_batch_that_is_short_compiles_nothing_again(compiled: Compiled) -> None:
    assert compiled.n_compiled_again == 0


@pytest.mark.slow
def test_uncompiling_gives_the_bits_from_before(compiled: Compiled) -> None:
    assert compiled.compute_after == "eager"
    assert torch.equal(compiled.after, compiled.before)


WITHOUT_A_COMPILER = """
import logging, torch
from hoarfrost.features.encoder.backbone import Backbone, load_weights
from hoarfrost.features.encoder.backbone.compiling import try_to_compile

logging.basicConfig(format="%(levelname)s %(message)s")
backbone = Backbone(load_weights("random:0"), batch_size=2)
images = torch.zeros((3, 3, 224, 224), dtype=torch.uint8)
before = backbone.embed(images)
print(try_to_compile(backbone), backbone.compute, torch.equal(backbone.embed(images), before))
"""


@pytest.mark.slow
def test_without_a_cplusplus_compiler_it_warns_once_and_continues(run_python: RunPython, tmp_path: Path) -> None:
    done = run_python(
        "-c",
        WITHOUT_A_COMPILER,
        CXX="/nonexistent/c++",
        PATH=str(tmp_path),
        TORCHINDUCTOR_CACHE_DIR=str(tmp_path / "inductor"),
    )
    assert (done.status, done.stdout) == (0, "False eager True\n")
    [_, line] = done.stderr.splitlines()  # the first says that it is compiling
    assert line.startswith("WARNING The network could not be compiled (")
    assert line.endswith("). Continuing without compiling, only slower.")
