"""The code blocks of the documentation, and a folder in which they run."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from clips import write_clip
from recipe_models import calibrated
from yolo_models import CLASSES as CLASSES_DRAWN
from yolo_models import random_task

from benchmarks.training.yolo_dataset import label_lines
from detcam import zoo
from detcam.geometry import letterbox
from detcam.images import read_image, unit_tensor
from detcam.scenes import HELD_OUT_SEED, Scene, draw_scene

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^( *)```([\w-]*)[^\n]*\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
SHELL = ("sh", "bash", "console")
PROGRAMS = ("detcam", "make", "pip", "python", "ray", "sh")  # begin a block of commands whose language is not stated


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    language: str
    text: str
    line: int  # of the page, of the first line of the text

    @property
    def commands(self) -> list[str]:
        """The commands of a shell block, continued lines joined, without comments."""
        if self.language not in SHELL and (self.language or self.text.split()[0] not in PROGRAMS):
            return []
        joined = self.text.replace("\\\n", " ")
        return [line for line in (part.strip() for part in joined.splitlines()) if line and not line.startswith("#")]


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    result = []
    for match in FENCE.finditer(text):
        indent, language, body = match.groups()
        lines = [line.removeprefix(indent) for line in body.splitlines()]
        result.append(Block(language, "\n".join(lines) + "\n", text[: match.start(3)].count("\n") + 1))
    return result


def arguments(command: str) -> list[str]:
    """The words of a command, without a trailing comment."""
    return shlex.split(command, comments=True)


IMGSZ = 192  # of the model, so that the pages run fast
# The names that the pages use for the demo model's classes.
CLASSES = ("person", "bicycle", "car", "dog", "cat", "bird", "boat", "bench", "chair", "umbrella")


def coco(scenes: list[Scene]) -> dict[str, Any]:
    """The labels of the images in COCO's format."""
    annotations = []
    for i, scene in enumerate(scenes):
        for kind, (x1, y1, x2, y2) in zip(scene.class_ids.tolist(), scene.boxes.tolist(), strict=True):
            outline = [x1, y1, x2, y1, x2, y2, x1, y2]
            annotations.append({
                "id": len(annotations) + 1, "image_id": i, "category_id": kind, "iscrowd": 0,
                "bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1), "segmentation": [outline],
            })  # fmt: skip
    height, width = scenes[0].image.shape[:2]
    images = [{"id": i, "file_name": f"{i}.jpg", "height": height, "width": width} for i in range(len(scenes))]
    categories = [{"id": i, "name": name} for i, name in enumerate(CLASSES)]
    return {"images": images, "annotations": annotations, "categories": categories}


def furnish(folder: Path) -> Path:
    """Fill the folder with the files that the pages name: photographs, weights, labels and a video of drawn scenes.

    The weights are the demo model in Ultralytics' format, with other class names and a smaller input.
    """
    scenes = [draw_scene(HELD_OUT_SEED + i, (240, 320)) for i in (4, 0)]
    for name, scene in zip(("street.jpg", "photo.jpg", "a.jpg", "b.jpg"), scenes * 2, strict=True):
        cv2.imwrite(str(folder / name), scene.image[:, :, ::-1])
    for kind in ("photos", "labels"):
        (folder / kind).mkdir()
    for i, scene in enumerate(scenes):
        cv2.imwrite(str(folder / "photos" / f"{i}.jpg"), scene.image[:, :, ::-1])
        (folder / "labels" / f"{i}.txt").write_text("\n".join(label_lines(scene)))
    (folder / "instances.json").write_text(json.dumps(coco(scenes)))
    frames = [np.ascontiguousarray(np.roll(scenes[0].image, -4 * i, axis=1)) for i in range(3)]
    write_clip(folder / "street.mp4", frames)
    network = zoo.load("scenes-yolo").model
    network.names = dict(enumerate(CLASSES))
    for name in ("yolov8n.pt", "yolov8n-seg.pt"):
        torch.save({"model": network, "train_args": {**network.args, "imgsz": IMGSZ}}, folder / name)
    pose: Any = random_task("yolov8n-pose.yaml", 0, scenes[0].image, IMGSZ)
    pose.names = dict(enumerate(CLASSES[:CLASSES_DRAWN]))
    torch.save({"model": pose, "train_args": {"imgsz": IMGSZ}}, folder / "yolov8n-pose.pt")
    street = read_image(folder / "street.jpg")
    torch.save({"model": calibrated(unit_tensor(letterbox(street, (640, 640), 32)[0])[None])}, folder / "yolov5s.pt")
    (folder / "configs").symlink_to(ROOT / "configs")
    (folder / "examples").symlink_to(ROOT / "examples")
    return folder
