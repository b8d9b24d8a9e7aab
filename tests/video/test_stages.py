"""Stages in threads: order, bounded room, errors, endings, and clocks that add up."""

import threading
import time
from collections.abc import Iterator

import pytest

from detcam.video.stages import Ahead, Clock, timed


def working() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "detcam video"}


class Counted:
    """Numbers, with what became of them."""

    def __init__(self, count: int, error_at: int | None = None) -> None:
        self.made, self.closed = 0, False
        self._count, self._error_at = count, error_at

    def __iter__(self) -> Iterator[int]:
        for i in range(self._count):
            if i == self._error_at:
                raise ValueError("in the stage")
            self.made += 1
            yield i

    def close(self) -> None:
        self.closed = True


def test_all_items_in_order_and_never_more_than_the_room_ahead() -> None:
    items = Counted(50)
    stage = Ahead(items, 3, Clock())
    taken = []
    for item in stage:
        taken.append(item)
        time.sleep(0.001)
        assert items.made <= len(taken) + 3 + 1  # one is in the hand of the thread
    assert taken == list(range(50))
    stage.close()
    assert items.closed
    assert not working()


def test_an_error_arrives_after_what_came_before_it() -> None:
    stage = Ahead(Counted(50, error_at=7), 3, Clock())
    taken: list[int] = []
    with pytest.raises(ValueError, match="in the stage"):
        taken.extend(stage)
    assert taken == list(range(7))
    stage.close()
    assert not working()


def test_leaving_early_ends_every_thread() -> None:
    first = Ahead(Counted(10**6), 2, Clock())
    second = Ahead((i * 2 for i in first), 2, Clock())
    assert [item for item, _ in zip(second, range(3), strict=False)] == [0, 2, 4]
    second.close()
    first.close()
    assert not working()


def test_an_event_ends_the_waiting() -> None:
    stop, never = threading.Event(), threading.Event()
    stage = Ahead((never.wait(60) for _ in range(9)), 2, Clock(), stop=stop)
    threading.Timer(0.05, stop.set).start()
    assert list(stage) == [], "not a single item was waited for"
    never.set()
    stage.close()


def test_the_newest_win_where_nobody_waits() -> None:
    stage = Ahead(Counted(100), 2, Clock(), newest=True)
    while working() and stage.dropped < 97:
        time.sleep(0.001)
    taken = list(stage)
    assert taken == sorted(taken)
    assert taken[-1] == 99
    assert len(taken) + stage.dropped == 100
    assert len(taken) <= 3


def test_parts_add_up_to_the_life_of_the_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("detcam.video.stages.perf_counter", lambda: now)

    def slow() -> Iterator[int]:
        nonlocal now
        for i in range(3):
            now += 2
            yield i

    clock = Clock()
    now += 100  # before the thread begins
    clock.start()
    for _ in timed(slow(), clock, "input"):
        with clock("work"):
            now += 5
    assert clock.to_dict() == {"input": 6, "work": 15, "alive": 21}


@pytest.mark.nightly
def test_each_stage_knows_what_it_waited_for() -> None:
    """A slow stage between two fast ones."""
    clocks = [Clock(), Clock(), Clock()]

    def slow(items: Iterator[int]) -> Iterator[int]:
        for item in items:
            with clocks[1]("work"):
                time.sleep(0.01)
            yield item

    first = Ahead(timed(range(30), clocks[0], "make"), 2, clocks[0])
    second = Ahead(slow(timed(first, clocks[1], "input")), 2, clocks[1])
    clocks[2].start()
    assert list(timed(second, clocks[2], "input")) == list(range(30))
    for clock in clocks:
        assert sum(clock.parts.values()) == pytest.approx(clock.alive, rel=0.1, abs=0.02)
    waits = [(clocks[0].parts, "room"), (clocks[2].parts, "input")]
    assert all(max(parts, key=parts.__getitem__) == part for parts, part in waits)
    assert max(clocks[1].parts, key=clocks[1].parts.__getitem__) == "work"
