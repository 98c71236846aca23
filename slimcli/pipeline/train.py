"""`slim train`: a network from scratch, its norm history recorded on the way."""

from __future__ import annotations

import copy
import shlex
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from slimcli import processes
from slimcli.data.sources import open_data
from slimcli.environment import environment
from slimcli.errors import CheckpointError, DivergedError
from slimcli.measures import Score, side_of
from slimcli.networks import blocks, checkpoint, resolve, weights, widths
from slimcli.networks.checkpoint import Checkpoint
from slimcli.networks.cost import count
from slimcli.networks.layers import check_weights
from slimcli.pipeline.origins import NEW_WEIGHTS
from slimcli.pipeline.prune import LOWERED
from slimcli.pipeline.resume import check_data, close_finished, cut_journal, folder_of, read_state, resumable, settings_of
from slimcli.pipeline.subject import check_takes
from slimcli.progress import Progress
from slimcli.pruning.history import NormHistory
from slimcli.records import JsonDict
from slimcli.rundir import RunDir
from slimcli.settings import TrainSettings
from slimcli.training.engine import Engine, Epoch, FitState, seed_everything


@dataclass(frozen=True)
class Trained:
    """Where the network is and what was measured. `shortfall` says how the loss was lost; empty where it was not."""

    folder: RunDir
    metrics: JsonDict
    shortfall: str


def train(settings: TrainSettings, run: RunDir, progress: Progress | None = None, overwrite: bool = False) -> Trained | None:
    """Train `settings.arch` into the run folder. None in a process that only helps process 0.

    After every epoch the network so far is in `state/last.pt`, and the run can go on from there (`resume`).
    """
    progress = progress or Progress()
    if processes.is_main():
        run.check_free(overwrite)
        run.check_apart([settings.like])
    job = _Job(settings, progress)
    if not processes.is_main():
        return job.carry_out(None)
    with resumable(run, "train", progress), run.create({"train": _resolved(settings, job).to_recipe()}, overwrite):
        return job.carry_out(run)


def resume(path: Path, changes: Mapping[str, Any] | None = None, progress: Progress | None = None) -> Trained | None:
    """Go on with a run from its last epoch; `changes` are settings of how and where to compute. None as in `train`."""
    progress = progress or Progress()
    run = folder_of(path)
    settings = settings_of(run, TrainSettings, changes or {})
    if (shortfall := close_finished(run)) is not None:
        progress.say(f"the run in {path} is complete: nothing to go on with")
        return Trained(run, run.read_metrics(), shortfall) if processes.is_main() else None
    if not processes.is_main():
        return _Job(settings, Progress(), read_state(run, Progress()), run).carry_out(None)
    with resumable(run, "train", progress), run.reopen():
        content = read_state(run, progress)
        job = _Job(settings, progress, content, run)
        progress.say(
            f"going on after epoch {job.epochs_done}" if content else "no epoch was saved yet: starting from the beginning"
        )
        cut_journal(run, content["journal"] if content else 0, progress)
        if changes:
            run.write_recipe({"train": settings.to_recipe()})
        if content:
            run.append("resumed", time=time.time(), **(changes or {}))
        return job.carry_out(run)


def _resolved(settings: TrainSettings, job: _Job) -> TrainSettings:
    """The settings with everything that was found out filled in, so that the recipe stands alone."""
    data = job.data
    return replace(
        settings,
        arch=resolve.absolute(settings.arch),
        like=str(Path(settings.like).resolve()) if settings.like else None,
        data=data.name,
        data_root=data.spec.get("root"),
        holdout=data.spec.get("holdout"),
        mean=data.mean,
        std=data.std,
        precision=job.engine.group.describe()["precision"],
    )


