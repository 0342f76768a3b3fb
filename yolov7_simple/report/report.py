"""A run -> one page: numbers, curves, schedule, confusions, worst images, and what the model sees."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from mmengine.config import Config
from numpy.typing import NDArray
from torch import nn

from ..runtime.errors import InputError
from .advice import TYPE_MEANINGS, TYPE_NAMES, Settings, advise, by_cost, matters
from .charts import draw_confusions, draw_curves, draw_losses, draw_precision_recall, draw_schedule
from .error_types import Losses
from .explain import draw_inside, draw_mistakes
from .gallery import draw_case, find_case
from .matching import (
    IOU_THR,
    LOOSE,
    NOTHING,
    OTHER_TRUTH,
    Confusions,
    Evaluated,
    best_thresholds,
    count_confusions,
    count_right,
    f1_score,
    labels_of_boxes,
    match,
    missed_boxes,
    sample_path,
)
from .page import Page
from .runs import Run, metric_key, plan_schedule

NUM_WORST, NUM_SEEN, NUM_ACTIVATIONS = 6, 2, 4
NUM_CONFUSIONS = 10
MAX_NARROW = 6  # with more classes, the confusion matrix is as wide as the page
STATS = ['mAP', 'mAP50', 'mAP75', 'mAP small', 'mAP medium', 'mAP large']


def schedule_page(cfg: Config, name: str) -> Page:
    """Make the page of a config before training.

    Raises:
        InputError: The config has no schedule in epochs.
    """
    page = Page(f'{name}: schedule')
    add_schedule(page, cfg)
    return page


def run_page(run: Run, cfg: Config, model: nn.Module, evaluated: Evaluated, losses: Losses) -> Page:
    """Make the page of a run.

    Args:
        run: Files of the run.
        cfg: Its config.
        model: The detector that was evaluated.
        evaluated: Results on its test split.
        losses: What costs AP50, and the lowest score of a detection that counts, where a threshold is needed.
    """
    score_thr = losses.score_thr
    page = Page(f'Report of {run.config.resolve().parent.name}')
    matches = [match(image, score_thr) for image in evaluated.images]
    confusions = count_confusions(evaluated.images, matches, len(evaluated.classes))
    points = precision_recall(confusions.matched)
    add_numbers(page, run, cfg, evaluated, points, score_thr)
    add_curves(page, run, evaluated)
    try:
        add_schedule(page, cfg)
    except InputError as error:
        page.section('Schedule', f'Not drawn: {error}')
    add_precision_recall(page, evaluated, points, score_thr)
    add_losses(page, cfg, evaluated, losses)
    add_confusions(page, evaluated, confusions, score_thr)
    add_worst(page, evaluated, matches, score_thr)
    add_inside(page, model, evaluated, matches, score_thr)
    return page


def number(value: float | None, digits: int = 3) -> str:
    """Format a number; None, nan and COCO's -1 are a dash."""
    return '-' if value is None or np.isnan(value) or value < 0 else f'{value:.{digits}f}'


def precision_recall(confusions: NDArray) -> NDArray:
    """Precision and recall of each class, (C, 2); nan without detections or boxes, respectively."""
    right = np.diag(confusions)[:-1]
    found, truth = confusions.sum(0)[:-1], confusions.sum(1)[:-1]
    return np.stack([np.where(total > 0, right / total.clip(1), np.nan) for total in (found, truth)], 1)


def add_numbers(page: Page, run: Run, cfg: Config, evaluated: Evaluated, points: NDArray, score_thr: float) -> None:
    """Add what was evaluated, and COCO's numbers, over all classes and for each."""
    boxes = np.concatenate([image.gt_labels[~image.gt_crowds] for image in evaluated.images])
    page.section(
        'Numbers',
        f'Checkpoint {run.checkpoint.name}, config {run.config.name}, evaluated on {len(evaluated.images)} images with '
        f"{len(boxes)} boxes, the test split ({Path(cfg.test_evaluator.ann_file).name}). AP is COCO's, the mean over "
        'thresholds of IoU from 0.5 to 0.95.',
    )
    page.table('All classes', STATS, [[number(value) for value in evaluated.stats[:6]]])
    best, boxes = best_thresholds(evaluated), np.bincount(boxes, minlength=len(evaluated.classes))
    rows = [
        [name, boxes[label], *map(number, [*evaluated.class_ap[label], *points[label]]), number(best[label], 2)]
        for label, name in enumerate(evaluated.classes)
    ]
    page.table(
        f'Each class. Precision and recall count detections with a score of {score_thr:g} or more at IoU {IOU_THR:g}; '
        'best score is the threshold at which their harmonic mean (F1) is highest.',
        ['class', 'boxes', 'AP', 'AP50', 'AP75', 'precision', 'recall', 'best score'],
        rows,
    )


