"""The processes of a run as one: device, precision, what they tell each other. The sole importer of the engine library."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from typing import Literal, TypeVar, cast

import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies.ddp import DDPStrategy
from torch import Tensor

from slimcli import processes
from slimcli.environment import instructions
from slimcli.errors import PeerError, SettingsError
from slimcli.records import JsonDict
from slimcli.settings import FitSettings
from slimcli.training import peers

T = TypeVar("T")
_LOST = ("/gloo/", "NCCL error", "Connection closed by peer", "Connection reset by peer")
_heartbeat: peers.Heartbeat | None = None  # one a process, however many runs a recipe goes through


class Group:
    """This process, and (after `launch`) the others of the run. Every process must come to each of these calls.

    `rank` and `size` are this process's number and how many there are.
    """

    def __init__(self, settings: FitSettings) -> None:
        self.device = pick_device(settings.device)
        self.size = 1
        self._settings = settings
        self._precision = pick_precision(settings.precision, self.device)
        self._fabric = Fabric(accelerator=self.device.type, devices=1, precision=self._precision)

    @property
    def rank(self) -> int:
        """0 for the process that writes and speaks."""
        return processes.rank() if self.size > 1 else 0

    def describe(self) -> JsonDict:
        """How this run computes, for its records."""
        precision = "bf16" if self._precision == "bf16-mixed" else "32"
        described = {"device": self.device.type, "precision": precision, "processes": self.size}
        return described | ({"gpu": torch.cuda.get_device_name(self.device)} if self.device.type == "cuda" else {})

    def launch(self) -> None:
        """Become one of several processes, where the settings or torchrun ask for that; returns when all are there."""
        global _heartbeat
        present, wanted = processes.world(), self._settings.devices
        size = present if present > 1 else wanted  # torchrun has the last word
        if size == 1:
            return
        if self._settings.batch_size < 2 * size:
            raise SettingsError(
                f"--batch-size {self._settings.batch_size} is too small for {size} processes, which share each batch",
                f"give at least {2 * size}",
            )
        children = self._start_others(size) if present == 1 else []
        first = _heartbeat is None
        _heartbeat = _heartbeat or peers.Heartbeat(children)
        local = processes.local_world()
        self._fabric = Fabric(
            accelerator=self.device.type,
            devices=local,
            num_nodes=size // local,
            precision=self._precision,
            # A lost process is the heartbeat's to notice; process 0 may be busy for long while the others wait.
            strategy=DDPStrategy(timeout=timedelta(days=7)),
        )
        with self.losses_named():
            self._fabric.launch()
        self.size = size
        if first:
            _heartbeat.connect(self.broadcast)

    def _start_others(self, size: int) -> list[peers.Child]:
        if self.device.type == "cuda" and size > torch.cuda.device_count():
            raise SettingsError(f"--devices {size}: there are {torch.cuda.device_count()} CUDA devices here", "ask for fewer")
        if not processes.command:
            raise SettingsError(
                f"devices={size} from Python needs a launcher", f"start the script with torchrun --nproc-per-node {size}"
            )
        return peers.start_others(processes.command, size)

    def autocast(self) -> AbstractContextManager[None]:
        """The run's precision, for a forward pass in training."""
        return cast(AbstractContextManager[None], self._fabric.autocast())

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes."""
        if self.size == 1:
            return values
        with self.losses_named():
            return cast(Tensor, self._fabric.all_reduce(values.clone(), reduce_op="sum"))

    def broadcast(self, value: T) -> T:
        """Process 0's value, in every process: what is decided is decided once."""
        if self.size == 1:
            return value
        with self.losses_named():
            return self._fabric.broadcast(value)

    def agree(self, what: str, found: str) -> None:
        """Raise `PeerError`, in every process, unless all of them found the same."""
        if self.size == 1:
            return
        expected = self.broadcast(found)
        differing = int(self.sum(torch.tensor([float(found != expected)], device=self.device))[0])
        if differing:
            own = f"; process {self.rank} has {found[:300]}, process 0 {expected[:300]}" if found != expected else ""
            raise PeerError(f"{differing} of {self.size} processes have {what} other than process 0's{own}", "report this")

    def wait_for_all(self) -> None:
        """Return when every process has come here."""
        self.sum(torch.zeros(1, device=self.device))

    def part(self) -> None:
        """Wait for all, and from then on be no longer watched by the others, nor watch them."""
        global _heartbeat
        self.wait_for_all()
        if _heartbeat is not None:
            _heartbeat.stop()
            _heartbeat = None

    @contextmanager
    def losses_named(self) -> Iterator[None]:
        """Say plainly what a broken connection to another process means."""
        try:
            yield
        except RuntimeError as error:
            lost = isinstance(error, torch.distributed.DistError) or any(word in str(error) for word in _LOST)
            if processes.world() == 1 or not lost:
                raise
            raise PeerError("another process of this run has stopped", "what was saved can be resumed") from error


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
