"""The networks: built-in definitions, names to modules (`resolve`), files to networks (`checkpoint`), their `cost`.

This file holds names only, so that they can be listed without importing torch.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Arch:
    """A built-in network: where its builder `(classes, input_shape) -> nn.Module` stands, and what it was made for."""

    builder: str
    input_shape: tuple[int, int, int]
    summary: str


ARCHS = {
    "lenet5": Arch("slimcli.networks.lenet:lenet5", (1, 28, 28), "LeNet-5, 20 and 50 filters (0.43M parameters, 2.29M MACs)"),
    "vgg16-cifar": Arch("slimcli.networks.vgg:vgg16", (3, 32, 32), "VGG-16 with batch norm (14.98M, 313.5M MACs)"),
    "resnet20-cifar": Arch("slimcli.networks.resnet:resnet20", (3, 32, 32), "ResNet-20, option A (0.27M, 40.6M MACs)"),
    "resnet32-cifar": Arch("slimcli.networks.resnet:resnet32", (3, 32, 32), "ResNet-32, option A (0.46M, 68.9M MACs)"),
    "resnet44-cifar": Arch("slimcli.networks.resnet:resnet44", (3, 32, 32), "ResNet-44, option A (0.66M, 97.2M MACs)"),
    "resnet56-cifar": Arch("slimcli.networks.resnet:resnet56", (3, 32, 32), "ResNet-56, option A (0.85M, 125.5M MACs)"),
    "resnet110-cifar": Arch("slimcli.networks.resnet:resnet110", (3, 32, 32), "ResNet-110, option A (1.73M, 252.9M MACs)"),
}

FORMS = {
    "torchvision:NAME": "a classification network of torchvision",
    "timm:NAME": "a network of timm, where it is installed",
    "FILE.py:CALLABLE": "your own: a callable that returns a torch.nn.Module; its arguments by --arch-arg",
    "PACKAGE.MODULE:CALLABLE": "the same from an importable module",
}
