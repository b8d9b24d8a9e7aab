"""A small Faster or Mask R-CNN of torchvision, built from its description in the zoo."""

from typing import Any


def rcnn(description: dict[str, Any]) -> Any:
    """torchvision's `FasterRCNN` or `MaskRCNN`, with random weights, on a body of plain convolutions with a pyramid.

    Args:
        description: `imgsz` (side of the input in pixels); `names` (of the classes, without the background); `body`
            ((channels, stride) of each 3 x 3 convolution); `stages` (the convolutions that the pyramid reads);
            `pyramid` (its channels); `anchors` (side or sides in pixels on each level, the last one at half the
            resolution of the last stage); `pool` (cells that a proposal is pooled to, from the finest level);
            `box_head` (channels); `proposals` (of an image: on each level before non-maximum suppression, and in all
            after it; 64 and 24 if not given). For a Mask R-CNN also `mask_pool` and `mask_head` (channels of each
            convolution).
    """
    from torch.nn import BatchNorm2d, Sequential
    from torchvision.models.detection import FasterRCNN, MaskRCNN
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.models.detection.backbone_utils import BackboneWithFPN
    from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
    from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
    from torchvision.ops import Conv2dNormActivation, MultiScaleRoIAlign

    channels = [3, *(count for count, _ in description["body"])]
    body = Sequential(
        *(
            Conv2dNormActivation(before, after, 3, stride)
            for before, (after, stride) in zip(channels, description["body"], strict=False)
        )
    )
    stages, width, pool, head = (description[key] for key in ("stages", "pyramid", "pool", "box_head"))
    anchors = [(sides,) if isinstance(sides, int) else tuple(sides) for sides in description["anchors"]]
    candidates, proposals = description.get("proposals", (64, 24))
    classes, masks = 1 + len(description["names"]), description.get("mask_head")
    mask_parts: dict[str, Any] = {}
    if masks:
        mask_parts = {
            "mask_roi_pool": MultiScaleRoIAlign(["0"], description["mask_pool"], 2),
            "mask_head": MaskRCNNHeads(width, masks, 1, BatchNorm2d),
            "mask_predictor": MaskRCNNPredictor(masks[-1], masks[-1], classes),
        }
    return (MaskRCNN if masks else FasterRCNN)(
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
        rpn_anchor_generator=AnchorGenerator(tuple(anchors), ((1.0,),) * len(anchors)),
        rpn_pre_nms_top_n_train=candidates,
        rpn_pre_nms_top_n_test=candidates,
        rpn_post_nms_top_n_train=proposals,
        rpn_post_nms_top_n_test=proposals,
        rpn_batch_size_per_image=candidates,
        box_batch_size_per_image=proposals,
        box_roi_pool=MultiScaleRoIAlign(["0"], pool, 2),
        box_head=TwoMLPHead(width * pool**2, head),
        box_predictor=FastRCNNPredictor(head, classes),
        **mask_parts,
    )
