"""Worker processes that end with what they work for, however that ends."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager

from einfuse.mapper.errors import MappingError


def usable_cores() -> int:
    """Return how many processes may run at once here; more of them only wait for each other."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1


@contextmanager
def worker_processes(count: int) -> Iterator[ProcessPoolExecutor]:
    """Yield an executor of fresh processes; at the end they are stopped, whatever they do.

    An interrupt from the keyboard reaches this process alone, and should it be killed, the workers
    end by themselves. As always with processes started afresh, a script that uses them has to be
    importable: it starts them below ``if __name__ == "__main__":``.

    Args:
        count: how many.

    Raises:
        MappingError: a count below 1.
    """
    if count < 1:
        raise MappingError(f"expected at least 1 process, found {count}")
    context = multiprocessing.get_context("spawn")
    executor = ProcessPoolExecutor(count, context, initializer=_end_with_parent)
    before = set(multiprocessing.active_children())
    try:
        with _deaf_to_interrupts():
            executor.submit(os.getpid)  # starts them all
        yield executor
    finally:
        executor.shutdown(wait=False, cancel_futures=True)
        for process in set(multiprocessing.active_children()) - before:
            process.terminate()
            process.join()


@contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    """Processes that start meanwhile ignore interrupts from the keyboard."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end, daemon=True).start()
