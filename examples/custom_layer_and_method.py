"""Use a layer and a method of your own.

python examples/custom_layer_and_method.py
"""

from pathlib import Path

from torch import Tensor

import detcam
from detcam.methods import Method
from detcam.scenes import HELD_OUT_SEED, draw_scene


class AbsoluteGradient(Method):
    """Where does the score react to the layer at all, for or against?"""

    name = "absolute-gradient"
    formula = "sum_k |g_k|"
    source = "this example"

    def maps(self, acts: Tensor, grads: Tensor | None) -> Tensor:
        assert grads is not None
        return grads.abs().sum(dim=1)  # [n, h, w]


def main(out: Path) -> None:
    # The name of a layer: `detcam layers scenes` lists them.
    explainer = detcam.Explainer("scenes-yolo", method=AbsoluteGradient(), layers=["model.9"])
    explanation = explainer(draw_scene(HELD_OUT_SEED).image)
    print(f"{len(explanation)} objects at {explanation.settings['layers']} -> {explanation.save(out)}")


if __name__ == "__main__":
    main(Path("example-custom-layer"))
