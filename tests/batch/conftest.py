"""Fixtures of the batch tests."""

from collections.abc import Iterator
from time import monotonic

import pytest
import torch
from photos import Given, items_of, plain_work, write_photos


@pytest.fixture(scope="module", autouse=True)
def one_thread_in_modules() -> Iterator[None]:
    """Module fixtures run models on one thread, as tests do."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def limit(tmp_path_factory: pytest.TempPathFactory) -> float:
    """A time limit per image in seconds, many times what an image takes: other tests may run at the same time."""
    source = Given(items_of(write_photos(tmp_path_factory.mktemp("limit"), 0, 4)))
    began = monotonic()
    plain_work(source, 2)
    return max(5.0, 5 * (monotonic() - began))
