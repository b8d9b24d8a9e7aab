"""Explain a mask: which pixels made the model draw this outline, beside which made it name the object.

python examples/explain_one_mask.py
"""

from pathlib import Path

import cv2
import numpy as np

import detcam
from detcam.render import contact_sheet
from detcam.scenes import HELD_OUT_SEED, draw_scene


def main(out: Path) -> None:
    image = draw_scene(HELD_OUT_SEED).image
    by_class = detcam.Explainer("scenes", target="class")(image)
    by_mask = detcam.Explainer("scenes", target="mask")(image)
    assert by_mask.masks is not None  # the demo model is a segmenter
    outlined = image.copy()
    contours, _ = cv2.findContours(by_mask.masks[0].numpy().astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(outlined, contours, -1, (64, 224, 255), 2)
    out.mkdir(parents=True, exist_ok=True)
    sheet = contact_sheet([outlined, by_class.overlay(0), by_mask.overlay(0)])
    cv2.imwrite(str(out / "mask_class_mask.png"), cv2.cvtColor(sheet, cv2.COLOR_RGB2BGR))
    print(f"{by_mask.labels[0]}: its mask, why it is named so, why its mask is drawn so -> {out}")


if __name__ == "__main__":
    main(Path("example-one-mask"))
