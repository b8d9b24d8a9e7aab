"""`detcam report`."""

from pathlib import Path
from typing import Annotated

import typer

from detcam.cli.console import console, examples, progress
from detcam.cli.interrupt import interruptible

EPILOG = examples(
    "detcam explain street.jpg --model yolov8n.pt --out maps --report",
    "detcam report maps",
    "detcam report maps --labels labels",
)


def report(
    folder: Annotated[Path, typer.Argument(help="Output of `detcam explain`, or a folder of it.", show_default=False)],
    labels: Annotated[
        Path | None,
        typer.Option(
            help="A COCO .json, or a folder of YOLO .txt files or of .png masks: tell right, wrong and missed apart."
        ),
    ] = None,
) -> None:
    """Write HTML pages of heatmaps: a file for each image, and an index of several images.

    They need no server and no network. Explanations of an image by several methods, layers or targets share a page.
    For several images, or with labels, looks.html and looks.json say what the model looks at over all of them.
    """
    from detcam.report import write_report
    from detcam.report.write import SUMMARY

    out = console()
    finished = f"the pages that {folder} holds are complete: the same command writes all of them"
    with interruptible(lambda: finished), progress(out) as bars:
        page = write_report(folder, progress=bars("writing pages"), labels=labels)
    out.print(f"Open {page}", markup=False)
    if labels is not None:
        out.print(f"Right, wrong and missed: {folder / SUMMARY}", markup=False)
