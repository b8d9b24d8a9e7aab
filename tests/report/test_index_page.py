"""The page of many pictures: cards, filters, order, and speed with 2,000 objects."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from browsing import heat_on, violations
from saved_sets import EVIL, made, save_light, save_many
from support import random_picture

from detcam.report import write_report


@pytest.fixture
def many(seed: int, tmp_path: Path) -> Path:
    """4 pictures with 5 objects each, and one without any."""
    save_many(tmp_path / "set", 4, 5, seed)
    save_light(tmp_path / "set" / "none", made(random_picture(seed, 50, 100), 0), "nothing.jpg")
    return write_report(tmp_path / "set")


def cards(page: Any) -> list[str]:
    """`label score energy` of every card."""
    return page.locator(".card").evaluate_all(
        "cards => cards.map(card => [...card.querySelectorAll('.label, .facts > .score, .facts > .quiet:not(:last-child)')]"
        ".map(part => part.textContent).join(' '))"
    )


@pytest.mark.nightly
def test_cards_and_filters(many: Path, open_page: Any) -> None:
    page = open_page(many)
    status = page.locator("#count")
    assert page.locator("#all").text_content() == "20 objects in 5 images"
    assert page.locator(".card").count() == 21
    scores, shares = np.linspace(0.9, 0.5, 5), np.arange(5) / 5
    expected = [
        f"{'odd' if i % 2 else 'even'} score {scores[i]:.2f} {shares[i]:.0%}".replace("%", " % of the heat in its box")
        for i in range(5)
    ]
    assert cards(page) == [*expected * 4, "no object"]

    page.locator("#label").select_option(label="odd (8)")
    assert status.text_content() == "8 objects in 4 images"
    assert cards(page) == [expected[1], expected[3]] * 4
    page.locator("#score-high").fill("0.65")
    assert cards(page) == [expected[3]] * 4
    page.locator("#energy-high").fill("50")
    assert cards(page) == []
    page.locator("#reset").click()
    page.locator(".card").nth(20).wait_for()
    page.locator("#energy-low").fill("30")
    page.locator("#energy-high").fill("70")
    assert cards(page) == [expected[2], expected[3]] * 4
    page.locator("#energy-low").fill("")
    assert cards(page) == expected[:4] * 4, "an empty field is no limit"

    page.locator("#reset").click()
    page.locator(".card").nth(20).wait_for()
    page.locator("#order").select_option("inside")
    assert cards(page) == [text for text in reversed(expected) for _ in range(4)] + ["no object"]
    page.locator("#order").select_option("weak")
    assert cards(page)[:4] == [expected[4]] * 4


@pytest.mark.nightly
def test_a_card_leads_to_its_object_and_back(many: Path, open_page: Any) -> None:
    page = open_page(many)
    page.locator(".card a").nth(7).focus()
    page.keyboard.press("Enter")
    page.locator(".stage[data-painted='3']").wait_for()
    assert page.locator("h1").text_content() == "photo 0001.jpg"
    page.locator("#index").click()
    page.locator(".card").first.wait_for()
    page.locator(".card a").last.click()
    page.locator(".stage[data-painted='none']").wait_for()


@pytest.mark.nightly
def test_thumbnails_show_heat_and_box(seed: int, tmp_path: Path, open_page: Any) -> None:
    image = random_picture(seed, 300, 400)
    explanation = made(image, 2)
    explanation.save(tmp_path / "a", "a.jpg")
    made(random_picture(seed, 500, 90), 1).save(tmp_path / "b", "b.jpg")
    page = open_page(write_report(tmp_path))
    page.locator(".card[data-painted]").nth(2).wait_for()
    for i in range(2):
        shown = heat_on(page.locator(".card canvas").nth(i))
        assert shown.shape == (192, 256)
        expected = explanation.render(size=(192, 256), dtype=torch.float32)[i].numpy()
        assert np.abs(shown - expected).max() * 255 <= 2.5
        frame, mark = (page.locator(f".card .{name}").nth(i).bounding_box() for name in ("frame", "mark"))
        x1, y1, x2, y2 = explanation.boxes[i].tolist()
        assert frame["width"] / frame["height"] == pytest.approx(4 / 3, rel=0.01)
        assert mark["x"] - frame["x"] == pytest.approx(x1 / 400 * frame["width"], abs=1)
        assert mark["y"] - frame["y"] == pytest.approx(y1 / 300 * frame["height"], abs=1)
        assert mark["width"] == pytest.approx((x2 - x1) / 400 * frame["width"], abs=1)
        assert mark["height"] == pytest.approx((y2 - y1) / 300 * frame["height"], abs=1)
    tall = page.locator(".card .frame").nth(2).bounding_box()
    assert tall["width"] / tall["height"] == pytest.approx(90 / 500, rel=0.02)
    before = page.locator(".card canvas").first.evaluate("canvas => canvas.toDataURL()")
    page.locator("#colours").select_option("viridis")
    page.locator(".card[data-painted]").nth(2).wait_for()
    assert page.locator(".card canvas").first.evaluate("canvas => canvas.toDataURL()") != before


@pytest.mark.nightly
def test_names_are_text_in_the_index_too(seed: int, tmp_path: Path, open_page: Any) -> None:
    root = tmp_path / "<i>set'\"🦊שלום#%"
    for i, name in enumerate(EVIL):
        save_light(root / f"{i} {name.replace('/', '_')}", made(random_picture(seed, 60, 80), 1, (name,)), f"d\\{name}")
    page = open_page(write_report(root))
    assert page.locator("h1").text_content() == root.name
    assert page.title() == f"{root.name} - detcam"
    assert page.locator(".card .label").all_text_contents() == list(EVIL)
    assert page.locator("#label option").count() == len(EVIL) + 1
    names = page.locator(".card .facts > .quiet:last-child").all_text_contents()
    assert names == [name.replace("\\", "/").rpartition("/")[2] for name in EVIL]
    assert page.locator("script").count() == 2
    for i in (0, 3, 4):
        page.locator(".card a").nth(i).click()
        page.locator(".stage[data-painted='1']").wait_for()
        assert page.locator(".object .label").text_content() == EVIL[i]
        page.locator("#index").click()
        page.locator(".card").first.wait_for()


@pytest.mark.nightly
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark"), (390, "light"), (1280, "dark")])
def test_the_index_is_accessible(width: int, scheme: str, many: Path, open_page: Any) -> None:
    page = open_page(many, width=width, color_scheme=scheme)
    page.locator(".card[data-painted]").first.wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert violations(page) == []


def busy(session: Any) -> float:
    """Seconds of processor time that the page's main thread has taken so far."""
    metrics = session.send("Performance.getMetrics")["metrics"]
    return next(metric["value"] for metric in metrics if metric["name"] == "TaskDuration")


@pytest.mark.nightly
def test_two_thousand_objects_open_in_two_seconds(seed: int, tmp_path: Path, open_page: Any) -> None:
    save_many(tmp_path, 100, 20, seed)
    path = write_report(tmp_path)
    page = open_page(path)
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable", {"timeDomain": "threadTicks"})
    page.reload()
    page.locator(".card[data-painted]").nth(7).wait_for()
    opened = busy(session)
    page.locator("#label").select_option(label="odd (1000)")
    page.locator("#order").select_option("outside")
    page.get_by_text("1,000 objects").wait_for()
    filtered = busy(session) - opened
    assert page.locator(".card").count() < 200, "cards are made as they are needed"
    print(f"{path.stat().st_size / 1e6:.1f} MB, open in {opened:.2f} s, filtered in {filtered:.2f} s of processor time")
    assert 0 < opened < 2
    assert 0 < filtered < 2
    for _ in range(30):
        page.mouse.move(600, 500)
        page.mouse.wheel(0, 3000)
        page.wait_for_timeout(20)
    page.locator(".card").nth(200).wait_for(state="attached")
