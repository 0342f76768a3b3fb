"""Time tasks in turns, so that a machine that changes its pace changes it for all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

# Seconds between two measurements, in which the threads of one library stop spinning before the next one's start.
PAUSE = 0.2


def measure(tasks: dict[str, Callable[[], object]], rounds: int, device: str = 'cpu') -> dict[str, float]:
    """Run all tasks in turns, after two rounds to warm up; returns the median seconds of each.

    Each time lasts until ``device`` has done the work.
    """
    synchronize = torch.get_device_module(device).synchronize
    times: dict[str, list[float]] = {name: [] for name in tasks}
    for i in range(rounds + 2):
        for name, task in tasks.items():
            time.sleep(PAUSE)
            synchronize()
            start = time.perf_counter()
            task()
            synchronize()
            if i >= 2:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}
