"""The parameter-free shortcut of the CIFAR ResNets, in a form that channels can be removed from."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ChannelPad(nn.Module):
    """Option A's shortcut: every second pixel, and channels that are copies of input channels or zero.

    `selects` (outputs x inputs) says which input channel an output channel copies, and times what: at most one entry of a
    row is not zero; a row of zeros is zero. It is a buffer, so a slimmed shortcut is in the state dict like every other
    shape: removing an input channel drops its column (its copies turn to zero), removing an output channel drops its row.
    A state dict without it (every published one) has the standard padding.
    """

    selects: Tensor
    _gather: Tensor
    _factors: Tensor | None

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        selects = torch.zeros(out_channels, in_channels)
        first = (out_channels - in_channels) // 2
        selects[first : first + in_channels] = torch.eye(in_channels)
        self.register_buffer("selects", selects)
        self.register_buffer("_gather", None, persistent=False)
        self.register_buffer("_factors", None, persistent=False)
        self.adopt(selects)

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, :, :: self.stride, :: self.stride]
        if self._pads is not None:
            return F.pad(x, (0, 0, 0, 0, *self._pads))
        x = F.pad(x, (0, 0, 0, 0, 0, 1)).index_select(1, self._gather)
        return x if self._factors is None else x * self._factors

    def merge_input(self, kept: int, gone: int, factor: float) -> None:
        """What copied the input `gone` copies `factor` times the input `kept` from now on."""
        selects = self.selects.clone()
        selects[:, kept] += factor * selects[:, gone]
        selects[:, gone] = 0
        self.adopt(selects)

    def remove_inputs(self, channels: list[int]) -> None:
        """Input channels that no longer arrive."""
        self.adopt(self.selects[:, [i for i in range(self.selects.shape[1]) if i not in set(channels)]])

    def remove_outputs(self, channels: list[int]) -> None:
        """Output channels that nobody reads any more."""
        self.adopt(self.selects[[o for o in range(self.selects.shape[0]) if o not in set(channels)]])

    def adopt(self, selects: Tensor) -> None:
        """Another selection, of any shape."""
        self.selects = selects
        outputs, inputs = selects.shape
        copies = selects != 0
        # Channel number `inputs` of the zero-padded input is zero: that is what an output without a source reads.
        self._gather = torch.where(copies.any(1), copies.int().argmax(1), inputs) if inputs else torch.zeros(outputs).long()
        before = int(self._gather[0]) == inputs and int((self._gather != inputs).int().argmax())
        whole = torch.arange(inputs, device=selects.device)
        factors = selects.sum(1)
        self._factors = factors.view(1, -1, 1, 1) if bool(((factors != 1) & (factors != 0)).any()) else None
        # Where the output is the whole input between zeros, plain padding is the cheaper form (and the dense network's).
        contiguous = torch.equal(self._gather[before : before + inputs], whole) and int(copies.sum()) == inputs
        self._pads = (int(before), outputs - inputs - int(before)) if contiguous and self._factors is None else None

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        state_dict.setdefault(f"{prefix}selects", self.selects)
        super()._load_from_state_dict(state_dict, prefix, *args)
        self.adopt(self.selects)
