"""PIL images, matplotlib figures and torchvision's drawing functions."""

import dataclasses
import io
import warnings

import numpy as np
import pytest
import torch
from awkward import HEIGHT, ODD, WIDTH, above_threshold, odd_explanation
from PIL import Image
from support import explanation_of, random_picture

from detcam import Explanation, InputError
from detcam.render import colour_table
from detcam.render.labels import typeset


def test_pil_images(odd: Explanation, nothing: Explanation) -> None:
    for i in range(4):
        picture = odd.to_pil(i)
        assert isinstance(picture, Image.Image)
        assert (picture.mode, picture.size) == ("RGB", (WIDTH, HEIGHT))
        assert np.array_equal(np.asarray(picture), odd.overlay(i))
    boxes = np.asarray(odd.to_pil())
    assert (boxes != odd.image).any()
    assert np.array_equal(np.asarray(nothing.to_pil()), nothing.image)


def test_a_figure_shows_every_object_and_no_global_state_changes(seed: int) -> None:
    pytest.importorskip("matplotlib")
    import matplotlib
    import matplotlib.pyplot as plt
    from matplotlib.patches import Rectangle

    odd = odd_explanation(seed, masks=False)
    before = (plt.get_fignums(), matplotlib.get_backend(), dict(matplotlib.rcParams))
    figure = odd.to_matplotlib()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # among them "Glyph missing from font"
        figure.canvas.draw()
    assert (plt.get_fignums(), matplotlib.get_backend(), dict(matplotlib.rcParams)) == before
    overview, *panels = [axes for axes in figure.axes if axes.images]
    assert overview.get_title() == "4 objects"
    assert [p.get_title() for p in panels] == [typeset_title(*pair) for pair in zip(ODD, odd.scores, strict=True)]
    assert len(overview.patches) == 4
    for i, panel in enumerate(panels):
        picture, heat = panel.images
        assert np.array_equal(picture.get_array(), odd.image)
        np.testing.assert_allclose(heat.get_array(), odd.heatmaps[i], atol=1e-6)
        assert heat.get_extent() == picture.get_extent()
        (outline,) = panel.patches
        assert isinstance(outline, Rectangle)
        corners = np.array(
            [*outline.get_xy(), *(outline.get_xy() + np.array([outline.get_width(), outline.get_height()]))]
        )
        np.testing.assert_allclose(corners + 0.5, odd.boxes[i], atol=1e-5)  # matplotlib's pixel 0 begins at -.5


def typeset_title(name: str, score: float) -> str:
    return typeset(f"{name} {score:.2f}", opencv=False)[1]


def test_a_figure_of_some_objects_or_none(odd: Explanation, nothing: Explanation) -> None:
    pytest.importorskip("matplotlib")
    titles = [axes.get_title() for axes in odd.to_matplotlib([3, 0]).axes if axes.images]
    assert titles == ["4 objects", typeset_title(ODD[3], 0.5), f"{ODD[0]} 0.90"]
    figure = nothing.to_matplotlib()
    figure.canvas.draw()
    assert [axes.get_title() for axes in figure.axes] == ["0 objects"]


def test_a_segmenter_s_outlines_follow_its_masks(seed: int) -> None:
    """A ring has two outlines; each corner of them lies in the mask, on its edge, and no box is drawn."""
    pytest.importorskip("matplotlib")
    from matplotlib.patches import Polygon

    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    distance = np.hypot(rows - 30, columns - 45)
    ring = torch.from_numpy((distance < 25) & (distance > 10))[None]
    e = explanation_of(random_picture(seed, HEIGHT, WIDTH), [torch.rand(3, 4)], labels=("cell " * 30,))
    e = dataclasses.replace(e, objects=dataclasses.replace(e.objects, masks=ring))
    overview, panel, bar = e.to_matplotlib(alpha=0.4, colormap="viridis").axes
    assert len(overview.patches) == len(panel.patches) == 2
    radii = sorted(
        np.hypot(*(patch.get_xy() - (45, 30)).T).mean() for patch in panel.patches if isinstance(patch, Polygon)
    )
    assert radii == pytest.approx([10.5, 24.5], abs=0.8)
    _, heat = panel.images
    np.testing.assert_allclose(heat.get_alpha(), 0.4 * np.sqrt(e.heatmaps[0].numpy()), atol=1e-6)
    assert heat.get_cmap()(128)[:3] == pytest.approx(colour_table("viridis")[128] / 255)
    assert bar.get_ylim() == (0, 1)
    assert "heat" in bar.get_ylabel()
    assert panel.get_title().startswith("cell cell")
    assert panel.get_title().endswith("... 0.90")
    for wrong in ({"alpha": 2}, {"colormap": "virdis"}):
        with pytest.raises(InputError, match=r"expected a number|did you mean"):
            e.to_matplotlib(**wrong)


