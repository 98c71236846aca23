"""What saving a run's state costs, as a share of a ResNet-20 epoch on CIFAR-10 (45,000 images, from a timed slice).

The state is the largest that occurs: the network in training, the last one that was kept, and the optimizer. Saving and
training alternate in one run; medians. `fsync` is in it, so the disk matters: the folder is the current one. Then the memory
that saving a large state takes beyond the state itself, beside what putting the file together in memory first would take.
"""

from __future__ import annotations

import copy
import io
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch

from slimcli.data.memory import Augment, ImageLoader
from slimcli.networks import checkpoint, weights
from slimcli.networks.cost import count
from slimcli.networks.resolve import build
from slimcli.pipeline.state import Network, State
from slimcli.pruning import surgery
from slimcli.pruning.history import NormHistory
from slimcli.rundir import RunDir
from slimcli.settings import FitSettings
from slimcli.training.engine import Engine, Epoch, FitState

SHAPE, SLICE, EPOCH, HISTORY = (3, 32, 32), 128 * 8, 45_000, 200
ASKED = 0.02
LARGE = 1 << 29


def main() -> int:
    model = build("resnet20-cifar", 10, SHAPE)
    history = NormHistory(model)
    for _ in range(HISTORY):
        history.record()
    network = Network(model, history, surgery.find_groups(model, SHAPE), count(model, SHAPE))
    state = State(network, copy.deepcopy(network), torch.Generator().get_state())
    images = torch.randint(0, 256, (SLICE, *SHAPE), dtype=torch.uint8)
    loader = ImageLoader(images, torch.arange(SLICE) % 10, (0.5,) * 3, (0.25,) * 3, 128, True, Augment(4, True))
    saving: list[float] = []
    training: list[float] = []
    with tempfile.TemporaryDirectory(dir=".") as folder, RunDir(Path(folder) / "run").create({}) as run:

        def after_epoch(epoch: Epoch, fit: FitState) -> None:
            state.fit = fit
            started = time.perf_counter()
            content = {"resume": state.content(), "state_dict": weights.at_rest(model.state_dict())}
            run.append("epoch", index=epoch.index)
            run.save_state(checkpoint.written(content))
            saving.append(time.perf_counter() - started)
            training.append(epoch.seconds)

        Engine(FitSettings(device="cpu")).fit(model, loader, 6, "bench", after_epoch=after_epoch)
        size = run.last_good.stat().st_size
        pieces, whole = memory(run)
    epoch = median(training[1:]) / SLICE * EPOCH
    share = median(saving[1:]) / epoch
    print(f"saving {size / 1e6:.1f} MB: {1000 * median(saving[1:]):.0f} ms; an epoch: {epoch:.0f} s; share {share:.3%}")
    print(f"memory beyond the state, as a share of its file: {pieces:.2f}; of a file put together in memory {whole:.2f}")
    print(f"{'reached' if share < ASKED else 'NOT REACHED'}: under {ASKED:.0%}")
    return int(share >= ASKED)


def memory(run: RunDir) -> tuple[float, float]:
    """How much more memory saving takes, as a share of the file: as it is saved, and as bytes."""
    content = {f"layer{number}": torch.ones(LARGE // 16, dtype=torch.uint8) for number in range(16)}

    def as_bytes() -> None:
        buffer = io.BytesIO()
        torch.save(content, buffer)
        run.save_state(buffer.getvalue())

    return peak(lambda: run.save_state(checkpoint.written(content))) / LARGE, peak(as_bytes) / LARGE


def peak(work: Callable[[], None]) -> int:
    """By how many bytes the process grows at most while it works."""
    Path("/proc/self/clear_refs").write_text("5")  # the highest mark is now what is held now
    before = resident("VmHWM")
    work()
    return resident("VmHWM") - before


def resident(mark: str) -> int:
    lines = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * int(lines[mark].split()[0])


if __name__ == "__main__":
    sys.exit(main())
