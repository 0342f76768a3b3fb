import os
import signal
import threading
from itertools import count, islice

import pytest

from yolov7_simple.runtime.threads import read_ahead, stop_on_signals


def test_the_order_is_kept_and_errors_come_last():
    def items():
        yield from range(50)
        raise ValueError('broken')

    got = []
    with pytest.raises(ValueError, match='broken'):
        got.extend(read_ahead(items(), 3))
    got = []
    with pytest.raises(ValueError, match='broken'):
        for item in read_ahead(items(), 3):
            got.append(item)
    assert got == list(range(50))
    assert list(read_ahead([], 1)) == []


def test_only_so_many_wait_and_the_source_is_closed():
    begun, closed = [], threading.Event()

    def items():
        try:
            for i in count():
                begun.append(i)
                yield i
        finally:
            closed.set()

    reader = read_ahead(items(), 3)
    assert list(islice(reader, 5)) == list(range(5))
    reader.close()
    assert closed.wait(5)
    assert len(begun) <= 5 + 3 + 2


def test_it_ends_while_the_next_item_is_waited_for():
    stop, never = threading.Event(), threading.Event()

    def items():
        yield 1
        never.wait(20)

    reader = read_ahead(items(), 1, stop)
    assert next(reader) == 1
    threading.Timer(0.1, stop.set).start()
    assert list(reader) == []
    never.set()


def test_the_first_signal_asks_and_the_second_interrupts():
    before = signal.getsignal(signal.SIGTERM)
    with stop_on_signals() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.is_set()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) is before
