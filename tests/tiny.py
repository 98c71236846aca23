"""Tiny networks, one for each way in which layers hang together. All take images (N, 3, 8, 8).

`norms` says which norm follows a layer and where in it the layer's channels start; `pads` which shortcut is added
to a layer's output. With these the tests zero channels by hand, without asking the code that they test.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm
from torch.utils._pytree import tree_leaves

from slimcli.networks.resnet import CifarResNet

SHAPE = (3, 8, 8)


class Tiny(nn.Module):
    """Base: no batch norms, no shortcuts."""

    norms: ClassVar[dict[str, tuple[str, int]]] = {}
    pads: ClassVar[dict[str, str]] = {}


class Chain(Tiny):
    """Convs with batch norm, then flattened maps into a hidden linear layer."""

    norms: ClassVar = {"conv1": ("bn1", 0), "conv2": ("bn2", 0)}

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6)
        self.conv2, self.bn2 = nn.Conv2d(6, 5, 3), nn.BatchNorm2d(5)
        self.fc1, self.fc2 = nn.Linear(5 * 2 * 2, 7), nn.Linear(7, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.max_pool2d(F.relu(self.bn2(self.conv2(x))), 2)
        return self.fc2(F.relu(self.fc1(torch.flatten(x, 1))))


class Residual(Tiny):
    """An identity shortcut ties two layers, a conv shortcut three."""

    norms: ClassVar = {"stem": ("bn0", 0), "a": ("bna", 0), "b": ("bnb", 0), "c": ("bnc", 0), "short": ("bns", 0)}

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn0 = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.a, self.bna = nn.Conv2d(6, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.b, self.bnb = nn.Conv2d(4, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.c, self.bnc = nn.Conv2d(6, 9, 3, padding=1, stride=2), nn.BatchNorm2d(9)
        self.short, self.bns = nn.Conv2d(6, 9, 1, stride=2), nn.BatchNorm2d(9)
        self.fc = nn.Linear(9, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn0(self.stem(x)))
        x = F.relu(self.bnb(self.b(F.relu(self.bna(self.a(x))))) + x)
        x = F.relu(self.bnc(self.c(x)) + self.bns(self.short(x)))
        return self.fc(x.mean((2, 3)))


class Depthwise(Tiny):
    """A depthwise conv takes its channels from the layer before."""

    norms: ClassVar = {"a": ("bn", 0)}

    def __init__(self) -> None:
        super().__init__()
        self.a, self.bn = nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6)
        self.deep = nn.Conv2d(6, 6, 3, groups=6)
        self.b, self.fc = nn.Conv2d(6, 5, 1), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.deep(F.relu6(self.bn(self.a(x)))))
        return self.fc(F.relu(self.b(x)).mean((2, 3)))


class Concat(Tiny):
    """Two branches side by side, one batch norm over both."""

    norms: ClassVar = {"a": ("bn", 0), "b": ("bn", 4)}

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 6, 1)
        self.bn = nn.BatchNorm2d(10)
        self.c, self.fc = nn.Conv2d(10, 5, 3), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(torch.cat([self.a(x), self.b(x)], 1)))
        return self.fc(F.relu(self.c(x)).mean((2, 3)))


class FlattenedConcat(Tiny):
    """Two branches side by side, flattened together into a hidden linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 6, 1)
        self.fc1, self.fc2 = nn.Linear(10 * 4 * 4, 7), nn.Linear(7, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(torch.cat([self.a(x), self.b(x)], -3)), 2)
        return self.fc2(F.relu(self.fc1(x.flatten(1))))


