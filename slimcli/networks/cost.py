"""What a network costs: multiply-accumulates and parameters (HBFP's Eq. 1-3)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from slimcli.networks.layers import filters, layers_of
from slimcli.networks.modes import evaluating
from slimcli.records import LayerCost, NetworkCost


def count(model: nn.Module, input_shape: Sequence[int]) -> NetworkCost:
    """MACs for one input of `input_shape` (C, H, W), and parameters, in total and per conv and linear layer.

    The total holds every product that torch's own counter knows, functional convolutions and attention included; a
    layer's line holds its own. The model is left as it was.
    """
    fastpath = torch.backends.mha.get_fastpath_enabled()
    reference = next(model.parameters())
    counter = FlopCounterMode(display=False)
    try:
        torch.backends.mha.set_fastpath_enabled(False)  # fused attention goes uncounted
        # The math kernel is made of products that every version of the counter knows.
        with evaluating(model), torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
            model(torch.zeros(1, *input_shape, device=reference.device, dtype=reference.dtype))
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)
    flops = counter.get_flop_counts()
    root = type(model).__name__
    layers = tuple(
        LayerCost(
            name=name,
            type=type(module).__name__,
            filters=filters(module),
            macs=sum(flops.get(f"{root}.{name}" if name else root, {}).values()) // 2,
            params=sum(p.numel() for p in module.parameters()),
        )
        for name, module in layers_of(model).items()
    )
    return NetworkCost(counter.get_total_flops() // 2, sum(p.numel() for p in model.parameters()), layers)
