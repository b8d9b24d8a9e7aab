"""Random YOLO models of every task that the installed Ultralytics ships, and the objects of its predict call."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import LOGIT, _centre, random_yolo
from torch import Tensor, nn

from detcam.adapters import YoloAdapter
from detcam.engine import shadow

OTHER_TASKS = ("cls", "rtdetr", "sem", "depth")  # no boxes, or another kind of head
TASKS = ("pose", "obb", "world", "yoloe")
SCALED = (
    "yolov5",
    "yolov6",
    "yolov8",
    "yolo11",
    "yolo12",
    "yolo26",
)  # their YAML holds sizes n to x: the smallest here
SIZE = 128
CLASSES = 7


def shipped() -> list[str]:
    """Every YAML of a model with boxes that the installed Ultralytics ships, each at its smallest size."""
    ultralytics = pytest.importorskip("ultralytics")
    names = sorted(path.stem for path in (Path(ultralytics.__file__).parent / "cfg" / "models").rglob("*.yaml"))
    smallest = []
    for name in (name for name in names if not any(task in name for task in OTHER_TASKS)):
        prefix = "yoloe-" if name.startswith("yoloe-") else ""
        name = name.removeprefix(prefix)
        family = name.split("-")[0]
        scaled = family in SCALED or (prefix and family in ("v8", "11", "26"))
        smallest.append(f"{prefix}{name.replace(family, f'{family}n', 1) if scaled else name}.yaml")
    return smallest


def size_of(config: str) -> int:
    """Pixels of the network's input: a multiple of the largest stride."""
    return 192 if "p6" in config else SIZE


def random_model(config: str, seed: int, picture: np.ndarray, imgsz: int) -> nn.Module:
    """A model of any task in eval mode that finds objects on `picture` at every level."""
    build = random_task if any(task in config for task in TASKS) else random_yolo
    return build(config, seed, picture, imgsz)


def random_task(config: str, seed: int, picture: np.ndarray, imgsz: int, found: int = 4, **options: Any) -> nn.Module:
    """A model with random weights that finds about `found` objects at every level; text embeddings are random too.

    `options` are those of Ultralytics' class of the model.
    """
    from ultralytics.nn import tasks

    torch.manual_seed(seed)
    kinds = {"pose": "Pose", "obb": "OBB", "world": "World", "yoloe": "YOLOESeg" if "seg" in config else "YOLOE"}
    kind = next(kind for task, kind in kinds.items() if task in config)
    model = getattr(tasks, f"{kind}Model")(config, ch=3, nc=CLASSES, verbose=False, **options)
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d) and "dfl" not in name:
            nn.init.kaiming_normal_(module.weight)
            if "qk" in name:
                module.weight.data *= 0.3  # a softmax of huge logits would amplify rounding errors
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.0)
            nn.init.normal_(module.bias, 0.2, 0.2)
            nn.init.normal_(module.running_mean, 0, 0.1)
            nn.init.uniform_(module.running_var, 0.8, 1.5)
    names = [f"thing-{i}" for i in range(CLASSES)]
    texts = nn.functional.normalize(torch.randn(1, CLASSES, 512), dim=-1)
    if "world" in config:
        model.txt_feats = texts
    elif "yoloe" in config:
        model.set_classes(names, texts)
    model.names = dict(enumerate(names))
    model.eval()
    _calibrate(model, picture, imgsz, found)
    return model


@torch.no_grad()
def _calibrate(model: Any, picture: np.ndarray, imgsz: int, found: int) -> None:
    head = model.model[-1]
    contrast = "world" in model.yaml["yaml_file"] or "yoloe" in model.yaml["yaml_file"]
    branches = [(head.cv2, head.cv4 if contrast else head.cv3, head.cv3)]
    if getattr(head, "one2one_cv2", None) is not None:
        last = head.one2one_cv4 if contrast else head.one2one_cv3
        branches.append((head.one2one_cv2, last, head.one2one_cv3))
    for boxes, _, classes in branches:
        for box, branch in zip(boxes, classes, strict=True):
            nn.init.normal_(branch[-1].weight, 0, 0.2)
            nn.init.normal_(box[-1].weight, 0, 0.05)
            box[-1].bias.data = (-0.5 * torch.arange(head.reg_max, dtype=torch.float32) + 1.5).repeat(4)
    adapter = YoloAdapter(shadow(model), model, imgsz)
    batch = adapter.prepare(picture)[0][None]
    outputs: dict[Any, Tensor] = {}
    handles = [
        part.register_forward_hook(lambda m, a, out, key=(i, level): outputs.update({key: out}))
        for i, (_, parts, _) in enumerate(branches)
        for level, part in enumerate(parts)
    ]
    if hasattr(head, "proto"):
        handles.append(head.proto.cv3.bn.register_forward_pre_hook(_centre))
    model(batch)
    for handle in handles:
        handle.remove()
    head.shape = None
    for i, (_, parts, _) in enumerate(branches):
        for level, part in enumerate(parts):
            best = outputs[i, level].flatten(2).amax(dim=1)[0].sort(descending=True).values
            least = min(found, len(best) - 1)
            count = least + int(best[least - 1 : least + 10].diff().neg().argmax())
            (part if contrast else part[-1]).bias.data += LOGIT - (best[count - 1] + best[count]) / 2


def predicted(config: str, model: nn.Module, picture: np.ndarray, **options: Any) -> Any:
    """What Ultralytics' own predict call returns for one RGB picture: (boxes xyxy, scores, classes), and masks."""
    from ultralytics import YOLO, YOLOE, YOLOWorld

    wrapper: Any = (YOLOWorld if "world" in config else YOLOE if "yoloe" in config else YOLO)(config)
    wrapper.model = model
    bgr = np.ascontiguousarray(picture[:, :, ::-1])
    result = wrapper.predict(bgr, device="cpu", verbose=False, **options)[0]
    found = result.obb if result.obb is not None else result.boxes
    return result, found.xyxy, found.conf, found.cls.long()
