"""The layers that heads are made of, beside torch's own: standardised embeddings, and quadratic forms."""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

Columns = tuple[tuple[int, int], ...]
"""Ranges of an embedding's numbers, first and end; empty for all of them."""

OFFSET = 0.5  # of the quadratic kernel: weighs linear against quadratic terms
# Training images that span the kernel's features. On 2,500 chest X-rays 2,000 classify no better, in four times the time.
MOST_LANDMARKS = 1_000
SMALLEST_LENGTH = 1e-12  # of an embedding; a shorter one is divided by this
SMALLEST_SHARE = 1e-7  # of the largest eigenvalue; smaller ones are rounding errors


@dataclass(frozen=True)
class Basis:
    """The features that a penalised head is linear in.

    Attributes
    ----------
    design : Tensor (n, F)
        Those of the training images: principal components, so its columns are orthogonal and their means zero.
    module : callable
        From weights (F, C) and biases (C,) to the head's module, which maps standardised embeddings (B, D) to logits.
    """

    design: Tensor
    module: Callable[[Tensor, Tensor], nn.Module]


def chosen_columns(x: Tensor, columns: Columns) -> Tensor:
    """Return some of the numbers of embeddings (..., D)."""
    return torch.cat([x[..., first:end] for first, end in columns], -1) if columns else x


def transformed(x: Tensor, transform: str) -> Tensor:
    """Return embeddings (..., D) after a transform, see `hoarfrost.heads.kinds.HeadSpec`."""
    if transform == "sqrt":
        return x.sign() * x.abs().sqrt()
    if transform == "unit":
        return unit_length(x)
    assert transform == "none"
    return x


def unit_length(x: Tensor) -> Tensor:
    """Return each embedding (..., D) scaled to length one; zero stays zero."""
    return x / _lengths(x)


def _lengths(x: Tensor) -> Tensor:
    found: Tensor = x.norm(dim=-1, keepdim=True).clamp(min=SMALLEST_LENGTH)
    return found


def rounded(module: nn.Module) -> nn.Module:
    """Return a copy of a head's member whose weights are rounded to what float16 can hold; a file then stores half the bytes.

    Standardisation is kept as it is. So is a tensor with values beyond float16's range.
    """
    found = copy.deepcopy(module)
    with torch.no_grad():
        for weights in found.parameters():
            halved = weights.half().to(weights.dtype)
            if halved.isfinite().all():
                weights.copy_(halved)
    return found


def cooled(module: nn.Module, temperature: float) -> nn.Module | None:
    """Return a copy of a head's member whose logits are divided by a temperature; None if its last layer is unknown."""
    found = copy.deepcopy(module)
    last = list(found.modules())[-1]
    if not isinstance(last, nn.Linear):
        return None
    with torch.no_grad():
        form = next((one for one in found.modules() if isinstance(one, QuadraticForm)), None)
        for weights in (form or last).parameters():
            weights.div_(temperature)
    return found


class Standardise(nn.Module):
    """Transform embeddings, then scale them to zero mean and unit deviation by training images' figures, kept as buffers.

    `columns` are ranges of the embedding's numbers that are used; by default all.
    """

    def __init__(self, mean: Tensor, std: Tensor, transform: str = "none", columns: Columns = ()) -> None:
        super().__init__()
        self.transform, self.columns = transform, columns
        self.register_buffer("mean", mean)  # (D,)
        self.register_buffer("std", std)  # (D,)

    def forward(self, x: Tensor) -> Tensor:
        """Return standardised embeddings (B, D)."""
        x = transformed(chosen_columns(x, self.columns), self.transform)
        return (x - self.get_buffer("mean")) / self.get_buffer("std")

    def slope(self, x: Tensor) -> Tensor:
        """Return by how much each standardised feature grows per unit of the feature, (B, D), of the chosen columns.

        Square roots bend: theirs is the mean slope between the training mean and the embedding, which is finite at zero.
        Of embeddings scaled to length one it is the slope at this length.
        """
        mean, std = self.get_buffer("mean"), self.get_buffer("std")
        x = chosen_columns(x, self.columns)
        if self.transform == "sqrt":
            root = transformed(x, self.transform)
            # (root - mean) / (root |root| - mean |mean|), where it is not 0 / 0
            same_sign = 1 / (root.abs() + mean.abs()).clamp(min=SMALLEST_LENGTH)
            other_sign = (root - mean).abs() / (root**2 + mean**2).clamp(min=SMALLEST_LENGTH**2)
            return torch.where(root * mean < 0, other_sign, same_sign) / std
        if self.transform == "unit":
            return 1 / _lengths(x) / std
        return (1 / std).expand_as(x)


