"""`detcam video`."""

from __future__ import annotations

import json
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

from detcam.cli.interrupt import Interrupted
from detcam.cli.options import (
    AdapterFlag,
    ConfFlag,
    ConfigFlag,
    DeviceFlag,
    ImgszFlag,
    IouFlag,
    LayersFlag,
    MethodFlag,
    ModelFlag,
    PrintConfigFlag,
    SegmentsFlag,
    TargetFlag,
    TextFlag,
    TrustFlag,
    preset_of,
)
from detcam.errors import InputError, OutputError, nearest, plain
from detcam.files import write_whole

EPILOG = """
Examples:

`detcam video street.mp4 --out heat.mp4 --model yolov8n.pt`

`detcam video street.mp4 --model yolov8n.pt --layers level --every 3 --classes person,bicycle --rows rows.jsonl`

`detcam video street.mp4 --config configs/mask.yaml --model yolov8n-seg.pt`

`detcam video rtsp://camera/stream --model yolov8n.pt --budget 20 --view fused --frames 600`

Ctrl-C finishes the file with the frames so far, which play, and exits with 130.
"""
LINE_SECONDS = 5.0  # between two lines of progress where there is no terminal


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command(epilog=EPILOG)(video)


def video(
    source: Annotated[
        str | None, typer.Argument(help="Video file, url, camera number or folder of pictures.", show_default=False)
    ] = None,
    out_file: Annotated[Path, typer.Option("--out", help="File to write: .mp4, .mov or .mkv.")] = Path("detcam.mp4"),
    model: ModelFlag = None,
    method: MethodFlag = None,
    layers: LayersFlag = None,
    target: TargetFlag = None,
    segments: SegmentsFlag = None,
    text: TextFlag = None,
    adapter: AdapterFlag = None,
    conf: ConfFlag = None,
    iou: IouFlag = None,
    max_det: Annotated[int | None, typer.Option(help="Objects per frame. [default: 300]")] = None,
    imgsz: ImgszFlag = None,
    device: DeviceFlag = None,
    config: ConfigFlag = None,
    print_config: PrintConfigFlag = False,
    every: Annotated[int, typer.Option(min=1, help="Explain each K-th frame; carry heatmaps along in between.")] = 1,
    budget: Annotated[
        float | None, typer.Option(help="Frames per second to reach: chooses --every, and a cheaper method if needed.")
    ] = None,
    view: Annotated[str, typer.Option(help="boxes, fused, or none (boxes without heatmaps).")] = "boxes",
    classes: Annotated[str | None, typer.Option(help="Draw these classes only, commas between.")] = None,
    track: Annotated[int | None, typer.Option(help="Draw this track only.")] = None,
    strongest: Annotated[int | None, typer.Option(min=1, help="Draw the objects with the highest scores only.")] = None,
    side_by_side: Annotated[bool, typer.Option("--side-by-side", help="The untouched frame to the left.")] = False,
    steady: Annotated[
        bool, typer.Option(help="Scale a track's heatmaps by their recent maximum and smooth them over time.")
    ] = True,
    colormap: Annotated[str, typer.Option(help="inferno, magma, viridis, cividis, turbo, jet.")] = "inferno",
    frames: Annotated[int | None, typer.Option(min=1, help="Stop after so many frames.")] = None,
    rows: Annotated[Path | None, typer.Option(help="JSON Lines file: one row per object and frame.")] = None,
    stats: Annotated[Path | None, typer.Option("--json", help="JSON file: frames, seconds of each stage.")] = None,
    trust_checkpoint: TrustFlag = False,
) -> None:
    """Write a video with a heatmap on every object of every frame; sound, times and orientation are kept."""
    from detcam.explainer import Explainer
    from detcam.video import Style, open_source, write

    preset = preset_of(
        config, model=model, method=method, layers=layers, target=target, segments=segments, text=text, adapter=adapter,
        conf=conf, iou=iou, max_det=max_det, imgsz=imgsz, device=device,
    )  # fmt: skip
    if print_config:
        print(preset.to_yaml(), end="")
        return
    if source is None:
        raise InputError("source: give a video, e.g. detcam video street.mp4")
    options = {**preset.options(), "trust_checkpoint": trust_checkpoint}
    style = Style(view, _names(classes), track, strongest, side_by_side, colormap=colormap)
    with open_source(source) as opened:
        explainer = Explainer(**options)
        _check_classes(style.classes, explainer)
        # What a budget falls back on; where the user asked for just that, nothing is cheaper.
        fallback = {**options, "method": "odam", "layers": "level"}
        cheaper = Explainer(**fallback) if budget is not None and preset.target == "class" else None
        console = Console(highlight=False, soft_wrap=True)
        with _interruptible() as stop, _progress(console, opened.frames, frames) as advance:
            done = write(
                opened, out_file, explainer, style, rows, frames, stop, advance,
                every=every, budget=budget, cheaper=cheaper, steady=steady,
            )  # fmt: skip
    if stats is not None:
        _write_stats(stats, done)
    for line in _warnings(done):
        print(f"warning: {plain(line)}", file=sys.stderr)
    if done["choice"]:
        console.print(plain(done["choice"]), markup=False)
    console.print(
        f"{done['frames']} frames, {done['objects']} objects in {done['tracks']} tracks, {done['fps']:.1f} frames a "
        f"second -> {plain(out_file)}",
        markup=False,
    )
    if stop.is_set():
        raise Interrupted(f"{out_file} holds the {done['frames']} frames so far, and plays")


