"""Heads of one architecture as stacked tensors: one product for all of them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hoarfrost.heads.specs import HeadSpec, build_head
from hoarfrost.training.batches import seed_of


@dataclass(frozen=True)
class Member:
    """One head of a stack; `seed` and `fold` name the group that it shares batches with."""

    spec: HeadSpec
    seed: int
    fold: int


class Stack:
    """G groups of V heads each, all of one architecture, and their AdamW.

    The first layer of a group's heads is one product, for they see the same embeddings; deeper
    layers are batched products. `members` is in the order of the heads, group by group.

    Parameters
    ----------
    members : sequence of Member, length G * V
    modules : sequence of nn.Sequential
        Each head as `build_head` made it: its initial weights.
    n_groups : int

    Notes
    -----
    torch's AdamW gives one learning rate and weight decay to a tensor, but stacked heads have their own. So it
    runs, at rate one and without decay, on tensors that start each step at zero: what they hold then is the step's
    direction, which each head scales by its own rate, after shrinking its weights by its own decay.
    """

    def __init__(self, members: Sequence[Member], modules: Sequence[nn.Sequential], n_groups: int) -> None:
        self.members = list(members)
        self.n_groups = n_groups
        layers = [[layer for layer in module if isinstance(layer, nn.Linear)] for module in modules]
        device, dtype = layers[0][0].weight.device, layers[0][0].weight.dtype
        self.parameters: list[Tensor] = []  # weight and bias of each layer, by turns; see `_stacked`
        for of_layer in zip(*layers, strict=True):
            weights = torch.stack([layer.weight.detach().T for layer in of_layer])  # (M, in, out)
            biases = torch.stack([layer.bias.detach()[None] for layer in of_layer])  # (M, 1, out)
            self.parameters += [weights, biases]
        self.parameters = [self._stacked(i, value) for i, value in enumerate(self.parameters)]
        self.best = [value.clone() for value in self.parameters]
        self._lr = torch.tensor([member.spec.lr for member in members], dtype=dtype, device=device)
        self._decay = torch.tensor([member.spec.weight_decay for member in members], dtype=dtype, device=device)
        self._generators = [_dropout_generator(member, device) for member in members]
        self._optimise()

    @property
    def n_heads(self) -> int:
        """G * V."""
        return len(self.members)

    def _optimise(self) -> None:
        """Make the optimiser of the parameters as they are now."""
        for value in self.parameters:
            value.requires_grad_()
        self._directions = [torch.zeros_like(value) for value in self.parameters]
        fused = self.parameters[0].device.type in {"cpu", "cuda"}
        self._optimizer = torch.optim.AdamW(self._directions, lr=1.0, weight_decay=0.0, fused=fused)

    # -- layout: a first layer is (G, in, V * out), so that a group is one product; a deeper one (G * V, in, out) --

    def _stacked(self, i: int, value: Tensor) -> Tensor:
        """Lay out the i-th parameter, (M, in, out), for the products."""
        if i >= 2:
            return value.contiguous()
        n_in, n_out = value.shape[1:]
        return value.view(self.n_groups, -1, n_in, n_out).permute(0, 2, 1, 3).reshape(self.n_groups, n_in, -1)

    def _by_head(self, i: int, value: Tensor) -> Tensor:
        """Undo `_stacked`: give (M, in, out)."""
        if i >= 2:
            return value
        n_variants = self.n_heads // self.n_groups
        split = value.view(self.n_groups, value.shape[1], n_variants, -1)
        return split.permute(0, 2, 1, 3).reshape(self.n_heads, value.shape[1], -1)

    def _scaled(self, i: int, of_heads: Tensor, shape: torch.Size) -> tuple[Tensor, torch.Size]:
        """Shape one number a head so that it multiplies the i-th parameter, viewed as the shape given back."""
        if i >= 2:
            return of_heads.view(-1, 1, 1), shape
        n_variants = self.n_heads // self.n_groups
        return (
            of_heads.view(self.n_groups, 1, n_variants, 1),
            torch.Size((shape[0], shape[1], n_variants, shape[2] // n_variants)),
        )

    # -- what a head does ---------------------------------------------------------------------------------------------

    def logits(self, x: Tensor, *, sizes: Sequence[int] | None = None) -> Tensor:
        """Give every head's logits (M, B, C) on its group's standardised embeddings (G, B, D).

        In training, `sizes` tells how many rows of each group count: dropout is drawn for these.
        """
        n_variants = self.n_heads // self.n_groups
        y = torch.baddbmm(self.parameters[1], x, self.parameters[0])  # (G, B, V * out)
        y = y.view(self.n_groups, x.shape[1], n_variants, -1).permute(0, 2, 1, 3)
        y = y.reshape(self.n_heads, x.shape[1], -1)  # (M, B, out)
        for i in range(2, len(self.parameters), 2):
            y = self._drop_out(y.relu(), sizes) if sizes is not None else y.relu()
            y = torch.baddbmm(self.parameters[i + 1], y, self.parameters[i])
        return y

    def _drop_out(self, y: Tensor, sizes: Sequence[int]) -> Tensor:
        """Drop activations of the heads that ask for it, each by its own generator: whoever else is there changes nothing."""
        rates = [member.spec.dropout for member in self.members]
        if not any(rates):
            return y
        kept = torch.ones_like(y)
        for head, rate in enumerate(rates):
            if rate:
                size = sizes[head * self.n_groups // self.n_heads]
                drawn = torch.rand((size, y.shape[2]), generator=self._generators[head], device=y.device)
                kept[head, :size] = (drawn >= rate).to(y.dtype) / (1 - rate)
        return y * kept

    def step(self, losses: Tensor, rate: float) -> None:
        """Take one step of AdamW down each head's loss (M,), at `rate` times its own learning rate."""
        gradients = torch.autograd.grad(losses.sum(), self.parameters)
        with torch.no_grad():
            for direction, gradient in zip(self._directions, gradients, strict=True):
                direction.zero_()
                direction.grad = gradient
            self._optimizer.step()
            lr = rate * self._lr
            for i, (value, direction) in enumerate(zip(self.parameters, self._directions, strict=True)):
                lr_of_values, shape = self._scaled(i, lr, value.shape)
                if i % 2 == 0:  # matrices: pulling a bias towards zero is no simpler a function
                    value.view(shape).mul_(self._scaled(i, 1 - lr * self._decay, value.shape)[0])
                value.view(shape).addcmul_(direction.view(shape), lr_of_values)

    # -- early stopping -----------------------------------------------------------------------------------------------

    def remember(self, improved: Tensor) -> None:
        """Keep the present weights of some heads, (M,) bool, as their best."""
        with torch.no_grad():
            for i, (best, value) in enumerate(zip(self.best, self.parameters, strict=True)):
                which, shape = self._scaled(i, improved, value.shape)
                best.view(shape).copy_(torch.where(which, value.view(shape), best.view(shape)))

    def best_module(self, head: int, n_inputs: int, n_classes: int) -> nn.Sequential:
        """Give one head at its best as a module of its own."""
        with torch.device("meta"):  # no initial values, and none of torch's random numbers
            module = build_head(self.members[head].spec, n_inputs, n_classes)
        module = module.to_empty(device=self.best[0].device).to(self.best[0].dtype)
        layers = [layer for layer in module if isinstance(layer, nn.Linear)]
        with torch.no_grad():
            for number, layer in enumerate(layers):
                layer.weight.copy_(self._by_head(2 * number, self.best[2 * number])[head].T)
                layer.bias.copy_(self._by_head(2 * number + 1, self.best[2 * number + 1])[head, 0])
        return module

    def keep(self, heads: Sequence[int], n_groups: int) -> None:
        """Go on with some of the heads, laid out in `n_groups`, moments and all."""
        states = [self._optimizer.state[direction] for direction in self._directions]
        old = [self.parameters, self.best, [s["exp_avg"] for s in states], [s["exp_avg_sq"] for s in states]]
        chosen = [[self._by_head(i, value.detach())[heads] for i, value in enumerate(values)] for values in old]
        self.members = [self.members[head] for head in heads]
        self._generators = [self._generators[head] for head in heads]
        self._lr, self._decay = self._lr[heads], self._decay[heads]
        self.n_groups = n_groups
        self.parameters, self.best, means, squares = (
            [self._stacked(i, value) for i, value in enumerate(values)] for values in chosen
        )
        self._optimise()
        for direction, state, mean, square in zip(self._directions, states, means, squares, strict=True):
            self._optimizer.state[direction] = {"step": state["step"], "exp_avg": mean, "exp_avg_sq": square}


def _dropout_generator(member: Member, device: torch.device) -> torch.Generator:
    return torch.Generator(device).manual_seed(seed_of(f"dropout {member.seed} {member.spec.name}"))
