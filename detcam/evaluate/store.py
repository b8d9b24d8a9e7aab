"""Row store: a JSON file per image, so that a killed run can resume."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

from detcam.errors import InputError, OutputError
from detcam.files import write_whole

SETTINGS, ROWS = "settings.json", "rows"


class Store:
    """A folder with `settings.json` and `rows/PICTURE.json`.

    Files are written under a temporary name and renamed, so no file is ever incomplete. All rows share the settings,
    plain JSON values. Raises an InputError if the folder has rows and `resume` is False, or rows of other settings; an
    OutputError if it cannot be written.
    """

    def __init__(self, folder: Path, settings: dict[str, Any], resume: bool) -> None:
        self.folder = folder
        settings = json.loads(json.dumps(settings))
        try:
            (folder / ROWS).mkdir(parents=True, exist_ok=True)
            if self.done():
                self._check(settings, resume)
            else:
                write(folder / SETTINGS, settings)
        except OSError as error:
            raise OutputError(f"{folder} cannot be written ({error}): choose another --out") from None

    def _check(self, settings: dict[str, Any], resume: bool) -> None:
        if not resume:
            raise InputError(
                f"{self.folder} holds {len(self.done())} rows of an earlier run: add --resume to continue it, or "
                "choose another --out"
            )
        path = self.folder / SETTINGS
        earlier = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        if changed := differences(earlier, settings):
            raise InputError(f"{self.folder} was made with other settings ({changed}): repeat them, or change --out")

    def done(self) -> set[str]:
        """The names of the images that have a row."""
        return {row["picture"] for row in self.rows()}

    def add(self, row: dict[str, Any]) -> None:
        """Write the row of an image."""
        write(self.folder / ROWS / f"{quote(row['picture'], safe='')}.json", row)

    def rows(self) -> Iterator[dict[str, Any]]:
        """All rows, by file name."""
        for path in sorted((self.folder / ROWS).glob("*.json")):
            yield json.loads(path.read_text(encoding="utf-8"))


def differences(was: dict[str, Any], now: dict[str, Any]) -> str:
    """`NAME was VALUE, now VALUE; ...` for the settings that differ; empty if none does."""
    return "; ".join(
        f"{name} was {json.dumps(was.get(name))}, now {json.dumps(now.get(name))}"
        for name in sorted(was.keys() | now.keys())
        if was.get(name) != now.get(name)
    )


def write(path: Path, document: Any) -> None:
    """Write JSON atomically."""
    write_whole(path, (json.dumps(document, ensure_ascii=False, indent=1) + "\n").encode())
