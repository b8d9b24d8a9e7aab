"""Seeds, random YOLO models that find objects, random pictures, and what must not change in a user's model."""

from __future__ import annotations

import copy
import itertools
import os
import signal
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any
from zlib import crc32

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from detcam import Explanation, Objects
from detcam.geometry import Geometry

CONF = 0.25
LOGIT = float(torch.tensor(CONF).logit())
NIGHTLY = os.environ.get("NIGHTLY", "0") not in ("", "0")


@cache
def seed_of(name: str) -> int:
    """The seed for this name: the same in every run, unless the environment variable SEED gives another series."""
    return crc32(f"{os.environ.get('SEED', '')}{name}".encode()) % 2**31


def few(values: Iterable[Any], *default: Any) -> list[Any]:
    """All values for `pytest.mark.parametrize`, of which those not in `default` run in the nightly tier only."""
    return [value if value in default else pytest.param(value, marks=pytest.mark.nightly) for value in values]


def few_rows(rows: Iterable[tuple[Any, ...]], *default: tuple[Any, ...]) -> list[Any]:
    """`few` for rows that hold a value for each of several arguments."""
    return [row if row in default else pytest.param(*row, marks=pytest.mark.nightly) for row in rows]


def diagonal(*axes: Sequence[Any]) -> list[Any]:
    """Every combination of the axes' values, for `parametrize`; those beyond one for each value are nightly."""
    kept = [tuple(axis[i % len(axis)] for axis in axes) for i in range(max(map(len, axes)))]
    return [
        pytest.param(*values, marks=() if values in kept else pytest.mark.nightly)
        for values in itertools.product(*axes)
    ]


def heeding_ctrl_c() -> None:
    """For `preexec_fn`: a shell starts what it puts in the background deaf to SIGINT, and its children inherit it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def random_picture(seed: int, height: int, width: int) -> np.ndarray:
    """[height, width, 3] uint8: coloured blobs of several sizes."""
    generator = np.random.default_rng(seed)
    picture = np.zeros((height, width, 3), np.float32)
    for cells in (3, 8, 24):
        blobs = generator.uniform(0, 1, (cells, cells, 3)).astype(np.float32)
        picture += cv2.resize(blobs, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.clip(picture * 255 / 3, 0, 255).round().astype(np.uint8)


def random_yolo(config: str, seed: int, picture: np.ndarray, imgsz: int, found: int = 5) -> nn.Module:
    """An Ultralytics model with random weights, in eval mode.

    Convolutions and normalisation layers are drawn so that signals and gradients keep a natural size; then the
    class biases are shifted so that `found` anchors of every level score above CONF on `picture`, with CONF in the
    middle of the gap to the next one. Equal arguments give copies of one model, which is built once.
    """
    key = (config, seed, picture.shape, hash(picture.tobytes()), imgsz, found)
    if key not in _BUILT:
        _BUILT[key] = _random_yolo(config, seed, picture, imgsz, found)
    return copy.deepcopy(_BUILT[key])


_BUILT: dict[tuple[Any, ...], nn.Module] = {}


def _random_yolo(config: str, seed: int, picture: np.ndarray, imgsz: int, found: int) -> nn.Module:
    from ultralytics.nn.tasks import DetectionModel, SegmentationModel

    torch.manual_seed(seed)
    kind = SegmentationModel if "-seg" in config else DetectionModel
    model = kind(config, ch=3, nc=7, verbose=False)
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d) and "dfl" not in name:
            nn.init.kaiming_normal_(module.weight)
            if "qkv" in name or ".qk." in name:
                module.weight.data *= 0.3  # a softmax of huge logits would amplify rounding errors
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.0)
            nn.init.normal_(module.bias, 0.2, 0.2)
            nn.init.normal_(module.running_mean, 0, 0.1)
            nn.init.uniform_(module.running_var, 0.8, 1.5)
    model.names = {i: f"thing {i}" for i in range(7)}
    model.eval()
    head: Any = model.model[-1]
    for boxes, classes in _branches(head):
        for box, class_branch in zip(boxes, classes, strict=True):
            nn.init.normal_(class_branch[-1].weight, 0, 0.2)
            nn.init.normal_(box[-1].weight, 0, 0.05)
            bins = torch.arange(head.reg_max, dtype=torch.float32)
            box[-1].bias.data = (-0.5 * bins + 1.5).repeat(4)  # boxes of a few cells
    _calibrate(model, head, picture, imgsz, found)
    return model


def _branches(head: Any) -> list[tuple[nn.ModuleList, nn.ModuleList]]:
    branches = [(head.cv2, head.cv3)]
    if getattr(head, "one2one_cv2", None) is not None:
        branches.append((head.one2one_cv2, head.one2one_cv3))
    return branches


@torch.no_grad()
def _calibrate(model: nn.Module, head: Any, picture: np.ndarray, imgsz: int, found: int) -> None:
    from ultralytics.data.augment import LetterBox

    padded = LetterBox(imgsz, auto=True, stride=max(int(head.stride.max()), 32))(image=picture)
    batch = torch.from_numpy(np.ascontiguousarray(padded)).permute(2, 0, 1)[None] / 255
    inputs: list[Tensor] = []
    handles = [head.register_forward_pre_hook(lambda module, args: inputs.extend(args[0]))]
    if hasattr(head, "proto"):
        handles.append(head.proto.cv3.bn.register_forward_pre_hook(_centre))
    model(batch)
    for handle in handles:
        handle.remove()
    head.shape = None
    for _, classes in _branches(head):
        for level, branch in enumerate(classes):
            best = branch(inputs[level]).flatten(2).amax(dim=1)[0].sort(descending=True).values
            # The widest gap among some, so that no rounding (predict fuses layers) lifts a score over the threshold.
            least = min(found, len(best) - 1)
            count = least + int(best[least - 1 : least + 10].diff().neg().argmax())
            branch[-1].bias.data += LOGIT - (best[count - 1] + best[count]) / 2


def _centre(norm: Any, args: tuple[Tensor]) -> None:
    """Prototypes around 0, so that masks are neither empty nor full."""
    norm.running_mean.copy_(args[0].mean(dim=(0, 2, 3)))
    norm.running_var.copy_(args[0].var(dim=(0, 2, 3)))
    norm.weight.fill_(0.5)
    norm.bias.fill_(0.1)


def wrapped(model: nn.Module) -> Any:
    """The model in Ultralytics' own wrapper."""
    from ultralytics import YOLO

    wrapper = YOLO("yolov8n-seg.yaml" if hasattr(model.model[-1], "proto") else "yolov8n.yaml")
    wrapper.model = model
    return wrapper


