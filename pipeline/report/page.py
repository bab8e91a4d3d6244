"""From a run to the page: the facts of the report and their order. The templates define the looks."""

import base64
import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from hoarfrost.evaluation import Metric, ShownIn
from hoarfrost.evaluation.leakage import Leakage
from hoarfrost.evaluation.metrics import ROC_AUC
from hoarfrost.report.checklists import Item, checklists_of
from hoarfrost.report.cohort import Data, data_of
from hoarfrost.report.covariates import CovariatesSection, covariate_figures, covariates_section
from hoarfrost.report.evaluation import Evaluation, evaluation_of
from hoarfrost.report.explore import (
    Cell,
    Explorer,
    PointRow,
    confusion_of,
    explorer_of,
    point_methods,
    point_rows,
    promises,
)
from hoarfrost.report.external import ExternalSection, external_section
from hoarfrost.report.figures import Figure, Forest, precision_figure, roc_figure, training_figures
from hoarfrost.report.first import Caution, Tile, grave_warnings, task_of, tiles, warnings_of
from hoarfrost.report.look import look_of
from hoarfrost.report.methods import methods_of
from hoarfrost.report.planning import needs_text
from hoarfrost.report.provenance import Fact, provenance_of
from hoarfrost.report.scrutiny import Scrutiny, scrutiny_of, sites_forest
from hoarfrost.report.simulated import OF_CALIBRATION, OF_FOLDS, OF_SCORES, OF_SHARES, simulated
from hoarfrost.report.stability import StabilitySection, stability_figures, stability_of
from hoarfrost.report.svg import CellScale, Drawing, cell_scale, draw
from hoarfrost.report.templates import template_environment
from hoarfrost.report.trust import (
    CalibrationPanel,
    SubgroupSection,
    calibrations,
    decision_figures,
    held_by_sets,
    shared_rows,
    subgroup_forest,
    subgroup_section,
)
from hoarfrost.report.variants import (
    N_DRAWN,
    N_IN_TABLE,
    LabelScores,
    LearningRow,
    ScoreRow,
    VariantRow,
    area_methods,
    areas_forest,
    class_metrics,
    compared_metrics,
    label_scores,
    learning_figure,
    learning_rows,
    ranked,
    score_rows,
    variant_rows,
)
from hoarfrost.report.views import ViewsSection, views_section
from hoarfrost.runs import (
    CrossValidation,
    HeadResult,
    Run,
    RunConfig,
    Suspects,
    together_text,
)

if TYPE_CHECKING:
    from hoarfrost.inference.explain import Explainer


@dataclass(frozen=True)
class Page:
    """All that the templates show. `heads` begins with the selected one; the others descend by validation ROC AUC."""

    task: str
    grave: tuple[Caution, ...]
    cautions: tuple[Caution, ...]
    config: RunConfig
    evaluation: Evaluation
    selected: HeadResult
    tiles: tuple[Tile, ...]
    data: Data
    explorer: Explorer
    points: tuple[PointRow, ...]
    point_methods: tuple[str, ...]
    promises: tuple[str, ...]
    coverage: Mapping[str, str]
    confusion: tuple[tuple[str, tuple[Cell, ...]], ...]
    labels: tuple[LabelScores, ...]
    class_metrics: tuple[Metric, ...]
    scores: tuple[ScoreRow, ...]
    heads: tuple[HeadResult, ...]
    variants: tuple[VariantRow, ...]
    metrics: tuple[Metric, ...]
    n_more_variants: int
    area_methods: str
    scale: CellScale
    cross_validation: CrossValidation | None
    learning: tuple[LearningRow, ...]
    stability: StabilitySection | None
    covariates: CovariatesSection | None
    needs: str
    views: ViewsSection
    leakage: Leakage | None
    together: str
    shared: tuple[tuple[str, str, str], ...]
    calibrations: tuple[CalibrationPanel, ...]
    held_by_sets: tuple[str, ...]
    subgroups: SubgroupSection
    suspects: Suspects | None
    provenance: Mapping[str, tuple[Fact, ...]]
    methods: str
    checklists: Mapping[str, tuple[Item, ...]]
    external: ExternalSection | None
    scrutiny: Scrutiny


@dataclass(frozen=True)
class Figures:
    """All figures of a run, in the units of the data; None, or empty, if the run does not have them."""

    roc: Figure
    precision: Figure
    areas: Forest
    learning: Figure | None
    stability: tuple[Figure, ...]
    covariates: tuple[Figure, ...]
    training: Mapping[str, Figure]
    calibration: tuple[Figure, ...]
    decision: tuple[Figure, ...]
    subgroups: Forest | None
    sites: Forest | None


def render(
    run: Run, *, with_images: bool = True, with_map: bool = True, explainer: "Explainer | None" = None,
    images_from: Collection[str] = (),
) -> str:  # fmt: skip
    """Write a run's report as HTML.

    Parameters
    ----------
    run : Run
    with_images : bool
        False omits all pixels.
    with_map : bool
        False omits the map of the embeddings.
    explainer : Explainer, optional
        Of the selected head, for maps of the errors.
    images_from : collection of str
        Folders and hosts that images may be read from, besides the dataset's own folder.

    Returns
    -------
    str
        A whole document, with its style, figures and script inside.
    """
    environment = template_environment()
    page, figures = page_of(run), figures_of(run)
    script = environment.get_template("script.js.j2").render()
    return environment.get_template("template.html.j2").render(
        vars(page),
        references=run.references,
        drawings=_drawings(figures),
        look=look_of(run, with_images=with_images, with_map=with_map, explainer=explainer, images_from=images_from),
        script=Markup(script),
        script_hash=_digest(script),
    )


