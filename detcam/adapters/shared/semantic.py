"""Base of the semantic segmenters: one object per segment of the label map."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from detcam.adapters.base import Adapter, LayerPlan, Readout, Source
from detcam.adapters.shared.scores import CLASS_TARGETS
from detcam.adapters.shared.segments import (
    SEGMENTS,
    boxes_around,
    covered,
    mask_iou,
    on_source,
    segment_at,
    segment_score,
    segments_of,
    windows,
)
from detcam.errors import InputError, ModelError, nearest
from detcam.geometry import Geometry
from detcam.types import Objects, Prompt, image_index

PRESET_SIDE = 520  # pixels of the shorter side in the presets of torchvision's weights
Cut = tuple[Tensor, Tensor, int]  # in a window: logits [C, kh, kw], the share of each cell in a segment, its class


@dataclass(frozen=True)
class SemanticOutputs:
    """Raw outputs for B images and nc classes."""

    logits: Tensor  # [B, nc, h, w] at the resolution of the last classifier, with the graph
    full: Tensor  # [B, nc, H, W] the output of the model, resized or not, without the graph


class SemanticAdapter(Adapter):
    """Base of the semantic segmenters: each segment of the label map is an object, the largest first.

    The scalar is the mean of the class logit over the segment (Seg-Grad-CAM: Vinogradova et al. 2020, arXiv:2002.11434,
    section 3) at the output of the last classifier, before the final resize; each cell is weighted by the share that
    the segment covers. "prob" is the mean softmax, "margin" the mean of the logit minus the best other class's,
    where the background is no other class.

    Where classes have a sigmoid each (`multilabel`) they overlap: each class is an object where its probability is over
    one half, and "prob" is the mean sigmoid.

    An object's score is the mean probability of its class over its pixels; `conf` is the threshold. There is no
    suppression, so `iou` has no effect. Of more than `max_det` segments the largest are kept. A class named
    "background" is not an object.

    Objects have masks in source pixels; `mask_logits` are 1 on cells inside, -1 on cells outside, and linear in the
    covered share in between.
    """

    targets = CLASS_TARGETS
    prompt_kinds = ("point", "box", "mask")
    levels = 1
    task = "semantic"
    segments: str = "class"  # settable: "class": one segment per class; "component": one per connected segment
    multilabel: bool = False  # settable: each class has a sigmoid, so that classes overlap
    plans: dict[str, tuple[str, ...]]  # the modules of each preset

    def _watch(self, classifier: str, names: dict[int, str]) -> None:
        """Finish the construction; the output of the module `classifier` is the logits before the final resize."""
        self.names = names
        self.available = self._available(len(names), *(("margin",) if self.multilabel else ()))
        self._logits: list[Tensor] = []
        hooked = self.module.get_submodule(classifier)
        hooked.register_forward_hook(lambda module, args, output: self._logits.append(output))

    @property
    def _left_out(self) -> set[int]:
        """The classes that are not objects."""
        return {i for i, name in self.names.items() if name.strip("_ ").lower() == "background"}

    def _run(self, batch: Tensor) -> Tensor:
        """The model's logits for a batch."""
        return self.module(batch)

    def forward(self, batch: Tensor, max_det: int) -> SemanticOutputs:
        """See `Adapter.forward`; a ModelError if the model puts out probabilities instead of logits."""
        self._logits.clear()
        full = self._run(batch)
        logits = self._logits.pop()
        if _puts_out(logits, full, lambda maps: maps):
            return SemanticOutputs(logits, full.detach())
        if _puts_out(logits, full, torch.sigmoid) or _puts_out(logits, full, lambda maps: maps.softmax(dim=1)):
            raise ModelError(
                f"{type(self.module).__name__} puts out probabilities of its logits: let it put "
                "out logits (segmentation-models-pytorch: activation='sigmoid' or 'softmax2d' instead of a function)"
            )
        return SemanticOutputs(full, full.detach())

    @torch.no_grad()
    def detect(
        self, outputs: SemanticOutputs, geometries: list[Geometry], conf: float, iou: float, max_det: int
    ) -> list[Objects]:
        """See `Adapter.detect`: the arg max, or sigmoids, of the logits resized to the source image as in libraries."""
        if self.segments not in SEGMENTS:
            raise InputError(f"segments: {self.segments!r} does not exist: {nearest(self.segments, SEGMENTS)}")
        objects = []
        for logits, geometry in zip(outputs.full, geometries, strict=True):
            full, seen = on_source(logits, geometry)
            found = [
                segments_of(labels.masked_fill(~seen, -1), probability, self._left_out, self.segments, conf, max_det)
                for labels, probability in self._label_maps(full)
            ]
            masks, classes, scores = (torch.cat(parts) for parts in zip(*found, strict=True))
            largest = masks.sum(dim=(1, 2)).argsort(descending=True, stable=True)[:max_det]
            objects.append(self._objects(outputs, masks[largest], classes[largest], scores[largest], geometry))
        return objects

    def _label_maps(self, logits: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """The label map [H, W] of logits [C, H, W] and its probabilities; if classes overlap, a map for each class.

        -1 stands for no class.
        """
        if not self.multilabel:
            best, labels = logits.max(dim=0)
            yield labels, (best.float() - logits.float().logsumexp(dim=0)).exp()
        for number, row in enumerate(logits if self.multilabel else ()):
            yield torch.where(row > 0, number, -1), row.float().sigmoid()

    @torch.no_grad()
    def segment_similarity(self, outputs: SemanticOutputs, objects: Objects) -> Tensor:
        """See `Adapter.segment_similarity`; segments lie on the grid of the last classifier, p is their mean."""
        assert objects.mask_logits is not None
        shares = (objects.mask_logits + 1) / 2  # [b, h, w] of each cell
        scores = []
        for share, number, logits in zip(shares, objects.class_ids.tolist(), outputs.logits, strict=True):
            label, p = list(self._label_maps(logits))[number if self.multilabel else 0]
            of_class = label.where(label == number, -1)
            masks, _, means = segments_of(of_class, p, set(), self.segments, 0.0, label.numel())
            fits = mask_iou(share, masks)
            scores.append((fits * means).amax() if len(masks) else p.new_zeros(()))
        return torch.stack(scores)

    @torch.no_grad()
    def label_map(self, outputs: SemanticOutputs, geometry: Geometry) -> Tensor:
        """See `Adapter.label_map`: the classes of `detect`, with the background."""
        full, seen = on_source(outputs.full[0], geometry)
        return full.argmax(dim=0).masked_fill(~seen, -1)

    @torch.no_grad()
    def objects_for_prompts(self, outputs: SemanticOutputs, prompts: list[Prompt], geometry: Geometry) -> Objects:
        """See `Adapter.objects_for_prompts`: a point selects the connected segment of the predicted class around it.

        A box or mask is explained for the named class, or else for the predicted class of most of its pixels. The
        background can be selected too if it is a class.
        """
        labels = self.label_map(outputs, geometry)
        masks, classes = [], []
        for i, prompt in enumerate(prompts):
            mask = prompt.mask.to(labels.device)
            seen = labels[mask & (labels >= 0)]
            if not len(seen):
                raise InputError(f"prompts[{i}]: the network saw no pixel of it, the processor crops the image there")
            number = int(seen.bincount().argmax()) if prompt.class_id is None else prompt.class_id
            if prompt.kind == "point":
                inside = on_source(outputs.full[0], geometry)[0][number] > 0 if self.multilabel else labels
                mask = segment_at(inside, *mask.nonzero()[0].tolist())
            masks.append(mask)
            classes.append(number)
        chosen = torch.stack(masks) if masks else labels.new_zeros((0, *labels.shape), dtype=torch.bool)
        kinds = torch.tensor(classes, dtype=torch.int64, device=labels.device)
        return self.objects_for_masks(outputs, chosen, kinds, geometry)

    @torch.no_grad()
    def objects_for_masks(
        self, outputs: SemanticOutputs, masks: Tensor, class_ids: Tensor, geometry: Geometry, image: int = 0
    ) -> Objects:
        """Objects for masks that the user gives, whatever the model predicted; scores are computed as in `detect`.

        Args:
            outputs: outputs of `forward`.
            masks: [N, H, W] bool in source pixels; a point is a mask of one pixel.
            class_ids: [N] int64, the class that each mask is explained for.
            geometry: of the image in the network's input.
            image: the position of the image in the batch.

        Raises:
            InputError: for a mask without a pixel that the network saw, or a class that the model does not have.
        """
        full, seen = on_source(outputs.full[image], geometry)
        scores = []
        for i, (mask, label) in enumerate(zip(masks & seen, class_ids.tolist(), strict=True)):
            if not bool(mask.any()):
                raise InputError(f"mask {i} has no pixel that the network saw: give another mask")
            if not 0 <= label < len(full):
                raise InputError(f"mask {i}: class {label} does not exist: give one of 0 to {len(full) - 1}")
            row = full[label].float()[mask]
            total = 0 if self.multilabel else full.float()[:, mask].logsumexp(dim=0)
            scores.append((row.sigmoid() if self.multilabel else (row - total).exp()).mean())
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
        scores = outputs.logits.new_empty(sum(map(len, objects)))
        for members, _, cuts in _windows(outputs.logits, objects):
            values = [segment_score(*cut, target, self._left_out, self.multilabel) for cut in cuts]
            scores = scores.index_put((members,), torch.stack(values).to(scores.dtype))
        return scores

    def readouts(self, outputs: SemanticOutputs, objects: list[Objects], target: str) -> list[Readout]:
        """See `Adapter.readouts`: a window of the logits around each segment."""
        readouts = []
        for members, starts, cuts in _windows(outputs.logits.detach(), objects):
            gradients = []
            for leaf, share, label in cuts:
                with torch.enable_grad():
                    scalar = segment_score(leaf.requires_grad_(), share, label, target, self._left_out, self.multilabel)
                    gradients.append(torch.autograd.grad(scalar, leaf)[0])
            readouts.append(Readout(members, 0, (Source(outputs.logits, torch.stack(gradients)[:, None], starts),)))
        return readouts

    def layers(self, preset: str) -> LayerPlan:
        return LayerPlan(self.plans[preset], cut_all=True, fuse="sum")


@torch.no_grad()
def _puts_out(logits: Tensor, full: Tensor, activation: Callable[[Tensor], Tensor]) -> bool:
    """Whether the output of a model is an activation of its classifier's logits, resized bilinearly or not."""
    if logits.ndim != 4 or logits.shape[:2] != full.shape[:2]:
        return False
    maps = (interpolate(logits, full.shape[2:], mode="bilinear", align_corners=aligned) for aligned in (False, True))
    return any(bool((activation(part) - full).abs().amax() <= 1e-2 * full.abs().amax()) for part in maps)


def _windows(logits: Tensor, objects: list[Objects]) -> Iterator[tuple[Tensor, Tensor, list[Cut]]]:
    """The objects of all images in groups of similar size: (members [n], starts [n, 2] of their windows, cuts)."""
    shares = torch.cat([(o.mask_logits + 1) / 2 for o in objects if o.mask_logits is not None])
    labels = torch.cat([o.class_ids for o in objects]).tolist()
    image = image_index(objects, logits.device)
    for members, starts, extent in windows(shares):
        places = zip(members.tolist(), starts.tolist(), strict=True)
        cuts = [(_cut(logits[image[i]], at, extent), _cut(shares[i], at, extent), labels[i]) for i, at in places]
        yield members, starts, cuts


def _cut(maps: Tensor, start: list[int], extent: tuple[int, int]) -> Tensor:
    """The window of [..., h, w] that starts at (row, column)."""
    (y, x), (height, width) = start, extent
    return maps[..., y : y + height, x : x + width]
