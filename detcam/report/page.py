"""Pages: template and data in one file, with a policy that forbids everything else; maps and images as text."""

import base64
import hashlib
import html
import json
import re
import zlib
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

import cv2
import numpy as np

from detcam.geometry import Geometry
from detcam.render import COLORMAPS, colour_table, shrunk
from detcam.saved import PICTURE, Saved, broken

SHARED = ("page.js", "heat.js")
THUMBNAIL = 256  # pixels
THUMBNAIL_CELLS = 40


def page(name: str, title: str, data: dict[str, Any], scripts: tuple[str, ...], styles: tuple[str, ...] = ()) -> str:
    """The page of `assets/NAME.html` and `assets/NAME.css` with its data, which the scripts get as `data`, as text.

    Untrusted text (names of files, classes, models) enters only here: the title is escaped, everything else is JSON in
    a data block, from which the scripts insert it as text. Scripts and further style sheets are names of assets, in
    loading order; `NAME.css` comes last.
    """
    style = "".join(_asset(sheet) for sheet in ("base.css", *styles, f"{name}.css"))
    script = "\n".join(_asset(part) for part in (*SHARED, *scripts))
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_fingerprint(style)}'; script-src '{_fingerprint(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    parts = {
        "policy": policy,
        "title": html.escape(title.encode("utf-8", "replace").decode()),
        "style": style,
        "body": _asset(f"{name}.html").replace("@@tools@@", _asset("tools.html")),
        "data": json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c"),
        "script": script,
    }
    return re.sub(r"@@(\w+)@@", lambda name: parts[name[1]], _asset("page.html"))


def _asset(name: str) -> str:
    return (files("detcam.report") / "assets" / name).read_text(encoding="utf-8")


def _fingerprint(text: str) -> str:
    """The hash that allows an inline block in the policy."""
    return f"sha256-{_text(hashlib.sha256(text.encode()).digest())}"


def spans(geometry: Geometry) -> dict[str, list[float]]:
    """The "span" of the network's input, which a map covers, and the "crop" that it shows, as shares of the image.

    Each is (left, top, right, bottom); the span is below 0 or above 1 where the image was padded.
    """
    placed = zip(geometry.source, geometry.network, geometry.axes, strict=True)
    down, across = (
        {"span": (-offset / gain / source, (network - offset) / gain / source), "crop": (start / source, stop / source)}
        for source, network, (start, stop, gain, offset) in placed
    )
    edges = {name: zip(across[name], down[name], strict=True) for name in down}
    return {name: [round(edge, 9) for pair in pairs for edge in pair] for name, pairs in edges.items()}


def pack_map(raw: np.ndarray, cells: int, geometry: Geometry) -> dict[str, Any]:
    """A raw coarse map [h, w] as 256 grey levels, normalised like `Explanation.heatmaps`: ReLU, minimum to maximum.

    Values that are not finite count as 0; maps of more than `cells` rows or columns are averaged down. Returns "rows",
    "columns"; "low" and "high", the raw values of heat 0 and 1; "data", the levels [rows, columns] uint8, compressed by
    zlib, in base64; and `spans` of the geometry, the placement of what the map covers.
    """
    positive = np.where(np.isfinite(raw), raw, 0).clip(min=0).astype(np.float32)
    low, high = float(positive.min()), float(positive.max())
    heat: np.ndarray = (positive - low) / (high - low) if high > low else np.zeros_like(positive)
    levels = np.rint(shrunk(heat, cells) * 255).astype(np.uint8)
    return {
        "rows": levels.shape[0],
        "columns": levels.shape[1],
        "low": low,
        "high": high,
        "data": _text(zlib.compress(levels.tobytes(), 9)),
        **spans(geometry),
    }


def colour_tables() -> dict[str, str]:
    """Each of `detcam.render.COLORMAPS` as 256 x RGBA bytes in base64, in the same order; opacity as in overlays."""
    opacity = np.rint(255 * np.sqrt(np.arange(256) / 255)).astype(np.uint8)
    return {name: _text(np.column_stack([colour_table(name), opacity]).tobytes()) for name in COLORMAPS}


def jpeg(data: bytes) -> str:
    """A JPEG file as a data URL."""
    return f"data:image/jpeg;base64,{_text(data)}"


def thumbnail(saved: Saved, view: Sequence[float] = (0, 0, 1, 1)) -> str:
    """A small WebP of a saved image, as a data URL; an InputError if `picture.jpg` is damaged.

    `view` is the crop: left, top, right, bottom as shares of the image.
    """
    picture = saved.picture
    image = cv2.imdecode(np.frombuffer(picture, np.uint8), cv2.IMREAD_COLOR) if picture else None
    if image is None:
        raise broken(saved.folder, f"{PICTURE}: not a JPEG file")
    height, width = image.shape[:2]
    left, top, right, bottom = (round(share * side) for share, side in zip(view, (width, height) * 2, strict=True))
    image = image[top : max(bottom, top + 1), left : max(right, left + 1)]
    return webp(image, THUMBNAIL, 60)


def webp(image: np.ndarray, longest: int, quality: int) -> str:
    """An image [H, W, 3] uint8 BGR as a WebP data URL, no side longer than `longest` pixels."""
    data = cv2.imencode(".webp", shrunk(image, longest), [cv2.IMWRITE_WEBP_QUALITY, quality])[1]
    return f"data:image/webp;base64,{_text(data.tobytes())}"


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()
