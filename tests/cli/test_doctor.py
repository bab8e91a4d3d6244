"""`hoarfrost doctor`: what a machine has, what a missing thing costs, what brings it."""

import configparser
import json
import shlex
import shutil
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from packaging.requirements import Requirement

import hoarfrost.cli.doctor
import hoarfrost.features.cache
import hoarfrost.features.encoder.backbone.compiler
import hoarfrost.features.encoder.backbone.weights
import hoarfrost.features.encoder.precision
from hoarfrost.cli.doctor import COSTS_OF_EXTRAS, Finding, diagnose
from hoarfrost.features.errors import WeightsError
from tests.support.commands import ROOT, Hoarfrost, RunPython


@pytest.fixture(autouse=True)
def no_compiler_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiling two lines takes a second; what it finds is tested in test_compiling."""
    monkeypatch.setattr(hoarfrost.features.encoder.backbone.compiler, "check_compiler", lambda: None)


def found(name: str) -> Finding:
    return next(finding for finding in diagnose().findings if finding.name == name)


def test_everything_is_looked_at_and_nothing_is_broken_here(hoarfrost: Hoarfrost) -> None:
    output = hoarfrost("doctor", "--json")
    document = json.loads(output.stdout)
    names = [finding["name"] for finding in document["findings"]]
    assert output.status == 0
    assert document["sound"] is True
    for name in (
        "Python",
        "libraries",
        "torch",
        "CPUs",
        "AMX",
        "C++ compiler",
        "GPU",
        "ImageNet weights",
        "HDF5",
        "disk",
    ):
        assert name in names


def test_text_tells_what_is_missing_what_it_costs_and_what_brings_it(hoarfrost: Hoarfrost) -> None:
    output = hoarfrost("doctor")
    missing = [finding for finding in diagnose().findings if finding.state == "missing"]
    for finding in missing:
        assert finding.costs in output.stdout
        assert finding.fix in output.stdout
    assert f"0 broken, {len(missing)} missing but optional" in output.stdout


def test_every_extra_for_users_says_what_its_absence_costs() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    assert set(setup["options.extras_require"]) - {"dev", "docs", "fuzz"} == set(COSTS_OF_EXTRAS)


def test_missing_extra_names_the_command_that_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = {"pydicom": "pydicom>=3.0", "surely-absent": "surely-absent>=1"}
    monkeypatch.setattr(hoarfrost.cli.doctor, "_wanted", lambda extra: wanted if extra == "dicom" else {})
    finding = found("extra dicom")
    assert (finding.state, finding.found) == ("missing", "surely-absent not installed")
    assert finding.fix.endswith("pip install 'hoarfrost[dicom]'")


def test_library_that_is_too_old_is_broken(monkeypatch: pytest.MonkeyPatch, hoarfrost: Hoarfrost) -> None:
    monkeypatch.setattr("hoarfrost.cli.doctor._wanted", lambda _: {"numpy": "numpy>=999"})
    output = hoarfrost("doctor")
    assert output.status == 1
    assert "missing or too old: numpy>=999" in output.stdout


def test_package_that_is_not_installed_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(_: str) -> list[str]:
        raise PackageNotFoundError

    monkeypatch.setattr(hoarfrost.cli.doctor, "requires", absent)
    assert found("libraries").state == "missing"


def test_old_python_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hoarfrost.cli.doctor, "OLDEST_PYTHON", (9, 0))
    assert found("Python").state == "broken"


def test_torchvision_of_another_build_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: str) -> None:
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(hoarfrost.cli.doctor.importlib, "import_module", fail)
    finding = found("torch")
    assert finding.state == "broken"
    assert "torchvision::nms" in finding.found


def test_absent_weights_name_file_and_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    finding = found("ImageNet weights")
    assert finding.state == "missing"
    assert "resnet18-f37072fd.pth" in finding.fix
    assert str(tmp_path) in finding.fix


def test_damaged_weights_are_broken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    path = hoarfrost.features.encoder.backbone.weights.imagenet_path()
    path.parent.mkdir(parents=True)
    path.write_bytes(b"half of a file")
    finding = found("ImageNet weights")
    assert finding.state == "broken"
    assert "SHA-256" in finding.found
    with pytest.raises(WeightsError, match="damaged"):
        hoarfrost.features.encoder.backbone.weights.imagenet_is_here()


class Gpu(NamedTuple):
    name: str
    total_memory: int


def test_gpu_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: Gpu("Tesla", 16 * 10**9))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: False)
    monkeypatch.setattr(hoarfrost.features.devices, "gpu_failure", lambda: "")
    assert found("GPU") == Finding("GPU", "ok", "Tesla, 16 GB, float32")


def test_gpu_that_runs_nothing_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(hoarfrost.features.devices, "gpu_failure", lambda: "no kernel image is available")
    finding = found("GPU")
    assert (finding.state, finding.found) == ("broken", "present, but it runs nothing: no kernel image is available")


def test_gpu_that_torch_cannot_use_is_told_from_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert found("GPU").found == "not found" or Path("/dev/nvidia0").exists()
    monkeypatch.setattr(shutil, "which", lambda _: "/usr/bin/nvidia-smi")
    assert "torch cannot use it" in found("GPU").found


@pytest.mark.parametrize(("has", "state"), [(True, "ok"), (False, "missing")])
def test_matrix_units_are_told(monkeypatch: pytest.MonkeyPatch, has: bool, state: str) -> None:
    monkeypatch.setattr(hoarfrost.features.processors, "has_amx", lambda: has)
    assert found("AMX").state == state


@pytest.mark.parametrize(("precision", "words"), [("bfloat16", "in bfloat16 with AVX-512"), ("float32", "in float32")])
def test_what_is_computed_in_without_matrix_units_is_what_extract_chooses(
    monkeypatch: pytest.MonkeyPatch, precision: str, words: str
) -> None:
    monkeypatch.setattr(hoarfrost.features.processors, "has_amx", lambda: False)
    monkeypatch.setattr(hoarfrost.features.encoder.precision, "choose_precision", lambda *_: precision)
    assert f"the encoder computes {words}, slower" in found("AMX").costs


def test_fewer_cpus_than_the_host_has_are_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hoarfrost.features.processors, "usable_cpus", lambda: 1)
    monkeypatch.setattr(hoarfrost.cli.doctor.os, "cpu_count", lambda: 64)
    assert "1 of 64 on this machine" in found("CPUs").found


def test_missing_compiler_is_missing_not_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> None:
        raise hoarfrost.features.encoder.backbone.compiler.CompilerError("no C++ compiler: g++")

    monkeypatch.setattr(hoarfrost.features.encoder.backbone.compiler, "check_compiler", none)
    assert found("C++ compiler").state == "missing"


def test_full_disk_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    usage: Callable[[object], object] = lambda _: shutil._ntuple_diskusage(1, 1, 10**9)  # noqa: E731
    monkeypatch.setattr(shutil, "disk_usage", usage)
    assert found("disk").state == "missing"


def test_look_that_fails_itself_is_a_finding() -> None:
    def _hdf5() -> None:
        raise OSError("libhdf5.so: undefined symbol")

    (finding,) = hoarfrost.cli.doctor._found_by(_hdf5)  # type: ignore[arg-type]
    assert (finding.name, finding.state) == ("hdf5", "broken")
    assert "undefined symbol" in finding.found


def test_without_torch_the_doctor_still_answers(run_python: RunPython) -> None:
    code = "import sys; sys.modules['torch'] = None\nfrom hoarfrost.cli import main\nmain(['doctor'])"
    output = run_python("-c", code)
    assert output.status == 1
    assert "broken" in output.stdout
    assert "Traceback" not in output.stderr
    assert "pip install --force-reinstall torch torchvision" in output.stdout


def test_install_commands_are_for_this_python_and_are_taken_word_by_word() -> None:
    command = shlex.split(hoarfrost.cli.doctor._install("torch>=2.11", "hoarfrost[dicom]", again=True))
    python = Path(sys.executable).name
    assert command == [python, "-m", "pip", "install", "--force-reinstall", "torch>=2.11", "hoarfrost[dicom]"]


def test_whatever_is_broken_what_brings_it_can_be_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pip takes each word as a requirement; hoarfrost itself is brought by its extras alone, for it is installed."""

    def fail(*_: object) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(hoarfrost.cli.doctor, "_is_satisfied", lambda *_: False)
    monkeypatch.setattr(hoarfrost.cli.doctor.importlib, "import_module", fail)
    monkeypatch.setattr(torch.cuda, "is_available", fail)
    monkeypatch.setattr(hoarfrost.features.cache, "write_cache_file", fail)
    fixes = {finding.name: shlex.split(finding.fix) for finding in diagnose().findings if "pip install" in finding.fix}
    assert fixes.keys() >= {"libraries", "torch", "gpu", "hdf5", "extra dicom"}
    for words in fixes.values():
        asked = [Requirement(word) for word in words[4:] if word != "--force-reinstall"]
        assert asked
        assert all(requirement.name != "hoarfrost" or requirement.extras for requirement in asked)
