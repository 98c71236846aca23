"""A network that takes what cameras and decoders give, and says what an application asks: preprocessing and softmax inside."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

PROBABILITIES = "probabilities"
NORMALISATION = "_pixel_scale"
"""What the weights of the normalisation are called in a file."""


class Ready(nn.Module):
    """The network with its normalisation in front (`mean` and `std` given: it takes pixels, uint8, (N, H, W, C)), and with
    `probabilities` a softmax behind.
    """

    _pixel_scale: Tensor
    _pixel_offset: Tensor

    def __init__(
        self,
        network: nn.Module,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        probabilities: bool = False,
    ) -> None:
        super().__init__()
        self.network, self.probabilities = network, probabilities
        self.takes_pixels = mean is not None and std is not None
        if mean is not None and std is not None:
            scale = 1 / (255 * torch.tensor(std))
            self.register_buffer("_pixel_scale", scale.view(-1, 1, 1, 1), persistent=False)
            self.register_buffer("_pixel_offset", -torch.tensor(mean) * 255 * scale, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Pixels (N, H, W, C), or normalised images (N, C, H, W), to logits or probabilities (N, classes)."""
        if self.takes_pixels:
            # As a depthwise conv: OpenVINO (2026.4) computes a product and a sum between a transposition and a quantised layer
            # wrongly.
            pixels = images.movedim(-1, 1).float()
            images = F.conv2d(pixels, self._pixel_scale, self._pixel_offset, groups=len(self._pixel_scale))
        logits: Tensor = self.network(images)
        return logits.softmax(1) if self.probabilities else logits


def pixels_of(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Normalised images (N, C, H, W) as the pixels that they were: uint8, (N, H, W, C)."""
    shift, scale = (torch.tensor(each, device=images.device).view(-1, 1, 1) for each in (mean, std))
    return ((images * scale + shift) * 255).round().clamp(0, 255).to(torch.uint8).movedim(1, -1).contiguous()
