"""What a GPU would be asked to do, seen without one: kernels, copies from the host, and a CUDA graph's repetition."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

FUSED = torch.ops.aten._fused_adamw_.tensor_lr


def is_view(op: Any) -> bool:
    """Return whether an operation only looks at memory in another way: it starts no kernel."""
    aliases = [returned.alias_info for returned in op._schema.returns]
    return op.namespace == "prim" or any(alias is not None and not alias.is_write for alias in aliases)


class Launches(TorchDispatchMode):
    """Counts kernels by their operation, and copies to another device; "meta" stands for the GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels: Counter[str] = Counter()
        self.copies: list[str] = []

    def __torch_dispatch__(
        self, op: Any, _: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if not is_view(op):
            self.kernels[str(op)] += 1
        is_on_meta = any(isinstance(one, torch.Tensor) and one.is_meta for one in tree_leaves(args))
        if op is FUSED and is_on_meta:  # torch has no stand-in for it there
            return None
        found = op(*args, **(kwargs or {}))
        devices = {one.device for one in tree_leaves((args, found)) if isinstance(one, torch.Tensor)}
        if len(devices) > 1:
            self.copies.append(str(op))
        return found


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.recorded: list[tuple[Any, Sequence[Any], Mapping[str, Any], Any]] = []

    def __torch_dispatch__(
        self, op: Any, _: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        found = op(*args, **(kwargs or {}))
        if not is_view(op):
            self.recorded.append((op, args, kwargs or {}, found))
        return found


def recorded(step: Callable[[], None]) -> Callable[[], None]:
    """Return what repeats a step's operations on the same memory, as a CUDA graph does; Python is not asked again.

    Other than a graph's capture, this runs the step, which is the first repetition's.
    """
    recorder, n_repeated = _Recorder(), 0
    with recorder:
        step()

    @torch.no_grad()
    def repeat() -> None:
        nonlocal n_repeated
        n_repeated += 1
        if n_repeated == 1:
            return
        for op, args, kwargs, before in recorder.recorded:
            again = op(*args, **kwargs)
            for old, new in zip(tree_leaves(before), tree_leaves(again), strict=True):
                if isinstance(old, torch.Tensor) and old is not new:
                    old.copy_(new)

    return repeat
