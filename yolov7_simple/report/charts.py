"""Charts of a report, as SVG: curves, schedule, precision and recall, confusions."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from ..apis.inference import quiet
from .error_types import ErrorType, Losses
from .matching import OTHER_TRUTH, Confusions, Evaluated
from .runs import Schedule, metric_key

# Okabe and Ito's colours, which colour-blind readers can tell apart.
COLORS = ['#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9', '#000000', '#8C6D31']
DASHES = ['-', '--', '-.', ':']
MAX_LINES = len(COLORS)
MAX_NAME = 20  # characters of a class name in a chart; the tables have the whole name
MAX_CELLS = 25  # with more classes, cells of the confusion matrix carry no number
STYLE = {
    'font.size': 10,
    'axes.spines.top': False,
    'axes.spines.right': False,
    'axes.grid': True,
    'grid.color': '#e4e4e4',
    'axes.axisbelow': True,
    'legend.frameon': False,
    'legend.fontsize': 9,
    'svg.hashsalt': 'report',  # the same numbers give the same file
}


@contextmanager
def chart(title: str, xlabel: str, ylabel: str, pictures: dict[str, bytes], size=(5.2, 3.3)) -> Iterator[Axes]:
    """Yield axes to draw into, then store the SVG in ``pictures`` under its title."""
    with rc_context(STYLE):
        figure = Figure(size, layout='constrained')
        axes = figure.add_subplot()
        axes.set(xlabel=xlabel, ylabel=ylabel)
        axes.set_title(title, loc='left', fontsize=11, fontweight='bold')
        yield axes
        file = io.BytesIO()
        with quiet():  # matplotlib warns of characters that its font lacks; the tables have all names
            figure.savefig(file, format='svg', metadata={'Date': None})
        pictures[title] = file.getvalue()


def line(axes: Axes, i: int, *data: Sequence[float], **options) -> None:
    """Draw the ``i``-th line, which differs by colour first, then by dashes."""
    axes.plot(*data, color=COLORS[i % len(COLORS)], linestyle=DASHES[i // len(COLORS) % len(DASHES)], **options)


def shorten_name(name: str) -> str:
    """Shorten a class name for a chart, and escape what matplotlib would typeset as mathematics."""
    name = name if len(name) <= MAX_NAME else f'{name[: MAX_NAME - 1]}\N{HORIZONTAL ELLIPSIS}'
    return name.replace('$', r'\$')


def draw_curves(train: list[dict], val: list[dict], classes: Sequence[str]) -> dict[str, bytes]:
    """Draw losses, learning rate and mAP as they were logged.

    Returns:
        SVG files by title, only of what was logged.
    """
    pictures: dict[str, bytes] = {}
    if train:
        names = [key for key in dict.fromkeys(key for one in train for key in one) if key.startswith('loss')]
        with chart('Losses', 'step', 'loss', pictures) as axes:
            for i, name in enumerate(names):
                points = [(one['iter'], one[name]) for one in train if name in one]
                line(axes, i, *zip(*points), label=name, linewidth=2 if name == 'loss' else 1.3)
            axes.set_ylim(bottom=0)
            axes.legend(ncols=2)
        if 'lr' in train[0]:
            with chart('Learning rate, as logged', 'step', 'learning rate', pictures) as axes:
                line(axes, 0, [one['iter'] for one in train], [one['lr'] for one in train])
                axes.set_ylim(bottom=0)
    titles = {
        'mAP on the validation set': {'bbox_mAP': 'mAP', 'bbox_mAP_50': 'mAP50', 'bbox_mAP_75': 'mAP75'},
        'AP of each class on the validation set': {
            f'{name}_precision': shorten_name(name) for name in classes[:MAX_LINES]
        },
        'Loss on the validation set': {'val_loss': 'val_loss'},
    }
    for title, names in titles.items():
        keys = {metric_key(val, name): label for name, label in names.items()}
        keys.pop(None, None)
        if not keys:
            continue
        with chart(title, 'epoch', 'loss' if 'Loss' in title else 'AP', pictures) as axes:
            for i, (key, label) in enumerate(keys.items()):
                points = [(one['step'], one[key]) for one in val if key in one]
                line(axes, i, *zip(*points), label=label, marker='o', markersize=3)
            axes.set_ylim(bottom=0)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.legend()
    return pictures


def draw_schedule(schedule: Schedule) -> dict[str, bytes]:
    """Draw the planned learning rate, with warm-up, last stage and validations marked."""
    pictures: dict[str, bytes] = {}
    end = math.ceil(schedule.epochs[-1])
    with chart('Schedule', 'epoch', 'learning rate', pictures, (6.4, 3.3)) as axes:
        line(axes, 0, schedule.epochs, schedule.lrs, linewidth=2)
        spans = [('warm-up', 0, schedule.warmup, COLORS[4])]
        if schedule.last_stage is not None:
            spans.append(('last stage: no mosaic, L1 loss', schedule.last_stage, end, COLORS[2]))
        for label, start, stop, color in spans:
            if stop > start:
                axes.axvspan(start, stop, color=color, alpha=0.2, linewidth=0, label=f'{label} ({start:g} to {stop:g})')
        axes.set(xlim=(0, end), ylim=(0, max(schedule.lrs) * 1.08))
        marks = {'marker': '|', 'linestyle': '', 'color': COLORS[1], 'clip_on': False, 'markersize': 8}
        axes.plot(schedule.validations, [0] * len(schedule.validations), label='validations', **marks)
        axes.figure.legend(loc='outside lower center', ncols=3, fontsize=9, frameon=False)
    return pictures


def draw_precision_recall(evaluated: Evaluated, points: NDArray) -> dict[str, bytes]:
    """Draw precision over recall at IoU 0.5 for each class; if there are many, the worst and the mean stand out.

    Args:
        evaluated: Results with the curves.
        points: (C, 2), precision and recall to mark for each class; nan for no mark.
    """
    pictures: dict[str, bytes] = {}
    recall, precision = evaluated.recall_thresholds, evaluated.precision[0]  # (R,), (R, C)
    average = evaluated.class_ap[:, 1]
    known = [i for i in np.argsort(average) if not np.isnan(average[i])]
    shown = sorted(known[:MAX_LINES])
    with chart(
        'Precision and recall at IoU 0.5', 'recall', 'precision', pictures, (5.2, 3.6 + 0.1 * len(shown))
    ) as axes:
        for i in known[MAX_LINES:]:
            axes.plot(recall, precision[:, i], color='#cccccc', linewidth=0.6)
        for i, label in enumerate(shown):
            line(
                axes,
                i,
                recall,
                precision[:, label],
                label=f'{shorten_name(evaluated.classes[label])} {average[label]:.3f}',
            )
            axes.plot(*points[label, ::-1], 'o', color=COLORS[i % len(COLORS)], markersize=5, clip_on=False)
        if len(known) > 1:
            mean = precision[:, known].mean(1)
            axes.plot(recall, mean, color='black', linewidth=2.2, alpha=0.6, label=f'mean {average[known].mean():.3f}')
        axes.set(xlim=(0, 1.01), ylim=(0, 1.03))
        title = 'AP50' if len(known) <= MAX_LINES else f'AP50, the {MAX_LINES} worst of {len(known)}'
        axes.figure.legend(title=title, loc='outside lower center', ncols=2, fontsize=9, frameon=False)
    return pictures


def draw_losses(losses: Losses, names: Mapping[ErrorType, str]) -> dict[str, bytes]:
    """Draw what each type of error costs, and how often it occurs.

    Args:
        losses: What was found.
        names: Names of the types, in the order from top to bottom.
    """
    pictures: dict[str, bytes] = {}
    counts = losses.shown.counts()
    order = list(names)[::-1]
    for title, xlabel, values, text in (
        ('AP50 that mending would add', 'AP50', losses.gains, '{:.3f}'),
        (f'Errors at a score of {losses.score_thr:g} or more', 'count', counts, '{:d}'),
    ):
        with chart(title, xlabel, '', pictures, (5.2, 2.7)) as axes:
            bars = axes.barh([names[one] for one in order], [values[one] for one in order], height=0.7)
            for bar, one in zip(bars, order):
                bar.set_color(COLORS[one])
            axes.bar_label(bars, [text.format(values[one]) for one in order], padding=3, fontsize=9)
            axes.set_xlim(0, max(*values, 0.01) * 1.15)
            axes.grid(False, axis='y')
            axes.tick_params(axis='y', length=0)
            if title.startswith('Errors'):
                axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    return pictures


def draw_confusions(confusions: Confusions, classes: Sequence[str]) -> dict[str, bytes]:
    """Draw the confusion matrix, coloured by the share of the boxes of each class.

    Args:
        confusions: What was counted.
        classes: Names of the classes.
    """
    pictures: dict[str, bytes] = {}
    matrix, share = confusions.table, confusions.shares
    rows, columns = matrix.shape
    is_small = columns <= MAX_CELLS
    side = float(np.clip(0.62 * columns, 3.2, 9.5)) if is_small else min(16, 0.17 * columns)
    with chart('Confusion matrix', 'detected as', 'truth', pictures, (side + 1.3, side + 1.2)) as axes:
        axes.imshow(share, cmap='Blues', vmin=0, vmax=1)
        axes.grid(False)
        axes.spines[:].set_visible(False)
        size = 9 if is_small else 5
        names = [*map(shorten_name, classes)]
        axes.set_xticks(range(columns), [*names, 'missed'], rotation=90 if columns > 6 else 0, fontsize=size)
        axes.set_yticks(range(rows), [*names, *OTHER_TRUTH], fontsize=size)
        axes.tick_params(length=0)
        for row, column in np.ndindex(*matrix.shape) if is_small else ():
            if row >= len(classes) and column == len(classes):
                continue
            ink = 'white' if share[row, column] > 0.55 else 'black'
            has_share = row < len(classes) and columns <= 12
            text = f'{matrix[row, column]}' + (f'\n{share[row, column]:.0%}' if has_share else '')
            axes.text(column, row, text, ha='center', va='center', color=ink, fontsize=size)
    return pictures
