"""Table of the families of models: supported models and targets, installation, and tested versions."""

from typing import Any

from detcam.adapters import ADAPTERS, Adapter, CallableAdapter
from detcam.models.versions import OLDEST, installed

# The newest version of each library that the tests of its families ran with, by the first word of the family's name;
# the oldest version is in `detcam.models.versions`.
TESTED: dict[str, str] = {
    "ultralytics": "8.4.190",
    "torchvision": "0.29.2",
    "transformers": "5.23.0",
    "rfdetr": "1.11.2",
    "timm": "1.0.31",
    "segmentation-models-pytorch": "0.6.0",
}


def family_rows() -> list[dict[str, Any]]:
    """A row for each family.

    Keys: family, models (for display), targets, install (a command or an instruction), oldest and tested (the library
    with the oldest and the newest tested version, or None), installed (the version on this machine, or None).
    """
    adapters: tuple[type[Adapter], ...] = (*ADAPTERS, CallableAdapter)
    rows = []
    for adapter in adapters:
        library = adapter.family.split()[0]
        oldest, tested = OLDEST.get(library.replace("-", "_")), TESTED.get(library)
        rows.append(
            {
                "family": adapter.family,
                "models": adapter.models,
                "targets": list(adapter.targets),
                "install": adapter.install,
                "oldest": f"{library} {oldest}" if oldest else None,
                "tested": f"{library} {tested}" if tested else None,
                "installed": installed(library),
            }
        )
    return rows
