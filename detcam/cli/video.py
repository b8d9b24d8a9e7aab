"""`detcam video`."""

import json
import sys
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any

import typer

from detcam.cli.console import AddBar, console, examples, progress
from detcam.cli.interrupt import Interrupted, stop_on_interrupt
from detcam.cli.options import TrustFlag, require_model, with_preset_options
from detcam.config import Preset
from detcam.errors import InputError, nearest, plain, writing
from detcam.explainer import Explainer
from detcam.files import write_whole
from detcam.methods import VIEWS

EPILOG = examples(
    "detcam video street.mp4 --out heat.mp4 --model yolov8n.pt",
    "detcam video street.mp4 --model yolov8n.pt --layers level --every 3 --classes person,bicycle --rows rows.jsonl",
    "detcam video street.mp4 --config configs/mask.yaml --model yolov8n-seg.pt",
    "detcam video rtsp://camera/stream --model yolov8n.pt --budget 20 --view fused --frames 600",
    more="Ctrl-C finishes the file with the frames so far, so that it plays, and exits with 130.",
)


@with_preset_options(
    max_det="Maximum number of objects per frame. [default: 300]",
    method="The method that makes the heatmaps, see `detcam methods`; auto is odam at level, for a single forward. "
    "[default: auto]",
)
def video(
    source: Annotated[
        str | None, typer.Argument(help="Video file, URL, camera number or folder of images.", show_default=False)
    ] = None,
    out_file: Annotated[Path, typer.Option("--out", help="File to write: .mp4, .mov or .mkv.")] = Path("detcam.mp4"),
    *,
    preset: Preset,
    every: Annotated[int, typer.Option(min=1, help="Explain every K-th frame; move heatmaps along in between.")] = 1,
    budget: Annotated[
        float | None, typer.Option(help="Frames per second to reach: sets --every, and a cheaper method if needed.")
    ] = None,
    view: Annotated[str, typer.Option(help="boxes, fused, or none (boxes without heatmaps).")] = "boxes",
    classes: Annotated[str | None, typer.Option(help="Draw these classes only, separated by commas.")] = None,
    track: Annotated[int | None, typer.Option(help="Draw this track only.")] = None,
    strongest: Annotated[int | None, typer.Option(min=1, help="Draw the objects with the highest scores only.")] = None,
    side_by_side: Annotated[bool, typer.Option("--side-by-side", help="Put the untouched frame to the left.")] = False,
    steady: Annotated[
        bool, typer.Option(help="Scale a track's heatmaps by their recent maximum and smooth them over time.")
    ] = True,
    colormap: Annotated[str, typer.Option(help="inferno, magma, viridis, cividis, turbo, jet.")] = "inferno",
    frames: Annotated[int | None, typer.Option(min=1, help="Stop after this many frames.")] = None,
    rows: Annotated[Path | None, typer.Option(help="JSON Lines file: a row per object and frame.")] = None,
    stats: Annotated[Path | None, typer.Option("--json", help="JSON file: counts, seconds of each stage.")] = None,
    trust_checkpoint: TrustFlag = False,
) -> None:
    """Write a video with a heatmap on every object of every frame. Sound, times and orientation are kept."""
    from detcam.video import Style, open_source, write

    if source is None:
        raise InputError("source: give a video, e.g. detcam video street.mp4 --model yolov8n.pt")
    require_model(preset)
    options = {**preset.options(), "trust_checkpoint": trust_checkpoint}
    where = dict(zip(("method", "layers"), VIEWS["where"], strict=True))
    if (preset.method, preset.layers) == ("auto", "auto"):
        options |= where
    shown = None if classes is None else tuple(name.strip() for name in classes.split(",") if name.strip())
    style = Style(view, shown, track, strongest, side_by_side, colormap=colormap)
    with open_source(source) as opened:
        explainer = Explainer(**options)
        _check_classes(style.classes, explainer)
        # The cheaper method that a budget falls back on.
        cheaper = Explainer(**{**options, **where}) if budget is not None and preset.target == "class" else None
        out = console()
        with stop_on_interrupt() as stop, progress(out) as bars:
            done = write(
                opened, out_file, explainer, style, rows, frames, stop, _counter(bars, opened.frames, frames),
                every=every, budget=budget, cheaper=cheaper, steady=steady,
            )  # fmt: skip
    if stats is not None:
        with writing(stats, "choose another place"):
            write_whole(stats, (json.dumps(done, indent=2, ensure_ascii=False) + "\n").encode())
    for line in _warnings(done):
        print(f"warning: {plain(line)}", file=sys.stderr)
    if done["choice"]:
        out.print(plain(done["choice"]), markup=False)
    out.print(
        f"{done['frames']} frames, {done['objects']} objects in {done['tracks']} tracks, {done['fps']:.1f} frames a "
        f"second -> {plain(out_file)}",
        markup=False,
    )
    if stop.is_set():
        raise Interrupted(f"{out_file} holds the first {done['frames']} frames and can be played")


def _check_classes(classes: tuple[str, ...] | None, explainer: Any) -> None:
    names = getattr(explainer.adapter, "names", None)
    known = set(names.values()) if isinstance(names, dict) else set()
    for name in classes or ():
        if known and name not in known:
            raise InputError(f"classes: the model has no class {name!r}: {nearest(name, sorted(known))}")


def _counter(bars: AddBar, expected: int | None, limit: int | None) -> Callable[[Any], None]:
    """A function to call after each frame: it reports the frames so far and their rate."""
    total = min(n for n in (expected, limit) if n) if expected or limit else None
    tell, began, numbers = bars("frames", total), perf_counter(), count(1)

    def advance(stats: Any) -> None:
        written = next(numbers)
        rate = written / (perf_counter() - began)
        of = f" of {total}" if total else ""
        tell(written, state=f"{rate:.1f} fps", line=f"{written}{of} frames, {rate:.1f} frames a second")

    return advance


def _warnings(done: dict[str, Any]) -> Iterator[str]:
    """Warnings about damaged, missing and dropped frames, and about sound that was left out."""
    defects = []
    if done["damaged"]:
        defects.append(f"{done['damaged']} frames or packets are damaged")
    if done["missing"]:
        defects.append(f"{done['missing']} of {done['expected']} frames are missing")
    if defects:
        yield f"{done['source']}: {' and '.join(defects)}; the other {done['frames']} are written"
    if done["left_out"]:
        yield f"{done['source']}: sound in {', '.join(done['left_out'])} does not fit into this format: use .mkv"
    if done["dropped"]:
        yield f"{done['source']}: {done['dropped']} frames came faster than they could be explained"
