"""Methods that sweep, on models that look elsewhere in a changed picture: proposals and chosen queries."""

from typing import Any

import pytest
import torch
from detr_models import random_detr
from support import few, fingerprint, random_picture
from torch import Tensor
from torchvision.ops import box_iou
from torchvision_models import conf_after, predict, small

from detcam import Explainer
from detcam.errors import TargetError
from detcam.methods.perturbation import DRISE, RISE, Occlusion

pytest.importorskip("transformers")

CELLS = Occlusion(cells=3)


@pytest.mark.parametrize("kind", few(["faster", "mask"], "faster"))
def test_an_r_cnn_s_regions_stay_where_they_are(kind: str, seed: int) -> None:
    """The second stage reads a fixed box, so the score of a masked picture is that of the same region."""
    picture = random_picture(seed, 64, 64)
    model: Any = small(kind, seed, picture)
    conf = conf_after(predict(model, picture)["scores"], 4)
    before = fingerprint(model)
    seen: list[Tensor] = []
    handle = model.backbone.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    explanation = Explainer(model, CELLS, conf=conf)(picture)
    handle.remove()
    assert fingerprint(model) == before
    assert explanation.settings["target"] == "class"
    found = explanation.objects
    assert found.proposals is not None

    @torch.no_grad()
    def logits(pixels: Tensor) -> Tensor:
        features = model.backbone(pixels)
        pooled = model.roi_heads.box_roi_pool(features, [found.proposals], [pixels.shape[2:]])
        raw = model.roi_heads.box_predictor(model.roi_heads.box_head(pooled))[0]
        return raw.gather(1, found.class_ids[:, None])[:, 0]

    plain = logits(seen[0][:1])
    masked = torch.cat(seen[1:])
    drops = plain - torch.stack([logits(one[None]) for one in masked])  # [forwards, N]
    first = torch.stack([raw[0, 0] for raw in explanation.maps])
    match = (drops - first).abs().amax(dim=1)
    assert float(match.min()) <= 1e-3 * float(first.abs().max()) + 1e-4, "one of the forwards hides the first cell"
    rise = Explainer(model, RISE(masks=8), conf=conf)(picture)
    assert len(rise) == len(explanation) >= 2
    assert all(bool(raw.isfinite().all()) and float(raw.std()) > 0 for raw in rise.maps)
    sides = Explainer(model, CELLS, conf=conf, target="box")(picture)
    assert sides.settings["target"] == "box"


@pytest.mark.parametrize("kind", few(["rt_detr", "d_fine", "deformable_detr-two-stage"], "rt_detr"))
def test_chosen_queries_are_found_again_by_what_they_say(kind: str, seed: int) -> None:
    picture = random_picture(seed, 96, 128)
    model, processor = random_detr(kind, seed)
    options: dict[str, Any] = {"processor": processor, "max_det": 3, "conf": 0.0}
    seen: list[Tensor] = []
    handle = model.register_forward_pre_hook(lambda m, a, k: seen.append(k["pixel_values"]), with_kwargs=True)
    explanation = Explainer(model, CELLS, **options)(picture)
    handle.remove()
    assert explanation.settings["target"] == "similarity"
    found = explanation.objects

    @torch.no_grad()
    def candidates(pixels: Tensor) -> tuple[Tensor, Tensor]:
        out = model(pixel_values=pixels)
        cx, cy, w, h = out.pred_boxes[0].unbind(1)
        scale = torch.tensor([128.0, 96.0, 128.0, 96.0])
        return torch.stack([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2], dim=1) * scale, out.logits[0].sigmoid()

    boxes, own = candidates(seen[0][:1])

    def similarity(pixels: Tensor) -> list[float]:
        """Petsiuk 2021: the largest IoU x cosine x confidence, by hand."""
        others, scores = candidates(pixels)
        best = []
        for i in range(len(found)):
            fit = box_iou(found.network_boxes[i : i + 1], boxes)[0] * own[:, found.class_ids[i]]
            mine = own[fit.argmax()]
            overlap = box_iou(found.network_boxes[i : i + 1], others)[0]
            cosine = torch.nn.functional.cosine_similarity(mine[None], scores, dim=1)
            best.append(float((overlap * cosine * scores.amax(dim=1)).max()))
        return best

    plain = torch.tensor(similarity(seen[0][:1]))
    drops = plain - torch.tensor([similarity(one[None]) for one in torch.cat(seen[1:])])
    first = torch.stack([raw[0, 0] for raw in explanation.maps])
    assert float((drops - first).abs().amax(dim=1).min()) <= 2e-3
    for target in ("margin", "box", "left"):
        with pytest.raises(TargetError, match=f"target '{target}' with method 'occlusion': .*use target 'class'"):
            Explainer(model, CELLS, target=target, **options)
    assert Explainer(model, "gaussian", target="box", **options).settings["target"] == "box"


def test_learned_queries_keep_their_own_scalar(seed: int) -> None:
    picture = random_picture(seed, 96, 128)
    for kind in ("detr", "deformable_detr"):
        model, processor = random_detr(kind, seed)
        explainer = Explainer(model, CELLS, processor=processor, max_det=2, conf=0.0)
        assert explainer.settings["target"] == "class"
        assert all(bool(raw.isfinite().all()) for raw in explainer(picture).maps)
        swept = Explainer(model, DRISE(masks=4), processor=processor, max_det=2, conf=0.0)(picture)
        assert swept.settings["target"] == "similarity"
        assert all(bool(raw.any()) for raw in swept.maps)
