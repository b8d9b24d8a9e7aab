"""`detcam demo`."""

from pathlib import Path
from typing import Annotated

import typer

from detcam.cli.console import console, counted_labels
from detcam.cli.interrupt import NOTHING, interruptible
from detcam.cli.options import require_writable
from detcam.explainer import Explainer

DEMO_SEEDS = (4, 0, 3)  # offsets of the first scenes from HELD_OUT_SEED


def demo(
    out_dir: Annotated[Path, typer.Option("--out", help="Folder for the results.")] = Path("demo"),
    scenes: Annotated[int, typer.Option(min=1, max=100, help="Number of scenes.")] = 3,
) -> None:
    """Explain drawn scenes with the demo model of the package; needs no weights and no photo."""
    from detcam.scenes import HELD_OUT_SEED, draw_scene

    require_writable(out_dir)
    out, saved = console(), 0
    with interruptible(lambda: f"{saved} of {scenes} scenes are explained in {out_dir}" if saved else NOTHING):
        explainer = Explainer("scenes")
        for i in range(scenes):
            folder = out_dir if i == 0 else out_dir / f"scene_{i + 1:03d}"
            seed = HELD_OUT_SEED + DEMO_SEEDS[i % len(DEMO_SEEDS)] + i // len(DEMO_SEEDS)
            explanation = explainer(draw_scene(seed).image)
            explanation.save(folder)
            saved += 1
            out.print(f"scene {i + 1}: {counted_labels(explanation.labels)} -> {folder}", markup=False)
    out.print(f"Open {out_dir / 'contact.png'}\n", markup=False)
    out.print("To explain your own photo, with your weights or weights that ultralytics downloads:\n")
    out.print("    detcam explain photo.jpg --model yolov8n.pt --out photo-maps\n")
