"""Base of the semantic segmenters: one object for each region of the label map."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from detcam.adapters.base import Adapter, LayerPlan, Readout, Source
from detcam.adapters.shared.segments import (
    SEGMENTS,
    boxes_around,
    covered,
    mask_overlap,
    on_source,
    region_at,
    region_score,
    regions_of,
    windows,
)
from detcam.errors import InputError, nearest
from detcam.geometry import Geometry
from detcam.types import Objects, Prompt, image_index

PRESET_SIDE = 520  # pixels of the shorter side in the presets of torchvision's weights


@dataclass(frozen=True)
class SemanticOutputs:
    """Raw outputs for B pictures and nc classes.

    Attributes:
        logits: [B, nc, h, w] at the resolution of the last classifier, with the graph.
        full: [B, nc, H, W] as the model returns them, resized or not, without the graph.
    """

    logits: Tensor
    full: Tensor


class SemanticAdapter(Adapter):
    """What semantic segmenters share: each region of the label map is an object, the largest first.

    The scalar is the mean of the class logit over the region (Seg-Grad-CAM: Vinogradova et al. 2020, arXiv:2002.11434,
    section 3), where the last classifier puts it out: before the final resize, each cell weighted by the share of it
    that the region covers. "prob" is the mean softmax, "margin" the mean of the logit less the best other one.

    An object's score is the mean softmax of its class over its pixels, and `conf` bounds it; there is nothing to
    suppress, so `iou` has no effect. Of more than `max_det` regions the largest are kept. A class whose name is
    "background" is no object.

    Objects have masks in source pixels; their `mask_logits` are 1 on cells inside, -1 on cells outside, and linear in
    the covered share between.
    """

    targets = ("class", "prob", "margin")
    prompt_kinds = ("point", "box", "mask")
    levels = 1
    task = "semantic"
    segments: str = "class"  # settable: "class": one region per class; "component": one per connected region
    names: dict[int, str]
    plans: dict[str, tuple[str, ...]]  # the modules of each preset

    def _watch(self, module: nn.Module, classifier: str, names: dict[int, str]) -> None:
        """Finish the construction: `classifier` is the module whose output is the logits before the final resize."""
        self.module, self.names = module, names
        self.available = tuple(t for t in self.targets if t != "margin" or len(names) > 1)
        self._left_out = {i for i, name in names.items() if name.strip("_ ").lower() == "background"}
        parameter = next(module.parameters())
        self.device, self.dtype = parameter.device, parameter.dtype
        self._own: list[Tensor] = []
        module.get_submodule(classifier).register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, args: object, output: Tensor) -> None:
        self._own.append(output)

    def _run(self, batch: Tensor) -> Tensor:
        """The logits that the model returns for a batch."""
        full: Tensor = self.module(batch)
        return full

    def forward(self, batch: Tensor, max_det: int) -> SemanticOutputs:
        """See `Adapter.forward`."""
        self._own.clear()
        full = self._run(batch).detach()
        logits = self._own.pop()
        return SemanticOutputs(logits, full)

    @torch.no_grad()
    def detect(
        self, outputs: SemanticOutputs, geometries: list[Geometry], conf: float, iou: float, max_det: int
    ) -> list[Objects]:
        """See `Adapter.detect`: the arg max of the logits, resized to the source picture as the libraries do it."""
        if self.segments not in SEGMENTS:
            raise InputError(f"segments: {self.segments!r} does not exist: {nearest(self.segments, SEGMENTS)}")
        found = []
        for logits, geometry in zip(outputs.full, geometries, strict=True):
            full, seen = on_source(logits, geometry)
            best, labels = full.max(dim=0)
            probability = (best.float() - full.float().logsumexp(dim=0)).exp()
            labels = labels.masked_fill(~seen, -1)
            found.append(regions_of(labels, probability, self._left_out, self.segments, conf, max_det))
        return [self._objects(outputs, *regions, geometry) for regions, geometry in zip(found, geometries, strict=True)]

    @torch.no_grad()
    def region_similarity(self, outputs: SemanticOutputs, objects: Objects) -> Tensor:
        """See `Adapter.region_similarity`; regions lie on the grid of the last classifier, p is their mean softmax."""
        assert objects.mask_logits is not None
        shares = (objects.mask_logits + 1) / 2  # [b, h, w] of each cell
        best, labels = outputs.logits.float().softmax(dim=1).max(dim=1)
        scores = []
        for share, number, label, p in zip(shares, objects.class_ids.tolist(), labels, best, strict=True):
            own = label.where(label == number, -1)
            masks, _, means = regions_of(own, p, set(), self.segments, 0.0, own.numel())
            fits = mask_overlap(share, masks)
            scores.append((fits * means).amax() if len(masks) else p.new_zeros(()))
        return torch.stack(scores)

    @torch.no_grad()
    def label_map(self, outputs: SemanticOutputs, geometry: Geometry) -> Tensor:
        """See `Adapter.label_map`: the classes of `detect`, the background's too."""
        full, seen = on_source(outputs.full[0], geometry)
        return full.argmax(dim=0).masked_fill(~seen, -1)

    @torch.no_grad()
    def objects_in(self, outputs: SemanticOutputs, prompts: list[Prompt], geometry: Geometry) -> Objects:
        """See `Adapter.objects_in`: a point stands for the connected region of one predicted class that it lies in.

        A box or mask is explained as it is, for the class that most of its pixels are given, unless one is named. The
        background, where it is a class, can be pointed at too.
        """
        labels = self.label_map(outputs, geometry)
        masks, classes = [], []
        for i, prompt in enumerate(prompts):
            mask = prompt.mask.to(labels.device)
            seen = labels[mask & (labels >= 0)]
            if not len(seen):
                raise InputError(f"prompts[{i}]: the network saw no pixel of it, the processor crops the picture there")
            if prompt.kind == "point":
                mask = region_at(labels, *mask.nonzero()[0].tolist())
            masks.append(mask)
            classes.append(int(seen.bincount().argmax()) if prompt.class_id is None else prompt.class_id)
        chosen = torch.stack(masks) if masks else labels.new_zeros((0, *labels.shape), dtype=torch.bool)
        kinds = torch.tensor(classes, dtype=torch.int64, device=labels.device)
        return self.objects_for(outputs, chosen, kinds, geometry)

    @torch.no_grad()
    def objects_for(
        self, outputs: SemanticOutputs, masks: Tensor, class_ids: Tensor, geometry: Geometry, image: int = 0
    ) -> Objects:
        """Objects for regions that the user asks for, whatever the model said there; their score is as for its own.

        Args:
            outputs: what `forward` returned.
            masks: [N, H, W] bool in source pixels; a point is a mask of one pixel.
            class_ids: [N] int64, the class that each region is explained for.
            geometry: how the picture lies in the network's input.
            image: the position of the picture in the batch.

        Raises:
            InputError: for a region without a pixel that the network saw, or a class that the model does not have.
        """
        full, seen = on_source(outputs.full[image], geometry)
        normaliser = full.float().logsumexp(dim=0)
        scores = []
        for i, (mask, label) in enumerate(zip(masks & seen, class_ids.tolist(), strict=True)):
            if not bool(mask.any()):
                raise InputError(f"region {i} has no pixel that the network saw: give another mask")
            if not 0 <= label < len(full):
                raise InputError(f"region {i}: class {label} does not exist: give one of 0 to {len(full) - 1}")
            scores.append((full[label].float() - normaliser)[mask].exp().mean())
        return self._objects(outputs, masks, class_ids, torch.stack(scores) if scores else full.new_zeros(0), geometry)

    def _objects(
        self, outputs: SemanticOutputs, masks: Tensor, classes: Tensor, scores: Tensor, geometry: Geometry
    ) -> Objects:
        boxes = boxes_around(masks)
        cells = (outputs.logits.shape[2], outputs.logits.shape[3])
        return Objects(
            boxes=boxes,
            scores=scores,
            class_ids=classes,
            labels=tuple(self.names.get(c, f"class {c}") for c in classes.tolist()),
            index=classes,
            level=torch.zeros_like(classes),
            cells=classes.new_zeros(len(classes), 2),
            network_boxes=geometry.to_network(boxes),
            mask_logits=covered(masks, geometry, cells) * 2 - 1,
            masks=masks,
        )

    def score(self, outputs: SemanticOutputs, objects: list[Objects], target: str) -> Tensor:
        """See `Adapter.score`."""
        shares, labels = _shares(objects), torch.cat([found.class_ids for found in objects])
        image = image_index(objects, labels.device)
        scores = outputs.logits.new_empty(len(labels))
        for members, starts, extent in windows(shares):
            values = []
            for i, start in zip(members.tolist(), starts.tolist(), strict=True):
                logits, share = (_cut(maps, start, extent) for maps in (outputs.logits[image[i]], shares[i]))
                values.append(region_score(logits, share, int(labels[i]), target))
            scores = scores.index_put((members,), torch.stack(values))
        return scores

    def readouts(self, outputs: SemanticOutputs, objects: list[Objects], target: str) -> list[Readout]:
        """See `Adapter.readouts`: a window of the logits around each region."""
        shares, labels = _shares(objects), torch.cat([found.class_ids for found in objects])
        image = image_index(objects, labels.device)
        found = []
        for members, starts, extent in windows(shares):
            gradients = []
            for i, start in zip(members.tolist(), starts.tolist(), strict=True):
                with torch.enable_grad():
                    leaf = _cut(outputs.logits.detach()[image[i]], start, extent).requires_grad_()
                    scalar = region_score(leaf, _cut(shares[i], start, extent), int(labels[i]), target)
                    gradients.append(torch.autograd.grad(scalar, leaf)[0])
            found.append(Readout(members, 0, (Source(outputs.logits, torch.stack(gradients)[:, None], starts),)))
        return found

    def layers(self, preset: str) -> LayerPlan:
        """See `Adapter.layers`."""
        return LayerPlan(self.plans[preset], cut_all=True, fuse="sum")


def _shares(objects: list[Objects]) -> Tensor:
    """[N, h, w] the share of each cell that each object's region covers; see `SemanticAdapter`."""
    return torch.cat([(found.mask_logits + 1) / 2 for found in objects if found.mask_logits is not None])


def _cut(maps: Tensor, start: list[int], extent: tuple[int, int]) -> Tensor:
    """The window of [..., h, w] that starts at (row, column)."""
    (y, x), (height, width) = start, extent
    return maps[..., y : y + height, x : x + width]