@pytest.mark.parametrize("kind", ["svg", "pdf"])
def test_outlines_and_text_are_vectors_in_a_paper(kind: str, seed: int) -> None:
    pytest.importorskip("matplotlib")
    e = odd_explanation(seed, masks=False)
    plain, outlined = (io.BytesIO() for _ in range(2))
    figure = e.to_matplotlib([0])
    figure.savefig(outlined, format=kind)
    for patch in [patch for axes in figure.axes for patch in axes.patches]:
        patch.remove()
    figure.savefig(plain, format=kind)
    more, less = (file.getvalue() for file in (outlined, plain))
    if kind == "svg":  # four boxes in the overview would be four paths: here one, and one in the panel
        assert more.count(b'<path d="M') - less.count(b'<path d="M') == 2
        assert more.count(b"<image") == less.count(b"<image") <= 4
        assert b"#40e0ff" in more
        assert b"#40e0ff" not in less
    else:
        assert b"/Type3" in more or b"/Type42" in more, "letters are glyphs of a font"
        assert len(more) > len(less)


def test_torchvision_draws_boxes_masks_and_a_grid(odd: Explanation) -> None:
    utils = pytest.importorskip("torchvision.utils")
    ready = odd.to_torchvision(threshold=0.4)
    assert np.array_equal(ready.picture.permute(1, 2, 0).numpy(), odd.image)
    assert np.array_equal(ready.above_threshold.numpy(), above_threshold(odd, 0.4))
    assert ready.masks is not None
    assert torch.equal(ready.masks, odd.masks)
    boxed = utils.draw_bounding_boxes(ready.picture, ready.boxes[:1], colors="red")
    changed = (boxed != ready.picture).any(dim=0).nonzero()
    assert changed.amin(dim=0).tolist() == [4, 3]
    assert changed.amax(dim=0).tolist() == [40, 30]
    for i in range(4):
        painted = utils.draw_segmentation_masks(
            torch.zeros_like(ready.picture), ready.above_threshold[i], alpha=1, colors="white"
        )
        assert torch.equal(painted[0] > 0, ready.above_threshold[i])
    utils.draw_bounding_boxes(ready.picture, ready.boxes, ready.labels)
    grid = utils.make_grid(ready.overlays, nrow=2, padding=2)
    assert grid.shape == (3, 2 * (HEIGHT + 2) + 2, 2 * (WIDTH + 2) + 2)
    assert np.array_equal(grid[:, 2 : 2 + HEIGHT, 4 + WIDTH : 4 + 2 * WIDTH].permute(1, 2, 0).numpy(), odd.overlay(1))


def test_torchvision_without_masks_and_without_objects(seed: int, nothing: Explanation) -> None:
    utils = pytest.importorskip("torchvision.utils")
    assert odd_explanation(seed, masks=False).to_torchvision().masks is None
    ready = nothing.to_torchvision()
    assert ready.overlays.shape == (0, 3, HEIGHT, WIDTH)
    with pytest.warns(UserWarning, match="any box"):
        assert torch.equal(utils.draw_bounding_boxes(ready.picture, ready.boxes, ready.labels), ready.picture)
    with pytest.raises(InputError, match="threshold"):
        nothing.to_torchvision(threshold=0)
