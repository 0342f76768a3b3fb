"""A training that ends in a given time: what its parts cost, measured on the real ones, and the length that fits."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from ..runtime.errors import InputError
from .plan import ENOUGH_STEPS, LEAST_STEPS, MAX_TIMED_EPOCHS, EpochSchedule, ImageSize, named

# Of the time that was asked for: planned with, spent on measuring, and on validations at most.
PLANNED_SHARE = 0.97
MEASURED_SHARE = 0.05
VALIDATED_SHARE = 0.2
RARER = (1, 2, 3, 5, 10)
UNITS = {'d': 86400, 'h': 3600, 'm': 60, 's': 1}
FORM = re.compile(''.join(rf'(?:(\d+(?:\.\d+)?){unit})?' for unit in ('d', 'h', 'm(?:in)?', 's')))


# Makes the schedule of a number of epochs, with validations so many times rarer than else.
ScheduleOf = Callable[[int, int], EpochSchedule]


class WallTime(NamedTuple):
    """A time to train in.

    Args:
        text: As the user gave it.
        seconds: Its length.
        begin: When it began, by ``time.monotonic()``.
    """

    text: str
    seconds: float
    begin: float

    @classmethod
    def parse(cls, text: str, begin: float | None = None) -> WallTime:
        """Read a time such as ``30m``, ``1h30m`` or ``90s``, which begins now unless told otherwise.

        Raises:
            InputError: It is none.
        """
        found = FORM.fullmatch(text.strip().lower())
        parts = found.groups(default='0') if found else ()
        seconds = sum(float(part) * factor for part, factor in zip(parts, UNITS.values()))
        if not seconds:
            advice = f'; with a unit, such as {text}m or {text}h' if re.fullmatch(r'\d+(\.\d+)?', text) else ''
            raise InputError(f'--time {text}: must be a time such as 30m, 2h, 1h30m or 90s{advice}')
        return cls(text, seconds, time.monotonic() if begin is None else begin)

    @property
    def left(self) -> float:
        """Seconds that can still be planned with."""
        return PLANNED_SHARE * self.seconds - (time.monotonic() - self.begin)


class Costs(NamedTuple):
    """Seconds that the parts of a training take.

    Args:
        start: Until its first step.
        step: A step, with the wait for its batch, at the mean of the sizes that are drawn.
        epoch: From one epoch to the next, with a checkpoint.
        validation: A validation, with its metric and the checkpoint of the best.
    """

    start: float
    step: float
    epoch: float
    validation: float

    def total(self, schedule: EpochSchedule) -> float:
        """Seconds of a whole training."""
        of_steps = schedule.epochs * (schedule.steps * self.step + self.epoch)
        return self.start + of_steps + schedule.num_validations * self.validation


class TimedPlan(NamedTuple):
    """What fits a time.

    Args:
        size: Of the images.
        schedule: The length.
        costs: As measured.
    """

    size: ImageSize
    schedule: EpochSchedule
    costs: Costs

    def __str__(self) -> str:
        costs = self.costs
        return f'{costs.step:.3g} s a step and {costs.validation:.3g} s a validation were measured'


def longest(costs: Costs, seconds: float, schedule_of: ScheduleOf) -> EpochSchedule | None:
    """The longest schedule that fits; None if not even an epoch does.

    Validations are made rarer until they take at most :data:`VALIDATED_SHARE` of the time, or only the last is left.
    """
    one = schedule_of(1, 1)
    most = min(MAX_TIMED_EPOCHS, int((seconds - costs.start) / (one.steps * costs.step + costs.epoch)))
    found = (sparse_enough(costs, seconds, epochs, schedule_of) for epochs in range(most, 0, -1))
    return next((schedule for schedule in found if costs.total(schedule) <= seconds), None)


def sparse_enough(costs: Costs, seconds: float, epochs: int, schedule_of: ScheduleOf) -> EpochSchedule:
    """The schedule of a length with the most validations that do not take too much of a time."""
    for every in (*RARER, epochs):
        schedule = schedule_of(epochs, every)
        if schedule.num_validations * costs.validation <= VALIDATED_SHARE * seconds:
            break
    return schedule


def plan_time(
    wall_time: WallTime,
    sizes: Sequence[ImageSize],
    schedule_of: ScheduleOf,
    measure: Callable[[ImageSize, float, Costs | None], Costs],
    agree: Callable[[float], float] = float,
) -> TimedPlan:
    """Find the size and the length that fit.

    Args:
        wall_time: The time.
        sizes: The one to take, and smaller ones, in falling order, for where few epochs do not fit.
        schedule_of: Makes the schedule of a number of epochs, with validations so many times rarer.
        measure: What training costs at a size, found in about so many seconds, the same on all ranks; given costs of
            another size, it need not measure anew what differs little.
        agree: Gives all ranks the number of the main one.

    Raises:
        InputError: The time is too short for :data:`LEAST_STEPS` or an epoch at any size; the message says the least.
    """
    budget = MEASURED_SHARE * wall_time.seconds
    steps = schedule_of(1, 1).steps
    size, smaller = sizes[0], sizes[1:]
    costs = measure(size, budget, None)
    found = longest(costs, agree(wall_time.left), schedule_of)
    enough = math.ceil(ENOUGH_STEPS / steps)
    if smaller and (found is None or found.epochs < enough):
        # As if steps grew with the number of pixels, which they do but for reading: measured again.
        seconds = agree(wall_time.left) - budget
        guesses = ((one, longest(at_size(costs, size, one), seconds, schedule_of)) for one in smaller)
        size = next((one for one, guess in guesses if guess and guess.epochs >= enough), smaller[-1])
        costs = measure(size, budget, costs)
        found = longest(costs, agree(wall_time.left), schedule_of)
    if found is None or found.epochs * steps < LEAST_STEPS:
        least = math.ceil(LEAST_STEPS / steps)
        least = schedule_of(least, least)
        spent = time.monotonic() - wall_time.begin
        # A longer time is measured for longer, and no two measurements are alike.
        needed = 1.1 * (costs.total(least) + spent) / PLANNED_SHARE
        raise InputError(
            f'--time {wall_time.text}: too short to learn anything: {least.epochs * steps} steps, or {least.epochs} '
            f'epochs, take {costs.total(least):.0f} s at {named(size)}, after {spent:.0f} s until here: ask for '
            f'--time {math.ceil(needed / 60)}m at least, or set the length by --epochs'
        )
    return TimedPlan(size, found, costs)


def at_size(costs: Costs, size: ImageSize, other: ImageSize) -> Costs:
    """Costs at another size, by the number of pixels; of a validation the metric takes the most."""
    return costs._replace(step=costs.step * math.prod(other) / math.prod(size))