class ConcatFlattened(Tiny):
    """Maps of two sizes and a vector, each flattened first, side by side into a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 6, 1, stride=4), nn.Conv2d(3, 5, 3)
        self.fc1, self.fc2 = nn.Linear(4 * 64 + 6 * 4 + 5, 7), nn.Linear(7, 4)

    def forward(self, x: Tensor) -> Tensor:
        maps, c = (F.relu(self.a(x)), F.relu(self.b(x))), F.relu(self.c(x)).mean((2, 3))
        return self.fc2(F.relu(self.fc1(torch.cat([*(each.reshape(len(x), -1) for each in maps), c], 1))))


class BesideImage(Tiny):
    """What a layer gives stands beside the image itself, and the two are flattened."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.fc = nn.Conv2d(3, 6, 1), nn.Conv2d(9, 5, 3, padding=1), nn.Linear(8 * 4 * 4, 4)

    def forward(self, x: Tensor) -> Tensor:
        inner = F.relu(self.b(torch.cat([x, F.relu(self.a(x))], 1)))
        return self.fc(F.max_pool2d(torch.cat([x, inner], 1), 2).flatten(1))


class SlopedConcat(Tiny):
    """One slope for all channels of a branch: what torch-pruning cannot size stands before a concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.slope = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 6, 1), nn.PReLU()
        self.c, self.fc = nn.Conv2d(10, 5, 3), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.c(torch.cat([self.slope(self.a(x)), F.relu(self.b(x))], 1)))
        return self.fc(x.mean((2, 3)))


class CatchNaN(torch.autograd.Function):
    """A step of a user's own, whose name begins as that of one of torch's."""

    @staticmethod
    def forward(context: Any, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        return gradient * 2


class OwnStep(Tiny):
    """Steps of a user's own between layers and before a concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.fc = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 6, 1), nn.Linear(10 * 36, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = CatchNaN.apply(F.relu(self.a(x)))
        return self.fc(CatchNaN.apply(torch.cat([x, F.relu(self.b(x))], 1)).flatten(1))


class SizedSplit(Tiny):
    """Parts of named sizes, one of which is read twice; and an uneven one over two branches: none of those before can go."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.both = nn.Conv2d(3, 8, 3), nn.Conv2d(4, 5, 1), nn.Conv2d(4, 5, 1)
        self.c, self.d, self.fc = nn.Conv2d(4, 6, 1), nn.Conv2d(6, 6, 1), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        first, second = F.relu(self.a(x)).split([4, 4], 1)
        one, other = torch.cat([F.relu(self.b(first)), F.relu(self.both(first) + self.both(second))], 1).split([4, 6], 1)
        return self.fc(F.relu(self.c(one) + self.d(other)).mean((2, 3)))


class SpatialSplit(Tiny):
    """The left and the right half of a map, and channels last beside each other."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 6, 1), nn.Linear(6, 5), nn.Linear(11, 7)
        self.fc = nn.Linear(7 * 16, 4)

    def forward(self, x: Tensor) -> Tensor:
        left, right = F.relu(self.a(x)).chunk(2, -1)
        x = (left - right).permute(0, 2, 3, 1)
        x = F.relu(self.c(torch.cat([x, F.relu(self.b(x))], 3)))
        return self.fc(F.max_pool2d(x.movedim(-1, 1), (2, 1)).movedim(1, -1).flatten(1))


class UnevenChunk(Tiny):
    """Seven channels in two parts, four and three: which are where depends on how many there are."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.fc = nn.Conv2d(3, 7, 3), nn.Conv2d(4, 6, 1), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.b(F.relu(self.a(x)).chunk(2, 1)[0])).mean((2, 3)))


class FixedSplit(Tiny):
    """Parts of a fixed size, one of which is passed on (Res2Net): their layers cannot go, what follows can."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = nn.Conv2d(3, 12, 3), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 6, 1), nn.Conv2d(14, 5, 3)
        self.fc = nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        first, second, last = F.relu(self.a(x)).split(4, 1)
        first = F.relu(self.b(first))
        second = F.relu(self.c(second + first))
        return self.fc(F.relu(self.d(torch.cat([first, second, last], 1))).mean((2, 3)))


