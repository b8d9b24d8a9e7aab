"""Semantic segmenters: the library's own label map, region by region, and a sound map for each region."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
import torch
from semantic_models import (
    KINDS,
    TORCHVISION,
    TRANSFORMERS,
    classifiers,
    label_map,
    network_input,
    options,
    picture_for,
    processor_for,
    random_segmenter,
    returned,
)
from support import fingerprint, random_picture
from torch import Tensor, nn

from detcam import Explainer
from detcam.adapters import adapter_for
from detcam.adapters.segments import covered, on_source, regions_of
from detcam.adapters.semantic import SemanticAdapter
from detcam.adapters.semantic_smp import SmpAdapter
from detcam.engine import Capture, object_gradients, shadow
from detcam.errors import InputError, ModelError
from detcam.geometry import Geometry
from detcam.methods import METHODS

pytest.importorskip("transformers")

BACKGROUND = {*TORCHVISION, "smp-binary"}  # whose class 0 is the background


def explain(kind: str, model: nn.Module, picture: np.ndarray, **more: Any) -> Any:
    return Explainer(model, **{"conf": 0.0, **options(kind), **more})(picture)


@pytest.mark.parametrize("kind", KINDS)
def test_the_librarys_regions_each_get_a_map(kind: str, seed: int) -> None:
    picture = picture_for(kind, seed)
    model = random_segmenter(kind, seed).double()  # else rounding decides pixels between two classes
    labels, logits = label_map(kind, model, picture)
    before = fingerprint(model)
    level = explain(kind, model, picture, layers="level")
    evidence = explain(kind, model, picture, layers="evidence")
    assert fingerprint(model) == before

    least = 1 if kind in BACKGROUND else 0
    areas = {c: int((labels == c).sum()) for c in labels.unique().tolist() if c >= least}
    assert len(level) == len(areas) >= (1 if kind == "smp-binary" else 2)
    assert [areas[c] for c in level.class_ids.tolist()] == sorted(areas.values(), reverse=True)
    probabilities = logits.softmax(0)
    for i, c in enumerate(level.class_ids.tolist()):
        mask = labels == c
        assert torch.equal(level.masks[i], mask)
        y, x = (axis.numpy() for axis in mask.nonzero().unbind(1))
        assert level.boxes[i].tolist() == [x.min(), y.min(), x.max() + 1, y.max() + 1]
        assert float(level.scores[i]) == pytest.approx(float(probabilities[c][mask].mean()), abs=1e-5)
        if kind in TRANSFORMERS:
            assert level.labels[i] == model.config.id2label[c]
    for each in (level, evidence):
        assert each.heatmaps.shape == (len(areas), *picture.shape[:2])
        assert all(bool(m.isfinite().all()) and bool(m.any()) for m in each.maps), each.notes
        assert all(note in (None, "zero map: no cell contributes positively") for note in each.notes)
    assert all(not torch.equal(level.maps[0], other) for other in level.maps[1:])


@pytest.mark.parametrize(
    "kind", [kind for kind in KINDS if kind not in ("smp-binary", "smp-deeplabv3plus", "dpt-hybrid")]
)
def test_windows_hold_what_a_plain_backward_gives(kind: str, seed: int) -> None:
    picture = picture_for(kind, seed)
    model = random_segmenter(kind, seed).double()
    for preset, target in (("level", "prob"), ("evidence", "class")):
        settings = {"layers": preset, "target": target, "regions": "component", "max_det": 10}
        explainer = Explainer(model, conf=0.0, **settings, **options(kind))
        windows: Any = explainer._windowed
        quick = explainer(picture)
        assert windows.exact
        explainer._windowed = None
        plain = explainer(picture)
        for one, other in zip(quick.maps, plain.maps, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-5 * float(other.abs().max()))


@pytest.mark.parametrize("kind", ["segformer", "dpt", "mobilevit", "deeplabv3", "lraspp", "smp-unet", "smp-binary"])
def test_scalars_by_hand(kind: str, seed: int) -> None:
    picture = picture_for(kind, seed)
    model = random_segmenter(kind, seed)
    explainer = Explainer(model, conf=0.0, **options(kind))
    adapter: Any = explainer.adapter
    pixels, geometry = adapter.prepare(picture)
    torch.testing.assert_close(pixels[None], network_input(kind, picture), rtol=0, atol=1e-5)
    outputs = adapter.forward(pixels[None], 300)
    objects = adapter.detect(outputs, [geometry], 0.0, 0.7, 300)

    seen: list[Tensor] = []
    for conv in classifiers(model, kind):
        conv.register_forward_hook(lambda module, args, output: seen.append(output[0]))
    returned(kind, model, picture)
    if kind == "lraspp":
        seen[:] = [seen[0] + seen[1]]
    logits = torch.cat([torch.zeros_like(seen[0]), seen[0]]) if kind == "smp-binary" else seen[0]
    # Each cell counts by the share of its pixels in the mask; what the network saw beside the picture is in no mask.
    canvas = torch.zeros(len(objects[0]), *pixels.shape[1:])
    masks = objects[0].masks[:, :, 24:104] if kind == "mobilevit" else objects[0].masks
    if kind == "dpt":  # 128 columns became 96: a pixel of 128 covers three of 384, a column of 48 eight of them
        masks = masks.repeat_interleave(3, dim=2)
        canvas = torch.zeros(len(masks), 96, 384)
    canvas[:, : masks.shape[1], : masks.shape[2]] = masks
    cells = logits.shape[1:]
    blocks = (canvas.shape[1] // cells[0], canvas.shape[2] // cells[1])
    share = canvas.unflatten(2, (cells[1], blocks[1])).unflatten(1, (cells[0], blocks[0])).mean(dim=(2, 4))
    scalars = {target: adapter.score(outputs, objects, target) for target in adapter.available}
    for i, c in enumerate(objects[0].class_ids.tolist()):
        rivals = logits.clone()
        rivals[c] = -torch.inf
        maps = {"class": logits[c], "prob": logits.softmax(0)[c], "margin": logits[c] - rivals.amax(0)}
        assert set(maps) == set(scalars)
        for target, values in maps.items():
            expected = float((values * share[i]).sum() / share[i].sum())
            assert float(scalars[target][i]) == pytest.approx(expected, rel=1e-4, abs=1e-5), target


class Replay(Capture):
    """A forward in which the captured maps take given values."""

    def __init__(self, modules: Any, grids: Any, values: dict[str, Tensor]) -> None:
        super().__init__(modules, grids=grids)
        self.values = values

    def _cut_map(self, output: Tensor, name: str) -> Tensor:
        return self.values[name]


@pytest.mark.parametrize("preset", ["level", "evidence"])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_match_finite_differences(kind: str, preset: str, seed: int) -> None:
    picture = picture_for(kind, seed)
    view = shadow(random_segmenter(kind, seed).double())
    adapter: Any = adapter_for(view)(view, view, **{"imgsz": None, **options(kind)})
    pixels, geometry = adapter.prepare(picture)
    plan = adapter.layers(preset)
    modules = {name: view.get_submodule(name) for name in plan.names}

    def grids(tokens: int) -> list[tuple[int, int, int]]:
        return adapter.grids(tokens, geometry.network)

    capture = Capture(modules, plan.cut_all, grids)
    with capture:
        outputs = adapter.forward(pixels[None], 300)
    assert not capture.missing()
    objects = adapter.detect(outputs, [geometry], 0.0, 0.7, 2)
    tensors = [captured.tensor for captured in capture.captured]
    directions = [torch.randn_like(tensor) for tensor in tensors]
    step = 1e-9  # so small that hardly ever an activation crosses a kink
    sides = []
    for sign in (1, -1):
        values = {
            captured.name: captured.tensor.detach() + sign * step * direction
            for captured, direction in zip(capture.captured, directions, strict=True)
        }
        with torch.no_grad(), Replay(modules, grids, values):
            sides.append(adapter.forward(pixels[None], 300))
    images = torch.zeros(len(objects[0]), dtype=torch.int64)
    for target in adapter.available:
        scalars = adapter.score(outputs, objects, target)
        plus, minus = (adapter.score(side, objects, target) for side in sides)
        for turn, gradients in object_gradients(scalars, images, tensors):
            assert all(g is not None and bool(g.flatten(1).any(dim=1).all()) for g in gradients)
            slope = sum((g * d).flatten(1).sum(dim=1) for g, d in zip(gradients, directions, strict=True))
            expected = ((plus - minus) / (2 * step))[turn]
            torch.testing.assert_close(slope, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kind", ["fcn", "segformer", "beit", "upernet-swin", "mobilevit", "smp-unet"])
def test_a_list_of_pictures_equals_one_by_one(kind: str, seed: int) -> None:
    pictures = [random_picture(seed + i, *size) for i, size in enumerate([(96, 128), (96, 128), (80, 96)])]
    settings = {"layers": "evidence", "target": "prob", **options(kind)}
    explainer = Explainer(random_segmenter(kind, seed).double(), conf=0.0, **settings)
    for together, picture in zip(explainer(pictures), pictures, strict=True):
        alone = explainer(picture)
        assert torch.equal(together.masks, alone.masks)
        for one, other in zip(together.maps, alone.maps, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-5 * float(other.abs().max()))


def test_components_part_the_classes(seed: int) -> None:
    picture = picture_for("segformer", seed)
    model = random_segmenter("segformer", seed).double()
    labels, logits = label_map("segformer", model, picture)
    explanation = explain("segformer", model, picture, regions="component")
    assert len(explanation) > len(labels.unique())
    assert explanation.masks.sum(dim=0).eq(1).all()
    areas = explanation.masks.sum(dim=(1, 2)).tolist()
    assert areas == sorted(areas, reverse=True)
    for mask, c, score in zip(explanation.masks, explanation.class_ids.tolist(), explanation.scores, strict=True):
        assert bool((labels[mask] == c).all())
        array = mask.numpy().astype(np.uint8)
        assert cv2.connectedComponents(array)[0] == 2
        edge = torch.from_numpy(cv2.dilate(array, np.ones((3, 3), np.uint8)) - array > 0)
        assert bool((labels[edge] != c).all())
        assert float(score) == pytest.approx(float(logits.softmax(0)[c][mask].mean()), abs=1e-5)
    assert all(bool(m.any()) for m in explanation.maps)
    assert explain("segformer", model, picture, regions="component", max_det=3).labels == explanation.labels[:3]
    adapter: Any = Explainer(model, **options("segformer")).adapter
    adapter.regions = "blob"
    with pytest.raises(InputError, match="regions 'blob' does not exist"):
        adapter.detect(adapter.forward(torch.zeros(1, 3, 96, 128).double(), 9), [], 0.0, 0.7, 9)


def test_regions_of_a_map_by_hand() -> None:
    labels = torch.tensor([[1, 0, 0, 2], [0, 1, 0, 2], [0, 0, 0, 2], [1, 0, -1, 3]])
    probability = torch.full((4, 4), 0.5)
    probability[0, 0], probability[3, 3] = 0.9, 0.1
    masks, classes, scores = regions_of(labels, probability, {0}, "class", 0.2, 9)
    assert classes.tolist() == [1, 2]
    assert [mask.sum().item() for mask in masks] == [3, 3]
    assert scores.tolist() == pytest.approx([1.9 / 3, 0.5])
    masks, classes, scores = regions_of(labels, probability, {0}, "component", 0.0, 9)
    assert classes.tolist() == [2, 1, 1, 3]  # the first two cells of class 1 touch at a corner
    assert masks[1].nonzero().tolist() == [[0, 0], [1, 1]]
    assert scores.tolist() == pytest.approx([0.5, 0.7, 0.5, 0.1])
    assert regions_of(labels, probability, {0}, "component", 0.0, 2)[1].tolist() == [2, 1]
    assert regions_of(labels, probability, {0, 1, 2, 3}, "class", 0.0, 2)[0].shape == (0, 4, 4)


@pytest.mark.parametrize("kind", ["segformer", "mobilevit", "smp-unet"])
def test_regions_that_the_user_asks_for(kind: str, seed: int) -> None:
    picture = picture_for(kind, seed)
    model = random_segmenter(kind, seed)
    adapter: Any = Explainer(model, conf=0.0, **options(kind)).adapter
    pixels, geometry = adapter.prepare(picture)
    outputs = adapter.forward(torch.stack([pixels * 0, pixels]), 300)
    masks = torch.zeros(2, *picture.shape[:2], dtype=torch.bool)
    masks[0, 20:50, 30:70] = True
    masks[1, 40, 60] = True  # a point
    objects = adapter.objects_for(outputs, masks, torch.tensor([3, 1]), geometry, image=1)
    _, logits = label_map(kind, model, picture)
    assert objects.class_ids.tolist() == [3, 1]
    assert objects.boxes.tolist() == [[30, 20, 70, 50], [60, 40, 61, 41]]
    probabilities = logits.softmax(0)
    expected = [float(probabilities[3, 20:50, 30:70].mean()), float(probabilities[1, 40, 60])]
    assert objects.scores.tolist() == pytest.approx(expected, abs=1e-5)
    # The point's scalar is the logit of the one cell that holds it.
    nothing = objects.select(torch.arange(0))
    point = adapter.score(outputs, [nothing, objects.select(torch.tensor([1]))], "class")
    cells = outputs.logits.shape[2:]
    column = (60 - 24) / 80 if kind == "mobilevit" else 60 / pixels.shape[2]
    cell = outputs.logits[1, 1, int(40 / pixels.shape[1] * cells[0]), int(column * cells[1])]
    assert float(point) == pytest.approx(float(cell), abs=1e-5)
    with pytest.raises(InputError, match="region 0 has no pixel"):
        adapter.objects_for(outputs, masks[:1] & False, torch.tensor([3]), geometry)
    with pytest.raises(InputError, match="class 5 does not exist: give one of 0 to 4"):
        adapter.objects_for(outputs, masks[:1], torch.tensor([5]), geometry)


def test_crops_and_padding_by_hand() -> None:
    # A picture of 4 x 8 becomes 8 x 16, of which the network sees the middle 8 x 8: source columns 2 to 6.
    geometry = Geometry((4, 8), (8, 16), (0, -4), (8, 8))
    columns = torch.arange(8.0).expand(1, 8, 8)
    full, seen = on_source(columns, geometry)
    assert seen.int().tolist() == [[0, 0, 1, 1, 1, 1, 0, 0]] * 4
    torch.testing.assert_close(full[0, 0, 2:6], torch.tensor([0.5, 2.5, 4.5, 6.5]))
    masks = torch.zeros(1, 4, 8, dtype=torch.bool)
    masks[0, :2, :3] = True
    assert covered(masks, geometry, (2, 2))[0].tolist() == [[0.5, 0.0], [0.0, 0.0]]
    # And one of 4 x 6 stays as it is in the corner of 8 x 8.
    geometry = Geometry((4, 6), (4, 6), (0, 0), (8, 8))
    full, seen = on_source(columns, geometry)
    assert torch.equal(full, columns[:, :4, :6])
    assert bool(seen.all())
    masks = torch.ones(1, 4, 6, dtype=torch.bool)
    assert covered(masks, geometry, (2, 2))[0].tolist() == [[1.0, 0.5], [0.0, 0.0]]


@pytest.mark.parametrize("kind", ["segformer", "upernet-swin", "beit", "dpt", "mobilevit"])
def test_settings_and_earlier_calls_of_the_model_do_not_matter(kind: str, seed: int) -> None:
    picture = picture_for(kind, seed)
    model: Any = random_segmenter(kind, seed)
    expected = explain(kind, model, picture, layers="evidence")
    with torch.inference_mode():  # the library leaves its own hooks on the model
        model(network_input(kind, picture), output_hidden_states=True)
    model.config.output_hidden_states = True
    model.config.return_dict = False
    model.train()
    before = fingerprint(model)
    explainer = Explainer(model, conf=0.0, layers="evidence", **options(kind))
    for _ in range(2):
        explanation = explainer(picture)
        assert torch.equal(explanation.masks, expected.masks)
        for one, other in zip(explanation.maps, expected.maps, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-4 * float(other.abs().max()))
    assert fingerprint(model) == before
    assert (model.config.return_dict, model.config.output_hidden_states) == (False, True)


@pytest.mark.parametrize(
    ("kind", "layer", "shape"),
    [
        ("segformer", "segformer.stages.1", (12, 16)),
        ("segformer", "segformer.stages.2.blocks.0", (6, 8)),
        ("segformer", "decode_head.linear_projections.3", (3, 4)),
        ("beit", "beit.layers.1", (6, 8)),
        ("dpt", "dpt.encoder.layer.2", (6, 6)),
        ("deeplabv3", "classifier.0.convs.1", (6, 8)),
        ("upernet-convnext", "decode_head.fpn_convs.0", (24, 32)),
        ("smp-unet", "decoder.blocks.0", (6, 8)),
    ],
)
def test_layers_by_name(kind: str, layer: str, shape: tuple[int, int], seed: int) -> None:
    explanation = explain(kind, random_segmenter(kind, seed), picture_for(kind, seed), layers=layer)
    assert all(tuple(m.shape) == shape and bool(m.any()) for m in explanation.maps)


@pytest.mark.parametrize(
    ("kind", "tokens", "same"),
    [
        ("beit", "beit.embeddings", "beit.embeddings.patch_embeddings.projection"),
        ("segformer", "segformer.stages.2.layer_norm", "segformer.stages.2"),
    ],
)
def test_maps_inside_sequences_of_tokens(kind: str, tokens: str, same: str, seed: int) -> None:
    view = shadow(random_segmenter(kind, seed))
    adapter: Any = adapter_for(view)(view, view, None, processor_for(kind))
    pixels, geometry = adapter.prepare(picture_for(kind, seed))
    modules = {name: view.get_submodule(name) for name in (tokens, same)}
    capture = Capture(modules, grids=lambda count: adapter.grids(count, geometry.network))
    with capture:
        adapter.forward(pixels[None], 300)
    found = {captured.name: captured.tensor for captured in capture.captured}
    assert found[same].ndim == 4
    assert torch.equal(found[tokens], found[same])
    assert adapter.grids(7, geometry.network) == []


@pytest.mark.parametrize("kind", ["segformer", "smp-unet"])
def test_methods_that_sweep(kind: str, seed: int) -> None:
    method: Any = METHODS["rise"]
    explanation = explain(
        kind, random_segmenter(kind, seed), picture_for(kind, seed), method=method(masks=20), max_det=2
    )
    assert len(explanation) == 2
    assert all(bool(m.isfinite().all()) and bool(m.any()) for m in explanation.maps)
    assert not torch.equal(*explanation.maps)


@pytest.mark.parametrize("size", [(96, 128), (70, 60), (60, 150)])
@pytest.mark.parametrize("kind", ["fcn", "segformer", "dpt", "mobilevit", "mobilevitv2", "smp-unet"])
def test_a_squares_map_lies_on_the_square(kind: str, size: tuple[int, int], seed: int) -> None:
    """Nothing but the cells of a region is read by the last classifier, and they come back to the region's pixels."""
    explainer = Explainer(random_segmenter(kind, seed), layers="level", **options(kind))
    adapter: Any = explainer.adapter
    middle = (size[0] // 2, size[1] // 2)
    y, x = (m + int(torch.randint(-m // 4, m // 4, ())) for m in middle)
    masks = torch.zeros(5, *size, dtype=torch.bool)
    masks[:, y - 6 : y + 6, x - 6 : x + 6] = True
    adapter.detect = lambda outputs, geometries, *rest: [
        adapter.objects_for(outputs, masks, torch.arange(5), geometries[0])
    ]
    explanation = explainer(random_picture(seed, *size))
    geometry, (rows, columns) = explanation.geometry, explanation.maps[0].shape
    cell = [
        geometry.network[axis] / cells * size[axis] / geometry.resized[axis]
        for axis, cells in enumerate((rows, columns))
    ]
    # A cell at the rim, half a cell more for the resize, and those beside it that smp's 3 x 3 classifier reads.
    reach = [int(side * (2.5 if kind.startswith("smp") else 1.5)) + 1 for side in cell]
    near = torch.zeros(size, dtype=torch.bool)
    near[max(y - 6 - reach[0], 0) : y + 6 + reach[0], max(x - 6 - reach[1], 0) : x + 6 + reach[1]] = True
    assert not near.all()
    # Beside the part that a processor cuts out there are no cells, so heatmaps go on as at its rim.
    right, bottom = (
        round(side) for side in geometry.to_source(torch.tensor([[0.0, 0.0, *geometry.network[::-1]]]))[0, 2:].tolist()
    )
    left = round(float(geometry.to_source(torch.zeros(1, 4))[0, 0]))
    lit = [heat for heat in explanation.heatmaps if heat.any()]
    assert lit
    for heat in lit:
        assert not heat[:bottom, left:right][~near[:bottom, left:right]].any()
        assert heat[y - 6 : y + 6, x - 6 : x + 6].any()


@pytest.mark.parametrize("kind", TRANSFORMERS)
def test_the_architectures_own_processor_is_the_default(kind: str, seed: int) -> None:
    model = random_segmenter(kind, seed)
    adapter: Any = Explainer(model, imgsz=96).adapter
    assert type(adapter.processor) is type(processor_for(kind))
    pixels, geometry = adapter.prepare(random_picture(seed, 60, 80))
    assert pixels.shape == ((3, 96, 128) if kind == "mobilevitv2-whole" else (3, 96, 96))
    assert geometry.source == (60, 80)
    # MobileViT's processor scales to the shorter side and cuts out the middle.
    cropped = kind.startswith("mobilevit")
    assert (geometry.resized, geometry.pad) == (((96, 128), (0, -16)) if cropped else ((96, 96), (0, 0)))


@pytest.mark.parametrize("kind", ["beit", "dpt-hybrid"])
def test_vision_transformers_get_the_size_they_are_made_for(kind: str, seed: int) -> None:
    explanation = Explainer(random_segmenter(kind, seed), conf=0.0, max_det=1)(random_picture(seed, 60, 80))
    assert explanation.geometry.network == (96, 96)
    assert explanation.settings["imgsz"] == {"height": 96, "width": 96}


def test_torchvisions_own_preparation(seed: int) -> None:
    from torchvision.models.segmentation import LRASPP_MobileNet_V3_Large_Weights

    picture = random_picture(seed, 60, 90)
    preset = LRASPP_MobileNet_V3_Large_Weights.COCO_WITH_VOC_LABELS_V1.transforms()
    model = random_segmenter("lraspp", seed)
    adapter: Any = Explainer(model).adapter
    pixels, geometry = adapter.prepare(picture)
    assert pixels.shape == (3, 520, 780)
    assert (geometry.source, geometry.resized) == ((60, 90), (520, 780))
    expected = preset(torch.from_numpy(picture).permute(2, 0, 1))
    torch.testing.assert_close(pixels, expected)
    own: Any = Explainer(model, processor=lambda image: image[:, :32, :64] / 255).adapter
    assert own.prepare(picture)[0].shape == (3, 32, 64)


def test_names_of_vocs_classes(seed: int) -> None:
    from torchvision.models.segmentation import lraspp_mobilenet_v3_large

    adapter: Any = Explainer(lraspp_mobilenet_v3_large(weights=None, weights_backbone=None), imgsz=32).adapter
    assert (adapter.names[0], adapter.names[15], len(adapter.names)) == ("__background__", "person", 21)
    assert adapter._left_out == {0}


def test_preparation_for_segmentation_models(seed: int) -> None:
    model: Any = random_segmenter("smp-unet", seed)
    picture = random_picture(seed, 60, 90)
    adapter: Any = Explainer(model, imgsz=64).adapter
    pixels, geometry = adapter.prepare(picture)
    assert (geometry.resized, geometry.network) == ((43, 64), (64, 64))
    small = cv2.resize(picture, (64, 43), interpolation=cv2.INTER_LINEAR)
    torch.testing.assert_close(pixels[:, :43].permute(1, 2, 0), torch.from_numpy(small / 255).float())
    assert not pixels[:, 43:].any()
    processed: Any = Explainer(model, processor=lambda image: image * 2.0).adapter
    assert torch.equal(
        processed.prepare(picture)[0][:, :60, :90].permute(1, 2, 0), torch.from_numpy(picture * 2.0).float()
    )
    model._hub_mixin_config = {**model.config, "encoder_weights": "imagenet"}
    whitened: Any = Explainer(model).adapter
    value = float(whitened.prepare(picture)[0][2, 7, 8])
    assert value == pytest.approx((picture[7, 8, 2] / 255 - 0.406) / 0.225, abs=1e-5)


def test_the_stages_that_a_decoder_reads() -> None:
    smp = pytest.importorskip("segmentation_models_pytorch")

    def evidence(name: str, encoder: str, **more: Any) -> tuple[str, ...]:
        model = getattr(smp, name)(encoder, encoder_weights=None, **more)
        return SmpAdapter(shadow(model), model).plans["evidence"]

    stages = tuple(f"encoder.layer{i}" for i in (1, 2, 3, 4))
    assert evidence("Unet", "resnet18") == ("encoder.relu", *stages)
    assert evidence("FPN", "resnet18") == stages
    assert evidence("DeepLabV3", "resnet18") == stages[3:]
    assert evidence("PAN", "resnet18") == stages


def test_a_broken_models_nan_stays_inside(seed: int) -> None:
    model: Any = random_segmenter("segformer", seed)
    nn.init.constant_(model.decode_head.classifier.bias, float("nan"))
    assert len(explain("segformer", model, picture_for("segformer", seed))) == 0


def test_conf_bounds_the_score(seed: int) -> None:
    picture = picture_for("fcn", seed)
    model = random_segmenter("fcn", seed)
    scores = explain("fcn", model, picture).scores
    middle = float(scores.sort().values[:2].mean())
    assert torch.equal(explain("fcn", model, picture, conf=middle).scores, scores[scores > middle])


def test_what_is_no_whole_segmenter_is_refused() -> None:
    from transformers import Data2VecVisionConfig, Data2VecVisionForSemanticSegmentation

    config = Data2VecVisionConfig(
        hidden_size=8,
        num_hidden_layers=4,
        num_attention_heads=1,
        intermediate_size=8,
        image_size=32,
        out_indices=[1, 2, 3, 4],
    )
    with pytest.raises(ModelError, match=r"'data2vec-vision' is none of the architectures segformer, upernet"):
        Explainer(Data2VecVisionForSemanticSegmentation(config))
    smp = pytest.importorskip("segmentation_models_pytorch")
    with pytest.raises(ModelError, match="has no encoder: give a whole model"):
        Explainer(smp.encoders.get_encoder("resnet18", weights=None))


def test_every_kind_is_served_by_its_own_family(seed: int) -> None:
    for kind in ("fcn", "segformer", "smp-binary"):
        served = adapter_for(random_segmenter(kind, seed))
        assert issubclass(served, SemanticAdapter)
        assert served.family == {"f": "torchvision", "s": "transformers semantic segmentation"}.get(
            kind[0] if "smp" not in kind else "", "segmentation-models-pytorch"
        )
