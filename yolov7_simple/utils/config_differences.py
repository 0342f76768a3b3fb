"""What differs between the config that a checkpoint was trained with and another one."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterable, Mapping

from mmengine.runner import Runner

DifferenceRow = tuple[str, str, str]  # what, its value in the checkpoint, its value now
RUNNER_KEYS = inspect.signature(Runner.__init__).parameters.keys() - {'self', 'cfg'}
# What a run is told anew each time, and what no training reads.
NOT_COMPARED = {'work_dir', 'load_from', 'resume', 'launcher', 'experiment_name', 'log_level', 'visualizer'}
COMPARED = (RUNNER_KEYS | {'compile', 'activation_checkpointing'}) - NOT_COMPARED
MAX_DIFFERENCES = 30
WIDEST = 60  # characters of a value in the table


def config_differences(saved: str | None, now: dict) -> list[DifferenceRow]:
    """Compare the text of a saved config with today's: (key, value of then, value of now)."""
    if not saved:
        return []
    before = dict(flatten({key: value for key, value in read_config_text(saved).items() if key in COMPARED}))
    after = dict(flatten({key: value for key, value in now.items() if key in COMPARED}))
    keys = [*after, *(key for key in before if key not in after)]
    return [
        (key, before.get(key, '-'), after.get(key, '-')) for key in keys if before.get(key, '-') != after.get(key, '-')
    ]


def read_config_text(text: str) -> dict:
    """Read the text of a config that mmengine has written into a checkpoint, without running it as it would."""
    assignments = [node for node in ast.parse(text).body if isinstance(node, ast.Assign)]
    return {node.targets[0].id: read_value(node.value) for node in assignments if isinstance(node.targets[0], ast.Name)}


def read_value(node: ast.expr) -> object:
    """Read a value; one that is not plain becomes its own text."""
    if isinstance(node, ast.Call) and getattr(node.func, 'id', '') == 'dict':
        return {word.arg: read_value(word.value) for word in node.keywords if word.arg}
    if isinstance(node, ast.Dict) and all(isinstance(key, ast.Constant) for key in node.keys):
        return {key.value: read_value(value) for key, value in zip(node.keys, node.values)}
    if isinstance(node, (ast.List, ast.Tuple)):
        return [read_value(value) for value in node.elts]
    try:
        return ast.literal_eval(node)
    except ValueError:
        return ast.unparse(node)


def flatten(value: object, key: str = '') -> Iterable[tuple[str, str]]:
    """Yield the dotted key and the text of each plain value in nested dicts and lists of dicts."""
    if isinstance(value, Mapping) and value:
        for name, inner in value.items():
            yield from flatten(inner, f'{key}.{name}' if key else str(name))
    elif isinstance(value, (list, tuple)) and any(isinstance(inner, (Mapping, list, tuple)) for inner in value):
        for i, inner in enumerate(value):
            yield from flatten(inner, f'{key}.{i}')
    else:
        if isinstance(value, (list, tuple)):
            value = list(value)
        elif key.rpartition('.')[2] == 'type':  # a class in one style of configs is its name in the other
            value = getattr(value, '__name__', str(value)).rpartition('.')[2]
        yield key, str(value)


def table(rows: list[DifferenceRow]) -> list[str]:
    """Lines of a table of (key, value of the checkpoint, value of now)."""
    shown = [('', 'checkpoint', 'now'), *rows[:MAX_DIFFERENCES]]
    cells = [[cell if len(cell) <= WIDEST else f'{cell[: WIDEST - 3]}...' for cell in row] for row in shown]
    widths = [max(len(row[i]) for row in cells) for i in range(3)]
    lines = ['  ' + '  '.join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in cells]
    return lines + ([f'  and {len(rows) - MAX_DIFFERENCES} more'] if len(rows) > MAX_DIFFERENCES else [])
