"""Seeds, tiers and fixtures that every room of the tests shares; CONTRIBUTING.md says what lies in which tier.

By default every run is the same: seeds come from the tests' names, and tests marked `nightly` are left out. With
NIGHTLY=1 those run too, and all seeds derive from a fresh SEED, which is printed. SEED=123 repeats a run.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path
from time import process_time

import numpy as np
import pytest
import torch
from torch import nn

pytest.register_assert_rewrite("support")
if os.environ.get("NIGHTLY", "0") not in ("", "0"):  # the workers of xdist inherit it
    os.environ.setdefault("SEED", str(random.SystemRandom().randrange(2**31)))
SEED = os.environ.get("SEED", "")

from support import NIGHTLY, random_picture, random_yolo, seed_of  # noqa: E402

REPOSITORY = Path(__file__).parents[1]
LIMIT = 5.0  # seconds of processor time that a test outside the nightly tier may take
REFERENCE = 0.1  # seconds of processor time of `reference_work` where LIMIT was chosen


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "nightly: runs with NIGHTLY=1 only")
    from hypothesis import settings

    settings.register_profile("default", derandomize=True, deadline=None)
    settings.register_profile("nightly", deadline=None)
    settings.load_profile("nightly" if NIGHTLY else "default")


def pytest_report_header() -> str | None:
    return f"repeat with SEED={SEED}" if SEED else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the nightly tests out by default; with ONLY_RANDOM=1 keep only random tests of the default tier."""
    only_random = bool(os.environ.get("ONLY_RANDOM"))
    kept = [
        item
        for item in items
        if ((NIGHTLY and not only_random) or item.get_closest_marker("nightly") is None)
        and (not only_random or is_random(item))
    ]
    config.hook.pytest_deselected(items=[item for item in items if item not in set(kept)])
    items[:] = kept


def is_random(item: pytest.Item) -> bool:
    """Whether another SEED changes the test: it takes a seed, or hypothesis draws its inputs."""
    return "seed" in getattr(item, "fixturenames", ()) or hasattr(getattr(item, "obj", None), "hypothesis")


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Iterator[None]:
    """A test that takes long belongs to the nightly tier, or has to become cheaper."""
    began = process_time()
    result = yield
    spent = process_time() - began
    if not NIGHTLY and spent > LIMIT and spent > (limit := LIMIT * max(1.0, reference_work() / REFERENCE)):
        pytest.fail(f"took {spent:.1f} s of processor time, {limit:.1f} at most: mark it nightly or make it cheaper")
    return result


def reference_work() -> float:
    """Seconds of processor time of fixed work: a machine that is slow or shared just now gives its tests longer."""
    began = process_time()
    matrix = torch.ones(256, 256)
    for _ in range(200):
        matrix @ matrix
    sum(number * number for number in range(2_000_000))
    return process_time() - began


@pytest.fixture(autouse=True)
def same_draws(request: pytest.FixtureRequest) -> int:
    """The seed of all global generators: that of the test's name."""
    value = seed_of(request.node.name)
    random.seed(value)
    np.random.seed(value)  # noqa: NPY002  (libraries draw from it)
    torch.manual_seed(value)
    return value


@pytest.fixture
def seed(same_draws: int) -> int:
    """The test's seed; pytest shows beside a failure what was printed."""
    if SEED:
        print(f"repeat with SEED={SEED}")
    return same_draws


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """The inputs are too small for threads to help: in fixtures of any scope two would wait for one another."""
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
def picture() -> np.ndarray:
    """[120, 200, 3] uint8 RGB, the same in every test of a run."""
    return random_picture(seed_of("picture"), 120, 200)


@pytest.fixture
def detector(picture: np.ndarray) -> nn.Module:
    """YOLOv8n with random weights that finds about a dozen objects in `picture` at imgsz 160; a copy for each test."""
    return random_yolo("yolov8n.yaml", seed_of("picture"), picture, 160)


@pytest.fixture
def segmenter(picture: np.ndarray) -> nn.Module:
    """YOLOv8n-seg with random weights that finds about a dozen objects in `picture` at imgsz 160; a copy for each."""
    return random_yolo("yolov8n-seg.yaml", seed_of("picture"), picture, 160)
