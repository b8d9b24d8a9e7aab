from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from oracle import INPUT_DTYPES, assert_same_bits, run_without_kernels
from oracle import require_device as require
from overlay_scenes import assert_painted, lay_out, random_scene
from support import diagonal, few
from torch import Tensor

from detcam import ops
from detcam.ops import reference
from detcam.render.overlay import blend as render_blend

BLENDS = tuple(ops.BLENDS)
LAYOUTS = ("contiguous", "planar", "strided", "expanded")
CELLS = [(1, 1), (1, 5), (4, 1)]
SIZES = [(1, 1), (1, 7), (5, 1), (9, 128), (8, 129), (17, 4), (2, 1023)]


class TestValues:
    """The operator and its reference against the oracle."""

    @pytest.mark.parametrize(("dtype", "layout", "inference"), diagonal(INPUT_DTYPES, LAYOUTS, (False, True)))
    def test_inputs(self, device: str, dtype: torch.dtype, layout: str, inference: bool, seed: int) -> None:
        scene = random_scene(seed, dtype, layout).to(device)
        with torch.inference_mode(inference):
            for blend in BLENDS:
                assert_painted(scene.run(blend=blend), scene, blend=blend)
                assert_painted(scene.run_reference(blend=blend), scene, blend=blend)

    @pytest.mark.parametrize("blend", BLENDS)
    @pytest.mark.parametrize("opacity", [0.0, 0.3, 1.0])
    def test_opacity(self, device: str, blend: str, opacity: float, seed: int) -> None:
        scene = random_scene(seed).to(device)
        result = scene.run(opacity=opacity, blend=blend)
        assert_painted(result, scene, opacity=opacity, blend=blend)
        assert opacity > 0 or torch.equal(result, scene.frames)

    @pytest.mark.parametrize("blend", BLENDS)
    def test_window_of_each_object(self, device: str, blend: str, seed: int) -> None:
        scene = random_scene(seed, rows=7, columns=9)
        windows = torch.tensor([(0.75, 1.5, 8.25, 6.0), (-1.0, 0.0, 9.0, 8.5), (3.0, 0.25, 8.0, 4.0)])
        scene = replace(scene, window=windows[torch.arange(len(scene.maps)) % 3]).to(device)
        assert_painted(scene.run(blend=blend), scene, blend=blend)
        assert_painted(scene.run_reference(blend=blend), scene, blend=blend)

    @pytest.mark.parametrize(("boxed", "blend"), diagonal([False, True], BLENDS))
    def test_heat_in_one_place(self, device: str, boxed: bool, blend: str, seed: int) -> None:
        """What has no heat is skipped, also where a window is mirrored or shows the cold part alone."""
        scene = random_scene(seed, rows=9, columns=11, objects=6)
        heat = torch.zeros_like(scene.maps)
        heat[1, 0, 0], heat[2, 8, 10], heat[3, :, 5], heat[4, 3:5, 2:4], heat[5, 4:, :6] = 0.9, 0.8, 1.0, 0.7, 0.3
        windows = torch.tensor([(0.0, 0.0, 11.0, 9.0), (11.0, 9.0, 0.0, 0.0), (4.0, 5.0, 9.0, 8.0)])
        for i in range(3):
            part = replace(scene, maps=heat, window=windows[(torch.arange(6) + i) % 3]).to(device)
            part = part if boxed else replace(part, boxes=None)
            assert_painted(part.run(blend=blend), part, blend=blend)
            assert_painted(part.run_reference(blend=blend), part, blend=blend)

    def test_many_faint_layers(self, device: str, seed: int) -> None:
        """Rounding does not add up: each layer alone changes less than a grey level."""
        scene = random_scene(seed, images=1, objects=150, height=20, width=70).to(device)
        scene = replace(scene, maps=scene.maps * 1e-5, boxes=None)
        assert_painted(scene.run(blend="alpha"), scene, blend="alpha")

    def test_one_window_for_all(self, device: str, seed: int) -> None:
        scene = random_scene(seed, rows=7, columns=9).to(device)
        window = torch.tensor([0.75, 1.5, 8.25, 6.0], device=device)
        expected = scene.run(window=window.expand(len(scene.maps), 4))
        assert torch.equal(scene.run(window=(0.75, 1.5, 8.25, 6.0)), expected)
        assert torch.equal(scene.run(window=window), expected)

    @pytest.mark.parametrize(("cells", "size", "blend"), diagonal(CELLS, SIZES, BLENDS))
    def test_extreme_shapes(
        self, device: str, cells: tuple[int, int], size: tuple[int, int], blend: str, seed: int
    ) -> None:
        fixed = dict(zip(("rows", "columns", "height", "width"), (*cells, *size), strict=True))
        scene = random_scene(seed, **fixed).to(device)
        assert_painted(scene.run(blend=blend), scene, blend=blend)
        assert_painted(scene.run(blend=blend, boxes=None), replace(scene, boxes=None), blend=blend)

    @pytest.mark.parametrize("blend", BLENDS)
    def test_many_objects_of_many_frames(self, device: str, blend: str, seed: int) -> None:
        """More objects than a list of the kernel holds, and frames without any."""
        scene = random_scene(seed, images=5, objects=600, height=21, width=35)
        scene.index[scene.index == 3] = 0
        scene = scene.to(device)
        assert_painted(scene.run(blend=blend), scene, blend=blend)

    @pytest.mark.parametrize("name", ["INFERNO", "TURBO", "VIRIDIS"])
    def test_agrees_with_the_renderer(self, device: str, name: str, seed: int) -> None:
        """`detcam.render` paints one finished heatmap; a map as large as the frame is one."""
        generator = np.random.default_rng(seed)
        image = generator.integers(0, 256, (48, 65, 3), np.uint8)
        heat = generator.random((48, 65), np.float32)
        table = cv2.applyColorMap(np.arange(256, dtype=np.uint8)[:, None], getattr(cv2, f"COLORMAP_{name}"))
        lut = torch.from_numpy(cv2.cvtColor(table, cv2.COLOR_BGR2RGB)[:, 0]).to(device)
        for opacity in (0.5, 0.75, 1.0):
            expected = render_blend(image, heat, opacity, name.lower()).astype(int)
            for blend in BLENDS:
                arguments = (torch.from_numpy(image).to(device), torch.from_numpy(heat)[None].to(device), lut)
                painted = ops.overlay(*arguments, opacity=opacity, blend=blend)
                assert np.abs(painted.cpu().numpy() - expected).max() <= 1

    def test_agrees_with_opencv(self, device: str, seed: int) -> None:
        """Resize, colour and mix by OpenCV; smooth colours, as a level may round to either side."""
        generator = np.random.default_rng(seed)
        image = generator.integers(0, 256, (90, 130, 3), np.uint8)
        cells = generator.random((9, 13), np.float32)
        ramp = np.stack([np.arange(256), 255 - np.arange(256), np.full(256, 40)], 1).astype(np.uint8)
        heat = cv2.resize(cells, (130, 90), interpolation=cv2.INTER_LINEAR)
        cover = 0.75 * np.sqrt(heat)[..., None]
        expected = image * (1 - cover) + ramp[np.rint(heat * 255).astype(int)] * cover
        arguments = (torch.from_numpy(value).to(device) for value in (image, cells[None], ramp))
        assert np.abs(ops.overlay(*arguments).cpu().numpy() - expected).max() <= 1.5


