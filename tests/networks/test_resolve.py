"""`--arch`: every name gives a network, everything else an `ArchError` that says what to do."""

from __future__ import annotations

import contextlib
import keyword
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from slimcli.errors import ArchError
from slimcli.networks import ARCHS, resolve


@pytest.mark.parametrize("arch", ARCHS)
@torch.no_grad()
def test_every_built_in_network_computes_logits(arch: str) -> None:
    channels, height, width = ARCHS[arch].input_shape
    for classes in (10, 7):
        model = resolve.build(arch, classes, (channels, height, width)).eval()
        assert model(torch.randn(2, channels, height, width)).shape == (2, classes)
    assert not resolve.is_foreign(arch)


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (2, 40, 24)])
@torch.no_grad()
def test_lenet_takes_other_images(shape: tuple[int, int, int]) -> None:
    assert resolve.build("lenet5", 4, shape)(torch.randn(2, *shape)).shape == (2, 4)


@pytest.mark.parametrize(("arch", "shape"), [("lenet5", (1, 8, 8)), ("lenet5", (1, 15, 28)), ("vgg16-cifar", (1, 28, 28))])
def test_images_too_small_for_the_network_are_refused(arch: str, shape: tuple[int, int, int]) -> None:
    with pytest.raises(ArchError, match=arch):
        resolve.build(arch, 10, shape)


def test_pooling_before_relu_is_pooling_after_it() -> None:
    model = resolve.build("lenet5", 10, (1, 28, 28))
    x = torch.randn(4, 1, 28, 28)
    y = model.pool(torch.relu(model.conv1(x)))
    y = model.pool(torch.relu(model.conv2(y)))
    torch.testing.assert_close(model(x), model.fc2(torch.relu(model.fc1(y.flatten(1)))))


@pytest.mark.parametrize(
    ("wrong", "nearest"),
    [("lenet", "lenet5"), ("resnet56", "resnet56-cifar"), ("vgg16", "vgg16-cifar"), ("torchvision:resnet81", "resnet18")],
)
def test_an_unknown_name_suggests_the_nearest(wrong: str, nearest: str) -> None:
    with pytest.raises(ArchError) as caught:
        resolve.build(wrong, 10, (3, 32, 32))
    assert wrong.rpartition(":")[2] in caught.value.message
    assert nearest in caught.value.hint


@pytest.mark.parametrize(
    "wrong", ["", ":", "x:", ":build", "zzzzzz", "torchvision:", "no.such.module:build", "a:b:c:d", "file.py:"]
)
def test_what_is_no_arch_is_refused(wrong: str) -> None:
    with pytest.raises(ArchError) as caught:
        resolve.build(wrong, 10, (3, 32, 32))
    assert caught.value.hint


@torch.no_grad()
def test_torchvisions_networks_have_the_classes_asked_for() -> None:
    model = resolve.build("torchvision:mobilenet_v3_small", 7, (3, 64, 64)).eval()
    assert model(torch.randn(1, 3, 64, 64)).shape == (1, 7)


@pytest.mark.parametrize("name", ["fasterrcnn_resnet50_fpn", "deeplabv3_resnet50"])
def test_building_a_network_never_downloads(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.models import _api

    asked: list[object] = []

    def download(*args: Any, **_: Any) -> None:
        asked.append(args)
        raise OSError("no network here")

    monkeypatch.setattr(_api, "load_state_dict_from_url", download)
    with pytest.raises(ArchError):
        resolve.build(f"torchvision:{name}", 10, (3, 64, 64))
    assert not asked


def test_timm_is_optional(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ArchError, match="timm") as caught:
        resolve.build("timm:resnet18", 10, (3, 32, 32))
    assert "pip install" in caught.value.hint


def test_a_callable_in_a_file_builds_the_network(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from dataclasses import dataclass\n"
        "from torch import nn\n"
        "@dataclass\n"
        "class Config:\n"
        "    width: int = 3\n"
        "def build():\n"
        "    return nn.Conv2d(1, Config().width, 1)\n"
    )
    model = resolve.build(f"{tmp_path / 'mine.py'}:build", 10, (1, 8, 8))
    assert isinstance(model, nn.Conv2d)
    assert resolve.is_foreign(f"{tmp_path / 'mine.py'}:build")


def test_a_callable_of_a_module_builds_the_network() -> None:
    assert type(resolve.build("tests.tiny:Chain", 4, (3, 8, 8))).__name__ == "Chain"


@pytest.mark.parametrize(
    ("body", "part"),
    [
        ("def build():\n    return 5\n", "int"),
        ("def build():\n    raise ValueError('no such weights')\n", "no such weights"),
        ("def build(width):\n    pass\n", "width"),
        ("1 / 0\n", "ZeroDivisionError"),
        ("def build(:\n", "SyntaxError"),
        ("import no_such_package\n", "no_such_package"),
        ("def construct():\n    pass\n", "build"),
        ("build = 5\n", "build"),
    ],
)
def test_the_users_own_faults_are_told_in_a_sentence(tmp_path: Path, body: str, part: str) -> None:
    (tmp_path / "mine.py").write_text(body)
    with pytest.raises(ArchError, match=part) as caught:
        resolve.build(f"{tmp_path / 'mine.py'}:build", 10, (1, 8, 8))
    assert caught.value.hint
    assert "\n" not in caught.value.message


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArchError, match=r"mine\.py"):
        resolve.build(f"{tmp_path / 'mine.py'}:build", 10, (1, 8, 8))


