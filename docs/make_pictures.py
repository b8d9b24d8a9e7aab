"""Make the images in the README: `python docs/make_pictures.py`; needs chromium, and playwright of the extra `dev`."""

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
from detcam.methods import VIEWS
from detcam.report import write_report
from detcam.report.write import SUMMARY
from detcam.scenes import HELD_OUT_SEED, draw_scene
from detcam.scenes.planted import draw_planted

HERE = Path(__file__).parent
SCENE = 4
OBJECT = "mushroom"
BEACON = 5


def explain_scene(folder: Path) -> Path:
    """A page with both views of one drawn scene."""
    picture = folder / "evening.png"
    cv2.imwrite(str(picture), draw_scene(HELD_OUT_SEED + SCENE).image[:, :, ::-1])
    for view, how in VIEWS.items():
        Explainer("scenes", *how)(picture).save(folder if view == "why" else folder / view, picture.name)
    return write_report(folder)


def mask_strip() -> None:
    """A mask, the heatmap of its class and the heatmap of the mask: three crops side by side."""
    image = draw_scene(HELD_OUT_SEED + SCENE).image
    named, drawn = (Explainer("scenes", target=target)(image) for target in ("class", "mask"))
    i = named.labels.index(OBJECT)
    assert drawn.masks is not None
    outlined = image.copy()
    contours, _ = cv2.findContours(drawn.masks[i].numpy().astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(outlined, contours, -1, (64, 224, 255), 2)
    x1, y1, x2, y2 = (int(side) for side in named.boxes[i].tolist())
    rows, columns = slice(max(y1 - 40, 0), y2 + 20), slice(max(x1 - 40, 0), x2 + 60)
    panels = [picture[rows, columns] for picture in (outlined, named.overlay(i), drawn.overlay(i))]
    strip = np.concatenate(panels, axis=1)
    strip = cv2.resize(strip, (1200, round(1200 * strip.shape[0] / strip.shape[1])), interpolation=cv2.INTER_AREA)
    Image.fromarray(strip & 0xF8 | 4).save(HERE / "mask.png", optimize=True)


def why_strip() -> None:
    """An object whose class a beacon outside its box decides: the scene, the view "where", and the view "why"."""
    image = draw_planted(HELD_OUT_SEED + BEACON, "beacon").image
    image = cv2.resize(image, None, fx=3, fy=3, interpolation=cv2.INTER_CUBIC)
    where, why = (Explainer("planted_beacon", *VIEWS[view], imgsz=192)(image) for view in ("where", "why"))
    strip = np.concatenate([part[:270, :400] for part in (where.overview(), where.overlay(0), why.overlay(0))], axis=1)
    Image.fromarray(strip & 0xF8 | 4).save(HERE / "why.png", optimize=True)


def explain_context(folder: Path) -> Path:
    """The heat summary of a model that was trained to go by the ground."""
    explainer = Explainer("planted_context", *VIEWS["why"])
    folder = folder / "scenes"  # the page shows the name of the folder
    folder.mkdir()
    for seed in range(HELD_OUT_SEED, HELD_OUT_SEED + 24):
        picture = folder / f"scene-{seed - HELD_OUT_SEED:02d}.png"
        cv2.imwrite(str(picture), draw_planted(seed, "context").image[:, :, ::-1])
        explainer(picture).save(folder / picture.stem, picture.name)
    return write_report(folder).with_name(SUMMARY)


def take(page: Page, name: str) -> None:
    """Save a screenshot with 32 shades per colour channel, which keeps the file small."""
    pixels = np.asarray(Image.open(io.BytesIO(page.screenshot())).convert("RGB"))
    Image.fromarray(pixels & 0xF8 | 4).save(HERE / name, optimize=True)


def main() -> None:
    """Make strips for a mask and for both views, a page in each theme, and the heat summary of a set."""
    mask_strip()
    why_strip()
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
        with tempfile.TemporaryDirectory() as several:
            page = browser.new_page(viewport={"width": 1280, "height": 800})
            page.goto(explain_context(Path(several)).as_uri())
            page.locator("main").wait_for()
            page.wait_for_timeout(500)  # images are painted one after the other
            take(page, "looks.png")
        browser.close()


if __name__ == "__main__":
    main()
