"""Pickled weights that would run code: nothing runs, and each is refused in one line that names the culprit."""

import contextlib
import io
import pickle
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hostile import Awakened, Calls, bare, contents, legacy, opcodes, text, zipped
from support import random_picture, random_yolo
from torch import nn

import detcam.cli
from detcam import Explainer
from detcam.errors import ModelError
from detcam.models.load import load_model

pytestmark = pytest.mark.filterwarnings("ignore:Detected pickle protocol")
KINDS = sorted(contents(Path("x")))
SHAPES = ("zip", "protocol 4", "legacy", "bare 0", "bare 2", "bare 5", "ema", "whole")


def written(path: Path, content: Any, shape: str) -> Path:
    """A checkpoint that holds `content`, in one of the shapes that a loader may accept."""
    if shape == "legacy":
        return legacy(path, content)
    if shape.startswith("bare"):
        return bare(path, content, int(shape[-1]))
    document = {"zip": {"model": content}, "ema": {"ema": content}, "protocol 4": {"model": content}}.get(
        shape, content
    )
    torch.save(document, path, pickle_protocol=4 if shape == "protocol 4" else 2)
    return path


def refused(path: Path, *words: str) -> str:
    with pytest.raises(ModelError) as caught:
        load_model(path)
    message = str(caught.value)
    assert message.startswith(f"model {path} ")
    assert message.isprintable()
    assert all(word in message for word in words), message
    return message


PAIRS = [  # by default every kind and every shape, nightly every pair
    (kind, shape) if shape == SHAPES[0] or kind == "os.system" else pytest.param(kind, shape, marks=pytest.mark.nightly)
    for kind in KINDS
    for shape in SHAPES
]


@pytest.mark.parametrize(("kind", "shape"), PAIRS)
def test_nothing_runs_and_the_line_names_it(kind: str, shape: str, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    content, name = contents(canary)[kind]
    path = written(tmp_path / "evil.pt", content, shape)
    assert not canary.exists()
    refused(path, "safely", name, "--trust-checkpoint", "trust_checkpoint=True")
    assert not canary.exists()


@pytest.mark.parametrize("kind", ["os.system", "setstate"])
def test_the_canary_would_sing(kind: str, tmp_path: Path) -> None:
    """The same files do run if they are trusted: the test above can fail."""
    canary = tmp_path / "canary"
    path = written(tmp_path / "evil.pt", contents(canary)[kind][0], "zip")
    with contextlib.suppress(ModelError):  # the call leaves no model
        load_model(path, trust_checkpoint=True)
    assert canary.exists()


def test_classes_on_the_list_are_not_called(tmp_path: Path) -> None:
    """A constructor may read files, use the network or evaluate text; an honest pickle calls no constructor."""
    import ultralytics.nn.tasks  # noqa: F401

    canary = tmp_path / "canary"
    evaluated = f"__import__('os').system('touch {canary}')"
    for number, (function, argument) in enumerate(
        [
            ("ultralytics.nn.tasks.DetectionModel", text("https://example.org/x.yaml")),
            ("torch.nn.modules.activation.SiLU", text(evaluated)),
            ("ultralytics.nn.modules.block.TorchVision", text("resnet18")),
            ("torch.nn.modules.linear.Linear", b"K\x02"),
            ("numpy.dtype", text("O")),
            ("numpy.core.multiarray.scalar", text("x")),
        ]
    ):
        arguments = argument + b"\x85"
        refused(zipped(tmp_path / f"{number}.pt", opcodes(function=function, arguments=arguments)), "cannot be loaded")
    getter = b"cultralytics.nn.tasks\nDetectionModel\n" + text("__init__") + b"\x86"
    refused(zipped(tmp_path / "g.pt", opcodes(function="builtins.getattr", arguments=getter)), "getattr")
    assert not canary.exists()


def test_what_torch_allows_is_as_before(tmp_path: Path) -> None:
    """Classes allowed during a load are not allowed afterwards, in this loader or in the user's `torch.load`."""
    before = set(torch.serialization.get_safe_globals())
    path = tmp_path / "yolo.pt"
    torch.save({"model": random_yolo("yolov8n.yaml", 1, random_picture(1, 64, 64), 64)}, path)
    assert isinstance(load_model(path), nn.Module)
    assert set(torch.serialization.get_safe_globals()) - before <= set()
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)


def test_archives_that_torch_did_not_write(tmp_path: Path) -> None:
    honest = io.BytesIO()
    torch.save({"model": nn.Linear(2, 2)}, honest)
    pickled = pickle.dumps({"model": None}, 2)
    outside = tmp_path / "outside"
    for name in ("../outside", "archive/../../outside", "/outside", "archive/..\\..\\outside"):
        path = zipped(tmp_path / "traversal.pt", pickled)
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(name, "x")
        refused(path, "leaves the archive")
    bomb = zipped(tmp_path / "bomb.pt", b"0" * 2**24, compression=zipfile.ZIP_DEFLATED)
    assert bomb.stat().st_size < 2**17
    refused(bomb, "exceed the file's size")
    for cut in (10, 100, len(honest.getvalue()) - 30):
        (tmp_path / "cut.pt").write_bytes(honest.getvalue()[:cut])
        refused(tmp_path / "cut.pt", "cannot be loaded")
    assert not (tmp_path.parent / outside.name).exists()
    assert not outside.exists()


