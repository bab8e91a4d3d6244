"""Head files of earlier versions, in today's layout."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from hoarfrost.heads.specs import parse_head

# What version 2, which had one training for each seed, meant where a head's name does not state it.
DEFAULTS_OF_VERSION_2: Mapping[str, Any] = {
    "transform": "none",
    "members": 1,
    "lr": 1e-3,
    "weight_decay": 1.0,
    "dropout": 0.0,
}


def member_prefix(member: int) -> str:
    """Return how the names of a member's tensors begin."""
    return f"member{member}."


def upgraded(content: dict[str, Any], tensors: Mapping[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return a file of version 2 in the layout of version 3.

    Its seeds shared the standardisation. The first seed's tensors had no prefix.
    """
    text, seeds = str(content["head"]), content["seeds"]
    stated = {option.partition("=")[0].strip() for option in text.split(",")[1:]}
    spec = parse_head(text)
    unstated = DEFAULTS_OF_VERSION_2.keys() & spec.options().keys() - stated
    spec = replace(spec, **{name: DEFAULTS_OF_VERSION_2[name] for name in unstated})
    members = [{"head": spec.full_name, "seed": seed, "fold": 0, "weight": 1 / len(seeds)} for seed in seeds]
    found = {
        name: tensor for name, tensor in tensors.items() if name.startswith(("novelty.", "conformal.", "distances."))
    }
    for i, seed in enumerate(seeds):
        layers = f"seed{seed}.1." if i else "1."
        for name, tensor in tensors.items():
            if name.startswith("0."):
                found[f"{member_prefix(i)}{name}"] = tensor
            elif name.startswith(layers):
                found[f"{member_prefix(i)}1.{name.removeprefix(layers)}"] = tensor
    return {**content, "members": members}, found