class QuadraticForm(nn.Module):
    """Logits that are quadratic in the direction of a standardised embedding: u' A u + w' u + b, with |u| = 1."""

    def __init__(self, n_inputs: int, n_classes: int) -> None:
        super().__init__()
        self.products = nn.Parameter(torch.empty(n_classes, n_inputs, n_inputs))
        self.linear = nn.Linear(n_inputs, n_classes)

    def forward(self, z: Tensor) -> Tensor:
        """Return logits (B, C) for standardised embeddings (B, D)."""
        u = unit_length(z)
        quadratic = (u @ self.products * u).sum(-1)  # (C, B)
        logits: Tensor = quadratic.T + self.linear(u)
        return logits


def linear_basis(z: Tensor) -> Basis:
    """Return the principal components of standardised embeddings (n, D)."""
    mean = z.mean(0)
    centred = z - mean
    if 4 * z.shape[0] <= z.shape[1]:  # the same axes in a hundredth of the time
        _, deviations, axes = torch.linalg.svd(centred, full_matrices=False)  # (n,), (n, D)
        rotation = axes[deviations**2 > SMALLEST_SHARE * deviations[:1] ** 2].T
    else:
        _, rotation = _principal(centred.T @ centred)

    def module(weights: Tensor, biases: Tensor) -> nn.Module:
        of_features = rotation @ weights  # (D, C)
        layer = nn.Linear(len(rotation), weights.shape[1], device=z.device, dtype=z.dtype)
        with torch.no_grad():
            layer.weight.copy_(of_features.T)
            layer.bias.copy_(biases - mean @ of_features)
        return nn.Sequential(layer)

    return Basis(centred @ rotation, module)


def quadratic_basis(z: Tensor) -> Basis:
    """Return the principal components of the kernel k(u, v) = (1/2 + u'v)^2 on directions u of embeddings (n, D).

    With up to `MOST_LANDMARKS` images the components are exact. Beyond, evenly spread images span them (Nystroem's
    method, Williams and Seeger 2001). A function sum_i a_i k(u_i, u) is u' A u + w' u + b, so its module holds no image.
    """
    u = unit_length(z)
    n = len(u)
    places = torch.linspace(0, n - 1, min(n, MOST_LANDMARKS), device=u.device).round().long()
    landmarks = u[places]
    columns = (OFFSET + u @ landmarks.T).square_()  # (n, m)
    mean = columns.mean(0)
    if len(places) == n:  # the kernel, centred on both sides, is the Gram matrix; its eigenvectors have sum zero
        values, vectors = _principal(columns - mean - (columns - mean).mean(1, keepdim=True))
        coefficients, design = vectors / values.sqrt(), vectors * values.sqrt()
    else:
        coefficients = _of_landmarks(columns[places], columns - mean)
        design = (columns - mean) @ coefficients

    def module(weights: Tensor, biases: Tensor) -> nn.Module:
        of_landmarks = coefficients @ weights  # (m, C): the numbers a
        with torch.device(z.device):
            form = QuadraticForm(z.shape[1], weights.shape[1]).to(z.dtype)
        with torch.no_grad():
            for number, a in enumerate(of_landmarks.T):
                form.products[number] = (landmarks * a[:, None]).T @ landmarks
            form.linear.weight.copy_((2 * OFFSET * landmarks.T @ of_landmarks).T)
            form.linear.bias.copy_(biases + OFFSET**2 * of_landmarks.sum(0) - mean @ of_landmarks)
        return nn.Sequential(form)

    return Basis(design, module)


def _of_landmarks(kernel: Tensor, columns: Tensor) -> Tensor:
    """Return what multiplies centred columns of a kernel (n, m) to give principal components; its landmarks' is (m, m)."""
    kernel.diagonal().add_(SMALLEST_SHARE * kernel.diagonal().sum())
    factor = torch.linalg.cholesky(kernel)
    half = torch.linalg.solve_triangular(factor, columns.T @ columns, upper=False)
    gram = torch.linalg.solve_triangular(factor, half.T, upper=False)
    found: Tensor = torch.linalg.solve_triangular(factor.T, _principal(gram)[1], upper=True)
    return found


def _principal(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Return the eigenvalues of a Gram matrix (F, F) that are more than rounding errors, and their eigenvectors."""
    values, vectors = torch.linalg.eigh(gram)
    kept = values > SMALLEST_SHARE * values[-1:]
    return values[kept], vectors[:, kept]
