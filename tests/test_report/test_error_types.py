"""Types of error: planted ones are found, and mending them gives what pycocotools says once they are mended by hand."""

import contextlib
import io
import re

import cv2
import numpy as np
import pytest
from conftest import ROOT
from mmengine.config import Config
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from yolov7_simple.report.advice import Settings, advise, matters, summarize
from yolov7_simple.report.error_types import CORRECT, ErrorType, find_errors, find_losses, mean_ap50, mend
from yolov7_simple.report.explain import CONFUSED, WRONG, draw_mistakes
from yolov7_simple.report.gallery import SIDE, draw_case, find_case, part_around
from yolov7_simple.report.matching import (
    CROWD,
    OTHER_TRUTH,
    Evaluated,
    EvaluatedImage,
    count_confusions,
    f1_score,
    match,
)
from yolov7_simple.report.page import Page
from yolov7_simple.report.report import add_confusions, add_losses, precision_recall

CARDS = ('nine', 'ten', 'jack', 'queen', 'king', 'ace')
CELL = 100  # pixels; a box of 40 is in the middle of each cell, and nothing reaches into another cell


def make_image(truth, found, path='x.png'):
    """An image of rows (x1, y1, x2, y2, class[, is_crowd]) and rows (x1, y1, x2, y2, class, score)."""
    truth = np.array([(*row, False)[:6] for row in truth], float).reshape(-1, 6)
    found = np.array(found, float).reshape(-1, 6)
    found = found[np.argsort(-found[:, 5], kind='stable')]
    return EvaluatedImage(
        path, truth[:, :4], truth[:, 4].astype(int), truth[:, 5].astype(bool),
        found[:, :4], found[:, 5], found[:, 4].astype(int),
    )  # fmt: skip


def coco_ap50(images, num_classes):
    """AP50 by pycocotools."""
    truth, found = [], []
    for i, image in enumerate(images, 1):
        for box, label, crowd in zip(image.gt_boxes, image.gt_labels, image.gt_crowds):
            xywh = [*box[:2], *(box[2:] - box[:2])]
            truth.append({'id': len(truth) + 1, 'image_id': i, 'category_id': label + 1, 'bbox': xywh,
                          'area': xywh[2] * xywh[3], 'iscrowd': int(crowd)})  # fmt: skip
        for box, label, score in zip(image.boxes, image.labels, image.scores):
            found.append({'image_id': i, 'category_id': label + 1, 'bbox': [*box[:2], *(box[2:] - box[:2])],
                          'score': score})  # fmt: skip
    coco = COCO()
    coco.dataset = {'images': [{'id': i + 1} for i in range(len(images))], 'annotations': truth,
                    'categories': [{'id': i + 1} for i in range(num_classes)]}  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
        evaluated = COCOeval(coco, coco.loadRes(found), 'bbox')
        evaluated.params.iouThrs = np.array([0.5])
        evaluated.params.maxDets = [1, 10, 1000]
        evaluated.evaluate()
        evaluated.accumulate()
    precision = evaluated.eval['precision'][0, :, :, 0, -1]
    return precision[:, (precision >= 0).all(0)].mean()


def box_in(cell, shift=0.0, size=40):
    x, y = cell[0] * CELL + 30 + shift, cell[1] * CELL + 30
    return x, y, x + size, y + size


# What is planted on a box, as (type, whether of its class, shift in pixels); IoU is 0.90, 0.82 or 0.33.
PLANTED = {
    'right': [(CORRECT, True, 2)],
    'also another class': [(CORRECT, True, 2), (ErrorType.CLASSIFICATION, False, 4)],
    'another class': [(ErrorType.CLASSIFICATION, False, 2)],
    'two other classes': [(ErrorType.CLASSIFICATION, False, 2), (ErrorType.CLASSIFICATION, False, 4)],
    'double': [(CORRECT, True, 2), (ErrorType.DUPLICATE, True, 4)],
    'loose': [(ErrorType.LOCALISATION, True, 20)],
    'loose twice and another class': [
        (ErrorType.LOCALISATION, True, 20), (ErrorType.LOCALISATION, True, -20), (ErrorType.CLASSIFICATION, False, 4),
    ],
    'both': [(ErrorType.BOTH, False, 20)],
    'missed': [],
}  # fmt: skip


