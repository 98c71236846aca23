"""VGG-16 for 32 x 32 images (arXiv:1409.1556): batch norm after every conv, one hidden layer of 512 neurons.

14,982,474 parameters in its convs (with bias) and linear layers, 8,448 more in batch norm; 313.46M MACs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

_STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))


class VGG16(nn.Module):
    """Images (N, C, 32, 32) to logits (N, classes)."""

    def __init__(self, classes: int, input_shape: tuple[int, int, int]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels, height, width = input_shape
        if min(height, width) < 32:
            raise ValueError(f"VGG-16 takes images from 32 x 32, not {height} x {width}")
        for filters, depth in _STAGES:
            for _ in range(depth):
                layers += [nn.Conv2d(channels, filters, 3, padding=1), nn.BatchNorm2d(filters), nn.ReLU(inplace=True)]
                channels = filters
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Linear(channels * (height // 32) * (width // 32), 512), nn.ReLU(inplace=True), nn.Linear(512, classes)
        )

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.classifier(torch.flatten(self.features(images), 1))
        return logits


def vgg16(classes: int, input_shape: tuple[int, int, int]) -> VGG16:
    """VGG-16 with batch norm."""
    return VGG16(classes, input_shape)
