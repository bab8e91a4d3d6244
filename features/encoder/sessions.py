"""ONNX files at work. The sole user of ONNX Runtime."""

import importlib.util
from typing import TYPE_CHECKING

from hoarfrost.features.errors import EncoderError

if TYPE_CHECKING:
    import onnxruntime


def open_session(content: bytes) -> "onnxruntime.InferenceSession":
    """Return a session on the CPU, with as many threads as torch has.

    Raises
    ------
    EncoderError
        If ONNX Runtime is not installed.
    """
    if importlib.util.find_spec("onnxruntime") is None:
        raise EncoderError("An encoder onnx:FILE needs ONNX Runtime. Run pip install 'hoarfrost[onnx]'.")
    import onnxruntime
    import torch

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads, settings.log_severity_level = torch.get_num_threads(), 3
    return onnxruntime.InferenceSession(content, settings, providers=["CPUExecutionProvider"])
