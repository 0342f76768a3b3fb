"""Read before, and write behind the detector, in threads: OpenCV and the networks release the interpreter's lock."""

from __future__ import annotations

import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from queue import Empty, Full, Queue
from threading import Event, Thread
from typing import Any, TypeVar

T = TypeVar('T')
PATIENCE = 0.2  # seconds after which a thread looks whether it is to stop


def read_ahead(items: Iterable[T], count: int, stop: Event | None = None) -> Iterator[T]:
    """Iterate in a thread of its own.

    Args:
        items: They are iterated over, and closed, in that thread.
        count: Items that wait at the most.
        stop: If it is set, the iteration ends, even while the next item is being waited for.

    Yields:
        The items in their order. An error arrives after the items before it.
    """
    ready: Queue[tuple[Any, BaseException | None, bool]] = Queue(count)
    left = Event()

    def put(*entry: Any) -> bool:
        while not left.is_set():
            try:
                ready.put(entry, timeout=PATIENCE)
            except Full:
                continue
            return True
        return False

    def work() -> None:
        iterator = iter(items)
        try:
            while not left.is_set():
                try:
                    item = next(iterator)
                except StopIteration:
                    put(None, None, True)
                    return
                if not put(item, None, False):
                    return
        except BaseException as error:  # raised where the items are used
            put(None, error, True)
        finally:
            getattr(iterator, 'close', lambda: None)()

    thread = Thread(target=work, daemon=True)
    thread.start()
    try:
        while stop is None or not stop.is_set():
            try:
                item, error, is_last = ready.get(timeout=PATIENCE)
            except Empty:
                continue
            if error is not None:
                raise error
            if is_last:
                return
            yield item
    finally:
        left.set()
        thread.join(10 * PATIENCE)  # one that waits for a dead camera is left behind


@contextmanager
def stop_on_signals() -> Iterator[Event]:
    """Set an event at the first Ctrl-C or SIGTERM, so that the work can end in order; the second one interrupts it."""
    stop = Event()

    def handle(number: int, frame: Any) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
