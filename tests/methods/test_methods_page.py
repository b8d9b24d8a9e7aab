"""The page about methods lists each of them as it describes itself."""

from pathlib import Path

import pytest

from detcam.methods import METHODS, WRAPPERS, AnyMethod, Combination

PAGE = Path(__file__).parents[2] / "docs" / "methods.md"


@pytest.mark.parametrize("method", [*METHODS.values(), Combination, *WRAPPERS.values()], ids=lambda m: m.name)
def test_the_page_says_what_the_method_says(method: type[AnyMethod]) -> None:
    cells = (f"`{method.name}`", method.formula, method.passes, method.source)
    row = "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
    assert row in PAGE.read_text().splitlines()