class ConcatDepthwise(Tiny):
    """Two branches side by side, one depthwise conv over both: its channels belong to two groups."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 6, 1)
        self.deep = nn.Conv2d(10, 10, 3, padding=1, groups=10)
        self.c, self.fc = nn.Conv2d(10, 5, 3), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.deep(F.relu(torch.cat([self.a(x), self.b(x)], 1))))
        return self.fc(F.relu(self.c(x)).mean((2, 3)))


class Grouped(Tiny):
    """A conv in two groups of channels."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=2), nn.Conv2d(8, 6, 3)
        self.fc = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.c(F.relu(self.b(F.relu(self.a(x))))))
        return self.fc(x.mean((2, 3)))


class GroupedConcat(Tiny):
    """A conv in two groups, each of which reads one of two branches: neither can lose channels alone."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 3)
        self.both, self.c, self.fc = nn.Conv2d(16, 16, 3, groups=2), nn.Conv2d(16, 6, 3), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.both(F.relu(torch.cat([self.a(x), self.b(x)], 1))))
        return self.fc(F.relu(self.c(x)).mean((2, 3)))


class Multiplied(Tiny):
    """A depthwise conv with three filters for each channel that it reads."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.deep, self.c = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 12, 3, groups=4), nn.Conv2d(12, 6, 3)
        self.fc = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.c(F.relu(self.deep(F.relu(self.a(x)))))).mean((2, 3)))


class GatedHalves(Tiny):
    """One half of a layer's channels gates the other half: two channels are one unit."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.fc = nn.Conv2d(3, 16, 3), nn.Conv2d(8, 6, 3), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.a(x).chunk(2, 1)
        return self.fc(F.relu(self.b(left * torch.tanh(right))).mean((2, 3)))


class CrossStage(Tiny):
    """One half of a layer's channels is passed on, the other goes through a conv; then they are concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 12, 3), nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(12, 6, 3)
        self.fc = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        left, right = F.relu(self.a(x)).chunk(2, 1)
        return self.fc(F.relu(self.c(torch.cat([left, F.relu(self.b(right))], 1))).mean((2, 3)))


class SummedHalves(Tiny):
    """Each half of a layer's channels goes through its own conv: two channels are one unit, as both halves must stay as wide."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.left, self.right = nn.Conv2d(3, 8, 3), nn.Conv2d(4, 6, 3), nn.Conv2d(4, 6, 3)
        self.fc = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        left, right = F.relu(self.a(x)).chunk(2, 1)
        return self.fc(F.relu(self.left(left) + self.right(right)).mean((2, 3)))


class Gated(Tiny):
    """Squeeze and excitation: a branch scales the channels that it reads."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.squeeze, self.excite = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 4, 1), nn.Conv2d(4, 6, 1)
        self.b, self.fc = nn.Conv2d(6, 5, 3), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(x))
        gate = torch.sigmoid(self.excite(F.relu(self.squeeze(x.mean((2, 3), keepdim=True)))))
        return self.fc(F.relu(self.b(x * gate)).mean((2, 3)))


class Twice(Tiny):
    """One conv used twice: its outputs are its own inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.fc = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3, padding=1), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.b(F.relu(self.b(F.relu(self.a(x)))))).mean((2, 3)))


class Transposed(Tiny):
    """A transposed conv between two convs."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.up, self.b = nn.Conv2d(3, 6, 3), nn.ConvTranspose2d(6, 5, 2, 2), nn.Conv2d(5, 4, 3)
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.b(F.relu(self.up(F.relu(self.a(x)))))).mean((2, 3)))


