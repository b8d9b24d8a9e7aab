"""Titles in any script, and titles that do not fit; the pictures of ASCII titles are OpenCV's."""

import math
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import ImageFont

from detcam.render import draw_box_on, labels
from detcam.render.labels import shortened, typeset

CYAN = (64, 224, 255)


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    labels._font_of.cache_clear()
    yield
    labels._font_of.cache_clear()


@pytest.fixture
def no_fonts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(labels, "font_files", list)


def titled(title: str, width: int = 900, box: tuple[float, ...] = (20, 60, 300, 180)) -> np.ndarray:
    picture = np.zeros((200, width, 3), np.uint8)
    draw_box_on(picture, box, title)
    return picture


def bar_of(picture: np.ndarray) -> np.ndarray:
    """Columns of the filled bar above the box."""
    return np.flatnonzero((picture[45:55] == CYAN).all(axis=2).any(axis=0))


@pytest.mark.parametrize("title", ["dog 0.90", "traffic light 0.35", "a?b 1.00"])
def test_an_ascii_title_is_drawn_by_opencv(title: str) -> None:
    expected = np.zeros((200, 900, 3), np.uint8)
    scale, thickness = 1100 / 2400, 2
    cv2.rectangle(expected, (20, 60), (299, 179), CYAN, thickness, cv2.LINE_AA)
    (width, height), below = cv2.getTextSize(title, cv2.FONT_HERSHEY_SIMPLEX, scale, thickness)
    top = 60 - (height + below + 4)
    cv2.rectangle(expected, (20, top), (20 + width + 6, 60), CYAN, cv2.FILLED)
    place = (23, top + height + 2)
    cv2.putText(expected, title, place, cv2.FONT_HERSHEY_SIMPLEX, scale, (0, 0, 0), thickness, cv2.LINE_AA)
    assert np.array_equal(titled(title), expected)


@pytest.mark.parametrize(
    "name", ["汽车", "سيارة", "машина", "🚗", "रेल", "é", "two\nlines", "\u202eevil", "\udcff", "\x1b[1m"]
)
def test_no_character_is_lost(name: str) -> None:
    """Each is drawn by a font that has it, or escaped: never a question mark, and different names look different."""
    font, text = typeset(f"{name} 0.90")
    assert "?" not in text
    escaped = "".join(ascii(c)[1:-1] if ascii(c)[1:-1] in text and c not in text else c for c in name)
    assert text == f"{escaped} 0.90"
    assert text.isprintable()
    picture, other = titled(f"{name} 0.90"), titled(f"{'?' * len(name)} 0.90")
    assert not np.array_equal(picture, other)
    for c in "" if text.isascii() or font is None else set(name):
        face = ImageFont.truetype(str(font), 40)
        assert bytes(face.getmask(c)) != bytes(face.getmask("\U0010ffff"))


def test_without_a_font_there_are_escapes(no_fonts: None) -> None:
    assert typeset("سيارة 0.90") == (None, "\\u0633\\u064a\\u0627\\u0631\\u0629 0.90")
    assert typeset("汽车 0.9", opencv=False) == (None, "\\u6c7d\\u8f66 0.9")
    assert np.array_equal(titled("🚗 0.9"), titled("\\U0001f697 0.9"))


def test_a_font_of_the_system_draws_arabic_from_right_to_left(monkeypatch: pytest.MonkeyPatch) -> None:
    dejavu = Path(pytest.importorskip("matplotlib").get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    monkeypatch.setattr(labels, "font_files", lambda: [dejavu.with_name("cmr10.ttf"), dejavu])
    font, text = typeset("سيارة 0.90")
    if not labels.features.check("raqm"):
        pytest.skip("Pillow without raqm does not join Arabic letters: they are escaped")
    assert (font, text) == (dejavu, "سيارة 0.90")
    picture = titled(text)
    face = ImageFont.truetype(str(dejavu), round(31 * 1100 / 2400))
    assert bar_of(picture)[-1] == pytest.approx(20 + math.ceil(face.getlength(text)) + 6, abs=1)
    assert (picture[45:55] < 60).all(axis=2)[:, 22:60].any(), "black letters"
    assert typeset("سيارة 🚗 0.9") == (dejavu, "سيارة \\U0001f697 0.9"), "the font with most of the characters"


@pytest.mark.parametrize("name", ["a very long name of a class " * 4, "很长的类名" * 30, "سيارة كبيرة جدا " * 20])
@pytest.mark.parametrize("width", [900, 250, 60, 5])
def test_a_title_stays_inside_the_picture(name: str, width: int) -> None:
    font, text = typeset(f"{name} 0.90")
    picture = titled(f"{name} 0.90", width, (width / 2, 60, width, 180))
    bar = bar_of(picture)
    if width == 5:
        assert len(bar) <= 5
        return
    letters = np.flatnonzero((picture[45:55, bar[0] : bar[-1]].max(axis=2) < 120).any(axis=0)) + bar[0]
    assert bar[0] < letters[0]
    assert letters[-1] < width - 1
    scale = max((200 + width) / 2400, 0.4)
    if font is None and text.isascii():
        seen = shortened(text, lambda cut: cv2.getTextSize(cut, 0, scale, 1)[0][0] + 6 <= width)
        assert seen.endswith("0.90")
        assert seen == text or "... " in seen or seen == "0.90"
        assert np.array_equal(picture, titled(seen, width, (width / 2, 60, width, 180)))


@pytest.mark.parametrize(
    ("room", "expected"), [(12, "umbrella 0.9"), (11, "umbr... 0.9"), (8, "u... 0.9"), (7, "0.9"), (3, "0.9"), (2, "")]
)
def test_the_score_is_the_last_to_go(room: int, expected: str) -> None:
    assert shortened("umbrella 0.9", lambda cut: len(cut) <= room) == expected


def test_the_title_of_a_box_below_the_picture_is_inside() -> None:
    picture = np.zeros((40, 300, 3), np.uint8)
    draw_box_on(picture, (10, 8, 50, 39), "dog 0.90")
    rows = np.flatnonzero((picture == CYAN).all(axis=2).sum(axis=1) > 30)
    assert len(rows) > 9
    assert rows[-1] < 39


def test_a_name_of_any_length_is_shortened_quickly() -> None:
    asked: list[int] = []

    def fits(cut: str) -> bool:
        asked.append(len(cut))
        return len(cut) <= 30

    assert shortened("x" * 200_000 + " 0.9", fits) == "x" * 23 + "... 0.9"
    assert len(asked) < 25
