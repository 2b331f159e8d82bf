"""Worker processes for library calls: from a script without a main guard, from a notebook, beside the caller's threads.

Processes that are spawned by the standard library run the caller's script once more, and end in BrokenProcessPool
where it has no main guard. Loky's (they come with joblib) start from nothing but what they are sent.
"""

from __future__ import annotations

import os
import threading
import time
import warnings
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from joblib.externals.loky import ProcessPoolExecutor

__all__ = ["BrokenProcessPool", "WorkerPool", "usable_cores", "worker_pool"]

# Work is shared out by processes: a second layer of threads would only get in the way.
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
# How often a worker looks whether its parent lives, in seconds.
_WATCH = 0.1

# A worker that has grown is replaced between two tasks; nobody needs to do anything about that.
warnings.filterwarnings("ignore", message="A worker stopped while some jobs were given to the executor")


def usable_cores() -> int:
    """Processor cores that this process may use: a container or a cluster's job often has fewer than the machine."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class WorkerPool(ProcessPoolExecutor):
    """``concurrent.futures`` executor whose ``shutdown`` can drop what has not begun."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._submitted: weakref.WeakSet[Future[Any]] = weakref.WeakSet()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **options: Any) -> Future[Any]:
        future: Future[Any] = super().submit(fn, *args, **options)
        self._submitted.add(future)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False, kill_workers: bool = False) -> None:
        if cancel_futures:
            for future in list(self._submitted):
                future.cancel()
        super().shutdown(wait=wait, kill_workers=kill_workers)


def worker_pool(
    workers: int, initializer: Callable[..., None] | None = None, initargs: tuple[Any, ...] = ()
) -> WorkerPool:
    """A pool of fresh processes, each with one thread for numerical libraries, that end when their parent ends.

    ``initializer`` is called with ``initargs`` in each before its first task. A worker that crashes raises
    BrokenProcessPool from the futures of all tasks in flight.
    """
    return WorkerPool(
        workers,
        initializer=_start,
        initargs=(os.getpid(), initializer, initargs),
        env=dict.fromkeys(_THREADS, "1"),
    )


def _start(parent: int, initializer: Callable[..., None] | None, initargs: tuple[Any, ...]) -> None:
    # A killed parent cannot tell its workers; they would wait for ever, holding the locks of their work.
    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_WATCH)
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="parent watch").start()
    if initializer is not None:
        initializer(*initargs)
