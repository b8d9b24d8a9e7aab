"""A bright square comes back to its own pixels, for prompted models that stretch, scale or pad pictures."""

from typing import Any

import numpy as np
import pytest
import torch
from prompted_models import TEXT, random_prompted
from sam_models import random_sam
from torch import Tensor, nn

from detcam import Explainer
from detcam.methods.base import Method

pytest.importorskip("transformers")

SQUARE = 40  # pixels, at least twice a cell
SAM = ("sam", "sam2")
PATCHES = {
    "grounding-dino": "model.backbone.conv_encoder.model.swin.embeddings.patch_embeddings.projection",
    "owlvit": "owlvit.vision_model.embeddings.patch_embedding",
    "owlv2": "owlv2.vision_model.embeddings.patch_embedding",
    "omdet-turbo": "vision_backbone.vision_backbone.swin.embeddings.patch_embeddings.projection",
    "sam": "vision_encoder.patch_embed.projection",
    "sam2": "vision_encoder.backbone.patch_embed.projection",
}


class Brightness(Method):
    """The mean over channels, where the first layer is made to put out the mean brightness of each patch."""

    name = "brightness"
    formula = "mean_k A_k"
    source = "this test"
    object_specific = False

    def maps(self, acts: Tensor, grads: Tensor | None) -> Tensor:
        return acts.mean(dim=1)


@pytest.mark.parametrize("size", [(72, 96), (120, 50), (64, 64)])
@pytest.mark.parametrize("kind", PATCHES)
def test_a_bright_squares_heat_lies_on_the_square(kind: str, size: tuple[int, int], seed: int) -> None:
    y, x = (int(torch.randint(4, side - SQUARE - 4, ())) for side in size)
    picture = np.zeros((*size, 3), np.uint8)
    picture[y : y + SQUARE, x : x + SQUARE] = 255
    model, processor = random_sam(kind, seed) if kind in SAM else random_prompted(kind, seed)
    patches: Any = model.get_submodule(PATCHES[kind])
    nn.init.constant_(patches.weight, 1 / patches.weight[0].numel())
    if patches.bias is not None:
        nn.init.zeros_(patches.bias)
    options: dict[str, Any] = {"processor": processor, "layers": [PATCHES[kind]], "method": Brightness()}
    if kind in SAM:
        explanation = Explainer(model, **options)(picture, prompts=[(x, y)])
    else:
        explanation = Explainer(model, text=TEXT, conf=0.0, max_det=1, **options)(picture)
    geometry, (rows, columns) = explanation.geometry, explanation.maps[0].shape
    cell_y, cell_x = (
        geometry.network[axis] / cells * size[axis] / geometry.resized[axis]
        for axis, cells in enumerate((rows, columns))
    )
    heat = explanation.heatmaps[0]
    top, left = divmod(int(heat.argmax()), size[1])
    assert y - cell_y <= top <= y + SQUARE + cell_y
    assert x - cell_x <= left <= x + SQUARE + cell_x
    weights = heat / heat.sum()
    middle = (weights.sum(dim=1) @ torch.arange(size[0]).float(), weights.sum(dim=0) @ torch.arange(size[1]).float())
    assert abs(float(middle[0]) - y - SQUARE / 2) < cell_y
    assert abs(float(middle[1]) - x - SQUARE / 2) < cell_x
