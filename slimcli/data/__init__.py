"""The data sets: names and specs (`slimcli.data.sources`) to loaders (`memory`). Names only here: listing imports no torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class KnownData:
    """A data set by name: image shape, classes, the usual normalisation and augmentation."""

    shape: tuple[int, int, int]
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augment: str
    summary: str


_CIFAR_MEAN, _CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)

KNOWN = {
    "digits": KnownData((1, 28, 28), 10, (0.1307,), (0.3081,), "shift:1", "6,000 + 1,000 images of MNIST, inside the package"),
    "mnist": KnownData((1, 28, 28), 10, (0.1307,), (0.3081,), "shift:1", "MNIST, 60,000 + 10,000 images"),
    "fashion-mnist": KnownData((1, 28, 28), 10, (0.2860,), (0.3530,), "shift:1,flip", "Fashion-MNIST, 60,000 + 10,000 images"),
    "mnist32": KnownData(
        (3, 32, 32), 10, (0.1000,) * 3, (0.2752,) * 3, "shift:1", "MNIST as networks for CIFAR take it: 3 x 32 x 32"
    ),
    "fashion-mnist32": KnownData((3, 32, 32), 10, (0.2190,) * 3, (0.3318,) * 3, "shift:1,flip", "Fashion-MNIST as 3 x 32 x 32"),
    "cifar10": KnownData((3, 32, 32), 10, _CIFAR_MEAN, _CIFAR_STD, "shift:4,flip", "CIFAR-10 (torchvision's, or cifar10.npz)"),
    "cifar100": KnownData(
        (3, 32, 32),
        100,
        (0.5071, 0.4865, 0.4409),
        (0.2673, 0.2564, 0.2762),
        "shift:4,flip",
        "CIFAR-100 (torchvision's)",
    ),
}

FORMS = {
    "folder:PATH": "train/ and val/ of class folders with images; need not fit into memory",
    "npz:PATH": "x_train, y_train, x_test, y_test; images uint8, N x H x W or N x H x W x C",
    "FILE.py:CALLABLE": "returns two loaders (train, test) or three (train, held-out, test) of (images, labels) batches, or a "
    "dictionary of them with a loss and a score of its own",
}
