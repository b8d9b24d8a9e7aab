"""SAM and SAM 2 of the transformers library: a point or a box in, the mask of what is there out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from detcam.adapters.base import Adapter, LayerPlan
from detcam.adapters.shared.segments import boxes_around
from detcam.adapters.transformers.base import checkpoint_processor
from detcam.errors import InputError
from detcam.geometry import Geometry
from detcam.types import Objects, Prompt, image_index


@dataclass(frozen=True)
class SamOutputs:
    """The image embeddings [B, C, h, w] of B pictures with the graph, the last one that which the decoder attends to.

    SAM has one; SAM 2 has two finer ones before it, which the decoder adds as it upsamples its masks.
    """

    embeddings: tuple[Tensor, ...]


class SamAdapter(Adapter):
    """Segment Anything (Kirillov et al. 2023, arXiv:2304.02643) and SAM 2 (Ravi et al. 2024, arXiv:2408.00714).

    An object is a prompt that the user gives with `prompts=`, a point or a box: its mask is the one of the decoder's
    three that the model itself says is best, and its score is the IoU that the model predicts for it, in [0, 1]. The
    image encoder runs once for all prompts.

    The scalar is the mean mask logit over that fixed mask, at the decoder's resolution; where the mask is empty, the
    logit of its strongest cell. There are no classes: "class" and "mask" are this one scalar, "prob" is the mean of its
    sigmoid. "iou" is the predicted IoU as the model puts it out, "objectness" SAM 2's logit that anything is there.

    "level" is the image embedding, and for SAM 2 the two maps that are added to make it. "evidence" is what enters the
    neck, the ends of SAM 2's four stages; for SAM what enters its encoder, the patches as embedded: its neck normalises
    each cell's channels after a convolution without bias, so at its door gradient times activation is zero everywhere.
    """

    family = "transformers promptable segmentation"
    models = "SAM, SAM 2; prompts by explainer(image, prompts=[(x, y), (x1, y1, x2, y2)])"
    install = 'pip install "detcam[transformers]"'
    targets = ("class", "prob", "mask", "iou", "objectness")
    prompt_kinds = ("point", "box")
    levels = 1
    task = "prompted"

    def __init__(self, module: nn.Module, model: Any, imgsz: int | None = None, processor: Any = None) -> None:
        network: Any = module
        self.module, self.network = module, network
        self.second = network.config.model_type == "sam2"
        self.available = self.targets if self.second else self.targets[:-1]
        self.names: dict[int, str] = {}
        self.processor = processor or _processor(network.config, self.second)
        size = network.prompt_encoder.input_image_size
        self.imgsz = max(size) if isinstance(size, (tuple, list)) else size
        if imgsz not in (None, self.imgsz):
            raise InputError(f"imgsz: {type(model).__name__} takes {self.imgsz} only, got {imgsz}: leave imgsz out")
        parameter = next(module.parameters())
        self.device, self.dtype = parameter.device, parameter.dtype
        encoder = network.vision_encoder
        _put_channels_first(encoder.backbone.blocks if self.second else encoder.layers, encoder.neck)

    @classmethod
    def serves(cls, model: Any) -> bool:
        """See `Adapter.serves`: SAM or SAM 2 of transformers, or derived from one."""
        return any(
            base.__module__.split(".")[0] == "transformers" and base.__name__ in ("SamModel", "Sam2Model")
            for base in type(model).__mro__
        )

    @classmethod
    def unwrap(cls, model: Any) -> nn.Module:
        """See `Adapter.unwrap`: transformers has no wrappers."""
        module: nn.Module = model
        return module

    def prepare(self, image: np.ndarray) -> tuple[Tensor, Geometry]:
        """See `Adapter.prepare`: SAM pads at the right and at the bottom, SAM 2 stretches."""
        data = self.processor.image_processor(images=image, input_data_format="channels_last", return_tensors="pt")
        pixels = data["pixel_values"][0].to(self.device, self.dtype)
        network = (pixels.shape[1], pixels.shape[2])
        height, width = network if self.second else map(int, data["reshaped_input_sizes"][0])
        return pixels, Geometry((image.shape[0], image.shape[1]), (height, width), (0, 0), network)

    def forward(self, batch: Tensor, max_det: int) -> SamOutputs:
        """See `Adapter.forward`: the image encoder alone; the decoder needs the prompts."""
        embed = type(self.network).get_image_embeddings.__wrapped__  # the library's own turns gradients off
        embeddings = embed(self.network, batch)
        return SamOutputs((embeddings,) if isinstance(embeddings, Tensor) else tuple(embeddings))

    def detect(
        self, outputs: SamOutputs, geometries: list[Geometry], conf: float, iou: float, max_det: int
    ) -> list[Objects]:
        """See `Adapter.detect`: without prompts there are no objects.

        Raises:
            InputError: always.
        """
        raise InputError(
            f"{type(self.network).__name__} finds nothing by itself: give prompts, explainer(image, prompts=[(x, y)]) "
            "or prompts=[(x1, y1, x2, y2)] in source pixels"
        )

    def tried(self, outputs: SamOutputs, geometry: Geometry, conf: float, iou: float, max_det: int) -> Objects:
        """See `Adapter.tried`: what the model makes of the point in the middle."""
        height, width = geometry.source
        middle = torch.zeros(geometry.source, dtype=torch.bool)
        middle[height // 2, width // 2] = True
        return self.objects_in(
            outputs, [Prompt("point", (width / 2, height / 2, width / 2, height / 2), middle)], geometry
        )

    @torch.no_grad()
    def objects_in(self, outputs: SamOutputs, prompts: list[Prompt], geometry: Geometry) -> Objects:
        """See `Adapter.objects_in`: the best mask for each prompt."""
        given = torch.tensor([prompt.box for prompt in prompts], device=self.device)
        places = geometry.to_network(given)
        decoded = [self._decoded(outputs, 0, place) for place in places]
        best = torch.stack([ious.argmax() for _, ious, _ in decoded])
        logits = torch.stack([masks[i] for (masks, _, _), i in zip(decoded, best.tolist(), strict=True)]).float()
        scores = torch.stack([ious.amax() for _, ious, _ in decoded]).float()
        masks = self._on_source(logits, geometry)
        boxes = torch.where(masks.flatten(1).any(dim=1)[:, None], boxes_around(masks), given)
        return Objects(
            boxes=boxes,
            scores=scores.clamp(0, 1),
            class_ids=torch.zeros_like(best),
            labels=tuple(_label(prompt) for prompt in prompts),
            index=best,
            level=torch.zeros_like(best),
            cells=best.new_zeros(len(best), 2),
            network_boxes=geometry.to_network(boxes),
            mask_logits=_inside_picture(logits, geometry),
            masks=masks,
            proposals=places,
        )

    def _decoded(self, outputs: SamOutputs, image: int, prompt: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """For one prompt [4]: mask logits [3, h, w], their predicted IoU [3], the logit [] that something is there."""
        point = bool((prompt[:2] == prompt[2:]).all())
        prompt = prompt.to(self.dtype)[None, None]
        embeddings = [one[image : image + 1] for one in outputs.embeddings]
        decoded = self.network(
            image_embeddings=embeddings if self.second else embeddings[0],
            return_dict=True,
            **({"input_points": prompt[:, :, None, :2]} if point else {"input_boxes": prompt}),
        )
        there = decoded.object_score_logits.flatten()[0] if self.second else None
        return decoded.pred_masks[0, 0], decoded.iou_scores[0, 0], there

    def _on_source(self, logits: Tensor, geometry: Geometry) -> Tensor:
        """[N, H, W] bool: masks [N, h, w] as the library's own post-processing lays them onto the source picture."""
        sizes = [[geometry.source]] if self.second else [[geometry.source], [geometry.resized]]
        masks: Tensor = self.processor.post_process_masks([logits[:, None]], *sizes)[0]
        return masks[:, 0]

    def score(self, outputs: SamOutputs, objects: list[Objects], target: str) -> Tensor:
        """See `Adapter.score`: each prompt is decoded by itself, so its gradient walks through its own decoding."""
        scalars = [outputs.embeddings[-1].new_zeros(0)]
        images = image_index(objects, self.device).tolist()
        kept = [found.select(found.index.new_tensor([i])) for found in objects for i in range(len(found))]
        for image, one in zip(images, kept, strict=True):
            assert one.proposals is not None
            assert one.mask_logits is not None
            masks, ious, there = self._decoded(outputs, image, one.proposals[0])
            if target == "iou":
                scalar = ious[one.index[0]]
            elif target == "objectness":
                assert there is not None
                scalar = there
            else:
                fixed = one.mask_logits[0]
                inside = fixed > 0 if bool((fixed > 0).any()) else fixed == fixed.amax()
                own = masks[one.index[0]][inside]
                scalar = own.sigmoid().mean() if target == "prob" else own.mean()
            scalars.append(scalar[None])
        return torch.cat(scalars)

    def layers(self, preset: str) -> LayerPlan:
        """See `Adapter.layers`: the decoder reads all of the maps, so those of one plan are added."""
        encoder = self.network.vision_encoder
        if not self.second:
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
    """Have the blocks of an encoder put out maps [B, C, h, w] in place of [B, h, w, C], for whoever captures them.

    Where the next block, or the neck, reads a map, it is turned back.
    """

    def last(module: nn.Module, args: tuple[Any, ...]) -> Any:
        maps = args[0]
        if isinstance(maps, Tensor):
            return maps.permute(0, 2, 3, 1), *args[1:]
        return tuple(one.permute(0, 2, 3, 1) for one in maps), *args[1:]

    for block in blocks:
        block.register_forward_hook(lambda module, args, output: output.permute(0, 3, 1, 2))
    for reader in [*list(blocks)[1:], neck]:
        reader.register_forward_pre_hook(last)


