"""What is installed: a wheel and an sdist that work, and a lock that holds what is asked for."""

import configparser
import os
import re
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.commands import ROOT

LOCK = ROOT / "requirements.lock"


def asked_for(*extras: str) -> list[Requirement]:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    texts = [setup["options"]["install_requires"], *(setup["options.extras_require"][extra] for extra in extras)]
    return [Requirement(line) for text in texts for line in text.split("\n") if line.strip()]


def test_lock_holds_a_version_of_all_that_is_asked_for() -> None:
    pinned = re.findall(r"^([A-Za-z0-9._-]+)==([^ ;\\]+)", LOCK.read_text(encoding="utf-8"), re.MULTILINE)
    locked: dict[str, set[str]] = {}
    for name, version in pinned:
        locked.setdefault(canonicalize_name(name), set()).add(version)
    for requirement in asked_for("dev"):
        versions = locked.get(canonicalize_name(requirement.name), set())
        assert versions, f"{requirement.name} is not locked: run make lock"
        assert any(requirement.specifier.contains(v, prereleases=True) for v in versions), requirement


def test_lock_names_no_index() -> None:
    assert "://" not in LOCK.read_text(encoding="utf-8")


def built(folder: Path) -> tuple[Path, Path]:
    """Build an sdist, and a wheel from that sdist alone."""
    code = "import sys; from setuptools import build_meta as b; print(b.build_sdist(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", code, str(folder)], cwd=ROOT, check=True, capture_output=True, timeout=120)
    (sdist,) = folder.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder / "unpacked", filter="data")
    (source,) = (folder / "unpacked").iterdir()
    code = code.replace("build_sdist", "build_wheel")
    subprocess.run([sys.executable, "-c", code, str(folder)], cwd=source, check=True, capture_output=True, timeout=120)
    (wheel,) = folder.glob("*.whl")
    return sdist, wheel


@pytest.mark.slow
def test_wheel_made_from_the_sdist_works_where_the_sources_are_not(tmp_path: Path) -> None:
    pytest.importorskip("setuptools")
    sdist, wheel = built(tmp_path)
    names = zipfile.ZipFile(wheel).namelist()
    suffixes = {".py", ".j2", ".js", ".typed"}
    files = {
        str(Path(installed, path.relative_to(ROOT / folder)))
        for folder, installed in (("features", "hoarfrost/features"), ("pipeline", "hoarfrost"))
        for path in (ROOT / folder).rglob("*")
        if path.suffix in suffixes
    }
    assert len(files) > 200
    assert files == {name for name in names if Path(name).suffix in suffixes}
    assert not any(name.startswith("tests/") for name in names)
    check = [sys.executable, "-m", "twine", "check", "--strict", str(sdist), str(wheel)]
    done = subprocess.run(check, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout
    assert sdist.stat().st_size < 2_000_000
    assert wheel.stat().st_size < 1_000_000
    environment = tmp_path / "venv"
    venv.create(environment, with_pip=True)
    python = environment / "bin" / "python"
    command = [python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", str(wheel)]
    alone = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run(command, check=True, capture_output=True, timeout=120, cwd=tmp_path, env=alone)
    # The libraries of this environment, without its editable hoarfrost: only hooks in a .pth of its own would bring that.
    (packages,) = environment.glob("lib/python*/site-packages")
    libraries = next(path for path in sys.path if path.endswith("site-packages"))
    (packages / "libraries.pth").write_text(f"{libraries}\n", encoding="utf-8")
    hoarfrost = environment / "bin" / "hoarfrost"
    for name in ("features", "pipeline", "hoarfrost_notes"):  # a user's own, beside the notebook
        (tmp_path / f"{name}.py").write_text("raise ImportError('not yours')\n", encoding="utf-8")
    (tmp_path / "cli").mkdir()
    for arguments in (
        ["demo", "phantoms", "--images", "60"],
        ["extract", "phantoms", "--cache", "c.h5", "--weights", "random:0"],
        ["train", "--cache", "c.h5", "--run", "run", "--positive", "malignant", "--head", "linear", "--epochs", "2"],
        ["report", "--run", "run", "--no-map"],
    ):
        done = subprocess.run(
            [hoarfrost, *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=200, env=alone
        )
        assert done.returncode == 0, done.stderr
    code = """
import hoarfrost
data = hoarfrost.load_data("c.h5", positive=["malignant"])
print(hoarfrost.__file__, hoarfrost.open_predictor("run").predict(data.X).probabilities.shape[0] == len(data.paths))
"""
    where = subprocess.run([python, "-c", code], cwd=tmp_path, capture_output=True, text=True, env=alone, check=True)
    assert where.stdout.split() == [str(packages / "hoarfrost" / "__init__.py"), "True"]
    module = [python, "-m", "hoarfrost", "--version"]
    done = subprocess.run(module, cwd=tmp_path, capture_output=True, text=True, env=alone, check=True)
    assert done.stdout.startswith("hoarfrost, version ")
    assert (tmp_path / "run" / "report.html").stat().st_size > 100_000