class Hourglass(Tiny):
    """A small U-Net: a transposed conv leads back up to where a shortcut is concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.deep = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 6, 3, padding=1)
        self.up, self.last, self.fc = nn.ConvTranspose2d(6, 5, 2, 2), nn.Conv2d(9, 5, 1), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.down(x))
        x = torch.cat([F.relu(self.up(F.relu(self.deep(F.max_pool2d(x, 2))))), x], 1)
        return self.fc(F.relu(self.last(x)).mean((2, 3)))


class Signal(Tiny):
    """Convs over one dimension."""

    norms: ClassVar = {"a": ("bn", 0)}

    def __init__(self) -> None:
        super().__init__()
        self.a, self.bn, self.b = nn.Conv1d(3, 6, 5), nn.BatchNorm1d(6), nn.Conv1d(6, 5, 3)
        self.fc = nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.b(F.relu(self.bn(self.a(x.flatten(2)))))).mean(2))


class FlattenedSignal(Tiny):
    """Convs over one dimension, flattened; and tokens, whose channels come last, flattened."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv1d(3, 6, 5), nn.Conv1d(6, 5, 3, stride=2)
        self.c, self.d = nn.Conv1d(3, 7, 1), nn.Conv1d(7, 6, 8, stride=8)
        self.fc1, self.fc2 = nn.Linear(5 * 29 + 8 * 6, 7), nn.Linear(7, 4)

    def forward(self, x: Tensor) -> Tensor:
        signal = x.flatten(2)
        tokens = F.relu(self.d(F.relu(self.c(signal)))).transpose(1, 2)
        parts = F.relu(self.b(F.relu(self.a(signal)))).flatten(1), tokens.flatten(1)
        return self.fc2(F.relu(self.fc1(torch.cat(parts, -1))))


class Volume(Tiny):
    """Convs over three dimensions."""

    norms: ClassVar = {"a": ("bn", 0)}

    def __init__(self) -> None:
        super().__init__()
        self.a, self.bn, self.b = nn.Conv3d(3, 6, 3, padding=1), nn.BatchNorm3d(6), nn.Conv3d(6, 5, 1)
        self.fc = nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.a(x.reshape(len(x), 3, 4, 4, 4))))
        return self.fc(F.relu(self.b(x)).mean((2, 3, 4)))


class TwoHeads(Tiny):
    """Two outputs, by name and as a pair: each branch has its own classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 5, 3)
        self.fc, self.map = nn.Linear(5, 4), nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Any:
        x = F.relu(self.a(x))
        return {"classes": self.fc(F.relu(self.b(x)).mean((2, 3))), "maps": (self.map(x), None)}


class Labels(Tiny):
    """Gives which class it is beside the logits: whole numbers, and whether any is sure of it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.fc = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 5, 3), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Any:
        logits = self.fc(F.relu(self.b(F.relu(self.a(x)))).mean((2, 3)))
        return logits, logits.argmax(1), (logits.softmax(1) > 0.5).any(1)


class Parametrized(Tiny):
    """The weight of one conv is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 6, 3), weight_norm(nn.Conv2d(6, 5, 3)), nn.Conv2d(5, 4, 3)
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.c(F.relu(self.b(F.relu(self.a(x)))))).mean((2, 3)))


class Sloped(Tiny):
    """Activations with a parameter per channel, and instance norm with its own scales."""

    norms: ClassVar = {"b": ("norm", 0)}

    def __init__(self) -> None:
        super().__init__()
        self.a, self.slope = nn.Conv2d(3, 6, 3), nn.PReLU(6)
        self.b, self.norm = nn.Conv2d(6, 5, 3), nn.InstanceNorm2d(5, affine=True)
        self.c, self.fc = nn.Conv2d(5, 6, 3), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.b(self.slope(self.a(x)))))
        return self.fc(F.relu(self.c(x)).mean((2, 3)))


class OneSlope(Tiny):
    """One slope for all channels, a layer that is called by keyword, and batch norm behind the flattened maps."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.slope, self.b = nn.Conv2d(3, 6, 3), nn.PReLU(), nn.Conv2d(6, 5, 3)
        self.norm, self.fc1, self.fc2 = nn.BatchNorm1d(5 * 16), nn.Linear(5 * 16, 7), nn.Linear(7, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.b(input=self.slope(self.a(x))))
        return self.fc2(F.relu(self.fc1(self.norm(torch.flatten(x, 1)))))


