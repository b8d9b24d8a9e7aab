"""What several tests of this room share."""

from time import monotonic

import pytest
from photos import Given, items_of, plain_work, write_photos


@pytest.fixture(scope="module")
def limit(tmp_path_factory: pytest.TempPathFactory) -> float:
    """Seconds for a picture, many times what it takes: other tests may run beside these."""
    source = Given(items_of(write_photos(tmp_path_factory.mktemp("limit"), 0, 4)))
    began = monotonic()
    plain_work(source, 2)
    return max(3.0, 3 * (monotonic() - began))