def plant(rng, num_images, cases=PLANTED):
    """Images with planted errors; types of all detections; and the images with each type mended by hand."""
    images, types = [], []
    mended = {one: [] for one in ErrorType}
    for _ in range(num_images):
        truth, found, kinds = [], [], []
        fixed = {one: ([], []) for one in ErrorType}
        for cell in np.ndindex(3, 3):
            label = int(rng.integers(len(CARDS)))
            case = list(cases.values())[rng.integers(len(cases))]
            scores = np.sort(rng.uniform(0.05, 1, len(case)))[::-1]
            box = (*box_in(cell), label)
            truth.append(box)
            rows = []
            for score, (kind, is_own, shift) in zip(scores, case):
                said = label if is_own else int((label + rng.integers(1, len(CARDS))) % len(CARDS))
                rows.append((kind, (*box_in(cell, shift), said, score)))
            if rng.random() < 0.3:  # in a corner of the cell, on nothing
                x, y = cell[0] * CELL, cell[1] * CELL
                rows.append((ErrorType.BACKGROUND, (x, y, x + 20, y + 20, label, rng.uniform(0.05, 1))))
            found += [row for _, row in rows]
            kinds += [kind for kind, _ in rows]
            on_box = {kind for kind, _ in rows} - {ErrorType.BACKGROUND}
            for one, (gt, dets) in fixed.items():
                if not (one is ErrorType.MISSED and on_box <= {ErrorType.BOTH}):
                    gt.append(box)
                dets += [row for kind, row in rows if kind != one]
                best = [row for kind, row in rows if kind == one][:1]
                if best and CORRECT not in on_box and one in (ErrorType.CLASSIFICATION, ErrorType.LOCALISATION):
                    dets.append((*box, best[0][5]))
        order = np.argsort([-row[5] for row in found], kind='stable')
        images.append(make_image(truth, found))
        types += [kinds[i] for i in order]
        for one, rows in fixed.items():
            mended[one].append(make_image(*rows))
    return images, types, mended


@pytest.mark.parametrize('seed', range(3))
def test_planted_errors_are_found_and_mended(seed):
    images, types, mended = plant(np.random.default_rng(seed), 12)
    losses = find_losses(images, 0.3, len(CARDS))
    assert losses.errors.types.tolist() == types and set(types) == {CORRECT, *ErrorType} - {ErrorType.MISSED}
    boxes = sum(len(image.gt_boxes) for image in images)
    assert losses.errors.counts()[ErrorType.MISSED] == boxes - sum(len(one.gt_boxes) for one in mended[5]) > 0
    now = coco_ap50(images, len(CARDS))
    assert losses.ap50 == pytest.approx(now, abs=1e-9)
    for one in ErrorType:
        assert losses.gains[one] == pytest.approx(coco_ap50(mended[one], len(CARDS)) - now, abs=1e-9), one
        assert losses.gains[one] > 0
    # What one sees are the errors of high scores, and the boxes without any of these.
    assert losses.shown.counts()[:5].tolist() == [
        sum(kind == one and score >= 0.3 for kind, score in zip(types, losses.errors.scores)) for one in range(5)
    ]
    assert losses.shown.missed.sum() > losses.errors.missed.sum()


@pytest.mark.parametrize('seed', range(5))
def test_ap50_is_cocos_in_crowded_scenes(seed):
    """Boxes, crowds and detections at random, in a heap."""
    rng = np.random.default_rng(seed)

    def rows(count):
        corners = rng.uniform(0, 60, (count, 2))
        return np.concatenate([corners, corners + rng.uniform(10, 50, (count, 2)), rng.integers(0, 3, (count, 1))], 1)

    images = [
        make_image(
            np.column_stack([rows(n), rng.random(n) < 0.2]), np.column_stack([rows(60), rng.random(60)])
        )
        for n in rng.integers(0, 12, 20)
    ]  # fmt: skip
    errors = find_errors(images)
    assert (errors.types == CROWD).any()
    assert mean_ap50(*mend(errors, None, 3)) == pytest.approx(coco_ap50(images, 3), abs=1e-9)
    assert (np.bincount(errors.targets[errors.types == CORRECT]) <= 1).all()
    for one in ErrorType:
        assert mean_ap50(*mend(errors, one, 3)) >= mean_ap50(*mend(errors, None, 3)) - 1e-9


