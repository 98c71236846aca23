"""A task that is not classification: a U-Net says of each pixel of a scene which digit lies there.

`build` is the network, `data` the scenes (digits of MNIST, scattered over an empty field), the loss and the score.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib import resources
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

SIDE = 48
DIGITS = 3
BACKGROUND = 10


class Double(nn.Sequential):
    """Two convs, each with batch norm and ReLU."""

    def __init__(self, before: int, after: int) -> None:
        layers: list[nn.Module] = []
        for channels in (before, after):
            layers += [nn.Conv2d(channels, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
        super().__init__(*layers)


class UNet(nn.Module):
    """Down twice, up twice, with a concatenation at each height."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.down1, self.down2, self.bottom = Double(1, width), Double(width, 2 * width), Double(2 * width, 4 * width)
        self.up2, self.up1 = (nn.ConvTranspose2d(2 * each, each, 2, stride=2) for each in (2 * width, width))
        self.right2, self.right1 = Double(4 * width, 2 * width), Double(2 * width, width)
        self.head = nn.Conv2d(width, BACKGROUND + 1, 1)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 1, H, W) to (B, 11, H, W): logits of the ten digits and of the background."""
        high = self.down1(images)
        middle = self.down2(F.max_pool2d(high, 2))
        low = self.bottom(F.max_pool2d(middle, 2))
        middle = self.right2(torch.cat([middle, self.up2(low)], 1))
        return self.head(self.right1(torch.cat([high, self.up1(middle)], 1)))


def build(width: int = 16) -> nn.Module:
    """The network, with new weights."""
    return UNet(width)


def data(train: int = 3000, test: int = 500) -> dict[str, Any]:
    """Loaders of so many (scenes, digit of each pixel), and what a network is trained towards and judged by."""
    with resources.as_file(resources.files("slimcli.data") / "digits.npz") as path:
        digits = np.load(path)
    parts = [
        TensorDataset(*scenes(digits[f"x_{part}"], digits[f"y_{part}"], count, seed))
        for seed, (part, count) in enumerate((("train", train), ("test", test)))
    ]
    return {
        "train": DataLoader(parts[0], 32, shuffle=True),  # a tenth is held out
        "test": DataLoader(parts[1], 100),
        "loss": loss,
        "score": mean_iou,
        "score_name": "mIoU",
    }


def scenes(images: np.ndarray, labels: np.ndarray, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Scenes (count, 1, 48, 48) in [0, 1] with three digits each, and the digit of each pixel (count, 48, 48)."""
    draw = np.random.default_rng(seed)
    fields = np.zeros((count, SIDE, SIDE), np.float32)
    answers = np.full((count, SIDE, SIDE), BACKGROUND, np.int64)
    side = images.shape[1]
    for field, answer in zip(fields, answers, strict=True):
        for number in draw.integers(len(images), size=DIGITS):
            top, left = draw.integers(SIDE - side + 1, size=2)
            part = np.s_[top : top + side, left : left + side]
            ink = images[number].astype(np.float32) / 255
            answer[part][ink > 0.3] = labels[number]
            np.maximum(field[part], ink, out=field[part])
    return torch.from_numpy(fields)[:, None], torch.from_numpy(answers)


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Mean cross-entropy over the pixels."""
    images, answers = batch
    return F.cross_entropy(model(images).float(), answers)


def mean_iou(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> float:
    """Of each digit the intersection over the union of where it is and where it is said to be; the mean over the digits."""
    both, either = torch.zeros(BACKGROUND), torch.zeros(BACKGROUND)
    for images, answers in batches:
        said = model(images).argmax(1)
        for digit in range(BACKGROUND):
            here, there = said == digit, answers == digit
            both[digit] += (here & there).sum().cpu()
            either[digit] += (here | there).sum().cpu()
    return float((both / either.clamp(min=1)).mean())
