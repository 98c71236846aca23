"""The options of all commands, as types: what a command takes is written in its signature."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from slimcli.cli.arguments import fraction_of
from slimcli.settings import FLOW_SAMPLES, GRADIENT_SAMPLES

_WHERE, _DATA, _TRAIN, _BUDGET, _PARTS = "Output", "Data", "Training", "Budget", "Parts of the method"


MODEL_HELP = "A slimcli checkpoint, or any PyTorch checkpoint with --arch."
Model = Annotated[str, typer.Argument(metavar="MODEL", help=MODEL_HELP)]
Resume = Annotated[
    Path | None,
    typer.Option(
        "--resume",
        metavar="RUN",
        help="Go on with the run in this folder, from its last saved state; its recipe says the rest. --device, --devices, "
        "--precision, --compile, --workers, --batch-size and --data-root may be given anew.",
        rich_help_panel=_WHERE,
    ),
]
Arch = Annotated[
    str | None,
    typer.Option(help="The network of a foreign checkpoint: a built-in, torchvision:NAME, timm:NAME, file.py:callable."),
]
ArchArg = Annotated[
    list[str] | None,
    typer.Option("--arch-arg", metavar="KEY=VALUE", help="An argument for what builds the network (repeat it)."),
]
InputShape = Annotated[
    str | None, typer.Option(help="Channels, height, width of an image, where the checkpoint does not know: 3,32,32.")
]
TrustPickle = Annotated[
    bool,
    typer.Option("--trust-pickle", help="Open a pickled module. This runs the code in it: only for files you trust."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else there.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]

Out = Annotated[
    Path | None,
    typer.Option("-o", "--out", help="The run folder.", show_default="below runs/, numbered when taken", rich_help_panel=_WHERE),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there.", rich_help_panel=_WHERE)]

DataName = Annotated[str | None, typer.Option("--data", help="See `slim list data`.", rich_help_panel=_DATA)]
DataRoot = Annotated[
    str | None, typer.Option(help="Where data sets lie.", show_default="$SLIM_DATA, else ./data", rich_help_panel=_DATA)
]
Mean = Annotated[
    str | None, typer.Option(help="Normalisation: mean per channel, r,g,b, of pixels in 0-1.", rich_help_panel=_DATA)
]
Std = Annotated[str | None, typer.Option(help="Normalisation: standard deviation per channel.", rich_help_panel=_DATA)]
Classes = Annotated[
    int | None,
    typer.Option(
        help="How many classes the network tells apart, where the data have images of fewer; in other tasks, how many outputs.",
        show_default="the data's",
        rich_help_panel=_DATA,
    ),
]
Holdout = Annotated[
    float | None,
    typer.Option(
        help="Share of the training images on which every choice is made.",
        show_default="the checkpoint's, else 0.1",
        rich_help_panel=_DATA,
    ),
]
ValData = Annotated[
    str | None,
    typer.Option(help="A data set whose test part is the held-out split instead.", rich_help_panel=_DATA),
]
TrainSamples = Annotated[int | None, typer.Option(help="Use at most so many training images.", rich_help_panel=_DATA)]
Augment = Annotated[str, typer.Option(help="auto, none, shift:N, flip, or shift:N,flip.", rich_help_panel=_DATA)]

BatchSize = Annotated[int, typer.Option(help="Images per step.", rich_help_panel=_TRAIN)]
Lr = Annotated[float, typer.Option(help="Peak learning rate of every phase.", rich_help_panel=_TRAIN)]
Momentum = Annotated[float, typer.Option(help="Nesterov momentum.", rich_help_panel=_TRAIN)]
WeightDecay = Annotated[float, typer.Option(help="On weights, not on biases and scales.", rich_help_panel=_TRAIN)]
LabelSmoothing = Annotated[float, typer.Option(help="0 to 1.", rich_help_panel=_TRAIN)]
ClipNorm = Annotated[float, typer.Option(help="Largest norm of a step's gradient; 0 for none.", rich_help_panel=_TRAIN)]
Schedule = Annotated[str, typer.Option(help="onecycle, cosine or constant, in every phase.", rich_help_panel=_TRAIN)]
Seed = Annotated[int, typer.Option(help="Of everything random.", rich_help_panel=_TRAIN)]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.", rich_help_panel=_TRAIN)]
Devices = Annotated[
    int, typer.Option(help="Processes on this machine, each with a GPU or a share of the cores.", rich_help_panel=_TRAIN)
]
Precision = Annotated[str, typer.Option(help="32, bf16 (autocast in training) or auto.", rich_help_panel=_TRAIN)]
Compile = Annotated[
    bool, typer.Option("--compile", help="torch.compile in training; compiles after every removal.", rich_help_panel=_TRAIN)
]
Workers = Annotated[
    int | None,
    typer.Option(help="Loading processes, where images are streamed.", show_default="half the cores", rich_help_panel=_DATA),
]
Norm = Annotated[str, typer.Option(help="Norm of a filter: l1 or l2.", rich_help_panel=_PARTS)]

Method = Annotated[str, typer.Option(help="See `slim list methods`.")]
History = Annotated[
    list[str] | None,
    typer.Option(
        help="Epoch checkpoints: a folder, a quoted pattern, or files (repeat it); or one file of NormHistory.save.",
        rich_help_panel=_PARTS,
    ),
]
Macs = Annotated[
    float | None,
    typer.Option(
        parser=fraction_of("--macs"),
        metavar="FRACTION",
        help="Of the MACs, to keep: 0.25 or 25% keeps a quarter.",
        rich_help_panel=_BUDGET,
    ),
]
Params = Annotated[
    float | None,
    typer.Option(parser=fraction_of("--params"), metavar="FRACTION", help="Of the parameters, to keep.", rich_help_panel=_BUDGET),
]
Latency = Annotated[
    str | None,
    typer.Option(
        metavar="TIME|FRACTION",
        help="What an image may take in onnxruntime, measured after each removal: 2ms, or 0.5 of the dense network's.",
        rich_help_panel=_BUDGET,
    ),
]
Widths = Annotated[
    str | None,
    typer.Option(help="Channels to keep: one number, one per group, or one per width.", rich_help_panel=_BUDGET),
]
RoundTo = Annotated[
    str | None,
    typer.Option(
        metavar="N|auto",
        help="Keep a multiple of so many channels: one number, one per group, or what this machine runs fast (auto).",
        rich_help_panel=_BUDGET,
    ),
]
LeaveOut = Annotated[
    list[str] | None,
    typer.Option(
        metavar="BLOCK|auto",
        help="Residual blocks to do without, whole: a name or a quoted pattern, 'layer1.[2-5]' (repeat it); or auto, with "
        "--latency: those that save most time for what is lost.",
        rich_help_panel=_BUDGET,
    ),
]
Iterations = Annotated[
    int | None, typer.Option(help="Turns of the loop; 0 only retrains (see --final).", rich_help_panel=_BUDGET)
]
MaxDrop = Annotated[
    float,
    typer.Option(
        help="Points of held-out top-1 that may be lost; of a score of the data's own, percent of the dense network's.",
        rich_help_panel=_BUDGET,
    ),
]
Criterion = Annotated[
    str | None,
    typer.Option(
        help="Which filters go: history, random-pairs, cfp (pairs), magnitude, l1, l2, fpgm, bn, taylor, hrank or random.",
        show_default="the method's",
        rich_help_panel=_PARTS,
    ),
]
Penalty = Annotated[
    str | None,
    typer.Option(
        help="While tying: of pairs tie (norms), exp (norms, the paper's form), weights, correlation; of all batch norms scales; "
        "or none.",
        rich_help_panel=_PARTS,
    ),
]
Merge = Annotated[
    bool | None,
    typer.Option(
        "--merge/--no-merge",
        help="Tie pairs in their weights; what read the removed filter reads its partner instead.",
        rich_help_panel=_PARTS,
    ),
]
Final = Annotated[
    str | None,
    typer.Option(
        help="Where the last retraining starts: finetune, rewind (first weights; a foreign checkpoint has its present ones), "
        "fresh (the shape alone), or auto: try each over half of the epochs, go on with the best on the held-out split.",
        show_default="the method's",
        rich_help_panel=_TRAIN,
    ),
]
FinalLr = Annotated[
    float | None,
    typer.Option(help="Peak learning rate of the last retraining.", show_default="--lr", rich_help_panel=_TRAIN),
]
Draws = Annotated[
    int | None,
    typer.Option(
        help="How many fresh starts are tried; with fresh over a third of the epochs, the best goes on.",
        show_default="1, in auto 3",
        rich_help_panel=_TRAIN,
    ),
]
Distill = Annotated[
    bool | None,
    typer.Option(
        "--distill/--no-distill",
        help="The dense network teaches in the last retraining.",
        show_default="the method's",
        rich_help_panel=_TRAIN,
    ),
]
DistillWeight = Annotated[float, typer.Option(help="The teacher's share of the loss.", rich_help_panel=_TRAIN)]
DistillTemperature = Annotated[float, typer.Option(help="How soft the teacher's outputs are made.", rich_help_panel=_TRAIN)]
TeacherModel = Annotated[
    str | None,
    typer.Option("--teacher", help="A slimcli checkpoint that teaches instead of MODEL.", rich_help_panel=_TRAIN),
]
Amount = Annotated[
    str | None,
    typer.Option(
        help="What goes in an iteration: 10%, counts of channels 2,4,8 (per group, or per width), or pq: SAP's step.",
        show_default="the method's",
        rich_help_panel=_PARTS,
    ),
]
Pq = Annotated[str, typer.Option(help="p and q of the PQ-index, for --amount pq.", rich_help_panel=_PARTS)]
Gamma = Annotated[float, typer.Option(help="Scales SAP's step.", rich_help_panel=_PARTS)]
Beta = Annotated[float, typer.Option(help="Largest share that SAP's step takes.", rich_help_panel=_PARTS)]
Eta = Annotated[float, typer.Option(help="Makes SAP's step larger.", rich_help_panel=_PARTS)]
Scope = Annotated[str, typer.Option(help="layer, or global: one amount for all layers together.", rich_help_panel=_PARTS)]
Granularity = Annotated[
    str,
    typer.Option(
        help="What is removed: filter, or weight (a mask: sparse; smaller only by filters left without a weight).",
        rich_help_panel=_PARTS,
    ),
]
Rewind = Annotated[
    bool | None,
    typer.Option(
        "--rewind/--no-rewind",
        help="After each removal the survivors go back to the weights of MODEL (to those before training: --final rewind).",
        show_default="the method's",
        rich_help_panel=_PARTS,
    ),
]
Stop = Annotated[
    str | None,
    typer.Option(
        help="When retraining after a removal ends: epochs; accuracy (held-out top-1, or the data's own score, within --margin "
        "of the dense network's); plateau (of the training loss); if, gf (information, gradient flow within --epsilon of the "
        "dense network's, or as near as it comes); flow (as many epochs as the removal broke of the information flow). Never "
        "after more than --epochs, nor (but for epochs) while more than --max-drop is lost.",
        show_default="the method's",
        rich_help_panel=_PARTS,
    ),
]
Epsilon = Annotated[
    float | None,
    typer.Option(
        help="How far the flow may be from the dense network's; for flow, the share of it that may break for each epoch.",
        show_default="if, gf: until an epoch brings it less than 10 % nearer; flow: 0.15",
        rich_help_panel=_PARTS,
    ),
]
Margin = Annotated[float, typer.Option(help="As --max-drop, for --stop accuracy.", rich_help_panel=_PARTS)]
FlowForm = Annotated[str, typer.Option(help="Information flow as correlation, or raw: the mean product.", rich_help_panel=_PARTS)]
FlowDistance = Annotated[
    str, typer.Option(help="Of a flow from the dense network's: relative, absolute or cosine.", rich_help_panel=_PARTS)
]
FlowSamples = Annotated[
    int | None,
    typer.Option(
        help="Training images that a flow is measured on.",
        show_default=f"if, flow: {FLOW_SAMPLES:,}; gf: {GRADIENT_SAMPLES:,}",
        rich_help_panel=_PARTS,
    ),
]
Lambda = Annotated[float, typer.Option("--lambda", help="Weight of the --penalty.", rich_help_panel=_PARTS)]
Distance = Annotated[str, typer.Option(help="Of norm histories: l1, l2 or cosine.", rich_help_panel=_PARTS)]
Window = Annotated[int | None, typer.Option(help="Only the last so many epochs of the history count.", rich_help_panel=_PARTS)]
Linear = Annotated[bool, typer.Option("--linear", help="Hidden linear layers lose neurons too.", rich_help_panel=_PARTS)]
Include = Annotated[
    list[str] | None,
    typer.Option(help="Only groups with a layer of that name: a quoted pattern, 'layer1.*' (repeat it).", rich_help_panel=_PARTS),
]
Exclude = Annotated[
    list[str] | None,
    typer.Option(help="No group with a layer of that name: a quoted pattern (repeat it).", rich_help_panel=_PARTS),
]
ObserveEpochs = Annotated[int, typer.Option(help="Observed first where there is no history.", rich_help_panel=_TRAIN)]
TieEpochs = Annotated[
    int | None,
    typer.Option(
        help="Before each removal, under the --penalty, if there is one.",
        show_default="the method's: 1 or 0",
        rich_help_panel=_TRAIN,
    ),
]
Epochs = Annotated[
    int | None,
    typer.Option(
        help="Retraining after each removal, at most.",
        show_default="3; 20 where --stop may end it",
        rich_help_panel=_TRAIN,
    ),
]
FinalEpochs = Annotated[
    int, typer.Option(help="The last retraining, all its starts together, annealed to zero.", rich_help_panel=_TRAIN)
]
Like = Annotated[str | None, typer.Option(help="A slim checkpoint whose shape is trained from new random weights.")]