@given(st.lists(st.sampled_from(["torchvision", "timm", "os", "file.py", "lenet5", "", "x"]), min_size=1, max_size=4))
def test_whatever_runs_code_from_outside_is_foreign(parts: list[str]) -> None:
    arch = ":".join(parts)
    ran: list[object] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resolve, "load_callable", lambda *args: ran.append(args) or nn.Identity)
        with contextlib.suppress(ArchError):
            resolve.build(arch, 10, (3, 32, 32))
    assert resolve.is_foreign(arch) or not ran


VALUES = st.one_of(
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.booleans(),
    st.none(),
    st.text(),
    st.lists(st.integers(), max_size=3),
)


@given(
    st.sampled_from(["", "torchvision", "my(1) file.py", "/a/b.py", "package.module"]),
    st.from_regex(r"[a-z_][a-z0-9_-]*", fullmatch=True),
    st.dictionaries(st.from_regex(r"[a-z_][a-z0-9]*", fullmatch=True).filter(lambda key: not keyword.iskeyword(key)), VALUES),
)
def test_an_arch_is_read_as_it_was_written(family: str, name: str, arguments: dict[str, Any]) -> None:
    spec = resolve.Spec(family, name, arguments)
    assert resolve.parse(str(spec)) == spec
    assert resolve.parse(spec.bare) == resolve.Spec(family, name, {})


def test_arguments_reach_what_builds_the_network(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from torch import nn\n"
        "def build(width=3, act='relu', kernels=(1,)):\n"
        "    assert act in ('relu', 'a:b')\n"
        "    return nn.Conv2d(1, width, kernels[0])\n"
    )
    arch = resolve.with_arguments(f"{tmp_path / 'mine.py'}:build", ["width=5", "act=a:b", "kernels=(3,)"])
    model = resolve.build(arch, 10, (1, 8, 8))
    assert isinstance(model, nn.Conv2d)
    assert model.weight.shape == (5, 1, 3, 3)
    assert resolve.is_foreign(arch)
    assert resolve.build(resolve.with_arguments(arch, ["width=7"]), 10, (1, 8, 8)).weight.shape == (7, 1, 3, 3)
    assert resolve.build("torchvision:mobilenet_v3_small(width_mult=0.5)", 7, (3, 64, 64)) is not None
    with pytest.raises(ArchError, match="widht"):
        resolve.build(resolve.with_arguments(arch, ["widht=7"]), 10, (1, 8, 8))


@pytest.mark.parametrize(
    "wrong",
    [
        "lenet5(3)",
        "lenet5(width)",
        "lenet5(width=open('x'))",
        "lenet5(**{})",
        "lenet5(a=1",
        "lenet5)(",
        "lenet5(a=1)(b=2)",
        "lenet5(a=1).x(b=2)",
        "lenet5(a={[]: 1})",
    ],
)
def test_what_is_no_argument_is_refused(wrong: str) -> None:
    with pytest.raises(ArchError):
        resolve.build(wrong, 10, (1, 28, 28))


@pytest.mark.parametrize("wrong", ["width", "=3", "a b=3", "3=4"])
def test_an_argument_on_the_command_line_is_key_and_value(wrong: str) -> None:
    with pytest.raises(ArchError, match="--arch-arg"):
        resolve.with_arguments("lenet5", [wrong])


def test_published_weights_say_what_images_they_want() -> None:
    assert resolve.normalisation("torchvision:resnet18") == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert resolve.normalisation("torchvision:inception_v3") is not None
    assert resolve.normalisation("torchvision:no_such_network") is None
    assert resolve.normalisation("lenet5") is None
    assert resolve.normalisation("tests.tiny:Chain") is None


@pytest.mark.parametrize("argument", ["checkpoint_path='x.pth'", "pretrained=True", "pretrained_cfg={'hf_hub_id': 'a/b'}"])
def test_a_name_never_makes_timm_load_another_file(argument: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def create_model(*_: Any, **__: Any) -> None:
        raise AssertionError("timm was asked")

    monkeypatch.setitem(sys.modules, "timm", SimpleNamespace(list_models=lambda: ["resnet18"], create_model=create_model))
    with pytest.raises(ArchError, match="would load weights from elsewhere"):
        resolve.build(f"timm:resnet18({argument})", 10, (3, 32, 32))


def test_timm_is_given_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    def create_model(name: str, **arguments: Any) -> nn.Module:
        assert (name, arguments) == ("resnet18", {"pretrained": False, "num_classes": 7, "in_chans": 3, "drop_rate": 0.1})
        return nn.Identity()

    published = SimpleNamespace(mean=(0.5,) * 3, std=(0.25,) * 3)
    timm = SimpleNamespace(
        list_models=lambda: ["resnet18"], create_model=create_model, get_pretrained_cfg=lambda *_, **__: published
    )
    monkeypatch.setitem(sys.modules, "timm", timm)
    resolve.build("timm:resnet18(drop_rate=0.1)", 7, (3, 32, 32))
    assert resolve.normalisation("timm:resnet18(drop_rate=0.1)") == ((0.5,) * 3, (0.25,) * 3)


def test_a_network_without_numbers_is_refused(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(
        "from torch import nn\ndef build():\n    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(2, 3, device='meta'))\n"
    )
    with pytest.raises(ArchError, match=r"1\.weight, 1\.bias are on the meta device"):
        resolve.build(f"{tmp_path / 'net.py'}:build", 3, (3, 8, 8))
