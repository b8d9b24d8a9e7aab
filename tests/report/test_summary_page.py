"""The page of what a model looks at, driven as a person would, and its pictures against the maps they show."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from browsing import heat_on, violations
from saved_sets import EVIL, made, save_light
from support import random_picture

from detcam import Explanation
from detcam.analysis.heat_summary import summarise
from detcam.geometry import Geometry
from detcam.render import COLORMAPS
from detcam.report import write_report

PIXELS = """canvas => {
  const copy = new OffscreenCanvas(canvas.width, canvas.height).getContext('2d', { willReadFrequently: true });
  copy.drawImage(canvas, 0, 0);
  let text = '';
  for (const byte of copy.getImageData(0, 0, canvas.width, canvas.height).data) text += String.fromCharCode(byte);
  return btoa(text);
}"""
PLACED = (None, Geometry(source=(120, 160), resized=(240, 320), pad=(40, 0), network=(320, 320)))
# Each with room around it, so that the network's cells are smaller than the boxes.
BOXES = torch.tensor([[10.0, 10, 60, 60], [100, 20, 150, 90], [20, 70, 90, 115], [60.0, 40, 110, 80]])
LABELS = ("dog", "cat", "dog", "bird")


def heat_away() -> list[torch.Tensor]:
    """4 raw maps: the first two far from their boxes, the third in it, the last nowhere."""
    maps = [torch.rand(20, 32) * 0.1 for _ in range(3)] + [torch.zeros(20, 32)]
    maps[0][14:16, 24:26] += 3.0
    maps[1][14:16, 2:5] += 3.0
    maps[2][14:16, 8:12] += 3.0
    return maps


@pytest.fixture
def explained(seed: int, tmp_path: Path) -> list[Explanation]:
    """Three pictures with four objects each."""
    explanations = []
    for i in range(3):
        image = random_picture(seed + i, 120, 160)
        explanations.append(made(image, 4, LABELS, BOXES, PLACED[i % 2], heat_away()))
        save_light(tmp_path / "set" / f"{i}", explanations[-1], f"dir/photo {i}.jpg")
    return explanations


@pytest.fixture
def page_path(explained: list[Explanation], tmp_path: Path) -> Path:
    write_report(tmp_path / "set")
    return tmp_path / "set" / "looks.html"


@pytest.fixture
def judged_path(explained: list[Explanation], tmp_path: Path) -> Path:
    """Of each picture the first dog is right, and a cat and a fox were missed."""
    (tmp_path / "labels").mkdir()
    annotations, images = [], []
    kinds = {"dog": 1, "cat": 2, "fox": 3}
    for i in range(3):
        images.append({"id": i, "file_name": f"photo {i}.jpg"})
        for name, (x1, y1, x2, y2) in (("dog", BOXES[0].tolist()), ("cat", (5, 80, 30, 110)), ("fox", (60, 5, 90, 35))):
            annotations.append({"image_id": i, "category_id": kinds[name], "bbox": [x1, y1, x2 - x1, y2 - y1]})
    categories = [{"id": number, "name": name} for name, number in kinds.items()]
    document = {"images": images, "annotations": annotations, "categories": categories}
    (tmp_path / "labels" / "all.json").write_text(json.dumps(document))
    write_report(tmp_path / "set", labels=tmp_path / "labels" / "all.json")
    return tmp_path / "set" / "looks.html"


def classes(page: Any) -> list[str]:
    """`label count` of every class."""
    return page.locator("button.class .head").evaluate_all(
        "heads => heads.map(head => [head.querySelector('.label').textContent, "
        "head.querySelector('.count').firstChild.textContent].join(' '))"
    )


def cards(page: Any) -> list[str]:
    return page.locator(".card .facts .label").all_text_contents()


@pytest.mark.nightly
def test_figures_and_the_mean_map(page_path: Path, open_page: Any) -> None:
    (summary,) = summarise(page_path.parent)
    statistics = summary.statistics()
    page = open_page(page_path)
    assert page.locator("h1").text_content() == "What the model looks at"
    assert "set · 3 images · hand.pt · odam" in page.locator("#made").text_content()
    assert page.locator("#counts").text_content() == (
        "12 objects · 3 without heat, left out · 6 with more than half of the heat outside the box"
    )
    assert statistics.zones is not None
    assert statistics.quartiles is not None
    shown = page.locator("#shares dd").all_text_contents()
    around = np.sum(statistics.zones) - statistics.zones[1][1]
    for text, share in zip(shown, (statistics.zones[1][1], around, statistics.farther, statistics.others), strict=True):
        assert text == f"{share:.0%}".replace("%", " %") or abs(float(text.split()[0]) / 100 - share) < 0.0051
    assert f"Median {statistics.quartiles[2]:.0%}".replace("%", " %") in page.locator("#spread").text_content()
    heights = page.locator(".bar").evaluate_all("bars => bars.map(bar => bar.getBoundingClientRect().height)")
    assert statistics.histogram is not None
    assert [height > 0 for height in heights] == [count > 0 for count in statistics.histogram]

    page.locator("#mean canvas[data-painted]").wait_for()
    pixels = np.frombuffer(base64.b64decode(page.locator("#mean canvas").evaluate(PIXELS)), np.uint8)
    pixels = pixels.reshape(288, 288, 4)
    assert (pixels[..., 3] == 255).all()
    table = cv2.applyColorMap(np.arange(256, dtype=np.uint8)[None], COLORMAPS["inferno"])[0, :, ::-1].astype(int)
    some = pixels[::6, ::6, None, :3].astype(int)
    levels = np.abs(some - table).sum(axis=3).argmin(axis=2)
    assert statistics.mean is not None
    mean = (statistics.mean - statistics.mean.min()) / np.ptp(statistics.mean)
    expected = cv2.resize(mean, (288, 288), interpolation=cv2.INTER_LINEAR)[::6, ::6]
    assert np.abs(levels / 255 - expected).max() < 0.02
    whole, box = (page.locator(f"#mean {name}").bounding_box() for name in ("canvas", ".mark"))
    assert (box["x"] - whole["x"]) / whole["width"] == pytest.approx(1 / 3, abs=0.01)
    assert box["height"] / whole["height"] == pytest.approx(1 / 3, abs=0.01)


@pytest.mark.nightly
def test_pictures_show_heat_and_box_where_they_are(
    explained: list[Explanation], page_path: Path, open_page: Any
) -> None:
    """A small picture is not resized: what the canvas shows is a cut of the heatmap."""
    page = open_page(page_path)
    found = json.loads(page.locator("#data").text_content())["ways"][0]["groups"]["found"]["cards"]
    assert len(found) == 6
    by_name = {f"photo {i}.jpg": explanation for i, explanation in enumerate(explained)}
    for place, card in enumerate(found):
        item = page.locator(".card").nth(place)
        item.scroll_into_view_if_needed()
        page.locator(f".card:nth-child({place + 1})[data-painted]").wait_for()
        explanation = by_name[card["picture"]["name"]]
        i = LABELS.index(card["object"]["label"])
        x, y = (round(float(explanation.boxes[i, axis]) - card["object"]["box"][axis]) for axis in (0, 1))
        width, height = card["picture"]["width"], card["picture"]["height"]
        expected = explanation.heatmaps[i].numpy()[y : y + height, x : x + width]
        assert expected.max() == pytest.approx(1, abs=0.05), "the hottest place is in the picture"
        shown = heat_on(item.locator("canvas"))
        assert shown.shape == expected.shape == (height, width)
        assert np.abs(shown - expected).max() * 255 <= 2.5
        frame, mark = (item.locator(f".{name}").bounding_box() for name in ("frame", "mark"))
        x1, y1, x2, _ = explanation.boxes[i].tolist()
        assert mark["x"] - frame["x"] == pytest.approx((x1 - x) / width * frame["width"], abs=1)
        assert mark["y"] - frame["y"] == pytest.approx((y1 - y) / height * frame["height"], abs=1)
        assert mark["width"] == pytest.approx((x2 - x1) / width * frame["width"], abs=1)


@pytest.mark.nightly
def test_a_class_is_chosen_by_click_key_and_list(page_path: Path, open_page: Any) -> None:
    page = open_page(page_path)
    assert classes(page) == ["dog 6", "bird 3", "cat 3"]
    assert sorted(cards(page)) == ["cat"] * 3 + ["dog"] * 3
    page.locator("button.class", has_text="cat").click()
    assert page.locator("#whole-title").text_content() == "cat"
    assert cards(page) == ["cat"] * 3
    assert page.locator("button.class[aria-pressed=true] .label").all_text_contents() == ["cat"]
    assert page.locator("#label option:checked").text_content() == "cat (3)"
    page.locator("#label").select_option(label="dog (6)")
    assert page.locator("#counts").text_content().startswith("6 objects · 3 with more than half")
    page.locator("button.class", has_text="bird").focus()
    page.keyboard.press("Enter")
    assert page.locator("#whole").is_hidden()
    assert cards(page) == []
    assert "There are none" in page.locator("#cards-said").text_content()
    assert page.evaluate("document.activeElement.textContent").startswith("bird"), "the focus stays"
    page.keyboard.press("Enter")
    assert page.locator("#whole-title").text_content() == "All classes"
    page.locator("#order").select_option("surroundings")
    assert classes(page) == ["cat 3", "dog 6", "bird 3"]
    before = page.locator("#mean canvas").evaluate("canvas => canvas.toDataURL()")
    page.locator("#colours").select_option("viridis")
    page.locator("#mean canvas[data-painted]").wait_for()
    assert page.locator("#mean canvas").evaluate("canvas => canvas.toDataURL()") != before


@pytest.mark.nightly
def test_many_classes_are_shown_when_asked_for(seed: int, tmp_path: Path, open_page: Any) -> None:
    for i in range(2):
        labels = tuple(f"kind {j:02d}" for j in range(15))
        save_light(tmp_path / f"{i}", made(random_picture(seed + i, 120, 160), 15, labels), f"{i}.jpg")
    write_report(tmp_path)
    page = open_page(tmp_path / "looks.html")
    assert page.locator("button.class").count() == 12
    page.locator("#more").focus()
    page.keyboard.press("Enter")
    assert classes(page) == [f"kind {j:02d} 2" for j in range(15)]
    assert page.locator("#more").is_hidden()
    assert page.evaluate("document.activeElement.querySelector('.label').textContent") == "kind 12"


@pytest.mark.nightly
def test_links_lead_to_the_object_and_back(page_path: Path, open_page: Any) -> None:
    page = open_page(page_path.parent / "index.html")
    page.locator("#summary").click()
    page.locator(".card a", has_text="cat").first.focus()
    page.keyboard.press("Enter")
    page.locator(".stage[data-painted='2']").wait_for()
    page.locator("#index").click()
    page.locator("#summary").click()
    page.locator("#back").click()
    assert page.locator("h1").text_content() == "set"


@pytest.mark.nightly
def test_right_wrong_and_missed(judged_path: Path, open_page: Any) -> None:
    page = open_page(judged_path)
    assert page.locator("#kind option").all_text_contents() == [
        "all detections (12)", "right: they match a label (3)", "false positives: they match no label (9)",
        "missed: labels that no object matches (6)",
    ]  # fmt: skip
    page.locator("#kind").select_option("right")
    assert cards(page) == ["dog"] * 3
    page.locator("#kind").select_option("wrong")
    assert sorted(cards(page)) == ["bird"] * 3 + ["cat"] * 3 + ["dog"] * 3
    page.locator("#label").select_option(label="bird (3)")
    page.locator("#kind").select_option("missed")
    assert page.locator("#label option:checked").text_content() == "all", "no bird was missed"
    assert page.locator("#counts").text_content() == (
        "6 labels · 6 without a map, because the model was not asked about them"
    )
    assert classes(page) == ["cat 3", "fox 3"]
    assert sorted(cards(page)) == ["cat"] * 3 + ["fox"] * 3
    assert page.locator("#whole").is_hidden()
    page.locator(".card .mark").nth(5).wait_for(state="attached")
    assert page.locator(".card .facts").first.text_content().count("no map") == 1


@pytest.mark.nightly
def test_settings_can_be_switched(seed: int, tmp_path: Path, open_page: Any) -> None:
    for i in range(2):
        image = random_picture(seed + i, 120, 160)
        for method in ("odam", "gradcam"):
            labels = ("dog",) if method == "odam" else ("cat",)
            save_light(tmp_path / f"{i}{method}", made(image, 1, labels, method=method), f"{i}.jpg")
    write_report(tmp_path)
    page = open_page(tmp_path / "looks.html")
    options = page.locator("#way option")
    assert [text.split(" · ")[1] for text in options.all_text_contents()] == ["gradcam", "odam"]
    assert classes(page) == ["cat 2"]
    page.locator("#way").select_option("1")
    assert classes(page) == ["dog 2"]
    assert "odam" in page.locator("#made").text_content()


@pytest.mark.nightly
def test_names_are_text_here_too(seed: int, tmp_path: Path, open_page: Any) -> None:
    root = tmp_path / "<i>set'\"🦊שלום#%"
    for i, name in enumerate(EVIL):
        maps = [torch.zeros(20, 32)]
        maps[0][18, 30] = 1.0
        explanation = made(random_picture(seed, 120, 160), 1, (name,), BOXES[:1], maps=maps, model=EVIL[1])
        explanation.notes[0] = name
        save_light(root / f"{i} {name.replace('/', '_')}", explanation, f"d\\{name}")
    write_report(root)
    page = open_page(root / "looks.html")
    assert page.title() == f"What the model looks at - {root.name} - detcam"
    assert root.name in page.locator("#made").text_content()
    assert EVIL[1] in page.locator("#made").text_content()
    assert set(page.locator("button.class .label").all_text_contents()) == set(EVIL)
    assert set(cards(page)) == set(EVIL)
    assert set(page.locator(".card .note bdi").all_text_contents()) == set(EVIL)
    assert page.locator("script").count() == 2
    page.locator("button.class").nth(2).click()
    assert page.locator("#whole-title").text_content() == page.locator("button.class .label").nth(2).text_content()
    assert page.locator(".card").count() == 1


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("width", "scheme", "kind"),
    [(1280, "light", "found"), (390, "dark", "found"), (390, "light", "missed"), (1280, "dark", "wrong")],
)
def test_it_is_accessible(width: int, scheme: str, kind: str, judged_path: Path, open_page: Any) -> None:
    page = open_page(judged_path, width=width, color_scheme=scheme)
    page.locator("#kind").select_option(kind)
    page.locator(".reading summary").click()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert violations(page) == []


@pytest.mark.nightly
def test_pictures_without_objects(seed: int, tmp_path: Path, open_page: Any) -> None:
    for i in range(2):
        save_light(tmp_path / f"{i}", made(random_picture(seed + i, 50, 100), 0), f"{i}.jpg")
    write_report(tmp_path)
    page = open_page(tmp_path / "looks.html")
    assert page.locator("#counts").text_content() == "There are none."
    assert page.locator("#by-class").is_hidden()
    assert violations(page) == []


@pytest.mark.nightly
def test_maps_that_cannot_show_it_say_nothing_of_evidence_outside(seed: int, tmp_path: Path, open_page: Any) -> None:
    """Maps of a few cells inside the boxes, as at the feature level that an object is read from."""
    maps = [torch.zeros(20, 32) for _ in range(4)]
    for (x1, y1, x2, y2), raw in zip((BOXES / 5).round().int().tolist(), maps, strict=True):
        raw[(y1 + y2) // 2, (x1 + x2) // 2] = 1.0
    for name in "ab":
        save_light(tmp_path / name, made(random_picture(seed, 100, 160), 4, LABELS, BOXES, maps=maps), f"{name}.jpg")
    write_report(tmp_path)
    page = open_page(tmp_path / "looks.html")
    assert "8 whose maps cannot show heat around the box" in page.inner_text("#counts")
    assert "more than half" not in page.inner_text("#counts")
    assert "--view why" in page.inner_text("#refused")
    assert not page.is_visible("#shares")
    assert not page.is_visible("#bars")
    assert page.is_visible("#mean canvas")
    assert page.inner_text("#cards-said") == "These maps cannot tell."
    assert "cannot tell" in page.inner_text("#classes")
    assert not violations(page)
