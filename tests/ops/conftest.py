import pytest
from oracle import require_device


@pytest.fixture(params=("cpu", "cuda"))
def device(request: pytest.FixtureRequest) -> str:
    return require_device(request.param)
