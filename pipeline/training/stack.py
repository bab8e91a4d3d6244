"""Heads of one architecture as stacked tensors: one product for all of them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from hoarfrost.features.errors import TrainingError
from hoarfrost.heads.kinds import HeadSpec, StackedLayer
from hoarfrost.training.batches import seed_of
from hoarfrost.training.dropout import CountedDropout, DrawnDropout

FUSED = {"cpu", "cuda"}  # devices with AdamW in one kernel


@dataclass(frozen=True)
class Member:
    """One head of a stack; `seed` and `fold` identify the group that it shares batches with."""

    spec: HeadSpec
    seed: int
    fold: int


@dataclass(frozen=True)
class _Layer:
    """One layer of all heads of a stack.

    Attributes
    ----------
    first_head : nn.Module
        This layer of the first head. The other heads' layers differ only in their parameters.
    run : StackedLayer or None
        How it runs for all heads; None for `nn.Linear`, whose parameters have the stack's own layout.
    places : range
        Where its parameters are in the stack's list.
    """

    first_head: nn.Module
    run: StackedLayer | None
    places: range


class Stack:
    """G groups of V heads each, all of one architecture, and their AdamW.

    The first linear layer of a group's heads is one product, because they see the same embeddings; deeper
    ones are batched products. `members` is in the order of the heads, group by group.

    Parameters
    ----------
    members : sequence of Member, length G * V
    modules : sequence of nn.Sequential
        Each head with its initial weights, as its kind built it.
    remembers : bool
        Whether `remember` keeps a head's best weights; otherwise its best are its current ones.
    counts : bool
        Whether dropout is drawn for all heads at once, by `CountedDropout`: other masks, far fewer kernels.

    Raises
    ------
    TrainingError
        If a module has a layer that cannot be run for many heads at once.

    Notes
    -----
    torch's AdamW uses one learning rate and weight decay for a tensor, but stacked heads may have their own. Then it
    runs, at rate one and without decay, on tensors that are zero before each step. Afterwards they contain the step's
    direction. Each head shrinks its weights by its own decay, then moves in this direction by its own rate.
    """

    def __init__(
        self,
        members: Sequence[Member],
        modules: Sequence[nn.Sequential],
        n_groups: int,
        *,
        remembers: bool = True,
        counts: bool = False,
    ) -> None:
        self.members = list(members)
        self.n_groups = n_groups
        apart = [_without_dropout(member.spec, module) for member, module in zip(members, modules, strict=True)]
        self._layers: list[_Layer] = []
        self.parameters: list[Tensor] = []  # of each layer; see `_stacked`
        self._decays: list[bool] = []
        self._stack_layers(members[0].spec, [layers for layers, _ in apart])
        self.parameters = [self._stacked(i, value) for i, value in enumerate(self.parameters)]
        self._remembers = remembers
        self.best = [value.clone() for value in self.parameters] if remembers else self.parameters
        like = self.parameters[0]
        self._lr = like.new_tensor([member.spec.lr for member in members])
        self._decay = like.new_tensor([member.spec.weight_decay for member in members])
        self._is_uniform = len({(member.spec.lr, member.spec.weight_decay) for member in members}) == 1
        of_layers = list(zip(*(rates for _, rates in apart), strict=True))  # after each layer, of each head
        seeds = [seed_of(f"dropout {member.seed} {member.spec.name}") for member in members]
        self._drop_out = (CountedDropout if counts else DrawnDropout)(of_layers, seeds, like)
        self._begin()
        self._means, self._squares = ([torch.zeros_like(value) for value in self.parameters] for _ in range(2))
        self._n_steps = [torch.zeros((), device=like.device) for _ in self.parameters]

    def _stack_layers(self, spec: HeadSpec, of_heads: Sequence[Sequence[nn.Module]]) -> None:
        """Stack the parameters of each layer of all heads."""
        rules = spec.stacked_layers()
        for alike in zip(*of_heads, strict=True):
            first = alike[0]
            _check_alike(spec, alike)
            of_layer = [list(layer.parameters()) for layer in alike]
            stacked = [torch.stack([value.detach() for value in values]) for values in zip(*of_layer, strict=True)]
            # Only matrices: a bias near zero does not make a simpler function.
            self._decays += [value.ndim == 3 for value in stacked]
            if type(first) is nn.Linear:  # (M, in, out) and (M, 1, out); AdamW's fused steps need contiguous memory
                stacked = [stacked[0].transpose(1, 2).contiguous(), stacked[1][:, None]]
            places = range(len(self.parameters), len(self.parameters) + len(stacked))
            self._layers.append(_Layer(first, rules.get(type(first)), places))
            self.parameters += stacked

    @property
    def n_heads(self) -> int:
        """G * V."""
        return len(self.members)

    @property
    def n_variants(self) -> int:
        """V."""
        return len(self.members) // self.n_groups

    @property
    def n_activations(self) -> int:
        """Outputs per image of the widest linear layers of all heads."""
        weights = [self.parameters[layer.places[0]] for layer in self._layers if layer.run is None]
        return max(value.numel() // value.shape[1] for value in weights)

    def _begin(self) -> None:
        """Set what is moved by the optimiser: the parameters themselves, or the directions in which they move."""
        for value in self.parameters:
            value.requires_grad_()
        self._moved = self.parameters if self._is_uniform else [torch.zeros_like(value) for value in self.parameters]

    # -- layout: the first linear layer is (G, in, V * out), so that a group is one product; later ones (G * V, ...) ----

    def _stacked(self, i: int, value: Tensor) -> Tensor:
        """Return the i-th parameter, (M, ...), in the layout of the products."""
        if i >= 2:
            return value.contiguous()
        n_in, n_out = value.shape[1:]
        return value.view(self.n_groups, -1, n_in, n_out).permute(0, 2, 1, 3).reshape(self.n_groups, n_in, -1)

    def _by_head(self, i: int, value: Tensor) -> Tensor:
        """Undo `_stacked`: return (M, ...)."""
        if i >= 2:
            return value
        split = value.view(self.n_groups, value.shape[1], self.n_variants, -1)
        return split.permute(0, 2, 1, 3).reshape(self.n_heads, value.shape[1], -1)

    def _scaled(self, i: int, of_heads: Tensor, shape: torch.Size) -> tuple[Tensor, torch.Size]:
        """Shape one number per head so that it multiplies the i-th parameter; also return the shape to view that in."""
        if i >= 2:
            return of_heads.view(-1, *[1] * (len(shape) - 1)), shape
        split = torch.Size((shape[0], shape[1], self.n_variants, shape[2] // self.n_variants))
        return of_heads.view(self.n_groups, 1, self.n_variants, 1), split

    # -- forward and step ---------------------------------------------------------------------------------------------

    def logits(self, x: Tensor, *, sizes: Sequence[int] | None = None) -> Tensor:
        """Compute every head's logits (M, B, C) on its group's standardised embeddings (G, B, D).

        In training, `sizes` is the number of rows of each group that count: dropout is drawn for these.
        """
        y = x
        for number, layer in enumerate(self._layers):
            parameters = [self.parameters[i] for i in layer.places]
            if layer.run is not None:
                y = layer.run(layer.first_head, parameters, y)
            elif layer.places.start:
                y = torch.baddbmm(parameters[1], y, parameters[0])
            else:
                y = self._product_of_groups(y, *parameters)
            if sizes is not None:
                y = self._drop_out(y, number, self._n_steps[0], sizes)
        return y

    def _product_of_groups(self, x: Tensor, weights: Tensor, biases: Tensor) -> Tensor:
        """Compute the first linear layer of all heads, (M, B, out), with one product for each group."""
        y = torch.baddbmm(biases, x, weights)  # (G, B, V * out)
        y = y.view(self.n_groups, x.shape[1], self.n_variants, -1).permute(0, 2, 1, 3)
        return y.reshape(self.n_heads, x.shape[1], -1)

    def step(self, losses: Tensor, rate: float | Tensor) -> None:
        """Take one step of AdamW down each head's loss (M,), at `rate` times its own learning rate.

        On a GPU `rate` may be a tensor (), float32: nothing is copied there, and a CUDA graph reads each step's own.
        """
        gradients = torch.autograd.grad(losses.sum(), self.parameters)
        with torch.no_grad():
            if self._is_uniform:
                spec = self.members[0].spec
                self._move(gradients, rate * spec.lr, spec.weight_decay)
                return
            for direction in self._moved:
                direction.zero_()
            self._move(gradients, 1.0, 0.0)
            lr = rate * self._lr
            for i, (value, direction) in enumerate(zip(self.parameters, self._moved, strict=True)):
                lr_of_values, shape = self._scaled(i, lr, value.shape)
                if self._decays[i]:
                    value.view(shape).mul_(self._scaled(i, 1 - lr * self._decay, value.shape)[0])
                value.view(shape).addcmul_(direction.view(shape), lr_of_values)

    def _move(self, gradients: Sequence[Tensor], lr: float | Tensor, weight_decay: float) -> None:
        """Take AdamW's step. Its function, not its class, which imports torch's compiler: that takes seconds."""
        for decays in (False, True):
            some = [i for i, of_value in enumerate(self._decays) if of_value == decays]
            moved, grads, means, squares = (
                [values[i] for i in some] for values in (self._moved, gradients, self._means, self._squares)
            )
            adamw(
                moved, grads, means, squares, [], [self._n_steps[i] for i in some],
                fused=moved[0].device.type in FUSED, amsgrad=False, beta1=0.9, beta2=0.999, lr=lr,
                weight_decay=weight_decay if decays else 0.0, eps=1e-8, maximize=False,
            )  # fmt: skip

    # -- early stopping -----------------------------------------------------------------------------------------------

    def remember(self, improved: Tensor) -> None:
        """Keep the current weights of some heads, (M,) bool, as their best."""
        with torch.no_grad():
            for i, (best, value) in enumerate(zip(self.best, self.parameters, strict=True)):
                which, shape = self._scaled(i, improved, value.shape)
                best.view(shape).copy_(torch.where(which, value.view(shape), best.view(shape)))

    def best_module(self, head: int, n_inputs: int, n_classes: int) -> nn.Sequential:
        """Return one head with its best weights as a separate module."""
        spec = self.members[head].spec
        with torch.device("meta"):  # no initial values, and no use of torch's random numbers
            module = spec.build(n_inputs, n_classes)
        for stacked, layer in zip(self._layers, _without_dropout(spec, module)[0], strict=True):
            values = dict(stacked.first_head.named_buffers())
            for (name, shaped), i in zip(layer.named_parameters(), stacked.places, strict=True):
                found = self._by_head(i, self.best[i].detach())[head]
                values[name] = (found.T.reshape(shaped.shape) if stacked.run is None else found).clone()
            layer.load_state_dict({name: value.contiguous() for name, value in values.items()}, assign=True)
        return module

    def keep(self, heads: Sequence[int], n_groups: int) -> None:
        """Keep some of the heads, in `n_groups` groups, with their optimiser's moments."""
        old = [self.parameters, self.best, self._means, self._squares]
        chosen = [[self._by_head(i, value.detach())[heads] for i, value in enumerate(values)] for values in old]
        self.members = [self.members[head] for head in heads]
        self._drop_out.keep(heads)
        self._lr, self._decay = self._lr[heads], self._decay[heads]
        self.n_groups = n_groups
        self.parameters, self.best, self._means, self._squares = (
            [self._stacked(i, value) for i, value in enumerate(values)] for values in chosen
        )
        if not self._remembers:
            self.best = self.parameters
        self._begin()


