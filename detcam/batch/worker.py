"""The work itself, the same under every engine: pictures in, rows out."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from time import perf_counter
from typing import Any, Protocol

import numpy as np
from pydantic import ConfigDict

from detcam.batch.dataset.rows import Batch, Outcome, explained, failed
from detcam.batch.items import Chunk, Item
from detcam.batch.metrics import check_metrics
from detcam.batch.sources.prefetch import Picture, batches
from detcam.config import Preset
from detcam.errors import DetcamError, ImageError, InputError, OutputError
from detcam.explainer import Explainer
from detcam.explanation import Explanation

CPU_BATCH, CUDA_BATCH = 4, 16  # pictures per forward: at 320 pixels 4 take 1.6 times less each than 1, and 16 no less
TIMEOUT = 600.0  # seconds for a picture: slow methods take minutes, and none so many


class Tick(Protocol):
    """What a worker calls whenever it has done something, from any thread: see `Worker.run`."""

    def __call__(self, together: int | None = None) -> None:
        """Something was done, and now so many pictures are explained together; None: as many as before."""


def silently(together: int | None = None) -> None:
    """A `Tick` that nobody hears."""


class Options(Preset):
    """What rows depend on: a preset, and what a job has beside it. `device` is the engine's to choose.

    Attributes:
        metrics: names of `detcam.batch.metrics.METRICS`: further columns, with the model's own boxes for labels.
        save_to: a folder where each picture's explanation is also saved, as `Explanation.save` does; None: none.
        trust_checkpoint: see `detcam.Explainer`.
    """

    model_config = ConfigDict(frozen=True)

    metrics: tuple[str, ...] = ()
    save_to: str | None = None
    trust_checkpoint: bool = False

    def arguments(self, device: str | None) -> dict[str, Any]:
        """The arguments of `detcam.Explainer`."""
        arguments = {**self.options(), "device": device}
        return {name: value for name, value in arguments.items() if name not in ("metrics", "save_to")}


class Worker:
    """A model and what it takes to explain pictures with it; an engine makes one in each of its processes.

    Args:
        options: what to explain, and how.
        device: where to run; None: where the model is loaded.
        name: what rows call this worker.

    Raises:
        InputError: for a model, method or option that cannot be used.
    """

    def __init__(self, options: Options, device: str | None = None, name: str = "worker-0") -> None:
        check_metrics(options.metrics)
        self._options, self._name = options, name
        self._tick: Tick = silently
        self._explainer = Explainer(**options.arguments(device), progress=lambda done, total: self._tick())
        self._batch = CUDA_BATCH if self._explainer.adapter.device.type == "cuda" else CPU_BATCH
        self._proven = False  # whether some object was explained: then the options can be used

    def warm_up(self) -> None:
        """Explain a blank picture, whatever comes of it: the first forward is slow, and is no picture's fault."""
        with suppress(Exception):
            self._explainer([np.full((64, 64, 3), 128, np.uint8)])

    def run(
        self, items: Sequence[Item], chunk: int = 0, places: Sequence[int] | None = None, tick: Tick = silently
    ) -> Batch:
        """Explain pictures; one that cannot be read or explained gets a row that says why.

        Args:
            items: the pictures.
            chunk: the number of the chunk that they belong to.
            places: their places in the source; None: they are its first.
            tick: called after every step, so that who watches this process can tell that it goes on.

        Raises:
            InputError: if the options cannot be used, which some show only when a picture is explained.
        """
        places, self._tick = places or range(len(items)), tick
        outcomes: dict[int, Outcome] = {}
        for pictures in batches(items, self._batch, tick):
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
        """An explanation of each picture, or why there is none: if a batch fails, its pictures are tried alone."""
        self._tick(max(len(pictures), 1))
        try:
            made: list[Explanation | str] = list(self._explainer([picture.image for picture in pictures]))
        except Exception as error:  # memory, a library's own, ...: one picture must not cost the others theirs
            if isinstance(error, InputError) and not isinstance(error, ImageError) and not self._proven:
                raise  # of the options, and so for every picture
            if len(pictures) > 1:
                return [result for picture in pictures for result in self._explained([picture])]
            return [_reason(error)]
        self._proven = self._proven or any(len(one) for one in made)
        return made

    def _rows(self, picture: Picture, explanation: Explanation, seconds: float, place: int) -> Outcome:
        try:
            if self._options.save_to is not None:
                folder = Path(self._options.save_to) / folder_name(place, picture.item.key)
                explanation.save(folder, picture.item.uri)
            return explained(picture.item, explanation, seconds, self._name, self._options.metrics)
        except OutputError:
            raise
        except Exception as error:  # drawing 300 objects of a large picture takes memory, too
            return failed(picture.item, _reason(error), self._name)


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, DetcamError) else f"{type(error).__name__}: {error}"


def folder_name(place: int, key: str) -> str:
    """Where the explanation of the picture at a place of the source is saved: safe and unique for any key."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", key.rpartition("/")[2])[-60:].strip("-.")
    return f"{place:08d}-{name}"


OnBatch = Callable[[Batch], None]


class Engine(Protocol):
    """Distributes chunks over workers: each process makes one `Worker(options, device, name)` and calls its `run`."""

    def __call__(self, chunks: Iterable[Chunk], options: Options, on_batch: OnBatch) -> None:
        """Hand the Batch of every chunk to `on_batch`, in the calling thread, in the order in which they are done.

        Whatever `on_batch` raises ends the run, and the workers with it. `chunks` is lazy: an engine takes no more than
        its workers can soon do. A worker that dies is replaced and its chunk is done again; so is one that does nothing
        for too long, and a picture that it then does nothing with alone fails.
        """
