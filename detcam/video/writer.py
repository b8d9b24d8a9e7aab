"""Video writer: from a video to a video with heatmaps."""

import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from detcam.errors import OutputError, writing
from detcam.explainer import Explainer
from detcam.files import unfinished
from detcam.video.frame import Frame, Style
from detcam.video.pipeline import ROOM, Stats, explain
from detcam.video.readers import open_source
from detcam.video.sink import Sink
from detcam.video.stages import Ahead, Clock, timed


def write(
    source: Any,
    path: str | os.PathLike[str],
    explainer: Explainer,
    style: Style | None = None,
    rows: str | os.PathLike[str] | None = None,
    limit: int | None = None,
    stop: threading.Event | None = None,
    progress: Callable[[Stats], None] | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Write a video with heatmaps of its objects; decoding, model, painting and encoding run in parallel.

    Args:
        source: any source for `open_source`.
        path: the file to write, see `Sink`.
        explainer: detects and explains the objects.
        style: drawing style.
        rows: file for a line of JSON per object and frame.
        limit: largest number of frames.
        stop: when set, the current frame is the last, and the file is finished.
        progress: called after every frame.
        options: options of `explain`: every, budget, cheaper, steady, batch.

    Returns:
        Counts and times of the run: those of `Stats`, and "source", "out", "expected", "damaged",
        "missing", "left_out", "whole", "wall" (seconds) and "fps".

    Raises:
        InputError: if the source cannot be read or an option cannot be used.
        OutputError: if a file cannot be written; no partial file is left.
        KeyboardInterrupt: if `stop` was set before the first frame.
    """
    style = style or Style()
    if style.view == "none":
        options["every"] = 0
        options.pop("budget", None)
    began, stats = perf_counter(), Stats()
    with ExitStack() as cleanup:
        opened = cleanup.enter_context(open_source(source))
        if Path(path).exists() and Path(opened.name).exists() and os.path.samefile(opened.name, path):
            raise OutputError(f"{path} is the input video: choose another name")
        sink = Sink(path, opened)
        cleanup.callback(sink.discard)
        write_rows = cleanup.enter_context(_rows(rows))
        frames = explain(opened, explainer, limit=limit, stats=stats, stop=stop, **options)
        clock = stats.clock("paint")
        pictures = _pictures(frames, style, clock)
        ahead: Ahead[tuple[Frame, np.ndarray]] = Ahead(pictures, ROOM, clock, stop=stop)
        cleanup.callback(ahead.close)
        clock = stats.clock("encode")
        clock.start()
        for frame, picture in timed(ahead, clock, "input"):
            with clock("encode"):
                sink.write(picture, frame.time, frame.duration)
                write_rows(frame)
            if progress is not None:
                progress(stats)
        if stop is not None and stop.is_set() and not sink.frames:
            raise KeyboardInterrupt
        whole = not (stop is not None and stop.is_set()) and (limit is None or sink.frames < limit)
        with clock("encode"):
            sink.close(whole)
    wall = perf_counter() - began
    return {
        "source": opened.name, "out": str(path), "expected": opened.frames, **stats.to_dict(), "frames": sink.frames,
        "damaged": opened.damaged, "missing": opened.missing if whole else 0, "left_out": sink.left_out,
        "whole": whole, "settings": explainer.settings, "wall": round(wall, 4), "fps": round(sink.frames / wall, 3),
    }  # fmt: skip


def _pictures(frames: Iterator[Frame], style: Style, clock: Clock) -> Iterator[tuple[Frame, np.ndarray]]:
    with closing(frames):  # type: ignore[type-var]
        for frame in frames:
            with clock("paint"):
                picture = frame.overlay(style)
            yield frame, picture


@contextmanager
def _rows(path: str | os.PathLike[str] | None) -> Iterator[Callable[[Frame], None]]:
    """Context with a function that writes a frame's rows to a JSON Lines file, which is complete or does not appear."""
    if path is None:
        yield lambda frame: None
        return
    hidden = unfinished(Path(path))
    with writing(path, "choose another place"):
        file = hidden.open("w", encoding="utf-8")

    def write(frame: Frame) -> None:
        with writing(path, "free some space"):
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in frame.rows())

    try:
        yield write
        with writing(path, "free some space"):
            file.close()
            os.replace(hidden, path)
    finally:
        with suppress(OSError):  # the disk is full, and the file is deleted anyway
            file.close()
        hidden.unlink(missing_ok=True)
