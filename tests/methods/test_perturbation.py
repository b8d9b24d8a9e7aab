"""Masks on the picture against loops over single forwards, and a peer."""

import cv2
import numpy as np
import pytest
import pytorch_grad_cam as peer
import torch
from skimage.segmentation import slic
from sweep_settings import LAYER, SIZE, Setting, assert_maps, captured, peer_map
from torch import Tensor, nn
from torch.nn.functional import interpolate

from detcam.methods.perturbation import DRISE, ISCAM, RISE, SSCAM, Occlusion, RandomMasks
from detcam.methods.similarity import LEAST, similarity
from detcam.methods.superpixels import DCLOSE


def blocks(masks: np.ndarray) -> np.ndarray:
    """[M, H, W] as means over 8 x 8 pixels."""
    m, height, width = masks.shape
    return masks.reshape(m, height // 8, 8, width // 8, 8).mean(axis=(2, 4))


def weighted(masks: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """[N, h, w]: for every cell the mean of scores [M, N] weighted by the masks there, in loops."""
    coarse = blocks(masks)
    maps = np.zeros((scores.shape[1], *coarse.shape[1:]))
    for n in range(scores.shape[1]):
        for i in range(coarse.shape[1]):
            for j in range(coarse.shape[2]):
                maps[n, i, j] = np.average(scores[:, n], weights=coarse[:, i, j])
    return maps


def test_rise_by_hand(exact: Setting, seed: int) -> None:
    explanation = exact.explain(RISE(masks=23, cells=4, kept=0.4, seed=seed))
    masks = RandomMasks(23, 4, 0.4, (64, SIZE), seed)(slice(0, 23), torch.device("cpu"))
    scores = [exact.logits(exact.pixels * mask, explanation).sigmoid().numpy() for mask in masks]
    assert_maps(explanation, weighted(masks.numpy().astype(np.float64), np.stack(scores)))
    assert explanation.settings["target"] == "prob"
    assert explanation.settings["layers"] == []


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    width = max(min(a[2], b[2]) - max(a[0], b[0]), 0)
    height = max(min(a[3], b[3]) - max(a[1], b[1]), 0)
    both = width * height
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)


def test_drise_by_hand(exact: Setting, seed: int) -> None:
    """Equations 4 to 7 over all anchors, on boxes as Ultralytics decodes them."""
    explanation = exact.explain(DRISE(masks=17, cells=5, seed=seed))
    objects = explanation.objects
    masks = RandomMasks(17, 5, 0.5, (64, SIZE), seed)(slice(0, 17), torch.device("cpu"))
    own = exact.raw(exact.pixels)[0][4:, objects.index].T.numpy()  # [N, nc]
    scores = np.zeros((17, 4))
    for m, mask in enumerate(masks):
        rows = exact.raw(exact.pixels * mask)[0].T.double().numpy()  # [A, 4 + nc]
        corners = np.concatenate([rows[:, :2] - rows[:, 2:4] / 2, rows[:, :2] + rows[:, 2:4] / 2], axis=1)
        for n in range(4):
            box = objects.network_boxes[n].double().numpy()
            for corner, p in zip(corners, rows[:, 4:], strict=True):
                cosine = (p @ own[n]) / np.linalg.norm(p) / np.linalg.norm(own[n])
                scores[m, n] = max(scores[m, n], overlap(box, corner) * cosine * p.max())
    assert_maps(explanation, weighted(masks.numpy().astype(np.float64), scores))
    assert explanation.settings["target"] == "similarity"


def test_dclose_by_hand(exact: Setting, seed: int) -> None:
    """Masks of scikit-image's superpixels at two scales; levels stretched and fused from coarse to fine."""
    explanation = exact.explain(DCLOSE(masks=7, levels=2, coarsest=6, seed=seed))
    objects = explanation.objects
    generator = torch.Generator().manual_seed(seed)
    pixels = exact.pixels.permute(1, 2, 0).float().numpy()
    stretched = (pixels - pixels.min()) / (pixels.max() - pixels.min())
    boxes = objects.network_boxes.double().numpy()
    own = exact.raw(exact.pixels)[0][4:, objects.index].T.numpy()
    labels = [slic(stretched, 6 * 2**level, compactness=30, sigma=1, start_label=0) for level in range(2)]
    assert labels[0].max() < labels[1].max()
    kept = [torch.rand(7, int(one.max()) + 1, generator=generator).numpy() < 0.5 for one in labels]
    fused = np.zeros((4, 8, 12))
    for place, keep in zip(labels, kept, strict=True):
        masks = np.stack([chosen[place] for chosen in keep]).astype(np.float64)
        scores = np.zeros((7, 4))
        for m, mask in enumerate(masks):
            rows = exact.raw(exact.pixels * torch.from_numpy(mask))[0].T.double().numpy()
            corners = np.concatenate([rows[:, :2] - rows[:, 2:4] / 2, rows[:, :2] + rows[:, 2:4] / 2], axis=1)
            for n in range(4):
                for corner, p in zip(corners, rows[:, 4:], strict=True):
                    if p.max() > LEAST:
                        cosine = (p @ own[n]) / np.linalg.norm(p) / np.linalg.norm(own[n])
                        scores[m, n] = max(scores[m, n], overlap(boxes[n], corner) * cosine * p.max())
        coarse = blocks(masks)
        shown = np.maximum(coarse.sum(axis=0), 1e-30)
        level = np.einsum("mn,mhw->nhw", scores, coarse) / shown
        low, high = level.min(axis=(1, 2), keepdims=True), level.max(axis=(1, 2), keepdims=True)
        level = (level - low) / np.maximum(high - low, 1e-30)
        fused = (fused + level) * level
    assert_maps(explanation, fused, 1e-3)
    assert explanation.settings["target"] == "similarity"


def test_similarity_is_1_for_the_object_itself_and_0_for_nothing(seed: int) -> None:
    boxes, own = torch.tensor([[0.0, 0, 10, 10], [20, 20, 30, 40]]), torch.tensor([[0.2, 0.8], [0.9, 0.1]])
    itself = similarity(boxes, own, boxes.flip(0), own.flip(0) * 0.5, torch.ones(2))
    torch.testing.assert_close(itself, torch.ones(2))
    half = similarity(boxes, own, torch.tensor([[0.0, 0, 10, 5]]), own[:1], torch.tensor([0.5]))
    torch.testing.assert_close(half, torch.tensor([0.25, 0.0]))
    assert not similarity(boxes, own, boxes, own, torch.full((2,), LEAST / 2)).any()


def test_random_masks_are_the_paper_s(seed: int) -> None:
    """Bilinear enlargements of coarse grids, each shifted by less than a cell, with the asked-for mean."""
    masks = RandomMasks(400, 3, 0.3, (20, 32), seed)(slice(0, 400), torch.device("cpu"))
    assert masks.shape == (400, 20, 32)
    assert float(masks.min()) == 0
    assert float(masks.max()) == pytest.approx(1)
    assert abs(float(masks.mean()) - 0.3) < 0.03
    assert float(masks.mean(dim=0).std()) < 0.05, "every pixel is shown as often"
    generator = torch.Generator().manual_seed(seed)
    grid = (torch.rand(400, 3, 3, generator=generator) < 0.3).float()[7].numpy()
    large = cv2.resize(grid, (4 * 11, 4 * 7), interpolation=cv2.INTER_LINEAR)
    windows = [large[y : y + 20, x : x + 32] for y in range(7) for x in range(11)]
    assert min(float(np.abs(window - masks[7].numpy()).max()) for window in windows) < 1e-5


def test_occlusion_by_hand(exact: Setting) -> None:
    explanation = exact.explain(Occlusion(cells=5, patch=2))
    before = exact.logits(exact.pixels, explanation)
    rows, columns = [0, 13, 26, 38, 51, 64], [0, 19, 38, 58, 77, 96]  # fifths, rounded
    drops, counts = np.zeros((4, 5, 5)), np.zeros((5, 5))
    for i in range(4):
        for j in range(4):
            pixels = exact.pixels.clone()
            window = np.s_[:, rows[i] : rows[i + 2], columns[j] : columns[j + 2]]
            pixels[window] = exact.pixels.mean(dim=(1, 2))[:, None, None]
            fallen = (before - exact.logits(pixels, explanation)).numpy()
            for y in (i, i + 1):
                for x in (j, j + 1):
                    drops[:, y, x] += fallen
                    counts[y, x] += 1
    assert_maps(explanation, drops / counts)


def channel_masks(acts: Tensor, size: tuple[int, int]) -> list[Tensor]:
    """Each channel [h, w] enlarged and stretched to [0, 1], one by one."""
    masks = []
    for channel in acts:
        large = interpolate(channel[None, None], size, mode="bilinear")[0, 0]
        span = large.max() - large.min()
        masks.append((large - large.min()) / span if span > 0 else torch.zeros_like(large))
    return masks


def weighted_channels(scores: np.ndarray, acts: Tensor) -> np.ndarray:
    """[N, h, w] from scores [C, N]: channels weighted by the softmax over channels, in double precision."""
    powers = np.exp(scores - scores.max(axis=0))
    return np.einsum("cn,chw->nhw", powers / powers.sum(axis=0), acts.double().numpy())


def test_scorecam_by_hand(exact: Setting) -> None:
    explanation = exact.explain("scorecam", layers=[LAYER])
    (acts,) = captured(exact, LAYER)
    masks = channel_masks(acts, (64, SIZE))
    scores = [exact.logits(exact.pixels * mask, explanation).double().numpy() for mask in masks]
    assert_maps(explanation, weighted_channels(np.stack(scores), acts))


def test_iscam_by_hand(exact: Setting) -> None:
    explanation = exact.explain(ISCAM(samples=2), layers=[LAYER])
    (acts,) = captured(exact, LAYER)
    factors = (1 / 2, 1 / 2 + 2 / 2)
    scores = []
    for mask in channel_masks(acts, (64, SIZE)):
        growing = [exact.logits(exact.pixels * mask * f, explanation).double().numpy() for f in factors]
        scores.append(np.mean(growing, axis=0))
    assert_maps(explanation, weighted_channels(np.stack(scores), acts))


def test_sscam_by_hand(exact: Setting, seed: int) -> None:
    explanation = exact.explain(SSCAM(samples=2, deviation=0.5, seed=seed), layers=[LAYER])
    (acts,) = captured(exact, LAYER)
    generator = torch.Generator().manual_seed(seed)
    masks = channel_masks(acts, (64, SIZE))
    scores = np.zeros((2, len(masks), 4))
    for sample in range(2):
        for k, mask in enumerate(masks):
            noisy = mask + 0.5 * torch.randn(64, SIZE, generator=generator)
            scores[sample, k] = exact.logits(exact.pixels * noisy, explanation).double().numpy()
    assert_maps(explanation, weighted_channels(scores.mean(axis=0), acts))


def test_scorecam_equals_pytorch_grad_cam(exact: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    """The peer enlarges masks with corners aligned; with cells as areas, as everywhere in detcam, it is the same."""
    monkeypatch.setattr(nn, "UpsamplingBilinear2d", lambda size: nn.Upsample(size=size, mode="bilinear"))
    explanation = exact.explain("scorecam", layers=[LAYER])
    assert_maps(explanation, torch.stack([peer_map(peer.ScoreCAM, exact, explanation, i) for i in range(4)]))
