"""A video source in memory, and still images with noise."""

import threading
import weakref
from collections.abc import Iterator

import numpy as np

from detcam.video import Source
from detcam.video.source import Picture


class Pictures(Source):
    """Frames from memory, and how many of them are alive at once."""

    name = "pictures"

    def __init__(self, images: list[np.ndarray], times: list[float] | None = None, error_at: int | None = None) -> None:
        self._images, self._error_at = images, error_at
        self._times = times or [i / 10 for i in range(len(images))]
        self.frames = len(images)
        self.rate = None
        self.alive = self.most = 0
        self._lock = threading.Lock()

    def __iter__(self) -> Iterator[Picture]:
        for i, (image, time) in enumerate(zip(self._images, self._times, strict=True)):
            if i == self._error_at:
                raise OSError("the source broke")
            fresh = image.copy()
            with self._lock:
                self.alive += 1
                self.most = max(self.most, self.alive)
            weakref.finalize(fresh, self._gone)
            self.decoded += 1
            yield Picture(fresh, time, 0.1)

    def _gone(self) -> None:
        with self._lock:
            self.alive -= 1


def still(picture: np.ndarray, count: int, seed: int, noise: float = 0.0) -> list[np.ndarray]:
    generator = np.random.default_rng(seed)
    shaken = (picture + generator.normal(0, noise, picture.shape) for _ in range(count))
    return [np.clip(image, 0, 255).round().astype(np.uint8) for image in shaken]
