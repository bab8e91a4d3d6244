"""Heads with an L2 penalty, fitted to convergence: all C of one fold at once, in float64."""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from hoarfrost.features.errors import TrainingError
from hoarfrost.heads.config import TrainingConfig
from hoarfrost.heads.kinds import Penalised
from hoarfrost.heads.layers import Standardise
from hoarfrost.training.objective import Objective, SingleLabel
from hoarfrost.training.records import Material, TrainedHead
from hoarfrost.training.rows import Rows

logger = logging.getLogger(__name__)

MOST_ROWS = 20_000  # of a fold's training rows: beyond, time and memory grow, and hardly the accuracy
FEWEST_ROWS = 1_000  # however small the memory limit is
FEWEST_OF_A_LABEL = 10  # rows that are drawn of each class, or with and without each label, whatever their share
SHARE_OF_HELD = 8  # a solution takes this many times the memory of its float32 embeddings
TOLERANCE = 1e-6  # of the gradient, see `solve`
MOST_ITERATIONS = 3_000


def fit_penalised(
    specs: Sequence[Penalised], material: Material, fold: int, config: TrainingConfig
) -> list[TrainedHead | TrainingError]:
    """Fit heads that differ in C alone on one fold; return each, or the error of one whose solution is not finite.

    Embeddings are standardised by all training rows; the heads are fitted on at most `MOST_ROWS` of them. The loss has
    no label smoothing, whatever the configuration has: see `problem_of`.
    """
    started = time.monotonic()
    x, standardise = material.x, material.standardise[fold]
    most = min(MOST_ROWS, max(FEWEST_ROWS, x.most_held // SHARE_OF_HELD))
    y = material.y.cpu()
    train = stratified(y.numpy(), material.folds[fold].train, most, config.seed)
    problem = problem_of(material.objective, y[torch.from_numpy(train)], balanced=config.class_weight == "balanced").to(
        x.device
    )
    z = _standardised(x, train, standardise)
    if not z.isfinite().all():
        return [_not_finite(spec) for spec in specs]
    basis = specs[0].basis(z)
    weights, biases, converged = solve(basis.design, problem, [_number(spec.C) for spec in specs])
    found: list[TrainedHead | TrainingError] = []
    seconds = (time.monotonic() - started) / len(specs)
    for spec, of_spec, bias, is_converged in zip(specs, weights, biases, converged.tolist(), strict=True):
        if not is_converged:
            logger.warning("%s: not converged after %d iterations", spec.name, MOST_ITERATIONS)
        head = basis.module(*_for_each_class(of_spec, bias, material.objective.n_outputs)).to(x.dtype)
        if all(value.isfinite().all() for value in head.parameters()):
            module = nn.Sequential(standardise, head).eval()
            found.append(TrainedHead(spec, config.seed, fold, module, (), 0, seconds))
        else:
            found.append(_not_finite(spec))
    return found


def _number(value: float | None) -> float:
    assert value is not None, "the C of each head that is trained is a number"
    return value


def _not_finite(spec: Penalised) -> TrainingError:
    return TrainingError(f"{spec.name}: the solution is not a finite number. Lower C (C=), or check the embeddings.")


def _standardised(x: Rows, rows: npt.NDArray[np.int64], standardise: Standardise) -> Tensor:
    """Return standardised embeddings (m, D) float64."""
    mean, std = standardise.get_buffer("mean").double(), standardise.get_buffer("std").double()
    z = torch.empty((len(rows), x.n_features), dtype=torch.float64, device=x.device)
    for places, part in x.blocks(rows):
        z[torch.from_numpy(places).to(x.device)] = (part.double() - mean) / std
    return z


def _for_each_class(weights: Tensor, bias: Tensor, n_classes: int) -> tuple[Tensor, Tensor]:
    """Return weights (F, C) and biases (C,) of each logit: where two classes have one, half of it and minus half of it."""
    if weights.shape[1] == n_classes:
        return weights, bias
    signs = weights.new_tensor([-0.5, 0.5])
    return weights * signs, bias * signs


def stratified(y: npt.NDArray[np.int64], rows: npt.NDArray[np.int64], most: int, seed: int) -> npt.NDArray[np.int64]:
    """Return at most about `most` of some rows, ascending: each class, or combination of labels, in its share.

    Of a class, or of images with or without a label, `FEWEST_OF_A_LABEL` are drawn at least, if there are so many.
    """
    if len(rows) <= most:
        return np.sort(rows)
    shuffled = np.random.default_rng(seed).permutation(rows)
    columns = y[shuffled].reshape(len(rows), -1).T
    by_label = np.lexsort(columns)  # stable, so random among images of the same labels
    evenly = by_label[np.linspace(0, len(rows) - 1, most).round().astype(np.int64)]
    few = [np.flatnonzero(column == value)[:FEWEST_OF_A_LABEL] for column in columns for value in np.unique(column)]
    return np.sort(shuffled[np.unique(np.concatenate([evenly, *few]))])


@dataclass(frozen=True)
class Problem:
    """The loss of each image as a function of its logits (n, K): softmax over K, or K sigmoids.

    Attributes
    ----------
    weights : Tensor (n, K) or (n, 1)
        Of each image, or of each label of it: the loss of logit 0 grows as fast.
    targets : Tensor (n, K)
        `weights` times the probabilities that are to be predicted.
    is_softmax : bool
    """

    weights: Tensor
    targets: Tensor
    is_softmax: bool

    def to(self, device: torch.device) -> "Problem":
        """Return the problem with its tensors on a device."""
        return replace(self, weights=self.weights.to(device), targets=self.targets.to(device))

    def slopes(self, logits: Tensor) -> Tensor:
        """Return the derivatives of the loss by logits (n, V, K)."""
        predicted = logits.softmax(2) if self.is_softmax else logits.sigmoid()
        return predicted.mul_(self.weights[:, None]).sub_(self.targets[:, None])

    @property
    def curvatures(self) -> Tensor:
        """The largest second derivatives, (K,) or (1,): Boehning's 1/2 for softmax, 1/4 for sigmoids."""
        most: Tensor = self.weights.amax(0)
        return most * (0.5 if self.is_softmax else 0.25)


def problem_of(objective: Objective, y: Tensor, *, balanced: bool) -> Problem:
    """Return the loss without label smoothing: converged on true labels, probabilities are calibrated as they are.

    Two classes have one logit, the difference of theirs, as in scikit-learn.
    """
    targets, _ = objective.loss_weights(y, balanced=balanced, smoothing=0.0)  # (n, K)
    if isinstance(objective, SingleLabel) and objective.n_outputs > 2:
        return Problem(targets.sum(1, keepdim=True), targets, is_softmax=True)
    if isinstance(objective, SingleLabel):
        against, towards = targets[:, :1], targets[:, 1:]
    else:
        towards, against = targets.chunk(2, dim=1)
    return Problem(towards + against, towards, is_softmax=False)


def solve(design: Tensor, problem: Problem, inverse_penalties: Sequence[float]) -> tuple[Tensor, Tensor, Tensor]:
    """Minimise C times the sum of losses plus half of the squared weights, for each of V values of C.

    Parameters
    ----------
    design : Tensor (n, F) float64
        Columns are orthogonal and have mean zero.
    problem : Problem
        K logits.
    inverse_penalties : sequence of float, length V
        C.

    Returns
    -------
    (Tensor (V, F, K), Tensor (V, K), Tensor (V,) bool)
        Weights, intercepts, which are not penalised, and whether each has converged.

    Notes
    -----
    Gradient steps, scaled by an upper limit of the curvature in each direction, with Nesterov's momentum that starts
    again when it points uphill. As the columns are orthogonal, the limit is diagonal. A solution has converged when the
    root mean square change of an image's logit that one plain step would make is below `TOLERANCE`, up to the penalty.

    References
    ----------
    Boehning (1992), Multinomial logistic regression algorithm, Annals of the Institute of Statistical Mathematics 44(1).
    O'Donoghue and Candes (2015), Adaptive restart for accelerated gradient schemes, Foundations of Computational
    Mathematics 15(3).
    """
    n, n_features = design.shape
    n_values, n_logits = len(inverse_penalties), problem.targets.shape[1]
    penalty = 1 / design.new_tensor(inverse_penalties)
    # The intercept is one more feature: a column of ones, orthogonal to the others.
    penalties = penalty.expand(n_features + 1, -1).clone()[..., None]  # (F + 1, V, 1)
    penalties[-1] = 0
    squares = torch.cat([design.square().sum(0), design.new_full((1,), n)])
    limits = squares[:, None, None] * problem.curvatures + penalties  # (F + 1, V, K)
    found = design.new_zeros((n_features + 1, n_values, n_logits))
    active = torch.arange(n_values, device=design.device)
    state = _State(found.clone(), found.clone(), design.new_ones(n_values, 1), penalties, limits)
    for _ in range(MOST_ITERATIONS):
        ahead = state.ahead
        logits = torch.addmm(ahead[-1].flatten(), design, ahead[:-1].flatten(1)).view(n, -1, n_logits)
        slopes = problem.slopes(logits)
        gradient = torch.cat([design.T @ slopes.flatten(1), slopes.sum(0).view(1, -1)]).view_as(ahead)
        state, size = state.stepped(gradient)
        found[:, active] = state.current
        going = size > n * TOLERANCE**2  # a solution that is not a number stops here too
        if not going.all():
            active, state = active[going], state.only(going)
            if not len(active):
                break
    converged = torch.ones(n_values, dtype=torch.bool)
    converged[active.cpu()] = False
    return found[:-1].permute(1, 0, 2), found[-1], converged


@dataclass(frozen=True)
class _State:
    """Where several minimisations are: current points, points ahead by their momentum, and its measure, (V, 1)."""

    current: Tensor
    ahead: Tensor
    momentum: Tensor
    penalties: Tensor
    limits: Tensor

    def stepped(self, gradient: Tensor) -> "tuple[_State, Tensor]":
        """Return the state after a step down the loss's gradient, and the step's size (V,) in the limits' norm."""
        step = (gradient + self.penalties * self.ahead) / self.limits
        current = self.ahead - step
        moved = current - self.current
        uphill = (step * moved * self.limits).sum((0, 2), keepdim=True)[0] > 0
        before = torch.where(uphill, torch.ones_like(self.momentum), self.momentum)
        momentum = (1 + (1 + 4 * before**2).sqrt()) / 2
        ahead = current + moved * ((before - 1) / momentum)
        size = (step.square() * self.limits).sum((0, 2))
        return _State(current, ahead, momentum, self.penalties, self.limits), size

    def only(self, kept: Tensor) -> "_State":
        """Return the state of some of the minimisations, (V,) bool."""
        columns = (self.current, self.ahead, self.penalties, self.limits)
        current, ahead, penalties, limits = (value[:, kept] for value in columns)
        return _State(current, ahead, self.momentum[kept], penalties, limits)
