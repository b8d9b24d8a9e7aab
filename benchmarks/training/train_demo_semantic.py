"""Train the demo segmenter: 10 minutes on one core.

    python -m benchmarks.training.train_demo_semantic --work /tmp/demo-models

UPerNet on a small ResNet, built from its configuration and trained from random weights: background and ten classes.
"""

import torch
import transformers
from safetensors.torch import save
from torch.nn.functional import cross_entropy
from transformers import ResNetConfig, SegformerImageProcessor, UperNetConfig, UperNetForSemanticSegmentation

from benchmarks.training.common import arguments, batches, describe, drawn, halved
from detcam import zoo
from detcam.scenes import CLASSES

NAME, SIZE = "scenes-semantic", (128, 160)

args = arguments("Train the demo segmenter.", steps=1200)
torch.manual_seed(0)
scenes = drawn(args.work, args.scenes, SIZE)
backbone = ResNetConfig(
    embedding_size=16,
    hidden_sizes=[24, 48, 96, 192],
    depths=[1, 1, 1, 1],
    layer_type="basic",
    out_features=["stage1", "stage2", "stage3", "stage4"],
)
names = dict(enumerate(("background", *CLASSES)))
config = UperNetConfig(backbone_config=backbone, hidden_size=32, pool_scales=[1, 2], use_auxiliary_head=False)
config.id2label, config.label2id = names, {name: i for i, name in names.items()}
model = UperNetForSemanticSegmentation(config).to(memory_format=torch.channels_last).train()
processor = SegformerImageProcessor(size={"height": SIZE[0], "width": SIZE[1]})
mean, std = (torch.tensor(values)[:, None, None] for values in (processor.image_mean, processor.image_std))

weights = torch.tensor([0.3] + [1.0] * len(CLASSES))  # most pixels are background
optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1e-2)
for ids in batches(optimizer, len(scenes), args.steps):
    pixels = torch.from_numpy(scenes.images[ids]).permute(0, 3, 1, 2) / 255
    labels = torch.from_numpy(scenes.labels(ids))
    if torch.rand(()) < 0.5:
        pixels, labels = pixels.flip(3), labels.flip(2)
    pixels = (pixels * torch.empty(len(ids), 3, 1, 1).uniform_(0.85, 1.15)).clamp(0, 1)
    loss = cross_entropy(model((pixels - mean) / std).logits, labels, weights)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

config.save_pretrained(zoo.FOLDER / NAME)
processor.save_pretrained(zoo.FOLDER / NAME)
(zoo.FOLDER / NAME / "model.safetensors").write_bytes(save(halved(model.state_dict())))
facts = {"library": "transformers", "class": type(model).__name__}
describe(NAME, __file__, facts, scenes=args.scenes, steps=args.steps, transformers=transformers.__version__)
