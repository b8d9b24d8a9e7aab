"""Find and load the compiled kernels; errors are kept for `build_info`, never raised or printed."""

import contextlib
import importlib
import json
import os
from pathlib import Path
from typing import Any

import torch

DISABLE_VARIABLE = "DETCAM_DISABLE_COMPILED"
_HERE = Path(__file__).parent
_missing: dict[str, str] = {}  # device type -> the reason why it has no kernel


def load_kernels() -> None:
    """Register the kernels of every binary that is present and loads. Call once, after the schemas exist."""
    for device in ("cpu", "cuda"):
        if reason := _load(device):
            _missing[device] = reason


def _load(device: str) -> str | None:
    if os.environ.get(DISABLE_VARIABLE, "0") not in ("", "0"):
        return f"disabled by the environment variable {DISABLE_VARIABLE}"
    if device == "cuda" and torch.version.cuda is None:
        return f"torch {torch.__version__} has no CUDA support"
    binary = next(_HERE.glob(f"_{device}.*"), None)
    if binary is None:
        return str(_build_record().get("missing", {}).get(device, "not built"))
    try:
        torch.ops.load_library(binary)
    except (OSError, RuntimeError) as error:
        return f"{binary.name} does not load: {error}"
    return None


def is_compiled(device: torch.device | str) -> bool:
    """Whether operations on `device` ("cpu", "cuda", "cuda:1", ...) run a compiled kernel in this process."""
    return (kind := torch.device(device).type) in ("cpu", "cuda") and kind not in _missing


def build_info() -> dict[str, Any]:
    """Facts about the compiled kernels, for bug reports and for `detcam doctor`.

    Returns:
        `cpu`, `cuda` (bool: loaded in this process), `missing` (device -> why not loaded), `mode` (what the
        build was asked for), `torch` (release compiled against), `compiler`, `cuda_version`, `archs` (list of
        str). A fact that is not known because nothing was built is None.
    """
    facts: dict[str, Any] = dict.fromkeys(("torch", "compiler", "cuda_version"))
    with contextlib.suppress(ImportError):  # nothing compiled, or for another Python
        facts |= importlib.import_module("detcam.ops._C").build_facts()
    archs = (facts.pop("archs", None) or "").split()
    loaded = {device: is_compiled(device) for device in ("cpu", "cuda")}
    return {**loaded, "missing": dict(_missing), "mode": _build_record().get("mode"), **facts, "archs": archs}


def _build_record() -> dict[str, Any]:
    """The build's record beside the binaries: its mode, and the reason for each kernel that was left out."""
    try:
        return dict(json.loads((_HERE / "_build.json").read_text()))
    except (OSError, ValueError):
        return {}