def _inside_picture(logits: Tensor, geometry: Geometry) -> Tensor:
    """Mask logits [N, h, w] over the network's input, below zero where its padding lies."""
    height, width = logits.shape[1:]
    left, top, right, bottom = geometry.window((height, width))
    x = torch.arange(width, device=logits.device) + 0.5
    y = torch.arange(height, device=logits.device) + 0.5
    inside = ((y > top) & (y < bottom))[:, None] & ((x > left) & (x < right))
    return torch.where(inside, logits, logits.amin().clamp(max=-1))


def _label(prompt: Prompt) -> str:
    numbers = prompt.box[:2] if prompt.kind == "point" else prompt.box
    return f"{prompt.kind} {','.join(f'{number:g}' for number in numbers)}"


def _processor(config: Any, second: bool) -> Any:
    """The processor of the checkpoint if it lies on this machine, else the default one for the model's size."""
    import transformers

    images = checkpoint_processor(config)
    if second:
        side = config.vision_config.backbone_config.image_size
        height, width = (side, side) if isinstance(side, int) else side
        images = images or transformers.Sam2ImageProcessor(size={"height": height, "width": width})
        return transformers.Sam2Processor(images)
    side = config.vision_config.image_size
    images = images or transformers.SamImageProcessor(
        size={"longest_edge": side}, pad_size={"height": side, "width": side}
    )
    return transformers.SamProcessor(images)
