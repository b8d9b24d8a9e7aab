"""The screenshots in the README: `python docs/make_pictures.py`; needs chromium, and playwright of the extra `dev`."""

from __future__ import annotations

import io
import shutil
import tempfile
from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from playwright.sync_api import Page, sync_playwright

from detcam import Explainer
from detcam.report import write_report
from detcam.scenes import HELD_OUT_SEED, draw_scene

HERE = Path(__file__).parent
SCENE = 4
WAYS = (("odam", "level"), ("odam", "evidence"), ("gradcam", "evidence"))


def explain_scene(folder: Path) -> Path:
    """A page with several explanations of one drawn scene."""
    picture = folder / "evening.png"
    cv2.imwrite(str(picture), draw_scene(HELD_OUT_SEED + SCENE).image[:, :, ::-1])
    for i, (method, layers) in enumerate(WAYS):
        Explainer("scenes", method=method, layers=layers)(picture).save(folder / f"{i}-{method}", picture.name)
    return write_report(folder)


def take(page: Page, name: str) -> None:
    """A screenshot with 32 shades a colour, which is small enough for a repository."""
    pixels = np.asarray(Image.open(io.BytesIO(page.screenshot())).convert("RGB"))
    Image.fromarray(pixels & 0xF8 | 4).save(HERE / name, optimize=True)


def main() -> None:
    """One page in the light, and one in the dark with two ways side by side."""
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        address = explain_scene(Path(folder)).as_uri()
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for scheme, keys in (("light", "2"), ("dark", "s1")):
            page = browser.new_page(viewport={"width": 1280, "height": 800}, color_scheme=scheme)
            page.goto(address)
            for key in keys:
                page.keyboard.press(key)
            page.locator(f".stage:last-child[data-painted='{keys[-1]}']").wait_for()
            take(page, f"report-{scheme}.png")
        browser.close()


if __name__ == "__main__":
    main()
