"""File formats of an exported model: ONNX and torch.export. The sole user of onnx."""

import importlib.util
import io
import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from hoarfrost import __version__
from hoarfrost.features.encoder.sessions import open_session
from hoarfrost.features.errors import HoarfrostError
from hoarfrost.inference.export.metadata import INPUT, OUTPUTS
from hoarfrost.inference.export.model import Classifier

if TYPE_CHECKING:
    import onnx
    from torch.export import ExportedProgram

OPSET = 18
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
METADATA_FILE = "metadata.json"
BATCHES = (1, 7)  # the batch sizes that a file is tested with

Floats = npt.NDArray[np.float32]


def require_onnx() -> None:
    """Raise HoarfrostError if a package is missing that writing and testing an ONNX file needs."""
    missing = [name for name in ONNX_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise HoarfrostError(
            f"--format onnx needs {', '.join(missing)}. Install it: pip install 'hoarfrost[onnx]'; or use --format torch."
        )


def exported_program(classifier: Classifier) -> "ExportedProgram":
    """Trace the model for batches of any size."""
    size = classifier.size
    example = torch.zeros((2, 3, size, size), dtype=torch.uint8)
    shapes = {INPUT: {0: torch.export.Dim("batch", min=1)}}
    with _quiet():
        program = torch.export.export(classifier, (example,), dynamic_shapes=shapes)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # it has paths of this machine
    return program


def torch_bytes(program: "ExportedProgram", metadata: Mapping[str, str]) -> bytes:
    """Return the content of a .pt2 file; its metadata are the extra file `metadata.json`."""
    buffer = io.BytesIO()
    with _quiet():
        torch.export.save(program, buffer, extra_files={METADATA_FILE: json.dumps(dict(metadata), indent=1)})
    return buffer.getvalue()


def onnx_bytes(program: "ExportedProgram", metadata: Mapping[str, str]) -> bytes:
    """Return the content of an ONNX file with weights; its metadata are its metadata_props."""
    import onnx

    with _quiet():
        made = torch.onnx.export(
            program, dynamo=True, opset_version=OPSET, input_names=[INPUT], output_names=list(OUTPUTS), verbose=False
        )
    assert made is not None
    model = made.model_proto
    _tidy(model)
    model.producer_name, model.producer_version, model.doc_string = "hoarfrost", __version__, metadata["use"]
    onnx.helper.set_model_props(model, dict(metadata))
    onnx.checker.check_model(model)
    content: bytes = model.SerializeToString()
    return content


def _tidy(model: "onnx.ModelProto") -> None:
    """Name the batch dimension, and remove the exporter's notes to its developers."""
    graph = model.graph
    for part in (graph, *graph.node, *graph.initializer, *graph.input, *graph.output, *graph.value_info):
        del part.metadata_props[:]
    batch = graph.input[0].type.tensor_type.shape.dim[0].dim_param
    for value in (*graph.input, *graph.output, *graph.value_info):
        for size in value.type.tensor_type.shape.dim:
            if size.dim_param == batch:
                size.dim_param = "batch"


def run_onnx(content: bytes, images: npt.NDArray[np.uint8]) -> list[Floats]:
    """Run an ONNX file on images (N, 3, S, S); return its outputs, (N, C) each."""
    found: list[Floats] = open_session(content).run(list(OUTPUTS), {INPUT: images})
    return found


def run_torch(content: bytes, images: npt.NDArray[np.uint8]) -> list[Floats]:
    """Run a .pt2 file on images (N, 3, S, S); return its outputs, (N, C) each."""
    with _quiet(), torch.no_grad():
        module = torch.export.load(io.BytesIO(content)).module()
        return [output.numpy() for output in module(torch.from_numpy(images))]


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide what exporters print for their developers; errors are still raised."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
