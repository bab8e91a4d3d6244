"""The house: who may import whom. Read from the source, so that an import inside a function counts too."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.commands import ROOT, RunPython

LONGEST_COMMAND = 15  # lines; parse, one call, print
LONGEST_FUNCTION = 45
LONGEST_FILE = 450


FOLDERS = {"features": "hoarfrost.features", "pipeline": "hoarfrost"}  # as setup.py has it


def module_name(path: Path) -> str:
    """Return the name that a file is imported by."""
    folder, *parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join([FOLDERS[folder], *(parts[:-1] if parts[-1] == "__init__" else parts)])


SOURCES = {
    module_name(path): ast.parse(path.read_text(encoding="utf-8"))
    for folder in FOLDERS
    for path in sorted((ROOT / folder).rglob("*.py"))
}


def imports_of(tree: ast.Module) -> Iterator[str]:
    """Return what a module imports, anywhere in it: "package.module", and "package.module.name" for `from` imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide what is imported"
            assert node.module is not None
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


IMPORTS = {module: set(imports_of(tree)) for module, tree in SOURCES.items()}


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def importers_of(package: str) -> set[str]:
    return {module for module, names in IMPORTS.items() if any(within(name, package) for name in names)}


def neighbours(module: str) -> set[str]:
    """Return the modules of the house that a module imports; a package's `__init__` does not count for its own modules."""
    found = {name for name in IMPORTS[module] if name in SOURCES and name != module}
    return {name for name in found if not within(module, name)}


def test_sources_were_found() -> None:
    assert {"hoarfrost.features.cache.reading", "hoarfrost.cli", "hoarfrost.__main__", "hoarfrost"} <= SOURCES.keys()


def test_nothing_is_imported_by_the_name_of_its_folder() -> None:
    assert importers_of("features") | importers_of("pipeline") == set()


def test_root_of_pipeline_has_the_face_and_the_entry_point_alone() -> None:
    assert {path.name for path in (ROOT / "pipeline").glob("*.py")} == {"__init__.py", "__main__.py"}


def test_features_import_nothing_of_stage_two() -> None:
    stage_one = {module for module in SOURCES if within(module, "hoarfrost.features")}
    assert [(one, name) for one in sorted(stage_one) for name in neighbours(one) if name not in stage_one] == []


