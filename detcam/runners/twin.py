"""Twin: the same objects explained by the same model with other weights."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from detcam.adapters import Adapter
from detcam.engine.frozen_topk import RecordTopk, ReplayTopk
from detcam.engine.randomised import randomised
from detcam.explanation import Explanation
from detcam.types import Objects


@contextmanager
def held(adapter: Adapter, objects: Objects) -> Iterator[None]:
    """Context in which the adapter detects these objects in every image, whatever the model's output."""
    vars(adapter)["detect"] = lambda *_: [objects]
    try:
        yield
    finally:
        del vars(adapter)["detect"]


def frozen_topk(adapter: Adapter, explain: Callable[[], Any]) -> Callable[[], AbstractContextManager[Any]]:
    """A factory of contexts in which the model selects the same queries as in a call of `explain`, made now."""
    if adapter.stable:
        return nullcontext
    recorded = RecordTopk()
    with recorded:
        explain()
    return lambda: ReplayTopk(recorded.indices)


def twin_of(adapter: Adapter, objects: Objects, explain: Callable[[], Explanation]) -> Explanation:
    """What `explain` returns for these objects, and the same queries, when all weights of the model are shuffled."""
    with held(adapter, objects):
        same_queries = frozen_topk(adapter, explain)  # as held: `detect` may select, too
        with randomised(adapter.module, 1.0, seed=0), same_queries():
            return explain()
