"""Whether compiling the network pays: by what bounds the extraction, and by speeds that are kept between runs."""

import json
import logging
import platform
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch

from hoarfrost.features.encoder.backbone.compiler import check_compiler, compiler_path
from hoarfrost.features.encoder.backbone.forward import Backbone
from hoarfrost.features.encoder.backbone.kept_code import cache_folder, code_kept, is_code_kept, note_kept_code
from hoarfrost.features.errors import HoarfrostError
from hoarfrost.features.files.whole import whole_file
from hoarfrost.features.processors import has_amx

# Before anything is compiled: its expected cost and gain.
EXPECTED_COMPILE_S = 15.0
EXPECTED_REUSE_S = 6.0  # with compiled code of an earlier run
EXPECTED_GAIN = {
    ("cpu", "float32"): 1.0,  # measured, 88.2 and 88.3 images/s: Winograd's method left nothing to gain
    ("cpu", "bfloat16"): 1.8,  # measured with AMX, 204 and 360 to 393; without it 46.0 and 46.4
    ("cuda", "float32"): 1.1,  # a guess: the time is in the same convolutions
    ("cuda", "bfloat16"): 1.5,  # a guess: half of the time is in what compiling fuses
}
FEWEST_IMAGES = 1_000  # with fewer, not even the measurement pays
KEPT_SECONDS = 30 * 24 * 3600  # then it is measured again: drivers, firmware and other load change

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Supply:
    """Seconds per image that all threads together take to read, and to decode; 0 where that is not known."""

    read_s: float = 0.0
    decode_s: float = 0.0

    def by_look(self, n_looks: int) -> "Supply":
        """Return the seconds for each of the looks that an image is embedded by."""
        return Supply(self.read_s / n_looks, self.decode_s / n_looks)

    def with_forward(self, forward_s: float, *, on_cpu: bool) -> float:
        """Return what an image takes: the slowest step beside the others. On a CPU decoding and the forward alternate."""
        if on_cpu:
            return max(self.read_s, self.decode_s + forward_s)
        return max(self.read_s, self.decode_s, forward_s)


@dataclass(frozen=True)
class Speeds:
    """Seconds per image, not compiled and compiled; seconds that compiling took; when this was found, in Unix time.

    `reuse_s` is what compiling takes with code that is kept from an earlier run. Expected values are kept like measured
    ones, and a compilation that failed like one that gains nothing.
    """

    eager_s: float
    compiled_s: float
    compile_s: float
    found_s: float = field(default_factory=lambda: time.time(), compare=False)
    reuse_s: float = EXPECTED_REUSE_S

    def pay(self, n_images: int, supply: Supply, *, on_cpu: bool, is_kept: bool) -> bool:
        """Return whether compiling saves more time than it costs, for what is left to do, beside reading and decoding."""
        eager_s, compiled_s = (supply.with_forward(one, on_cpu=on_cpu) for one in (self.eager_s, self.compiled_s))
        return n_images * (eager_s - compiled_s) > (self.reuse_s if is_kept else self.compile_s)


def choose_compute(
    backbone: Backbone, n_images: int, *, resumed: str | None = None, supply: Supply | None = None
) -> None:
    """Choose the compute path: that of the interrupted extraction, else compiled if it pays beside reading and decoding.

    Raises
    ------
    HoarfrostError
        If the interrupted extraction's path is not possible on this machine.
    """
    if resumed is None:
        _compile_if_it_pays(backbone, n_images, supply or Supply())
    elif resumed != backbone.compute and not (resumed == "compiled" and try_to_compile(backbone)):
        raise HoarfrostError(
            f"The interrupted extraction used the compute path {resumed!r}, which is not possible on this machine. "
            f"With {backbone.compute!r}, embeddings would differ in the last bits. Finish it on the machine where it "
            "started, or name another --cache."
        )


def _compile_if_it_pays(backbone: Backbone, n_images: int, supply: Supply) -> None:
    """Compile the backbone if the images are enough for it to pay.

    All measured speeds are kept in the user's cache folder, for this machine, torch, precision and batch size.
    """
    if n_images < FEWEST_IMAGES or backbone.compute != "eager" or (gain := _expected_gain(backbone)) <= 1:
        return
    key = _key(backbone)
    speeds = read_speeds().get(key)
    if speeds is None:
        eager_s = seconds_per_image(backbone)
        speeds = Speeds(eager_s, eager_s / gain, EXPECTED_COMPILE_S)
        save_speeds(key, speeds)
    is_kept, on_cpu = is_code_kept(key), backbone.device.type == "cpu"
    if not speeds.pay(n_images, supply, on_cpu=on_cpu, is_kept=is_kept):
        logger.debug(
            "Compiling would not pay: %s, %s, %d images to do, code kept: %s", speeds, supply, n_images, is_kept
        )
        return
    speeds = _compiled_speeds(backbone, speeds, is_kept=is_kept)
    save_speeds(key, speeds)
    if backbone.compute == "compiled":
        note_kept_code(key)
        if speeds.compiled_s >= speeds.eager_s:
            backbone.uncompile()


