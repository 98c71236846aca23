"""Giving a network's layers the widths that a state dict has: the shape of a slim network is read off its tensors."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from slimcli.networks.layers import by_filter, filters, layers_of
from slimcli.networks.shortcut import ChannelPad


def take(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Give every layer the widths of its tensors in the state dict (only where kind and kernel agree)."""
    for name, module in network.named_modules():
        if isinstance(module, ChannelPad):
            selects = state.get(f"{name}.selects")
            if selects is not None and selects.ndim == 2 and len(selects):
                module.adopt(selects)
        if isinstance(module, nn.modules.batchnorm._NormBase):
            _resize_norm(module, state.get(f"{name}.weight", state.get(f"{name}.running_mean")))
            continue
        weight = state.get(f"{name}.weight")
        if weight is None or getattr(module, "weight", None) is None or weight.shape == module.weight.shape:
            continue
        if weight.shape[2:] != module.weight.shape[2:] or weight.ndim != module.weight.ndim:
            continue  # not a narrower version of this layer: loading will name it
        _resize(module, weight.shape)


def fresh(network: nn.Module, like: Mapping[str, Tensor]) -> None:
    """Make a freshly initialised network as narrow as the state dict `like`, in place.

    What is cut off was drawn like what stays. Weights and biases of convs and linear layers are scaled up by the square
    root of how much fewer inputs they read, which keeps the variance of the outputs: what an initialisation by fan-in (torch's
    own) would have drawn for the narrow layer.
    """
    drawn = {key: value.clone() for key, value in network.state_dict().items()}
    before = {name: filters(layer) for name, layer in layers_of(network).items()}
    take(network, like)
    state = network.state_dict()
    shortcuts = {f"{name}.selects": module for name, module in network.named_modules() if isinstance(module, ChannelPad)}
    for key, value in state.items():
        if key in shortcuts:
            shortcuts[key].adopt((value != 0).to(value.dtype))  # which channels it copies is shape; the factors were learned
        else:
            value.copy_(drawn[key][tuple(slice(size) for size in value.shape)])
    for name, layer in layers_of(network).items():
        reads, read = by_filter(layer)[0].numel(), drawn[f"{name}.weight"].numel() // before[name]
        for parameter in (layer.weight, layer.bias):
            if parameter is not None:
                parameter.data.mul_((read / reads) ** 0.5)


def _resize(module: nn.Module, shape: torch.Size) -> None:
    width = shape[0]
    if isinstance(module, _ConvTransposeNd):
        if module.groups == module.in_channels == module.out_channels > 1:  # depthwise
            module.groups = shape[0]
        module.in_channels, module.out_channels = shape[0], shape[1] * module.groups
        width = module.out_channels
    elif isinstance(module, _ConvNd):
        if module.groups == module.in_channels == module.out_channels > 1:
            module.groups = shape[0]
        module.out_channels, module.in_channels = shape[0], shape[1] * module.groups
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = shape
    elif isinstance(module, nn.PReLU):
        module.num_parameters = shape[0]
    else:
        return
    weight = module.weight
    module.weight = nn.Parameter(weight.new_empty(shape))
    if getattr(module, "bias", None) is not None:
        module.bias = nn.Parameter(weight.new_empty(width))


def _resize_norm(module: nn.modules.batchnorm._NormBase, like: Tensor | None) -> None:
    if like is None or like.ndim != 1:
        return
    module.num_features = len(like)
    for name in ("weight", "bias"):
        if getattr(module, name) is not None:
            setattr(module, name, nn.Parameter(torch.empty(len(like))))
    if module.running_mean is not None:
        module.running_mean, module.running_var = torch.zeros(len(like)), torch.ones(len(like))
