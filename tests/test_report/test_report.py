"""A run as one page: made by the command line, opened in a browser without a network."""

import json
import shutil
import subprocess

import numpy as np
import pytest
import torch
from conftest import ROOT, write_coco
from mmengine.config import Config
from tool_runs import tool, write_config

from yolov7_simple.report.matching import (
    CROWD,
    NOTHING,
    EvaluatedImage,
    count_confusions,
    f1_score,
    labels_of_boxes,
    match,
    missed_boxes,
)
from yolov7_simple.report.report import schedule_page
from yolov7_simple.report.runs import plan_schedule, read_logs, read_run
from yolov7_simple.runtime.errors import InputError

PHONE = 375  # pixels of width
NAME = 'disc $_ <b onclick="x">&'  # class names are text, even if they look like markup


def boxes(*rows):
    return np.array(rows, float).reshape(-1, 4)


def test_each_detection_is_matched_to_one_box_at_the_most():
    image = EvaluatedImage(
        'x.png',
        boxes([0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10], [0, 50, 100, 100]),
        np.array([0, 1, 1, 0]),
        np.array([False, False, False, True]),
        boxes([0, 0, 10, 9], [0, 0, 10, 10], [20, 0, 30, 10], [70, 0, 80, 10], [10, 60, 20, 70], [40, 0, 50, 10]),
        np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.2]),
        np.array([0, 0, 0, 1, 1, 1]),
    )
    matched = match(image, 0.3)
    # In order: right, its double, another class, where nothing is, in a crowd, below the threshold.
    assert matched.tolist() == [0, NOTHING, 1, NOTHING, CROWD]
    assert missed_boxes(image, matched).tolist() == [2]
    counts = count_confusions([image], [matched], 2)
    assert counts.matched.tolist() == [[1, 0, 0], [1, 0, 1], [1, 1, 0]]
    assert counts.taken.tolist() == [[1, 0], [0, 0]] and not counts.loose.any()
    assert labels_of_boxes(image, matched).tolist() == [0, 0, 1, NOTHING, CROWD]
    # Below the rows of the classes: duplicates, loose boxes, nothing there.
    assert counts.table.tolist() == [[1, 0, 0], [1, 0, 1], [1, 0, 0], [0, 0, 0], [0, 1, 0]]
    assert f1_score(image, matched) == pytest.approx(2 / (4 + 3))
    # A detection of the box's own class comes before a better one of another class.
    both = image._replace(
        boxes=boxes([0, 0, 10, 10], [0, 0, 10, 9]), scores=np.array([0.9, 0.8]), labels=np.array([1, 0])
    )
    assert match(both, 0.3).tolist() == [NOTHING, 0]
    empty = image._replace(gt_boxes=boxes(), gt_labels=np.zeros(0, int), gt_crowds=np.zeros(0, bool))
    assert match(empty, 0.3).tolist() == [NOTHING] * 5 and f1_score(empty, match(empty, 0.95)) == 1


def test_schedule_is_that_of_training():
    schedule = plan_schedule(Config.fromfile(ROOT / 'configs/yolov7/yolov7_tiny_8xb16-300e_coco.py'))
    assert schedule.warmup == 3 and schedule.last_stage == 280 and len(schedule.lrs) == 6000
    assert schedule.lrs[0] == pytest.approx(2e-7) and max(schedule.lrs) == pytest.approx(0.002)
    assert schedule.lrs[-1] == pytest.approx(2e-5, rel=1e-3)
    assert schedule.validations == [*range(10, 271, 10), *range(279, 301)]


def test_a_run_that_never_validates_has_a_schedule_too():
    cfg = Config.fromfile(ROOT / 'configs/yolov7/yolov7_tiny_8xb16-300e_coco.py')
    cfg.train_cfg.update(val_begin=1000)
    assert '300 epochs, ' in (page := schedule_page(cfg, 'config').render()) and '0 validations' in page


def test_logs_of_a_resumed_run_are_joined(tmp_path):
    """Records after the checkpoint that a run was resumed from are dropped; the last line may be cut."""
    logs = []
    for name, iters, lr in (('1', (1, 2, 3, 4), 0.1), ('2', (3, 5), 0.2)):
        records = [{'iter': i, 'loss': 1.0, 'lr': lr, 'epoch': 1} for i in iters]
        logs.append(tmp_path / name)
        logs[-1].write_text('\n'.join(map(json.dumps, [*records, {'step': 1, 'coco/bbox_mAP': lr}])) + '\n{"iter": 9')
    train, val = read_logs(logs)
    assert [(one['iter'], one['lr']) for one in train] == [(1, 0.1), (2, 0.1), (3, 0.2), (5, 0.2)]
    assert val == [{'step': 1, 'coco/bbox_mAP': 0.2}]
    logs[0].write_text('text\n{}\n')
    with pytest.raises(InputError, match='line 1: not a record'):
        read_logs(logs)


