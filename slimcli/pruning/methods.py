"""The named combinations behind `--method`. Names only: listing them imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

from slimcli.errors import SettingsError, suggest
from slimcli.settings import AUTO, FLOW_SAMPLES, FLOW_STOPS, GRADIENT_SAMPLES, PruneSettings


@dataclass(frozen=True)
class Method:
    """A combination: which filters or weights go (`criterion`), how many (`amount`), when retraining ends (`stop`), how chosen
    pairs are tied (`penalty`) and merged, whether survivors go back to their dense weights after each removal (`rewind`), how
    the last retraining starts (`final`), and whether the dense network teaches in it (`distill`). What `hbfp` is compared with
    is retrained as it is, and trains plainly, or under a penalty of its own, in the epochs in which it ties.
    """

    criterion: str
    summary: str
    amount: str = "10%"
    stop: str = "epochs"
    penalty: str = "none"
    merge: bool = False
    rewind: bool = False
    tie_epochs: int = 1
    final: str = "finetune"
    distill: bool = False


METHODS = {
    "hbfp": Method(
        "history",
        "pairs whose norms ran alike over the training history, tied in their weights and merged",
        penalty="weights",
        merge=True,
        distill=True,
    ),
    "hbfp-paper": Method(
        "history",
        "the paper's text: norms tied by its exponential penalty (slope bounded), the weaker one removed",
        penalty="exp",
    ),
    "lth": Method(
        "magnitude", "a fifth of the smallest, the rest back to their dense weights, each time", "20%", rewind=True, tie_epochs=0
    ),
    "sap": Method("magnitude", "as many of the smallest as the PQ-index of the weights allows", "pq", tie_epochs=0),
    "incop-if": Method(
        "magnitude", "sap, retrained until information flow comes no nearer to the dense one's", "pq", "if", tie_epochs=0
    ),
    "incop-gf": Method(
        "magnitude", "sap, retrained until gradient flow comes no nearer to the dense one's", "pq", "gf", tie_epochs=0
    ),
    "cfp": Method(
        "cfp",
        "pairs whose weights are most correlated, made more so, the weaker one removed",
        penalty="correlation",
        distill=True,
    ),
    "l1": Method("l1", "the filters with the least l1-norm (a control)", distill=True),
    "l2": Method("l2", "the filters with the least l2-norm", distill=True),
    "fpgm": Method("fpgm", "the filters nearest to the geometric median of their layer", distill=True),
    "bn": Method("bn", "the filters with the least batch-norm scale, all drawn to zero before", penalty="scales", distill=True),
    "taylor": Method("taylor", "the filters whose removal changes the loss least, to first order", distill=True),
    "hrank": Method("hrank", "the filters whose feature maps have the least rank", distill=True),
    "random": Method("random", "filters drawn at random (a control)", distill=True),
}
CRITERIA_NAMES = (
    "history",
    "random-pairs",
    "cfp",
    "magnitude",
    "l1",
    "l2",
    "fpgm",
    "bn",
    "taylor",
    "hrank",
    "random",
)
_PAIRING = ("history", "random-pairs", "cfp")
EPOCHS, MOST_EPOCHS = 3, 20
"""Of retraining after each removal: where their number is the rule, and where another rule may end it sooner."""

ONE_PROCESS = "--leave-out auto times networks in one process", "name the blocks that a run with --devices 1 left out"
"""What is told of it, and the way out, where there are several."""
_SAMPLES = {"if": FLOW_SAMPLES, "flow": FLOW_SAMPLES, "gf": GRADIENT_SAMPLES}


def resolve(settings: PruneSettings) -> PruneSettings:
    """The settings with the method's parts filled in where they were not overridden; `SettingsError` for unknown names, and for
    parts that do not go together.
    """
    if settings.method not in METHODS:
        raise SettingsError(f"there is no method {settings.method!r}", suggest(settings.method, METHODS))
    method = METHODS[settings.method]
    criterion = settings.criterion or method.criterion
    if criterion not in CRITERIA_NAMES:
        raise SettingsError(f"there is no criterion {criterion!r}", suggest(criterion, CRITERIA_NAMES))
    pairs = criterion in _PAIRING
    merge = settings.merge if settings.merge is not None else pairs and method.merge and settings.penalty in (None, "weights")
    own = method.penalty if pairs or method.penalty == "scales" else "none"
    penalty = settings.penalty or ("weights" if merge and pairs else own)
    if penalty == "weights" and settings.penalty is None and not merge:
        penalty = "tie"  # --no-merge without a word on the penalty: the paper's tie of norms
    for flag, wanted in ((f"--penalty {penalty}", penalty not in ("none", "scales")), ("--merge", merge)):
        if wanted and not pairs:
            raise SettingsError(
                f"{flag} is for pairs of filters, and the criterion {criterion} chooses none", "use --criterion history"
            )
    if settings.round_to is not None and settings.widths is not None:
        raise SettingsError("--widths are kept as they are given, and --round-to rounds", "leave one of the two out")
    others = [f"--{name}" for name in ("macs", "params", "widths") if getattr(settings, name)]
    if settings.latency is not None and others:
        raise SettingsError(f"--latency and {others[0]} both say how narrow the network becomes", "give one of the two")
    if settings.leave_out == (AUTO,):
        _check_auto(settings)
    from_budget = settings.macs is not None or settings.params is not None or settings.latency is not None
    rounds = from_budget and settings.widths is None and settings.method != "hbfp-paper"
    stop = settings.stop or method.stop
    distill = settings.distill
    if distill is None:  # where nothing is removed, the dense network could only teach itself
        removes = settings.iterations != 0 or settings.leave_out is not None
        distill = method.distill and (removes or settings.teacher is not None)
    if settings.teacher is not None and not distill:
        raise SettingsError(f"--teacher goes with --distill, which {settings.method} leaves out", "add --distill")
    resolved = replace(
        settings,
        criterion=criterion,
        penalty=penalty,
        merge=merge,
        round_to=settings.round_to or (AUTO if rounds else None),
        amount=settings.amount or method.amount,
        stop=stop,
        epochs=settings.epochs if settings.epochs is not None else EPOCHS if stop == "epochs" else MOST_EPOCHS,
        tie_epochs=method.tie_epochs if settings.tie_epochs is None else settings.tie_epochs,
        rewind=method.rewind if settings.rewind is None else settings.rewind,
        final=settings.final or method.final,
        distill=distill,
        flow_samples=settings.flow_samples if settings.flow_samples is not None else _SAMPLES.get(stop),
    )
    _check_granularity(resolved)
    if resolved.leave_out and resolved.stop in FLOW_STOPS:
        raise SettingsError(
            f"--stop {resolved.stop} compares flows between layers that --leave-out takes away",
            "use --stop flow, accuracy, plateau or epochs",
        )
    return resolved


def without_effect(settings: PruneSettings) -> list[str]:
    """A sentence for each setting that is not at its default and that nothing will read; `settings` come from `resolve`."""
    s, defaults = settings, {field.name: field.default for field in fields(PruneSettings)}
    history, pq, taught = s.criterion == "history", s.amount == "pq", bool(s.distill)
    flow = s.stop in (*FLOW_STOPS, "flow")
    uses = (
        ("stop", s.stop == "epochs" or bool(s.epochs), "--epochs above 0"),
        ("round_to", bool(s.macs or s.params or s.latency), "--macs, --params or --latency"),
        ("draws", s.final in ("fresh", "auto"), "--final fresh or auto"),
        ("epsilon", flow, "--stop if, gf or flow"),
        ("flow_samples", flow, "--stop if, gf or flow"),
        ("flow_form", s.stop in ("if", "flow"), "--stop if or flow"),
        ("flow_distance", s.stop in FLOW_STOPS, "--stop if or gf"),
        ("margin", s.stop == "accuracy", "--stop accuracy"),
        ("window", history, "--criterion history"),
        ("history", history, "--criterion history"),
        ("distance", history, "--criterion history"),
        ("lambda_", s.penalty not in ("weights", "none"), "--penalty tie, exp, correlation or scales"),
        ("gamma", pq, "--amount pq"),
        ("beta", pq, "--amount pq"),
        ("eta", pq, "--amount pq"),
        ("pq", pq, "--amount pq"),
        ("scope", pq or s.granularity == "weight", "--amount pq, or --granularity weight"),
        ("final_lr", s.final_epochs > 0, "--final-epochs above 0"),
        ("distill_weight", taught, "--distill"),
        ("distill_temperature", taught, "--distill"),
    )
    return [
        f"--{name.rstrip('_').replace('_', '-')} has no effect here: it is for {use}"
        for name, used, use in uses
        if getattr(s, name) != defaults[name] and not used
    ]


def _check_auto(settings: PruneSettings) -> None:
    """Raise `SettingsError` for what does not go with `--leave-out auto`."""
    if settings.latency is None:
        raise SettingsError(
            "--leave-out auto goes by the time that blocks take, and there is no --latency", "add --latency, or name the blocks"
        )
    if settings.devices > 1:
        raise SettingsError(*ONE_PROCESS)
    for flag, numbers in (("--round-to", len(settings.multiples)), ("--amount", len((settings.amount or "").split(",")))):
        if numbers > 1:
            raise SettingsError(
                f"{flag} has {numbers} numbers, and which groups there will be follows from --leave-out auto", "give one number"
            )


def _check_granularity(settings: PruneSettings) -> None:
    if settings.granularity != "weight":
        return
    if settings.criterion != "magnitude":
        raise SettingsError(
            f"the criterion {settings.criterion} chooses filters, not weights",
            "use --criterion magnitude, or --granularity filter",
        )
    for flag, patterns in (("--include", settings.include), ("--exclude", settings.exclude)):
        if patterns:
            raise SettingsError(
                f"{flag} chooses groups of filters, and --granularity weight masks all layers", "use --granularity filter"
            )
    if settings.leave_out:
        raise SettingsError("--leave-out takes layers away, and --granularity weight masks weights", "use --granularity filter")
    for flag in ("--macs", "--params", "--latency", "--widths"):
        if getattr(settings, flag.strip("-")) is not None:
            raise SettingsError(
                f"{flag} cannot be reached by masking weights: a mask saves no computation and no memory",
                "use --granularity filter, or --iterations",
            )
