"""What a process of the local engine does."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
import traceback
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

from detcam.errors import DetcamError

if TYPE_CHECKING:
    from detcam.batch.worker import Options, Tick, Worker


def serve(connection: Connection, options: Options, device: str | None, name: str, threads: int, tick: Tick) -> None:
    """Make a worker and say None; then answer each chunk with its Batch, or an exception, until nobody listens."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the engine decides when to end
    threading.Thread(target=_end_with_the_engine, daemon=True).start()
    try:
        _serve(connection, make_worker(options, device, name, threads), tick)
    except (EOFError, OSError):  # the engine ended
        return
    except Exception as error:
        connection.send(portable(error))


def _serve(connection: Connection, worker: Worker, tick: Tick) -> None:
    connection.send(None)
    while True:
        chunk = connection.recv()
        connection.send(worker.run(chunk.items, chunk.number, chunk.places, tick))


def _end_with_the_engine() -> None:
    """If its process is killed, nobody will take what is being made here."""
    engine = multiprocessing.parent_process()
    assert engine is not None
    engine.join()
    os._exit(1)


def make_worker(options: Options, device: str | None, name: str, threads: int) -> Worker:
    """A worker for this process, which it has for itself: libraries are told to use so many threads.

    Raises:
        InputError: see `Worker`.
    """
    import cv2
    import torch

    from detcam.batch.worker import Worker

    torch.set_num_threads(threads)
    cv2.setNumThreads(threads)
    worker = Worker(options, device, name)
    worker.warm_up()
    return worker


def portable(error: Exception) -> Exception:
    """The same error, or one of its text if it does not survive the way to another process."""
    if not isinstance(error, DetcamError):
        traceback.print_exception(error)  # only here is the place known
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
