"""Which layer reads what another one wrote: in the data flow, not in the order of definition."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from slimcli.errors import ArchError
from slimcli.networks.layers import layers_of
from slimcli.networks.modes import evaluating, same_random_numbers
from slimcli.pruning.graph import cannot_run

OUTPUT = ""
"""Stands for what the network gives, among the names of its layers."""


def consecutive(model: nn.Module, input_shape: Sequence[int]) -> dict[str, tuple[str, ...]]:
    """For each conv and linear layer that reads another one's output: those it reads with no such layer in between.

    A layer that reads itself, called again, is left out. Raises `ArchError` for a network in which no layer reads another one,
    and for one that does not take such an image.
    """
    sources, layers = sources_of(model, input_shape), layers_of(model)
    others = {name: sources.get(name, set()) - {name} for name in layers}
    writers = {name: tuple(each for each in layers if each in others[name]) for name in layers if others[name]}
    if not writers:
        raise ArchError(
            "no layer of the network reads another one, so no information flows between layers",
            "use --stop epochs, accuracy or plateau",
        )
    return writers


def sources_of(model: nn.Module, input_shape: Sequence[int]) -> dict[str, set[str]]:
    """For each conv and linear layer that is called, and for `OUTPUT`: the layers whose outputs it reads, directly or through
    what is no such layer.

    Found by following what autograd recorded of one image, call by call. Through a join (addition, concatenation) every branch
    counts, and a shortcut that copies a stream leads back to what wrote it: in a residual stage a block reads all that wrote the
    stream before it. Raises `ArchError` for a network that does not take such an image.
    """
    wrote: dict[Any, str] = {}
    read: dict[str, list[Any]] = {}

    def watch(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], dict[str, Tensor], Tensor], None]:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...], named: dict[str, Tensor], output: Tensor) -> None:
            read.setdefault(name, []).append((*inputs, *named.values())[0].grad_fn)
            wrote[output.grad_fn] = name

        return hook

    layers, like = layers_of(model), next(model.parameters())
    handles = [layer.register_forward_hook(watch(name), with_kwargs=True) for name, layer in layers.items()]
    image = torch.zeros(1, *input_shape, device=like.device, dtype=like.dtype, requires_grad=True)
    try:
        with same_random_numbers(model), evaluating(model), torch.enable_grad():
            outputs = model(image)
    except Exception as error:
        raise cannot_run(input_shape, error) from error
    finally:
        for handle in handles:
            handle.remove()
    read[OUTPUT] = [leaf.grad_fn for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)]
    return {name: {writer for call in calls for writer in _written(call, wrote)} for name, calls in read.items()}


def _written(record: Any, wrote: Mapping[Any, str]) -> set[str]:
    """The layers that wrote what came to be this autograd record, none of them behind another."""
    found, seen, ahead = set(), set(), [record]
    while ahead:
        node = ahead.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node in wrote:
            found.add(wrote[node])
        else:
            ahead.extend(earlier for earlier, _ in node.next_functions)
    return found