def test_types_and_gains_are_those_of_tidecv():
    """Where no box that is not found has two types of error: tidecv mends only the better one of both."""
    tidecv = pytest.importorskip('tidecv', reason='pip install tidecv')
    cases = {name: rows for name, rows in PLANTED.items() if name != 'loose twice and another class'}
    images, _, _ = plant(np.random.default_rng(0), 30, cases)
    truth, found = tidecv.Data('truth', 1000), tidecv.Data('found', 1000)
    for i, image in enumerate(images):
        xywh = [
            np.column_stack([one[:, :2], one[:, 2:] - one[:, :2]]).tolist() for one in (image.gt_boxes, image.boxes)
        ]
        for box, label in zip(xywh[0], image.gt_labels):
            truth.add_ground_truth(i, int(label), box)
        for box, label, score in zip(xywh[1], image.labels, image.scores):
            found.add_detection(i, int(label), float(score), box)
    run = tidecv.TIDE().evaluate(truth, found, mode=tidecv.TIDE.BOX)
    gains, counts = ({one.short_name: value for one, value in part().items()}
                     for part in (run.fix_main_errors, run.count_errors))  # fmt: skip
    losses = find_losses(images, 0.3, len(CARDS))
    for one, name in zip(ErrorType, ('Loc', 'Cls', 'Dupe', 'Bkg', 'Both', 'Miss')):
        assert losses.errors.counts()[one] == counts[name] > 0
        assert 100 * losses.gains[one] == pytest.approx(gains[name], abs=0.01), name  # its recalls are rounded


def test_crowds_excuse_detections_of_their_class_alone():
    image = make_image([(0, 0, 100, 100, 0, True)], [(10, 10, 30, 30, 0, 0.9), (10, 10, 30, 30, 1, 0.8)])
    errors = find_errors([image])
    assert errors.types.tolist() == [CROWD, ErrorType.BACKGROUND] and not len(errors.gt_labels)


def test_the_first_type_that_holds_counts():
    """As in TIDE: a bad fit of the own class before another class, which comes before a duplicate."""
    near = (20, 0, 60, 40, 2)  # overlaps the king's box with IoU 0.33
    image = make_image([(0, 0, 40, 40, 4), near], [(0, 0, 40, 40, 2, 0.9), (0, 0, 40, 40, 3, 0.8)])
    errors = find_errors([image])
    assert errors.types.tolist() == [ErrorType.LOCALISATION, ErrorType.CLASSIFICATION]
    assert errors.targets.tolist() == [1, 0] and not errors.missed.any()
    same = make_image([(0, 0, 40, 40, 4), (0, 0, 40, 40, 2)], [(0, 0, 40, 40, 4, 0.9), (0, 0, 40, 39, 4, 0.8)])
    assert find_errors([same]).types.tolist() == [CORRECT, ErrorType.CLASSIFICATION]


def test_images_without_boxes_or_detections():
    box, found = (0, 0, 10, 10, 0), (0, 0, 10, 10, 0, 0.9)
    losses = find_losses([make_image([], [found]), make_image([box], []), make_image([], [])], 0.3, 2)
    assert losses.errors.types.tolist() == [ErrorType.BACKGROUND] and losses.errors.missed.tolist() == [True]
    # Without the only box of the only class, nothing is left to be found.
    assert losses.ap50 == 0 and losses.gains[ErrorType.MISSED] == 1
    losses = find_losses([make_image([], [found])], 0.3, 2)
    assert np.isnan(losses.ap50) and not losses.gains.any()


def look_alikes(folder, num_kings=10):
    """Pictures with a king that is found, and also called jack, and in half of them queen; and a jack called king."""
    images = []
    for i in range(num_kings):
        path = folder / f'{i}.png'
        cv2.imwrite(str(path), np.full((2 * CELL, 2 * CELL, 3), 90, np.uint8))
        found = [(*box_in((0, 0), 1), 4, 0.9), (*box_in((0, 0), 2), 2, 0.5 + i / 100)]
        if i % 2:
            found.append((*box_in((0, 0), 3), 3, 0.4))
        if i:
            found.append((*box_in((1, 1), 1), 4, 0.35 + i / 100))
        images.append(make_image([(*box_in((0, 0)), 4), (*box_in((1, 1)), 2)], found, str(path)))
    return images


class Infos:
    """A dataset, as far as the report asks it."""

    def get_data_info(self, index):
        return {'width': 2 * CELL, 'height': 2 * CELL}


def evaluated_on(images):
    return Evaluated(CARDS, Infos(), images, None, None, None, None, None)


def make_cfg(scale=2 * CELL, **nms):
    return Config(
        {
            'model': {'test_cfg': {'nms': {'type': 'nms', 'iou_threshold': 0.7, **nms}}},
            'train_cfg': {'max_epochs': 40},
            'test_dataloader': {'dataset': {'pipeline': [{'type': 'Resize', 'scale': (scale, scale)}]}},
        }
    )