def _expected_gain(backbone: Backbone) -> float:
    """Return how many times faster compiled code may be; 1 if it is not worth a try."""
    place = backbone.device.type, backbone.precision
    if "compiled" not in backbone.encoder.fast_paths or (place == ("cpu", "bfloat16") and not has_amx()):
        return 1.0
    return EXPECTED_GAIN.get(place, 1.0)


def _compiled_speeds(backbone: Backbone, before: Speeds, *, is_kept: bool) -> Speeds:
    """Compile; return the cost and the gain."""
    eager_s = before.eager_s
    started = time.perf_counter()
    is_compiled = try_to_compile(backbone, before.reuse_s if is_kept else EXPECTED_COMPILE_S)
    compile_s = time.perf_counter() - started
    compiled_s = seconds_per_image(backbone) if is_compiled else eager_s
    found = replace(before, found_s=time.time(), **{"reuse_s" if is_kept else "compile_s": compile_s})
    if backbone.compute != "compiled":  # compiling failed, or there was not enough memory
        return replace(found, compiled_s=eager_s)
    logger.info("Compiled in %.0f s: %.1f images/s, %.1f images/s before.", compile_s, 1 / compiled_s, 1 / eager_s)
    return replace(found, compiled_s=compiled_s)


def try_to_compile(backbone: Backbone, expected_s: float = EXPECTED_COMPILE_S) -> bool:
    """Compile; return whether it succeeded, and log a warning if not."""
    torch_log = logging.getLogger("torch")
    level = torch_log.level
    torch_log.setLevel(logging.ERROR)  # its warnings are for developers of compilers
    # Without this line the silence looks like a hang.
    logger.warning("Compiling the network takes about %.0f s.", expected_s)
    try:
        if backbone.device.type == "cpu":
            check_compiler()
        with code_kept():
            backbone.compile()
    # No C++ compiler, a missing header, a bug of the compiler: no reason to end an extraction.
    except Exception as error:
        reason = str(error).strip().split("\n", maxsplit=1)[0] or type(error).__name__
        logger.warning("The network could not be compiled (%s). Continuing without compiling, only slower.", reason)
        return False
    finally:
        torch_log.setLevel(level)
    return True


def seconds_per_image(backbone: Backbone) -> float:
    """Time the forward pass on one group of images, without the first pass."""
    images = torch.zeros((backbone.group, 3, backbone.encoder.size, backbone.encoder.size), dtype=torch.uint8)
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        backbone.embed(images)
        seconds.append(time.perf_counter() - started)
    return min(seconds[1:]) / len(images)


def _key(backbone: Backbone) -> str:
    """Return all that the speeds depend on, as text."""
    if backbone.device.type == "cuda":
        processor = torch.cuda.get_device_name(backbone.device)
    else:
        model = platform.processor() or platform.machine()
        processor = f"{model} {platform.node()}, {torch.get_num_threads()} threads, {compiler_path() or 'no compiler'}"
    network = f"{backbone.encoder.name}, {backbone.precision}, batches of {backbone.compiled_group}"
    return f"{processor}, torch {torch.__version__}, {network}"


def speeds_path() -> Path:
    """Return the file that measured speeds are kept in."""
    return cache_folder() / "compiling.json"


def read_speeds() -> Mapping[str, Speeds]:
    """Read the measured speeds; ignore old ones and a damaged file, to measure again."""
    try:
        content = json.loads(speeds_path().read_text(encoding="utf-8"))
        entries = {key: {"found_s": 0.0, **entry} for key, entry in content.items()}  # 0: too old
        found = {key: Speeds(**{name: float(value) for name, value in entry.items()}) for key, entry in entries.items()}
        return {key: speeds for key, speeds in found.items() if abs(time.time() - speeds.found_s) < KEPT_SECONDS}
    except (OSError, ValueError, TypeError, AttributeError, RuntimeError):  # RuntimeError: a user without a home
        return {}


def save_speeds(key: str, speeds: Speeds) -> None:
    """Add a measurement to the file; if it cannot be written, it is measured again next time."""
    content = {name: asdict(entry) for name, entry in {**read_speeds(), key: speeds}.items()}
    try:
        path = speeds_path()
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as file:
            file.write(json.dumps(content, indent=2).encode())
    except (OSError, RuntimeError) as error:
        logger.debug("measured speeds were not saved: %s", error)
