"""A recorded selection is read again from other values."""

import torch

from detcam.engine.frozen_topk import RecordTopk, ReplayTopk


def test_topk_gives_the_recorded_places_with_current_values(seed: int) -> None:
    ranking, changed = torch.rand(2, 9), torch.rand(2, 9)
    with RecordTopk() as recorded:
        first, second = ranking.topk(3, dim=1).indices, torch.topk(ranking[0], 2).indices
    for _ in range(2):  # every time from the start
        with ReplayTopk(recorded.indices):
            one, two = torch.topk(input=changed, k=3, dim=1), changed[0].topk(2)
            other = changed.topk(5)  # was not recorded
        assert torch.equal(one.indices, first)
        assert torch.equal(two.indices, second)
        assert torch.equal(one.values, changed.gather(1, first))
        assert torch.equal(other.indices, changed.topk(5).indices)
    assert torch.equal(changed.topk(3, dim=1).indices, torch.topk(changed, 3, dim=1).indices)