def test_the_confusion_matrix_shows_second_names(tmp_path):
    images = look_alikes(tmp_path)
    matches = [match(image, 0.3) for image in images]
    confusions = count_confusions(images, matches, len(CARDS))
    table = dict(zip((*CARDS, *OTHER_TRUTH), confusions.table.tolist()))
    assert table['king'] == [0, 0, 10, 5, 10, 0, 0] and table['jack'] == [0, 0, 0, 0, 9, 0, 1]
    assert not any(map(any, (table[name] for name in OTHER_TRUTH)))
    assert confusions.shares[4, 2:5].tolist() == [1, 0.5, 1] and confusions.taken[4].tolist() == [0, 0, 10, 5, 0, 0]
    # Each detection is in one column, so precision stays what it was, and recall is of the boxes.
    assert confusions.table.sum(0)[:-1].tolist() == confusions.matched.sum(0)[:-1].tolist() == [0, 0, 10, 5, 19, 0]
    assert precision_recall(confusions.matched)[[2, 4]].tolist() == [[0, 0], [10 / 19, 1]]
    assert f1_score(images[0], matches[0]) == pytest.approx(2 / 4)
    # A second box, and a loose one, are not where nothing is.
    image = make_image([(*box_in((0, 0)), 0)], [(*box_in((0, 0), shift), 0, 0.9 - shift / 100) for shift in (1, 3, 20)])
    table = count_confusions([image], [match(image, 0.3)], 1).table
    assert table.tolist() == [[1, 0], [1, 0], [1, 0], [0, 0]]
    # A crowd is no box that a detection could fit badly.
    image = make_image([(0, 0, 20, 40, 0, True)], [(10, 0, 60, 40, 0, 0.9)])
    assert count_confusions([image], [match(image, 0.3)], 1).table.tolist() == [[0, 0], [0, 0], [0, 0], [1, 0]]


def test_the_page_tells_look_alikes(tmp_path):
    images = look_alikes(tmp_path)
    losses = find_losses(images, 0.3, len(CARDS))
    assert matters(losses) == [ErrorType.CLASSIFICATION]
    assert summarize(losses) == 'AP50 0.500; mending one type of error would add: classification 0.450'
    page = Page('x')
    add_losses(page, make_cfg(), evaluated_on(images), losses)
    matches = [match(image, 0.3) for image in images]
    add_confusions(page, evaluated_on(images), count_confusions(images, matches, len(CARDS)), 0.3)
    html = page.render()
    for row in ('king</th><td>jack</td><td>10</td><td>100%</td><td>10<', 'king</th><td>queen</td><td>5</td><td>50%<'):
        assert row in html
    assert '15 of 24 are a second name of an object whose right box was found' in html
    assert html.count('<img ') == 2 + 1 + 1  # charts, the picture, and the matrix
    # Of the commonest pair the highest score; violet.
    case = find_case(losses, ErrorType.CLASSIFICATION, CARDS)
    assert case.words == 'king, also called jack, 10 times' and (case.image, case.detection, case.box) == (9, 1, 0)
    picture = draw_case(images[9], case, CARDS, 0.3)
    assert max(picture.shape[:2]) == SIDE and (picture == CONFUSED).all(2).sum() > 1000
    for labels, is_confused in (([4, 2], True), ([4, 4], False)):
        image = images[0]._replace(labels=np.array(labels))
        _, found = draw_mistakes(image, match(image, 0.3), CARDS)
        assert (found == CONFUSED).all(2).any() == is_confused and (found == WRONG).all(2).any() != is_confused


def advice_on(type_, images, score_thr=0.3, **cfg):
    losses = find_losses(images, score_thr, len(CARDS))
    return advise(type_, losses, evaluated_on(images), Settings.from_cfg(make_cfg(**cfg)))


