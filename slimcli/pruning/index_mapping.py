"""Where channels go at a reshape and at a concatenation, by the sizes that the forward pass really had.

torch-pruning infers the width of a tensor from the layers around it, which fails where a reshape lies beside a concatenation.
Autograd knows the shape of every result.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Container, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

from torch import nn

LEAVING, ENTERING = range(2)
"""The two mappings of a dependency, in the order in which data passes: out of a split, into a reshape or a concatenation."""


_CHANNELS_LAST = nn.Linear, nn.LayerNorm, nn.MultiheadAttention
"""Layers whose channels are the last axis of what they give; of all others they are the first behind the images."""


class _Read:
    """A mapping by sizes that were read, as against one that torch-pruning inferred."""


@dataclass(frozen=True)
class Flattened(_Read):
    """An axis of `width` channels with `before` positions in front of it and `after` behind, flattened into one."""

    before: int
    width: int
    after: int

    def __call__(self, indices: Sequence[Any]) -> list[Any]:
        """For each channel all its places in the flat axis."""
        places = [(row * self.width * self.after, column) for row in range(self.before) for column in range(self.after)]
        return [each._replace(idx=row + each.idx * self.after + column) for each in indices for row, column in places]


@dataclass(frozen=True)
class Unflattened(_Read):
    """The way back: of each place in the flat axis its channel."""

    width: int
    after: int

    def __call__(self, indices: Sequence[Any]) -> list[Any]:
        """For each place its channel, once."""
        return list(dict.fromkeys(each._replace(idx=each.idx // self.after % self.width) for each in indices))


@dataclass(frozen=True)
class Shifted(_Read):
    """Channels of a part of a concatenation, which begins at `start`."""

    start: int

    def __call__(self, indices: Sequence[Any]) -> list[Any]:
        """For each channel of the part its place."""
        return [each._replace(idx=each.idx + self.start) for each in indices]


@dataclass(frozen=True)
class Cut(_Read):
    """The way back: of the places in a concatenation those of one part, `start` to `end`."""

    start: int
    end: int

    def __call__(self, indices: Sequence[Any]) -> list[Any]:
        """For each place within the part its channel."""
        return [each._replace(idx=each.idx - self.start) for each in indices if self.start <= each.idx < self.end]


def correct(graph: Any, layers: Container[Any]) -> dict[Any, list[int]]:
    """Set the mappings of reshapes to (images, channels), of splits and of concatenations, where it is certain which axis is that
    of the channels.

    `graph` is torch-pruning's; `layers` are the network's modules, as against those that stand for an operation. Returns the
    nodes that split channels, and how many each of their parts has.
    """
    cut: dict[Any, list[int]] = {}
    nodes = [node for node in graph.module2node.values() if node.inputs]
    for operations, correct_one in _CORRECTIONS.items():
        for node in nodes:
            if _operation(node.grad_fn) in operations:
                with suppress(AttributeError):  # what this torch does not keep
                    if (axis := _axis_before(node, layers)) is not None:
                        parts = correct_one(node, axis)
                        if parts:
                            cut[node] = parts
    return cut


def _operation(function: Any) -> str:
    """What autograd calls a step of torch's own; empty for a user's."""
    found = re.fullmatch(r"(\w+)Backward\d+", function.name()) if hasattr(function, "name") else None
    return found[1] if found else ""


def _axis_before(node: Any, layers: Container[Any]) -> int | None:
    """Which axis of a node's first input is that of its channels, where that is certain."""
    passed: dict[Any, None] = {}
    while node.inputs and node.inputs[0] not in passed:
        node = node.inputs[0]
        passed[node] = None
        if node.module in layers and not isinstance(node.module, nn.PReLU):
            break
    else:
        return None
    of_layer, *steps = reversed(passed)
    axis = len(_shape(of_layer.grad_fn)) - 1 if isinstance(of_layer.module, _CHANNELS_LAST) else 1
    for function in (step.grad_fn for step in steps):
        axes, operation = list(range(len(_shape(function)))), _operation(function)
        if operation == "Permute":
            axis = [each % len(axes) for each in map(_signed, function._saved_dims)].index(axis)
        elif operation == "Transpose":
            one, other = (_signed(each) % len(axes) for each in (function._saved_dim0, function._saved_dim1))
            axes[one], axes[other] = axes[other], axes[one]
            axis = axes[axis]
        elif len(axes) == 2:
            axis = 1
        elif len(axes) != len(_shape(*next(each for each in function.next_functions if each[0] is not None))):
            return None
    return axis


