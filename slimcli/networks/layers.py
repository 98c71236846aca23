"""The layers whose filters can be removed: convolutions of every dimension, transposed ones too, and linear layers."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from slimcli.errors import ArchError

Layer = _ConvNd | nn.Linear


def layers_of(model: nn.Module) -> dict[str, Layer]:
    """Every conv and linear layer by its name, in definition order."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Layer)}


def owns_weight(module: nn.Module) -> bool:
    """Whether the module's weight (or None) is a parameter of its own, not computed by a parametrization or a hook."""
    return not hasattr(module, "weight") or "weight" in module._parameters


def check_numbers(model: nn.Module) -> None:
    """Raise `ArchError` for a network without numbers: tensors on the meta device."""
    if elsewhere := [name for name, tensor in (*model.named_parameters(), *model.named_buffers()) if tensor.is_meta]:
        named = ", ".join(elsewhere[:3]) + " ..." * (len(elsewhere) > 3)
        raise ArchError(f"{named} are on the meta device, where they hold no numbers", "build all of it on the CPU")


def check_weights(model: nn.Module) -> None:
    """Raise `ArchError` for a network that cannot be copied, because hooks of the old kind compute its weights."""
    for name, module in model.named_modules():
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, WeightNorm | SpectralNorm):
                kind = "weight_norm" if isinstance(hook, WeightNorm) else "spectral_norm"
                what = f"the weight of {name or 'the network'} is computed by a hook of torch.nn.utils.{kind}"
                hint = f"build it with torch.nn.utils.parametrizations.{kind}, or remove the norm before it is saved"
                raise ArchError(f"{what}, and such a network cannot be copied", hint)


def filters(layer: Layer) -> int:
    """How many output channels the layer has."""
    return layer.out_channels if isinstance(layer, _ConvNd) else layer.out_features


def inputs(layer: Layer) -> int:
    """How many input channels the layer has."""
    return layer.in_channels if isinstance(layer, _ConvNd) else layer.in_features


def by_filter(layer: Layer, values: Tensor | None = None) -> Tensor:
    """The layer's weight, or `values` of its shape, as (filters, ...).

    A transposed conv has its inputs on the first axis, and behind them the filters of the group that each of them belongs to.
    """
    values = layer.weight if values is None else values
    if isinstance(layer, _ConvTransposeNd):
        return values.reshape(layer.groups, -1, *values.shape[1:]).transpose(1, 2).flatten(0, 1)
    return values
