"""The tables that commands print."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rich.console import Console, RenderableType
from rich.table import Column, Table

from slimcli.measures import measure_of, value_of
from slimcli.records import JsonDict
from slimcli.report import formats
from slimcli.report.formats import duration


def show(*tables: RenderableType) -> None:
    """Print tables on stdout, as wide as the terminal (or 120 columns in a file)."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=120)
    for table in tables:
        console.print(table)


def summary(metrics: JsonDict) -> Table:
    """The table dense / slim / change of a pruning run, or the figures of a training run; an unfinished run says so."""
    if "slim" not in metrics:
        return _trained(metrics)
    dense, slim = metrics["dense"], metrics["slim"]
    table = _titled(metrics, metrics["method"], "dense", "slim", "change")
    title = measure_of(dense).heading
    if value_of(slim) is not None:
        table.add_row(title, *_scores(dense, slim))
    else:
        table.caption = metrics["reason"]
        table.add_row(f"{title}, held out", *_scores(metrics["held_out"]["dense"], metrics["held_out"]["slim"]))
    for label, key in (("MACs", "macs"), ("parameters", "params"), ("file size", "file_bytes")):
        if dense[key] and slim[key]:
            show = _size if key == "file_bytes" else _count
            table.add_row(label, show(dense[key]), show(slim[key]), f"{100 * (slim[key] / dense[key] - 1):+.1f} %")
    if sparsity := metrics.get("sparsity"):
        share = f"{100 * sparsity['zeros'] / sparsity['weights']:.1f} %"
        fewer = slim["macs"] < dense["macs"]
        table.add_row("weights at zero", "", share, "alone they save no MACs" if fewer else "they save no computation")
    before, after = dense.get("latency_ms"), slim.get("latency_ms")
    if before and after:
        speed = formats.speedup(metrics["speedup"]) if metrics.get("speedup") else ""
        table.add_row("p50 latency", f"{before['p50']:.3f} ms", f"{after['p50']:.3f} ms", speed)
    return table


def plan(first: JsonDict) -> Table:
    """What `slim prune --dry-run` found."""
    table = Table(
        title=f"{first['arch']} on {first['data']}, to be pruned with {first['method']}", title_justify="left", show_header=False
    )
    for label, key in (("MACs", "macs"), ("parameters", "params")):
        table.add_row(label, _count(first[key]))
    table.add_row("epochs of norm history", str(first["history_epochs"]))
    for group, count in first["first_iteration"].items():
        table.add_row(f"{group}, first iteration", f"{count} go")
    for group, reason in first["frozen"].items():
        table.add_row(f"{group}, left alone", reason)
    for note in first["notes"]:
        table.add_row("note", note)
    return table


def steps(done: Sequence[JsonDict]) -> Table:
    """What the steps of a recipe came to, one line a step."""
    titles = {measure_of(step["metrics"]["dense"]).heading for step in done}
    score = titles.pop() if len(titles) == 1 else "score"
    table = Table("step", *(Column(name, justify="right") for name in (score, "MACs", "parameters", "epochs", "time")))
    if any(step["shortfall"] for step in done):
        table.add_column("")
    for step in done:
        metrics = step["metrics"]
        network = metrics.get("slim", metrics["dense"])
        name = step["label"] + (f", seed {step['seed']}" if step.get("seed") is not None else "")
        figures = formats.score(network), _count(network["macs"]), _count(network["params"]), str(metrics["epochs"])
        table.add_row(name, *figures, duration(step["seconds"]), *(["fell short"] if step["shortfall"] else []))
    return table


def _trained(metrics: JsonDict) -> Table:
    network = metrics["dense"]
    table = _titled(metrics, "trained", "network")
    if value_of(network) is not None:
        table.add_row(measure_of(network).heading, formats.score(network))
    else:
        table.caption = metrics["reason"]
    for label, key in (("MACs", "macs"), ("parameters", "params")):
        table.add_row(label, _count(network[key]))
    return table


def _titled(metrics: JsonDict, done: str, *columns: str) -> Table:
    table = Table(title=f"{metrics['arch']} on {metrics['data']}, {done}", title_justify="left", caption_justify="left")
    for column in ("", *columns):
        table.add_column(column, justify="right" if column else "left")
    return table


def _scores(dense: JsonDict, slim: JsonDict) -> tuple[str, str, str]:
    return formats.score(dense), formats.score(slim), formats.score_change(dense, slim)


