"""The training loop, and accuracy. The optimizer lives here; what is trained, and why, does not."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, Optimizer

from slimcli import processes
from slimcli.errors import DivergedError, MemoryShortError
from slimcli.measures import Loader, Score, Task
from slimcli.networks.modes import channels_last, evaluating
from slimcli.networks.tasks import is_out_of_memory, loss_of, moved, score_of
from slimcli.progress import Phase, Progress
from slimcli.settings import FitSettings
from slimcli.training.group import Group
from slimcli.training.losses import PLAIN, Objective

READ_EVERY = 20  # steps between two looks at the loss: each look makes the host wait for the device


@dataclass(frozen=True)
class Epoch:
    """One epoch of training: mean loss (penalty included), training accuracy in percent (None in another task), seconds."""

    phase: str
    index: int
    epochs: int
    loss: float
    top1: float | None
    seconds: float


@dataclass(frozen=True)
class FitState:
    """A phase between two epochs: how many are done, and the optimizer's state. The learning rate follows from both counts."""

    epochs: int
    optimizer: dict[str, Any]


class Engine:
    """Trains and evaluates one network after another with the same settings, and counts the epochs of the whole run.

    With several processes (`group`) each takes its part of every batch; losses, gradients, batch-norm statistics and
    accuracies are those of all. `epochs_done` and `lr_scale` are part of a run's state: set them when a run goes on.
    """

    def __init__(self, settings: FitSettings, progress: Progress | None = None) -> None:
        self.settings = settings
        self.progress = progress or Progress()
        self.group = Group(settings)
        self.device = self.group.device
        self.epochs_done = 0
        self.lr_scale = 1.0
        self._rate = ("--lr", settings.lr)
        torch.manual_seed(settings.seed)

    def fit(
        self,
        model: nn.Module,
        train: Loader,
        epochs: int,
        phase: str,
        objective: Objective = PLAIN,
        after_epoch: Callable[[Epoch, FitState], bool | None] | None = None,
        schedule: str | None = None,
        done: FitState | None = None,
        lr: float | None = None,
    ) -> None:
        """Train for `epochs` epochs under a learning-rate schedule of that length, with a new optimizer; or go on from `done`.

        `objective` says what is trained towards beside the task's loss. `after_epoch` ends the phase where it returns True.
        Everything random in an epoch follows from the seed and the number of epochs done, so that a phase that goes on ends as
        one that was not interrupted. Raises `DivergedError` at the first look at a loss that is not finite, or at weights that
        are not at an epoch's end (before `after_epoch` could take them for good), and `MemoryShortError`. The model ends in
        eval mode.
        """
        rate = self.settings.lr if lr is None else lr
        self._rate = ("--lr" if lr is None else "--final-lr", rate)
        first = done.epochs if done is not None else 0
        if first >= epochs:
            return
        part = train.shard(self.group.rank, self.group.size)
        with _training(model), self.progress.phase(phase, epochs, len(part), first) as bar:
            optimizer = self._optimizer(model)
            if done is not None:
                optimizer.load_state_dict(done.optimizer)
            forward = self._compiled(model)
            for index in range(first, epochs):
                started = time.perf_counter()
                where = f"epoch {index + 1} of {epochs} ({phase})"
                seed_everything(self.settings.seed, self.epochs_done)

                def step(batch: Any, number: int, index: int = index) -> Tensor:
                    progress = (index + number / len(part)) / epochs
                    for group in optimizer.param_groups:
                        group["lr"] = self.lr_scale * rate * lr_factor(schedule or self.settings.schedule, progress)
                    loss, correct = self._loss(forward, batch, train.task, objective)
                    if objective.penalty is not None:
                        loss = loss + objective.penalty(model)
                    optimizer.zero_grad(set_to_none=True)
                    loss.backward()  # type: ignore[no-untyped-call]
                    self._average_gradients(model, len(batch[0]))
                    if self.settings.clip_norm:
                        # Right after a removal a few steps have gradients that would throw the survivors away.
                        nn.utils.clip_grad_norm_(model.parameters(), self.settings.clip_norm)
                    optimizer.step()
                    if objective.constraint is not None:
                        objective.constraint(model, index * len(part) + number + 1, epochs * len(part))
                    return torch.stack([loss.detach().double() * len(batch[0]), correct.double()])

                with self.group.losses_named(), self.memory_named(where):
                    loss, accuracy = self._epoch(part, step, bar, where)
                    top1 = accuracy if train.task.classifies else None
                    self._share_statistics(model)
                if not all(bool(tensor.isfinite().all()) for tensor in model.state_dict().values()):
                    raise self._diverged(f"the weights are not finite after {where}")
                self.epochs_done += 1
                if after_epoch is not None:
                    seconds = time.perf_counter() - started
                    epoch = Epoch(phase, index, epochs, loss, top1, seconds)
                    if after_epoch(epoch, FitState(index + 1, optimizer.state_dict())):
                        break

    def _loss(self, forward: nn.Module, batch: Any, task: Task, objective: Objective) -> tuple[Tensor, Tensor]:
        """The mean loss of a batch, and how many of its images are classified as they should be (nothing, in another task)."""
        if task.loss is not None:
            with self.group.autocast():
                loss = loss_of(task, forward, batch)
            return loss.float(), torch.zeros((), device=self.device)
        images, labels = batch
        with self.group.autocast():
            logits = forward(images)
        logits = logits.float()
        loss = F.cross_entropy(logits, labels, label_smoothing=self.settings.label_smoothing)
        if objective.teacher is not None:
            with self.group.autocast():
                loss = objective.teacher.blend(loss, logits, images)
        return loss, (logits.detach().argmax(1) == labels).sum()

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
        if self.group.size == 1:
            return
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        flat = torch.cat([*(gradient.reshape(-1) for gradient in gradients), torch.ones(1, device=self.device)])
        total = self.group.sum(flat * images)
        sizes = [gradient.numel() for gradient in gradients]
        for gradient, mean in zip(gradients, torch.split(total[:-1] / total[-1], sizes), strict=True):
            gradient.copy_(mean.view(gradient.shape))  # in the gradient's own layout, which the optimizer counts on

    def _epoch(self, train: Loader, step: Callable[[Any, int], Tensor], bar: Phase, where: str) -> tuple[float, float]:
        """One pass over the training images; mean loss and accuracy in percent."""
        sums = torch.zeros(3, dtype=torch.float64, device=self.device)  # loss, correct, seen

        def read() -> tuple[float, float]:
            loss_sum, correct, seen = self.group.sum(sums).tolist()
            if not math.isfinite(loss_sum):
                raise self._diverged(f"the loss is {loss_sum / seen} in {where}")
            return loss_sum / seen, 100 * correct / seen

        def tell(loss: float, accuracy: float) -> None:
            bar.step(loss, accuracy if train.task.classifies else None)

        for number, batch in enumerate(train.epoch(self.epochs_done)):
            if number and number % READ_EVERY == 0:
                tell(*read())
            elif number:
                bar.step(None, None)
            batch = moved(batch, self.device)
            sums[:2] += step(batch, number)
            sums[2] += len(batch[0])
        mean, accuracy = read()
        tell(mean, accuracy)
        return mean, accuracy

    @torch.no_grad()
    def _share_statistics(self, model: nn.Module) -> None:
        """Batch norm's running statistics become the mean over all processes, each of which saw its part of the images."""
        if self.group.size > 1:
            for buffer in model.buffers():
                if buffer.is_floating_point():
                    buffer.copy_(self.group.sum(buffer) / self.group.size)

    def _diverged(self, message: str) -> DivergedError:
        flag, rate = self._rate
        return DivergedError(message, f"try a lower learning rate, for example {flag} {rate * self.lr_scale / 3:.2g}")

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
        """Top-1 accuracy in percent and mean cross-entropy over a split (or the task's own score and loss), in eval mode and in
        full precision.

        What a user's loader draws at random follows from the seed and the epochs done, as in training.
        """
        seed_everything(self.settings.seed, self.epochs_done)
        if not loader.task.classifies:
            return self._own_score(model, loader)
        sums = torch.zeros(3, dtype=torch.float64, device=self.device)
        with evaluating(model), channels_last(model), self.group.losses_named(), self.memory_named("measuring accuracy"):
            for images, labels in loader.shard(self.group.rank, self.group.size).epoch(0):
                if not len(labels):
                    continue
                images, labels = images.to(self.device), labels.to(self.device)
                logits = model(images)
                sums[0] += F.cross_entropy(logits, labels, reduction="sum")
                sums[1] += (logits.argmax(1) == labels).sum()
                sums[2] += len(labels)
            loss, correct, samples = self.group.sum(sums).tolist()
        return Score(100 * correct / samples, loss / samples, int(samples))

    def _own_score(self, model: nn.Module, loader: Loader) -> Score:
        """The score and the mean loss of a user's task: of the whole split, which no sum over parts of it would give; measured in
        process 0.
        """
        if not processes.is_main():
            return self.group.broadcast(Score(0.0, 0.0, 0))
        task, whole, total = loader.task, loader.shard(0, 1), 0.0
        with evaluating(model), channels_last(model), self.memory_named("measuring the score"):
            for batch in whole.epoch(0):
                batch = moved(batch, self.device)
                total += float(loss_of(task, model, batch)) * len(batch[0])
            value = score_of(task, model, (moved(batch, self.device) for batch in whole.epoch(0)))
        return self.group.broadcast(Score(value, total / loader.samples, loader.samples, task.measure))

    @contextmanager
    def memory_named(self, where: str) -> Iterator[None]:
        """Say which batch size to try where memory runs out."""
        try:
            yield
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            raise MemoryShortError(where, self.settings.batch_size) from error


def seed_everything(seed: int, number: int) -> None:
    """Seed Python, numpy and torch for epoch `number`: what users' loaders and dropout draw can be had again."""
    value = (seed * 1_000_003 + number) % 2**63
    random.seed(value)
    np.random.seed(value % 2**32)
    torch.manual_seed(value)


@contextmanager
def _training(model: nn.Module) -> Iterator[None]:
    """Training mode; eval mode afterwards."""
    model.train()
    try:
        with channels_last(model):
            yield
    finally:
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
