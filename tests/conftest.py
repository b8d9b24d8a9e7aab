"""Fixtures that every room of the tests shares."""

import os
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

pytest.register_assert_rewrite("support")

from support import random_picture, random_yolo  # noqa: E402

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture
def seed() -> int:
    """A new seed for every run, printed so that pytest shows it beside a failure; SEED repeats one."""
    value = int(os.environ.get("SEED", random.SystemRandom().randrange(2**31)))
    print(f"repeat with SEED={value}")
    torch.manual_seed(value)
    return value


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The inputs are too small for threads to help."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def shared() -> Path:
    """The folder of real weights and photographs beside the repository; the test is skipped where it is absent."""
    folder = REPOSITORY.parent / "shared"
    if not (folder / "weights").is_dir():
        pytest.skip("no real weights and photographs: ../shared is not beside the repository")
    return folder


@pytest.fixture
def picture(seed: int) -> np.ndarray:
    """[120, 200, 3] uint8 RGB."""
    return random_picture(seed, 120, 200)


@pytest.fixture
def detector(seed: int, picture: np.ndarray) -> nn.Module:
    """YOLOv8n with random weights that finds about a dozen objects in `picture` at imgsz 160."""
    return random_yolo("yolov8n.yaml", seed, picture, 160)


@pytest.fixture
def segmenter(seed: int, picture: np.ndarray) -> nn.Module:
    """YOLOv8n-seg with random weights that finds about a dozen objects in `picture` at imgsz 160."""
    return random_yolo("yolov8n-seg.yaml", seed, picture, 160)
