"""Row store: a JSON file per image, so that a killed run can resume."""

from __future__ import annotations

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

    Files are written under a temporary name and renamed, so no file is ever incomplete.

    Args:
        folder: created if it does not exist.
        settings: of the run, as plain JSON values; all rows share them.
        resume: keep the rows of an earlier run.

    Raises:
        InputError: if the folder has rows and `resume` is False, or rows of other settings.
        OutputError: if the folder cannot be written.
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
        changed = [
            f"{key} was {json.dumps(earlier.get(key))}, now {json.dumps(settings.get(key))}"
            for key in sorted(earlier.keys() | settings.keys())
            if earlier.get(key) != settings.get(key)
        ]
        if changed:
            raise InputError(
                f"{self.folder} was made with other settings ({'; '.join(changed)}): repeat them, or change --out"
            )

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


def write(path: Path, document: Any) -> None:
    """Write JSON atomically."""
    write_whole(path, (json.dumps(document, ensure_ascii=False, indent=1) + "\n").encode())
