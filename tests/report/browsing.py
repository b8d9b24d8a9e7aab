"""What tests do with a page in a browser."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import pytest

# Copied first: Chromium prints advice about canvases that are read often.
OPACITY = """canvas => {
  const copy = new OffscreenCanvas(canvas.width, canvas.height).getContext('2d', { willReadFrequently: true });
  copy.drawImage(canvas, 0, 0);
  const data = copy.getImageData(0, 0, canvas.width, canvas.height).data;
  let text = '';
  for (let i = 3; i < data.length; i += 4) text += String.fromCharCode(data[i]);
  return [canvas.height, canvas.width, btoa(text)];
}"""


def heat_on(canvas: Any) -> np.ndarray:
    """[h, w] the heat on a canvas, read back from its opacity, which is the root of the heat."""
    height, width, opacity = canvas.evaluate(OPACITY)
    return (np.frombuffer(base64.b64decode(opacity), np.uint8).reshape(height, width) / 255) ** 2


def shown_heat(page: Any, number: int, stage: int = 0) -> np.ndarray:
    """[h, w] the heat in a stage, once object `number` is painted there."""
    where = f".stage:nth-child({stage + 1})[data-painted='{number}']"
    page.locator(where).wait_for()
    return heat_on(page.locator(f"{where} canvas"))


def middle(page: Any, box: list[float], size: tuple[int, int]) -> tuple[float, float]:
    """Where the middle of a box in the picture (height, width) lies on the screen."""
    bounds = page.locator(".stage img").first.bounding_box()
    u, v = (box[0] + box[2]) / 2 / size[1], (box[1] + box[3]) / 2 / size[0]
    return bounds["x"] + u * bounds["width"], bounds["y"] + v * bounds["height"]


def violations(page: Any) -> list[tuple[str, list[str]]]:
    """What axe-core finds wrong with a page for people who cannot see, point or tell colours apart."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    found = axe.run(page).response["violations"]
    return [(rule["id"], [node["html"][:120] for node in rule["nodes"]]) for rule in found]
