"""The error tree. `slimcli.cli.main` catches its root; each class names the exit code of the command.

SlimError
├── InputError            2   wrong use or bad input; nothing was written
│   ├── CheckpointError       a file that is no checkpoint, or one that does not fit its network
│   ├── ArchError             a network that cannot be named, built or pruned
│   ├── DataError             a data set that cannot be found, read or held
│   ├── SettingsError         a setting outside its range, or two that contradict each other
│   └── RunDirError           a run folder that is taken, in use, incomplete or damaged
└── FellShortError        1   the work ran, but its result is not what was asked for
    ├── ParityError           a file that computes something else than the network it came from
    ├── DivergedError         the loss is not finite
    ├── FlowError             a flow that cannot be measured
    ├── StorageError          the disk is full or broken
    ├── MemoryShortError      the network and its batches do not fit into memory
    └── PeerError             another process of the run has stopped, or has another network
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class SlimError(Exception):
    """Carries one sentence that names the input and the reason, and a hint: the way out."""

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class InputError(SlimError):
    """Wrong use or bad input."""

    exit_code = 2


class CheckpointError(InputError):
    """A file that is no checkpoint, or one that does not fit its network."""


class ArchError(InputError):
    """A network that cannot be named, built or pruned."""


class DataError(InputError):
    """A data set that cannot be found, read or held."""


class SettingsError(InputError):
    """A setting outside its range, or two that contradict each other."""


class RunDirError(InputError):
    """A run folder that is taken, in use, incomplete or damaged."""


class FellShortError(SlimError):
    """The work ran, but its result is not what was asked for."""


class ParityError(FellShortError):
    """A file (an export, a saved checkpoint) does not compute what the network it came from computes, or cannot be made."""


class DivergedError(FellShortError):
    """The training loss is not finite."""


class FlowError(FellShortError):
    """The flow through a network cannot be measured: activations or gradients are not finite, or there are no images."""


class StorageError(FellShortError):
    """A file of the run cannot be written: the disk is full or broken. What was written before is whole."""


class MemoryShortError(FellShortError):
    """The network and its batches do not fit into memory. `flag` is what to try instead."""

    def __init__(self, where: str, batch_size: int) -> None:
        self.flag = f"--batch-size {max(1, batch_size // 2)}"
        super().__init__(f"out of memory in {where}, with batches of {batch_size} images", f"try {self.flag}")


class PeerError(FellShortError):
    """Another process of the run has stopped, or does not have the same network."""


class Terminated(BaseException):
    """SIGTERM arrived: what runs ends as it does on Ctrl-C."""


def suggest(name: str, known: Iterable[str]) -> str:
    """A hint that names the nearest known name, or all of them when none is near."""
    names = sorted(known)
    for typed in (name, name.lower()):
        if near := difflib.get_close_matches(typed, names, n=1, cutoff=0.5):
            return f"did you mean {near[0]!r}?"
    return f"known are: {', '.join(names)}" if names else "none is known here"
