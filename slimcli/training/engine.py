"""The training loop, and accuracy. Device, precision, processes and optimizer live here; what is trained, and why, does not."""

from __future__ import annotations

import logging
import math
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal, TypeVar, cast

import numpy as np
import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies.ddp import DDPStrategy
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, Optimizer

from slimcli import processes
from slimcli.environment import instructions
from slimcli.errors import DivergedError, MemoryShortError, PeerError, SettingsError
from slimcli.progress import Phase, Progress
from slimcli.records import JsonDict, Loader, Score
from slimcli.settings import FitSettings
from slimcli.training import peers

T = TypeVar("T")
Penalty = Callable[[nn.Module], Tensor]
READ_EVERY = 20  # steps between two looks at the loss: each look makes the host wait for the device
_heartbeat: peers.Heartbeat | None = None  # one a process, however many engines a recipe goes through


@dataclass(frozen=True)
class Epoch:
    """One epoch of training: mean loss (penalty included), training accuracy in percent, seconds."""

    phase: str
    index: int
    epochs: int
    loss: float
    top1: float
    seconds: float


@dataclass(frozen=True)
class FitState:
    """A phase between two epochs: how many are done, and the optimizer's state. The learning rate follows from both counts."""

    epochs: int
    optimizer: dict[str, Any]


