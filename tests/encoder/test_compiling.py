"""The network is compiled where that pays, by what was measured on this machine; where it fails, work continues without."""

import logging
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import hoarfrost.features.encoder.backbone.compiling
from hoarfrost.features.encoder.backbone import choose_compute
from hoarfrost.features.encoder.backbone.compiling import (
    EXPECTED_COMPILE_S,
    FEWEST_IMAGES,
    KEPT_SECONDS,
    Speeds,
    Supply,
    read_speeds,
    save_speeds,
    speeds_path,
    try_to_compile,
)
from hoarfrost.features.encoder.registry import RESNET18, EncoderSpec
from hoarfrost.features.errors import HoarfrostError

# -- with a backbone that only says how long it takes -------------------------------------------------------------------


@dataclass
class Clock:
    """Time that passes only when something is computed."""

    now: float = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass
class FakeBackbone:
    """Takes so many seconds an image as it is and compiled, and so many to compile, by a clock of its own."""

    clock: Clock
    eager_s: float = 0.1
    compiled_s: float = 0.05
    compile_s: float = 20.0
    error: Exception | None = None
    compute: str = "eager"
    precision: str = "bfloat16"
    encoder: EncoderSpec = RESNET18
    batch_size: int = 4
    group: int = 2
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    done: list[str] = field(default_factory=list)

    @property
    def compiled_group(self) -> int:
        return self.batch_size

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        self.done.append(self.compute)
        self.clock.now += len(images) * (self.eager_s if self.compute == "eager" else self.compiled_s)
        return torch.zeros((len(images), 512))

    def compile(self) -> None:
        self.done.append("compile")
        if self.error is not None:
            raise self.error
        self.clock.now += self.compile_s
        self.compute = "compiled"

    def uncompile(self) -> None:
        self.compute = "eager"


MakeBackbone = Callable[..., FakeBackbone]


