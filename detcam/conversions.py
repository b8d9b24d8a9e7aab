"""Conversions: the methods of `Explanation` that hand it over to other libraries.

The work is done in `detcam.integrations`, a module for each library, imported when a method is called.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Image

    from detcam.integrations.torchvision import Drawable


class Conversions:
    """The `to_*` methods of `Explanation`; `self` is the Explanation."""

    def to_supervision(self: Any) -> Any:
        """As `supervision.Detections`, with what its annotators, filters and trackers use.

        Returns:
            Detections with xyxy [N, 4], mask [N, H, W] bool or None, confidence [N], class_id [N] and, in `data`,
            "class_name" [N] and "heatmaps" [N, H, W] float32 in [0, 1] (the memory of `heatmaps`, on a CPU).

        Raises:
            ImportError: without supervision.
        """
        from detcam.integrations.supervision import detections

        return detections(self)

    def to_fiftyone(self: Any, objects: Sequence[int] | None = None, size: tuple[int, int] | None = None) -> Any:
        """As labels of a FiftyOne sample, for `sample.add_labels(e.to_fiftyone())`.

        Args:
            objects: positions of the objects that get a Heatmap of their own, default all.
            size: (height, width) of the heatmaps in pixels, default the picture's; FiftyOne stretches them.

        Returns:
            By the name of the sample's field: "detections", a `fiftyone.Detections` whose objects have the attributes
            `heatmap` (the name of their field, or None) and `note`; "heatmap", a `fiftyone.Heatmap` of the hottest
            object at each pixel; "heatmap_000", "heatmap_001", ... one for each object. Maps are uint8, 0 to 255.

        Raises:
            ImportError: without fiftyone.
        """
        from detcam.integrations.fiftyone import labels

        return labels(self, objects, size)

    def to_coco(
        self: Any, image_id: int, threshold: float = 0.5, categories: Mapping[int, int] | None = None
    ) -> list[dict[str, Any]]:
        """As COCO's results: a list of plain dicts for `json.dump`, `COCO.loadRes` and `COCOeval`.

        Args:
            image_id: the picture's id in the COCO file.
            threshold: heat in [0, 1] from which a pixel belongs to the segmentation.
            categories: COCO's category id for each class number; None: the class number itself.

        Returns:
            For each object image_id, category_id, bbox [x, y, width, height] in source pixels, score, and
            segmentation: the compressed RLE, in COCO's column order, of where its heatmap reaches the threshold.

        Raises:
            InputError: for a threshold outside (0, 1], or a class that `categories` lacks.
            ImportError: without pycocotools.
        """
        from detcam.integrations.coco import results

        return results(self, image_id, threshold, categories)

    def to_torchvision(self: Any, threshold: float = 0.5) -> Drawable:
        """As tensors for `draw_bounding_boxes`, `draw_segmentation_masks` and `make_grid` of `torchvision.utils`.

        Args:
            threshold: heat in [0, 1] from which a pixel belongs to `Drawable.hot`.

        Raises:
            InputError: for a threshold outside (0, 1].
        """
        from detcam.integrations.torchvision import drawable

        return drawable(self, threshold)

    def to_pil(self: Any, i: int | None = None) -> Image:
        """Object `i`'s heatmap over the picture as a PIL image (RGB); None: the picture with every box."""
        from detcam.integrations.matplotlib import pil

        return pil(self, i)

    def to_matplotlib(self: Any, objects: Sequence[int] | None = None) -> Any:
        """As a `matplotlib.figure.Figure`: the picture with its boxes, then a panel for each object.

        It is made without pyplot, so no global state changes, nothing pops up and nothing has to be closed;
        `figure.savefig(path)` writes it.

        Args:
            objects: positions of the objects to show, default all.

        Raises:
            ImportError: without matplotlib.
        """
        from detcam.integrations.matplotlib import figure

        return figure(self, objects)

    def to_tensorboard(self: Any, writer: Any, tag: str = "detcam", step: int | None = None) -> None:
        """Add the picture with its boxes and an overlay for each object, as one sheet, to a TensorBoard run.

        Args:
            writer: a `torch.utils.tensorboard.SummaryWriter`, or anything with its `add_image`.
            tag: the image's name in TensorBoard.
            step: the training step.
        """
        from detcam.integrations.boards import tensorboard

        tensorboard(self, writer, tag, step)

    def to_wandb(self: Any) -> dict[str, Any]:
        """As plain data for `wandb.Image`; nothing is imported.

        Returns:
            "picture": [H, W, 3] uint8 RGB; "boxes": what `wandb.Image(picture, boxes=...)` takes, with each box as
            shares of the picture; "overlays": N arrays [H, W, 3] uint8 RGB; "captions": N strings for them.
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
        """As a task of Label Studio with pre-annotations: plain data for `json.dump` and its import.

        Args:
            image: where Label Studio finds the picture: a URL or a path of its storage.
            threshold: heat in [0, 1] from which a pixel belongs to the brush region.
            rectangles: name of the RectangleLabels tag of the labelling configuration.
            brush: name of its BrushLabels tag; None: no brush regions. A blank map gives none.
            to_name: name of its Image tag, which is also the key of the picture in the task's data.

        Returns:
            {"data", "predictions"}: a rectangle for each object, in percent, and a brush region where its heatmap
            reaches the threshold, as Label Studio's own RLE; each has the object's score.

        Raises:
            InputError: for a threshold outside (0, 1].
        """
        from detcam.integrations.label_studio import task

        return task(self, image, threshold, rectangles, brush, to_name)
