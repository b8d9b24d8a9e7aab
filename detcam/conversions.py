"""Conversions: the methods of `Explanation` that convert it for other libraries.

The code is in `detcam.integrations`, a module for each library, imported when a method is called.
"""

from __future__ import annotations

import html
from base64 import b64encode
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from detcam.saved import preview

if TYPE_CHECKING:
    from PIL.Image import Image

    from detcam.integrations.torchvision import Drawable


class Conversions:
    """The `to_*` methods of `Explanation`; `self` is the Explanation."""

    def _repr_html_(self: Any) -> str:
        """The contact sheet as an embedded image, for notebooks; without scripts."""
        picture = b64encode(preview(self.contact_sheet())).decode()
        text = html.escape(repr(self).encode("utf-8", "replace").decode())
        return f'<img src="data:image/jpeg;base64,{picture}" alt="{text}" title="{text}" style="max-width: 100%">'

    def to_supervision(self: Any) -> Any:
        """Convert to `supervision.Detections`, for its annotators, filters and trackers.

        Returns:
            Detections with xyxy [N, 4], mask [N, H, W] bool or None, confidence [N], class_id [N] and, in `data`,
            "class_name" [N] and "heatmaps" [N, H, W] float32 in [0, 1] (on a CPU they share memory with `heatmaps`).

        Raises:
            ImportError: without supervision.
        """
        from detcam.integrations.supervision import detections

        return detections(self)

    def to_fiftyone(self: Any, objects: Sequence[int] | None = None, size: tuple[int, int] | None = None) -> Any:
        """Convert to labels of a FiftyOne sample, for `sample.add_labels(e.to_fiftyone())`.

        Args:
            objects: positions of the objects that get a Heatmap each, default all.
            size: (height, width) of the heatmaps in pixels, default that of the image; FiftyOne stretches them.

        Returns:
            A dict from field names to labels. "detections": a `fiftyone.Detections` whose objects have the attributes
            `heatmap` (field name of the object's heatmap, or None) and `note`. "heatmap": a `fiftyone.Heatmap` of the
            hottest object at each pixel. "heatmap_000", "heatmap_001", ...: a `fiftyone.Heatmap` for each object. Maps
            are uint8, 0 to 255.

        Raises:
            ImportError: without fiftyone.
        """
        from detcam.integrations.fiftyone import labels

        return labels(self, objects, size)

    def to_coco(
        self: Any, image_id: int, threshold: float = 0.5, categories: Mapping[int, int] | None = None
    ) -> list[dict[str, Any]]:
        """Convert to COCO results: a list of plain dicts for `json.dump`, `COCO.loadRes` and `COCOeval`.

        Args:
            image_id: id of the image in the COCO file.
            threshold: heat in [0, 1] from which a pixel belongs to the segmentation.
            categories: COCO's category id for each class number; None: the class number itself.

        Returns:
            For each object image_id, category_id, bbox [x, y, width, height] in source pixels, score, and
            segmentation: the compressed RLE, in COCO's column order, of the pixels whose heat is at least `threshold`.

        Raises:
            InputError: for a threshold outside (0, 1], or a class that `categories` lacks.
            ImportError: without pycocotools.
        """
        from detcam.integrations.coco import results

        return results(self, image_id, threshold, categories)

    def to_torchvision(self: Any, threshold: float = 0.5) -> Drawable:
        """Convert to tensors for `draw_bounding_boxes`, `draw_segmentation_masks` and `make_grid` of torchvision.

        Args:
            threshold: heat in [0, 1] from which a pixel belongs to `Drawable.above_threshold`.

        Raises:
            InputError: for a threshold outside (0, 1].
        """
        from detcam.integrations.torchvision import drawable

        return drawable(self, threshold)

    def to_pil(self: Any, i: int | None = None) -> Image:
        """The heatmap of object `i` over the image, as a PIL image (RGB); for None the image with every box."""
        from PIL import Image

        return Image.fromarray(self.overview() if i is None else self.overlay(i))

    def to_matplotlib(
        self: Any, objects: Sequence[int] | None = None, alpha: float = 0.75, colormap: str = "inferno"
    ) -> Any:
        """Convert to a `matplotlib.figure.Figure`: the image with its outlines, a panel for each object, a colour bar.

        Outlines are those of the masks, and the boxes for a model without masks. The figure is made without pyplot: no
        global state changes, no window opens and nothing has to be closed. `figure.savefig(path)` writes it; in PDF
        and SVG, outlines and text are vectors.

        Args:
            objects: positions of the objects to show, default all.
            alpha: opacity of the hottest pixel, in [0, 1].
            colormap: a key of `detcam.render.COLORMAPS`.

        Raises:
            ImportError: without matplotlib.
            InputError: for another opacity or colour map.
        """
        from detcam.integrations.matplotlib import figure

        return figure(self, objects, alpha, colormap)

    def to_tensorboard(self: Any, writer: Any, tag: str = "detcam", step: int | None = None) -> None:
        """Add a contact sheet to a TensorBoard run: the image with its boxes, and an overlay for each object.

        Args:
            writer: a `torch.utils.tensorboard.SummaryWriter`, or any object with its `add_image`.
            tag: name of the sheet in TensorBoard.
            step: the training step.
        """
        from detcam.integrations.boards import tensorboard

        tensorboard(self, writer, tag, step)

    def to_wandb(self: Any) -> dict[str, Any]:
        """Convert to plain data for `wandb.Image`; wandb is not imported.

        Returns:
            "picture": [H, W, 3] uint8 RGB; "boxes": the argument of `wandb.Image(picture, boxes=...)`, with boxes as
            shares of the image; "overlays": N arrays [H, W, 3] uint8 RGB; "captions": N strings for the overlays.
        """
        from detcam.integrations.boards import wandb

        return wandb(self)

    def to_label_studio(
        self: Any,
        image: str,
        threshold: float = 0.5,
        rectangles: str = "label",
        brush: str | None = "heat",
        to_name: str = "image",
    ) -> dict[str, Any]:
        """Convert to a Label Studio task with pre-annotations: plain data for `json.dump` and Label Studio's import.

        Args:
            image: where Label Studio finds the image: a URL or a path in its storage.
            threshold: heat in [0, 1] from which a pixel belongs to the brush region.
            rectangles: name of the RectangleLabels tag of the labelling configuration.
            brush: name of the BrushLabels tag; None: no brush regions. A blank map has no brush region.
            to_name: name of the Image tag, which is also the key of the image in the task's data.

        Returns:
            {"data", "predictions"}: for each object a rectangle in percent, and as Label Studio's RLE a brush region of
            the pixels whose heat is at least `threshold`; both have the object's score.

        Raises:
            InputError: for a threshold outside (0, 1].
        """
        from detcam.integrations.label_studio import task

        return task(self, image, threshold, rectangles, brush, to_name)
