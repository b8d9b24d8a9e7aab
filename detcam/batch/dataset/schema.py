"""Columns of a dataset: a table of objects and a table of pictures."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from detcam.errors import needing

if TYPE_CHECKING:
    import pyarrow as pa

GEOMETRY = ("resized_height", "resized_width", "pad_top", "pad_left", "network_height", "network_width")
HEATMAP = ("heatmap", "heatmap_rows", "heatmap_columns", "heatmap_low", "heatmap_high")  # a `Packed`


def require_arrow() -> None:
    """Check for pyarrow, which writes and reads the tables; a DependencyError if pyarrow is not installed."""
    with needing('datasets need pyarrow, which is not installed: pip install "detcam[batch]"'):
        import pyarrow  # noqa: F401


@cache
def objects(metrics: tuple[str, ...] = ()) -> pa.Schema:
    """The table of objects, sorted by image in the source's order and then by `object`.

    key, object: key of the image and index of the object in the image, together unique. uri: path or URL of the image.
    width, height: size of the image in pixels. x1, y1, x2, y2: box in pixels of the image. score in [0, 1]. index,
    level, cell_row, cell_column: anchor of the object, see `detcam.Objects`. heatmap, heatmap_rows, heatmap_columns,
    heatmap_low, heatmap_high: the coarse map, see `detcam.batch.dataset.heatmap`. The columns of `GEOMETRY`: position
    of the image in the network's input, which the map covers, see `detcam.geometry.Geometry`. energy_in_box: share of
    the heatmap's sum inside the box, null for a blank map. note: null, or why the map is zero, shared or approximate.
    Then a column for each of `metrics`, null where it is not defined.
    """
    import pyarrow as pa

    text, whole, real = pa.string(), pa.int32(), pa.float32()
    return pa.schema([
        ("key", text), ("object", whole), ("uri", text), ("width", whole), ("height", whole),
        ("x1", real), ("y1", real), ("x2", real), ("y2", real),
        ("label", text), ("class_id", whole), ("score", real),
        ("index", whole), ("level", whole), ("cell_row", whole), ("cell_column", whole),
        ("method", text), ("layers", text), ("target", text),
        ("heatmap", pa.binary()), ("heatmap_rows", whole), ("heatmap_columns", whole),
        ("heatmap_low", real), ("heatmap_high", real),
        *((side, whole) for side in GEOMETRY),
        ("energy_in_box", real), ("note", text), *((metric, real) for metric in metrics),
    ])  # fmt: skip


@cache
def pictures() -> pa.Schema:
    """The table of pictures, in the source's order.

    status: "ok", "empty" (no objects) or "error", then `error` has the reason, and width and height may be null.
    objects: number of its rows in the table of objects. seconds: its share of the time that the model and the method
    took for its batch. worker: name of the worker.
    """
    import pyarrow as pa

    text, whole, real = pa.string(), pa.int32(), pa.float32()
    return pa.schema([
        ("key", text), ("uri", text), ("status", text), ("error", text), ("width", whole), ("height", whole),
        ("objects", whole), ("seconds", real), ("worker", text),
    ])  # fmt: skip