def _shape_of(path: str, arch: str) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The state dict of the slim network in a checkpoint, which must be of that arch, and the blocks that it does without."""
    like = checkpoint.load(path, arch if resolve.is_foreign(arch) else None)
    if resolve.parse(like.arch) != resolve.parse(arch):
        raise CheckpointError(
            f"--like {path} is a {like.arch}, not a {arch}", f"train that: slim train {shlex.quote(like.arch)} --like {path}"
        )
    like.build()
    return like.state_dict, like.left_out


class _Job:
    """A checked training, from its first epoch or from a saved state."""

    def __init__(
        self, settings: TrainSettings, progress: Progress, content: JsonDict | None = None, run: RunDir | None = None
    ) -> None:
        self.settings = settings
        self.engine = Engine(settings, progress if processes.is_main() else Progress())
        self.data = open_data(settings, batch_size=settings.batch_size, seed=settings.seed, device=str(self.engine.device))
        if settings.like is not None:
            seed_everything(settings.seed, NEW_WEIGHTS)  # not what the dense network of this seed began with, cut
        self.model = resolve.build(settings.arch, self.data.classes, self.data.shape)
        check_weights(self.model)  # rather than when it is to be pruned
        self.left_out: tuple[str, ...] = ()
        if settings.like is not None:  # a run that goes on knows its shape: that file may be gone
            known = (content["state_dict"], tuple(content.get("left_out", ()))) if content else None
            shape, self.left_out = known or _shape_of(settings.like, settings.arch)
            blocks.leave_out(self.model, self.left_out)
            widths.fresh(self.model, shape)
        self.model.to(self.engine.device)
        check_takes(self.model, self.data, settings.arch)
        self.history = NormHistory(self.model, settings.norm)
        # The same again when the run goes on: it follows from the seed.
        self.first = copy.deepcopy(weights.at_rest(self.model.state_dict()))
        self.fit: FitState | None = None
        self.new = content is None
        self.arch = content["arch"] if content else settings.arch  # as it was typed; the recipe's path is absolute
        if content is not None and run is not None:
            check_data(content, self.data.fingerprint, run, self.data.name)
            self._take(content)
        self.engine.group.launch()
        self.engine.group.agree("data", self.data.fingerprint)
        weights.restore(self.model, self.engine.group.broadcast(weights.at_rest(self.model.state_dict())))

    @property
    def epochs_done(self) -> int:
        """How many epochs of the training lie behind."""
        return self.fit.epochs if self.fit else 0

    def _take(self, content: Mapping[str, Any]) -> None:
        """Stand where the saved state stood."""
        weights.restore(self.model, content["state_dict"])
        self.history.layers = NormHistory.from_state_dict(content["history"]).layers
        self.fit = FitState(**content["resume"]["fit"]) if content["resume"]["fit"] else None
        self.engine.epochs_done, self.engine.lr_scale = self.epochs_done, content["resume"]["lr_scale"]

    def carry_out(self, run: RunDir | None) -> Trained | None:
        """Train to the end, measure, and (in process 0, which has the run folder) write what came of it."""
        if run is not None and self.new:
            self._note_start(run)
            self._save(run)
        lost = self._fit(run)
        held_out, test = (self.engine.evaluate(self.model, split) for split in (self.data.held_out, self.data.test))
        trained = self._finish(run, held_out, test, lost) if run is not None else None
        self.engine.group.wait_for_all()
        return trained

    def _fit(self, run: RunDir | None) -> str:
        """Every epoch that is left; once back to the last good one with a lower learning rate. Says how the loss was lost."""

        def after_epoch(epoch: Epoch, fit: FitState) -> None:
            self.history.record()
            self.fit = fit
            if run is not None:
                run.append("epoch", **asdict(epoch))
                self._save(run)

        while True:
            try:
                self.engine.fit(
                    self.model, self.data.train, self.settings.epochs, "train", after_epoch=after_epoch, done=self.fit
                )
                return ""
            except DivergedError as error:
                content = read_state(run, Progress()) if run is not None else None
                lowered = self.engine.lr_scale < 1
                self._take(self.engine.group.broadcast(content or {}))
                if lowered and not self.epochs_done:
                    raise
                if lowered:
                    return f"{error.message}, also with a lowered learning rate; the network is that of epoch {self.epochs_done}"
                self.engine.lr_scale = LOWERED
                lr = self.settings.lr * LOWERED
                self.engine.progress.warn(f"{error.message}: back to the last epoch, with a learning rate of {lr:.2g}")
                if run is not None:
                    run.append("diverged", message=error.message, lr=lr)
                    self._save(run)

    def _note_start(self, run: RunDir) -> None:
        for note in self.data.notes:
            self.engine.progress.warn(note)
        run.append(
            "start",
            arch=self.arch,
            data=self.data.name,
            dense=asdict(count(self.model, self.data.shape)),
            epochs=self.settings.epochs,
            environment=environment() | self.engine.group.describe(),
            time=time.time(),
        )

    def _snapshot(self, metrics: JsonDict) -> Checkpoint:
        return Checkpoint(
            state_dict=self.model.state_dict(),
            arch=self.arch,
            classes=self.data.classes,
            input_shape=self.data.shape,
            mean=self.data.mean,
            std=self.data.std,
            data=self.data.spec,
            left_out=self.left_out,
            history=self.history.state_dict(),
            metrics=metrics,
        )

    def _save(self, run: RunDir) -> None:
        fit = {"epochs": self.fit.epochs, "optimizer": self.fit.optimizer} if self.fit else None
        content = checkpoint.content_of(self._snapshot({})) | {
            "resume": {"fit": fit, "lr_scale": self.engine.lr_scale},
            "fingerprint": self.data.fingerprint,
            "journal": run.journal_size(),
        }
        run.save_state(checkpoint.written(content))

    def _finish(self, run: RunDir, held_out: Score, test: Score, lost: str) -> Trained:
        cost = count(self.model, self.data.shape)
        measured = {key: value for key, value in side_of(test, cost).items() if key != "file_bytes"}
        checkpoint.save(run.model, replace(self._snapshot(measured), first=self.first))
        metrics = {
            "schema": 1,
            "arch": self.arch,
            "data": self.data.name,
            "epochs": self.epochs_done,
            "training_macs": self.epochs_done * self.data.train.samples * 3 * cost.macs,
            "dense": measured | {"file_bytes": None},
            "layers": [
                {
                    "name": layer.name,
                    "type": layer.type,
                    "filters": [layer.filters] * 2,
                    "macs": [layer.macs] * 2,
                    "params": [layer.params] * 2,
                }
                for layer in cost.layers
            ],
            "held_out": held_out.facts(),
            "environment": environment() | self.engine.group.describe(),
        }
        training = {"training_macs": metrics["training_macs"]}
        run.append("end", **measured, samples=test.samples, held_out=held_out.facts(), **training)
        run.write_metrics(metrics)
        run.finish(lost)
        return Trained(run, metrics, lost)
