"""A small Faster R-CNN of torchvision, built from its description in the zoo."""

from __future__ import annotations

from typing import Any


def faster_rcnn(description: dict[str, Any]) -> Any:
    """torchvision's `FasterRCNN`, with random weights, on a body of plain convolutions with a pyramid.

    Args:
        description: `imgsz` (side of the input in pixels); `names` (of the classes, without the background); `body`
            ((channels, stride) of each 3 x 3 convolution); `stages` (the convolutions that the pyramid reads);
            `pyramid` (its channels); `anchors` (side in pixels on each level, the last one at half the resolution of
            the last stage); `pool` (cells that a proposal is pooled to, from the finest level); `box_head` (channels).
    """
    from torch.nn import BatchNorm2d, Sequential
    from torchvision.models.detection import FasterRCNN
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.models.detection.backbone_utils import BackboneWithFPN
    from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
    from torchvision.ops import Conv2dNormActivation, MultiScaleRoIAlign

    channels = [3, *(count for count, _ in description["body"])]
    body = Sequential(
        *(
            Conv2dNormActivation(before, after, 3, stride)
            for before, (after, stride) in zip(channels, description["body"], strict=False)
        )
    )
    stages, width, pool, head = (description[key] for key in ("stages", "pyramid", "pool", "box_head"))
    return FasterRCNN(
        BackboneWithFPN(
            body,
            {str(stage): str(i) for i, stage in enumerate(stages)},
            [channels[stage + 1] for stage in stages],
            width,
            norm_layer=BatchNorm2d,
        ),
        min_size=description["imgsz"],
        max_size=description["imgsz"],
        image_mean=[0.0] * 3,
        image_std=[1.0] * 3,
        rpn_anchor_generator=AnchorGenerator(
            tuple((side,) for side in description["anchors"]), ((1.0,),) * len(description["anchors"])
        ),
        rpn_pre_nms_top_n_train=64,
        rpn_pre_nms_top_n_test=64,
        rpn_post_nms_top_n_train=24,
        rpn_post_nms_top_n_test=24,
        rpn_batch_size_per_image=64,
        box_batch_size_per_image=24,
        box_roi_pool=MultiScaleRoIAlign(["0"], pool, 2),
        box_head=TwoMLPHead(width * pool**2, head),
        box_predictor=FastRCNNPredictor(head, 1 + len(description["names"])),
    )
