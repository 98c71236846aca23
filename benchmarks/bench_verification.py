"""What finding and verifying a network's groups costs, in forward passes of the images that it is checked on. In turn.

python benchmarks/bench_verification.py resnet18      # or without a name: all of `ARCHS`
"""

from __future__ import annotations

import statistics
import sys
import time

import torch

from slimcli.networks import resolve
from slimcli.pruning import surgery
from slimcli.pruning.verification import IMAGES, verify

SHAPE, ROUNDS, MOST = (3, 224, 224), 3, 20
ARCHS = ("resnet18", "mobilenet_v2", "resnext50_32x4d", "densenet121", "convnext_tiny", "swin_t")
"""Shortcuts, depthwise and grouped convs, concatenations; layer norm, and reshapes that cannot be followed."""


def main() -> int:
    """Print the ratios; 1 where one is above what was asked for."""
    torch.set_num_threads(1)
    images = torch.randn(IMAGES, *SHAPE, dtype=torch.float64)
    met = True
    for arch in sys.argv[1:] or ARCHS:
        model = resolve.build(f"torchvision:{arch}", 1000, SHAPE).eval()
        forward, check = [], []
        for number in range(ROUNDS + 1):
            model.double()
            started = time.perf_counter()
            with torch.no_grad():
                model(images)
            between = time.perf_counter()
            model.float()
            if number:  # the first round warms up
                forward.append(between - started)
                started = time.perf_counter()
                groups = verify(model, SHAPE, surgery.find_groups(model, SHAPE, linear=True))
                check.append(time.perf_counter() - started)
        ratio = statistics.median(check) / statistics.median(forward)
        met &= ratio <= MOST
        can = f"{sum(group.prunable for group in groups)} of {len(groups)} groups can be pruned"
        print(f"{arch}: {ratio:.1f} forward passes (asked for: at most {MOST}), {can}", flush=True)
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
