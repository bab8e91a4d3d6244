"""What this machine has, what each missing thing costs, and how to install it."""

import importlib
import os
import platform
import shlex
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from hoarfrost import __version__
from hoarfrost.features.encoder.registry import DEFAULT
from hoarfrost.features.errors import HoarfrostError

OLDEST_PYTHON = (3, 11)
LITTLE_SPACE = 8 * 10**9  # bytes: an environment with the CUDA build of PyTorch takes 6.8 GB
BYTES_PER_MILLION = 2 * 10**9  # embeddings in float32
LIBRARIES_OF = {"hdf5": ("h5py", "numpy"), **dict.fromkeys(("torch", "gpu", "weights"), ("torch", "torchvision"))}
COSTS_OF_EXTRAS = {
    "dicom": "DICOM files cannot be read",
    "ray": "extraction uses this machine only, and one of its GPUs",
    "remote": "images at URLs (s3://, http://) cannot be read",
    "gs": "images in Google Cloud Storage (gs://) cannot be read",
    "timm": "models of timm cannot be encoders",
    "exchange": "embeddings cannot be imported from Parquet, nor exported to it",
    "onnx": "runs cannot be exported as ONNX, and ONNX files cannot be encoders",
    "serve": "runs cannot be served as a page",
    "openvino": "extract --fast and --precision int8 are not available; on a CPU they at least double the speed",
    "tensorboard": "--tensorboard is not available; the report has the training curves",
}


@dataclass(frozen=True)
class Finding:
    """One check: its state, what was found, what its absence costs, and the way to fix it.

    `state` is "ok", "missing" (optional, or only faster with it) or "broken" (does not work without it).
    """

    name: str
    state: str
    found: str
    costs: str = ""
    fix: str = ""


@dataclass(frozen=True)
class Diagnosis:
    """All findings, in the order in which a new user needs them."""

    version: str
    python: str
    platform: str
    findings: tuple[Finding, ...]

    def document(self) -> dict[str, object]:
        """Return what `doctor --json` prints. A fix keeps its key there: scripts rely on it."""
        findings = [
            {"mend" if key == "fix" else key: value for key, value in asdict(one).items()} for one in self.findings
        ]
        return {**asdict(self), "findings": findings, "sound": self.sound}

    @property
    def sound(self) -> bool:
        """Whether nothing is broken."""
        return all(finding.state != "broken" for finding in self.findings)


def diagnose() -> Diagnosis:
    """Check Python, libraries, processors, compiler, weights, disk and extras. Nothing is downloaded or changed."""
    checks = (_python, _libraries, _torch, _processors, _compiler, _gpu, _weights, _hdf5, _disk, _extras)
    findings = tuple(finding for check in checks for finding in _found_by(check))
    return Diagnosis(__version__, platform.python_version(), platform.platform(), findings)


