"""The page of a comparison in a browser: what comes first, what both sides show, and every reader's way through it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from browsing import middle, shown_heat, violations
from saved_sets import APART, EVIL, blobs, boxes_in, made
from support import random_picture

import detcam
from detcam import Explanation
from detcam.analysis.comparison import Comparison
from detcam.geometry import Geometry
from detcam.report.comparison_page import write_comparison

LETTERBOX = Geometry(source=(120, 160), resized=(240, 320), pad=(40, 0), network=(320, 320))
LABELS = ("dog", "cat", "bird")


def two_sides(seed: int) -> Comparison:
    """Both found a dog and a cat, the second side the cat's heat elsewhere; where one saw a bird, the other saw a bat."""
    image = random_picture(seed, 120, 160)
    a = made(image, 3, LABELS, APART)
    maps = [a.maps[0], a.maps[1].roll((10, 16), (0, 1)), *blobs(1)]
    order = [2, 0, 1]
    b = made(image, 3, ("bat", "dog", "cat"), APART[order], maps=[maps[i] for i in order], method="gradcam")
    return detcam.compare(a, b)


def bowls(seed: int) -> Comparison:
    """Of a picture of another size; only the first side found anything there."""
    image = random_picture(seed + 1, 90, 200)
    return detcam.compare(made(image, 1, ("bowl",)), made(image, 0))


@pytest.fixture
def comparison(seed: int) -> Comparison:
    return two_sides(seed)


@pytest.fixture
def one(seed: int, comparison: Comparison, tmp_path: Path) -> Path:
    write_comparison(tmp_path, [("a/dogs.png", comparison), ("bowls.png", bowls(seed))], ("odam", "gradcam"))
    return tmp_path / "compare.html"


def listed(page: Any) -> list[str]:
    return page.locator(".row .label").all_text_contents()


def check(page: Any, side: int, explanation: Explanation, number: int) -> None:
    """The stage shows this object's heatmap."""
    shown = shown_heat(page, number + 1, side)
    assert np.abs(shown - explanation.heatmaps[number].numpy()).max() * 255 <= 2.5


@pytest.mark.nightly
def test_the_largest_disagreement_comes_first_with_both_heatmaps(
    one: Path, comparison: Comparison, open_page: Any
) -> None:
    page = open_page(one)
    assert page.locator("h1").text_content() == "A odam and B gradcam"
    assert "2 images · 2 objects in both" in page.locator("#summary").text_content()
    assert "1 in A only" not in page.locator("#summary").text_content(), "a bird and a bowl"
    assert listed(page)[:2] == ["cat", "dog"]
    assert sorted(listed(page)[2:]) == ["bat", "bird", "bowl"]
    first = comparison.pairs[0]
    assert page.locator(".row .alike").first.text_content() == f"similarity {first.similarity:.2f}"
    assert page.locator(".row .alike").nth(2).text_content().startswith("only ")
    check(page, 0, comparison.a, 1)
    check(page, 1, comparison.b, 2)
    told = page.locator("#measures").text_content()
    assert f"Similarity{first.similarity:.2f}" in told
    assert "Box overlap1.00" in told
    assert [page.locator(".caption").nth(i).text_content() for i in (0, 1)] == ["Acat 0.70", "Bcat 0.50"]
    page.keyboard.press("ArrowDown")
    check(page, 0, comparison.a, 0)
    check(page, 1, comparison.b, 1)


@pytest.mark.nightly
def test_what_one_side_only_found(one: Path, comparison: Comparison, open_page: Any) -> None:
    page = open_page(one)
    page.locator("#kind").select_option("a")
    assert sorted(listed(page)) == ["bird", "bowl"]
    page.locator("button.row", has_text="bird").click()
    check(page, 0, comparison.a, 2)
    check(page, 1, comparison.b, 0)  # what the other side saw in its place
    assert page.locator(".caption").nth(1).text_content() == "Bnot found; instead bat 0.90"
    page.locator("button.row", has_text="bowl").click()
    page.locator(".stage:nth-child(2)[data-painted='none']").wait_for()
    assert page.locator(".caption").nth(1).text_content() == "Bnot found"
    assert "not found by B" in page.locator("#said").text_content()
    page.locator("#kind").select_option("b")
    assert listed(page) == ["bat"]