@pytest.fixture
def make_backbone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> MakeBackbone:
    """Make fake backbones on a machine that has measured nothing yet."""
    clock = Clock()
    monkeypatch.setattr(
        hoarfrost.features.encoder.backbone.compiling, "time", SimpleNamespace(perf_counter=clock, time=time.time)
    )
    monkeypatch.setattr(hoarfrost.features.encoder.backbone.compiling, "has_amx", lambda: True)
    monkeypatch.setattr(hoarfrost.features.encoder.backbone.compiling, "check_compiler", lambda: None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    return lambda **values: FakeBackbone(clock, **values)


def known(backbone: FakeBackbone, speeds: Speeds) -> None:
    """Let the speeds of such a backbone have been measured before."""
    save_speeds(hoarfrost.features.encoder.backbone.compiling._key(backbone), speeds)  # type: ignore[arg-type]


def choose(
    backbone: FakeBackbone, n_images: int, *, resumed: str | None = None, supply: Supply | None = None
) -> list[str]:
    """Choose the compute path; return what the backbone had to do for it."""
    choose_compute(backbone, n_images, resumed=resumed, supply=supply)  # type: ignore[arg-type]
    return backbone.done


def pays(speeds: Speeds, n_images: int) -> bool:
    return speeds.pay(n_images, Supply(), on_cpu=True, is_kept=False)


def test_few_images_are_neither_measured_nor_compiled_for(make_backbone: MakeBackbone) -> None:
    backbone = make_backbone(eager_s=1000.0)
    assert choose(backbone, FEWEST_IMAGES - 1) == []
    assert not speeds_path().exists()


def test_few_images_are_not_compiled_for_even_where_it_is_known_to_pay(make_backbone: MakeBackbone) -> None:
    backbone = make_backbone()
    known(backbone, Speeds(eager_s=1.0, compiled_s=0.1, compile_s=1.0))
    assert choose(backbone, FEWEST_IMAGES - 1) == []


def test_what_is_expected_to_pay_is_measured_compiled_and_kept(
    make_backbone: MakeBackbone, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "hoarfrost")
    backbone = make_backbone(eager_s=0.125, compiled_s=0.0625, compile_s=20.0)
    done = choose(backbone, FEWEST_IMAGES)
    assert (done[0], backbone.compute) == ("eager", "compiled")
    assert list(read_speeds().values()) == [Speeds(eager_s=0.125, compiled_s=0.0625, compile_s=20.0)]
    assert caplog.messages == [
        "Compiling the network takes about 15 s.",
        "Compiled in 20 s: 16.0 images/s, 8.0 images/s before.",
    ]


def test_deciding_takes_three_passes_of_what_goes_through_the_layers_at_once(make_backbone: MakeBackbone) -> None:
    backbone = make_backbone(eager_s=0.001, batch_size=1024, group=8)
    assert choose(backbone, FEWEST_IMAGES) == ["eager"] * 3
    assert backbone.clock.now == pytest.approx(3 * 8 * 0.001)


def test_a_decision_against_compiling_is_kept_and_costs_nothing_the_next_time(make_backbone: MakeBackbone) -> None:
    choose(make_backbone(eager_s=0.001), FEWEST_IMAGES)
    assert choose(make_backbone(eager_s=0.001), 2 * FEWEST_IMAGES) == []
    assert "compile" in choose(make_backbone(eager_s=0.001), 1_000_000)  # what is expected is kept, not "never"


def test_a_failed_compile_is_kept_and_not_tried_again(make_backbone: MakeBackbone) -> None:
    assert "compile" in choose(make_backbone(error=RuntimeError("no")), FEWEST_IMAGES)
    assert choose(make_backbone(), 1_000_000) == []


def test_another_compiler_is_tried(make_backbone: MakeBackbone, monkeypatch: pytest.MonkeyPatch) -> None:
    choose(make_backbone(error=RuntimeError("no")), FEWEST_IMAGES)
    monkeypatch.setattr(hoarfrost.features.encoder.backbone.compiling, "compiler_path", lambda: "/opt/new/g++")
    assert "compile" in choose(make_backbone(), FEWEST_IMAGES)


def test_what_was_found_a_month_ago_is_found_again(make_backbone: MakeBackbone) -> None:
    backbone = make_backbone()
    month_s = KEPT_SECONDS
    known(backbone, Speeds(0.1, 0.2, 1.0, found_s=time.time() - month_s + 60))
    assert choose(make_backbone(), 1_000_000) == []
    known(backbone, Speeds(0.1, 0.2, 1.0, found_s=time.time() - month_s - 60))
    assert "compile" in choose(make_backbone(), 1_000_000)


@pytest.mark.parametrize(("precision", "amx"), [("float32", True), ("float32", False), ("bfloat16", False)])
def test_where_compiling_brings_nothing_it_is_not_even_measured(
    make_backbone: MakeBackbone, monkeypatch: pytest.MonkeyPatch, precision: str, amx: bool
) -> None:
    monkeypatch.setattr(hoarfrost.features.encoder.backbone.compiling, "has_amx", lambda: amx)
    assert choose(make_backbone(eager_s=10.0, precision=precision), 1_000_000) == []


def test_compiled_code_that_runs_out_of_memory_is_kept_as_one_that_brings_nothing(make_backbone: MakeBackbone) -> None:
    class Small(FakeBackbone):
        def embed(self, images: torch.Tensor) -> torch.Tensor:
            self.compute = "eager"
            return super().embed(images)

    backbone = make_backbone()
    choose(Small(backbone.clock), FEWEST_IMAGES)
    assert choose(backbone, 1_000_000) == []


def test_what_is_not_expected_to_pay_is_not_compiled(make_backbone: MakeBackbone) -> None:
    backbone = make_backbone(eager_s=EXPECTED_COMPILE_S / FEWEST_IMAGES)  # 15 s, of which it cannot save 15
    assert "compile" not in choose(backbone, FEWEST_IMAGES)
    assert backbone.compute == "eager"


def test_more_images_make_it_pay(make_backbone: MakeBackbone) -> None:
    backbone = make_backbone(eager_s=EXPECTED_COMPILE_S / FEWEST_IMAGES, compiled_s=0.001)
    choose(backbone, 10 * FEWEST_IMAGES)
    assert backbone.compute == "compiled"


@pytest.mark.parametrize("n_images", [1_999, 2_000, 2_001, 100_000])
def test_known_speeds_decide_without_measuring(make_backbone: MakeBackbone, n_images: int) -> None:
    backbone = make_backbone()
    known(backbone, Speeds(eager_s=0.25, compiled_s=0.125, compile_s=250.0))  # repaid after 2,000 images
    done = choose(backbone, n_images)
    assert done[:1] == (["compile"] if n_images > 2_000 else [])
    assert backbone.compute == ("compiled" if n_images > 2_000 else "eager")


def test_speeds_are_known_for_the_same_precision_and_batch_alone(make_backbone: MakeBackbone) -> None:
    known(make_backbone(), Speeds(eager_s=0.1, compiled_s=0.2, compile_s=1.0))
    assert choose(make_backbone(), FEWEST_IMAGES) == []
    assert choose(make_backbone(precision="float32", device=torch.device("mps")), FEWEST_IMAGES) == []
    assert choose(make_backbone(batch_size=8), FEWEST_IMAGES)[0] == "eager"
    assert len(read_speeds()) == 2


def test_compiled_code_that_is_slower_is_given_up_and_remembered(make_backbone: MakeBackbone) -> None:
    backbone = make_backbone(eager_s=0.125, compiled_s=0.25)
    assert "compile" in choose(backbone, FEWEST_IMAGES)
    assert backbone.compute == "eager"
    assert list(read_speeds().values()) == [Speeds(eager_s=0.125, compiled_s=0.25, compile_s=20.0)]
    assert choose(make_backbone(eager_s=0.125, compiled_s=0.25), 1_000_000) == []


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RuntimeError("No C++ compiler found\nSet TORCHDYNAMO_VERBOSE=1 for more"), "No C\\+\\+ compiler found"),
        (ImportError("\n  no triton  \n\n"), "no triton"),
        (NotImplementedError(), "NotImplementedError"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_failing_compile_is_one_warning_and_work_continues(
    make_backbone: MakeBackbone, caplog: pytest.LogCaptureFixture, error: Exception, reason: str
) -> None:
    backbone = make_backbone(error=error)
    choose(backbone, FEWEST_IMAGES)
    assert (backbone.compute, backbone.done[-1]) == ("eager", "compile")  # nothing is measured after it
    assert [pays(speeds, 1_000_000) for speeds in read_speeds().values()] == [False]
    [_, record] = caplog.records  # the first says that it is compiling
    assert record.levelno == logging.WARNING
    assert record.getMessage() == (
        f"The network could not be compiled ({reason.replace(chr(92), '')}). Continuing without compiling, only slower."
    )


def test_interrupting_a_compile_interrupts(make_backbone: MakeBackbone) -> None:
    backbone = make_backbone()
    backbone.error = KeyboardInterrupt("^C")  # type: ignore[assignment]
    with pytest.raises(KeyboardInterrupt, match="C"):
        choose(backbone, FEWEST_IMAGES)


@pytest.mark.parametrize("error", [None, RuntimeError("no")], ids=["compiles", "fails"])
def test_torchs_own_log_is_as_before_afterwards(
    make_backbone: MakeBackbone, monkeypatch: pytest.MonkeyPatch, error: Exception | None
) -> None:
    torch_log = logging.getLogger("torch")
    monkeypatch.setattr(torch_log, "level", logging.INFO)
    assert try_to_compile(make_backbone(error=error)) == (error is None)  # type: ignore[arg-type]
    assert torch_log.level == logging.INFO


def test_a_folder_that_cannot_be_written_is_not_an_error(make_backbone: MakeBackbone, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    backbone = make_backbone()
    choose(backbone, FEWEST_IMAGES)
    assert backbone.compute == "compiled"
    assert read_speeds() == {}


# -- what bounds the extraction -----------------------------------------------------------------------------------------

# The forward alone: 100 images/s not compiled, 200 compiled; compiling costs 20 s, or 5 with code that is kept.
FORWARD = Speeds(eager_s=0.01, compiled_s=0.005, compile_s=20.0, reuse_s=5.0)


@pytest.mark.parametrize(
    ("device", "read_per_s", "decoded_per_s", "n_images", "is_compiled"),
    [
        ("cuda", 1000, 1000, 4_001, True),  # the forward bounds it: 40 s become 20
        ("cuda", 1000, 1000, 4_000, False),  # too few are left to repay 20 s
        ("cuda", 1000, 125, 10_001, True),  # decoding bounds it at 125 images/s: 10 ms become 8
        ("cuda", 1000, 125, 9_999, False),  # so it takes 10,000 images to repay
        ("cuda", 1000, 100, 10**9, False),  # decoding bounds it already
        ("cuda", 90, 1000, 10**9, False),  # or a slow disk does
        ("cpu", 1000, 50, 4_001, True),  # on the same cores decoding adds to the forward: both speeds gain 5 ms
        ("cpu", 1000, 50, 4_000, False),
        ("cpu", 30, 50, 10**9, False),  # 33 ms to read; 20 to decode and 10 for the forward pass
    ],
)  # fmt: skip
def test_compiling_is_decided_by_what_bounds_the_extraction_and_by_what_is_left_to_do(
    make_backbone: MakeBackbone,
    monkeypatch: pytest.MonkeyPatch,
    device: str,
    read_per_s: float,
    decoded_per_s: float,
    n_images: int,
    is_compiled: bool,
) -> None:
    backbone = make_backbone(eager_s=0.01, compiled_s=0.005, device=torch.device(device))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "a GPU")
    known(backbone, FORWARD)
    choose(backbone, n_images, supply=Supply(1 / read_per_s, 1 / decoded_per_s))
    assert backbone.compute == ("compiled" if is_compiled else "eager")


def test_code_that_is_kept_is_compiled_for_fewer_images(
    make_backbone: MakeBackbone, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    def compiled_for(n_images: int, compile_s: float) -> bool:
        backbone = make_backbone(eager_s=2**-7, compiled_s=2**-8, compile_s=compile_s)
        choose(backbone, n_images)
        return backbone.compute == "compiled"

    speeds = Speeds(eager_s=2**-7, compiled_s=2**-8, compile_s=20.0, reuse_s=5.0)
    known(make_backbone(), speeds)
    assert not compiled_for(1_500, 20.0)
    assert compiled_for(6_000, 24.0)
    assert compiled_for(1_500, 4.0)
    assert list(read_speeds().values()) == [replace(speeds, compile_s=24.0, reuse_s=4.0)]
    assert "Compiling the network takes about 5 s." in caplog.text
    shutil.rmtree(tmp_path / "cache" / "hoarfrost" / "compiled")  # as one who needs the space does
    assert not compiled_for(1_500, 20.0)


def test_compiled_code_is_kept_in_the_users_cache_folder_and_the_setting_is_restored(
    make_backbone: MakeBackbone, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen = []

    class Looks(FakeBackbone):
        def compile(self) -> None:
            seen.append(os.environ["TORCHINDUCTOR_CACHE_DIR"])
            super().compile()

    assert try_to_compile(Looks(make_backbone().clock))  # type: ignore[arg-type]
    assert seen == [str(tmp_path / "cache" / "hoarfrost" / "compiled")]
    assert "TORCHINDUCTOR_CACHE_DIR" not in os.environ
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "mine"))
    assert try_to_compile(Looks(make_backbone().clock))  # type: ignore[arg-type]
    assert seen[1:] == [os.environ["TORCHINDUCTOR_CACHE_DIR"]] == [str(tmp_path / "mine")]


@pytest.mark.parametrize("n_images", [1, 1_000_000])
def test_openvinos_network_is_never_compiled(make_backbone: MakeBackbone, n_images: int) -> None:
    assert choose(make_backbone(compute="openvino"), n_images) == []


# -- an interrupted extraction that is resumed --------------------------------------------------------------------------


@pytest.mark.parametrize("n_images", [1, FEWEST_IMAGES - 1, 1_000_000])
def test_an_extraction_started_compiled_continues_compiled_for_any_number(
    make_backbone: MakeBackbone, n_images: int
) -> None:
    backbone = make_backbone(eager_s=0.1, compiled_s=0.2)  # even where that is slower: the bits decide
    assert choose(backbone, n_images, resumed="compiled") == ["compile"]
    assert backbone.compute == "compiled"


@pytest.mark.parametrize("compute", ["eager", "openvino"])
def test_an_extraction_continues_on_the_path_that_it_started_on(make_backbone: MakeBackbone, compute: str) -> None:
    assert choose(make_backbone(compute=compute), 1_000_000, resumed=compute) == []


@pytest.mark.parametrize(
    ("compute", "resumed"), [("eager", "openvino"), ("openvino", "eager"), ("eager", "of tomorrow"), ("eager", "")]
)
def test_an_extraction_on_a_path_that_is_not_possible_here_is_refused(
    make_backbone: MakeBackbone, compute: str, resumed: str
) -> None:
    backbone = make_backbone(compute=compute)
    with pytest.raises(
        HoarfrostError,
        match=f"used the compute path '{resumed}', which is not possible on this machine. With '{compute}', embeddings would "
        "differ in the last bits. Finish it on the machine where it started, or name another --cache",
    ):
        choose(backbone, 1_000_000, resumed=resumed)
    assert backbone.done == []


def test_an_extraction_started_compiled_is_refused_where_compiling_fails(
    make_backbone: MakeBackbone, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(HoarfrostError, match="With 'eager', embeddings would differ"):
        choose(make_backbone(error=RuntimeError("no C++ compiler")), 5, resumed="compiled")
    assert ["could not be compiled (no C++ compiler)" in message for message in caplog.messages] == [False, True]
