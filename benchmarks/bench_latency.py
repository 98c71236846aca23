"""Whether the latency measurement can be trusted: a model measured against itself must come out equal.

Twenty benches of two copies of ResNet-20's file; how many of the 95 % intervals of their ratio hold 1, and how wide they are. At
seventeen or more of twenty the interval is believed. Beside it the same judged by calls alone, in one session for each copy.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path
from statistics import median

import numpy as np
import torch

from slimcli.deploy import bench as module
from slimcli.deploy.onnx import export_onnx
from slimcli.networks.resolve import build

ASKED, REPEATS, RUNS = 17, 20, 1000


def main() -> int:
    held, alone, widths = 0, 0, []
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{name}.onnx" for name in "ab"]
        export_onnx(build("resnet20-cifar", 10, (3, 32, 32)).eval(), paths[0], torch.randn(2, 3, 32, 32))
        shutil.copy(*paths)
        for seed in range(REPEATS):
            (ratio,) = module.bench(paths, runs=RUNS, seed=seed).ratios
            held += ratio.low <= 1 <= ratio.high
            widths.append(ratio.high / ratio.low - 1)
            low, high = by_calls(paths, seed)
            alone += low <= 1 <= high
            print(f"{ratio.ratio:.4f} ({ratio.low:.4f} to {ratio.high:.4f}); by calls alone {low:.4f} to {high:.4f}", flush=True)
    print(f"{held} of {REPEATS} intervals hold 1, median width {median(widths):.2%}; by calls alone {alone}")
    print(f"{'reached' if held >= ASKED else 'NOT REACHED'}: at least {ASKED}")
    return int(held < ASKED)


def by_calls(paths: list[Path], seed: int) -> tuple[float, float]:
    """A bootstrap over the rounds of one session for each model: what many tools report."""
    generator = np.random.default_rng(seed)
    times = np.empty((RUNS, 2))
    module._measure([module.open_session(path, 1, "cpu") for path in paths], 1, times, generator)
    drawn = times[generator.integers(RUNS, size=(1000, RUNS))]
    ratios = np.median(drawn[:, :, 0], axis=1) / np.median(drawn[:, :, 1], axis=1)
    low, high = np.percentile(ratios, (2.5, 97.5))
    return float(low), float(high)


if __name__ == "__main__":
    sys.exit(main())
