"""K from a budget, against trying every K."""

import threading
from typing import Any

import numpy as np
from frames import Pictures

import detcam
from detcam import Explainer
from detcam.video.detect import LONGEST, Pace, choose, period


def test_the_least_k_that_meets_it(seed: int) -> None:
    generator = np.random.default_rng(seed)
    for _ in range(200):
        budget, plain, extra = generator.uniform(5, 60), generator.uniform(0.001, 0.05), generator.uniform(0, 0.5)
        meets = [k for k in range(1, LONGEST + 1) if plain + extra / k <= 0.8 / budget]
        assert period(budget, plain, plain + extra) == (meets[0] if meets else LONGEST)


def test_k_follows_what_frames_cost() -> None:
    pace = Pace(1, budget=10)
    pace.note(4, False, 4 * 0.02)
    pace.note(4, True, 4 * 0.19)
    assert pace.every == 3  # 0.02 + 0.17 / 3 < 0.08 < 0.02 + 0.17 / 2
    for _ in range(60):
        pace.note(4, True, 4 * 0.05)
    assert pace.every == 1


def test_a_cheaper_method_where_the_one_asked_for_is_too_expensive(explainer: Explainer, picture: np.ndarray) -> None:
    class Slow:
        def __init__(self) -> None:
            vars(self).update(vars(explainer))
            self.settings = {**explainer.settings, "method": "slow"}

        def __call__(self, images: Any) -> Any:
            threading.Event().wait(0.6)
            return explainer(images)

    slow: Any = Slow()
    chosen, _, description = choose([picture] * 2, slow, 8, explainer)
    assert chosen is explainer
    assert "odam" in description
    assert "slow on every" in description
    chosen, every, description = choose([picture] * 2, slow, 0.05, explainer)
    assert chosen is slow
    assert every <= 5
    assert "slow on every" in description


def test_the_run_says_what_it_chose(explainer: Explainer, picture: np.ndarray) -> None:
    stats = detcam.video.Stats()
    frames = list(detcam.video.explain(Pictures([picture] * 9), explainer, budget=0.01, stats=stats))
    assert len(frames) == 9
    assert all(frame.explained for frame in frames)
    assert stats.choice is not None
    assert "budget of 0.01 frames a second: odam on every 1st frame" in stats.choice
