"""Two CPU processes with one thread each against one process with two threads: images per second in training.

Real `slim train` runs of ResNet-20 on images of CIFAR-10's shape, alternating; the epochs' own seconds from the journals,
without each run's first epoch; medians.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

import numpy as np

COUNT, EPOCHS, ROUNDS, ASKED = 2048, 4, 3, 0.9


def speed(folder: Path, devices: int, threads: int, number: int) -> float:
    """Images per second of one run."""
    out = folder / f"{devices}-{number}"
    command = [sys.executable, "-m", "slimcli", "train", "resnet20-cifar", "--data", f"npz:{folder}/images.npz", "-o", str(out)]
    command += [f"--epochs={EPOCHS}", f"--devices={devices}", "--augment=shift:4,flip", "--device=cpu"]
    subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": str(threads)}, capture_output=True)
    events = [json.loads(line) for line in (out / "journal.jsonl").read_text().splitlines()]
    return 0.9 * COUNT / median(event["seconds"] for event in events if event["event"] == "epoch" and event["index"])


def main() -> int:
    generator = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        images, labels = generator.integers(0, 256, (COUNT, 32, 32, 3), dtype=np.uint8), np.arange(COUNT) % 10
        np.savez(folder / "images.npz", x_train=images, y_train=labels, x_test=images[:100], y_test=labels[:100])
        speeds = [(speed(folder, 1, 2, number), speed(folder, 2, 1, number)) for number in range(ROUNDS)]
    one, two = (median(column) for column in zip(*speeds, strict=True))
    print(f"one process, two threads: {one:,.0f} images/s; two processes, one thread each: {two:,.0f}: {two / one:.2f} times")
    print(f"{'reached' if two / one > ASKED else 'NOT REACHED'}: at least {ASKED} times")
    return int(two / one <= ASKED)


if __name__ == "__main__":
    sys.exit(main())