class Unscaled(Tiny):
    """Batch norm without scales of its own: its statistics alone say how wide it is."""

    norms: ClassVar = {"a": ("norm", 0)}

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6, affine=False)
        self.b, self.fc = nn.Conv2d(6, 5, 3), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.b(F.relu(self.norm(self.a(x))))).mean((2, 3)))


class Sigmoid(Tiny):
    """A channel at zero is a half behind the sigmoid, a removed one is nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.fc = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 5, 3), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.b(torch.sigmoid(self.a(x)))).mean((2, 3)))


class Shuffle(Tiny):
    """Four channels become one of twice the size."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.fc = nn.Conv2d(3, 8, 3), nn.Conv2d(2, 6, 3), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.b(F.relu(F.pixel_shuffle(self.a(x), 2)))).mean((2, 3)))


class LayerNormed(Tiny):
    """Layer norm's mean and variance are taken over the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b, self.fc = nn.Conv2d(3, 8, 3), nn.LayerNorm(8), nn.Linear(8, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.b(self.norm(self.a(x).permute(0, 2, 3, 1)))).mean((1, 2)))


class GroupNormed(Tiny):
    """Group norm's mean and variance are taken over half of the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.Conv2d(8, 6, 3)
        self.fc = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.b(F.relu(self.norm(self.a(x))))).mean((2, 3)))


class FixedView(Tiny):
    """A reshape that has the number of channels written into it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.fc = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 5, 3), nn.Linear(5 * 16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.b(F.relu(self.a(x)))).view(-1, 5 * 16))


class PaddedShortcut(Tiny):
    """Option A as most code has it: the channels are padded in the forward function, where no module shows it."""

    def __init__(self, width: int = 4, wider: int = 8) -> None:
        super().__init__()
        self.before = (wider - width) // 2
        self.after = wider - width - self.before
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.a, self.b = nn.Conv2d(width, wider, 3, padding=1, stride=2), nn.Conv2d(wider, wider, 3, padding=1)
        self.c, self.fc = nn.Conv2d(wider, 6, 3), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        short = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.before, self.after))
        x = F.relu(self.b(F.relu(self.a(x))) + short)
        return self.fc(F.relu(self.c(x)).mean((2, 3)))


class OptionA(CifarResNet):
    """The package's own CIFAR ResNet with one block per stage: its shortcuts pad channels in a module."""

    norms: ClassVar = {"conv1": ("bn1", 0)} | {
        f"layer{stage}.0.conv{n}": (f"layer{stage}.0.bn{n}", 0) for stage in (1, 2, 3) for n in (1, 2)
    }
    pads: ClassVar = {f"layer{stage}.0.conv2": f"layer{stage}.0.shortcut" for stage in (2, 3)}

    def __init__(self) -> None:
        super().__init__(1, 4, SHAPE)


ALL: tuple[type[nn.Module], ...] = (*Tiny.__subclasses__(), OptionA)


def lively(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model in float64 and eval mode, every weight and batch-norm statistic random: no channel is like another."""
    generator = torch.Generator().manual_seed(seed)
    model.double().eval()
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if not tensor.is_floating_point():
                continue
            noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
            if name.endswith("running_var"):
                tensor.copy_(0.5 + noise.abs())
            else:
                tensor.copy_(noise / max(1, tensor[0].numel()) ** 0.5 if tensor.ndim > 1 else noise)
    return model


def images(count: int = 4, seed: int = 1, shape: tuple[int, ...] = SHAPE) -> Tensor:
    """Random images in float64."""
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def together(output: Any) -> Tensor:
    """All tensors that a network gave, as one vector."""
    return torch.cat([leaf.flatten() for leaf in tree_leaves(output) if isinstance(leaf, Tensor)])
