"""Models without layers (ONNX sessions, services, TorchScript), candidates for D-RISE and ask, the user's preparation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from custom_models import KINDS, MEAN, SIZE, adapter, detect, forward, random_grid
from support import random_picture
from torch import Tensor, nn

from detcam import Explainer
from detcam.adapters import CallableAdapter
from detcam.errors import InputError, LayerError, MethodError, ModelError
from detcam.geometry import Geometry
from detcam.methods.perturbation import DRISE, RISE

SWEEP = DRISE(masks=24)


def candidates(outputs: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    logits, boxes = outputs
    return boxes, logits.sigmoid()


@pytest.fixture
def model(seed: int) -> nn.Module:
    return random_grid(seed)


@pytest.fixture
def picture(seed: int) -> np.ndarray:
    return random_picture(seed, 64, 64)


def explain(model: Any, picture: np.ndarray, given: CallableAdapter, ask: Any = None, **options: Any) -> Any:
    explainer = Explainer(model, adapter=given, **{"imgsz": SIZE, "conf": 0.0, "max_det": 2, **options})
    return explainer(picture, ask=ask) if ask else explainer(picture)


def test_drise_and_ask_read_the_users_candidates(model: nn.Module, picture: np.ndarray) -> None:
    given = adapter(candidates=candidates)
    assert all(bool(raw.any()) for raw in explain(model, picture, given, method=SWEEP).maps)
    with torch.no_grad():
        logits, boxes = forward(model, torch.from_numpy(picture).permute(2, 0, 1)[None] / 255)
    box = boxes[0, 27].tolist()
    found = explain(model, picture, given, ask=[(box, "dog")], conf=0.999, method="odam")
    (answer,) = found.asked
    assert (answer.candidate, answer.class_id, answer.reason) == (27, 1, "confidence")
    assert answer.score == pytest.approx(float(logits[0, 27, 1].sigmoid()), abs=1e-5)


def test_a_black_box_is_explained_as_the_module_that_it_holds(model: nn.Module, picture: np.ndarray) -> None:
    class Session:
        """As of an ONNX runtime: not a module, and it cannot be copied."""

        def run(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            with torch.no_grad():
                logits, boxes = model(torch.from_numpy(pixels))
            return logits.numpy(), boxes.numpy()

        def __deepcopy__(self, memo: Any) -> Any:
            raise TypeError("cannot pickle 'Session'")

    def run(session: Session, batch: Tensor) -> tuple[Tensor, ...]:
        return tuple(map(torch.from_numpy, session.run((batch - MEAN).numpy())))

    given = adapter(forward=run, layers=[], candidates=candidates)
    ours = explain(Session(), picture, given, method=SWEEP)
    theirs = explain(model, picture, adapter(candidates=candidates), method=SWEEP)
    for a, b in zip(ours.maps, theirs.maps, strict=True):
        torch.testing.assert_close(a, b)
    for method in ("auto", "gradcam"):
        with pytest.raises(LayerError, match=r"this model has none: use 'drise' or 'rise'"):
            explain(Session(), picture, given, method=method)
    script = torch.jit.script(nn.Sequential(nn.Conv2d(3, 4, 8, 8)))
    pixel = adapter(
        forward=lambda m, batch: m(batch).flatten(2).transpose(1, 2),
        detect=lambda y, conf: [
            {"boxes": torch.tensor([[8.0, 8, 40, 40]]), "scores": torch.ones(1), "class_ids": torch.zeros(1),
             "index": torch.arange(1)} for _ in y
        ],
        score=lambda y, objects, target: torch.cat([y[i, o.index, 0] for i, o in enumerate(objects)]),
        layers=[],
    )  # fmt: skip
    assert len(explain(script, picture, pixel, method="rise", conf=0.5)) == 1


def test_the_users_preparation(model: nn.Module, picture: np.ndarray) -> None:
    def stretched(image: np.ndarray) -> Tensor:
        return torch.from_numpy(image).permute(2, 0, 1)[:, ::2] / 255

    geometry = Geometry((64, 64), (32, 64), (0, 0), (32, 64))
    for prepare in (stretched, lambda image: (stretched(image), geometry)):
        given = adapter(prepare=prepare)
        pixels, placed = given(model, model).prepare(picture)
        assert placed == geometry
        assert torch.equal(pixels, stretched(picture))
        with torch.no_grad():
            (row,) = detect(forward(model, pixels[None]), 0.0)
        found = explain(model, picture, given, max_det=1, layers="level")
        tall = row["boxes"][:1] * torch.tensor([1.0, 2, 1, 2])
        torch.testing.assert_close(found.boxes, tall.clamp(0, 64))
    with pytest.raises(ModelError, match=r"prepare: expected pixels \[C, h, w\] or \(pixels, Geometry\), got ndarray"):
        explain(model, picture, adapter(prepare=lambda image: image))


def test_slips_name_the_function(model: nn.Module, picture: np.ndarray) -> None:
    def shares(outputs: Any, conf: float) -> list[dict[str, Tensor]]:
        return [{**row, "boxes": (row["boxes"] / SIZE).clamp(0, 1)} for row in detect(outputs, conf)]

    with pytest.raises(ModelError, match=r"CallableAdapter\.detect: expected boxes xyxy in pixels.*0\.\.1: multiply"):
        explain(model, picture, adapter(detect=shares))
    with pytest.raises(ModelError, match=r"CallableAdapter\.candidates: expected boxes xyxy in pixels"):
        explain(model, picture, adapter(candidates=lambda o: ((o[1] / SIZE).clamp(0, 1), o[0].sigmoid())), method=SWEEP)
    with pytest.raises(ModelError, match=r"candidates: expected tensors boxes \[B, A, 4\] and probabilities"):
        explain(model, picture, adapter(candidates=lambda outputs: outputs[0]), method=SWEEP)

    def detached(outputs: Any, objects: Any, target: str) -> Tensor:
        return torch.cat([outputs[0][i, o.index, o.class_ids].detach() for i, o in enumerate(objects)])

    with pytest.raises(MethodError, match=r"no gradient at all: .* in the function that scores objects"):
        explain(model, picture, adapter(score=detached))
    assert len(explain(model, picture, adapter(score=detached), method="rise")) == 2
    without = adapter(forward=lambda m, batch: tuple(part.detach() for part in forward(m, batch)))
    with pytest.raises(MethodError, match=r"no gradient at all: .* in the model's forward"):
        explain(model, picture, without)


def test_scores_that_are_no_probabilities_and_layers_that_are_no_names(model: nn.Module, picture: np.ndarray) -> None:
    raw = adapter(candidates=lambda outputs: (outputs[1], outputs[0] * 9))
    with pytest.raises(ModelError, match=r"CallableAdapter\.candidates: expected scores in 0\.\.1"):
        explain(model, picture, raw, method=SWEEP)
    large = adapter(detect=lambda outputs, conf: [d | {"scores": d["scores"] + 1} for d in detect(outputs, conf)])
    with pytest.raises(ModelError, match=r"CallableAdapter\.detect: expected scores in 0\.\.1"):
        explain(model, picture, large, method="odam")
    for layers in (None, model, [model], [3]):
        with pytest.raises(LayerError, match=r"CallableAdapter: layer .* does not exist"):
            explain(model, picture, adapter(layers=layers), method="odam")
    with pytest.raises(InputError, match=r"expected CallableAdapter\(\.\.\.\)"):
        explain(model, picture, CallableAdapter)  # type: ignore[arg-type]


def test_ask_and_prompts_send_nobody_in_a_circle(model: nn.Module, picture: np.ndarray) -> None:
    with pytest.raises(InputError, match=r"ask: .* no candidates: give CallableAdapter\(candidates=") as caught:
        explain(model, picture, adapter(), ask=[((1, 1, 9, 9), 0)])
    assert "prompts" not in str(caught.value)
    with pytest.raises(InputError, match="takes no prompts: leave it out") as caught:
        Explainer(model, adapter=adapter(), imgsz=SIZE)(picture, prompts=[(5, 5)])
    assert "ask=" not in str(caught.value)


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("method", [SWEEP, RISE(masks=20)], ids=["drise", "rise"])
def test_an_engine_with_a_fixed_batch(size: int, method: Any, model: nn.Module, picture: np.ndarray) -> None:
    """It is called with just so many images; the maps and answers are those of the module."""

    class Engine:
        def run(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            assert len(pixels) == size, "an engine exported with a fixed batch refuses any other"
            with torch.no_grad():
                logits, boxes = model(torch.from_numpy(pixels))
            return logits.numpy(), boxes.numpy()

    def run(engine: Engine, batch: Tensor) -> tuple[Tensor, ...]:
        return tuple(map(torch.from_numpy, engine.run((batch - MEAN).numpy())))

    given = adapter(forward=run, layers=[], candidates=candidates, batch=size)
    free = adapter(forward=forward, layers=[], candidates=candidates)
    explainer = Explainer(Engine(), method, adapter=given, imgsz=SIZE, conf=0.0, max_det=2)
    plain = Explainer(model, method, adapter=free, imgsz=SIZE, conf=0.0, max_det=2)
    for ours, theirs in zip(
        explainer([picture, picture[::-1].copy()]), plain([picture, picture[::-1].copy()]), strict=True
    ):
        torch.testing.assert_close(ours.boxes, theirs.boxes)
        for a, b in zip(ours.maps, theirs.maps, strict=True):
            torch.testing.assert_close(a, b)
    pair = (plain(picture).boxes[0].tolist(), "dog")
    (answer,), (expected,) = (e(picture, ask=[pair]).asked for e in (explainer, plain))
    assert (answer.candidate, answer.reason, answer.rank) == (expected.candidate, expected.reason, expected.rank)
    assert answer.score == pytest.approx(expected.score, abs=1e-6)


def test_a_real_onnx_session_with_a_batch_of_one(picture: np.ndarray, tmp_path: Path) -> None:
    """onnxruntime runs a file made for one image; its objects and maps are those of the same network in PyTorch."""
    onnxruntime, onnx = pytest.importorskip("onnxruntime"), pytest.importorskip("onnx")
    weight = torch.randn(KINDS + 4, 3, 8, 8) * 0.1
    made = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Conv", ["x", "w"], ["y"], kernel_shape=[8, 8], strides=[8, 8])],
        "patches", [made("x", 1, [1, 3, SIZE, SIZE])], [made("y", 1, [1, KINDS + 4, SIZE // 8, SIZE // 8])],
        [onnx.numpy_helper.from_array(weight.numpy(), "w")],
    )  # fmt: skip
    file = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(file, tmp_path / "patches.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "patches.onnx", providers=["CPUExecutionProvider"])
    with pytest.raises(Exception, match="Got: 2 Expected: 1"):
        session.run(None, {"x": np.zeros((2, 3, SIZE, SIZE), np.float32)})

    def split(raw: Tensor) -> tuple[Tensor, Tensor]:
        flat = raw.flatten(2).transpose(1, 2)
        corner = torch.stack([torch.arange(64) % 8, torch.arange(64) // 8], dim=1) * 8.0
        boxes = torch.cat([corner, corner + 8], dim=1) + flat[..., KINDS:].tanh()
        return flat[..., :KINDS], boxes

    def by_session(engine: Any, batch: Tensor) -> tuple[Tensor, Tensor]:
        return split(torch.from_numpy(engine.run(None, {"x": batch.numpy()})[0]))

    network = nn.Conv2d(3, KINDS + 4, 8, 8, bias=False)
    network.weight.data = weight
    ours = explain(
        session, picture, adapter(forward=by_session, layers=[], candidates=candidates, batch=1), method=SWEEP
    )
    plain = adapter(forward=lambda m, batch: split(m(batch)), layers=[], candidates=candidates)
    theirs = explain(network, picture, plain, method=SWEEP)
    torch.testing.assert_close(ours.scores, theirs.scores)
    for a, b in zip(ours.maps, theirs.maps, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_a_fixed_batch_is_for_black_boxes() -> None:
    for options in ({"batch": 0, "layers": []}, {"batch": 2}):
        with pytest.raises(ModelError, match=r"batch=\d: give at least 1, and layers=\[\]"):
            adapter(**options)