def _without_dropout(spec: HeadSpec, module: nn.Sequential) -> tuple[list[nn.Module], list[float]]:
    """Return a head's layers without dropout, and the dropout rate after each: one stack has heads with and without."""
    layers: list[nn.Module] = []
    rates: list[float] = []
    rules = spec.stacked_layers()
    for layer in module:
        after_linear = any(type(one) is nn.Linear for one in layers)
        if type(layer) is nn.Dropout and after_linear and not rates[-1]:
            rates[-1] = layer.p
            continue
        is_known = (type(layer) is nn.Linear and layer.bias is not None) or type(layer) in rules
        # Before the first linear layer a group's heads share their inputs, so such a layer must be the same for all.
        if not is_known or not (after_linear or type(layer) is nn.Linear or not list(layer.parameters())):
            raise _refused(spec, layer)
        layers.append(layer)
        rates.append(0.0)
    if not any(type(layer) is nn.Linear for layer in layers):
        raise TrainingError(f"{spec.name}: the module has no nn.Linear, so there is nothing to train.")
    return layers, rates


def _check_alike(spec: HeadSpec, layers: Sequence[nn.Module]) -> None:
    """Raise TrainingError if layers of a stack differ in more than their parameters, or have frozen parameters."""
    written, of_first = repr(layers[0]), list(layers[0].buffers())
    for layer in layers:
        buffers = list(layer.buffers())
        shared = len(buffers) == len(of_first) and all(map(torch.equal, buffers, of_first))
        trained = all(value.requires_grad for value in layer.parameters())
        if repr(layer) != written or not (shared and trained):
            raise _refused(spec, layer)


def _refused(spec: HeadSpec, layer: nn.Module) -> TrainingError:
    return TrainingError(
        f"{spec.name}: heads with the layer {layer} cannot be trained together. The head's kind must declare how "
        "(`stacked_layers`), and all heads of one shape must have the same constants."
    )
