"""D-DiFull and the same-class grid: the share of the heat in the tile of the explained object.

- `difull`: D-DiFull. The detector runs on each tile separately, and the activations of the tiles are stitched before a
  method reads them. No score depends on another tile, so heat there is certainly wrong. After Rao et al. 2022, "Towards
  Better Understanding Attribution Methods" (DiFull), for detectors.
- `same_class_grid`: an image of four tiles, each with an object of the same class. The detector sees the whole image;
  heat in another tile explains the object there as well as this object. After the grid pointing game of Bohle et al.
  2021, "Convolutional Dynamic Alignment Networks for Interpretable Classifications".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

from detcam.adapters import Adapter, LayerPlan
from detcam.engine import Capture
from detcam.errors import InputError, MethodError
from detcam.evaluate.contenders import contenders
from detcam.evaluate.metrics.bootstrap import bootstrap
from detcam.evaluate.metrics.localisation import energy
from detcam.evaluate.planted.interventions import CONF
from detcam.evaluate.planted.judge import seeds_of
from detcam.explainer import Explainer
from detcam.methods import METHODS, Combination, Method, get_method
from detcam.methods.path import PathMethod
from detcam.models.load import load_model
from detcam.runners.base import layer_plan
from detcam.scenes.planted import SIZE, draw_planted
from detcam.scenes.planted_parts import SYMBOLS

Image = NDArray[np.uint8]
Progress = Callable[[int, int], None]  # (scenes done, scenes in all)
TILES = 4  # two by two, by row


@dataclass(frozen=True)
class Tiled:
    """A map over four tiles.

    Attributes:
        tile: of the explained object.
        map: [2 h, 2 w] raw, before ReLU, at the resolution of the layers.
    """

    tile: int
    map: Tensor

    @property
    def inside(self) -> float:
        """Share of the positive relevance in the object's tile, in [0, 1]; 0 for a map without any."""
        heat = self.map.nan_to_num().clamp(min=0)[None]
        return float(energy(heat, tile_mask(self.tile, (heat.shape[1], heat.shape[2]))[None].to(heat.device)))