class TestEdges:
    """Nothing to paint, nothing finite, nothing inside."""

    @pytest.mark.parametrize("blend", BLENDS)
    def test_no_objects_is_a_copy(self, device: str, blend: str, seed: int) -> None:
        scene = random_scene(seed, images=3, layout="planar").to(device)
        for index in (None, scene.index[:0]):
            result = ops.overlay(scene.frames, scene.maps[:0], scene.lut, index, boxes=scene.boxes[:0], blend=blend)
            assert torch.equal(result, scene.frames)
            assert result.data_ptr() != scene.frames.data_ptr()

    def test_one_frame_without_batch(self, device: str, seed: int) -> None:
        scene = random_scene(seed, images=1).to(device)
        single = ops.overlay(scene.frames[0], scene.maps, scene.lut, boxes=scene.boxes)
        assert torch.equal(single, scene.run()[0])

    def test_no_frames(self, device: str, seed: int) -> None:
        scene = random_scene(seed).to(device)
        assert ops.overlay(scene.frames[:0], scene.maps[:0], scene.lut, scene.index[:0]).shape[0] == 0

    def test_the_frame_is_not_changed(self, device: str, seed: int) -> None:
        scene = random_scene(seed).to(device)
        before = scene.frames.clone()
        scene.run()
        assert torch.equal(scene.frames, before)

    @pytest.mark.parametrize("blend", BLENDS)
    @pytest.mark.parametrize("value", [0.0, 0.5, 1.0, -2.0, 7.0, float("nan"), float("inf"), -float("inf")])
    def test_constant(self, device: str, value: float, blend: str, seed: int) -> None:
        """Outside [0, 1] is clamped, NaN is 0."""
        scene = random_scene(seed, images=1, objects=1).to(device)
        scene.maps.fill_(value)
        assert_painted(scene.run(blend=blend), scene, blend=blend)
        assert_painted(scene.run_reference(blend=blend), scene, blend=blend)
        scene = replace(scene, boxes=None)
        if not value > 0:
            assert torch.equal(scene.run(blend=blend), scene.frames)
        if value >= 1:
            assert (scene.run(blend=blend, opacity=1.0) == scene.lut[255]).all()

    @pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
    def test_one_bad_cell(self, device: str, bad: float, seed: int) -> None:
        scene = random_scene(seed, rows=5, columns=6).to(device)
        scene.maps[:, 2, 3] = bad
        for blend in BLENDS:
            assert_painted(scene.run(blend=blend), scene, blend=blend)
            assert_painted(scene.run_reference(blend=blend), scene, blend=blend)

    @pytest.mark.parametrize("blend", BLENDS)
    @pytest.mark.parametrize(
        "box",
        [
            (5.0, 5.0, 5.0, 9.0),
            (9.0, 3.0, 2.0, 8.0),
            (-50.0, -50.0, -3.0, -4.0),
            (500.0, 0.0, 600.0, 10.0),
            (3.6, 2.0, 4.4, 9.0),
            (float("nan"), 0.0, 9.0, 9.0),
            (0.0, 0.0, float("nan"), 9.0),
        ],
        ids=["empty", "reversed", "left", "right", "between-pixels", "nan-from", "nan-to"],
    )
    def test_hidden_by_its_box(self, device: str, box: tuple[float, ...], blend: str, seed: int) -> None:
        scene = random_scene(seed, images=1, objects=2, height=20, width=30)
        scene.boxes[:] = torch.tensor(box)
        scene = scene.to(device)
        assert torch.equal(scene.run(blend=blend), scene.frames)
        assert torch.equal(scene.run_reference(blend=blend), scene.frames)

    @pytest.mark.parametrize("blend", BLENDS)
    def test_the_reference_paints_large_frames_in_bands(
        self, device: str, blend: str, seed: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        scene = random_scene(seed, height=41, width=67, objects=5).to(device)
        monkeypatch.setattr(reference, "BAND", 67 * (5 + 16) * 7)  # seven rows
        assert_painted(scene.run_reference(blend=blend), scene, blend=blend)

    @pytest.mark.parametrize("box", [(-1e30, -1e30, 1e30, 1e30), (-float("inf"),) * 2 + (float("inf"),) * 2])
    def test_box_larger_than_the_frame(self, device: str, box: tuple[float, ...], seed: int) -> None:
        scene = random_scene(seed).to(device)
        boxes = torch.tensor(box, device=device).expand(len(scene.maps), 4)
        assert torch.equal(scene.run(boxes=boxes), scene.run(boxes=None))

    def test_box_edges_go_by_pixel_centres(self, device: str) -> None:
        frame = torch.zeros(6, 8, 3, dtype=torch.uint8, device=device)
        lut = torch.full((256, 3), 200, dtype=torch.uint8, device=device)
        box = torch.tensor([[1.5, 0.51, 4.5, 3.0]], device=device)
        painted = ops.overlay(frame, torch.ones(1, 2, 2, device=device), lut, boxes=box, opacity=1.0)[..., 0]
        expected = torch.zeros(6, 8, dtype=torch.uint8, device=device)
        expected[1:3, 1:4] = 200
        assert torch.equal(painted, expected)

    def test_order_matters_to_alpha_only(self, device: str, seed: int) -> None:
        scene = random_scene(seed, images=1, objects=4, height=16, width=16).to(device)
        scene = replace(scene, boxes=None)
        back = replace(scene, maps=scene.maps.flip(0))
        assert torch.equal(scene.run(), back.run())
        assert not torch.equal(scene.run(blend="alpha"), back.run(blend="alpha"))


class TestContract:
    """Errors, determinism, and life under torch's tools."""

    @pytest.mark.parametrize(
        ("change", "error", "message"),
        [
            ({"frame": "text"}, TypeError, "frame: expected a tensor, got str"),
            ({"frame": torch.zeros(2, 8, 9, 3)}, TypeError, "frame: expected dtype uint8, got torch.float32"),
            ({"frame": torch.zeros(8, 9, 4, dtype=torch.uint8)}, ValueError, r"frame: expected .* got \[8, 9, 4\]"),
            ({"frame": torch.zeros(0, 9, 3, dtype=torch.uint8)}, ValueError, r"frame: expected .* got \[0, 9, 3\]"),
            ({"maps": torch.zeros(2, 4, 5, dtype=torch.int32)}, TypeError, "maps: expected dtype .* torch.int32"),
            ({"maps": torch.zeros(4, 5)}, ValueError, r"maps: expected \[N, h, w\] .* got \[4, 5\]"),
            ({"maps": torch.zeros(2, 0, 5)}, ValueError, r"maps: expected .* got \[2, 0, 5\]"),
            ({"maps": torch.zeros(2, 4, 5, device="meta")}, ValueError, "maps: expected device cpu .* got meta"),
            ({"lut": torch.zeros(255, 3, dtype=torch.uint8)}, ValueError, r"lut: expected .* got \[255, 3\]"),
            ({"lut": torch.zeros(256, 3)}, TypeError, "lut: expected dtype uint8, got torch.float32"),
            ({"index": None}, ValueError, "index: expected .* 2 images; got None"),
            ({"index": torch.zeros(2)}, TypeError, "index: expected an int64 tensor, got torch.float32"),
            ({"index": torch.tensor([0, 2])}, IndexError, r"index: expected values in \[0, 2\), got 0 to 2"),
            ({"opacity": 1.5}, ValueError, r"opacity: expected a number in \[0, 1\], got 1.5"),
            ({"opacity": float("nan")}, ValueError, r"opacity: expected a number in \[0, 1\], got nan"),
            ({"blend": "add"}, ValueError, "blend: expected one of max, alpha, got 'add'"),
            ({"boxes": torch.zeros(3, 4)}, ValueError, r"boxes: expected \[2, 4\] .* got \[3, 4\]"),
            ({"boxes": torch.zeros(2, 4, dtype=torch.int64)}, TypeError, "boxes: expected a floating-point .*int64"),
            ({"boxes": [0, 0, 1, 1]}, TypeError, "boxes: expected a floating-point tensor, got list"),
            ({"window": (0, 0, 0, 4)}, ValueError, r"window: expected finite left < right .* got \(0, 0, 0, 4\)"),
        ],
    )
    def test_errors_say_expected_and_actual(self, change: dict, error: type, message: str) -> None:
        arguments = {
            "frame": torch.zeros(2, 8, 9, 3, dtype=torch.uint8),
            "maps": torch.zeros(2, 4, 5),
            "lut": torch.zeros(256, 3, dtype=torch.uint8),
            "index": torch.tensor([0, 1]),
        }
        with pytest.raises(error, match=message):
            ops.overlay(**(arguments | change))

    @pytest.mark.parametrize("bad", [2, -1])
    def test_a_direct_call_stays_inside_its_memory(self, bad: int, seed: int) -> None:
        scene = random_scene(seed, images=2, objects=1)
        scene.index[:] = bad
        for call in (torch.ops.detcam.overlay.default, reference.overlay):
            for blend in BLENDS:
                with pytest.raises((RuntimeError, IndexError), match="index"):
                    call(scene.frames, scene.maps, scene.lut, scene.index, None, None, 0.75, blend)

    def test_maps_that_require_a_gradient(self, device: str, seed: int) -> None:
        """They are painted all the same; the picture carries no graph."""
        scene = random_scene(seed).to(device)
        expected = scene.run()
        scene.maps.requires_grad_()
        assert not scene.run().requires_grad
        assert torch.equal(scene.run(), expected)

    @pytest.mark.parametrize("blend", BLENDS)
    def test_opcheck(self, device: str, blend: str, seed: int) -> None:
        scene = random_scene(seed).to(device)
        window = torch.tensor([[0.0, 0.0, 2.0, 2.0]], device=device).expand(len(scene.maps), 4)
        planar = lay_out(scene, "planar").frames
        for frames, bounds, boxes in ((scene.frames, None, scene.boxes), (planar, window, None)):
            arguments = (frames, scene.maps, scene.lut, scene.index, bounds, boxes, 0.75, blend)
            torch.library.opcheck(torch.ops.detcam.overlay.default, arguments)

    @pytest.mark.parametrize("dynamic", few([False, True], False))
    def test_compile(self, device: str, dynamic: bool, seed: int) -> None:
        """Traced whole, behind another operator; the trace can break, so no code is generated from it."""
        torch._dynamo.reset()
        scene = random_scene(seed, rows=3, columns=4).to(device)

        def paint(frames: Tensor, maps: Tensor, index: Tensor) -> Tensor:
            return ops.overlay(frames, maps.square(), scene.lut, index, boxes=scene.boxes, window=(0, 0, 2, 2)) // 2

        compiled = torch.compile(paint, fullgraph=True, backend="aot_eager", dynamic=dynamic)
        arguments = (scene.frames, scene.maps, scene.index)
        assert torch.equal(compiled(*arguments), paint(*arguments))

    @pytest.mark.parametrize("blend", BLENDS)
    def test_same_bits_every_time(self, device: str, blend: str, seed: int) -> None:
        scene = random_scene(seed, images=3, objects=40, height=150, width=201).to(device)
        assert_same_bits(lambda: scene.run(blend=blend))

    def test_cuda_graph_replays_without_a_sync(self, seed: int) -> None:
        require("cuda")
        scene = random_scene(seed).to("cuda")
        eager = scene.run(window=(0.0, 0.0, 2.0, 2.0))
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = scene.run(window=(0.0, 0.0, 2.0, 2.0))
        graph.replay()
        assert torch.equal(captured, eager)


@pytest.mark.nightly  # that of cam_maps says the same by default
def test_fallback_when_disabled(tmp_path: Path, seed: int) -> None:
    scene = random_scene(seed)
    arguments = {name: value for name, value in vars(scene).items() if name != "frames"} | {"frame": scene.frames}
    assert_painted(run_without_kernels("overlay", arguments, tmp_path), scene)
