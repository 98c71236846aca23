"""What each layer of a network computes: channels, kernel, and the size of what it reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.utils._pytree import tree_leaves

from slimcli.networks.layers import Layer, layers_of
from slimcli.networks.modes import evaluating
from slimcli.records import LayerShape


def shapes_of(model: nn.Module, input_shape: Sequence[int]) -> dict[str, LayerShape]:
    """The conv and linear layers that one input of `input_shape` (C, H, W) passes, in the order of their first calls."""
    found: dict[str, LayerShape] = {}
    names = {layer: name for name, layer in layers_of(model).items()}

    def note(layer: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        read = next((value for value in (*inputs, *named.values()) if isinstance(value, Tensor)), None)
        if isinstance(layer, Layer) and read is not None:
            found.setdefault(names[layer], _shape_of(layer, read))

    hooks = [layer.register_forward_pre_hook(note, with_kwargs=True) for layer in names]
    reference = next(model.parameters())
    try:
        with evaluating(model), torch.no_grad():
            model(torch.zeros(1, *input_shape, device=reference.device, dtype=reference.dtype))
    finally:
        for hook in hooks:
            hook.remove()
    return found


def constant_layers(model: nn.Module, input_shape: Sequence[int]) -> set[str]:
    """The layers that are called, and give the same whatever the images are: on a table of positions, say (Swin V2)."""
    names: dict[nn.Module, str] = {layer: name for name, layer in layers_of(model).items()}
    moved: dict[str, bool] = {}

    def note(layer: nn.Module, _: Any, output: Any) -> None:
        follows = any(leaf.requires_grad for leaf in tree_leaves(output) if isinstance(leaf, Tensor))
        moved[names[layer]] = moved.get(names[layer], False) or follows

    hooks = [layer.register_forward_hook(note) for layer in names]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    reference = next(model.parameters())
    try:
        for parameter in trained:
            parameter.requires_grad_(False)  # gradients are those of the images alone
        image = torch.zeros(1, *input_shape, device=reference.device, dtype=reference.dtype, requires_grad=True)
        with evaluating(model), torch.enable_grad():
            model(image * 1)
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
        for hook in hooks:
            hook.remove()
    return {name for name, follows in moved.items() if not follows}


def _shape_of(layer: Layer, read: Tensor) -> LayerShape:
    if isinstance(layer, nn.Linear):
        return LayerShape(layer.in_features, layer.out_features, (read[..., 0].numel(),))
    return LayerShape(
        inputs=layer.in_channels,
        outputs=layer.out_channels,
        size=tuple(read.shape[2:]),
        kernel=tuple(layer.kernel_size),
        strides=tuple(layer.stride),
        pads=_pads(layer),
        dilations=tuple(layer.dilation),
        groups=layer.groups,
        transposed=isinstance(layer, _ConvTransposeNd),
    )


def _pads(layer: _ConvNd) -> tuple[int, ...]:
    """As ONNX has them: before each side, then behind each."""
    if layer.padding == "valid":
        return (0,) * (2 * len(layer.kernel_size))
    if layer.padding == "same":
        both = [dilation * (side - 1) for dilation, side in zip(layer.dilation, layer.kernel_size, strict=True)]
        return tuple(total // 2 for total in both) + tuple(total - total // 2 for total in both)
    return (*map(int, layer.padding), *map(int, layer.padding))