def tile_mask(tile: int, size: tuple[int, int]) -> Tensor:
    """[height, width] bool: the pixels of a tile, numbered by row."""
    mask = torch.zeros(2, size[0] // 2, 2, size[1] // 2, dtype=torch.bool)
    mask[tile // 2, :, tile % 2] = True
    return mask.view(size)


def side_by_side(tensors: Tensor) -> Tensor:
    """[1, C, 2 h, 2 w]: four tiles [4, C, h, w] in a square, by row."""
    top, bottom = (torch.cat(list(tensors[i : i + 2]), dim=2) for i in (0, 2))
    return torch.cat([top, bottom], dim=1)[None]


def difull_maps(adapter: Adapter, method: Method, plan: LayerPlan, tiles: Sequence[Image], target: str) -> list[Tiled]:
    """The maps of the best-scored object of each of four tiles, from stitched activations.

    Args:
        adapter: the model.
        method: a method that reads activations or gradients.
        plan: the layers and the fusion of their maps.
        tiles: four images [H, W, 3] uint8 RGB of the same size.
        target: the scalar that is explained.

    Returns:
        At most four maps: none for a tile without detections.
    """
    placed = [adapter.prepare(tile) for tile in tiles]
    capture = Capture({name: adapter.module.get_submodule(name) for name in plan.names}, plan.cut_all)
    with torch.enable_grad(), capture:
        outputs = adapter.forward(torch.stack([pixels for pixels, _ in placed]), max_det=300)
    objects = adapter.detect(outputs, [geometry for _, geometry in placed], CONF, 0.7, 300)
    best = [detected.select(detected.scores.argsort(descending=True)[:1]) for detected in objects]
    where = torch.tensor([tile for tile, detected in enumerate(best) if len(detected)], device=adapter.device)
    layers = {layer.name: layer.tensor for layer in capture.captured}
    scalars = adapter.score(outputs, best, target)
    maps = []
    for i, tile in enumerate(where.tolist()):
        level = [plan.names[int(best[tile].level)]] if plan.fuse == "level" else layers
        read = [layers[name] for name in level]
        _, gradients = next(method.gradients(scalars[i : i + 1], where[i : i + 1], read))
        maps.append(Tiled(tile, _stitched(method, read, gradients, tile)))
    return maps


def _stitched(method: Method, layers: list[Tensor], gradients: list[Tensor | None], tile: int) -> Tensor:
    """[2 h, 2 w], from layers [4, C, h, w] and the gradient [1, C, h, w] of the tile of the object."""
    parts = []
    for layer, gradient in zip(layers, gradients, strict=True):
        whole = torch.zeros_like(layer)
        if gradient is not None:
            whole[tile] = gradient[0]
        acts, grads = side_by_side(layer.detach()), side_by_side(whole)
        parts.append(method.maps(acts.float(), grads.float() if method.object_specific else None).detach())
    # Nearest: other interpolation would smear cells over the border of the tile.
    finest = max((part.shape[1:] for part in parts), key=lambda shape: shape[0] * shape[1])
    return torch.stack([interpolate(part[:, None], finest, mode="nearest")[0, 0] for part in parts]).sum(dim=0)


def tiled_maps(
    adapter: Adapter, method: Method | Combination, layers: str, tiles: Sequence[Image], target: str
) -> list[Tiled]:
    """`difull_maps` at a preset of layers; for a combination, the joined maps of its methods at their layers."""
    if isinstance(method, Method):
        return difull_maps(adapter, method, layer_plan(adapter, adapter.module, layers), tiles, target)
    parts = []
    for part in method.parts:
        if not isinstance(part.method, Method) or not isinstance(part.layers, str):
            raise MethodError(f"method {method.name}: D-DiFull needs parts without sweeps, at presets of layers")
        preset = part.method.layers if part.layers == "auto" else part.layers
        parts.append(tiled_maps(adapter, part.method, preset, tiles, target))
    joined = zip(*parts, strict=True)
    return [Tiled(tiled[0].tile, method.join([part.map[None] for part in tiled])[0]) for tiled in joined]


def difull(
    methods: Sequence[str],
    layers: Sequence[str],
    grids: int,
    seed: int = 0,
    progress: Progress | None = None,
    variant: str = "mark",
    target: str = "class",
) -> list[dict[str, Any]]:
    """D-DiFull of methods that read activations or gradients, on planted scenes.

    Args:
        methods: names; "all" for all that apply. Methods that read the image itself are left out.
        layers: "level", "evidence", or both.
        grids: number of images of four tiles.
        seed: of the choice of scenes.
        progress: called after every image with (done, total).
        variant: see `detcam.scenes.planted`.
        target: the scalar that is explained.

    Returns:
        A row for each method and layers: "name", "objects", and "inside" with the mean share of the relevance in the
        object's tile and its 95 % interval.
    """
    names = list(METHODS) if list(methods) == ["all"] else list(methods)
    taking_part: list[tuple[str, Method | Combination, str]] = []
    for name in names:
        method = _built(name)
        if isinstance(method, Method) and not isinstance(method, PathMethod):  # whose maps are of another forward
            taking_part += [(f"{name} @ {layer}", method, layer) for layer in layers]
        elif isinstance(method, Combination):
            taking_part.append((name, method, ""))
    adapter = Explainer(f"planted_{variant}", "odam", conf=CONF, target=target).adapter
    shares: dict[str, list[float]] = {title: [] for title, _, _ in taking_part}
    pictures: dict[str, list[int]] = {title: [] for title, _, _ in taking_part}
    for number, (_, tiles) in enumerate(same_class_tiles(variant, grids, seed)):
        for title, method, layer in taking_part:
            try:
                maps = tiled_maps(adapter, method, layer, tiles, target)
            except InputError:  # CAM wants global average pooling behind the layer
                shares.pop(title, None)
                continue
            for tiled in maps:
                shares[title].append(tiled.inside)
                pictures[title].append(number)
        if progress is not None:
            progress(number + 1, grids)
    return [_row(name, values, pictures[name], seed) for name, values in shares.items()]


def _built(name: str) -> Any:
    try:
        return get_method(name)
    except (InputError, TypeError):  # `captum` alone is not a method
        return None


def same_class_grid(
    methods: Sequence[str],
    layers: Sequence[str],
    grids: int,
    seed: int = 0,
    progress: Progress | None = None,
    variant: str = "mark",
    target: str = "class",
    quick: bool = False,
) -> list[dict[str, Any]]:
    """The same-class grid: the share of the heat in the tile of the explained object, for all methods.

    The arguments and rows are those of `difull`; `methods` and `quick` as in `contenders`.
    """
    model = load_model(f"planted_{variant}")
    taking_part, _ = contenders(model, methods, layers, quick, conf=CONF, target=target, imgsz=2 * SIZE)
    shares: dict[str, list[float]] = {contender.name: [] for contender in taking_part}
    pictures: dict[str, list[int]] = {contender.name: [] for contender in taking_part}
    for number, (class_id, tiles) in enumerate(same_class_tiles(variant, grids, seed)):
        picture = np.concatenate([np.concatenate(tiles[i : i + 2], axis=1) for i in (0, 2)])
        for contender in taking_part:
            explanation = contender.explain(picture)
            centres = (explanation.boxes[:, :2] + explanation.boxes[:, 2:]) / 2
            tile_of = (centres[:, 1] >= SIZE).long() * 2 + (centres[:, 0] >= SIZE).long()
            tile_of[explanation.class_ids != class_id] = -1
            for tile in range(TILES):
                best = (tile_of == tile).nonzero().flatten()[:1]  # objects come best score first
                if len(best):
                    region = tile_mask(tile, (2 * SIZE, 2 * SIZE)).to(best.device)
                    shares[contender.name].append(float(energy(explanation.heatmaps[best], region[None])))
                    pictures[contender.name].append(number)
        if progress is not None:
            progress(number + 1, grids)
    return [_row(name, values, pictures[name], seed) for name, values in shares.items()]


def same_class_tiles(variant: str, grids: int, seed: int) -> Iterator[tuple[int, list[Image]]]:
    """(class id, four images with an object of that class) for each grid, the classes in turn."""
    scenes = (draw_planted(number, variant) for number in seeds_of(TILES * grids * 4 + 40, seed))
    for turn in range(grids):
        class_id = turn % len(SYMBOLS)
        tiles: list[Image] = []
        while len(tiles) < TILES:
            scene = next(scenes)
            if class_id in scene.class_ids:
                tiles.append(scene.image)
        yield class_id, tiles


def _row(name: str, shares: list[float], pictures: list[int], seed: int) -> dict[str, Any]:
    inside = bootstrap(np.array(shares, np.float64), np.array(pictures, np.int64), seed)
    return {"name": name, "objects": len(shares), "inside": asdict(inside)}