def test_tensors_that_unfold(tmp_path: Path) -> None:
    """A view with strides of zero is small on disk; as float32 it would take all memory."""
    layer = nn.Linear(2, 2)
    layer.weight = nn.Parameter(torch.zeros(1, dtype=torch.float16).expand(100_000, 100_000))
    path = tmp_path / "wide.pt"
    torch.save({"model": layer}, path)
    refused(path, "larger than the file")


def test_scripts_state_dicts_and_whole_models(tmp_path: Path) -> None:
    torch.save({"model": nn.Linear(2, 2).state_dict()}, tmp_path / "weights.pt")
    refused(tmp_path / "weights.pt", "holds no model")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(nn.Linear(2, 2)), tmp_path / "script.pt")
    refused(tmp_path / "script.pt", "TorchScript")
    import torchvision

    network = torchvision.models.mobilenet_v3_small(weights=None)
    path = tmp_path / "whole.pt"
    torch.save(network.eval(), path)
    refused(path, "torchvision.models.", "--trust-checkpoint")
    assert type(load_model(path, trust_checkpoint=True)) is type(network)
    assert Explainer(path, trust_checkpoint=True).settings["family"]


NIGHTLY_CONFIGS = [
    pytest.param(f"{name}.yaml", marks=pytest.mark.nightly)
    for name in ("yolo11n-seg", "rtdetr-l", "yolov9t", "yolov10n")
]


@pytest.mark.parametrize("config", ["yolov8n.yaml", *NIGHTLY_CONFIGS])
def test_honest_checkpoints_come_back_whole(config: str, seed: int, tmp_path: Path) -> None:
    """As Ultralytics' trainer writes them: half precision, with arguments, metrics, and numpy's numbers."""
    from ultralytics.nn import tasks
    from ultralytics.utils import IterableSimpleNamespace

    kind = tasks.RTDETRDetectionModel if "rtdetr" in config else tasks.SegmentationModel if "-seg" in config else None
    model = (kind or tasks.DetectionModel)(config, ch=3, nc=4, verbose=False).half()
    model.names = {i: f"thing {i}" for i in range(4)}
    metrics = {"fitness": np.float64(0.5), "best": np.float32(0.25), "counts": {1, 2}, "order": OrderedDict(a=1)}
    model.args = IterableSimpleNamespace(imgsz=64)
    arguments = {"imgsz": 320, "data": "x.yaml", "save_dir": tmp_path}
    path = tmp_path / "last.pt"
    torch.save({"ema": model, "model": None, "train_args": arguments, "train_metrics": metrics}, path)
    loaded = load_model(path)
    assert type(loaded) is type(model)
    assert {n: type(m) for n, m in loaded.named_modules()} == {n: type(m) for n, m in model.named_modules()}
    assert loaded.args["imgsz"] == 320
    assert loaded.names == model.names
    assert not loaded.training
    for name, tensor in model.float().state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], tensor, rtol=0, atol=0)


@pytest.mark.nightly
def test_flags_of_the_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    canary, image = tmp_path / "canary", tmp_path / "a.png"
    path = written(tmp_path / "evil.pt", Calls(open, str(canary), "w"), "zip")
    from PIL import Image

    Image.fromarray(random_picture(1, 40, 60)).save(image)
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "a.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    out = str(tmp_path / "out")
    commands = (
        ["explain", str(image), "--model", str(path), "--out", out],
        ["video", str(tmp_path), "--model", str(path), "--out", f"{out}.mp4"],
        ["layers", str(path)],
        [
            "evaluate",
            "--model",
            str(path),
            "--images",
            str(tmp_path),
            "--labels",
            str(tmp_path / "labels"),
            "--out",
            out,
        ],
        ["compare", str(image), "--model", str(path), "--model", "scenes-yolo", "--out", out],
        ["batch", str(tmp_path), "--model", str(path), "--out", out],
    )
    for arguments in commands:
        assert detcam.cli.app.run(arguments) == 2, arguments
        error = capsys.readouterr().err
        assert "--trust-checkpoint" in error, (arguments, error)
        assert error.count("error: ") == 1, error
        assert not canary.exists(), arguments
    assert detcam.cli.app.run(["layers", str(path), "--trust-checkpoint"]) == 2
    assert canary.exists()


def test_unusual_objects_do_not_pass(tmp_path: Path) -> None:
    """A layer of the user needs the flag."""
    canary = tmp_path / "canary"
    torch.save({"model": nn.Sequential(Awakened(canary))}, tmp_path / "own.pt")
    refused(tmp_path / "own.pt", "hostile.Awakened")
    assert not canary.exists()
