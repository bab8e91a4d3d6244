"""What a run's report has for a paper: its figures and tables by name."""

from collections.abc import Mapping
from typing import Any

from pipeline.report.figures import Figure, roc_figure, training_figures
from pipeline.report.files import Table, Value
from pipeline.report.page import Page, page_of
from pipeline.runs import Run

SCORES = ("roc_auc", "accuracy", "loss")


def figures_of(run: Run) -> dict[str, Figure]:
    """Describe the figures of a run's report.

    Parameters
    ----------
    run : Run

    Returns
    -------
    dict of name -> Figure
        "roc", and "training HEAD" of each head.
    """
    page = page_of(run)
    first_seed = [epoch for epoch in run.history if epoch.seed == run.config.seed]
    training = training_figures(page.heads, first_seed)
    return {"roc": roc_figure(page.heads, page.evaluation)} | {
        f"training {name}": one for name, one in training.items()
    }


def tables_of(run: Run) -> dict[str, Table]:
    """Give the tables of a run's report, with all digits.

    Parameters
    ----------
    run : Run

    Returns
    -------
    dict of name -> Table
        "heads", "comparisons" and "counts".
    """
    page = page_of(run)
    return {"heads": _heads(page), "comparisons": _comparisons(run), "counts": _counts(page)}


def _heads(page: Page) -> Table:
    splits = ("val", "test") if page.evaluation.split == "test" else ("val",)
    columns = tuple(
        f"{split}_{score}" for split in splits for score in ("roc_auc", "roc_auc_low", "roc_auc_high", *SCORES[1:])
    )
    rows: list[tuple[Value, ...]] = []
    for head in page.heads:
        about = (head.n_parameters, head.best_epoch, head.epochs, head.learning_rate, head.weight_decay, head.dropout)
        of_splits = _scores(head.val) + (_scores(head.test) if head.test is not None else ())
        rows.append((head.name, "yes" if head is page.selected else "no", *about, *of_splits))
    for reference in page.references:
        of_splits = _scores(reference.val) + (_scores(reference.test) if reference.test is not None else ())
        rows.append((reference.name, "reference", *(None,) * 6, *of_splits))
    about_columns = ("parameters", "best_epoch", "epochs", "learning_rate", "weight_decay", "dropout")
    return Table(("head", "selected", *about_columns, *columns), tuple(rows))


def _scores(scores: Mapping[str, Any]) -> tuple[Value, ...]:
    return (scores["roc_auc"], *scores["roc_auc_ci95"], *(scores[name] for name in SCORES[1:]))


def _comparisons(run: Run) -> Table:
    columns = ("head", "compared_to", "difference", "low", "high", "p", "p_holm", "reason")
    rows = tuple(
        (one.name, run.selected, one.difference, one.low, one.high, one.p, one.p_holm, one.reason)
        for one in run.comparisons
    )
    return Table(columns, rows)


def _counts(page: Page) -> Table:
    total, n_all = page.counts.total
    rows: list[tuple[Value, ...]] = [(label, *numbers, n) for label, numbers, n in page.counts.rows]
    return Table(("label", *page.counts.splits, "all"), (*rows, ("all", *total, n_all)))