def add_curves(page: Page, run: Run, evaluated: Evaluated) -> None:
    """Add the logged numbers, as curves and as a table."""
    page.section('Curves', 'As the run logged them: losses are means over the last steps, as log_processor says.')
    pictures = draw_curves(run.train, run.val, evaluated.classes)
    page.figures(
        [(picture, f'Curves: {title}. The numbers are in the table below.', '') for title, picture in pictures.items()]
    )
    losses = [key for key in dict.fromkeys(key for one in run.train for key in one) if key.startswith('loss')]
    metrics = {name: metric_key(run.val, key) for name, key in (('mAP', 'bbox_mAP'), ('mAP50', 'bbox_mAP_50'))}
    last = {one['epoch']: one for one in run.train if 'epoch' in one}
    validations = {one['step']: one for one in run.val}
    rows = []
    for epoch in sorted({*last, *validations}):
        train, val = last.get(epoch, {}), validations.get(epoch, {})
        lr = f'{train["lr"]:.2e}' if 'lr' in train else '-'
        rows.append(
            [
                epoch,
                lr,
                *(number(train.get(key)) for key in losses),
                *(number(val.get(key)) for key in metrics.values()),
            ]
        )
    page.table(
        'Numbers of each epoch: its last record', ['epoch', 'learning rate', *losses, *metrics], rows, folded=True
    )


def add_schedule(page: Page, cfg: Config) -> None:
    """Add the planned learning rate."""
    schedule = plan_schedule(cfg)
    peak = max(schedule.lrs)
    words = (
        f'{cfg.train_cfg.max_epochs} epochs, {schedule.warmup:g} of them warm-up; the learning rate goes up to '
        f'{peak:g} and ends at {schedule.lrs[-1]:.2g}; '
        + (
            f'the last stage begins after epoch {schedule.last_stage:g}; '
            if schedule.last_stage is not None
            else 'there is no last stage; '
        )
        + f'{len(schedule.validations)} validations.'
    )
    page.section('Schedule', f'As the config plans it, for the batch of one GPU: {words}')
    ((title, picture),) = draw_schedule(schedule).items()
    page.figures([(picture, f'{title}: {words}', '')])


def add_precision_recall(page: Page, evaluated: Evaluated, points: NDArray, score_thr: float) -> None:
    """Add the curves of precision over recall."""
    page.section(
        'Precision and recall',
        f'Dots: what a threshold of {score_thr:g} gives. As COCO has it, a curve shows the best precision at its '
        'recall or a higher one, so a dot can lie below.',
    )
    ((title, picture),) = draw_precision_recall(evaluated, points).items()
    page.figures([(picture, f'{title}, a curve for each class; the table above has AP50, the area under each.', '')])


def add_losses(page: Page, cfg: Config, evaluated: Evaluated, losses: Losses) -> None:
    """Add the types of error: what they cost, advice, and a picture of the commonest of each."""
    page.section(
        'What costs AP50',
        f'AP50 is {number(losses.ap50)}, and {number(losses.ap50_of_right)} without any wrong detection. What is wrong '
        'or not found has one of the types of TIDE (Bolya et al., 2020). Each is mended by itself, so what that adds '
        'does not add up. AP50 counts detections of all scores; the number of errors is that of scores of '
        f'{losses.score_thr:g} or more, which one sees.',
    )
    page.figures(
        [
            (picture, f'{title}; the numbers are in the table below.', '')
            for title, picture in draw_losses(losses, {one: TYPE_NAMES[one] for one in by_cost(losses)}).items()
        ]
    )
    seen, all_ = losses.shown.counts(), losses.errors.counts()
    page.table(
        'Types of error',
        ['error', 'AP50 that mending adds', f'score {losses.score_thr:g} or more', 'all scores'],
        [
            [f'{TYPE_NAMES[one]}: {TYPE_MEANINGS[one]}', number(losses.gains[one]), seen[one], all_[one]]
            for one in by_cost(losses)
        ],
    )
    order = matters(losses)
    page.text(
        'The commonest of each type that matters, and what to do. White: truth, yellow: missed, blue: other detections '
        'there; the error is red, or violet where the class is wrong.'
        if order
        else 'No type of error costs much.'
    )
    settings, figures = Settings.from_cfg(cfg), []
    for one in order:
        case = find_case(losses, one, evaluated.classes)
        image = evaluated.images[case.image]
        title = f'{TYPE_NAMES[one].capitalize()}: {case.words}, as in {sample_path(image)}'
        advice = advise(one, losses, evaluated, settings)
        figures.append((draw_case(image, case, evaluated.classes, losses.score_thr), title, f'{title}.\n{advice}'))
    page.figures(figures)


