"""`slim train`: a network from scratch, its norm history recorded on the way."""

from __future__ import annotations

from dataclasses import asdict, replace

from torch import nn

from slimcli.data.loaders import Data
from slimcli.data.sources import absolute, open_data
from slimcli.environment import environment
from slimcli.errors import DivergedError, Terminated
from slimcli.networks import checkpoint, resolve
from slimcli.networks.checkpoint import Checkpoint
from slimcli.networks.cost import count
from slimcli.pipeline.subject import check_takes
from slimcli.progress import Progress
from slimcli.pruning.history import NormHistory
from slimcli.records import JsonDict
from slimcli.rundir import RunDir
from slimcli.settings import TrainSettings
from slimcli.training.engine import Engine, Epoch


def train(settings: TrainSettings, run: RunDir, progress: Progress | None = None, overwrite: bool = False) -> JsonDict:
    """Train `settings.arch` into the run folder and return its metrics.

    After every epoch the network so far is in `state/last.pt`; `DivergedError` names it when the loss is lost.
    """
    progress = progress or Progress()
    run.check_free(overwrite)
    engine = Engine(settings, progress)
    data = open_data(settings, batch_size=settings.batch_size, seed=settings.seed, device=str(engine.device))
    model = resolve.build(settings.arch, data.classes, data.shape).to(engine.device)
    check_takes(model, data, settings.arch)
    with run.create({"train": _resolved(settings, data).to_recipe()}, overwrite):
        return _carry_out(settings, run, engine, data, model)


def _resolved(settings: TrainSettings, data: Data) -> TrainSettings:
    """The settings with everything that was found out filled in, so that the recipe stands alone."""
    return replace(
        settings,
        arch=absolute(settings.arch),
        data=data.name,
        data_root=data.spec.get("root"),
        holdout=data.spec.get("holdout"),
        mean=data.mean,
        std=data.std,
    )


def _carry_out(settings: TrainSettings, run: RunDir, engine: Engine, data: Data, model: nn.Module) -> JsonDict:
    cost = count(model, data.shape)
    history = NormHistory(model, settings.norm)

    def snapshot(metrics: JsonDict) -> Checkpoint:
        return Checkpoint(
            state_dict=model.state_dict(),
            arch=settings.arch,
            classes=data.classes,
            input_shape=data.shape,
            mean=data.mean,
            std=data.std,
            data=data.spec,
            history=history.state_dict(),
            metrics=metrics,
        )

    def after_epoch(epoch: Epoch) -> None:
        history.record()
        run.append("epoch", **asdict(epoch))
        checkpoint.save(run.last_good, snapshot({}))

    try:
        engine.fit(model, data.train, settings.epochs, "train", after_epoch=after_epoch)
    except DivergedError as error:
        raise _with_last_good(error, run) from error
    except (KeyboardInterrupt, Terminated):
        if run.last_good.exists():
            engine.progress.say(f"the last good network is {run.last_good}")
        raise
    held_out, test = engine.evaluate(model, data.held_out), engine.evaluate(model, data.test)
    measured = {"top1": test.top1, "loss": test.loss, "macs": cost.macs, "params": cost.params}
    checkpoint.save(run.model, snapshot(measured))
    metrics = {
        "schema": 1,
        "arch": settings.arch,
        "data": data.name,
        "epochs": settings.epochs,
        "dense": measured | {"file_bytes": None},
        "held_out": asdict(held_out),
        "environment": environment(),
    }
    run.append("end", **measured)
    run.write_metrics(metrics)
    return metrics


def _with_last_good(error: DivergedError, run: RunDir) -> DivergedError:
    kept = f"; the last good network is {run.last_good}" if run.last_good.exists() else ""
    return DivergedError(error.message + kept, error.hint)
