"""Worker process of the local engine."""

import multiprocessing
import os
import pickle
import signal
import threading
import traceback
from multiprocessing.connection import Connection

import cv2
import torch

from detcam.batch.engines.watchdog import Watchdog
from detcam.batch.worker import Options, Worker
from detcam.errors import DetcamError


def serve(connection: Connection, options: Options, device: str | None, name: str, threads: int, limit: float) -> None:
    """Make a worker and send None; then answer each chunk with its Batch, or an exception, until the engine ends.

    `threads` are those that libraries may use on the CPU, `limit` the seconds for an image, see `Watchdog`.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the engine decides when to end
    threading.Thread(target=_end_with_engine, daemon=True).start()
    watchdog = Watchdog(limit)
    watchdog.pause_on_ctrl_z()
    try:
        worker = make_worker(options, device, name, threads)
        connection.send(None)
        while True:
            chunk = connection.recv()
            watchdog()
            batch = worker.run(chunk.items, chunk.number, chunk.places, watchdog)
            watchdog.stop()
            connection.send(batch)
    except (EOFError, OSError):  # the engine ended
        return
    except Exception as error:
        connection.send(portable(error))


def _end_with_engine() -> None:
    """End this process when the engine's process is killed: nobody would receive its results."""
    engine = multiprocessing.parent_process()
    assert engine is not None
    engine.join()
    os._exit(1)


def make_worker(options: Options, device: str | None, name: str, threads: int) -> Worker:
    """A worker for a process of its own, in which libraries use `threads` threads; see `Worker`."""
    torch.set_num_threads(threads)
    cv2.setNumThreads(threads)
    worker = Worker(options, device, name)
    worker.warm_up()
    return worker


def portable(error: Exception) -> Exception:
    """The error itself if it can be sent to another process, else a RuntimeError with its text."""
    if not isinstance(error, DetcamError):
        traceback.print_exception(error)  # its place in the code is not sent
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
