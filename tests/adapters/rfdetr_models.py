"""Small RF-DETR models of the rfdetr package with random weights, and their raw outputs for a picture."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

KINDS = ("RFDETRNano", "RFDETRSegNano")
QUERIES = 20


def random_rfdetr(kind: str, seed: int, **settings: Any) -> Any:
    """A wrapper whose small model has random weights and looks at 96 x 96 pixels; without a download."""
    torch.manual_seed(seed)
    small = {
        "pretrain_weights": None,
        "device": "cpu",
        "resolution": 96,
        "num_classes": 5,
        "num_queries": QUERIES,
        "num_select": QUERIES,
        "group_detr": 1,
        "hidden_dim": 64,
        "sa_nheads": 4,
        "ca_nheads": 4,
        "dec_layers": 2,
        "out_feature_indexes": [1, 2],
    }
    wrapper = getattr(pytest.importorskip("rfdetr"), kind)(**{**small, **settings})
    blocks = wrapper.model.model.backbone[0].encoder.encoder.encoder
    blocks.layer = blocks.layer[:2]  # nothing reads the others
    with torch.no_grad():
        for name, module in wrapper.model.model.named_modules():
            if isinstance(module, nn.Linear) and not name.endswith("sampling_offsets"):
                gain = 0.2 if name.startswith("bbox_embed.layers.2") else 1.0
                nn.init.normal_(module.weight, 0, gain * module.in_features**-0.5)
            elif name.endswith("norm_in"):
                nn.init.ones_(module.weight)  # fresh ones are zero, and so are all masks
    wrapper.model.model.eval()
    return wrapper


def raw_of(wrapper: Any, picture: np.ndarray) -> dict[str, Tensor]:
    """What the model puts out for one picture, prepared by hand."""
    pixels = torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255
    pixels = nn.functional.interpolate(pixels, (96, 96), mode="bilinear", align_corners=False)
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    pixels = ((pixels - mean[:, None, None].float()) / deviation[:, None, None].float()).to(mean.dtype)
    with torch.no_grad():
        outputs = wrapper.model.model(pixels)
    return {name: value[0] for name, value in outputs.items() if isinstance(value, Tensor)}


def keep_local(module: nn.Module) -> None:
    """Leave out the attention between places, which carries what changed to wherever random weights look."""
    for name, part in module.get_submodule("backbone").named_modules():
        if name.endswith("attention.output.dense"):
            nn.init.zeros_(part.weight)
            nn.init.zeros_(part.bias)