def test_no_module_imports_itself_through_others() -> None:
    def walk(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join([*path[path.index(module) :], module])
        if module not in done:
            for other in sorted(neighbours(module)):
                walk(other, (*path, module))
            done.add(module)

    done: set[str] = set()
    for module in SOURCES:
        walk(module, ())


@pytest.mark.parametrize(
    ("library", "users"),
    [
        ("click", {"hoarfrost.cli"}),
        ("h5py", {"hoarfrost.features.cache", "hoarfrost.features.exchange.hdf5"}),
        ("pyarrow", {"hoarfrost.features.exchange.parquet"}),
        ("PIL", {"hoarfrost.features.decoding.images", "hoarfrost.features.decoding.pictures"}),
        ("torchvision.io", {"hoarfrost.features.decoding.images"}),
        ("torchvision.models", {"hoarfrost.features.encoder"}),
        ("torchvision", {"hoarfrost.features.encoder"}),
        ("openvino", {"hoarfrost.features.encoder.backbone"}),
        ("onnx", {"hoarfrost.inference.export.formats"}),
        ("onnxruntime", {"hoarfrost.features.encoder.sessions"}),
        ("timm", {"hoarfrost.features.encoder.timm_models"}),
        ("torch.onnx", {"hoarfrost.inference.export.formats"}),
        ("torch.utils.tensorboard", {"hoarfrost.runs.tensorboard"}),
        ("sklearn.metrics", set()),
        ("safetensors", {"hoarfrost.heads.files", "hoarfrost.features.encoder.backbone"}),
        ("pydicom", {"hoarfrost.features.decoding.dicom"}),
        ("gdcm", {"hoarfrost.features.decoding.dicom"}),
        ("ray", {"hoarfrost.features.extraction.cluster"}),
        ("fsspec", {"hoarfrost.features.files"}),
        ("grpc", {"hoarfrost.features.extraction.cluster"}),
        ("fastapi", {"hoarfrost.inference.serve"}),
        ("uvicorn", {"hoarfrost.inference.serve"}),
        ("jinja2", {"hoarfrost.report", "hoarfrost.inference.serve"}),
    ],
)
def test_library_has_its_own_room(library: str, users: set[str]) -> None:
    assert [module for module in importers_of(library) if not any(within(module, user) for user in users)] == []


NO_FILES = (
    *("training", "evaluation", "heads.kinds", "heads.specs", "experiment.splits"),
    *("inference.explain.maps", "inference.explain.drawing", "inference.explain.explainer", "inference.export.model"),
)


@pytest.mark.parametrize("room", [f"hoarfrost.{name}" for name in NO_FILES])
def test_room_that_knows_no_files_imports_nothing_that_does(room: str) -> None:
    knows_files = {
        "pathlib",
        "os",
        "io",
        "csv",
        "h5py",
        "hoarfrost.features.cache",
        "hoarfrost.features.datasets",
        "hoarfrost.runs",
    }
    imported = {name for module, names in IMPORTS.items() if within(module, room) for name in names}
    assert knows_files & imported == set()


def test_training_side_imports_no_module_that_opens_images() -> None:
    def reached(module: str) -> set[str]:
        found, todo = set[str](), [module]
        while todo:
            if (one := todo.pop()) not in found:
                found.add(one)
                todo += neighbours(one)
        return found

    assert {
        "hoarfrost.features.decoding.images",
        "hoarfrost.features.encoder.backbone",
        "hoarfrost.features.datasets",
    } & reached("hoarfrost.experiment.experiment") == set()


@pytest.mark.parametrize("package", ["hoarfrost", "hoarfrost.features", "hoarfrost.cli"])
def test_importing_a_package_loads_no_torch(run_python: RunPython, package: str) -> None:
    code = f"import sys, {package}; print(*({{'torch', 'numpy', 'h5py', 'PIL'}} & set(sys.modules)))"
    assert run_python("-c", code) == (0, "\n", "")


def test_evaluating_predictions_loads_neither_torch_nor_scikit_learn(run_python: RunPython) -> None:
    code = (
        "import sys, hoarfrost.external.predictions; print(*({'torch', 'sklearn', 'scipy.stats'} & set(sys.modules)))"
    )
    assert run_python("-c", code) == (0, "\n", "")


@pytest.mark.parametrize("room", ["evaluation", "inference.predict", "experiment.experiment", "training"])
def test_rooms_start_without_what_takes_long_to_import(run_python: RunPython, room: str) -> None:
    slow = {"torch._dynamo", "torchvision", "scipy.stats", "scipy.optimize", "sklearn"}
    code = f"import sys, hoarfrost.{room}; print(*({slow} & set(sys.modules)))"
    assert run_python("-c", code) == (0, "\n", "")


def test_words_of_numbers_load_neither_the_report_nor_its_templates(run_python: RunPython) -> None:
    code = "import sys, hoarfrost.report.words; print(*({'jinja2', 'hoarfrost.report.page'} & set(sys.modules)))"
    assert run_python("-c", code) == (0, "\n", "")


def cli_commands() -> dict[str, ast.FunctionDef]:
    """Return the functions of the command line that are commands, groups included."""
    modules = [module for module in SOURCES if within(module, "hoarfrost.cli")]
    functions = [node for module in modules for node in SOURCES[module].body if isinstance(node, ast.FunctionDef)]
    return {f.name: f for f in functions if any(is_command(decorator) for decorator in f.decorator_list)}


def is_command(decorator: ast.expr) -> bool:
    function = decorator.func if isinstance(decorator, ast.Call) else decorator
    return isinstance(function, ast.Attribute) and function.attr in {"command", "group"}


def test_commands_were_found() -> None:
    assert {"main", "extract", "train", "report", "explain", "export", "demo"} <= cli_commands().keys()


@pytest.mark.parametrize("name", sorted(cli_commands()))
def test_command_is_at_most_15_lines(name: str) -> None:
    function = cli_commands()[name]
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    n_lines = (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0
    assert n_lines <= LONGEST_COMMAND


@pytest.mark.parametrize("module", sorted(SOURCES))
def test_module_says_what_it_is(module: str) -> None:
    assert ast.get_docstring(SOURCES[module])


@pytest.mark.parametrize("module", sorted(SOURCES))
def test_functions_are_short_enough_to_be_on_one_level_of_thought(module: str) -> None:
    functions = [node for node in ast.walk(SOURCES[module]) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    lengths = {
        f.name: (f.end_lineno or 0) - f.body[ast.get_docstring(f) is not None :][0].lineno + 1
        for f in functions
        if len(f.body) > (ast.get_docstring(f) is not None)
    }
    assert {name: n for name, n in lengths.items() if n > LONGEST_FUNCTION} == {}


def test_no_file_is_longer_than_a_mind_can_hold() -> None:
    files = [path for package in ("features", "pipeline", "tests") for path in (ROOT / package).rglob("*")]
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines())
        for path in files
        if path.suffix in {".py", ".j2", ".js", ".css", ".R"}
    }
    assert {name: n for name, n in lengths.items() if n >= LONGEST_FILE} == {}


def files_on_the_map() -> set[str]:
    """Read the map of the sources: a file belongs to the folder before it on its line, else to that of the lines above."""
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    found, package, folder = set(), "", ""
    for line in page.split("## The house", 1)[1].split("```")[1].splitlines():
        depth = len(line) - len(line.lstrip())
        words = re.findall(r"[\w*]+(?:\.[\w*]+)*\.(?:py|j2|js)\b|(?<![\w/])[\w/]+/(?=\s)", line)
        if depth == 0:
            package, words = line.split("/")[0], []
        if depth == 2:
            folder = ""
        for word in words:
            folder = word if word.endswith("/") else folder
            found |= {str(path.relative_to(ROOT)) for path in (ROOT / package / folder).glob(word) if path.is_file()}
            assert word.endswith("/") or list((ROOT / package / folder).glob(word)), f"{package}/{folder}{word}"
    return found


def test_map_of_the_sources_has_every_file() -> None:
    there = {
        str(path.relative_to(ROOT))
        for package in ("features", "pipeline")
        for path in (ROOT / package).rglob("*")
        if path.suffix in {".py", ".j2", ".js"} and path.name != "__init__.py"
    }
    assert files_on_the_map() == there
