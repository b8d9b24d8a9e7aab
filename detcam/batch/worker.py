"""Worker: images in, rows out; the same under every engine."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from time import perf_counter
from typing import Any, Protocol

import numpy as np
from pydantic import ConfigDict

from detcam.batch.dataset.rows import METRICS, Batch, Outcome, explained, failed
from detcam.batch.items import Chunk, Item
from detcam.batch.sources.prefetch import Picture, batches
from detcam.config import Preset
from detcam.errors import DetcamError, ImageError, InputError, OutputError, nearest
from detcam.explainer import Explainer
from detcam.explanation import Explanation

CPU_BATCH, CUDA_BATCH = 4, 16  # images per forward: at 320 pixels a batch of 4 is 1.6 times faster, of 16 no faster
TIMEOUT = 600.0  # seconds for an image: the slowest methods take minutes


class Tick(Protocol):
    """Callback of `Worker.run` after every step, from any thread."""

    def __call__(self, together: int | None = None) -> None:
        """Report a step; the next step explains `together` images at once, None: as many as before."""


def ignore(together: int | None = None) -> None:
    """A `Tick` that does nothing."""


class Options(Preset):
    """Options that rows depend on: a preset and the options of a job. The engine chooses `device`."""

    model_config = ConfigDict(frozen=True)

    metrics: tuple[str, ...] = ()  # further columns, keys of `METRICS`, measured by the model's boxes
    save_to: str | None = None  # folder where each image's explanation is also saved; None: not saved
    trust_checkpoint: bool = False

    def arguments(self, device: str | None) -> dict[str, Any]:
        """The arguments of `detcam.Explainer`."""
        arguments = {**self.options(), "device": device}
        return {name: value for name, value in arguments.items() if name not in ("metrics", "save_to")}


class Worker:
    """Explains images with a model of its own; an engine makes a worker in each of its processes.

    The model runs on `device`, or where it is loaded; `name` is the worker's name in rows. Raises an InputError for a
    model, method or option that cannot be used.
    """

    def __init__(self, options: Options, device: str | None = None, name: str = "worker-0") -> None:
        for metric in options.metrics:
            if metric not in METRICS:
                raise InputError(f"metric {metric!r} does not exist: {nearest(metric, METRICS)}")
        self._options, self._name = options, name
        self._tick: Tick = ignore
        self._explainer = Explainer(**options.arguments(device), progress=lambda done, total: self._tick())
        self._batch = CUDA_BATCH if self._explainer.adapter.device.type == "cuda" else CPU_BATCH
        self._has_explained = False  # an object: then the options can be used

    def warm_up(self) -> None:
        """Explain a blank image and ignore errors: the first forward is slow, and its time belongs to no image."""
        with suppress(Exception):
            self._explainer([np.full((64, 64, self._explainer.adapter.channels), 128, np.uint8)])

    def run(
        self, items: Sequence[Item], chunk: int = 0, places: Sequence[int] | None = None, tick: Tick = ignore
    ) -> Batch:
        """Explain images of a chunk; an image that cannot be read or explained gets a row with the reason.

        `places` are those of the images in the source, by default 0, 1, 2, ...; `tick` is called after every step: a
        file, a decoded image, a batch of a sweep's forwards, an image. Raises an InputError if the options cannot be
        used; some errors show only when an image is explained.
        """
        places, self._tick = places or range(len(items)), tick
        outcomes: dict[int, Outcome] = {}
        for pictures in batches(items, self._batch, tick, self._explainer.adapter.reading):
            outcomes.update(zip((p.position for p in pictures), self._outcomes(pictures, places), strict=True))
        return Batch.of(chunk, (outcomes[i] for i in range(len(items))), self._options.metrics)

    def _outcomes(self, pictures: Sequence[Picture], places: Sequence[int]) -> Iterator[Outcome]:
        began = perf_counter()
        readable = [picture for picture in pictures if picture.image is not None]
        results = iter(self._explained(readable))
        each = (perf_counter() - began) / max(len(readable), 1)
        for picture in pictures:
            self._tick(1)
            result = picture.error if picture.image is None else next(results)
            if isinstance(result, str):
                yield failed(picture.item, result, self._name)
            else:
                yield self._rows(picture, result, each, places[picture.position])

    def _explained(self, pictures: Sequence[Picture]) -> list[Explanation | str]:
        """The explanation of each image, or the reason of its failure; images of a batch that fails are tried alone."""
        self._tick(max(len(pictures), 1))
        try:
            explanations = list(self._explainer([picture.image for picture in pictures]))
        except Exception as error:  # out of memory, an error of a library, ...: the other images go on
            if isinstance(error, InputError) and not isinstance(error, ImageError) and not self._has_explained:
                raise  # an error of the options, so every image has it
            if len(pictures) > 1:
                return [result for picture in pictures for result in self._explained([picture])]
            return [_reason(error)]
        self._has_explained = self._has_explained or any(map(len, explanations))
        return [*explanations]

    def _rows(self, picture: Picture, explanation: Explanation, seconds: float, place: int) -> Outcome:
        try:
            if self._options.save_to is not None:
                folder = Path(self._options.save_to) / folder_name(place, picture.item.key)
                explanation.save(folder, picture.item.uri)
            return explained(picture.item, explanation, seconds, self._name, self._options.metrics)
        except OutputError:
            raise
        except Exception as error:  # drawing 300 objects of a large image takes memory, too
            return failed(picture.item, _reason(error), self._name)


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, DetcamError) else f"{type(error).__name__}: {error}"


def folder_name(place: int, key: str) -> str:
    """The folder name for the explanation of the image at a place of the source: safe and unique for any key."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", key.rpartition("/")[2])[-60:].strip("-.")
    return f"{place:08d}-{name}"


OnBatch = Callable[[Batch], None]


class Engine(Protocol):
    """Distributes chunks over workers: each process makes a `Worker(options, device, name)` and calls its `run`."""

    def __call__(self, chunks: Iterable[Chunk], options: Options, on_batch: OnBatch) -> None:
        """Call `on_batch` with the Batch of every chunk, in the calling thread, in the order in which they are done.

        An exception of `on_batch` ends the run and its workers. `chunks` is lazy: an engine takes only as many as its
        workers can do soon. A worker that dies is replaced and its chunk is done again. A worker in which no step of
        the work is done for too long ends itself, see `detcam.batch.engines.watchdog`. An image that ends its worker
        repeatedly by itself gets an error row.
        """