def _digest(script: str) -> str:
    """Return the hash by which the page's policy allows its script: a browser runs no other."""
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def page_of(run: Run) -> Page:
    """Collect the facts of a run's report.

    Parameters
    ----------
    run : Run

    Returns
    -------
    Page
    """
    evaluation, heads = evaluation_of(run), ranked(run)
    overall, variants = evaluation.scores(heads[0]).value(ROC_AUC), variant_rows(run, evaluation)
    return Page(
        task=task_of(evaluation.classes, run.config.dataset),
        grave=grave_warnings(run, evaluation),
        cautions=warnings_of(run, evaluation),
        config=run.config,
        evaluation=evaluation,
        selected=heads[0],
        tiles=tiles(run, evaluation),
        data=data_of(run),
        explorer=explorer_of(run, evaluation),
        points=point_rows(run.assessment, run.scale_of(run.selected)),
        point_methods=point_methods(run.assessment),
        promises=promises(run.assessment),
        coverage=_coverage(run, evaluation),
        confusion=() if evaluation.is_binary else confusion_of(run.selected, evaluation),
        labels=label_scores(heads[0], evaluation),
        class_metrics=class_metrics(),
        scores=score_rows(heads[0], evaluation),
        heads=heads,
        variants=variants,
        metrics=compared_metrics(run, evaluation, ShownIn.WIDE),
        n_more_variants=max(0, len(heads) - N_IN_TABLE),
        area_methods=area_methods(run, evaluation),
        scale=cell_scale((row.area for row in variants), overall),
        cross_validation=run.cross_validation,
        learning=learning_rows(run.learning_curve),
        stability=stability_of(run),
        covariates=covariates_section(run, evaluation),
        needs=needs_text(run, evaluation),
        views=views_section(run),
        leakage=run.leakage,
        together="" if run.leakage is None else together_text(run.leakage),
        shared=shared_rows(run),
        calibrations=calibrations(run, evaluation),
        held_by_sets=held_by_sets(run, evaluation),
        subgroups=subgroup_section(run.assessment, overall),
        suspects=run.suspects,
        provenance=provenance_of(run.config),
        methods=methods_of(run, evaluation),
        checklists=checklists_of(run, evaluation) if run.external is None else {},
        external=external_section(run, evaluation),
        scrutiny=scrutiny_of(run, evaluation),
    )


def _coverage(run: Run, evaluation: Evaluation) -> dict[str, str]:
    """Return what simulations showed of the intervals of operating points, scores, folds and calibration."""
    scores, folds = score_rows(run.head(run.selected), evaluation), run.cross_validation
    fits = (
        []
        if run.assessment is None
        else [run.assessment.calibration, *(one.calibration for one in run.assessment.classes)]
    )
    found = [one.before for one in fits if one is not None]
    of_calibration = ["error"] if any(one.error_interval is not None for one in found) else []
    of_calibration += ["curve"] if any(one.curve is not None and one.curve.p for one in found) else []
    return {
        "points": simulated(point_methods(run.assessment), OF_SHARES, evaluation),
        "scores": simulated((row.method for row in scores), OF_SCORES, evaluation),
        "folds": "" if folds is None else simulated([folds.whole.pooled.auc.method], OF_FOLDS, evaluation),
        "calibration": simulated(of_calibration, OF_CALIBRATION, evaluation),
    }


def figures_of(run: Run) -> Figures:
    """Describe all figures of a run.

    Parameters
    ----------
    run : Run

    Returns
    -------
    Figures
        With the curves of at most twenty heads; all are in the table.
    """
    evaluation, heads = evaluation_of(run), ranked(run)[:N_DRAWN]
    explorer = explorer_of(run, evaluation)
    first_seed = [epoch for epoch in run.history if epoch.seed == run.config.seed]
    return Figures(
        roc=roc_figure(heads, evaluation, explorer.roc_spot),
        precision=precision_figure(heads, evaluation, explorer.precision_spot),
        areas=areas_forest(run, evaluation),
        learning=learning_figure(run, evaluation),
        stability=stability_figures(run),
        covariates=covariate_figures(run),
        training=training_figures(heads, first_seed),
        calibration=tuple(one.figure for one in calibrations(run, evaluation)),
        decision=decision_figures(run),
        subgroups=subgroup_forest(run, evaluation),
        sites=sites_forest(run),
    )


def _drawings(figures: Figures) -> dict[str, Any]:
    def figure(found: Figure, height: float) -> Drawing:
        return draw(found, panel_height=height)

    return {
        "roc": figure(figures.roc, 294),
        "precision": figure(figures.precision, 294),
        "learning": None if figures.learning is None else figure(figures.learning, 180),
        "stability": tuple(figure(found, 220) for found in figures.stability),
        "covariates": tuple(figure(found, 220) for found in figures.covariates),
        "training": tuple((name, figure(found, 90)) for name, found in figures.training.items()),
        "calibration": tuple(figure(found, 220) for found in figures.calibration),
        "decision": tuple(figure(found, 220) for found in figures.decision),
    }
