"""Train the models of detcam's planted scenes from scratch, verify by intervention what they look at, and export them.

    python -m benchmarks.training.train_planted_models --work /tmp/planted mark beacon context

About four minutes a model on one core. Each is a YOLOv8 detector scaled far down. Every scene is shown twice
in a batch, with two different distractors, and the difference that this makes to the class logits is part of the loss.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict
from datetime import date
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import ultralytics
import yaml
from safetensors.torch import save
from torch import Tensor
from ultralytics.nn.tasks import DetectionModel

from benchmarks.causality import causality
from detcam import zoo
from detcam.evaluate.planted.interventions import Witness
from detcam.scenes import HELD_OUT_SEED
from detcam.scenes.planted import SIZE, VARIANTS, draw_planted
from detcam.scenes.planted_parts import SYMBOLS

SEED = 0
BATCH = 8  # scenes, each twice
PAIR_WEIGHT = 0.3  # of the squared change of a logit, beside Ultralytics' own loss per picture
RATE = 3e-3  # of learning, at its highest; half of it for a model that starts from another
CALIBRATIONS = 40  # batches
CHANGES = (None, "distractor", "no distractor")
STEPS = {"mark": 800, "beacon": 240, "context": 800}
STARTS_FROM = {"beacon": "mark"}  # a badge is learnt where it is easy to find, before one must look for it elsewhere

ARCHITECTURE: dict[str, Any] = {
    "nc": len(SYMBOLS),
    "reg_max": 8,  # of the strides that a side of a box may measure: objects are small
    "backbone": [
        [-1, 1, "Conv", [12, 3, 2]],
        [-1, 1, "Conv", [24, 3, 2]],
        [-1, 1, "C2f", [24, True]],
        [-1, 1, "Conv", [40, 3, 2]],
        [-1, 1, "C2f", [40, True]],  # 4: stride 8
        [-1, 1, "Conv", [64, 3, 2]],
        [-1, 1, "C2f", [64, True]],  # 6: stride 16
        [-1, 1, "Conv", [80, 3, 2]],
        [-1, 1, "C2f", [80, True]],
        [-1, 1, "SPPF", [80, 5]],  # 9: stride 32
    ],
    "head": [
        [-1, 1, "nn.Upsample", [None, 2, "nearest"]],
        [[-1, 6], 1, "Concat", [1]],
        [-1, 1, "C2f", [64]],
        [-1, 1, "nn.Upsample", [None, 2, "nearest"]],
        [[-1, 4], 1, "Concat", [1]],
        [-1, 1, "C2f", [40]],  # 15
        [-1, 1, "Conv", [40, 3, 2]],
        [[-1, 12], 1, "Concat", [1]],
        [-1, 1, "C2f", [64]],  # 18
        [-1, 1, "Conv", [64, 3, 2]],
        [[-1, 9], 1, "Concat", [1]],
        [-1, 1, "C2f", [80]],  # 21
        [[15, 18, 21], 1, "Detect", ["nc"]],
    ],
}


Data = tuple[Tensor, list[Tensor], list[Tensor]]


def drawn(variant: str, scenes: int) -> Data:
    """Pictures uint8 [scenes, 3 changes, H, W, 3], and boxes [n, 4] and class ids [n] of each scene."""
    pictures = np.zeros((scenes, len(CHANGES), SIZE, SIZE, 3), np.uint8)
    boxes, class_ids = [], []
    for seed in range(scenes):
        versions = [draw_planted(seed, variant, change) for change in CHANGES]
        pictures[seed] = [version.image for version in versions]
        boxes.append(torch.from_numpy(versions[0].boxes))
        class_ids.append(torch.from_numpy(versions[0].class_ids))
    return torch.from_numpy(pictures), boxes, class_ids


def batch_of(
    pictures: Tensor, boxes: list[Tensor], class_ids: list[Tensor], rng: np.random.Generator
) -> dict[str, Tensor]:
    """A batch as Ultralytics' loss wants it: the second half shows the scenes of the first with other distractors."""
    chosen = rng.choice(len(boxes), BATCH, replace=False)
    versions = np.stack([rng.permutation(len(CHANGES))[:2] for _ in chosen], axis=1)
    image = torch.cat([pictures[chosen, v] for v in versions]).permute(0, 3, 1, 2).float() / 255
    found = [boxes[i].clone() for i in chosen]
    light = torch.from_numpy(rng.uniform(0.7, 1.3, (BATCH, 3, 1, 1)).astype(np.float32)).repeat(2, 1, 1, 1)
    image = (image * light).clamp(0, 1)
    image = image[:, torch.from_numpy(rng.permutation(3))]
    for axis in (0, 1):  # all of a batch at once; both symbols look the same in a mirror
        if rng.random() < 0.5:
            image = image.flip(3 - axis)
            for own in found:
                own[:, [axis, axis + 2]] = SIZE - own[:, [axis + 2, axis]]
    index = torch.cat([torch.full((len(own),), float(i)) for i, own in enumerate(found)])
    xyxy = torch.cat(found)
    xywh = torch.cat([(xyxy[:, :2] + xyxy[:, 2:]) / 2, xyxy[:, 2:] - xyxy[:, :2]], dim=1) / SIZE
    return {
        "img": image.contiguous(memory_format=torch.channels_last),
        "batch_idx": torch.cat([index, index + BATCH]),
        "cls": torch.cat([class_ids[i] for i in chosen]).float()[:, None].repeat(2, 1),
        "bboxes": xywh.repeat(2, 1),
    }


