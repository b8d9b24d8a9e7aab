"""Train the demo model of `detcam.zoo` from scratch on the project's own scenes, and export it.

    python -m benchmarks.training.train_demo_yolo --work /tmp/demo-model

About 45 minutes on two CPU cores; a GPU is used if there is one. No pretrained weights, no download. Writes
detcam/zoo/ultralytics/scenes-yolo.safetensors and .yaml; the figures in the latter are measured on held-out scenes with
the model loaded back from exactly these files.
"""

from __future__ import annotations

import argparse
import os
from datetime import date
from pathlib import Path
from typing import Any

import torch
import ultralytics
import yaml
from safetensors.torch import save
from ultralytics import YOLO

from benchmarks.training.common import ULTRALYTICS
from benchmarks.training.yolo_dataset import write_dataset
from detcam import zoo
from detcam.scenes import CLASSES, HELD_OUT_SEED

SEED = 0
IMGSZ = 320

# A YOLOv8 segmenter (Ultralytics' modules and layer order) three quarters as wide as the "n" scale.
ARCHITECTURE: dict[str, Any] = {
    "nc": len(CLASSES),
    "backbone": [
        [-1, 1, "Conv", [16, 3, 2]],
        [-1, 1, "Conv", [24, 3, 2]],
        [-1, 1, "C2f", [24, True]],
        [-1, 1, "Conv", [48, 3, 2]],
        [-1, 2, "C2f", [48, True]],  # 4: stride 8
        [-1, 1, "Conv", [96, 3, 2]],
        [-1, 2, "C2f", [96, True]],  # 6: stride 16
        [-1, 1, "Conv", [192, 3, 2]],
        [-1, 1, "C2f", [192, True]],
        [-1, 1, "SPPF", [192, 5]],  # 9: stride 32
    ],
    "head": [
        [-1, 1, "nn.Upsample", [None, 2, "nearest"]],
        [[-1, 6], 1, "Concat", [1]],
        [-1, 1, "C2f", [96]],
        [-1, 1, "nn.Upsample", [None, 2, "nearest"]],
        [[-1, 4], 1, "Concat", [1]],
        [-1, 1, "C2f", [48]],  # 15: small objects
        [-1, 1, "Conv", [48, 3, 2]],
        [[-1, 12], 1, "Concat", [1]],
        [-1, 1, "C2f", [96]],  # 18: medium objects
        [-1, 1, "Conv", [96, 3, 2]],
        [[-1, 9], 1, "Concat", [1]],
        [-1, 1, "C2f", [192]],  # 21: large objects
        [[15, 18, 21], 1, "Segment", ["nc", 32, 48]],
    ],
}


def train(work: Path, data: Path, epochs: int, device: str) -> Path:
    """Train from random weights and return the checkpoint of the last epoch's averaged model."""
    architecture = work / "architecture.yaml"
    architecture.write_text(yaml.safe_dump(ARCHITECTURE), encoding="utf-8")
    model = YOLO(str(architecture), task="segment")
    # Ultralytics leaves one core idle; with two cores that is half of the machine.
    model.add_callback("on_train_start", lambda _: torch.set_num_threads(os.cpu_count() or 1))
    model.train(
        data=str(data),
        epochs=epochs,
        imgsz=IMGSZ,
        rect=True,  # all scenes have one shape: no padding to compute
        batch=16,
        nbs=16,  # a step per batch, none saved up: steps are what is scarce here
        device=device,
        seed=SEED,
        pretrained=False,
        optimizer="AdamW",
        lr0=0.002,
        cos_lr=True,
        warmup_epochs=1,
        amp=False,
        cache="ram",
        workers=2,
        mosaic=0,  # the scenes are crowded as they are
        scale=0.3,
        hsv_h=0.03,
        hsv_s=0.4,
        hsv_v=0.3,
        val=False,  # once, at the end: see `measure`
        plots=False,
        project=str(work),
        name="run",
        exist_ok=True,
    )
    return work / "run" / "weights" / "last.pt"


def export(checkpoint: Path) -> None:
    """Write the weights, and a description without figures yet, to where `detcam.zoo` finds them."""
    weights = {}
    for name, value in YOLO(str(checkpoint)).model.state_dict().items():
        # Ultralytics already stores checkpoints in half precision, so half loses nothing here. Batch norm's
        # few bytes stay in the precision that the model is built with.
        small = value.is_floating_point() and value.ndim > 1
        weights[name] = (value.half() if small else value).contiguous()
    (ULTRALYTICS / "scenes-yolo.safetensors").write_bytes(save(weights))
    describe({})


def describe(facts: dict[str, Any]) -> None:
    """Write scenes-yolo.yaml: what Ultralytics needs to build the model, the class names, and `facts` about it."""
    description = {**ARCHITECTURE, "names": list(CLASSES), "imgsz": IMGSZ, **facts}
    text = yaml.safe_dump(description, sort_keys=False, default_flow_style=None, width=110)
    header = "# Written by benchmarks/training/train_demo_yolo.py: the model in scenes-yolo.safetensors.\n"
    (ULTRALYTICS / "scenes-yolo.yaml").write_text(header + text, encoding="utf-8")


def measure(model: YOLO, data: Path, device: str) -> dict[str, float]:
    """Return box and mask average precision on the held-out scenes, at the model's picture size."""
    metrics = model.val(data=str(data), imgsz=IMGSZ, batch=16, device=device, plots=False, workers=0)
    return {
        "box_map50": round(float(metrics.box.map50), 4),
        "box_map50_95": round(float(metrics.box.map), 4),
        "mask_map50": round(float(metrics.seg.map50), 4),
        "mask_map50_95": round(float(metrics.seg.map), 4),
    }


def main() -> None:
    """Draw, train, export, load back, measure."""
    parser = argparse.ArgumentParser(description="Train and export the demo model of detcam.zoo.")
    parser.add_argument("--work", type=Path, required=True, help="folder for the data set and the run")
    parser.add_argument("--scenes", type=int, default=2400, help="training scenes, seeds 0, 1, ...")
    parser.add_argument("--held-out", type=int, default=300, help="scenes to measure on, never trained on")
    parser.add_argument("--epochs", type=int, default=14)
    parser.add_argument("--device", default="0" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--checkpoint", type=Path, help="export this checkpoint instead of training")
    args = parser.parse_args()

    work = args.work.resolve()
    data = work / "scenes" / "data.yaml"
    if not data.exists():
        held_out = range(HELD_OUT_SEED, HELD_OUT_SEED + args.held_out)
        data = write_dataset(work / "scenes", range(args.scenes), held_out)
    checkpoint = args.checkpoint or train(work, data, args.epochs, args.device)
    export(checkpoint)
    shipped = measure(zoo.load("scenes-yolo"), data, args.device)
    facts = {
        "training": {
            "seed": SEED,
            "scenes": args.scenes,
            "epochs": args.epochs,
            "date": date.today().isoformat(),
            "ultralytics": ultralytics.__version__,
            "torch": str(torch.__version__),
        },
        "held_out": {"first_seed": HELD_OUT_SEED, "scenes": args.held_out, **shipped},
    }
    describe(facts)
    print(yaml.safe_dump(facts, sort_keys=False))


if __name__ == "__main__":
    main()
