"""The command line application and its exit codes.

Exit codes: 0; 2 for wrong usage or input, with one line on standard error; 1 for a failure inside.
"""

import os
import sys
import traceback
from collections.abc import Sequence

import typer

from detcam.cli import batch, compare, demo, evaluate, explain, lists, report, video
from detcam.cli.interrupt import CODE, NOTHING, Interrupted
from detcam.errors import DetcamError, plain
from detcam.models.complaints import models_reason

app = typer.Typer(
    name="detcam",
    help="Explain detectors and segmenters: for every object, a heatmap of the pixels that its detection depends on.",
    epilog="Give --debug with any command for the full traceback of an error.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)

for command, epilog in (
    (explain.explain, explain.EPILOG),
    (demo.demo, "Example: `detcam demo --out demo`"),
    (lists.methods, "Example: `detcam methods --json`"),
    (lists.families, "Example: `detcam families`"),
    (lists.layers, "Example: `detcam layers yolov8n.pt --image street.jpg`"),
    (lists.doctor, "Example: `detcam doctor`"),
    (report.report, report.EPILOG),
    (video.video, video.EPILOG),
    (evaluate.evaluate, evaluate.EPILOG),
    (batch.batch, batch.EPILOG),
    (compare.compare, compare.EPILOG),
):
    app.command(epilog=epilog)(command)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its code."""
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: Sequence[str]) -> int:
    """Run a command and return its exit code; errors are a line on standard error."""
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    os.environ.setdefault("YOLO_VERBOSE", "False")  # its banner would mix with the output of detcam
    try:
        with models_reason():
            code = app(list(arguments), standalone_mode=False, prog_name="detcam") or 0
        if code == CODE:  # typer's exit code for Ctrl-C, before a command writes anything
            raise KeyboardInterrupt
        return int(code)
    except (Interrupted, KeyboardInterrupt) as stopped:
        print(f"interrupted: {plain(stopped) or NOTHING}", file=sys.stderr)
        return CODE
    except Exception as error:
        if debug:
            traceback.print_exc()
        if hasattr(error, "format_message"):  # a usage error of typer
            return _fail(f"{error.format_message()} Try 'detcam --help'.", 2)
        if isinstance(error, (DetcamError, ImportError)):
            return _fail(str(error), 2)
        reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        return _fail(f"{reason} (a failure inside detcam; run again with --debug and report it)", 1)


def _fail(message: str, code: int) -> int:
    print(f"error: {plain(' '.join(message.split()))}", file=sys.stderr)
    return code
