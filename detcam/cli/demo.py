"""`detcam demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from detcam.cli.console import counted_labels
from detcam.cli.interrupt import NOTHING, interruptible
from detcam.cli.options import build_explainer, require_writable

out = Console(highlight=False, soft_wrap=True)
DEMO_SEEDS = (4, 0, 3)  # the first scenes of the held-out seeds that a newcomer sees


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command(epilog="Example: `detcam demo --out demo`")(demo)


def demo(
    out_dir: Annotated[Path, typer.Option("--out", help="Folder for the results.")] = Path("demo"),
    scenes: Annotated[int, typer.Option(min=1, max=100, help="How many scenes.")] = 3,
) -> None:
    """Explain held-out scenes with the demo model that comes with the package: needs no weights and no photo."""
    from detcam.scenes import HELD_OUT_SEED, draw_scene

    require_writable(out_dir)
    saved = 0
    with interruptible(lambda: f"{saved} of {scenes} scenes are explained in {out_dir}" if saved else NOTHING):
        explainer = build_explainer({"model": "scenes"})
        for i in range(scenes):
            folder = out_dir if i == 0 else out_dir / f"scene_{i + 1:03d}"
            explanation = explainer(
                draw_scene(HELD_OUT_SEED + DEMO_SEEDS[i % len(DEMO_SEEDS)] + i // len(DEMO_SEEDS)).image
            )
            explanation.save(folder)
            saved += 1
            out.print(f"scene {i + 1}: {counted_labels(explanation.labels)} -> {folder}", markup=False)
    out.print(f"Open {out_dir / 'contact.png'}\n", markup=False)
    out.print("The same for a photo of yours, with weights you have or that ultralytics downloads:\n")
    out.print("    detcam explain photo.jpg --model yolov8n.pt --out photo-maps\n")
