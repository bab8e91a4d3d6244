"""Whether compiling the network is worth its time: measured once on a machine, and kept between runs."""

import json
import logging
import os
import platform
import time
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from hoarfrost.features.devices import has_amx
from hoarfrost.features.encoder.backbone.compiler import check_compiler, compiler_path
from hoarfrost.features.encoder.backbone.forward import Backbone
from hoarfrost.features.errors import HoarfrostError

# Before anything is compiled: what it may be expected to take and to bring.
EXPECTED_COMPILE_S = 15.0
EXPECTED_GAIN = {
    ("cpu", "float32"): 1.0,  # measured, 88.2 and 88.3 images/s: Winograd's method had what there was to gain
    ("cpu", "bfloat16"): 1.8,  # measured with AMX, 204 and 360 to 393; without it 46.0 and 46.4
    ("cuda", "float32"): 1.1,  # a guess: the time is in the same convolutions
    ("cuda", "bfloat16"): 1.5,  # a guess: half of the time is in what compiling fuses
}
FEWEST_IMAGES = 1_000  # below, not even the measurement pays
KEPT_SECONDS = 30 * 24 * 3600  # then it is measured again: drivers, firmware and neighbours change

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Speeds:
    """Seconds an image as it is and compiled, and seconds that compiling took; when that was found, in Unix time.

    What is only expected is kept in the same way, and a compile that failed as one that brings nothing.
    """

    eager_s: float
    compiled_s: float
    compile_s: float
    found_s: float = field(default_factory=lambda: time.time(), compare=False)

    def repay(self, n_images: int) -> bool:
        """Tell whether compiling saves more than it costs."""
        return n_images * (self.eager_s - self.compiled_s) > self.compile_s


def settle_compute(backbone: Backbone, n_images: int, *, resumed: str | None = None) -> None:
    """Settle the compute path: that of the interrupted extraction, else compiled where it pays.

    Raises
    ------
    HoarfrostError
        If the path that was begun with cannot be gone on with.
    """
    if resumed is None:
        _compile_if_it_pays(backbone, n_images)
    elif resumed != backbone.compute and not (resumed == "compiled" and compile_or_say_why(backbone)):
        raise HoarfrostError(
            f"the interrupted extraction computed {resumed!r}, which is not possible here, and {backbone.compute!r} would "
            "differ in the last bits. Finish it where it began, or name another --cache."
        )


def _compile_if_it_pays(backbone: Backbone, n_images: int) -> None:
    """Compile the backbone where the number of images repays it; where compiling fails, say so and leave it.

    All that was found out is kept in the user's cache folder, for this machine, torch, precision and batch.
    """
    if n_images < FEWEST_IMAGES or backbone.compute != "eager" or (gain := _expected_gain(backbone)) <= 1:
        return
    key = _key(backbone)
    speeds = read_speeds().get(key)
    if speeds is None:
        eager_s = seconds_an_image(backbone)
        speeds = Speeds(eager_s, eager_s / gain, EXPECTED_COMPILE_S)
        keep_speeds(key, speeds)
    if not speeds.repay(n_images):
        return
    speeds = _compiled_speeds(backbone, speeds.eager_s)
    keep_speeds(key, speeds)
    if backbone.compute == "compiled" and speeds.compiled_s >= speeds.eager_s:
        backbone.uncompile()


def _expected_gain(backbone: Backbone) -> float:
    """Tell how many times faster compiled code may be; 1 where it is not worth a try."""
    if "compiled" not in backbone.encoder.fast_paths:
        return 1.0
    if backbone.device.type == "cpu" and backbone.precision == "bfloat16" and not has_amx():
        return 1.0
    return EXPECTED_GAIN.get((backbone.device.type, backbone.precision), 1.0)


def _compiled_speeds(backbone: Backbone, eager_s: float) -> Speeds:
    """Compile, and measure what it took and brought."""
    started = time.perf_counter()
    compiled = compile_or_say_why(backbone)
    compile_s = time.perf_counter() - started
    if not compiled:
        return Speeds(eager_s, eager_s, compile_s)
    speeds = Speeds(eager_s, seconds_an_image(backbone), compile_s)
    if backbone.compute != "compiled":  # it ran out of memory
        return Speeds(eager_s, eager_s, compile_s)
    logger.info("compiled in %.0f s: %.1f images/s, %.1f before", compile_s, 1 / speeds.compiled_s, 1 / eager_s)
    return speeds


def compile_or_say_why(backbone: Backbone) -> bool:
    """Compile; False, and a warning, where that is not possible here."""
    torch_log = logging.getLogger("torch")
    level = torch_log.level
    torch_log.setLevel(logging.ERROR)  # its warnings are for those who develop compilers
    logger.warning("compiling the network: about %.0f s", EXPECTED_COMPILE_S)  # else the silence looks like a hang
    try:
        if backbone.device.type == "cpu":
            check_compiler()
        backbone.compile()
    # No C++ compiler, a header that is missing, a bug of the compiler: nothing that should end an extraction.
    except Exception as error:
        reason = str(error).strip().split("\n", maxsplit=1)[0] or type(error).__name__
        logger.warning("the network could not be compiled (%s); going on without, which is only slower", reason)
        return False
    finally:
        torch_log.setLevel(level)
    return True


def seconds_an_image(backbone: Backbone) -> float:
    """Time the forward pass on what goes through the layers at once, the first time apart."""
    images = torch.zeros((backbone.group, 3, backbone.encoder.size, backbone.encoder.size), dtype=torch.uint8)
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        backbone.embed(images)
        seconds.append(time.perf_counter() - started)
    return min(seconds[1:]) / len(images)


def _key(backbone: Backbone) -> str:
    """Name what the speeds depend on."""
    if backbone.device.type == "cuda":
        processor = torch.cuda.get_device_name(backbone.device)
    else:
        model = platform.processor() or platform.machine()
        processor = f"{model} {platform.node()}, {torch.get_num_threads()} threads, {compiler_path() or 'no compiler'}"
    what = f"{backbone.encoder.name}, {backbone.precision}, batches of {backbone.compiled_group}"
    return f"{processor}, torch {torch.__version__}, {what}"


def speeds_path() -> Path:
    """Give the file that measured speeds are kept in."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hoarfrost" / "compiling.json"


def read_speeds() -> Mapping[str, Speeds]:
    """Read what was found; what cannot be read, and what is old, is found again."""
    try:
        content = json.loads(speeds_path().read_text(encoding="utf-8"))
        found = {key: _speeds(entry) for key, entry in content.items()}
        return {key: speeds for key, speeds in found.items() if abs(time.time() - speeds.found_s) < KEPT_SECONDS}
    except (OSError, ValueError, TypeError, AttributeError, RuntimeError):  # RuntimeError: a user without a home
        return {}


def _speeds(entry: Mapping[str, float]) -> Speeds:
    """Take one entry; those that do not say when they were found are as old as can be."""
    return Speeds(**{name: float(value) for name, value in {"found_s": 0.0, **entry}.items()})


def keep_speeds(key: str, speeds: Speeds) -> None:
    """Keep a measurement; where that is not possible, it is measured again the next time."""
    content = {name: asdict(entry) for name, entry in {**read_speeds(), key: speeds}.items()}
    try:
        path = speeds_path()
        path.parent.mkdir(parents=True, exist_ok=True)
        staging = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
        try:
            staging.write_text(json.dumps(content, indent=2), encoding="utf-8")
            staging.replace(path)
        finally:
            staging.unlink(missing_ok=True)
    except (OSError, RuntimeError) as error:
        logger.debug("what compiling took and brought is not kept: %s", error)