def test_advice_is_tried_on_the_detections(tmp_path):
    images = look_alikes(tmp_path)
    words = advice_on(ErrorType.CLASSIFICATION, images)
    assert 'With --agnostic-nms' in words and '15 of 24 go' in words and '--epochs 80; now 40' in words
    assert '--agnostic-nms' not in advice_on(ErrorType.CLASSIFICATION, images, class_agnostic=True)
    # Where classes really share a place, one box for each object would take right ones away.
    shared = make_image(
        [(*box_in((0, 0)), 0), (*box_in((0, 0)), 1), (*box_in((1, 1)), 0)],
        [(*box_in((0, 0)), 0, 0.9), (*box_in((0, 0)), 1, 0.8), (*box_in((1, 1)), 2, 0.7)],
    )
    assert '--agnostic-nms' not in advice_on(ErrorType.CLASSIFICATION, [shared])

    double = make_image([(*box_in((0, 0)), 0)], [(*box_in((0, 0)), 0, 0.9), (*box_in((0, 0), 8), 0, 0.8)])  # IoU 0.67
    words = advice_on(ErrorType.DUPLICATE, [double])
    assert 'which is 0.7: with 0.65' in words and '1 of 1 go' in words
    assert 'No lower threshold' in advice_on(ErrorType.DUPLICATE, [double], iou_threshold=0.45)

    truth = [(0, 0, 10, 10, 0), (*box_in((1, 1)), 1), (*box_in((1, 0)), 1)]
    missed = make_image(truth, [(*box_in((1, 1)), 1, 0.2)])
    words = advice_on(ErrorType.MISSED, [missed])
    assert '1 of 3 are found with a score below 0.3 (F1 is highest at --score-thr 0.20)' in words
    assert '--tile' not in words and 'Add images of ten' in words
    tiny = make_image([*truth, (50, 0, 60, 10, 0)], [(*box_in((1, 1)), 1, 0.2), (50, 0, 60, 10, 0, 0.9)])
    assert '1 of 3 are smaller than 8 pixels in the network' in advice_on(ErrorType.MISSED, [tiny], scale=CELL)

    nothing = make_image([(*box_in((0, 0)), 0)], [(*box_in((0, 0)), 0, 0.9), (*box_in((1, 1)), 0, 0.5)])
    assert '--score-thr 0.90 of tools/detect.py, at which F1 is highest, 1 of 1 go, and 0 right' in advice_on(
        ErrorType.BACKGROUND, [nothing]
    )


def test_nms_of_others_is_left_alone():
    """Without a threshold that is known, nothing is tried; what is not in the config is not told."""
    for test_cfg in ({'rcnn': {'nms': {'type': 'nms'}}}, {'nms': {'type': 'soft_nms', 'sigma': 0.5}}):
        cfg = Config({'model': {'test_cfg': test_cfg}, 'test_dataloader': {'dataset': {}}})
        settings = Settings.from_cfg(cfg)
        assert settings == (None, None, None) and settings.longer == 'train longer (--epochs)'
        images = [make_image([(*box_in((0, 0)), 0)], [(*box_in((0, 0)), 0, 0.9), (*box_in((0, 0), 8), 0, 0.8)])]
        losses = find_losses(images, 0.3, len(CARDS))
        for one in ErrorType:
            assert 'iou_threshold' not in advise(one, losses, evaluated_on(images), settings)
    ours = Config({'model': {'bbox_head': {'type': 'YOLOv7SimpleHead'}}, 'test_dataloader': {'dataset': {}}})
    assert Settings.from_cfg(ours).options.iou_threshold == 0.7


def test_options_that_advice_names_exist():
    tools = {name: (ROOT / 'tools' / f'{name}.py').read_text() for name in ('detect', 'export_onnx', 'train')}
    for option, *names in (
        ('--agnostic-nms', 'detect', 'export_onnx'), ('--iou-thr', 'export_onnx'), ('--score-thr', 'detect'),
        ('--epochs', 'train'),
    ):  # fmt: skip
        assert all(re.search(f"'{option}'", tools[name]) for name in names), option
    assert (ROOT / 'docs/image_sizes.md').is_file() and (ROOT / 'tools/check_dataset.py').is_file()


@pytest.mark.parametrize('seed', range(3))
def test_each_type_can_be_drawn(tmp_path, seed):
    images, _, _ = plant(np.random.default_rng(seed), 6)
    path = tmp_path / 'x.png'
    cv2.imwrite(str(path), np.full((3 * CELL, 3 * CELL, 3), 90, np.uint8))
    losses = find_losses(images, 0.3, len(CARDS))
    for one in ErrorType:
        case = find_case(losses, one, CARDS)
        image = images[case.image]._replace(path=str(path))
        assert (case.detection is None) == (one is ErrorType.MISSED)
        assert (case.box is None) == (one is ErrorType.BACKGROUND)
        if case.detection is not None:
            assert image.scores[case.detection] >= 0.3
        assert draw_case(image, case, CARDS, 0.3).std() > 0
    assert part_around(np.array([[-5.0, -5, 4, 4]]), 50, 30) == (0, 0, 24, 24)
    assert part_around(np.array([[60.0, 10, 70, 20]]), 50, 30) == (25, 0, 50, 30)