class Engine:
    """Trains and evaluates one network after another with the same settings, and counts the epochs of the whole run.

    With several processes each takes its part of every batch; losses, gradients, batch-norm statistics and accuracies are
    those of all. `epochs_done` and `lr_scale` are part of a run's state: set them when a run goes on.
    """

    def __init__(self, settings: FitSettings, progress: Progress | None = None) -> None:
        self.settings = settings
        self.progress = progress or Progress()
        self.device = pick_device(settings.device)
        self.precision = pick_precision(settings.precision, self.device)
        self.epochs_done = 0
        self.lr_scale = 1.0
        self._fabric = Fabric(accelerator=self.device.type, devices=1, precision=self.precision)
        self._world = 1
        torch.manual_seed(settings.seed)

    def describe(self) -> JsonDict:
        """How this run computes, for its records."""
        precision = "bf16" if self.precision == "bf16-mixed" else "32"
        return {"device": self.device.type, "precision": precision, "processes": self._world}

    def launch(self) -> None:
        """Become one of several processes, where the settings or torchrun ask for that; returns when all are there."""
        global _heartbeat
        if processes.world() > 1 and self.settings.devices not in (1, processes.world()):
            raise SettingsError(
                f"--devices {self.settings.devices} contradicts the {processes.world()} processes of this run", "leave it out"
            )
        count = max(processes.world(), self.settings.devices)
        if self.settings.batch_size < 2 * count:
            raise SettingsError(
                f"--batch-size {self.settings.batch_size} is too small for {count} processes, which share each batch",
                f"give at least {2 * count}",
            )
        children = self._start_others() if processes.world() == 1 and self.settings.devices > 1 else []
        self._world = processes.world()
        if self._world == 1:
            return
        if _heartbeat is None:
            _heartbeat = connecting = peers.Heartbeat(children)
        else:
            connecting = None
        local = processes.local_world()
        self._fabric = Fabric(
            accelerator=self.device.type,
            devices=local,
            num_nodes=self._world // local,
            precision=self.precision,
            # A loss of a process is the heartbeat's to notice; process 0 may be busy for long while the others wait.
            strategy=DDPStrategy(timeout=timedelta(days=7)),
        )
        with _peers_named():
            self._fabric.launch()
        if connecting is not None:
            connecting.connect(lambda port: self.broadcast(port))

    def _start_others(self) -> list[peers.Child]:
        count = self.settings.devices
        if self.device.type == "cuda" and count > torch.cuda.device_count():
            raise SettingsError(f"--devices {count}: there are {torch.cuda.device_count()} CUDA devices here", "ask for fewer")
        if not processes.command:
            raise SettingsError(
                f"devices={count} from Python needs a launcher", f"start the script with torchrun --nproc-per-node {count}"
            )
        return peers.start_others(processes.command, count)

    def broadcast(self, value: T) -> T:
        """Process 0's value, in every process: what is decided is decided once."""
        if self._world == 1:
            return value
        with _peers_named():
            return self._fabric.broadcast(value)

    def agree(self, what: str, found: str) -> None:
        """Raise `PeerError`, in every process, unless all of them found the same."""
        if self._world == 1:
            return
        expected = self.broadcast(found)
        differing = int(self._sum(torch.tensor([float(found != expected)], device=self.device))[0])
        if differing:
            own = f"; process {processes.rank()} has {found[:300]}, process 0 {expected[:300]}" if found != expected else ""
            raise PeerError(f"{differing} of {self._world} processes have {what} other than process 0's{own}", "report this")

    def wait_for_all(self) -> None:
        """Return when every process has come here."""
        self.broadcast(None)
        self._sum(torch.zeros(1, device=self.device))

    def fit(
        self,
        model: nn.Module,
        train: Loader,
        epochs: int,
        phase: str,
        penalty: Penalty | None = None,
        after_epoch: Callable[[Epoch, FitState], None] | None = None,
        schedule: str | None = None,
        done: FitState | None = None,
    ) -> None:
        """Train for `epochs` epochs under a learning-rate schedule of that length, with a new optimizer; or go on from `done`.

        Everything random in an epoch follows from the seed and the number of epochs done, so that a phase that goes on
        ends as one that was not interrupted. Raises `DivergedError` at the first look at a loss that is not finite, or at
        weights that are not at an epoch's end (before `after_epoch` could take them for good), and `MemoryShortError`.
        The model ends in eval mode.
        """
        first = done.epochs if done is not None else 0
        if first >= epochs:
            return
        part = train.shard(processes.rank(), self._world)
        with _training(model), self.progress.phase(phase, epochs, len(part), first) as bar:
            optimizer = self._optimizer(model)
            if done is not None:
                optimizer.load_state_dict(done.optimizer)
            forward = self._compiled(model)
            for index in range(first, epochs):
                started = time.perf_counter()
                where = f"epoch {index + 1} of {epochs} ({phase})"
                seed_everything(self.settings.seed, self.epochs_done)

                def step(images: Tensor, labels: Tensor, number: int, index: int = index) -> Tensor:
                    progress = (index + number / len(part)) / epochs
                    for group in optimizer.param_groups:
                        group["lr"] = self.lr_scale * self.settings.lr * lr_factor(schedule or self.settings.schedule, progress)
                    with self._fabric.autocast():
                        logits = forward(images)
                    logits = logits.float()
                    loss = F.cross_entropy(logits, labels, label_smoothing=self.settings.label_smoothing)
                    if penalty is not None:
                        loss = loss + penalty(model)
                    optimizer.zero_grad(set_to_none=True)
                    self._fabric.backward(loss)
                    self._average_gradients(model, len(labels))
                    if self.settings.clip_norm:
                        # Right after a removal a few steps have gradients that would throw the survivors away.
                        nn.utils.clip_grad_norm_(model.parameters(), self.settings.clip_norm)
                    optimizer.step()
                    correct = (logits.detach().argmax(1) == labels).sum()
                    return torch.stack([loss.detach().double() * len(labels), correct.double()])

                with _peers_named(), self._memory_named(where):
                    loss, top1 = self._epoch(part, step, bar, where)
                    self._share_statistics(model)
                if not all(bool(tensor.isfinite().all()) for tensor in model.state_dict().values()):
                    raise self._diverged(f"the weights are not finite after {where}")
                self.epochs_done += 1
                if after_epoch is not None:
                    seconds = time.perf_counter() - started
                    after_epoch(Epoch(phase, index, epochs, loss, top1, seconds), FitState(index + 1, optimizer.state_dict()))

    def _compiled(self, model: nn.Module) -> nn.Module:
        """The model as it is called in training."""
        if not self.settings.compile:
            return model
        import torch._dynamo

        torch._dynamo.reset()  # after a surgery nothing compiled before is of use
        return torch.compile(model)  # type: ignore[return-value]

    @torch.no_grad()
    def _average_gradients(self, model: nn.Module, images: int) -> None:
        """The gradient of the whole batch, of which this process had so many images, in one sum over all processes.

        In one piece, so that the order of summation, and with it the last bit, is the same in a run that was resumed
        (DistributedDataParallel chooses its pieces by what it saw in its first steps).
        """
        if self._world == 1:
            return
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        flat = torch.cat([*(gradient.reshape(-1) for gradient in gradients), torch.ones(1, device=self.device)])
        total = self._sum(flat * images)
        sizes = [gradient.numel() for gradient in gradients]
        for gradient, mean in zip(gradients, torch.split(total[:-1] / total[-1], sizes), strict=True):
            gradient.copy_(mean.view(gradient.shape))  # in the gradient's own layout, which the optimizer counts on

    def _epoch(self, train: Loader, step: Callable[[Tensor, Tensor, int], Tensor], bar: Phase, where: str) -> tuple[float, float]:
        """One pass over the training images; mean loss and accuracy in percent."""
        sums = torch.zeros(3, dtype=torch.float64, device=self.device)  # loss, correct, seen
        mean, top1 = 0.0, 0.0
        for number, (images, labels) in enumerate(train.epoch(self.epochs_done), start=1):
            images, labels = images.to(self.device, non_blocking=True), labels.to(self.device, non_blocking=True)
            sums[:2] += step(images, labels, number - 1)
            sums[2] += len(labels)
            if number % READ_EVERY and number != len(train):
                bar.step(None, None)
                continue
            loss_sum, correct, seen = self._sum(sums).tolist()
            mean, top1 = loss_sum / seen, 100 * correct / seen
            if not math.isfinite(mean):
                raise self._diverged(f"the loss is {mean} in {where}")
            bar.step(mean, top1)
        return mean, top1

    def _sum(self, values: Tensor) -> Tensor:
        """The sum over all processes."""
        if self._world == 1:
            return values
        return cast(Tensor, self._fabric.all_reduce(values.clone(), reduce_op="sum"))

    @torch.no_grad()
    def _share_statistics(self, model: nn.Module) -> None:
        """Batch norm's running statistics become the mean over all processes, each of which saw its part of the images."""
        if self._world > 1:
            for buffer in model.buffers():
                if buffer.is_floating_point():
                    buffer.copy_(self._sum(buffer) / self._world)

    def _diverged(self, message: str) -> DivergedError:
        return DivergedError(message, f"try a lower learning rate, for example --lr {self.settings.lr / 3:.2g}")

    def _optimizer(self, model: nn.Module) -> Optimizer:
        s = self.settings
        # Weight decay pulls weights, not biases and batch norm's scales.
        decayed = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
        plain = [p for p in model.parameters() if p.requires_grad and p.ndim <= 1]
        return SGD(
            [{"params": decayed, "weight_decay": s.weight_decay}, {"params": plain, "weight_decay": 0.0}],
            lr=s.lr,
            momentum=s.momentum,
            nesterov=s.momentum > 0,
            fused=True,
        )

    @torch.no_grad()
    def evaluate(self, model: nn.Module, loader: Loader) -> Score:
        """Top-1 accuracy in percent and mean cross-entropy over a split, in full precision. The model is put into eval mode."""
        model.eval()
        sums = torch.zeros(3, dtype=torch.float64, device=self.device)
        with _peers_named(), self._memory_named("measuring accuracy"):
            for images, labels in loader.shard(processes.rank(), self._world).epoch(0):
                if not len(labels):
                    continue
                images, labels = images.to(self.device), labels.to(self.device)
                logits = model(images)
                sums[0] += F.cross_entropy(logits, labels, reduction="sum")
                sums[1] += (logits.argmax(1) == labels).sum()
                sums[2] += len(labels)
            loss, correct, samples = self._sum(sums).tolist()
        return Score(100 * correct / samples, loss / samples, int(samples))

    @contextmanager
    def _memory_named(self, where: str) -> Iterator[None]:
        """Say which batch size to try where memory runs out."""
        try:
            yield
        except (MemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error):
                raise
            size = self.settings.batch_size
            raise MemoryShortError(
                f"out of memory in {where}, with batches of {size} images", f"try --batch-size {max(1, size // 2)}"
            ) from error


