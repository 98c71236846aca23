"""The processes of one run: starting them on this machine, and noticing when one of them has stopped."""

from __future__ import annotations

import atexit
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from datetime import timedelta

from torch.distributed import Store, TCPStore  # type: ignore[attr-defined]

from slimcli import processes

SILENCE = 30.0  # seconds without a sign of life after which a process counts as lost
_BEAT = 2.0
_GRACE = 5.0  # seconds in which a process that noticed the loss itself may end with its own words
_PARENT = "SLIM_PARENT"
_SILENT = f"has given no sign of life for {SILENCE:.0f} s"

Child = subprocess.Popen[bytes]


def start_others(command: Sequence[str], count: int) -> list[Child]:
    """Start the processes 1 to `count - 1` of a run on this machine; this one becomes number 0.

    The environment says to each what torchrun would. (Fabric's own launcher kills the first process without a word when
    another one dies.)
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    shared["TORCH_CPP_LOG_LEVEL"] = "FATAL"  # or each connection that closes prints a stack trace
    os.environ |= shared | {"RANK": "0", "LOCAL_RANK": "0", "NODE_RANK": "0"}
    own = {_PARENT: str(os.getpid())}
    others = [
        subprocess.Popen(command, env=os.environ | own | {"RANK": str(rank), "LOCAL_RANK": str(rank)}, stdin=subprocess.DEVNULL)
        for rank in range(1, count)
    ]
    atexit.register(_end, others)
    return others


def _end(others: Sequence[Child]) -> None:
    """Give the others a moment to end by themselves (they notice that this process is gone), then end them."""
    deadline = time.monotonic() + _GRACE
    for other in others:
        try:
            other.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            other.kill()


class Heartbeat(threading.Thread):
    """Ends this process, with a message, when another one of the run is gone: a collective operation would wait for ever.

    Gloo notices a killed process at once (its connections close) and raises. A process that is lost before the first
    connection, one that hangs, a machine that is gone, and most losses under NCCL show only here.
    """

    def __init__(self, children: Sequence[Child] = ()) -> None:
        super().__init__(daemon=True, name="heartbeat")
        self._children = children
        self._parent = int(os.environ.get(_PARENT, 0))
        self._rank = processes.rank()
        self._seen: dict[int, tuple[str, float]] = {}
        self._looked = float("inf")
        self._done = threading.Event()
        atexit.register(self._done.set)
        self.start()

    def connect(self, share: Callable[[int], int]) -> None:
        """From now on every process shows the others that it lives; `share` gives everyone process 0's number."""
        host = os.environ.get("MASTER_ADDR", "127.0.0.1")
        server = TCPStore(host, 0, None, True, wait_for_workers=False) if self._rank == 0 else None
        port = share(server.port if server is not None else 0)
        store = server or TCPStore(host, port, None, False, timedelta(seconds=SILENCE))
        self._looked = time.monotonic()
        threading.Thread(target=self._exchange, args=(store,), daemon=True, name="signs-of-life").start()

    def stop(self) -> None:
        """Neither watch nor be missed."""
        self._done.set()

    def run(self) -> None:
        last = time.monotonic()
        while not self._done.wait(_BEAT):
            now = time.monotonic()
            if now - last > 3 * _BEAT:  # this very process was stopped for a while (Ctrl-Z): the others' clocks begin anew
                self._looked = max(self._looked, now)
                self._seen = {rank: (word, now) for rank, (word, _) in self._seen.items()}
            last = now
            for rank, child in enumerate(self._children, start=1):
                if child.poll() not in (None, 0):
                    self._lost(rank, f"ended with code {child.returncode}")
            if self._parent and os.getppid() != self._parent:
                self._lost(0, "has stopped")
            if now - self._looked > SILENCE and self._rank:
                self._lost(0, _SILENT)  # the store lives in process 0, and does not answer
            for rank, (_, since) in list(self._seen.items()):
                if now - since > SILENCE and rank != self._rank:
                    self._lost(rank, _SILENT)

    def _exchange(self, store: Store) -> None:
        """Tell the others and look at them, in a thread of its own: a store in a process that hangs never answers."""
        beats = 0
        while not self._done.wait(_BEAT):
            beats += 1
            try:
                store.set(f"alive/{self._rank}", str(beats))
                for rank in range(processes.world()):
                    key = f"alive/{rank}"
                    word = store.get(key).decode() if store.check([key]) else ""
                    last, since = self._seen.get(rank, ("", time.monotonic()))
                    self._seen[rank] = (word, time.monotonic() if word != last else since)
            except RuntimeError:
                self._lost(0, "has stopped")
            self._looked = time.monotonic()

    def _lost(self, rank: int, what: str) -> None:
        if self._done.wait(_GRACE):
            return
        way = f"go on with {processes.way_on}" if processes.way_on else "what was saved can be resumed"
        sys.stderr.write(f"slim: process {rank} of this run {what}; process {self._rank} ends too ({way})\n")
        sys.stderr.flush()
        for child in self._children:
            child.kill()
        os._exit(1)  # the main thread may be waiting in an operation that nothing can interrupt