def latencies(result: JsonDict) -> Table:
    """The table of `slim bench`."""
    first = result["models"][0]["latency_ms"]
    title = f"{first['provider']}, {first['threads']} thread(s), batch {first['batch']}, {first['runs']} interleaved runs, ms"
    table = Table(title=title, title_justify="left")
    for column in ("model", "p50", "p90", "p99", "cold start", "memory", "faster than the first (95 %)"):
        table.add_column(column, justify="left" if column == "model" else "right")
    for model, ratio in zip(result["models"], [None, *result["ratios"]], strict=True):
        ms = model["latency_ms"]
        against = f"{ratio['ratio']:.2f} x ({ratio['low']:.2f} to {ratio['high']:.2f})" if ratio else ""
        once = f"{model['cold_start_ms']:.1f}", _size(model["memory_bytes"]) if model["memory_bytes"] else ""
        table.add_row(model["path"], *(f"{ms[key]:.3f}" for key in ("p50", "p90", "p99")), *once, against)
    return table


def profiles(result: JsonDict) -> Table:
    """Where the time of each model goes: what `slim bench --profile` prints below."""
    models = result["models"]
    table = Table(title="ms of a call by layer, from onnxruntime's profile (which takes time itself)", title_justify="left")
    table.add_column("")
    for model in models:
        table.add_column(model["path"], justify="right")
    costs = [{(each["name"], each["op"]): each["milliseconds"] for each in model["profile"]} for model in models]
    between = models[0]["profile"][-1]["op"]
    seen = list({row: None for each in costs for row in each})
    rows = sorted(seen, key=lambda row: (not row[0], row[1] == between))  # layers first, each where it ran
    for number, row in enumerate(rows):
        last_layer = bool(row[0]) and not rows[number + 1][0]
        cells = (f"{each[row]:.4f}" if row in each else "" for each in costs)
        table.add_row(row[0] or row[1], *cells, end_section=last_layer or row == rows[-1])
    table.add_row("all", *(f"{sum(each.values()):.4f}" for each in costs))
    return table


def quantized(done: JsonDict) -> Table:
    """The table of `slim export --int8`."""
    plain = done["float"]
    table = Table(title=f"{done['path']}, {done['samples']:,} test images in onnxruntime", title_justify="left")
    for column in ("", "float", "INT8", "change"):
        table.add_column(column, justify="right" if column else "left")
    table.add_row(measure_of(plain).heading, *_scores(plain, done))
    sizes = plain["file_bytes"], done["file_bytes"]
    table.add_row("file size", *map(_size, sizes), _smaller(*sizes))
    if done["kept_float"]:
        table.add_row("kept in float", "", in_short(done["kept_float"]), "")
    return table


def four(metrics: JsonDict) -> Table:
    """Both networks of a run, in float and in INT8: what `slim export --run --int8` prints."""
    small = metrics["int8"]
    first = metrics["dense"]["latency_ms"]
    title = f"{first['provider']}, {first['threads']} thread(s), batch {first['batch']}, {first['runs']} interleaved runs"
    table = Table(title=title, title_justify="left")
    score = measure_of(metrics["dense"]).heading
    for column in ("", score, "file size", "than dense", "p50 latency", "faster (95 %)"):
        table.add_column(column, justify="right" if column else "left")
    rows = {
        "dense": (metrics["dense"], ""),
        "slim": (metrics["slim"], "model.onnx"),
        "dense, INT8": (small["dense"], "dense.int8.onnx"),
        "slim, INT8": (small["slim"], "model.int8.onnx"),
    }
    for name, (facts, file) in rows.items():
        ratio = small["speedups"].get(file)
        table.add_row(
            name,
            formats.score(facts),
            _size(facts["file_bytes"]),
            _smaller(metrics["dense"]["file_bytes"], facts["file_bytes"]) if ratio else "",
            f"{facts['latency_ms']['p50']:.3f} ms",
            f"{ratio['ratio']:.2f} x ({ratio['low']:.2f} to {ratio['high']:.2f})" if ratio else "",
        )
    return table


