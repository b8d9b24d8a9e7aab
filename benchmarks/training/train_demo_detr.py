"""Train the demo RT-DETR: 10 minutes on one core.

    python -m benchmarks.training.train_demo_detr --work /tmp/demo-models

Backbone and neck are those of the demo model "scenes-yolo", frozen, so their maps are made once for each scene and its
mirror image; the encoder's heads and the decoder of queries are trained from scratch.
"""

from typing import Any

import numpy as np
import torch
import ultralytics
import yaml
from safetensors.torch import load_file, save
from ultralytics.nn.tasks import RTDETRDetectionModel

from benchmarks.training.common import ULTRALYTICS, arguments, batches, describe, drawn, halved

NAME, SIZE, TRUNK = "scenes-detr", (256, 320), ULTRALYTICS / "scenes-yolo.safetensors"
HEAD = [[18, 21], 1, "RTDETRDecoder", ["nc", 128, 40, 4, 4, 3, 256]]  # 40 queries, 3 layers of 128 channels

args = arguments("Train the demo RT-DETR.", steps=700)
torch.manual_seed(0)
scenes = drawn(args.work, args.scenes, SIZE)
trained = yaml.safe_load((ULTRALYTICS / "scenes-yolo.yaml").read_text(encoding="utf-8"))
architecture = {"nc": trained["nc"], "backbone": trained["backbone"], "head": [*trained["head"][:-1], HEAD]}
model: Any = RTDETRDetectionModel(architecture, nc=trained["nc"], verbose=False).eval()
model.load_state_dict({k: v for k, v in load_file(TRUNK).items() if not k.startswith("model.22.")}, strict=False)
model.nc, decoder = trained["nc"], model.model[-1]
decoder.num_denoising = 16

maps: list[list[torch.Tensor]] = []  # of each batch: float16 [16, C, h, w] for each level
handle = decoder.register_forward_pre_hook(lambda _, inputs: maps.append([level.half() for level in inputs[0]]))
with torch.no_grad():
    for pixels in torch.from_numpy(scenes.images).permute(0, 3, 1, 2).split(16):
        model(torch.cat([pixels, pixels.flip(3)]) / 255)
handle.remove()
halves = [[level.tensor_split(2) for level in some] for some in maps]
levels = [torch.stack([torch.cat([some[i][flip] for some in halves]) for flip in (0, 1)]) for i in range(len(HEAD[0]))]

model.training = decoder.train().training  # the frozen part keeps its statistics
optimizer = torch.optim.AdamW(decoder.parameters(), lr=8e-4, weight_decay=1e-4)
random = np.random.default_rng(0)
for ids in batches(optimizer, len(scenes), args.steps):
    flips = random.integers(0, 2, len(ids))
    read = [level[flips, ids].float() for level in levels]
    found = {name: torch.from_numpy(values) for name, values in scenes.targets(ids, flips > 0).items()}
    groups = torch.bincount(found["batch_idx"], minlength=len(ids)).tolist()
    loss, _ = model.loss({"img": read[0], **found}, preds=decoder(read, {**found, "gt_groups": groups}))
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(decoder.parameters(), 0.5)
    optimizer.step()

(ULTRALYTICS / f"{NAME}.safetensors").write_bytes(save(halved(model.state_dict())))
architecture |= {"names": trained["names"], "imgsz": list(SIZE), "task": "detect"}
describe(NAME, __file__, architecture, scenes=args.scenes, steps=args.steps, ultralytics=ultralytics.__version__)