def _is_out_of_memory(error: Exception) -> bool:
    words = ("can't allocate memory", "not enough memory", "bad_alloc", "out of memory")
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(word in str(error) for word in words)


@contextmanager
def _peers_named() -> Iterator[None]:
    """Say plainly what a broken connection to another process means."""
    try:
        yield
    except RuntimeError as error:
        lost = isinstance(error, torch.distributed.DistError) or any(w in str(error) for w in ("gloo", "NCCL", "Connection"))
        if processes.world() == 1 or not lost:
            raise
        raise PeerError("another process of this run has stopped", "what was saved can be resumed") from error


def seed_everything(seed: int, number: int) -> None:
    """Seed Python, numpy and torch for epoch `number`: what users' loaders and dropout draw can be had again."""
    value = (seed * 1_000_003 + number) % 2**63
    random.seed(value)
    np.random.seed(value % 2**32)
    torch.manual_seed(value)


@contextmanager
def _training(model: nn.Module) -> Iterator[None]:
    """Training mode in channels-last layout (a third faster on CPUs, faster on tensor cores); eval mode afterwards.

    Also back in the layout that a loaded network has: kernels differ in the last bits between layouts.
    """
    model.to(memory_format=torch.channels_last)
    model.train()
    try:
        yield
    finally:
        model.to(memory_format=torch.contiguous_format)
        model.eval()


def lr_factor(schedule: str, progress: float) -> float:
    """The learning rate as a share of its peak, after a share `progress` of all steps.

    `onecycle` rises linearly over the first fifth and then falls to 0 along a cosine; `cosine` only falls.
    """
    if schedule == "constant":
        return 1.0
    warmup = 0.2 if schedule == "onecycle" else 0.0
    if progress < warmup:
        return 0.05 + 0.95 * progress / warmup
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (progress - warmup) / (1 - warmup))))


def pick_device(name: str) -> torch.device:
    """`auto` is the GPU where there is one; of several, this process's own."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise SettingsError("--device cuda: there is no CUDA device here", "use --device cpu")
    return torch.device(name, processes.local_rank()) if name == "cuda" else torch.device(name)


def pick_precision(name: str, device: torch.device) -> Literal["32-true", "bf16-mixed"]:
    """Fabric's name for `32` or `bf16` (autocast in training; weights, optimizer and accuracy stay in 32 bits).

    `auto` is bf16 where the processor computes in it: half as fast again at the same accuracy (`docs/training.md`).
    """
    if name == "auto":
        native = torch.cuda.is_bf16_supported(including_emulation=False) if device.type == "cuda" else "bf16" in instructions()
        name = "bf16" if native else "32"
    return "bf16-mixed" if name == "bf16" else "32-true"


logging.getLogger("lightning_fabric").setLevel(logging.ERROR)
