"""Whether compiling the network is worth its time: measured once on a machine, and kept between runs."""

import json
import logging
import os
import platform
import time
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from features.backbone.forward import Backbone
from features.errors import HoarfrostError
from features.fingerprint import SIZE

# Before anything is measured: what compiling may be expected to take and to bring.
EXPECTED_COMPILE_S = 15.0
EXPECTED_GAIN = 1.3
FEWEST_IMAGES = 1_000  # below, not even the measurement pays

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Speeds:
    """Seconds an image as it is and compiled, and seconds that compiling took."""

    eager_s: float
    compiled_s: float
    compile_s: float

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

    What was measured is kept in the user's cache folder, for this machine, torch, precision and batch.
    """
    if n_images < FEWEST_IMAGES or backbone.compute != "eager":
        return
    key = _key(backbone)
    known = read_speeds().get(key)
    if known is None:
        eager_s = seconds_an_image(backbone)
        expected = Speeds(eager_s, eager_s / EXPECTED_GAIN, EXPECTED_COMPILE_S)
    else:
        eager_s, expected = known.eager_s, known
    if not expected.repay(n_images):
        return
    started = time.perf_counter()
    if not compile_or_say_why(backbone):
        return
    compile_s = time.perf_counter() - started
    speeds = Speeds(eager_s, seconds_an_image(backbone), compile_s)
    keep_speeds(key, speeds)
    logger.info("compiled in %.0f s: %.1f images/s, %.1f before", speeds.compile_s, 1 / speeds.compiled_s, 1 / eager_s)
    if speeds.compiled_s >= eager_s:
        backbone.uncompile()


def compile_or_say_why(backbone: Backbone) -> bool:
    """Compile; False, and a warning, where that is not possible here."""
    torch_log = logging.getLogger("torch")
    level = torch_log.level
    torch_log.setLevel(logging.ERROR)  # its warnings are for those who develop compilers
    try:
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
    """Time the forward pass on whole batches, the first one apart."""
    images = torch.zeros((backbone.batch_size, 3, SIZE, SIZE), dtype=torch.uint8)
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
        processor = f"{platform.processor() or platform.machine()} {platform.node()}, {torch.get_num_threads()} threads"
    return f"{processor}, torch {torch.__version__}, {backbone.precision}, batches of {backbone.batch_size}"


def speeds_path() -> Path:
    """Give the file that measured speeds are kept in."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hoarfrost" / "compiling.json"


def read_speeds() -> Mapping[str, Speeds]:
    """Read what was measured; what cannot be read is measured again."""
    try:
        content = json.loads(speeds_path().read_text(encoding="utf-8"))
        return {key: Speeds(**{name: float(value) for name, value in entry.items()}) for key, entry in content.items()}
    except (OSError, ValueError, TypeError, AttributeError, RuntimeError):  # RuntimeError: a user without a home
        return {}


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
