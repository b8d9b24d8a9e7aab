"""Mutated videos give frames or an error."""

import random
import sys
from pathlib import Path

import numpy as np
import pytest
from fuzzing import fuzz, mutated

from detcam.video import open_source

pytest.importorskip("av")
sys.path.append(str(Path(__file__).parents[1] / "video"))

from clips import moving_blobs, write_clip

KINDS = (
    ("plain.mp4", "libx264", None), ("sound.mp4", "libx264", "aac"), ("lossless.mkv", "ffv1", None),
    ("old.avi", "mpeg4", None), ("web.webm", "libvpx", None), ("stream.ts", "mpeg2video", None),
)  # fmt: skip
MOST = 300  # frames that are read


def test_mutated_videos(seed: int, tmp_path: Path) -> None:
    frames = moving_blobs(seed, 6, 32, 48)
    files = [write_clip(tmp_path / name, frames, codec=codec, sound=sound).read_bytes() for name, codec, sound in KINDS]
    path = tmp_path / "fuzzed.mp4"

    def read(data: bytes) -> list[np.ndarray]:
        path.write_bytes(data)
        with open_source(path) as source:
            return [frame.image for frame, _ in zip(source, range(MOST), strict=False)]

    def made(random: random.Random) -> bytes:
        return mutated(random.choice(files), random, files)

    def check(result: object) -> None:
        assert isinstance(result, list)
        assert all(image.dtype == np.uint8 and image.shape == result[0].shape for image in result)

    fuzz("videos", seed, 30, made, read, check)
