"""The precision of an encoder on a device: as asked for, or the faster one by timing layers."""

import copy
import importlib.util
import logging
import time

import torch

from hoarfrost.features.processors import has_amx, has_avx2, has_avx512_bf16, has_vnni

BFLOAT16_MARGIN = 1.1  # the least gain in speed: a smaller one is noise, and costs digits
REPEATS = 5

logger = logging.getLogger(__name__)


def choose_precision(asked: str, device: str) -> str:
    """Return the precision asked for; for "auto", bfloat16 if the device multiplies it natively, else float32.

    For "fast" it is "int8" where that at least doubles the speed, by the processor's instructions; else as for "auto".
    """
    if asked == "fast":
        if not (reason := reason_against_int8(device)):
            return "int8"
        logger.warning("--fast: 8-bit integers are not used, because %s.", reason)
    elif asked != "auto":
        return asked
    if device == "cuda":  # older GPUs emulate it
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    if device == "cpu" and (has_amx() or (has_avx512_bf16() and _bfloat16_is_faster())):
        return "bfloat16"
    return "float32"


def reason_against_int8(device: str) -> str:
    """Return why 8-bit integers do not double the speed on a device; "" if they do.

    By the processor's instructions. Measured: 2.0 times float32 with AVX2, 3.8 with VNNI; 1.3 times bfloat16 on vector
    units, and about bfloat16 on matrix units.
    """
    if device != "cpu":
        return f"they run on CPUs, and the device is {device}"
    if choose_precision("auto", device) == "bfloat16":
        return "this processor computes bfloat16 nearly as fast"
    if not (has_vnni() or has_avx2()):
        return "this processor has no fast instructions for them (AVX2 or VNNI)"
    if importlib.util.find_spec("openvino") is None:
        return "OpenVINO is not installed (pip install openvino)"
    return ""


def _bfloat16_is_faster() -> bool:
    """Time typical layers in both: AVX-512 BF16 is twice as fast on some processors, and slower on others."""
    float32_s, bfloat16_s = _layer_seconds()
    return bfloat16_s * BFLOAT16_MARGIN < float32_s


def _layer_seconds() -> tuple[float, float]:
    """Time layers in float32, the wide one by Winograd's method, and in bfloat16.

    Both are timed alternately, and the least time counts, because other work on the machine affects both.
    """
    from hoarfrost.features.encoder.backbone.winograd import WinogradConv2d  # here: most processors need no timing

    narrow, wide = (torch.nn.Conv2d(n, n, 3, padding=1).requires_grad_(False) for n in (128, 256))
    candidates = []
    for dtype, layers in ((torch.float32, [narrow, WinogradConv2d(wide)]), (torch.bfloat16, [narrow, wide])):
        copies = [copy.deepcopy(layer).to(dtype=dtype, memory_format=torch.channels_last) for layer in layers]  # type: ignore[call-overload]
        inputs = [torch.zeros((8, n, size, size), dtype=dtype) for n, size in ((128, 28), (256, 14))]
        candidates.append((copies, [x.contiguous(memory_format=torch.channels_last) for x in inputs]))
    seconds = [[_seconds_of(*candidate) for candidate in candidates] for _ in range(REPEATS)]
    float32_s, bfloat16_s = map(min, zip(*seconds, strict=True))
    return float32_s, bfloat16_s


@torch.inference_mode()
def _seconds_of(layers: list[torch.nn.Module], inputs: list[torch.Tensor]) -> float:
    started = time.perf_counter()
    for layer, x in zip(layers, inputs, strict=True):
        layer(x)
    return time.perf_counter() - started