def add_confusions(page: Page, evaluated: Evaluated, confusions: Confusions, score_thr: float) -> None:
    """Add the confusion matrix, and the most frequent mistakes."""
    page.section(
        'Confusion matrix',
        f'Detections with a score of {score_thr:g} or more on a box, at IoU {IOU_THR:g}. A row is what was there, a '
        'column what was said; the diagonal is right. An object can have several names: those beside its first one '
        'count, too, so the shares, which are of the boxes of a class, can add up to more than 100%. A second box of '
        'the right class is a duplicate, and one that only fits with IoU 0.1 to 0.5 is a loose box.',
    )
    matrix, classes, count = confusions.table, evaluated.classes, len(evaluated.classes)
    ((title, picture),) = draw_confusions(confusions, classes).items()
    page.figures([(picture, f'{title}; its numbers are in the table below.', '')], wide=count > MAX_NARROW)
    truth, said = [*classes, *OTHER_TRUTH], [*classes, 'missed']
    page.table(
        'Look-alikes: another class on an object that is there; beside is how often another detection had it already',
        ['truth', 'said', 'times', 'share of the boxes', 'beside'],
        [
            [classes[i], classes[j], matrix[i, j], f'{confusions.shares[i, j]:.0%}', confusions.taken[i, j]]
            for i, j in largest(matrix[:count, :count] * (1 - np.eye(count, dtype=int)))
        ],
    )
    rest = matrix.copy()
    rest[:count, :count] = 0
    page.table(
        'Most frequent other mistakes',
        ['truth', 'said', 'times'],
        [[truth[i], said[j], matrix[i, j]] for i, j in largest(rest)],
    )
    rows = [[name, *counts] for name, counts in zip(truth, matrix.tolist())]
    page.table('All numbers of the matrix', ['truth \\ said', *said], rows, folded=True)


def largest(counts: NDArray) -> list[tuple[int, int]]:
    """Row and column of the largest counts above 0, at most :data:`NUM_CONFUSIONS`."""
    order = np.argsort(-counts, axis=None, kind='stable')[:NUM_CONFUSIONS]
    return [divmod(int(i), counts.shape[1]) for i in order if counts.flat[i]]


def add_worst(page: Page, evaluated: Evaluated, matches: list, score_thr: float) -> None:
    """Add the images with the lowest F1, drawn."""
    page.section(
        'Worst images',
        f'The images with the lowest F1 at a score of {score_thr:g} and IoU {IOU_THR:g}: left the truth, with what was '
        'missed in yellow; right the detections, in red where nothing is (with a question mark), loose boxes and '
        'duplicates, in violet where the class is another. What is right is black and white.',
    )
    order = sorted(range(len(matches)), key=lambda i: (f1_score(evaluated.images[i], matches[i]), -len(matches[i])))
    for i in order[:NUM_WORST]:
        image, matched = evaluated.images[i], matches[i]
        f1 = f1_score(image, matched)
        if f1 == 1:
            page.text('All others are right.' if i != order[0] else 'All images are right.')
            break
        right, missed = count_right(image, matched), len(missed_boxes(image, matched))
        labels, on = image.labels[: len(matched)], labels_of_boxes(image, matched)
        nothing, loose, confused = (on == NOTHING).sum(), (on == LOOSE).sum(), ((on >= 0) & (on != labels)).sum()
        double = ((on == labels) & (matched == NOTHING)).sum()
        name = sample_path(image)
        words = (
            f'{right} right, {missed} missed, {confused} of another class, {double} duplicates, '
            f'{loose} loose boxes, {nothing} where nothing is'
        )
        truth, found = draw_mistakes(image, matched, evaluated.classes)
        page.figures(
            [
                (truth, f'{name}, truth: {missed} boxes marked as missed', f'{name}, truth. F1 {f1:.2f}: {words}'),
                (found, f'{name}, detections: {words}', f'{name}, detections'),
            ]
        )


def add_inside(page: Page, model: nn.Module, evaluated: Evaluated, matches: list, score_thr: float) -> None:
    """Add feature maps and class activations of the images with the most classes."""
    page.section(
        'What the model sees',
        'Feature maps: the mean over the channels of each level of the neck, by stride. Class activation (Grad-CAM): '
        'where the channels are active that speak for the detections of a class. Blue is low, red is high, in each '
        'picture by itself.',
    )

    def labels_of(i: int) -> list[int]:
        return list(dict.fromkeys(evaluated.images[i].labels[: len(matches[i])].tolist()))  # best first

    order = sorted(range(len(matches)), key=lambda i: (-len(labels_of(i)), -f1_score(evaluated.images[i], matches[i])))
    for i in order[:NUM_SEEN]:
        maps, activations = draw_inside(model, evaluated.dataset, i, labels_of(i)[:NUM_ACTIVATIONS], score_thr)
        name = sample_path(evaluated.images[i])
        figures = [
            (picture[..., ::-1], f'{name}: feature map of stride {stride}', f'{name}, feature map, stride {stride}')
            for stride, picture in maps.items()
        ]
        figures += [
            (
                picture[..., ::-1],
                f'{name}: activation of {evaluated.classes[label]}',
                f'{name}, {evaluated.classes[label]}',
            )
            for label, picture in activations.items()
        ]
        page.figures(figures)
