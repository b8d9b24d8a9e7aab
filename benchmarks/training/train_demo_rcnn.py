"""Train the demo Mask R-CNN: 40 minutes on one core.

    python -m benchmarks.training.train_demo_rcnn --work /tmp/demo-models --scenes 2800

torchvision's model on plain convolutions, trained from random weights. The figures are measured on held-out scenes with
the model loaded back from its files.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torchvision
from numpy.typing import NDArray
from safetensors.torch import save
from torch.utils._pytree import tree_map
from torchvision.ops import box_convert

from benchmarks.training.average_precision import average_precision
from benchmarks.training.common import SEED, arguments, batches, describe, drawn, halved
from detcam import zoo
from detcam.scenes import CLASSES, HELD_OUT_SEED
from detcam.zoo.rcnn import rcnn

NAME, SIZE, BATCH, HELD_OUT = "scenes", (240, 320), 8, 300
DESCRIPTION: dict[str, Any] = {
    "library": "torchvision",
    "names": list(CLASSES),
    "imgsz": 320,
    # (channels, stride)
    "body": [[16, 2], [32, 2], [32, 1], [64, 2], [64, 1], [64, 1], [96, 2], [96, 1], [96, 1], [128, 2], [128, 1]],
    "stages": [5, 8, 10],  # layers of the body that the pyramid reads: strides 8, 16, 32
    "pyramid": 64,  # channels
    "anchors": [[32, 46], [64, 88], [116, 150], [200, 256]],  # px, on each level; objects are 20 to 120 px wide
    "proposals": [96, 48],
    "pool": 7,  # cells that a proposal is pooled to, on the finest level
    "box_head": 128,  # channels
    "mask_pool": 14,
    "mask_head": [48, 48],  # channels
}


def targets(ids: NDArray[np.int64], flips: NDArray[np.bool_]) -> Iterator[dict[str, torch.Tensor]]:
    """The objects of some scenes, as torchvision asks for them."""
    objects = scenes.targets(ids, flips)
    boxes = box_convert(torch.from_numpy(objects["bboxes"] * (*SIZE[::-1], *SIZE[::-1])).float(), "cxcywh", "xyxy")
    for i, topmost in enumerate(scenes.topmost[ids]):
        here = objects["batch_idx"] == i
        shown = topmost[:, ::-1] if flips[i] else topmost
        masks = shown == np.arange(1, 1 + here.sum())[:, None, None]
        labels = torch.from_numpy(1 + objects["cls"][here])
        yield {"boxes": boxes[here], "labels": labels, "masks": torch.from_numpy(masks.astype(np.uint8))}


args = arguments("Train the demo Mask R-CNN.", steps=2600)
torch.manual_seed(SEED)
scenes = drawn(args.work, args.scenes, SIZE)
model = rcnn(DESCRIPTION).to(memory_format=torch.channels_last).train()
for part in (model.backbone, model.roi_heads.mask_head):  # in half precision: a third faster
    part.forward = torch.autocast("cpu", torch.bfloat16)(part.forward)
    part.register_forward_hook(lambda _, __, outputs: tree_map(torch.Tensor.float, outputs))
optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1e-2)
random = np.random.default_rng(SEED)
for ids in batches(optimizer, len(scenes), args.steps, BATCH):
    flips = random.random(len(ids)) < 0.5
    pixels = torch.from_numpy(scenes.images[ids]).permute(0, 3, 1, 2) / 255
    pixels = torch.where(torch.from_numpy(flips)[:, None, None, None], pixels.flip(3), pixels)
    pixels = (pixels * torch.empty(len(ids), 3, 1, 1).uniform_(0.85, 1.15)).clamp(0, 1)
    losses = model(list(pixels), list(targets(ids, flips)))
    optimizer.zero_grad()
    torch.stack(list(losses.values())).sum().backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 5)
    optimizer.step()

(zoo.FOLDER / f"{NAME}.safetensors").write_bytes(save(halved(model.state_dict())))
facts = {"scenes": args.scenes, "steps": args.steps, "torchvision": torchvision.__version__}
describe(NAME, __file__, DESCRIPTION, **facts)
held_out = range(HELD_OUT_SEED, HELD_OUT_SEED + HELD_OUT)
measured = {"first_seed": held_out[0], "scenes": HELD_OUT, **average_precision(zoo.load(NAME), held_out)}
describe(NAME, __file__, {**DESCRIPTION, "held_out": measured}, **facts)