def comparison(paths: list[str], metrics: list[JsonDict]) -> Table:
    """The table of `slim compare`."""
    table = Table()
    titles = {measure_of(run["dense"]).heading for run in metrics}
    score = titles.pop() if len(titles) == 1 else "score"
    masked = any(run.get("sparsity") for run in metrics)
    left = ("weights left",) if masked else ()
    for column in ("run", "method", score, "change", "MACs kept", "parameters kept", *left, "p50 latency"):
        table.add_column(column, justify="left" if column in ("run", "method") else "right")
    for path, run in zip(paths, metrics, strict=True):
        dense, slim = run["dense"], run["slim"]
        latency = slim.get("latency_ms")
        table.add_row(
            path,
            run["method"],
            "unfinished" if value_of(slim) is None else formats.score(slim),
            "" if value_of(slim) is None else measure_of(dense).change(value_of(slim), value_of(dense)),
            f"{slim['macs'] / dense['macs']:.1%}",
            f"{slim['params'] / dense['params']:.1%}",
            *([_left(run)] if masked else []),
            f"{latency['p50']:.3f} ms" if latency else "-",
        )
    return table


def _left(run: JsonDict) -> str:
    """The share of the dense network's weights that the last kept iteration left."""
    kept = [step["remaining"] for step in run.get("iterations", []) if step.get("kept", True) and "remaining" in step]
    return f"{kept[-1]:.1%}" if kept else ""


def anatomy(network: JsonDict) -> list[Table]:
    """The tables of `slim inspect`."""
    images = " x ".join(map(str, network["input_shape"]))
    title = f"{network['arch']}, images {images}: {network['macs']:,} MACs, {network['params']:,} parameters"
    layers = Table(title=title, title_justify="left")
    for column in ("layer", "type", "filters", "MACs", "share", "parameters"):
        layers.add_column(column, justify="left" if column in ("layer", "type") else "right")
    for layer in network["layers"]:
        share = f"{layer['macs'] / network['macs']:.1%}"
        layers.add_row(
            layer["name"],
            layer["type"],
            *(f"{layer[key]:,}" for key in ("filters", "macs")),
            share,
            f"{layer['params']:,}",
        )
    groups = Table(title="channel groups", title_justify="left")
    for column in ("layers", "channels", "share of MACs", "prunable"):
        groups.add_column(column, justify="right" if column in ("channels", "share of MACs") else "left")
    for group in network["groups"]:
        verdict = f"no: {group['reason']}"
        if group["prunable"]:
            verdict = "yes" if group["together"] == 1 else f"yes, {group['together']} channels together"
        groups.add_row(in_short(group["layers"]), f"{group['channels']:,}", f"{group['macs'] / network['macs']:.1%}", verdict)
    prunable = [group for group in network["groups"] if group["prunable"]]
    groups.caption = f"{len(prunable)} of {len(network['groups'])} groups can be pruned"
    if network["blocks"]:
        groups.caption += f"\nblocks that --leave-out can take: {', '.join(_patterns(network['blocks']))}"
    if network["left_out"]:
        groups.caption += f"\nleft out already: {', '.join(network['left_out'])}"
    groups.caption_justify = "left"
    return [layers, groups]


def _patterns(blocks: Sequence[str]) -> list[str]:
    """Blocks as `--leave-out` takes them: `layer1.*` where there are several of one parent."""
    parents = Counter(block.rpartition(".")[0] for block in blocks)
    several = {parent: f"'{parent}.*' ({number})" for parent, number in parents.items() if parent and number > 1}
    return list(dict.fromkeys(several.get(block.rpartition(".")[0], block) for block in blocks))


def in_short(names: Sequence[str]) -> str:
    """Names that differ in one number or word between dots are written once: `layer1.{0,1,2}.conv2`."""
    written: list[tuple[list[str], int | None, list[str]]] = []  # parts, the place where they differ, and what stands there
    for name in names:
        parts = name.split(".")
        for number, (first, place, choices) in enumerate(written):
            differ = [at for at, (one, other) in enumerate(zip(first, parts, strict=False)) if one != other]
            if len(first) == len(parts) and len(differ) == 1 and place in (None, differ[0]):
                written[number] = (first, differ[0], [*choices, parts[differ[0]]])
                break
        else:
            written.append((parts, None, []))
    return ", ".join(
        ".".join("{" + ",".join([part, *choices]) + "}" if place == at else part for at, part in enumerate(first))
        for first, place, choices in written
    )


def _smaller(before: int, after: int) -> str:
    return f"{before / after:.2f} x smaller" if after <= before else f"{after / before:.2f} x larger"


def _count(value: int) -> str:
    return f"{value / 1e6:,.3f} M" if value >= 1e5 else f"{value:,}"


def _size(value: int) -> str:
    return f"{value / 1e6:,.2f} MB" if value >= 1e6 else f"{value / 1e3:,.1f} kB"
