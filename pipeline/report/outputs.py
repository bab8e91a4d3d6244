"""What `hoarfrost report` writes: the page of a run, its figures and tables as files, or several runs side by side."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hoarfrost.features.errors import RunError
from hoarfrost.features.files.whole import file_identity, whole_file
from hoarfrost.report.page import render
from hoarfrost.runs import REPORT, Run, read_heads, read_looked_at, read_run, record_look, to_json

if TYPE_CHECKING:
    from hoarfrost.inference.explain import Explainer
    from hoarfrost.report.compare import SideBySide


@dataclass(frozen=True)
class Reported:
    """What was written."""

    report: Path
    figures: tuple[Path, ...] = ()

    def document(self) -> dict[str, Any]:
        """Return what `report --json` prints."""
        document: dict[str, Any] = {"report": str(self.report)}
        return document | ({"figures": [str(path) for path in self.figures]} if self.figures else {})

    def text(self) -> str:
        """Return what `report` prints."""
        lines = [f"report {self.report}"]
        if self.figures:
            lines.append(f"figures and tables: {len(self.figures)} files in {self.figures[0].parent}")
        return "\n".join(lines)


def report_runs(
    directories: Sequence[Path],
    *,
    output: Path | None = None,
    figures: Path | None = None,
    with_images: bool = True,
    with_map: bool = True,
    with_explanations: bool = False,
    weights: str | None = None,
    images_from: Collection[str] = (),
) -> Reported:
    """Write the report of a run, or of several side by side; as `write_report`.

    Parameters
    ----------
    directories : sequence of Path
        The run folders that `hoarfrost train` wrote.
    output : Path, optional
        The path of the page; required with several runs.
    figures : Path, optional
        A folder for each figure as SVG, PDF and PNG, and each table as CSV; only with one run.

    Raises
    ------
    RunError
        As `write_report`; or if a run is named twice.
    ValueError
        With several runs and no `output`, or with `figures`.
    """
    if len(directories) == 1:
        report = write_report(
            directories[0], output=output, with_images=with_images, with_map=with_map,
            with_explanations=with_explanations, weights=weights, images_from=images_from,
        )  # fmt: skip
        return Reported(report, _write_figures(read_run(directories[0]), figures) if figures is not None else ())
    if output is None or figures is not None:
        raise ValueError("several runs need an output, and have no figures")
    from hoarfrost.report.compare import render_comparison

    page = render_comparison(_side_by_side(directories, "report", lambda _: None))
    return Reported(_write_page(output, page))


def report_pooled(files: Sequence[Path], output: Path) -> Reported:
    """Write the page of sites that shared aggregates, see `hoarfrost.report.pooled.pool`; raise RunError as it does."""
    from hoarfrost.report.pooled import pool, render_pooled

    return Reported(_write_page(output, render_pooled(pool(files))))


@dataclass(frozen=True)
class Compared:
    """Runs side by side, and the page on them, if one was written."""

    found: "SideBySide"
    report: Path | None

    def document(self) -> dict[str, Any]:
        """Return what `compare --json` prints."""
        runs = [
            {
                "name": one.name,
                "run": str(one.run.directory),
                "head": one.head.name,
                "encoder": one.encoder,
                "roc_auc": to_json(one.area),
                **vars(one.cost),
            }
            for one in self.found.columns
        ]
        tests = [{**to_json(one.result), "verdict": one.verdict} for one in self.found.tests]
        unit = {"compared_with": self.found.columns[0].name, "scored": self.found.unit}
        return {"runs": runs, **unit, "tests": tests} | ({} if self.report is None else {"report": str(self.report)})


def compare_runs(directories: Sequence[Path], *, output: Path | None = None) -> Compared:
    """Compare the selected heads of runs on the same test images, each with the first, and write a page if wanted.

    Raises
    ------
    RunError
        As `side_by_side` and `require_tests`; or if the page cannot be written.
    """
    from hoarfrost.report.compare import render_comparison, require_tests

    found = _side_by_side(directories, "compare", require_tests)
    return Compared(found, None if output is None else _write_page(output, render_comparison(found)))


def _side_by_side(directories: Sequence[Path], command: str, check: "Callable[[SideBySide], None]") -> "SideBySide":
    """Return runs side by side, and count that as a look at each locked test split. What is refused shows no score."""
    from hoarfrost.report.compare import side_by_side

    found = side_by_side([read_run(directory, before_look=True) for directory in directories])
    check(found)
    looks = [record_look(directory, command) for directory in directories]
    if not any(looks):
        return found
    return side_by_side([read_run(directory) for directory in directories])


def write_report(
    directory: Path,
    *,
    output: Path | None = None,
    with_images: bool = True,
    with_map: bool = True,
    with_explanations: bool = False,
    weights: str | None = None,
    images_from: Collection[str] = (),
) -> Path:
    """Write the report of a run, by default into its folder.

    Parameters
    ----------
    directory : Path
        The run folder that `hoarfrost train` wrote. A report can be written again at any time.
    output : Path, optional
        Another path for the report.
    with_images : bool
        False omits all pixels.
    with_map : bool
        False omits the map of the embeddings.
    with_explanations : bool
        Show the errors with maps of the parts that speak for and against a class; this runs the encoder on them.
    weights : str, optional
        The present path of the encoder's weights, if they have moved; for explanations only.
    images_from : collection of str
        Folders and hosts that images may be read from, besides the dataset's own folder: a cache may come from others.

    Returns
    -------
    Path
        `directory / "report.html"`, or `output`: complete, or untouched where this function raises.

    Raises
    ------
    RunError
        If `directory` is not a readable run, or the report cannot be written there.
    WeightsError, FingerprintMismatchError
        With explanations, if the weights are not available or have changed.

    Notes
    -----
    The report depends only on the run, its cache and its images: on one machine the same give the same bytes.
    """
    explainer = _explainer(directory, weights) if with_explanations else None
    identity = file_identity(directory / "config.json")
    page = render(
        read_looked_at(directory, "report"),
        with_images=with_images,
        with_map=with_map,
        explainer=explainer,
        images_from=images_from,
    )
    return _write_page(output, page) if output is not None else _write_into_run(directory, identity, page)


def _write_into_run(directory: Path, identity: tuple[int, ...], page: str) -> Path:
    def check_same() -> None:
        if file_identity(directory / "config.json") != identity:
            raise RunError(
                f"{directory} was replaced while its report was being written, so the report of the earlier run was not "
                "written. Run `hoarfrost report` again."
            )

    return _write_page(directory / REPORT, page, check_same)


def _explainer(directory: Path, weights: str | None) -> "Explainer":
    """Load the selected head and its encoder, which takes seconds."""
    from hoarfrost.inference.explain import open_explainer
    from hoarfrost.inference.predict import run_head

    return open_explainer(run_head(read_heads(directory)), weights=weights)


def _write_figures(run: Run, directory: Path) -> tuple[Path, ...]:
    from hoarfrost.report.files import write_figures
    from hoarfrost.report.paper import named_figures, tables_of

    if (directory / "config.json").exists():
        raise RunError(
            f"--figures {directory} is a run folder, which `train` replaces as a whole. Name another folder."
        )
    return write_figures(directory, named_figures(run), tables_of(run))


def _write_page(path: Path, page: str, check: Callable[[], None] = lambda: None) -> Path:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as file:
            file.write(page.encode("utf-8", "replace"))
            check()
    except OSError as error:
        raise RunError(
            f"{path}: the report cannot be written: {error}. Free disk space, fix the folder's permissions, or name "
            "another path with --output, then run `hoarfrost report` again."
        ) from error
    return path
