"""cam_maps into memory that is there already, and of the surroundings of each object only."""

import math

import pytest
import torch
from oracle import (
    ACCEPTED,
    TRACED,
    random_case,
    run,
)
from torch import Tensor

from detcam import ops
from detcam.ops import reference


class TestOut:
    """Maps written into memory that is there already."""

    @pytest.mark.parametrize("inference", [False, True])
    @pytest.mark.parametrize(("normalize", "dtype"), ACCEPTED)
    def test_same_bits_as_without(
        self, device: str, normalize: str, dtype: torch.dtype, inference: bool, seed: int
    ) -> None:
        case = random_case(seed, images=2).to(device)
        window = (0.25, 0.0, 2.0, 1.75)
        with torch.inference_mode(inference):
            expected = run(case, normalize=normalize, dtype=dtype, window=window)
            out = torch.full_like(expected, 77)
            assert run(case, normalize=normalize, dtype=dtype, window=window, out=out) is out
            assert torch.equal(out, expected)

    def test_only_out_is_written(self, device: str, seed: int) -> None:
        """A slice of a larger stack, beginning where no vector is aligned."""
        case = random_case(seed).to(device)
        count, pixels = len(case.weights), math.prod(case.size)
        stack = torch.full((count * pixels + 6,), -5.0, device=device)
        run(case, out=stack[3:-3].view(count, *case.size))
        assert torch.equal(stack[3:-3].view(count, *case.size), run(case))
        assert (stack[:3] == -5).all()
        assert (stack[-3:] == -5).all()

    def test_no_objects(self, device: str, seed: int) -> None:
        case = random_case(seed).to(device)
        out = torch.empty(0, *case.size, device=device)
        assert ops.cam_maps(case.acts, case.weights[:0], case.size, case.index[:0], out=out) is out

    def test_autograd_notices(self, device: str, seed: int) -> None:
        case = random_case(seed).to(device)
        out = torch.zeros(len(case.weights), *case.size, device=device)
        held = torch.ones_like(out).requires_grad_() * out
        run(case, out=out)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            held.sum().backward()

    @pytest.mark.parametrize(
        ("out", "error", "message"),
        [
            ("text", TypeError, "out: expected a tensor, got str"),
            (torch.empty(2, 8, 9), ValueError, r"out: expected contiguous \[2, 8, 8\] on cpu, got \[2, 8, 9\]"),
            (torch.empty(3, 8, 8), ValueError, r"out: expected contiguous \[2, 8, 8\] on cpu, got \[3, 8, 8\]"),
            (torch.empty(2, 8, 8).mT, ValueError, r"out: expected contiguous .* strides \(64, 1, 8\)"),
            (torch.empty(2, 8, 8, dtype=torch.float16), TypeError, "out: expected dtype float32, got torch.float16"),
            (torch.empty(2, 8, 8, device="meta"), ValueError, r"out: expected .* on cpu, got \[2, 8, 8\] on meta"),
            (torch.empty(2, 8, 8, requires_grad=True), ValueError, "out: carries no gradient"),
            (torch._neg_view(torch.zeros(2, 8, 8)), ValueError, "out: expected memory that holds its values"),
        ],
    )
    def test_errors_say_expected_and_actual(self, out: object, error: type, message: str) -> None:
        acts, weights, index = torch.zeros(2, 3, 4, 5), torch.zeros(2, 3), torch.tensor([0, 1])
        with pytest.raises(error, match=message):
            ops.cam_maps(acts, weights, (8, 8), index, out=out)

    def test_arguments_whose_sign_is_a_flag(self, seed: int) -> None:
        """Also past the Python checks: torch's own fallback for such arguments would end the process."""
        case = random_case(seed)
        out = torch.empty(len(case.weights), *case.size)
        expected = ops.cam_maps(-case.acts, case.weights, case.size, case.index)
        assert ops.cam_maps(torch._neg_view(case.acts), case.weights, case.size, case.index, out=out) is out
        assert torch.equal(out, expected)
        raw = (case.acts, case.weights, case.index, None, "object", True)
        with pytest.raises(ValueError, match="lazily negated"):
            torch.ops.detcam.cam_maps.out(*raw, out=torch._neg_view(out))
        assert torch.equal(out, expected)

    def test_inputs_that_require_a_gradient(self, seed: int) -> None:
        case = random_case(seed)
        out = torch.empty(len(case.weights), *case.size)
        case.weights.requires_grad_()
        with pytest.raises(ValueError, match="out: carries no gradient"):
            run(case, out=out)
        with torch.no_grad():
            assert torch.equal(run(case, out=out), run(case))

    @pytest.mark.parametrize("name", ["acts", "weights", "window"])
    def test_shared_memory(self, name: str) -> None:
        memory = torch.zeros(600)
        arguments = {"acts": torch.zeros(3, 4, 5), "weights": torch.zeros(2, 3), "window": torch.ones(2, 4)}
        arguments[name] = memory[200 : 200 + arguments[name].numel()].view(arguments[name].shape)
        end = 200 + arguments[name].numel()
        for start in (200 - 128 + 1, end - 1):
            with pytest.raises(ValueError, match=f"out: expected separate memory, got memory of {name}"):
                ops.cam_maps(**arguments, size=(8, 8), out=memory[start : start + 128].view(2, 8, 8))
        ops.cam_maps(**arguments, size=(8, 8), out=memory[end : end + 128].view(2, 8, 8))

    def test_a_direct_call_stays_inside_its_memory(self) -> None:
        acts, weights = torch.zeros(1, 3, 4, 5), torch.zeros(2, 3)
        for call in (torch.ops.detcam.cam_maps.out, reference.cam_maps_out):
            for out in (torch.empty(1, 8, 8), torch.empty(2, 64), torch.empty(2, 8, 8).mT):
                with pytest.raises(RuntimeError, match="out must be a contiguous"):
                    call(acts, weights, None, None, "object", True, out=out)

    @pytest.mark.parametrize("normalize", TRACED)
    def test_opcheck(self, device: str, normalize: str, seed: int) -> None:
        case = random_case(seed).to(device)
        out = torch.empty(len(case.weights), *case.size, device=device)
        arguments = (case.acts, case.weights, case.index, None, normalize, True)
        torch.library.opcheck(torch.ops.detcam.cam_maps.out, arguments, {"out": out})

    def test_compile(self, device: str, seed: int) -> None:
        torch._dynamo.reset()
        case = random_case(seed).to(device)

        def write(acts: Tensor, out: Tensor) -> Tensor:
            ops.cam_maps(acts.sin(), case.weights, case.size, case.index, out=out)
            return out.cos()

        compiled = torch.compile(write, fullgraph=True, backend="aot_eager")
        outs = [torch.empty(len(case.weights), *case.size, device=device) for _ in range(2)]
        assert torch.equal(compiled(case.acts, outs[0]), write(case.acts, outs[1]))
        assert torch.equal(*outs)


