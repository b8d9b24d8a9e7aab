"""Small text-prompted detectors with random weights and made-up vocabularies, and what their library finds."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

WIDTH = 32
QUERIES = 12
TEXT = ["a red cat", "remote control", "zebra"]
WORDS = ["a", "red", "cat", "remote", "control", "ze", "##bra", "detect", ","]
KINDS = ("grounding-dino", "mm-grounding-dino", "owlvit", "owlv2", "omdet-turbo")


def bert_tokenizer() -> Any:
    """Words at the end of BERT's vocabulary, whose special tokens Grounding DINO knows by number."""
    from transformers import BertTokenizer

    vocabulary = {f"[unused{i}]": i for i in range(1040)}
    for name, number in (("[PAD]", 0), ("[UNK]", 100), ("[CLS]", 101), ("[SEP]", 102), (".", 1012), ("?", 1029)):
        vocabulary.pop(f"[unused{number}]")
        vocabulary[name] = number
    vocabulary |= {word: 1040 + i for i, word in enumerate(WORDS)}
    return BertTokenizer(vocab=vocabulary)


def clip_tokenizer() -> Any:
    """Letters and no merges: each letter is a token."""
    from transformers import CLIPTokenizer

    letters = [chr(i) for i in range(97, 123)] + [",", "."]
    names = ["!", *letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={name: i for i, name in enumerate(names)}, merges=[], pad_token="!", model_max_length=16)


def _swin(outputs: list[int]) -> Any:
    from transformers import SwinConfig

    return SwinConfig(
        image_size=64, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 2, 2, 4], window_size=4, out_indices=outputs
    )


def _grounding(kind: str) -> tuple[Any, Any]:
    import transformers

    text = transformers.BertConfig(
        vocab_size=1050, hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    prefix = "GroundingDino" if kind == "grounding-dino" else "MMGroundingDino"
    config = getattr(transformers, f"{prefix}Config")(
        backbone_config=_swin([2, 3, 4]),
        text_config=text,
        num_queries=QUERIES,
        d_model=WIDTH,
        encoder_layers=2,
        decoder_layers=2,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        max_text_len=32,
    )
    images = transformers.GroundingDinoImageProcessor(size={"shortest_edge": 96, "longest_edge": 128})
    return (
        getattr(transformers, f"{prefix}ForObjectDetection")(config),
        transformers.GroundingDinoProcessor(images, bert_tokenizer()),
    )


def _owl(kind: str) -> tuple[Any, Any]:
    import transformers

    small = {"hidden_size": WIDTH, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2}
    text = {**small, "vocab_size": 60, "max_position_embeddings": 16}
    prefix = "OwlViT" if kind == "owlvit" else "Owlv2"
    config = getattr(transformers, f"{prefix}Config")(
        text_config=text, vision_config={**small, "image_size": 96, "patch_size": 16}, projection_dim=WIDTH
    )
    images = getattr(transformers, f"{prefix}ImageProcessor")(size={"height": 96, "width": 96})
    return (
        getattr(transformers, f"{prefix}ForObjectDetection")(config),
        getattr(transformers, f"{prefix}Processor")(images, clip_tokenizer()),
    )


def _omdet() -> tuple[Any, Any]:
    import transformers

    text = transformers.CLIPTextConfig(
        vocab_size=60,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=77,
    )
    config = transformers.OmDetTurboConfig(
        backbone_config=_swin([2, 3, 4]),
        text_config=text,
        image_size=64,
        apply_layernorm_after_vision_backbone=False,  # that is for timm's backbones, whose channels are the last
        encoder_in_channels=[16, 32, 64],
        vision_features_channels=[WIDTH] * 3,
        encoder_hidden_dim=WIDTH,
        decoder_hidden_dim=WIDTH,
        class_embed_dim=24,
        text_projection_in_dim=24,
        text_projection_out_dim=24,
        task_encoder_hidden_dim=WIDTH,
        num_queries=QUERIES,
        encoder_attention_heads=4,
        decoder_num_heads=4,
        encoder_dim_feedforward=48,
        decoder_dim_feedforward=48,
        decoder_num_layers=2,
    )
    images = transformers.DetrImageProcessor(size={"height": 64, "width": 64}, do_pad=False)
    return transformers.OmDetTurboForObjectDetection(config), transformers.OmDetTurboProcessor(images, clip_tokenizer())


def random_prompted(kind: str, seed: int) -> tuple[nn.Module, Any]:
    """A small model in eval mode, and its processor with a tokenizer of a few words or letters."""
    torch.manual_seed(seed)
    model, processor = _owl(kind) if "owl" in kind else _omdet() if kind == "omdet-turbo" else _grounding(kind)
    _spread(model.eval())
    return model, processor


@torch.no_grad()
def _spread(model: nn.Module) -> None:
    """Draw weights so that signals keep a natural size and queries differ; scores stay away from 0 and 1."""
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            fan = module.weight[0].numel()
            small = ("sampling_offsets", "text_projection", "bbox", "box_head.dense2", "logit_shift", "logit_scale")
            gain = 0.3 if any(part in name for part in small) else 1.0
            nn.init.normal_(module.weight, 0, gain * fan**-0.5)
            if module.bias is not None and "sampling_offsets" not in name:  # fresh ones point in all directions
                nn.init.normal_(module.bias, 0, 0.1)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, 0, 1)
    for name, parameter in model.named_parameters():
        if name.endswith(("vision_param", "text_param")):  # how much text and picture mix
            nn.init.constant_(parameter, 0.5)
        elif name.endswith(("text_projection", "class_embedding", "level_embed")):
            nn.init.normal_(parameter, 0, 0.3)


def found(
    model: Any, processor: Any, picture: np.ndarray, threshold: float, **options: Any
) -> tuple[dict[str, Any], Any, Any]:
    """What the library's own pre- and post-processing find for TEXT in one picture, raw outputs, and the inputs."""
    inputs = processor(images=picture, text=[TEXT], return_tensors="pt")
    with torch.no_grad():
        outputs = model(**inputs)
    if "GroundingDino" in type(model).__name__:
        options["text_threshold"] = 0.0
    result = processor.post_process_grounded_object_detection(
        outputs, threshold=threshold, target_sizes=[picture.shape[:2]], **options
    )[0]
    return result, outputs, inputs