def predict(model: nn.Module, picture: np.ndarray, **options: Any) -> Any:
    """What Ultralytics' own predict call returns for one RGB picture."""
    bgr = np.ascontiguousarray(picture[:, :, ::-1])
    return wrapped(model).predict(bgr, device="cpu", verbose=False, **options)[0]


def assert_same_objects(explanation: Any, result: Any, box: float = 1e-3, score: float = 1e-4) -> None:
    """Same objects in the same order; only objects whose scores are equal within `score` may change places."""
    boxes, scores, classes = result.boxes.xyxy, result.boxes.conf, result.boxes.cls.long()
    assert len(explanation) == len(boxes), f"scores {explanation.scores.tolist()} instead of {scores.tolist()}"
    torch.testing.assert_close(explanation.scores, scores, rtol=0, atol=score)
    used: set[int] = set()
    for i in range(len(explanation)):
        tied = (scores - explanation.scores[i]).abs() <= score
        close = (boxes - explanation.boxes[i]).abs().amax(dim=1) <= box
        matches = (tied & close & (classes == explanation.class_ids[i])).nonzero().flatten().tolist()
        free = [j for j in matches if j not in used]
        assert free, f"object {i} of {len(boxes)}: {explanation.boxes[i].tolist()} is not where predict has it"
        used.add(i if i in free else free[0])


def explanation_of(
    image: np.ndarray,
    maps: list[Tensor],
    geometry: Geometry | None = None,
    labels: tuple[str, ...] | None = None,
    boxes: Tensor | None = None,
    mask_logits: Tensor | None = None,
) -> Explanation:
    """An Explanation with hand-made maps, of a picture that fills the network's input unless `geometry` is given."""
    n, size = len(maps), (image.shape[0], image.shape[1])
    boxes = torch.tensor([[1.0, 1.0, size[1] - 1.0, size[0] - 1.0]]).repeat(n, 1) if boxes is None else boxes
    objects = Objects(
        boxes=boxes,
        scores=torch.linspace(0.9, 0.5, n),
        class_ids=torch.arange(n),
        labels=labels or ("thing",) * n,
        index=torch.arange(n),
        level=torch.zeros(n, dtype=torch.int64),
        cells=torch.zeros(n, 2, dtype=torch.int64),
        network_boxes=boxes,
        mask_logits=mask_logits,
    )
    return Explanation(
        image, objects, maps, [None] * n, {"method": "hand"}, geometry or Geometry(size, size, (0, 0), size)
    )


def fingerprint(model: nn.Module) -> dict[str, Any]:
    """All that must not change in a user's model: memory, write counters, flags, gradients, modes, hooks, caches."""
    state: dict[str, Any] = {}
    for name, module in model.named_modules():
        hooks = {
            kind: [(key, id(hook)) for key, hook in getattr(module, kind).items()]
            for kind in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
        }
        plain = {
            key: value if isinstance(value, (bool, int, float, str, type(None))) else id(value)
            for key, value in vars(module).items()
        }
        state[f"module {name}"] = (type(module), hooks, plain)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        version = "inference" if tensor.is_inference() else tensor._version
        gradient = None if tensor.grad is None else (id(tensor.grad), tensor.grad._version)
        state[f"tensor {name}"] = (
            id(tensor), tensor.data_ptr(), version, gradient, tensor.requires_grad, tensor.dtype, tensor.device,
        )  # fmt: skip
    return state
