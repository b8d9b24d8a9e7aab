"""SAM and SAM 2 of the transformers library: masks for prompts, which are points or boxes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from detcam.adapters.base import LayerPlan
from detcam.adapters.shared.segments import boxes_around
from detcam.adapters.transformers.base import TransformersAdapter, checkpoint_processor
from detcam.errors import InputError
from detcam.geometry import Geometry
from detcam.types import Objects, Prompt, image_index


@dataclass(frozen=True)
class SamOutputs:
    """Image embeddings [B, C, h, w] of B images with the graph; the decoder attends to the last embedding.

    SAM has one; SAM 2 has two finer ones before it, which the decoder adds when it upsamples its masks.
    """

    embeddings: tuple[Tensor, ...]


class SamAdapter(TransformersAdapter):
    """Segment Anything (Kirillov et al. 2023, arXiv:2304.02643) and SAM 2 (Ravi et al. 2024, arXiv:2408.00714).

    An object is a prompt that the user gives with `prompts=`, a point or a box. Its mask is the best of the decoder's
    three masks by predicted IoU, and its score is this predicted IoU, in [0, 1]. The image encoder runs once for all
    prompts.

    The scalar is the mean mask logit over that fixed mask, at the decoder's resolution; if the mask is empty, the logit
    of its strongest cell. There are no classes: "class" and "mask" are the same scalar, "prob" is the mean of the
    sigmoids. "iou" is the predicted IoU, "objectness" the logit of SAM 2 that there is an object.

    "level" is the image embedding, or for SAM 2 the two maps whose sum it is. "evidence" is the input of the neck, the
    ends of SAM 2's four stages; for SAM the input of the encoder, the embedded patches: its neck normalises each cell's
    channels after a convolution without bias, so at its input gradient times activation is zero everywhere.
    """

    family = "transformers promptable segmentation"
    models = "SAM, SAM 2; prompts by explainer(image, prompts=[(x, y), (x1, y1, x2, y2)])"
    served = "Sam2?Model"
    targets = ("class", "prob", "mask", "iou", "objectness")
    prompt_kinds = ("point", "box")
    levels = 1
    task = "prompted"

    def __init__(self, module: Any, model: Any, imgsz: int | None = None, processor: Any = None) -> None:
        super().__init__(module, model, imgsz, processor)
        self.network = module
        self.is_sam2 = self.config.model_type == "sam2"
        self.available = self.targets if self.is_sam2 else self.targets[:-1]
        self.names = {}
        self.processor = processor or _processor(self.config, self.is_sam2)
        size = module.prompt_encoder.input_image_size
        self.imgsz = max(size) if isinstance(size, (tuple, list)) else size
        if imgsz not in (None, self.imgsz):
            raise InputError(f"imgsz: {type(model).__name__} takes {self.imgsz} only, got {imgsz}: leave imgsz out")
        encoder = module.vision_encoder
        _put_channels_first(encoder.backbone.blocks if self.is_sam2 else encoder.layers, encoder.neck)

    def prepare(self, image: np.ndarray) -> tuple[Tensor, Geometry]:
        """See `Adapter.prepare`: SAM pads at the right and at the bottom, SAM 2 stretches."""
        data = self._run_processor(self.processor.image_processor, image)
        pixels = data["pixel_values"][0].to(self.device, self.dtype)
        network = (pixels.shape[1], pixels.shape[2])
        height, width = network if self.is_sam2 else map(int, data["reshaped_input_sizes"][0])
        return pixels, Geometry((image.shape[0], image.shape[1]), (height, width), (0, 0), network)

    def forward(self, batch: Tensor, max_det: int) -> SamOutputs:
        """See `Adapter.forward`: the image encoder only; the decoder needs the prompts."""
        embed = type(self.network).get_image_embeddings.__wrapped__  # without the decorator that disables gradients
        embeddings = embed(self.network, batch)
        return SamOutputs((embeddings,) if isinstance(embeddings, Tensor) else tuple(embeddings))

    def detect(
        self, outputs: SamOutputs, geometries: list[Geometry], conf: float, iou: float, max_det: int
    ) -> list[Objects]:
        """Always an InputError: without prompts there are no objects."""
        raise InputError(
            f"{type(self.network).__name__} detects nothing without prompts: give explainer(image, prompts=[(x, y)]) "
            "or prompts=[(x1, y1, x2, y2)] in source pixels"
        )

    def trial_objects(self, outputs: SamOutputs, geometry: Geometry, conf: float, iou: float, max_det: int) -> Objects:
        """See `Adapter.trial_objects`: the mask of the point in the middle."""
        height, width = geometry.source
        middle = torch.zeros(geometry.source, dtype=torch.bool)
        middle[height // 2, width // 2] = True
        return self.objects_for_prompts(
            outputs, [Prompt("point", (width / 2, height / 2, width / 2, height / 2), middle)], geometry
        )

    @torch.no_grad()
    def objects_for_prompts(self, outputs: SamOutputs, prompts: list[Prompt], geometry: Geometry) -> Objects:
        """See `Adapter.objects_for_prompts`: the best mask for each prompt."""
        prompted = torch.tensor([prompt.box for prompt in prompts], device=self.device)
        places = geometry.to_network(prompted)
        decoded = [self._decoded(outputs, 0, place) for place in places]
        best = torch.stack([ious.argmax() for _, ious, _ in decoded])
        logits = torch.stack([masks[i] for (masks, _, _), i in zip(decoded, best.tolist(), strict=True)]).float()
        scores = torch.stack([ious.amax() for _, ious, _ in decoded]).float()
        masks = self._on_source(logits, geometry)
        boxes = torch.where(masks.flatten(1).any(dim=1)[:, None], boxes_around(masks), prompted)
        return Objects(
            boxes=boxes,
            scores=scores.nan_to_num(0).clamp(0, 1),
            class_ids=torch.zeros_like(best),
            labels=tuple(_label(prompt) for prompt in prompts),
            index=best,
            level=torch.zeros_like(best),
            cells=best.new_zeros(len(best), 2),
            network_boxes=geometry.to_network(boxes),
            mask_logits=_inside_image(logits, geometry),
            masks=masks,
            proposals=places,
        )

    def _decoded(self, outputs: SamOutputs, image: int, prompt: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """For a prompt [4]: mask logits [3, h, w], their predicted IoU [3], the logit [] that there is an object."""
        point = bool((prompt[:2] == prompt[2:]).all())
        prompt = prompt.to(self.dtype)[None, None]
        embeddings = [maps[image : image + 1] for maps in outputs.embeddings]
        decoded = self.network(
            image_embeddings=embeddings if self.is_sam2 else embeddings[0],
            return_dict=True,
            **({"input_points": prompt[:, :, None, :2]} if point else {"input_boxes": prompt}),
        )
        objectness = decoded.object_score_logits.flatten()[0] if self.is_sam2 else None
        return decoded.pred_masks[0, 0], decoded.iou_scores[0, 0], objectness

    def _on_source(self, logits: Tensor, geometry: Geometry) -> Tensor:
        """[N, H, W] bool: masks [N, h, w] on the source image, by the library's post-processing."""
        sizes = [[geometry.source]] if self.is_sam2 else [[geometry.source], [geometry.resized]]
        return self.processor.post_process_masks([logits[:, None]], *sizes)[0][:, 0]

    def score(self, outputs: SamOutputs, objects: list[Objects], target: str) -> Tensor:
        """See `Adapter.score`: each prompt is decoded separately, so its gradient passes through that decoding only."""
        scalars = [outputs.embeddings[-1].new_zeros(0)]
        images = image_index(objects, self.device).tolist()
        singles = [o.select(o.index.new_tensor([i])) for o in objects for i in range(len(o))]
        for image, single in zip(images, singles, strict=True):
            assert single.proposals is not None
            assert single.mask_logits is not None
            masks, ious, objectness = self._decoded(outputs, image, single.proposals[0])
            if target == "iou":
                scalar = ious[single.index[0]]
            elif target == "objectness":
                assert objectness is not None
                scalar = objectness
            else:
                fixed = single.mask_logits[0]
                inside = fixed > 0 if bool((fixed > 0).any()) else fixed == fixed.amax()
                logits = masks[single.index[0]][inside]
                scalar = logits.sigmoid().mean() if target == "prob" else logits.mean()
            scalars.append(scalar[None])
        return torch.cat(scalars)

    def layers(self, preset: str) -> LayerPlan:
        """See `Adapter.layers`: the decoder reads all maps, so the maps of a plan are added."""
        encoder = self.network.vision_encoder
        if not self.is_sam2:
            names = ["neck" if preset == "level" else "patch_embed.projection"]
        elif preset == "evidence":
            names = [f"backbone.blocks.{i}" for i in encoder.backbone.stage_ends]
        else:
            last = first = len(encoder.neck.convs) - encoder.num_feature_levels  # convs run from coarse to fine
            while first > 0 and len(encoder.neck.convs) - 1 - first in encoder.neck.fpn_top_down_levels:
                first -= 1  # a coarser map is added to this one
            names = [f"neck.convs.{i}" for i in range(first, last + 1)]
        return LayerPlan(tuple(f"vision_encoder.{name}" for name in names), cut_all=True, fuse="sum")


