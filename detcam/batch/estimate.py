"""Estimate: time and size of a job, from a sample of its images."""

from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter

import torch

from detcam.batch.dataset.dataset import encoded
from detcam.batch.dataset.schema import require_arrow
from detcam.batch.items import Item, Source
from detcam.batch.worker import Options, Worker

SAMPLE = 16  # images, spread evenly over the source


@dataclass(frozen=True)
class Estimate:
    """Expected time and size of a job."""

    pictures: int  # images in the source
    sampled: int  # images in the sample
    errors: list[tuple[str, str]]  # key and reason of each image of the sample that failed
    objects: float  # objects per image
    each: float  # seconds per image of one worker
    workers: int  # number of workers
    seconds: float  # for all images
    shards: int  # files of each table
    bytes: int  # size of all shards


def estimate(source: Source, options: Options, chunk: int, workers: int, threads: int, device: str | None) -> Estimate:
    """Explain a sample in this process, and extrapolate to `workers` workers in shards of `chunk` images.

    Each worker has `threads` threads; `device` is that of the first.
    """
    require_arrow()
    items = sample(source)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        began = perf_counter()
        worker = Worker(options, device)
        worker.run(items[:2])  # the first forward is slow
        start = perf_counter() - began
        began = perf_counter()
        batch = worker.run(items)
        each = (perf_counter() - began) / len(items)
    finally:
        torch.set_num_threads(before)
    count, shards = source.count(), -(-source.count() // chunk)
    failed = [(row["key"], row["error"]) for row in batch.pictures.to_pylist() if row["status"] == "error"]
    whole = len(encoded(batch.objects)) + len(encoded(batch.pictures))
    empty = len(encoded(batch.objects[:0])) + len(encoded(batch.pictures[:0]))  # bytes of a shard without rows
    return Estimate(
        pictures=count,
        sampled=len(items),
        errors=failed,
        objects=len(batch.objects) / len(items),
        each=each,
        workers=min(workers, shards),
        seconds=start + each * count / min(workers, shards),
        shards=shards,
        bytes=round(empty * shards + (whole - empty) / len(batch.pictures) * count),
    )


def sample(source: Source, size: int = SAMPLE) -> Sequence[Item]:
    """A sample of images, spread evenly over the source."""
    count = source.count()
    size = min(size, count)
    places = [(2 * i + 1) * count // (2 * size) for i in range(size)]
    return [item for place in places for item in source.items(place, place + 1)]
