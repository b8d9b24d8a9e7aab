"""Page template: styles, scripts and data in one file, with a policy that forbids everything else."""

import base64
import hashlib
import html
import json
import re
from importlib.resources import files
from typing import Any

SHARED = ("page.js", "heat.js")


def page(name: str, title: str, data: dict[str, Any], scripts: tuple[str, ...], styles: tuple[str, ...] = ()) -> str:
    """The page `name` with its data, as text.

    Untrusted text (names of files, classes, models) enters only here: the title is escaped, everything else is JSON in
    a data block, from which the scripts insert it as text.

    Args:
        name: stem of `assets/NAME.html` and `assets/NAME.css`.
        title: title of the window.
        data: the value of `data` in the scripts.
        scripts: names of assets, in loading order.
        styles: names of further style sheets, loaded before `NAME.css`.
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
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
