"""Labels: the font for a title in any script, and titles shortened to the space that there is."""

import os
from bisect import bisect_left
from collections.abc import Callable
from functools import cache, lru_cache
from importlib.util import find_spec
from pathlib import Path
from unicodedata import bidirectional

import cv2
import numpy as np
from PIL import ImageFont, features

from detcam.errors import plain

FONT = cv2.FONT_HERSHEY_SIMPLEX
FOLDERS = (
    "/usr/share/fonts", "/usr/local/share/fonts", "~/.fonts", "~/.local/share/fonts", "/Library/Fonts",
    "/System/Library/Fonts", "~/Library/Fonts", "%WINDIR%/Fonts", "%LOCALAPPDATA%/Microsoft/Windows/Fonts",
)  # fmt: skip


def typeset(text: str, opencv: bool = True) -> tuple[Path | None, str]:
    """The font for a text, and the text with an escape, e.g. `\\u6c7d`, for each character that the font lacks.

    The font is the first that has all characters, else the first with most of them: None is OpenCV's, which has ASCII
    and from version 5 more; then the font files of the system and of matplotlib. Without `opencv`, None has ASCII only.
    """
    text = plain(text)
    font, missing = _font_of("".join(sorted({c for c in text if not c.isascii()})), opencv)
    return font, "".join(ascii(c)[1:-1] if c in missing else c for c in text)


@lru_cache(1024)
def _font_of(characters: str, opencv: bool) -> tuple[Path | None, str]:
    """The font for the characters, and those that it lacks."""
    font, missing = None, _lacking(None, characters) if opencv else characters
    for file in font_files() if missing else ():
        lacking = _lacking(file, characters)
        if len(lacking) < len(missing):
            font, missing = file, lacking
        if not missing:
            break
    return font, missing


@cache
def font_files() -> list[Path]:
    """The font files of the system and of matplotlib; short names, mostly of upright fonts, come first."""
    matplotlib = find_spec("matplotlib")
    places = [os.path.expanduser(os.path.expandvars(folder)) for folder in FOLDERS]
    places += [f"{place}/mpl-data/fonts/ttf" for place in (matplotlib and matplotlib.submodule_search_locations) or ()]
    files = [file for place in places for kind in ("ttf", "otf", "ttc") for file in Path(place).rglob(f"*.{kind}")]
    return sorted(files, key=lambda file: ("Sans" not in file.stem, len(file.stem), str(file)))


def _lacking(font: Path | None, characters: str) -> str:
    """The characters that a font cannot draw: they look like one that no font has."""
    leftward = () if font is not None and features.check("raqm") else ("R", "AL")  # without it, letters run backwards
    try:
        face = None if font is None else ImageFont.truetype(str(font), 24, layout_engine=ImageFont.Layout.BASIC)

        def stamp(text: str) -> bytes:
            canvas = np.zeros((40, 160), np.uint8)
            return bytes(face.getmask(text)) if face else cv2.putText(canvas, text, (9, 30), FONT, 1, 255).tobytes()

        if stamp("a") == stamp("b"):
            return characters  # a font without letters, or of placeholders such as LastResort
        absent = {stamp("\U0010ffff"), *(stamp("?" * n) for n in (1, 2, 3, 4))}  # OpenCV 4 draws one for each byte
        return "".join(c for c in characters if bidirectional(c) in leftward or stamp(c) in absent)
    except (OSError, ValueError):  # a damaged font, or a bitmap font of another size
        return characters


def shortened(title: str, fits: Callable[[str], bool]) -> str:
    """A title "name score"; if it does not fit, the name is cut with an ellipsis, or left out with the score last."""
    if fits(title):
        return title
    name, _, score = title.rpartition(" ")

    def cut(length: int) -> str:
        return f"{name[:length].rstrip()}... {score}"

    longest = bisect_left(range(1, len(name)), True, key=lambda length: not fits(cut(length)))
    return cut(longest) if longest else score if fits(score) else ""
