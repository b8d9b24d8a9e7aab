"""`detcam report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress

from detcam.cli.interrupt import interruptible

EPILOG = """
Examples:

`detcam explain street.jpg --model yolov8n.pt --out maps --report`

`detcam report maps`

`detcam report maps --labels labels`
"""


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command(epilog=EPILOG)(report)


def report(
    folder: Annotated[Path, typer.Argument(help="What `detcam explain` wrote, or a folder of it.", show_default=False)],
    labels: Annotated[
        Path | None,
        typer.Option(
            help="COCO's .json, or a folder of YOLO's .txt or of .png masks: tell right from wrong and missed."
        ),
    ] = None,
) -> None:
    """Write pages to look at heatmaps in a browser: one file for each picture, and an index for several.

    They need no server and no network. Explanations of one picture by several methods, layers or targets share a page.
    For several pictures, or with labels, looks.html and looks.json say what the model looks at over all of them.
    """
    from detcam.report import write_report
    from detcam.report.write import LOOKS

    console = Console(highlight=False, soft_wrap=True)
    bar = Progress(console=console, transient=True, disable=not console.is_terminal)
    with interruptible(lambda: f"the pages that {folder} holds are whole: the same command writes them all"), bar:
        task = bar.add_task("writing pages", total=None)
        page = write_report(
            folder, progress=lambda done, total: bar.update(task, completed=done, total=total), labels=labels
        )
    console.print(f"Open {page}", markup=False)
    if labels is not None:
        console.print(f"Right, wrong and missed: {folder / LOOKS}", markup=False)
