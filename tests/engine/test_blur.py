"""The Gaussian blur is OpenCV's."""

import math

import cv2
import numpy as np
import pytest
import torch

from detcam.engine.blur import blurred


@pytest.mark.parametrize(("beyond", "border"), [("constant", cv2.BORDER_CONSTANT), ("replicate", cv2.BORDER_REPLICATE)])
def test_equals_opencv(beyond: str, border: int, seed: int) -> None:
    maps, deviation = torch.rand(2, 3, 40, 64), 1.6
    side = 2 * math.ceil(3 * deviation) + 1
    expected = [cv2.GaussianBlur(m.numpy(), (side, side), deviation, borderType=border) for m in maps.flatten(0, 1)]
    found = blurred(maps, deviation, beyond)  # type: ignore[arg-type]
    np.testing.assert_allclose(found.flatten(0, 1).numpy(), np.stack(expected), atol=1e-5)


def test_keeps_shape_type_and_sum() -> None:
    spot = torch.zeros(31, 31, dtype=torch.float64)
    spot[15, 15] = 2
    wide = blurred(spot, 3.0)
    assert wide.shape == spot.shape
    assert wide.dtype == spot.dtype
    assert float(wide.sum()) == pytest.approx(2, abs=1e-6)
    assert torch.equal(blurred(spot, 0), spot)


def test_an_image_smaller_than_the_kernel() -> None:
    flat = torch.full((1, 3, 4, 2), 0.7)
    torch.testing.assert_close(blurred(flat, 5.0, "replicate"), flat)
