"""The drop from internal to external validation: the difference of a figure between two independent cohorts."""

import math

from hoarfrost.evaluation.estimates import Estimate

SQUARE_AND_ADD = "square-and-add"
NO_INTERVAL = "no interval"


def drop_between(internal: Estimate, external: Estimate) -> Estimate:
    """Return the internal figure minus the external one, with the interval of a difference of independent samples.

    Parameters
    ----------
    internal, external : Estimate
        With their 95% intervals. Where patients have several images, these are over patients, and so is the result.

    Returns
    -------
    Estimate
        Without a value where one of the two is undefined, and without an interval where one of them has none. `n` and
        `n_patients` are those of the external cohort.

    Notes
    -----
    The distances from each figure to the limits of its own interval are squared and added (MOVER). The result inherits what
    these intervals are good at: near 1, with few cases and with clusters, where a normal interval of the difference covers
    too rarely. For normal intervals it is the normal interval of the difference.

    References
    ----------
    Zou and Donner (2008), Statistics in Medicine 27(10), 1693-1702. Newcombe (1998), Statistics in Medicine 17(8), 873-890
    (method 10).
    """
    if internal.value is None or external.value is None:
        return Estimate(None, None, None, NO_INTERVAL, external.n, external.n_patients)
    drop = internal.value - external.value
    if internal.interval is None or external.interval is None:
        why = external.why_none or internal.why_none or NO_INTERVAL
        return Estimate(drop, None, None, why, external.n, external.n_patients)
    (low_in, high_in), (low_out, high_out) = internal.interval, external.interval
    below = math.hypot(internal.value - low_in, high_out - external.value)
    above = math.hypot(high_in - internal.value, external.value - low_out)
    return Estimate(drop, drop - below, drop + above, SQUARE_AND_ADD, external.n, external.n_patients)