@pytest.mark.nightly
def test_a_twin_is_not_said_to_be_missing(seed: int, tmp_path: Path, open_page: Any) -> None:
    image = random_picture(seed, 120, 160)
    a = made(image, 1, ("dog",), APART[:1])
    b = made(image, 2, ("dog", "Dog"), torch.stack([APART[0], APART[0] + 2]))
    write_comparison(tmp_path, [("x.png", detcam.compare(a, b))])
    page = open_page(tmp_path / "compare.html", "#2")
    check(page, 0, a, 0)
    check(page, 1, b, 1)
    assert page.locator(".caption").first.text_content() == "Adog 0.90, paired with another box"
    assert "A pairs it with another box" in page.locator("#said").text_content()


@pytest.mark.nightly
def test_filters_and_orders(one: Path, open_page: Any) -> None:
    page = open_page(one)
    page.locator("#order").select_option("most")
    assert listed(page)[:2] == ["dog", "cat"]
    page.locator("#order").select_option("picture")
    assert listed(page)[-1] == "bowl"
    page.locator("#order").select_option("score")
    assert listed(page)[-2:] == ["cat", "bird"]
    page.locator("#label").select_option(label="cat (1)")
    assert listed(page) == ["cat"]
    page.locator("#kind").select_option("b")
    assert page.locator("#rows").text_content() == "No object passes the filters."
    for key in ("ArrowDown", "1", "s", "Escape"):
        page.keyboard.press(key)
    assert violations(page) == []


@pytest.mark.nightly
def test_keyboard_and_address(one: Path, comparison: Comparison, open_page: Any) -> None:
    page = open_page(one, "#2")
    check(page, 0, comparison.a, 0)
    page.keyboard.press("ArrowUp")
    check(page, 0, comparison.a, 1)
    assert page.url.endswith("#1")
    page.keyboard.press("s")
    check(page, 0, comparison.b, 2)
    check(page, 1, comparison.a, 1)
    assert page.locator(".caption").first.text_content() == "Bcat 0.50"
    assert page.locator("#swap").get_attribute("aria-pressed") == "true"
    page.keyboard.press("s")
    check(page, 0, comparison.a, 1)
    for key, zoom in [("+", "125 %"), ("-", "100 %"), ("+", "125 %"), ("0", "100 %")]:
        page.keyboard.press(key)
        assert page.locator("#whole").text_content() == zoom
    page.keyboard.press("Escape")
    page.locator(".stage[data-painted='none']").first.wait_for()
    page.keyboard.press("2")
    check(page, 0, comparison.a, 0)
    page.locator("button.row").nth(1).focus()
    page.keyboard.press("ArrowDown")
    assert page.evaluate("document.activeElement === document.querySelectorAll('button.row')[2]")


@pytest.mark.nightly
def test_a_click_on_a_box_and_the_heat_of_both_under_the_pointer(
    one: Path, comparison: Comparison, open_page: Any
) -> None:
    page = open_page(one)
    check(page, 0, comparison.a, 1)
    page.locator("#label").select_option(label="cat (1)")
    x, y = middle(page, APART[0].tolist(), (120, 160))
    page.mouse.click(x, y)  # its row is filtered out, so the filters go
    check(page, 0, comparison.a, 0)
    check(page, 1, comparison.b, 1)
    assert len(listed(page)) == 5
    page.mouse.move(x + 1, y)
    where, *heats = page.locator("#value").text_content().split(" · ")
    column, row = (int(part.split()[1]) for part in where.split(", "))
    assert [heat[:2] for heat in heats] == ["A ", "B "]
    for heat, (explanation, number) in zip(heats, [(comparison.a, 0), (comparison.b, 1)], strict=True):
        assert float(heat[2:]) == pytest.approx(float(explanation.heatmaps[number, row, column]), abs=0.06)
    page.locator("#close").check()
    assert int(page.locator("#whole").text_content().split()[0]) == pytest.approx(120, abs=2)  # 50 of 120 rows
    page.mouse.move(5, 5)
    assert page.locator("#value").text_content().startswith("Point at")


@pytest.mark.nightly
def test_each_side_lies_as_its_own_network_saw_it(seed: int, tmp_path: Path, open_page: Any) -> None:
    image = random_picture(seed, 120, 160)
    a = made(image, 1, maps=[torch.randn(40, 40)], geometry=LETTERBOX)
    b = made(image, 1, maps=[torch.randn(7, 5)], boxes=a.boxes)
    write_comparison(tmp_path, [("x.png", detcam.compare(a, b))])
    page = open_page(tmp_path / "compare.html")
    check(page, 0, a, 0)
    check(page, 1, b, 0)


