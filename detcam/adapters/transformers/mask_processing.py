"""Post-processing of mask queries: a processor's segments, with the query of each segment."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True)
class Segments:
    """The N segments of one image, in the processor's order."""

    queries: Tensor  # [N] int64
    classes: Tensor  # [N] int64
    scores: Tensor  # [N] float32 in [0, 1]
    masks: Tensor  # [N, H, W] bool in source pixels


class _Row(NamedTuple):
    """A segment: its query, class, score and number in the processor's map."""

    query: int
    label: int
    score: float
    place: int


class PostProcessing:
    """An image processor's `post_process_instance_segmentation` or `post_process_panoptic_segmentation`.

    The library returns segments without their queries. So it is given logits in which every pair of query and class
    that may be kept has a separate class: the softmax, and with it every decision, does not change, and the class of a
    segment names its query.
    """

    def __init__(self, processor: Any, segments: str, **options: Any) -> None:
        """`segments` is "instance" or "panoptic"; of `options`, those that the method takes are passed on."""
        inner = getattr(processor, "image_processor", processor)  # inside a processor that also reads text
        self._call: Callable[..., Any] = getattr(inner, f"post_process_{segments}_segmentation")
        known = inspect.signature(self._call).parameters.keys()
        self._options = {name: value for name, value in options.items() if name in known}
        # MaskFormer, Mask2Former and OneFormer take the best pairs of query and class, in no particular order.
        self._ranked = segments == "instance" and not known.isdisjoint(("return_binary_maps", "task_type"))
        rivals = "overlap_mask_area_threshold" in known and "return_binary_maps" not in known
        # Whether masks may overlap; otherwise queries compete for every pixel.
        self.independent = segments == "instance" and not rivals

    def __call__(
        self,
        logits: Tensor,  # [Q, nc + 1], the last class is "no object"
        masks: Tensor,  # [Q, h, w] logits
        source: tuple[int, int],
        conf: float,
    ) -> Segments:
        """The segments with a score above `conf` of an image of (height, width) `source`."""
        logits, masks = logits.float(), masks.float()
        tagged, pairs = _tagged(logits, conf)
        result = self._run(tagged[None], masks[None], [source], conf)[0]
        rows = []
        for segment in result["segments_info"]:
            query, label = pairs[segment["label_id"] - logits.shape[1] + 1].tolist()
            rows.append(_Row(query, label, float(segment["score"]), segment["id"]))
        if self._ranked:
            rows = _in_order_of(self._run(logits[None], masks[None], [source], conf)[0]["segments_info"], rows)
        kept = torch.tensor([row[:2] for row in rows], dtype=torch.int64, device=logits.device)
        queries, classes = kept.reshape(len(rows), 2).unbind(1)
        scores = torch.tensor([row.score for row in rows], device=logits.device)
        if not rows:
            kept_masks = torch.zeros((0, *source), dtype=torch.bool, device=logits.device)
        elif self.independent:
            # In the processor's map later segments cover earlier ones, so each segment is processed separately.
            equal = logits.new_zeros(len(queries), 1, 2)
            maps = self._run(equal, masks[queries, None], [source] * len(queries), 0.0)
            kept_masks = torch.stack([result["segmentation"] == 0 for result in maps])
        else:
            kept_masks = torch.stack([result["segmentation"] == row.place for row in rows])
        return Segments(queries, classes, scores, kept_masks)

    def _run(self, logits: Tensor, masks: Tensor, sources: list[tuple[int, int]], conf: float) -> Any:
        outputs = SimpleNamespace(  # both names that models use
            class_queries_logits=logits, masks_queries_logits=masks, logits=logits, pred_masks=masks
        )
        with logits.device:  # some processors create their map on the default device
            return self._call(outputs, threshold=conf, target_sizes=sources, **self._options)


def _tagged(logits: Tensor, conf: float) -> tuple[Tensor, Tensor]:
    """Logits with a class for each pair of query and class whose probability is at least `conf`, and these pairs.

    Returns:
        ([Q, nc + P + 1], [P, 2]): the classes of the pairs are nc, ..., nc + P - 1; the logits that they replace are
        -inf.
    """
    pairs = (logits.softmax(dim=1)[:, :-1] >= conf).nonzero()
    queries, classes = pairs.unbind(1)
    of_pairs = logits.new_full((len(logits), len(pairs)), float("-inf"))
    of_pairs[queries, torch.arange(len(pairs), device=logits.device)] = logits[queries, classes]
    rest = logits[:, :-1].index_put((queries, classes), logits.new_tensor(float("-inf")))
    return torch.cat([rest, of_pairs, logits[:, -1:]], dim=1), pairs


def _in_order_of(segments: list[dict[str, Any]], rows: list[_Row]) -> list[_Row]:
    """The rows in the order of the segments with the same classes and scores."""
    rest, ordered = list(rows), []
    for segment in segments[: len(rows)]:
        row = min(rest, key=lambda row: (row.label != segment["label_id"], abs(row.score - segment["score"])))
        rest.remove(row)
        ordered.append(row)
    return ordered
