"""Tensors by their names into networks, and back: what fits, what is missing, what is left over."""

from __future__ import annotations

import difflib
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from slimcli.errors import CheckpointError

_MOST_KEYS = 40
"""How many keys of a kind are listed where a state dict does not fit."""


def at_rest(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors on the CPU and contiguous: the very ones where they are so, else copies."""
    own = {key: value.detach().cpu().contiguous() for key, value in state_dict.items()}
    # A file holds whole storages: of a tensor that is a part of one, the rest would go along.
    return {key: value if value.untyped_storage().nbytes() == value.nbytes else value.clone() for key, value in own.items()}


def restore(network: nn.Module, state: Mapping[str, Tensor], strict: bool = True) -> Any:
    """Load the tensors as ones that this version of the network's code gave; what `load_state_dict` returns.

    A plain dict does not hold the versions of the network's modules, which some (MNASNet) cannot be loaded without.
    """
    versioned = OrderedDict(state)
    versioned._metadata = network.state_dict()._metadata  # type: ignore[attr-defined]
    return network.load_state_dict(versioned, strict=strict)


def fit(network: nn.Module, state: dict[str, Tensor], complaint: str) -> None:
    """Load the tensors; `CheckpointError`, which begins with the complaint, where keys, shapes or values are wrong."""
    missing, surplus, shapes = load(network, state)
    check_keys(missing, surplus, shapes, complaint)
    if not all(bool(value.isfinite().all()) for value in state.values() if value.is_floating_point()):
        bad = next(k for k, v in state.items() if v.is_floating_point() and not bool(v.isfinite().all()))
        raise CheckpointError(f"{complaint}: {bad} holds values that are not finite", "use an earlier checkpoint")


def load(network: nn.Module, state: dict[str, Tensor]) -> tuple[list[str], list[str], list[str]]:
    """Load what fits; the keys that are missing, those that are surplus, and those of another shape with both shapes."""
    expected = network.state_dict()
    state = without_wrapper(state, expected)
    fitting = {key: value for key, value in state.items() if key in expected and value.shape == expected[key].shape}
    # Loading fills in what published checkpoints lack (batch counters, shortcut selections): ask it what is missing.
    try:
        loaded = network.load_state_dict(fitting, strict=False)
    except ValueError:
        loaded = restore(network, fitting, strict=False)
    missing = [key for key in loaded.missing_keys if key not in state]
    surplus = [key for key in state if key not in expected]
    shapes = [
        f"{key} is {tuple(value.shape)} and should be {tuple(expected[key].shape)}"
        for key, value in state.items()
        if key in expected and key not in fitting
    ]
    return missing, surplus, shapes


def check_keys(missing: list[str], surplus: list[str], shapes: list[str], complaint: str) -> None:
    """Raise `CheckpointError` where any are named, all of them, with the nearest of those that are there."""
    nearest = {key: difflib.get_close_matches(key, surplus, n=1, cutoff=0.8) for key in missing}
    missing = [f"{key} (is it {near[0]}?)" if near else key for key, near in nearest.items()]
    faults = [
        f"{what}: {', '.join(keys[:_MOST_KEYS])}{f' and {len(keys) - _MOST_KEYS} more' if len(keys) > _MOST_KEYS else ''}"
        for what, keys in (("missing", missing), ("surplus", surplus), ("of another shape", shapes))
        if keys
    ]
    if faults:
        raise CheckpointError(f"{complaint}: {'; '.join(faults)}", "name the network that these weights belong to with --arch")


def without_wrapper(state: dict[str, Tensor], expected: Mapping[str, Any]) -> dict[str, Tensor]:
    """The state dict as the network's own, where it was saved as part of another module (`model.conv1.weight`)."""
    if state.keys() & expected.keys() or len({key.partition(".")[0] for key in state}) != 1:
        return state
    inner = {key.partition(".")[2]: value for key, value in state.items()}
    return inner if inner.keys() & expected.keys() else state
