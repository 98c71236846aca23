"""Pair selection for 2,048 filters over 200 epochs against a plain Python loop over all pairs with numpy rows.

The loop is measured on a slice of the pairs and scaled. Also shown: how peak memory grows with ten times the history.
"""

from __future__ import annotations

import resource
import sys
import time
from statistics import median

import numpy as np
import torch

from slimcli.pruning.pairs import disjoint_pairs, pair_distances

FILTERS, EPOCHS, SLICE, ROUNDS = 2048, 200, 40_000, 5
WANTED = 100


def by_loop(history: np.ndarray, pairs: int) -> float:
    """Seconds for Eq. 5-6 and the minimum over the first `pairs` pairs, as one would write it down."""
    started = time.perf_counter()
    distances = []
    done = 0
    for i in range(len(history)):
        for j in range(i + 1, len(history)):
            distances.append((float(np.abs(history[i] - history[j]).sum()), i, j))
            done += 1
            if done == pairs:
                distances.sort()
                return time.perf_counter() - started
    raise AssertionError("fewer pairs than asked for")


def ours(history: torch.Tensor) -> float:
    started = time.perf_counter()
    disjoint_pairs(pair_distances([history]), FILTERS, FILTERS // 10)
    return time.perf_counter() - started


def main() -> int:
    generator = np.random.default_rng(0)
    rows = np.abs(generator.standard_normal((FILTERS, EPOCHS)).cumsum(axis=1)).astype(np.float32)
    history = torch.from_numpy(rows).T.contiguous()
    ours(history)
    fast, slow = [], []
    for _ in range(ROUNDS):
        fast.append(ours(history))
        slow.append(by_loop(rows, SLICE) * (FILTERS * (FILTERS - 1) / 2) / SLICE)
    ratio = median(slow) / median(fast)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    ours(history.repeat(10, 1))
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(f"plain loop {median(slow):.2f} s (scaled from {SLICE:,} pairs), ours {median(fast):.4f} s: {ratio:.0f} times faster")
    print(f"ten times the epochs: {10 * rows.nbytes / 2**20:.0f} MiB of history, peak memory grew by {grown:.0f} MiB")
    return report(f"at least {WANTED} times faster", ratio >= WANTED)


def report(what: str, reached: bool) -> int:
    print(f"{'reached' if reached else 'NOT REACHED'}: {what}")
    return 0 if reached else 1


if __name__ == "__main__":
    sys.exit(main())