class TestRegions:
    """The surroundings of each object at full resolution, without the whole."""

    @pytest.mark.parametrize("normalize", ["object", "image", "none"])
    def test_equal_the_crop(self, device: str, normalize: str, seed: int) -> None:
        """To the rounding of a pixel's place, which a window of float32 knows to 1e-6 of the map's width."""
        case = random_case(seed, rows=17, columns=30, objects=9).to(device)
        case.size, part = (272, 480), (64, 96)
        window = (0.0, 0.5, 30.0, 16.5)
        corners = torch.rand(9, 2) * (torch.tensor([480, 272]) + 40) - 60  # some begin before the border ...
        corners = corners.round()
        corners[0] = torch.tensor([450, 250])  # ... and one ends behind it
        boxes = torch.cat([corners, corners + torch.tensor([96, 64])], 1).to(device)
        whole = run(case, normalize=normalize, window=window)
        regions = ops.cam_maps(
            case.acts,
            case.weights,
            part,
            case.index,
            normalize=normalize,
            window=ops.region_windows(boxes, case.size, window),
        )
        scale = max(1.0, float(whole.abs().max()))
        for region, map_, box in zip(regions, whole, boxes.long().tolist(), strict=True):
            left, top, right, bottom = max(box[0], 0), max(box[1], 0), min(box[2], 480), min(box[3], 272)
            inside = region[top - box[1] : bottom - box[1], left - box[0] : right - box[0]]
            crop = map_[top:bottom, left:right]
            assert crop.numel() > 0
            torch.testing.assert_close(inside, crop, atol=1e-5 * scale, rtol=0)

    def test_beyond_the_border_repeats(self, device: str, seed: int) -> None:
        case = random_case(seed, rows=5, columns=6).to(device)
        boxes = torch.tensor([[-9.0, 3.0, -1.0, 9.0]], device=device).expand(len(case.weights), 4)
        window = ops.region_windows(boxes, (50, 60), (0, 0, 6, 5))
        part = ops.cam_maps(case.acts, case.weights, (6, 8), case.index, window=window)
        whole = ops.cam_maps(case.acts, case.weights, (50, 60), case.index)
        torch.testing.assert_close(part, whole[:, 3:9, :1].expand_as(part), atol=1e-5, rtol=0)

    def test_the_whole_is_a_region(self) -> None:
        window = ops.region_windows(torch.tensor([[0.0, 0.0, 640.0, 480.0]]), (480, 640), (1.5, 0.0, 19.0, 15.0))
        assert window.tolist() == [[1.5, 0.0, 19.0, 15.0]]

    def test_errors(self) -> None:
        with pytest.raises(ValueError, match=r"boxes: expected \[2, 4\] .* got \[2, 3\]"):
            ops.region_windows(torch.zeros(2, 3), (8, 8), (0, 0, 4, 4))
        with pytest.raises(TypeError, match=r"boxes: expected a floating-point tensor, got torch\.int64"):
            ops.region_windows(torch.zeros(2, 4, dtype=torch.int64), (8, 8), (0, 0, 4, 4))
