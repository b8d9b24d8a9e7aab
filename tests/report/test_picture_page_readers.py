"""The page of one picture for every reader: any screen, light and dark, keyboard, finger, screen reader, any name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from browsing import middle, shown_heat, violations
from saved_sets import APART, EVIL, boxes_in, made, save_light
from support import random_picture

from detcam.report import write_report


@pytest.fixture
def one(seed: int, tmp_path: Path) -> Path:
    save_light(tmp_path, made(random_picture(seed, 120, 160), 3, ("dog", "cat", "dog"), APART), "a/dogs.png")
    return write_report(tmp_path)


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("width", "scheme"), [(1280, "light"), (1280, "dark"), (600, "light"), (360, "dark"), (360, "light")]
)
def test_no_screen_is_too_narrow_and_both_themes_are_accessible(
    width: int, scheme: str, seed: int, tmp_path: Path, open_page: Any
) -> None:
    labels = (*EVIL, "dog", "w" * 80)
    explanation = made(random_picture(seed, 120, 160), len(labels), labels)
    explanation.notes[1] = "zero map: " + "because " * 20
    for method in ("odam", "gradcam"):
        explanation.settings["method"] = method
        save_light(tmp_path / method, explanation, "x.png")
    page = open_page(write_report(tmp_path), width=width, height=740, color_scheme=scheme, has_touch=width < 700)
    shown_heat(page, 1)
    page.locator("summary").click()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, ground[4:-1].split(","))) > 384) == (scheme == "light")
    assert violations(page) == []
    page.keyboard.press("s")
    assert page.locator(".stage").count() == 2
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert violations(page) == []


@pytest.mark.nightly
def test_the_theme_is_switched_and_kept(one: Path, open_page: Any) -> None:
    page = open_page(one, color_scheme="light")
    grounds = []
    for _ in range(3):
        grounds.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        page.locator("#theme").click()
    assert grounds[0] == grounds[1] != grounds[2]
    page.locator("#theme").click()
    page.locator("#theme").click()
    page.reload()
    assert page.locator("#theme").text_content() == "Theme: dark"
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == grounds[2]


@pytest.mark.nightly
def test_a_finger_chooses_and_two_fingers_zoom(one: Path, open_page: Any) -> None:
    page = open_page(one, width=390, height=844, has_touch=True, is_mobile=True, device_scale_factor=2)
    shown_heat(page, 1)
    page.touchscreen.tap(*middle(page, APART[1].tolist(), (120, 160)))
    shown_heat(page, 2)
    page.locator("button.object").nth(2).tap()
    shown_heat(page, 3)
    x, y = middle(page, [0, 0, 160, 120], (120, 160))
    touch = page.context.new_cdp_session(page)

    def fingers(kind: str, half: float) -> None:
        points = [{"x": x - half, "y": y, "id": 0}, {"x": x + half, "y": y, "id": 1}] if kind != "touchEnd" else []
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    fingers("touchStart", 30)
    for half in (40, 50, 60, 75, 90):
        fingers("touchMove", half)
    fingers("touchEnd", 0)
    assert 250 <= int(page.locator("#whole").text_content().split()[0]) <= 320
    shown_heat(page, 3)


@pytest.mark.nightly
def test_names_are_text_everywhere(seed: int, tmp_path: Path, open_page: Any) -> None:
    image = random_picture(seed, 120, 160)
    folder = tmp_path / "<b>'\"שלום🦊#?%"
    for i, name in enumerate(EVIL[:2]):
        explanation = made(image, len(EVIL), EVIL, model=EVIL[1], method=name)
        explanation.notes[0] = EVIL[1]
        explanation.save(folder / f"{i} {name.replace('/', '_')}", f"dir/{EVIL[3]} {EVIL[1]}".replace("</", "<"))
    path = write_report(folder)
    page = open_page(path)
    shown_heat(page, 1)
    assert page.locator(".object .label").all_text_contents() == list(EVIL)
    assert page.locator(".object .note").first.text_content() == EVIL[1]
    assert page.locator("h1").text_content() == f"{EVIL[3]} {EVIL[1]}".replace("</", "<")
    assert page.title() == f"{page.locator('h1').text_content()} - detcam"
    assert EVIL[1] in page.locator("#made").text_content()
    assert page.locator("#facet-method option").all_text_contents() == sorted(
        EVIL[:2], key=lambda name: EVIL.index(name)
    )
    assert page.locator("img").count() == 1, "the picture; no name became an image"
    assert page.locator("script").count() == 2
    for i in range(len(EVIL)):
        page.keyboard.press(str(i + 1))
        assert EVIL[i] in page.locator("#said").text_content()
        assert EVIL[i] in page.locator(".caption").first.text_content()
        assert EVIL[i] in page.locator(".stage canvas").first.get_attribute("aria-label")


@pytest.mark.nightly
def test_a_picture_without_objects(seed: int, tmp_path: Path, open_page: Any) -> None:
    made(random_picture(seed, 120, 160), 0).save(tmp_path, "empty.png")
    page = open_page(write_report(tmp_path))
    page.locator(".stage[data-painted='none']").wait_for()
    assert page.locator("h2").text_content() == "0 objects"
    assert "found nothing" in page.locator("#objects").text_content()
    for key in ("ArrowDown", "1", "s", "Escape"):
        page.keyboard.press(key)
    page.mouse.click(*middle(page, [0, 0, 160, 120], (120, 160)))
    assert violations(page) == []


@pytest.mark.nightly
def test_zero_maps_say_why(seed: int, tmp_path: Path, open_page: Any) -> None:
    explanation = made(random_picture(seed, 120, 160), 2, maps=[torch.zeros(4, 4), torch.rand(4, 4)])
    explanation.notes[0] = "zero map: no cell contributes positively"
    explanation.save(tmp_path)
    page = open_page(write_report(tmp_path))
    assert not shown_heat(page, 1).any()
    first = page.locator("button.object").first
    assert "no heat" in first.text_content()
    assert "no cell contributes" in first.text_content()
    assert "no cell contributes" in page.locator("#said").text_content()


def test_twenty_objects_stay_under_three_megabytes(seed: int, tmp_path: Path) -> None:
    """The hardest case: a noisy picture as large as pages show it, and maps of noise at the network's resolution."""
    generator = np.random.default_rng(seed)
    noise = generator.normal(0, 12, (1200, 1600, 3))
    image = np.clip(random_picture(seed, 1200, 1600) + noise, 0, 255).astype(np.uint8)
    explanation = made(image, 20, boxes=boxes_in(20, (1200, 1600)), maps=[torch.rand(640, 640) for _ in range(20)])
    save_light(tmp_path, explanation)
    written = write_report(tmp_path).stat().st_size
    print(f"{written / 1e6:.2f} MB")
    assert written < 3e6
