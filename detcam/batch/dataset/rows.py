"""Rows of the dataset from an explanation or an error."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, field
from typing import TYPE_CHECKING, Any

from detcam.batch.dataset import schema
from detcam.batch.dataset.heatmap import pack
from detcam.batch.items import Item
from detcam.batch.metrics import measure
from detcam.batch.sources.listed import text
from detcam.explanation import Explanation

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class Batch:
    """Rows of some images of a chunk."""

    chunk: int  # number of the chunk
    objects: pa.Table  # rows of `detcam.batch.dataset.schema.objects`
    pictures: pa.Table  # rows of `detcam.batch.dataset.schema.pictures`, one for each image
    written: int | None = None  # bytes of the chunk's shards if the worker wrote them itself; None: not written yet

    @classmethod
    def of(cls, chunk: int, outcomes: Iterable[Outcome], metrics: tuple[str, ...]) -> Batch:
        """The rows of some images, in their order."""
        import pyarrow as pa

        outcomes = list(outcomes)
        objects = [row for outcome in outcomes for row in outcome.objects]
        return cls(
            chunk,
            pa.Table.from_pylist(objects, schema.objects(metrics)),
            pa.Table.from_pylist([outcome.picture for outcome in outcomes], schema.pictures()),
        )

    @classmethod
    def joined(cls, parts: Sequence[Batch]) -> Batch:
        """The concatenated rows of several batches of a chunk."""
        import pyarrow as pa

        objects, pictures = (
            pa.concat_tables(tables) for tables in zip(*((p.objects, p.pictures) for p in parts), strict=True)
        )
        return cls(parts[0].chunk, objects.combine_chunks(), pictures.combine_chunks())


@dataclass(frozen=True)
class Outcome:
    """The row of an image, and the rows of its objects."""

    picture: dict[str, Any]
    objects: list[dict[str, Any]] = field(default_factory=list)


def explained(item: Item, explanation: Explanation, seconds: float, worker: str, metrics: Sequence[str]) -> Outcome:
    """The rows of an image that was explained."""
    height, width = explanation.geometry.source
    count = len(explanation)
    facts = {"width": width, "height": height, "objects": count, "seconds": seconds}
    picture = _picture(item, worker, "ok" if count else "empty", **facts)
    return Outcome(picture, list(_objects(item, explanation, metrics)))


def failed(item: Item, reason: str, worker: str) -> Outcome:
    """The row of an image that could not be read or explained."""
    return Outcome(_picture(item, worker, "error", error=text(" ".join(reason.split()))))


def _picture(item: Item, worker: str, status: str, **facts: Any) -> dict[str, Any]:
    known = {"key": item.key, "uri": text(item.uri), "status": status, "worker": worker}
    return {"error": None, "width": None, "height": None, "objects": 0, "seconds": 0.0, **known, **facts}


def _objects(item: Item, explanation: Explanation, metrics: Sequence[str]) -> Iterable[dict[str, Any]]:
    geometry, settings, objects = explanation.geometry, explanation.settings, explanation.objects
    height, width = geometry.source
    common = {
        "key": item.key, "uri": text(item.uri), "width": width, "height": height, "method": settings["method"],
        "layers": ",".join(settings["layers"]), "target": settings["target"],
        **dict(zip(schema.GEOMETRY, (*geometry.resized, *geometry.pad, *geometry.network), strict=True)),
    }  # fmt: skip
    measured = measure(explanation, metrics)
    boxes, scores, class_ids = objects.boxes.tolist(), objects.scores.tolist(), objects.class_ids.tolist()
    index, levels, cells = objects.index.tolist(), objects.level.tolist(), objects.cells.tolist()
    for i in range(len(explanation)):
        yield {
            **common, "object": i, **dict(zip(("x1", "y1", "x2", "y2"), boxes[i], strict=True)),
            "label": objects.labels[i], "class_id": class_ids[i], "score": scores[i],
            "index": index[i], "level": levels[i], "cell_row": cells[i][0], "cell_column": cells[i][1],
            **dict(zip(schema.HEATMAP, astuple(pack(explanation.maps[i].float().cpu().numpy())), strict=True)),
            "note": explanation.notes[i], **{name: values[i] for name, values in measured.items()},
        }  # fmt: skip
