"""How much the layers of a network have to do with each other (information flow), and how much each still wants to change
(gradient flow): InCoP's Eq. 2 and 3.

Two layers are consecutive if one reads what the other wrote with no conv or linear layer in between (`dataflow.consecutive`). A
filter's value on an image is the spatial mean of its output, before batch norm and activation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from slimcli.errors import FlowError
from slimcli.measures import CLASSIFICATION, Task
from slimcli.networks.layers import by_filter, filters, layers_of
from slimcli.networks.modes import evaluating, same_random_numbers
from slimcli.networks.tasks import loss_of, moved
from slimcli.pruning.dataflow import consecutive
from slimcli.settings import FLOW_FORMS

Flow = Mapping[Any, Tensor]
"""By (writer, reader): a matrix, filters of the writer x filters of the reader. Or by layer: a vector over its filters."""

Sum = Callable[[Tensor], Tensor]
"""The sum of a tensor over all processes."""

_STILL = 1e-12
"""A filter whose variance is below this share of its squared mean does not vary: what is left is rounding."""


def _alone(tensor: Tensor) -> Tensor:
    return tensor


def information_flow(
    model: nn.Module,
    batches: Iterable[Any],
    form: str = "correlation",
    *,
    writers: Mapping[str, Sequence[str]] | None = None,
    total: Sum = _alone,
) -> dict[tuple[str, str], Tensor]:
    """For each two consecutive layers (writer, reader) a float32 matrix (filters of the writer, filters of the reader).

    `form` is `correlation` (over the images; 0 where a filter does not vary) or `raw`, Eq. 2's `E[f_i f_j]`. `batches` are
    image tensors (B, C, H, W), or tuples that begin with one, and are gone through once. Where several processes see a part of
    them each, `total` sums a tensor over the processes. The model is left as it is: modes, gradients, hooks, random numbers.

    Raises `ArchError` for a network with less than two consecutive layers, `FlowError` for activations that are not finite,
    and for no images.
    """
    if form not in FLOW_FORMS:
        raise ValueError(f"there is no form {form!r} of information flow, known are: {', '.join(FLOW_FORMS)}")
    with same_random_numbers(model):  # a loader that shuffles draws from them when it begins
        images = (batch if isinstance(batch, Tensor) else batch[0] for batch in batches)
        first = next(images, None)
        if first is None:
            raise FlowError("the information flow of no images is not defined", "give at least one batch")
        if writers is None:
            writers = consecutive(model, first.shape[1:])
        moments = _Moments(writers, model)
        with torch.no_grad(), _watched(model, moments.layers) as outputs:
            for batch in _chain(first, images):
                if not len(batch):  # a process may have no part of a last batch
                    continue
                outputs.clear()
                model(batch)
                moments.add({name: _spatial_mean(outputs, name) for name in moments.layers})
    return moments.flow(form, total)


def gradient_flow(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    task: Task = CLASSIFICATION,
    masks: Mapping[str, Tensor] | None = None,
    total: Sum = _alone,
) -> dict[str, Tensor]:
    """For each conv and linear layer a float32 vector: the Euclidean norm of each filter's gradient.

    It is the gradient of the mean loss (cross-entropy, or the task's own) over all images of `batches` (images, labels), times
    the layer's mask where `masks` has one by its name. Otherwise as `information_flow`.
    """
    return filter_gradients(model, gradients(model, batches, task=task, total=total), masks)


def gradients(model: nn.Module, batches: Iterable[Any], *, task: Task = CLASSIFICATION, total: Sum = _alone) -> dict[str, Tensor]:
    """For each conv and linear layer the gradient of the mean loss by its weights: float32, of the weights' shape."""
    sums = {name: torch.zeros_like(layer.weight, dtype=torch.float64) for name, layer in layers_of(model).items()}
    count = 0
    for of_batch, images in gradients_of_batches(model, batches, task):
        for name, gradient in of_batch.items():
            sums[name] += gradient
        count += images
    seen = float(total(torch.tensor(float(count), dtype=torch.float64, device=next(model.parameters()).device)))
    if not seen:
        raise FlowError("the gradient flow of no images is not defined", "give at least one batch")
    means = {name: (total(gradient) / seen).float() for name, gradient in sums.items()}
    for name, mean in means.items():
        if not bool(mean.isfinite().all()):
            raise FlowError(f"the gradient of {name} is not finite", "try a lower --lr")
    return means


def gradients_of_batches(
    model: nn.Module, batches: Iterable[Any], task: Task = CLASSIFICATION
) -> Iterator[tuple[dict[str, Tensor], int]]:
    """For each batch the gradients of the sum of its images' losses by the weights of all layers that it reaches, and how many
    images it has. The model is left as it is, once the iterator is at its end or closed.
    """
    weights = {name: layer.weight for name, layer in layers_of(model).items()}
    device = next(model.parameters()).device
    with _watched(model, ()), torch.enable_grad(), _requiring_grad(weights.values()):
        for batch in batches:
            if not (count := len(batch[0])):
                continue
            loss = _summed_loss(model, moved(batch, device), task)
            found = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
            yield {name: each for name, each in zip(weights, found, strict=True) if each is not None}, count


def _summed_loss(model: nn.Module, batch: Any, task: Task) -> Tensor:
    """The sum of the losses of a batch's images."""
    if not task.classifies:
        return loss_of(task, model, batch) * len(batch[0])
    images, labels = batch
    return F.cross_entropy(model(images).float(), labels, reduction="sum")


def filter_gradients(
    model: nn.Module, gradients: Mapping[str, Tensor], masks: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Of gradients by the model's weights (masked, where there are masks) the Euclidean norm of each filter's, by layer."""
    layers = layers_of(model)
    masked = {name: gradient * masks[name] if masks and name in masks else gradient for name, gradient in gradients.items()}
    return {
        name: torch.linalg.vector_norm(by_filter(layers[name], gradient).double().flatten(1), dim=1).float().cpu()
        for name, gradient in masked.items()
    }


class _Moments:
    """Counts, means, variances and cross products of all layers' values, in one pass.

    Each batch is centred on the first batch's mean and summed up in its own precision; the batches' sums are added in float64.
    So neither a large mean nor many images lose digits.
    """

    def __init__(self, writers: Mapping[str, Sequence[str]], model: nn.Module) -> None:
        self.writers = writers
        self.layers = tuple(dict.fromkeys([*writers, *(name for names in writers.values() for name in names)]))
        layers, device = layers_of(model), next(model.parameters()).device
        empty = {name: torch.zeros(filters(layers[name]), dtype=torch.float64, device=device) for name in self.layers}
        self._count = 0
        self._pivots: dict[str, Tensor] = {}
        self._sums, self._squares = dict(empty), dict(empty)
        self._products = {
            reader: torch.outer(torch.cat([empty[name] for name in names]), empty[reader]) for reader, names in writers.items()
        }

    def add(self, values: Mapping[str, Tensor]) -> None:
        """One batch: for each layer (B, filters)."""
        centred = {}
        for name, value in values.items():
            if name not in self._pivots:
                self._pivots[name] = value.mean(0)
            centred[name] = value - self._pivots[name]
            self._sums[name] = self._sums[name] + centred[name].sum(0)
            self._squares[name] = self._squares[name] + centred[name].square().sum(0)
        for reader, names in self.writers.items():
            read = torch.cat([centred[name] for name in names], 1)
            self._products[reader] += read.T @ centred[reader]
        self._count += len(next(iter(values.values())))

    def flow(self, form: str, total: Sum) -> dict[tuple[str, str], Tensor]:
        """What the sums of all processes amount to."""
        own_count = max(1, self._count)  # a process may have had no part of any batch: its sums are 0
        count = total(torch.full_like(next(iter(self._sums.values()))[:1], self._count))
        if float(count) == 0:
            raise FlowError("the information flow of no images is not defined", "give at least one batch")
        # Each process has its own pivots: moments about its own mean first, then about the mean of all (Chan et al., 1983).
        own = {name: self._sums[name] / own_count + self._pivots.get(name, 0.0) for name in self.layers}
        mean = {name: total(own[name] * self._count) / count for name in self.layers}
        offset = {name: own[name] - mean[name] for name in self.layers}
        variance = {}
        for name in self.layers:
            about_own = self._squares[name] - self._sums[name].square() / own_count
            variance[name] = (total(about_own + self._count * offset[name].square()) / count).clamp(min=0)
            if not bool(torch.isfinite(mean[name]).all() and torch.isfinite(variance[name]).all()):
                raise FlowError(f"{name} has activations that are not finite", "try a lower --lr, or another stopping rule")
        flow: dict[tuple[str, str], Tensor] = {}
        for reader, names in self.writers.items():
            sums, offsets, means, variances = (
                torch.cat([each[name] for name in names]) for each in (self._sums, offset, mean, variance)
            )
            about_own = self._products[reader] - torch.outer(sums, self._sums[reader]) / own_count
            covariance = total(about_own + self._count * torch.outer(offsets, offset[reader])) / count
            if form == "raw":
                matrix = covariance + torch.outer(means, mean[reader])
            else:
                scale = torch.outer(_scale(variances, means), _scale(variance[reader], mean[reader]))
                matrix = (covariance * scale).clamp(-1, 1)
            parts = torch.split(matrix.float().cpu(), [len(self._sums[name]) for name in names])
            flow |= {(name, reader): part for name, part in zip(names, parts, strict=True)}
        return flow


def _scale(variance: Tensor, mean: Tensor) -> Tensor:
    """One over the standard deviation; 0 where a filter does not vary."""
    still = variance <= _STILL * mean.square()
    return torch.where(still, torch.zeros_like(variance), variance.clamp(min=torch.finfo(torch.float64).tiny).rsqrt())


def _spatial_mean(outputs: Mapping[str, list[Tensor]], name: str) -> Tensor:
    """(B, filters): a layer's output averaged over positions, and over its calls where it is called more than once."""
    if name not in outputs:
        raise FlowError(f"{name} was not called for these images", "use another stopping rule")
    calls = outputs[name]
    return calls[0] if len(calls) == 1 else torch.stack(calls).mean(0)


def _chain(first: Tensor, rest: Iterator[Tensor]) -> Iterator[Tensor]:
    yield first
    yield from rest


@contextmanager
def _watched(model: nn.Module, names: Iterable[str]) -> Iterator[dict[str, list[Tensor]]]:
    """Eval mode, with the spatial means of these layers' outputs; everything as it was afterwards, random numbers too."""
    outputs: dict[str, list[Tensor]] = {}

    def record(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def hook(module: nn.Module, _: Any, output: Tensor) -> None:
            positions = tuple(range(1, output.ndim - 1) if isinstance(module, nn.Linear) else range(2, output.ndim))
            output = output if output.dtype == torch.float64 else output.float()
            outputs.setdefault(name, []).append(output.mean(positions) if positions else output)

        return hook

    handles = [model.get_submodule(name).register_forward_hook(record(name)) for name in names]
    try:
        with evaluating(model), same_random_numbers(model):
            yield outputs
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _requiring_grad(weights: Iterable[Tensor]) -> Iterator[None]:
    """Frozen weights have a gradient too while it is asked for."""
    frozen = [weight for weight in weights if not weight.requires_grad]
    for weight in frozen:
        weight.requires_grad_(True)
    try:
        yield
    finally:
        for weight in frozen:
            weight.requires_grad_(False)
