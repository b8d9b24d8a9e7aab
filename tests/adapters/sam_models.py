"""Small SAM and SAM 2 with random weights, and the masks that their library's own calls give for prompts."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

SIDE = 64
WIDTH = 32
KINDS = ("sam", "sam2")


def random_sam(kind: str, seed: int) -> tuple[nn.Module, Any]:
    """A model in eval mode, and its processor, which makes inputs of 64 x 64 pixels."""
    torch.manual_seed(seed)
    model, processor = _sam() if kind == "sam" else _sam2()
    _spread(model.eval())
    return model, processor


def _sam() -> tuple[Any, Any]:
    from transformers import SamConfig, SamImageProcessor, SamModel, SamProcessor

    vision = {
        "hidden_size": WIDTH,
        "output_channels": WIDTH,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": SIDE,
        "patch_size": 8,
        "window_size": 4,
        "global_attn_indexes": [1, 2],
        "num_pos_feats": WIDTH // 2,
        "mlp_dim": 48,
    }
    prompts = {"hidden_size": WIDTH, "image_size": SIDE, "patch_size": 8, "image_embedding_size": SIDE // 8}
    decoder = {"hidden_size": WIDTH, "mlp_dim": 48, "num_attention_heads": 2, "iou_head_hidden_dim": WIDTH}
    config = SamConfig(vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=decoder)
    images = SamImageProcessor(size={"longest_edge": SIDE}, pad_size={"height": SIDE, "width": SIDE})
    return SamModel(config), SamProcessor(images)


def _sam2() -> tuple[Any, Any]:
    from transformers import Sam2Config, Sam2ImageProcessor, Sam2Model, Sam2Processor

    backbone = {
        "model_type": "sam2_hiera_det_model",
        "hidden_size": 8,
        "image_size": [SIDE, SIDE],
        "blocks_per_stage": [1, 1, 2, 1],
        "embed_dim_per_stage": [8, 16, 24, 32],
        "num_attention_heads_per_stage": [1, 1, 2, 2],
        "window_size_per_stage": [4, 4, 2, 2],
        "global_attention_blocks": [3],
        "window_positional_embedding_background_size": [4, 4],
    }
    vision = {
        "model_type": "sam2_vision_model",
        "backbone_config": backbone,
        "backbone_channel_list": [32, 24, 16, 8],
        "backbone_feature_sizes": [[SIDE // 4] * 2, [SIDE // 8] * 2, [SIDE // 16] * 2],
        "fpn_hidden_size": WIDTH,
    }
    prompts = {"hidden_size": WIDTH, "image_size": SIDE, "patch_size": 16}
    decoder = {"hidden_size": WIDTH, "mlp_dim": 48, "num_attention_heads": 2, "iou_head_hidden_dim": WIDTH}
    config = Sam2Config(vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=decoder)
    return Sam2Model(config), Sam2Processor(Sam2ImageProcessor(size={"height": SIDE, "width": SIDE}))


@torch.no_grad()
def _spread(model: nn.Module) -> None:
    """Draw weights so that signals keep a natural size and masks are neither empty nor full."""
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            fan = module.weight[0].numel() if isinstance(module, nn.Conv2d) else module.weight.shape[-1]
            fan = module.weight.shape[0] if isinstance(module, nn.ConvTranspose2d) else fan
            nn.init.normal_(module.weight, 0, fan**-0.5)
            if module.bias is not None:
                nn.init.normal_(module.bias, 0, 0.1)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, 0, 1)
    for name, parameter in model.named_parameters():
        if "pos_embed" in name or "rel_pos" in name or "no_memory" in name:
            nn.init.normal_(parameter, 0, 0.3)


def segmented(
    model: nn.Module, processor: Any, picture: np.ndarray, prompt: tuple[float, ...]
) -> tuple[Tensor, Tensor, Any]:
    """What the library's own pre- and post-processing give for one prompt: masks [3, H, W], IoU [3], raw outputs."""
    given = {"input_points": [[[list(prompt)]]]} if len(prompt) == 2 else {"input_boxes": [[list(prompt)]]}
    inputs = processor(images=picture, return_tensors="pt", **given)
    dtype = next(model.parameters()).dtype
    sizes = [inputs.pop(name) for name in ("original_sizes", "reshaped_input_sizes") if name in inputs]
    inputs = {name: tensor.to(dtype) for name, tensor in inputs.items()}
    with torch.no_grad():
        outputs = model(**inputs)
    masks = processor.post_process_masks(outputs.pred_masks, *sizes)[0][0]
    return masks, outputs.iou_scores[0, 0], outputs
