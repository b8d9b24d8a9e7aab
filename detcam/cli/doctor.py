"""Facts about this machine: versions, devices and compiled operations."""

import platform
from typing import Any

import torch

from detcam import ops, zoo
from detcam.cli.families import installed

PACKAGES = ("torch", "torchvision", "ultralytics", "transformers", "numpy", "opencv-python")


def examine() -> dict[str, Any]:
    """Versions, devices, and the compiled operations that are loaded, or the reason why not."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(terse=True),
        "packages": {name: installed(name) for name in ("detcam", *PACKAGES)},
        "threads": torch.get_num_threads(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "compiled": {device: ops.is_compiled(device) for device in ("cpu", "cuda")},
        "build": ops.build_info(),
        "demo_models": list(zoo.names()),
    }


def summary(facts: dict[str, Any]) -> list[str]:
    """The facts as lines of text."""
    packages = facts["packages"]
    lines = [f"detcam {packages['detcam']} on Python {facts['python']}, {facts['platform']}"]
    lines += [f"  {name}: {packages[name] or 'not installed'}" for name in PACKAGES]
    lines.append(f"  GPU: {facts['cuda'] or 'none, everything runs on the CPU'} ({facts['threads']} CPU threads)")
    for device, compiled in facts["compiled"].items():
        reason = facts["build"].get("missing", {}).get(device, "not built")
        lines.append(f"  operations for {device}: " + ("compiled" if compiled else f"pure PyTorch, slower ({reason})"))
    lines.append(f"  demo models: {', '.join(facts['demo_models']) or 'none'}")
    return lines