def _found_by(check: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """Yield the findings of a check; a check that fails is itself a finding."""
    name = check.__name__.strip("_").replace("_", " ")
    try:
        yield from check()
    except Exception as error:  # a broken installation raises nearly anything
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        libraries = LIBRARIES_OF.get(name, ())
        fix = _install(*libraries, again=True) if libraries else f"{_pip()} check shows which packages do not fit"
        yield Finding(name, "broken", reason, "everything that needs it fails", fix)


def _install(*requirements: str, again: bool = False) -> str:
    return f"{_pip()} install {'--force-reinstall ' if again else ''}{shlex.join(requirements)}"


def _pip() -> str:
    return f"{Path(sys.executable).name} -m pip"


def _python() -> Iterator[Finding]:
    found = f"{platform.python_version()} in {sys.prefix}"
    if sys.version_info < OLDEST_PYTHON:
        yield Finding("Python", "broken", found, "hoarfrost needs 3.11 or newer", "install a newer Python")
    else:
        yield Finding("Python", "ok", found)


def _libraries() -> Iterator[Finding]:
    """Check what is installed against what the package requires."""
    wanted = _wanted("")
    if not wanted:
        costs = "its requirements cannot be checked"
        yield Finding("libraries", "missing", "hoarfrost is not installed as a package", costs, "make setup")
        return
    bad = [text for name, text in wanted.items() if not _is_satisfied(name, text)]
    if bad:
        yield Finding("libraries", "broken", f"missing or too old: {', '.join(bad)}", "", _install(*bad))
    else:
        yield Finding("libraries", "ok", f"all {len(wanted)} required libraries")


def _wanted(extra: str) -> dict[str, str]:
    """Return the package's requirements by name: those without an extra, or those of one extra alone."""
    from packaging.requirements import Requirement

    try:
        parsed = [Requirement(text) for text in requires("hoarfrost") or ()]
    except PackageNotFoundError:
        return {}
    with_extra = [r for r in parsed if r.marker is None or r.marker.evaluate({"extra": extra})]
    without = [r for r in parsed if r.marker is None or r.marker.evaluate({"extra": ""})]
    return {r.name: f"{r.name}{r.specifier}" for r in with_extra if not extra or r not in without}


def _is_satisfied(name: str, text: str) -> bool:
    from packaging.requirements import Requirement

    try:
        return Requirement(text).specifier.contains(version(name), prereleases=True)
    except PackageNotFoundError:
        return False


def _torch() -> Iterator[Finding]:
    import torch

    try:
        importlib.import_module("torchvision")  # its wheel must match torch's build
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        found = f"torch {torch.__version__} with torchvision {version('torchvision')}: {reason}"
        yield Finding(
            "torch",
            "broken",
            found,
            "the two versions do not fit each other",
            _install("torch", "torchvision", again=True),
        )
        return
    yield Finding("torch", "ok", f"{torch.__version__}, torchvision {version('torchvision')}")


def _processors() -> Iterator[Finding]:
    from hoarfrost.features.encoder.precision import choose_precision, reason_against_int8
    from hoarfrost.features.processors import has_amx, usable_cpus, usable_memory

    host, mine = os.cpu_count() or 1, usable_cpus()
    of_host = f" of {host} on this machine (limited by affinity or a container quota)" if mine < host else ""
    yield Finding("CPUs", "ok", f"{mine}{of_host}, {usable_memory() / 1e9:.0f} GB of memory")
    if has_amx():
        yield Finding("AMX", "ok", "bfloat16 on matrix units")
        return
    others = "" if reason_against_int8("cpu") else "; extract --fast at least doubles the speed, in 8-bit integers"
    precision = "bfloat16 with AVX-512" if choose_precision("auto", "cpu") == "bfloat16" else "float32"
    costs = f"the encoder computes in {precision}, slower than bfloat16 on matrix units{others}"
    yield Finding("AMX", "missing", "not in this processor", costs, "use a server CPU with AMX, or a GPU")


def _compiler() -> Iterator[Finding]:
    from hoarfrost.features.encoder.backbone.compiler import CompilerError, check_compiler, compiler_path

    try:
        check_compiler()
    except CompilerError as error:
        costs = "the encoder is not compiled: slower in bfloat16 for more than some thousand images"
        yield Finding("C++ compiler", "missing", str(error), costs, "apt install g++, or set CXX")
        return
    yield Finding("C++ compiler", "ok", compiler_path())


def _gpu() -> Iterator[Finding]:
    import torch

    from hoarfrost.features.devices import gpu_failure

    if torch.cuda.is_available() and gpu_failure():
        found = f"present, but it runs nothing: {gpu_failure()}"
        yield Finding(
            "GPU", "broken", found, "extraction runs on the CPU", "free its memory, or install a torch for it"
        )
    elif torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(i)
            bf16 = "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
            yield Finding("GPU", "ok", f"{properties.name}, {properties.total_memory / 1e9:.0f} GB, {bf16}")
    elif torch.backends.mps.is_available():
        yield Finding("GPU", "ok", "Apple GPU, with --device mps")
    elif Path("/dev/nvidia0").exists() or shutil.which("nvidia-smi"):
        built = f"torch is built for CUDA {torch.version.cuda}" if torch.version.cuda else "torch is the build for CPUs"
        fix = "update the driver" if torch.version.cuda else _install("torch", "torchvision", again=True)
        found = f"present, but torch cannot use it; {built}"
        yield Finding("GPU", "missing", found, "extraction runs on the CPU", fix)
    else:
        yield Finding("GPU", "missing", "not found", "extraction runs on the CPU")


def _weights() -> Iterator[Finding]:
    from hoarfrost.features.encoder.backbone.weights import imagenet_is_here, imagenet_path

    published = DEFAULT.published
    assert published is not None
    path = imagenet_path()
    try:
        if imagenet_is_here():
            yield Finding("ImageNet weights", "ok", f"{path}, intact")
            return
    except HoarfrostError as error:
        fix = f"rm {shlex.quote(str(path))}"
        yield Finding("ImageNet weights", "broken", str(error), "--weights imagenet fails", fix)
        return
    costs = f"the first extraction downloads {published.megabytes} MB; without a network it fails"
    fix = f"nothing to do with a network; otherwise copy {path.name} from {published.url} to {path.parent}"
    yield Finding("ImageNet weights", "missing", "not on this machine yet", costs, fix)


def _hdf5() -> Iterator[Finding]:
    import numpy as np

    from hoarfrost.features.cache import Block, CacheFile, Header, hdf5_version, write_cache_file
    from hoarfrost.features.fingerprint import Fingerprint

    keys, embeddings = np.zeros((1, 32), np.uint8), np.zeros((1, DEFAULT.dim), np.float32)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "probe.h5"
        header = Header(Fingerprint(DEFAULT.name, "", {}, "float32"), DEFAULT.dim, "random:0")
        write_cache_file(path, header, 1, [Block(keys, embeddings)], [])
        with CacheFile(path) as file:
            file.embeddings()
    yield Finding("HDF5", "ok", f"{hdf5_version()}, a test cache was written and read")


def _disk() -> Iterator[Finding]:
    free = shutil.disk_usage(Path.cwd()).free
    found = f"{free / 1e9:,.0f} GB free here: embeddings of {free / BYTES_PER_MILLION:,.0f} million images"
    if free < LITTLE_SPACE:
        yield Finding(
            "disk", "missing", found, "little space; the embeddings of a million images take 2 GB", "free some space"
        )
    else:
        yield Finding("disk", "ok", found)


def _extras() -> Iterator[Finding]:
    for extra, costs in COSTS_OF_EXTRAS.items():
        wanted = _wanted(extra)
        absent = [name for name, text in wanted.items() if not _is_satisfied(name, text)]
        if absent:
            found, fix = f"{', '.join(absent)} not installed", _install(f"hoarfrost[{extra}]")
            yield Finding(f"extra {extra}", "missing", found, costs, fix)
        elif wanted:
            yield Finding(f"extra {extra}", "ok", ", ".join(f"{name} {version(name)}" for name in wanted))
