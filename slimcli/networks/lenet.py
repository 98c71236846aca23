"""LeNet-5 in the form that pruning papers use (Caffe's, with ReLU): 20 and 50 filters of 5 x 5, 500 hidden neurons."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class LeNet5(nn.Module):
    """Images (N, C, H, W) to logits (N, classes)."""

    def __init__(self, classes: int, input_shape: tuple[int, int, int]) -> None:
        super().__init__()
        channels, height, width = input_shape
        if min(height, width) < 16:
            raise ValueError(f"LeNet-5 takes images from 16 x 16, not {height} x {width}")
        self.conv1 = nn.Conv2d(channels, 20, 5)
        self.conv2 = nn.Conv2d(20, 50, 5)
        self.pool = nn.MaxPool2d(2)
        self.relu = nn.ReLU()
        map_height, map_width = (((side - 4) // 2 - 4) // 2 for side in (height, width))
        self.fc1 = nn.Linear(50 * map_height * map_width, 500)
        self.fc2 = nn.Linear(500, classes)

    def forward(self, images: Tensor) -> Tensor:
        # Pooling before ReLU gives the same values as after it, with a quarter of the ReLUs.
        x = self.relu(self.pool(self.conv1(images)))
        x = self.relu(self.pool(self.conv2(x)))
        x = self.relu(self.fc1(torch.flatten(x, 1)))
        logits: Tensor = self.fc2(x)
        return logits


def lenet5(classes: int, input_shape: tuple[int, int, int]) -> LeNet5:
    """LeNet-5 for images of that shape."""
    return LeNet5(classes, input_shape)