def _names(classes: str | None) -> tuple[str, ...] | None:
    return None if classes is None else tuple(name.strip() for name in classes.split(",") if name.strip())


def _check_classes(classes: tuple[str, ...] | None, explainer: Any) -> None:
    names = getattr(explainer.adapter, "names", None)
    known = set(names.values()) if isinstance(names, dict) else set()
    for name in classes or ():
        if known and name not in known:
            raise InputError(f"classes: the model has no class {name!r}: {nearest(name, sorted(known))}")


@contextmanager
def _interruptible() -> Iterator[threading.Event]:
    """An event that Ctrl-C sets, so that the frame at hand is finished; a second Ctrl-C ends everything at once."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # only the main thread hears of signals
        return
    before = signal.getsignal(signal.SIGINT)

    def handle(number: int, frame: object) -> None:
        stop.set()
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, handle)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _progress(console: Console, expected: int | None, limit: int | None) -> Iterator[Callable[[Any], None]]:
    """A bar on a terminal, a line every few seconds elsewhere; yields what to call after each frame."""
    total = min(n for n in (expected, limit) if n) if expected or limit else None
    if not console.is_terminal:
        yield _lines(console, total)
        return
    columns = (
        SpinnerColumn(), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[fps]:.1f} fps"),
        TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("frames", total=total, fps=0.0)
        began = perf_counter()

        def advance(stats: Any) -> None:
            written = bar.tasks[0].completed + 1
            bar.update(task, advance=1, fps=written / (perf_counter() - began))

        yield advance


def _lines(console: Console, total: int | None) -> Callable[[Any], None]:
    began = told = perf_counter()
    written = 0

    def advance(stats: Any) -> None:
        nonlocal told, written
        written += 1
        now = perf_counter()
        if now - told >= LINE_SECONDS:
            told = now
            of = f" of {total}" if total else ""
            console.print(f"{written}{of} frames, {written / (now - began):.1f} frames a second", markup=False)

    return advance


def _write_stats(path: Path, done: dict[str, Any]) -> None:
    try:
        write_whole(path, (json.dumps(done, indent=2, ensure_ascii=False) + "\n").encode())
    except OSError as error:
        raise OutputError(f"{path} cannot be written ({error.strerror or error}): choose another place") from None


def _warnings(done: dict[str, Any]) -> Iterator[str]:
    """What is not as it should be."""
    hurt = []
    if done["damaged"]:
        hurt.append(f"{done['damaged']} frames or packets are damaged")
    if done["missing"]:
        hurt.append(f"{done['missing']} of {done['expected']} frames are missing")
    if hurt:
        yield f"{done['source']}: {' and '.join(hurt)}; the other {done['frames']} are written"
    if done["left_out"]:
        yield f"{done['source']}: sound in {', '.join(done['left_out'])} does not fit into this format: use .mkv"
    if done["dropped"]:
        yield f"{done['source']}: {done['dropped']} frames came faster than they could be explained"