@pytest.mark.nightly
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (1280, "dark"), (600, "dark"), (360, "light")])
def test_every_screen_and_both_themes(width: int, scheme: str, seed: int, tmp_path: Path, open_page: Any) -> None:
    image, labels = random_picture(seed, 120, 160), (*EVIL, "dog", "w" * 80)
    boxes = boxes_in(len(labels), (120, 160))
    a = made(image, len(labels), labels, boxes)
    a.notes[:] = ["zero map: " + "because " * 20] * len(a)
    b = made(image, 4, labels[:4], boxes[:4], model=EVIL[1], method="gradcam")
    pictures = [(f"{'long ' * 30}.png", detcam.compare(a, b)), (EVIL[1], two_sides(seed))]
    write_comparison(tmp_path, pictures, ("w" * 80, EVIL[0]))
    page = open_page(tmp_path / "compare.html", width=width, height=740, color_scheme=scheme, has_touch=width < 700)
    page.locator(".stage:nth-child(2)[data-painted]").wait_for()
    page.locator("summary").click()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, ground[4:-1].split(","))) > 384) == (scheme == "light")
    assert violations(page) == []
    page.locator("#kind").select_option("a")
    page.locator("#close").check()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert violations(page) == []


@pytest.mark.nightly
def test_names_are_text_everywhere(seed: int, tmp_path: Path, open_page: Any) -> None:
    image, boxes = random_picture(seed, 120, 160), boxes_in(len(EVIL), (120, 160))
    a, b = (made(image, len(EVIL), EVIL, boxes, method=name) for name in EVIL[:2])
    a.notes[:] = [EVIL[1]] * len(a)
    found = detcam.compare(a, b)
    sources = [f"dir/{name.replace('/', '_')}" for name in EVIL[:2]]
    write_comparison(tmp_path, [(source, found) for source in sources], (EVIL[3], EVIL[4]))
    page = open_page(tmp_path / "compare.html")
    page.locator(".stage:nth-child(2)[data-painted]").wait_for()
    assert sorted(listed(page)) == sorted(EVIL * 2)
    assert page.locator("h1").text_content() == f"A {EVIL[3]} and B {EVIL[4]}"
    assert page.title().split() == f"{EVIL[3]} / {EVIL[4]} - detcam".split()
    assert EVIL[0] in page.locator("#made").text_content()
    assert EVIL[1] in page.locator("#notes").text_content()
    assert set(page.locator(".row .picture").all_text_contents()) == {source[4:] for source in sources}
    for i, label in enumerate(listed(page)):
        if i:
            page.keyboard.press("ArrowDown")
        assert label in page.locator("#said").text_content()
        assert page.locator(".caption").first.text_content().startswith(f"A{label} ")
    assert page.locator("img").count() == 2, "a picture for each side; no name became an image"
    assert page.locator("script").count() == 2


@pytest.mark.nightly
def test_nothing_found_anywhere(seed: int, tmp_path: Path, open_page: Any) -> None:
    image = random_picture(seed, 120, 160)
    write_comparison(tmp_path, [("x.png", detcam.compare(made(image, 0), made(image, 0)))])
    page = open_page(tmp_path / "compare.html")
    assert page.locator("#rows").text_content() == "Neither side found an object."
    for key in ("ArrowDown", "1", "s", "+", "Escape"):
        page.keyboard.press(key)
    assert violations(page) == []


@pytest.mark.nightly
def test_twenty_pairs_stay_under_three_megabytes(seed: int, tmp_path: Path) -> None:
    """The hardest case: each in a noisy picture of its own, with maps of noise at the network's resolution."""
    generator = np.random.default_rng(seed)

    def noisy(i: int) -> Comparison:
        noise = generator.normal(0, 12, (540, 720, 3))
        image = np.clip(random_picture(seed + i, 540, 720) + noise, 0, 255).astype(np.uint8)
        return detcam.compare(*(made(image, 1, boxes=APART[:1], maps=[torch.rand(640, 640)]) for _ in range(2)))

    write_comparison(tmp_path, ((f"{i}.png", noisy(i)) for i in range(20)))
    written = (tmp_path / "compare.html").stat().st_size
    print(f"{written / 1e6:.2f} MB")
    assert written < 3e6
