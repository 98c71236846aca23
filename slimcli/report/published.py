"""What a paper reports for the same network on the same data: points to measure oneself against."""

from __future__ import annotations

HBFP = {
    ("lenet5", "mnist"): (
        99.17,
        ((95.57, 99.02), (96.41, 98.92), (96.84, 98.80), (97.98, 98.60)),
    ),
    ("vgg16-cifar", "cifar10"): (
        93.96,
        ((71.21, 93.04), (76.05, 92.54), (80.09, 92.30), (83.42, 91.99)),
    ),
    ("resnet56-cifar", "cifar10"): (
        93.26,
        ((43.68, 92.42), (60.85, 92.25), (74.91, 91.79), (78.43, 91.42)),
    ),
    ("resnet110-cifar", "cifar10"): (
        93.50,
        ((52.69, 93.11), (60.89, 92.91), (68.31, 92.83), (74.95, 91.96)),
    ),
}
"""By network and data: the dense network's top-1, and (FLOPs removed in percent, top-1) of each slim one.

Basha et al., *Deep Model Compression Based on the Training History*, its tables for LeNet-5, VGG-16 and ResNet-56/110; how
LeNet-5's FLOPs are counted there is not said.
"""


def points(arch: str, data: str) -> list[tuple[float, float]]:
    """(MACs kept in percent, top-1) of the paper's networks, the dense one first; none where it has none."""
    dense, slim = HBFP.get((arch, data), (0.0, ()))
    return [(100.0, dense), *((round(100 - removed, 2), top1) for removed, top1 in slim)] if slim else []
