"""Columns of a dataset: a table of objects and a table of pictures."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from detcam.errors import DependencyError

if TYPE_CHECKING:
    import pyarrow as pa

GEOMETRY = ("resized_height", "resized_width", "pad_top", "pad_left", "network_height", "network_width")


def require_arrow() -> None:
    """Check for pyarrow, which writes and reads the tables.

    Raises:
        DependencyError: if pyarrow is not installed.
    """
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        raise DependencyError('datasets need pyarrow, which is not installed: pip install "detcam[batch]"') from None


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

    return pa.schema(
        [
            ("key", pa.string()),
            ("object", pa.int32()),
            ("uri", pa.string()),
            ("width", pa.int32()),
            ("height", pa.int32()),
            *((side, pa.float32()) for side in ("x1", "y1", "x2", "y2")),
            ("label", pa.string()),
            ("class_id", pa.int32()),
            ("score", pa.float32()),
            *((place, pa.int32()) for place in ("index", "level", "cell_row", "cell_column")),
            ("method", pa.string()),
            ("layers", pa.string()),
            ("target", pa.string()),
            ("heatmap", pa.binary()),
            ("heatmap_rows", pa.int32()),
            ("heatmap_columns", pa.int32()),
            ("heatmap_low", pa.float32()),
            ("heatmap_high", pa.float32()),
            *((side, pa.int32()) for side in GEOMETRY),
            ("energy_in_box", pa.float32()),
            ("note", pa.string()),
            *((metric, pa.float32()) for metric in metrics),
        ]
    )


@cache
def pictures() -> pa.Schema:
    """The table of pictures, in the source's order.

    status: "ok", "empty" (no objects) or "error", then `error` has the reason, and width and height may be null.
    objects: number of its rows in the table of objects. seconds: its share of the time that the model and the method
    took for its batch. worker: name of the worker.
    """
    import pyarrow as pa

    return pa.schema(
        [
            ("key", pa.string()),
            ("uri", pa.string()),
            ("status", pa.string()),
            ("error", pa.string()),
            ("width", pa.int32()),
            ("height", pa.int32()),
            ("objects", pa.int32()),
            ("seconds", pa.float32()),
            ("worker", pa.string()),
        ]
    )