def pair_loss(scores: Tensor, batch: dict[str, Tensor]) -> Tensor:
    """Mean squared difference of the class logits [2 B, nc, A] in the objects' boxes, between the halves of a batch."""
    cells = []
    for stride in (8, 16, 32):
        line = (torch.arange(SIZE // stride) + 0.5) * stride / SIZE
        cells.append(torch.stack(torch.meshgrid(line, line, indexing="ij"), dim=-1).reshape(-1, 2).flip(1))
    anchors = torch.cat(cells)
    half = len(scores) // 2
    first = batch["batch_idx"] < half
    middle, side = batch["bboxes"][first, :2], batch["bboxes"][first, 2:]
    inside = ((anchors - middle[:, None]).abs() < side[:, None] / 2).all(dim=2)  # [n, A]
    rows = batch["batch_idx"][first].long()
    change = (scores[:half] - scores[half:])[rows].square().sum(dim=1)
    return change[inside].mean()


def train(variant: str, scenes: int, steps: int, start: dict[str, Tensor] | None) -> DetectionModel:
    """Train from random weights, or from those given; return the running average of the weights."""
    torch.manual_seed(SEED)
    rng = np.random.default_rng(SEED)
    began = time.perf_counter()
    data = drawn(variant, scenes)
    print(f"{variant}: {scenes} scenes drawn in {time.perf_counter() - began:.0f} s", flush=True)
    model = DetectionModel(ARCHITECTURE | {"ch": 3}, verbose=False)
    if start is not None:
        model.load_state_dict(start)
    model.args = SimpleNamespace(box=7.5, cls=0.5, dfl=1.5, cls_pw=0.0)
    model.to(memory_format=torch.channels_last)
    average = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(1 - 8 / steps), use_buffers=True
    )
    rate = RATE if start is None else RATE / 2
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.08)
    model.train()
    for step in range(steps):
        batch = batch_of(*data, rng)
        predictions = model(batch["img"])
        loss, parts = model.loss(batch, predictions)
        pair = pair_loss(predictions["scores"], batch)
        optimizer.zero_grad(set_to_none=True)
        (loss.sum() + PAIR_WEIGHT * len(batch["img"]) * pair * min(1.0, step / (0.3 * steps))).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
        schedule.step()
        average.update_parameters(model)
        if step % 50 == 0 or step == steps - 1:
            figures = " ".join(f"{float(value):.3f}" for value in parts.values())
            print(
                f"{variant} step {step} box/cls/dfl {figures} pair {float(pair.detach()):.4f} "
                f"{time.perf_counter() - began:.0f} s",
                flush=True,
            )
    return calibrated(average.module, data, rng)


@torch.no_grad()
def calibrated(model: DetectionModel, data: Data, rng: np.random.Generator) -> DetectionModel:
    """Set batch norm's statistics to those that the averaged weights give: their own average lags behind."""
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    momentum = norms[0].momentum
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over all batches that follow
    model.train()
    for _ in range(CALIBRATIONS):
        model(batch_of(*data, rng)["img"])
    for norm in norms:
        norm.momentum = momentum
    return model.eval()


def export(variant: str, weights: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """Write the weights and their description to where `detcam.zoo` finds them."""
    name = f"planted_{variant}"
    small = {
        key: (value.half() if value.is_floating_point() and value.ndim > 1 else value).contiguous()
        for key, value in weights.items()
    }
    (zoo.FOLDER / f"{name}.safetensors").write_bytes(save(small))
    description = {"task": "detect", **ARCHITECTURE, "names": list(SYMBOLS), "imgsz": SIZE, **facts}
    text = yaml.safe_dump(description, sort_keys=False, default_flow_style=None, width=110)
    header = f"# Written by benchmarks/training/train_planted_models.py: the model in {name}.safetensors.\n"
    (zoo.FOLDER / f"{name}.yaml").write_text(header + text, encoding="utf-8")


def verified(variant: str, scenes: int) -> dict[str, Any]:
    """What interventions on held-out scenes show about the exported model."""
    shown = causality(Witness(variant), range(HELD_OUT_SEED, HELD_OUT_SEED + scenes))
    figures = {key: round(value, 4) for key, value in asdict(shown).items() if value is not None}
    return {"first_seed": HELD_OUT_SEED, "scenes": scenes, **figures}


def main() -> None:
    """Draw, train, export, load back, intervene."""
    parser = argparse.ArgumentParser(description="Train and export the models of detcam's planted scenes.")
    parser.add_argument("variants", nargs="+", choices=VARIANTS)
    parser.add_argument("--work", type=Path, required=True, help="folder for checkpoints; one that is there is used")
    parser.add_argument("--scenes", type=int, default=1000, help="training scenes, seeds 0, 1, ...")
    parser.add_argument("--held-out", type=int, default=60, help="scenes to intervene on, never trained on")
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.work.mkdir(parents=True, exist_ok=True)
    for variant in args.variants:
        checkpoint = args.work / f"{variant}.pt"
        if not checkpoint.exists():
            first = STARTS_FROM.get(variant)
            start = None if first is None else torch.load(args.work / f"{first}.pt", weights_only=True)
            torch.save(train(variant, args.scenes, STEPS[variant], start).state_dict(), checkpoint)
        weights = torch.load(checkpoint, weights_only=True)
        training = {
            "seed": SEED,
            "starts_from": STARTS_FROM.get(variant, "random weights"),
            "scenes": args.scenes,
            "steps": STEPS[variant],
            "date": date.today().isoformat(),
            "ultralytics": ultralytics.__version__,
            "torch": str(torch.__version__),
        }
        export(variant, weights, {"training": training})
        held_out = verified(variant, args.held_out)
        export(variant, weights, {"training": training, "held_out": held_out})
        print(yaml.safe_dump({variant: held_out}, sort_keys=False), flush=True)


if __name__ == "__main__":
    main()
