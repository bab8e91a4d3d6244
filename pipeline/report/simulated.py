"""How often intervals contained the truth in simulations, where that is not 93 to 97%. docs/statistics.md has the tables."""

from collections.abc import Iterable

from hoarfrost.evaluation.intervals import DELONG, LINEARISED, NADEAU, NEWCOMBE, n_of_rarest
from hoarfrost.evaluation.shares import BOOTSTRAP
from hoarfrost.report.evaluation import Evaluation

FEWEST_SAMPLES, FEWEST_CASES = 60, 10
"""Of the simulated datasets: samples, and patients (or samples) of the rarer class."""

OF_AREAS = {
    DELONG: "DeLong's and Newcombe's, as they are chosen here, 92 to 100%, lowest with a rare class",
    NEWCOMBE: "DeLong's and Newcombe's, as they are chosen here, 92 to 100%, lowest with a rare class",
    BOOTSTRAP: "the bootstrap over patients 90 to 96%, lowest with 10 positive patients",
}
OF_SHARES = {BOOTSTRAP: "the bootstrap over patients 92 to 97%"}
OF_SCORES = {LINEARISED: "the delta method 94 to 99%, highest for F1, loss and Brier score"}
OF_FOLDS = {NADEAU: "those of pooled predictions 95 to 100%"}
OF_GAINS = {
    "": "those of differences on a test split 93 to 99%, highest where images add nothing",
    NADEAU: "those of differences in folds 97 to 100%",
}
OF_CALIBRATION = {
    "error": "that of the calibration error 91 to 99%",
    "curve": "those of the smooth curve 93 to 98%, of ICI, E50 and E90 93 to 100%",
}


def simulated(methods: Iterable[str], known: dict[str, str], evaluation: Evaluation) -> str:
    """Return a sentence on the coverage of the intervals of some methods.

    It is empty if all are within 93 to 97%. For smaller sets than those that were simulated, it says so.
    """
    names = list(methods)
    found = dict.fromkeys(text for method, text in known.items() if any(method in name for name in names))
    n_cases = n_of_rarest(evaluation.y_true, len(evaluation.classes), evaluation.patients)
    if found and (len(evaluation.y_true) < FEWEST_SAMPLES or n_cases < FEWEST_CASES):
        return "How often these 95% intervals cover the truth is not known here: they were simulated with larger sets."
    return f"Coverage of these 95% intervals in simulations: {'; '.join(found)}." if found else ""