@pytest.fixture(scope='module')
def work_dir(tmp_path_factory):
    """Folder of a run of two epochs with a poor model, and its page."""
    from mmdet.registry import MODELS

    folder = tmp_path_factory.mktemp('report')
    write_coco(folder / 'data', classes=('box', NAME))
    write_config(folder / 'config.py', folder / 'data')
    cfg = Config.fromfile(folder / 'config.py')
    work = folder / 'work'
    log = work / '20260101_000000' / 'vis_data' / 'scalars.json'
    log.parent.mkdir(parents=True)
    for key in ('val_dataloader', 'test_dataloader'):
        cfg[key].dataset.metainfo = {'classes': ('box', NAME)}
    cfg.model.test_cfg.max_per_img = 40
    cfg.dump(work / 'config.py')
    torch.save({'state_dict': MODELS.build(cfg.model).state_dict()}, work / 'best_coco_bbox_mAP_epoch_2.pth')
    (work / 'last_checkpoint').write_text('/elsewhere/epoch_2.pth')
    records = [
        *({'iter': i, 'epoch': i, 'lr': 0.001 * i, 'loss': 3.0 / i, 'loss_cls': 1.0 / i} for i in (1, 2)),
        *(
            {'step': i, 'coco/bbox_mAP': 0.2 * i, 'coco/bbox_mAP_50': 0.4 * i, 'coco/box_precision': 0.1}
            for i in (1, 2)
        ),
    ]
    log.write_text('\n'.join(map(json.dumps, records)))
    tool('report.py', work, '--score-thr', '0.01', '--device', 'cpu')
    return work


def test_the_page_opens_without_a_network(work_dir, tmp_path):
    """In Chromium, as wide as a phone: every picture decodes, has words, and nothing is wider than the screen."""
    page = (work_dir / 'report.html').read_text()
    assert '<script' not in page and 'onclick="' not in page and 'http:' not in page and 'https:' not in page
    pytest.importorskip('selenium')
    if shutil.which('chromium') is None or shutil.which('chromedriver') is None:
        pytest.skip('the page is not opened: chromium or chromedriver missing')
    from selenium import webdriver
    from selenium.webdriver.common.by import By
    from test_web_demo import FLAGS

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which('chromium')
    options.set_capability('goog:loggingPrefs', {'browser': 'ALL'})
    for flag in (*FLAGS, f'--user-data-dir={tmp_path}/profile', '--host-resolver-rules=MAP * ~NOTFOUND'):
        options.add_argument(flag)
    options.add_experimental_option('mobileEmulation', {'deviceMetrics': {'width': PHONE, 'height': 700}})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which('chromedriver')))
    try:
        browser.get((work_dir / 'report.html').as_uri())
        assert browser.title == 'Report of work'
        images = browser.execute_script(
            'return [...document.images].map(one => [one.alt, one.naturalWidth, one.getBoundingClientRect().right])'
        )
        # Losses, rate, mAP, AP; schedule; precision and recall; errors; confusions; worst; feature maps and
        # activations.
        assert len(images) > 8 + 3 + 2 * 2 + 2 * 3
        assert all(words and width > 0 and right <= PHONE for words, width, right in images)
        assert browser.execute_script('return document.documentElement.scrollWidth') <= PHONE
        assert [one.text for one in browser.find_elements(By.TAG_NAME, 'h2')] == [
            'Numbers', 'Curves', 'Schedule', 'Precision and recall', 'What costs AP50', 'Confusion matrix',
            'Worst images', 'What the model sees',
        ]  # fmt: skip
        for link in browser.find_elements(By.CSS_SELECTOR, 'nav a'):
            assert browser.find_elements(By.ID, link.get_attribute('href').split('#')[1])
        rows = [row.text for row in browser.find_elements(By.CSS_SELECTOR, 'tbody tr')]
        assert any(row.startswith(NAME + ' 3 ') for row in rows)  # markup is text; three of the boxes
        browser.execute_script("document.querySelectorAll('details').forEach(one => one.open = true)")
        rows = [row.text for row in browser.find_elements(By.CSS_SELECTOR, 'tbody tr')]
        assert '2 2.00e-03 1.500 0.500 0.400 0.800' in rows  # the second epoch
        assert not browser.get_log('browser')
    finally:
        browser.quit()


@pytest.mark.filterwarnings('error')
def test_the_page_of_a_config_is_its_schedule(work_dir):
    page = schedule_page(Config.fromfile(work_dir / 'config.py'), 'config').render()
    assert 'the last stage begins after epoch 1' in page and 'data:image/svg+xml' in page


def test_what_is_missing_is_named(work_dir, tmp_path):
    with pytest.raises(InputError, match='there is no such folder'):
        read_run(tmp_path / 'nowhere')
    for message, name in (
        ('has no config', 'config.py'),
        ('has no checkpoint', 'best_coco_bbox_mAP_epoch_2.pth'),
        ('has no log', '20260101_000000'),
    ):
        with pytest.raises(InputError, match=message):
            read_run(tmp_path)
        copy = shutil.copytree if (work_dir / name).is_dir() else shutil.copy
        copy(work_dir / name, tmp_path / name)
    assert read_run(tmp_path).checkpoint.name == 'best_coco_bbox_mAP_epoch_2.pth'
    assert 'Of which run?' in subprocess.run(['make', 'report'], cwd=ROOT, capture_output=True, text=True).stdout
