"""Follow objects through a video: writes a video with heatmaps, and tells where each track's evidence lay.

python examples/explain_video.py [VIDEO] [WEIGHTS]
"""

import sys
from collections import defaultdict
from pathlib import Path
from statistics import mean

import cv2
import numpy as np

import detcam
from detcam.scenes import HELD_OUT_SEED, draw_scene


def sliding_scene(folder: Path, count: int = 20) -> Path:
    """A folder of pictures to try it on: a drawn scene that slides by."""
    folder.mkdir(exist_ok=True)
    scene = draw_scene(HELD_OUT_SEED).image[:, :, ::-1]
    for i in range(count):
        cv2.imwrite(str(folder / f"{i}.png"), np.roll(scene, -4 * i, axis=1))
    return folder


def main() -> None:
    video = Path(sys.argv[1]) if len(sys.argv) > 1 else sliding_scene(Path("scene"))
    explainer = detcam.Explainer(sys.argv[2] if len(sys.argv) > 2 else "scenes", layers="level")
    inside: defaultdict[tuple[int, str], list[float]] = defaultdict(list)
    with detcam.video.open_source(video) as source, detcam.video.Sink("heat.mp4", source) as sink:
        for frame in detcam.video.explain(source, explainer, every=2):
            sink.write(frame.overlay(), frame.time, frame.duration)
            for row in frame.rows():
                if row["energy"] is not None:
                    inside[row["track"], row["label"]].append(row["energy"])
    for (track, label), shares in sorted(inside.items()):
        print(f"track {track}, {label}: {len(shares)} frames, {mean(shares):.0%} of its heat inside the box")
    print(f"{sink.frames} frames -> heat.mp4")


if __name__ == "__main__":
    main()
