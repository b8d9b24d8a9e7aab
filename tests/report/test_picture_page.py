"""The page of one picture, driven as a person would: look, point, click, type, zoom."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from browsing import middle, shown_heat
from saved_sets import APART, made, save_light
from support import random_picture

from detcam import Explanation
from detcam.geometry import Geometry
from detcam.report import write_report
from detcam.types import Check

HURRY = """for (const key of '12') document.body.dispatchEvent(new KeyboardEvent('keydown', { key, bubbles: true }))"""
CELLS = """() => {
  const { rows, columns } = JSON.parse(document.getElementById('data').textContent).variants[0].objects[0].map;
  return [rows, columns];
}"""
HOTTEST = """canvas => {
  const copy = new OffscreenCanvas(canvas.width, canvas.height).getContext('2d', { willReadFrequently: true });
  copy.drawImage(canvas, 0, 0);
  const data = copy.getImageData(0, 0, canvas.width, canvas.height).data;
  let best = 3;
  for (let i = 3; i < data.length; i += 4) if (data[i] > data[best]) best = i;
  return [...data.slice(best - 3, best)];
}"""


@pytest.fixture
def explanation(seed: int) -> Explanation:
    return made(random_picture(seed, 120, 160), 3, ("dog", "cat", "dog"), APART)


@pytest.fixture
def one(explanation: Explanation, tmp_path: Path) -> Path:
    explanation.save(tmp_path / "out", "a/dogs.png")
    return write_report(tmp_path / "out")


GEOMETRIES = {
    "whole": None,
    "letterbox": Geometry(source=(120, 160), resized=(240, 320), pad=(40, 0), network=(320, 320)),
    "odd": Geometry(source=(120, 160), resized=(99, 132), pad=(14, 7), network=(128, 160)),
    "crop": Geometry(source=(120, 160), resized=(120, 160), pad=(-10, -30), network=(100, 100)),
}


@pytest.mark.parametrize(
    "placed", [n if n == "letterbox" else pytest.param(n, marks=pytest.mark.nightly) for n in GEOMETRIES]
)
def test_the_canvas_shows_the_heatmaps(placed: str, seed: int, tmp_path: Path, open_page: Any) -> None:
    sizes = [(20, 32), (7, 5), (1, 1), (60, 80)]
    maps = [torch.randn(size) * 10 ** float(i) for i, size in enumerate(sizes)]
    maps[0][3, 4] = float("nan")
    explanation = made(random_picture(seed, 120, 160), 4, geometry=GEOMETRIES[placed], maps=maps)
    explanation.save(tmp_path)
    page = open_page(write_report(tmp_path))
    for i, expected in enumerate(explanation.heatmaps.numpy()):
        page.keyboard.press("Escape")
        page.keyboard.press(str(i + 1))
        shown = shown_heat(page, i + 1)
        assert shown.shape == expected.shape
        assert np.abs(shown - expected).max() * 255 <= 2.5, f"object {i + 1}"


@pytest.mark.nightly
def test_a_large_picture_is_shown_smaller_and_says_source_pixels(seed: int, tmp_path: Path, open_page: Any) -> None:
    explanation = made(random_picture(seed, 1500, 2000), 1)
    save_light(tmp_path, explanation)
    page = open_page(write_report(tmp_path))
    expected = explanation.render(size=(1200, 1600), dtype=torch.float32)[0].numpy()
    assert np.abs(shown_heat(page, 1) - expected).max() * 255 <= 2.5
    x, y = middle(page, [0, 0, 2000, 1500], (1500, 2000))
    page.mouse.move(x, y)
    where, heat, raw = page.locator("#value").text_content().split(" · ")
    column, row = (int(part.split()[1]) for part in where.split(", "))
    assert abs(column - 1000) <= 3
    assert abs(row - 750) <= 3
    expected = float(explanation.heatmaps[0, row, column])
    assert float(heat.split()[1]) == pytest.approx(expected, abs=0.02)
    positive = explanation.maps[0].clamp(min=0)
    raw_expected = float(positive.min() + (positive.max() - positive.min()) * expected)
    assert float(raw.split()[1]) == pytest.approx(raw_expected, abs=0.02 * float(positive.max()) + 0.01)


@pytest.mark.nightly
def test_finer_maps_than_a_page_carries_are_averaged(seed: int, tmp_path: Path, open_page: Any) -> None:
    fine = torch.nn.functional.interpolate(torch.rand(1, 1, 6, 8), (512, 640), mode="bicubic")[0, 0]
    explanation = made(random_picture(seed, 120, 160), 1, maps=[fine + 1])
    save_light(tmp_path, explanation)
    page = open_page(write_report(tmp_path))
    assert page.evaluate(CELLS) == [205, 256]
    assert np.abs(shown_heat(page, 1) - explanation.heatmaps[0].numpy()).max() * 255 <= 5


@pytest.mark.nightly
def test_hover_click_and_leave(one: Path, open_page: Any) -> None:
    page = open_page(one)
    shown_heat(page, 1)
    second = page.locator("button.object").nth(1)
    second.hover()
    hovered = shown_heat(page, 2)
    assert second.get_attribute("aria-pressed") == "false", "hovering chooses nothing"
    page.mouse.move(5, 5)
    shown_heat(page, 1)
    second.click()
    page.mouse.move(5, 5)
    assert np.array_equal(shown_heat(page, 2), hovered)
    assert second.get_attribute("aria-pressed") == "true"
    assert page.url.endswith("#2")
    third = middle(page, APART[2].tolist(), (120, 160))
    page.mouse.move(*third)
    shown_heat(page, 3)
    page.mouse.click(*third)
    page.mouse.move(5, 5)
    shown_heat(page, 3)
    assert "Object 3, dog, score 0.50" in page.locator("#said").text_content()


@pytest.mark.nightly
def test_the_smallest_of_nested_boxes_is_meant(seed: int, tmp_path: Path, open_page: Any) -> None:
    nested = torch.tensor([[40.0, 30, 100, 90], [0, 0, 160, 120], [20, 10, 120, 110]])
    made(random_picture(seed, 120, 160), 3, boxes=nested).save(tmp_path)
    page = open_page(write_report(tmp_path), "#2")
    shown_heat(page, 2)
    page.mouse.click(*middle(page, [40, 30, 100, 90], (120, 160)))
    shown_heat(page, 1)


@pytest.mark.nightly
def test_keyboard(seed: int, tmp_path: Path, open_page: Any) -> None:
    save_light(tmp_path, made(random_picture(seed, 120, 160), 12))
    page = open_page(write_report(tmp_path))
    for keys, number in [("ArrowDown", 2), ("ArrowDown", 3), ("ArrowUp", 2), ("7", 7), ("Escape", "none")]:
        page.keyboard.press(keys)
        page.locator(f".stage[data-painted='{number}']").wait_for()
    page.evaluate(HURRY)  # two digits in a hurry are one number
    shown_heat(page, 12)
    page.keyboard.press("ArrowDown")
    shown_heat(page, 1)
    page.keyboard.press("1")
    page.wait_for_timeout(800)
    page.keyboard.press("2")  # after a pause a digit stands for itself
    shown_heat(page, 2)
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowUp")
    shown_heat(page, 12)
    for key, zoom in [("+", "125 %"), ("+", "156 %"), ("-", "125 %"), ("0", "100 %")]:
        page.keyboard.press(key)
        assert page.locator("#whole").text_content() == zoom
    page.keyboard.press("b")
    assert not page.locator("#boxes").is_checked()
    page.keyboard.press("s")
    assert page.locator(".stage").count() == 2
    page.locator("#colours").focus()
    page.keyboard.press("3")
    assert "Object 12" in page.locator("#said").text_content(), "keys belong to the control that has the focus"


@pytest.mark.nightly
def test_zoom_keeps_the_place_under_the_pointer_and_pan_moves_it(one: Path, open_page: Any) -> None:
    page = open_page(one)
    shown_heat(page, 1)
    x, y = middle(page, [60, 50, 100, 70], (120, 160))
    page.mouse.move(x + 40, y + 25)
    before = page.locator("#value").text_content().partition(" ·")[0]
    page.mouse.wheel(0, -100)
    page.mouse.wheel(0, -100)
    page.mouse.move(x + 40.1, y + 25)
    zoomed = page.locator("#whole").text_content()
    assert int(zoomed.split()[0]) > 180
    after = page.locator("#value").text_content().partition(" ·")[0]
    numbers = [[int(part.split()[1]) for part in text.split(", ")] for text in (before, after)]
    assert np.abs(np.subtract(*numbers)).max() <= 1
    chosen = page.locator("button[aria-pressed=true] .number").text_content()
    page.mouse.down()
    page.mouse.move(x - 20, y - 25, steps=4)
    page.mouse.up()
    assert page.locator("#value").text_content().partition(" ·")[0] == after
    assert page.locator("button[aria-pressed=true] .number").text_content() == chosen, "a drag is no click"
    left = page.locator(".stage img").bounding_box()["x"]
    page.mouse.move(5, 5)
    page.keyboard.press("Shift+ArrowLeft")
    assert page.locator(".stage img").bounding_box()["x"] > left
    page.locator("#whole").click()
    assert page.locator("#out").is_disabled()


@pytest.mark.nightly
def test_opacity_and_colours(one: Path, open_page: Any) -> None:
    from detcam.render import COLORMAPS, blend

    page = open_page(one)
    shown_heat(page, 1)
    assert page.locator("#colours").input_value() == "inferno"
    assert page.locator("#colours option").all_text_contents() == list(COLORMAPS)
    page.locator("#opacity").fill("40")
    assert page.locator(".stage canvas").evaluate("canvas => canvas.style.opacity") == "0.4"
    for name in COLORMAPS:
        page.locator("#colours").select_option(name)
        colour = page.locator(".stage[data-painted] canvas").evaluate(HOTTEST)
        top = blend(np.zeros((1, 1, 3), np.uint8), np.ones((1, 1), np.float32), 1.0, name)[0, 0]
        assert np.abs(np.array(colour) - top).max() <= 12, name


@pytest.mark.nightly
def test_methods_layers_and_targets_are_switched(seed: int, tmp_path: Path, open_page: Any) -> None:
    image = random_picture(seed, 120, 160)
    labels = ("dog", "cat", "dog")
    ways = [
        ("odam", "model.9", "class"),
        ("odam", "model.4", "class"),
        ("gradcam", "model.9", "class"),
        ("odam", "model.9", "box"),
    ]
    explanations = [made(image, 3, labels, APART, method=m, layers=[layer], target=t) for m, layer, t in ways]
    for i, explanation in enumerate(explanations):
        explanation.save(tmp_path / str(i), "dogs.png")
    page = open_page(write_report(tmp_path))
    assert [page.locator(f"#facet-{name}").count() for name in ("model", "method", "layers", "target", "run")] == [
        0,
        1,
        1,
        1,
        0,
    ]

    def check(which: int, number: int, stage: int = 0) -> None:
        expected = explanations[which].heatmaps[number - 1].numpy()
        assert np.abs(shown_heat(page, number, stage) - expected).max() * 255 <= 2.5

    page.keyboard.press("2")
    check(0, 2)
    page.locator("#facet-method").select_option("gradcam")
    check(2, 2)
    page.locator("#facet-layers").select_option("model.4")
    check(1, 2)
    assert page.locator("#facet-method").input_value() == "odam", "nothing else was made at that layer"
    page.locator("#facet-target").select_option("box")
    check(3, 2)
    assert "target box" in page.locator("#made").text_content()
    page.locator("#beside").select_option(label="gradcam · model.9 · class")
    check(3, 2, 0)
    check(2, 2, 1)
    page.locator("#beside").select_option("object 2")
    check(3, 2, 0)
    page.locator(".stage:nth-child(2)[data-painted='3']").wait_for()
    assert page.locator(".stage .caption").nth(1).text_content().startswith("3 · dog 0.50")


def test_the_views_are_a_click_apart(seed: int, tmp_path: Path, open_page: Any) -> None:
    image = random_picture(seed, 120, 160)
    ways = {"why": ("layerig", "model.0"), "where": ("odam", "model.15")}
    views = {
        view: made(image, 3, boxes=APART, method=method, layers=[layer], view=view)
        for view, (method, layer) in ways.items()
    }
    for view, explanation in views.items():
        explanation.save(tmp_path if view == "why" else tmp_path / "view-where", "dogs.png")
    page = open_page(write_report(tmp_path))
    assert page.locator("#facets select").count() == 0, "method and layers follow from the view"

    def check(view: str, number: int) -> None:
        assert np.abs(shown_heat(page, number) - views[view].heatmaps[number - 1].numpy()).max() * 255 <= 2.5
        assert page.locator("button.view[aria-pressed=true]").all_inner_texts() == [view]
        assert page.locator("#reading").inner_text().lower().startswith(f"{view}: ")

    check("why", 1)
    page.locator("button.view", has_text="where").click()
    check("where", 1)
    page.keyboard.press("2")
    check("where", 2)
    page.keyboard.press("v")
    check("why", 2)


def test_a_checked_map_carries_its_verdict(explanation: Explanation, tmp_path: Path, open_page: Any) -> None:
    checks = [Check(0.021, 0.9, 0.934, 0.03, 0.4), Check(0.01, 0.8, -0.1, 0.0, 0.2), Check(0.01, 0.0, None, None, None)]
    checked = replace(explanation, checker=lambda _: checks)
    assert checked.check(1) == checks[1]
    checked.save(tmp_path / "out", "a/dogs.png")
    page = open_page(write_report(tmp_path / "out"))
    assert page.locator("#objects .badge").all_inner_texts() == ["✓ −93 %", "✗ +10 %", "✗ undefined"]
    assert page.locator("#objects .badge.passed").count() == 1
    assert page.locator("#checked").is_visible()
    page.locator("button.object").nth(1).click()
    text = page.locator("#detail").inner_text()
    assert text.startswith("Check not passed: score +10 % without the hottest 1 % of the image, +0 % without random")
    assert f"{explanation.energy_in_box[1]:.0%}".replace("%", " %") + " of the heat lies in the box" in text


def test_an_unchecked_map_makes_no_claim(one: Path, open_page: Any) -> None:
    page = open_page(one)
    assert page.locator("#objects .badge").count() == 0
    assert not page.locator("#checked").is_visible()
    assert "in box" not in page.locator("#objects").inner_text()
