"""The CIFAR ResNets of He et al. (arXiv:1512.03385, section 4.2): 6n + 2 layers, parameter-free shortcuts (option A).

Module names are those of Yerlan Idelbayev's published checkpoints (github.com/akamaster/pytorch_resnet_cifar10).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from slimcli.networks.shortcut import ChannelPad


class BasicBlock(nn.Module):
    """Two 3 x 3 convs around a shortcut."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        same = stride == 1 and in_channels == channels
        self.shortcut = nn.Identity() if same else ChannelPad(in_channels, channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class CifarResNet(nn.Module):
    """Images (N, C, 32, 32) to logits (N, classes); `blocks` per stage of 16, 32 and 64 channels."""

    def __init__(self, blocks: int, classes: int, input_shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(input_shape[0], 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self._stage(16, 16, blocks, stride=1)
        self.layer2 = self._stage(16, 32, blocks, stride=2)
        self.layer3 = self._stage(32, 64, blocks, stride=2)
        self.linear = nn.Linear(64, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    @staticmethod
    def _stage(in_channels: int, channels: int, blocks: int, stride: int) -> nn.Sequential:
        first = BasicBlock(in_channels, channels, stride)
        return nn.Sequential(first, *(BasicBlock(channels, channels, 1) for _ in range(blocks - 1)))

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(images)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.linear(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))
        return logits


def resnet20(classes: int, input_shape: tuple[int, int, int]) -> CifarResNet:
    """ResNet-20."""
    return CifarResNet(3, classes, input_shape)


def resnet32(classes: int, input_shape: tuple[int, int, int]) -> CifarResNet:
    """ResNet-32."""
    return CifarResNet(5, classes, input_shape)


def resnet44(classes: int, input_shape: tuple[int, int, int]) -> CifarResNet:
    """ResNet-44."""
    return CifarResNet(7, classes, input_shape)


def resnet56(classes: int, input_shape: tuple[int, int, int]) -> CifarResNet:
    """ResNet-56."""
    return CifarResNet(9, classes, input_shape)


def resnet110(classes: int, input_shape: tuple[int, int, int]) -> CifarResNet:
    """ResNet-110."""
    return CifarResNet(18, classes, input_shape)