def _correct_reshape(node: Any, axis: int) -> None:
    shape, flat = _shape(*node.grad_fn.next_functions[0]), _shape(node.grad_fn)
    if len(flat) == 2 < len(shape) and shape[0] == flat[0]:
        width, behind = shape[axis], math.prod(shape[axis + 1 :])
        _set(node.inputs[0], node, (Flattened(math.prod(shape[1:axis]), width, behind), Unflattened(width, behind)), ENTERING)


def _correct_concatenation(node: Any, axis: int) -> None:
    shape = _shape(node.grad_fn)
    widths = [None if function is None else _shape(function, index)[axis] for function, index in node.grad_fn.next_functions]
    known = [width for width in widths if width is not None]
    if _signed(node.grad_fn._saved_dim) % len(shape) != axis:
        for part in node.inputs:
            _unset(node, part, ENTERING)
        return
    if len(known) != len(node.inputs) or len(widths) - len(known) > 1 or not node.enable_index_mapping:
        return
    rest = shape[axis] - sum(known)  # of what comes from no layer: the images themselves
    spans = pairwise(accumulate((rest if width is None else width for width in widths), initial=0))
    of_layers = [span for span, width in zip(spans, widths, strict=True) if width is not None]
    for part, (start, end) in zip(node.inputs, of_layers, strict=True):
        _set(part, node, (Shifted(start), Cut(start, end)), ENTERING)


def _correct_split(node: Any, axis: int) -> list[int]:
    """Returns how many channels each part has; of a split along another axis nothing."""
    shapes = [tuple(map(int, each.shape)) for each in node.grad_fn._input_metadata]
    if _signed(node.grad_fn._saved_dim) % len(shapes[0]) != axis or not node.enable_index_mapping:
        for reader in node.outputs:
            _unset(node, reader, LEAVING)
        return []
    parts = [shape[axis] for shape in shapes]
    spans = list(pairwise(accumulate(parts, initial=0)))
    for reader in dict.fromkeys(node.outputs):
        for function, index in reader.grad_fn.next_functions:
            if function is node.grad_fn:
                start, end = spans[index]
                _set(node, reader, (Cut(start, end), Shifted(start)), LEAVING)
    return parts


_CORRECTIONS: dict[tuple[str, ...], Callable[[Any, int], list[int] | None]] = {
    ("View", "UnsafeView", "ReshapeAlias"): _correct_reshape,
    ("Cat",): _correct_concatenation,
    ("Split", "SplitWithSizes"): _correct_split,
}
"""By how autograd names these operations."""


def _signed(axis: int) -> int:
    """Autograd keeps -1 as 2**64 - 1."""
    return axis - 2**64 if axis >= 2**63 else axis


def _shape(function: Any, output: int = 0) -> tuple[int, ...]:
    """Of a result of this step of the forward pass."""
    return tuple(map(int, function._input_metadata[output].shape))


def _set(source: Any, target: Any, mappings: tuple[Any, Any], place: int) -> None:
    """Of one way from the source to the target that has none of ours yet: there, and back."""
    for one, other, mapping in ((source, target, mappings[0]), (target, source, mappings[1])):
        ways = [dependency.index_mapping for dependency in one.dependencies if dependency.target is other]
        for way in ways:
            if not isinstance(way[place], _Read):
                way[place] = mapping
                if isinstance(mapping, Flattened | Unflattened):
                    way[LEAVING] = None  # where torch-pruning keeps it
                break


def _unset(one: Any, other: Any, place: int) -> None:
    """Leave the channels between the two where they are."""
    for source, target in ((one, other), (other, one)):
        for dependency in source.dependencies:
            if dependency.target is target:
                dependency.index_mapping[place] = None