def _put_channels_first(blocks: Sequence[nn.Module], neck: nn.Module) -> None:
    """Have the blocks of an encoder output maps [B, C, h, w] in place of [B, h, w, C], so that they can be captured.

    The next block, or the neck, gets a map as [B, h, w, C] again.
    """

    def last(module: nn.Module, args: tuple[Any, ...]) -> Any:
        maps = args[0]
        if isinstance(maps, Tensor):
            return maps.permute(0, 2, 3, 1), *args[1:]
        return tuple(part.permute(0, 2, 3, 1) for part in maps), *args[1:]

    for block in blocks:
        block.register_forward_hook(lambda module, args, output: output.permute(0, 3, 1, 2))
    for reader in [*list(blocks)[1:], neck]:
        reader.register_forward_pre_hook(last)


def _inside_image(logits: Tensor, geometry: Geometry) -> Tensor:
    """Mask logits [N, h, w] over the network's input, below zero on padding."""
    height, width = logits.shape[1:]
    left, top, right, bottom = geometry.window((height, width))
    x = torch.arange(width, device=logits.device) + 0.5
    y = torch.arange(height, device=logits.device) + 0.5
    inside = ((y > top) & (y < bottom))[:, None] & ((x > left) & (x < right))
    return torch.where(inside, logits, logits.amin().clamp(max=-1))


def _label(prompt: Prompt) -> str:
    numbers = prompt.box[:2] if prompt.kind == "point" else prompt.box
    return f"{prompt.kind} {','.join(f'{number:g}' for number in numbers)}"


def _processor(config: Any, is_sam2: bool) -> Any:
    """The processor of the checkpoint if it is on this machine, else the default for the model's size."""
    import transformers

    images = checkpoint_processor(config)
    if is_sam2:
        side = config.vision_config.backbone_config.image_size
        height, width = (side, side) if isinstance(side, int) else side
        images = images or transformers.Sam2ImageProcessor(size={"height": height, "width": width})
        return transformers.Sam2Processor(images)
    side = config.vision_config.image_size
    square = {"height": side, "width": side}
    images = images or transformers.SamImageProcessor(size={"longest_edge": side}, pad_size=square)
    return transformers.SamProcessor(images)
