"""The training loop, and accuracy. Device and optimizer live here; what is trained, and why, does not."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from slimcli.errors import DivergedError, SettingsError
from slimcli.progress import Phase, Progress
from slimcli.records import Loader, Score
from slimcli.settings import FitSettings


@dataclass(frozen=True)
class Epoch:
    """One epoch of training: mean loss (penalty included), training accuracy in percent, seconds."""

    phase: str
    index: int
    loss: float
    top1: float
    seconds: float


Penalty = Callable[[nn.Module], Tensor]
READ_EVERY = 20  # steps between two looks at the loss: each look makes the host wait for the device


class Engine:
    """Trains and evaluates one network after another with the same settings, and counts the epochs of the whole run."""

    def __init__(self, settings: FitSettings, progress: Progress | None = None) -> None:
        self.settings = settings
        self.progress = progress or Progress()
        self.device = pick_device(settings.device)
        self.epochs_done = 0
        torch.manual_seed(settings.seed)

    def fit(
        self,
        model: nn.Module,
        train: Loader,
        epochs: int,
        phase: str,
        penalty: Penalty | None = None,
        after_epoch: Callable[[Epoch], None] | None = None,
        schedule: str | None = None,
    ) -> None:
        """Train for `epochs` epochs under a learning-rate schedule of that length, with a new optimizer.

        Raises `DivergedError` at the first look at a loss that is not finite, or at weights that are not at an epoch's
        end (before `after_epoch` could take them for good). The model ends in eval mode.
        """
        if epochs == 0:
            return
        with _training(model), self.progress.phase(phase, epochs, len(train)) as bar:
            optimizer, scheduler = self._optimizer(model, epochs * len(train), schedule or self.settings.schedule)

            def step(logits: Tensor, labels: Tensor) -> Tensor:
                loss = F.cross_entropy(logits, labels, label_smoothing=self.settings.label_smoothing)
                if penalty is not None:
                    loss = loss + penalty(model)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                if self.settings.clip_norm:
                    # Right after a removal a few steps have gradients that would throw the survivors away.
                    nn.utils.clip_grad_norm_(model.parameters(), self.settings.clip_norm)
                optimizer.step()
                scheduler.step()
                return loss.detach()

            for index in range(epochs):
                started = time.perf_counter()
                where = f"epoch {index + 1} of {epochs} ({phase})"
                loss, top1 = self._epoch(model, train, step, bar, where)
                if not all(bool(tensor.isfinite().all()) for tensor in model.state_dict().values()):
                    raise self._diverged(f"the weights are not finite after {where}")
                self.epochs_done += 1
                if after_epoch is not None:
                    after_epoch(Epoch(phase, index, loss, top1, time.perf_counter() - started))

    def _epoch(
        self, model: nn.Module, train: Loader, step: Callable[[Tensor, Tensor], Tensor], bar: Phase, where: str
    ) -> tuple[float, float]:
        """One pass over the training images; mean loss and accuracy in percent."""
        loss_sum = torch.zeros((), dtype=torch.float64, device=self.device)
        correct = torch.zeros((), dtype=torch.int64, device=self.device)
        seen, mean, top1 = 0, 0.0, 0.0
        for number, (images, labels) in enumerate(train.epoch(self.epochs_done), start=1):
            images, labels = images.to(self.device), labels.to(self.device)
            logits = model(images)
            loss_sum += step(logits, labels) * len(labels)
            correct += (logits.detach().argmax(1) == labels).sum()
            seen += len(labels)
            if number % READ_EVERY and number != len(train):
                bar.step(None, None)
                continue
            mean, top1 = float(loss_sum) / seen, 100 * int(correct) / seen
            if not math.isfinite(mean):
                raise self._diverged(f"the loss is {mean} in {where}")
            bar.step(mean, top1)
        return mean, top1

    def _diverged(self, message: str) -> DivergedError:
        return DivergedError(message, f"try a lower learning rate, for example --lr {self.settings.lr / 3:.2g}")

    def _optimizer(self, model: nn.Module, steps: int, schedule: str) -> tuple[Optimizer, LambdaLR]:
        s = self.settings
        # Weight decay pulls weights, not biases and batch norm's scales.
        decayed = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
        plain = [p for p in model.parameters() if p.requires_grad and p.ndim <= 1]
        optimizer = SGD(
            [{"params": decayed, "weight_decay": s.weight_decay}, {"params": plain, "weight_decay": 0.0}],
            lr=s.lr,
            momentum=s.momentum,
            nesterov=s.momentum > 0,
            fused=True,
        )
        return optimizer, LambdaLR(optimizer, lambda step: lr_factor(schedule, step / steps))

    @torch.no_grad()
    def evaluate(self, model: nn.Module, loader: Loader) -> Score:
        """Top-1 accuracy in percent and mean cross-entropy over a split. The model is put into eval mode."""
        model.eval()
        loss = torch.zeros((), dtype=torch.float64, device=self.device)
        correct, samples = 0, 0
        for images, labels in loader.epoch(0):
            images, labels = images.to(self.device), labels.to(self.device)
            logits = model(images)
            loss += F.cross_entropy(logits, labels, reduction="sum")
            correct += int((logits.argmax(1) == labels).sum())
            samples += len(labels)
        return Score(100 * correct / samples, float(loss) / samples, samples)


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
    """`auto` is the GPU where there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise SettingsError("--device cuda: there is no CUDA device here", "use --device cpu")
    return torch.device(name)
