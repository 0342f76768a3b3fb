"""The plan that --data makes of a set: size, batch, length for a time, and that a resumed run keeps it."""

import json
import re
import time

import numpy as np
import pytest
import torch
from conftest import ROOT, write_coco
from mmengine.config import Config

from yolov7_simple.own_data import batch_size, measure, plan, schedule, settings, wall_time
from yolov7_simple.own_data.batch_size import largest_batch, most_boxes, train_noise, within_memory
from yolov7_simple.own_data.box_sizes import BoxSizes
from yolov7_simple.own_data.config import own_config
from yolov7_simple.own_data.image_size import all_sizes, set_size, training_size
from yolov7_simple.own_data.measure import Stopwatch, at_area, measure_costs
from yolov7_simple.own_data.plan import Limits, choose_size, make_schedule
from yolov7_simple.own_data.wall_time import Costs, WallTime, longest, plan_time
from yolov7_simple.runtime.errors import InputError, UserError

CONFIGS = ROOT / 'configs' / 'yolov7'
BCCD = CONFIGS / 'yolov7_tiny_1xb8-40e_bccd.py'
COCO = CONFIGS / 'yolov7_tiny_8xb16-300e_coco.py'


def boxes_of(image, *sides):
    """Boxes of one image of this width and height."""
    return BoxSizes(np.array(sides, float).reshape(-1, 2), np.zeros(len(sides), int), np.array([image], float))


@pytest.mark.parametrize(
    ('image', 'sides', 'base', 'expected', 'why'),
    [
        ((640, 480), [(60, 60)] * 4, (320, 320), (320, 320), 'as in the config$'),
        # A side of 20 in an image of 640 is 10 at 320, and 12 at 384.
        ((640, 480), [(60, 20)] * 4, (320, 320), (384, 384), '^since 100% .* below 12 pixels at 320 x 320$'),
        ((640, 480), [(60, 20)] + [(60, 60)] * 3, (320, 320), (320, 320), 'as in the config$'),
        # Twice the config's, and no more than 640.
        ((4000, 3000), [(64, 60)] * 4, (320, 320), (640, 640), '^the largest for a config of 320 x 320'),
        ((4000, 3000), [(64, 64)] * 4, (160, 160), (160, 160), '^as in the config, though 100%'),
        ((4000, 3000), [(64, 60)] * 4, (640, 640), (640, 640), '^as in the config, though'),
        # Not above the images, and smaller with them, but not below what the strides need.
        ((400, 300), [(9, 9)] * 4, (320, 320), (416, 416), '^the largest'),
        ((250, 200), [(60, 60)], (640, 640), (256, 256), '^and not 640 x 640, since no image has a side above 250'),
        ((32, 32), [(16, 16)], (640, 640), (160, 160), 'side above 32 pixels$'),
        ((32, 32), [(16, 16)], (96, 96), (96, 96), 'as in the config$'),
        ((640, 360), [(60, 20)] * 4, (320, 192), (384, 224), '^since 100%'),
        ((640, 480), [], (320, 320), (320, 320), 'as in the config$'),
    ],
)
def test_the_size_follows_boxes_and_images(image, sides, base, expected, why):
    size, reason = choose_size(boxes_of(image, *sides), base)
    assert size == expected and re.search(why, reason), reason


def sizes_by_kind(cfg):
    found = {}
    for path, value in all_sizes(cfg).items():
        found.setdefault(path.partition('.')[0], []).append(value)
    return found


def test_all_sizes_of_a_config_change_together():
    for config, size, scales, test in (
        (BCCD, (416, 416), (416, 416), [(416, 416), (320, 320), (512, 512)]),
        (COCO, (320, 320), (160, 480), [(320, 320), (256, 256), (384, 384)]),
    ):
        cfg = Config.fromfile(config)
        set_size(cfg, size)
        found = sizes_by_kind(cfg)
        assert training_size(cfg) == size == cfg.img_scale
        assert found['model'] == [scales]
        for name in ('train_dataloader', 'val_dataloader', 'test_dataloader', 'test_pipeline', 'train_pipeline'):
            assert found[name] == [size], name
        assert found['tta_pipeline'] == test
        before = Config.fromfile(config).model.data_preprocessor.batch_augments[0]
        assert cfg.model.data_preprocessor.batch_augments[0].get('min_bbox_size') == before.get('min_bbox_size')
    cfg = Config.fromfile(COCO)
    cfg.train_dataloader.dataset.pipeline[0].img_scale = (640, 384)
    set_size(cfg, (480, 288))
    assert training_size(cfg) == (480, 288)


def plan_of(tmp_path, name='work', config=BCCD, **arguments):
    path, _, lines = own_config(config, tmp_path / 'data', tmp_path / name, **arguments)
    return Config.fromfile(path), lines.splitlines()


def test_the_plan_is_told_in_five_lines_and_options_win(tmp_path, monkeypatch):
    write_coco(tmp_path / 'data', num_images=20, size=(640, 480))
    monkeypatch.setattr(plan, 'SMALL_BOX_SIDE', 22.0)  # the boxes have sides of 20 to 40
    cfg, lines = plan_of(tmp_path)
    assert [line.partition(':')[0] for line in lines] == ['size', 'batch', 'length', 'augmentation', 'start']
    assert f'size: {training_size(cfg)[0]} x {training_size(cfg)[1]}, since ' in lines[0]
    assert 320 < training_size(cfg)[0] <= 640
    assert 'boxes (0%) are then below 8 pixels' in lines[0]
    assert lines[2].startswith('length: 40 epochs of 2 steps, for 16 images; 4 of them warm-up')
    mosaic = 'train_dataloader.dataset.pipeline.0'
    cfg, lines = plan_of(
        tmp_path, options={f'{mosaic}.img_scale': (352, 352), f'{mosaic}.mixup_prob': 0.5, 'train_cfg.max_epochs': 7}
    )
    # Nothing is half overridden: the rest of the sizes is the user's matter then.
    assert training_size(cfg) == (352, 352) and cfg.val_dataloader.dataset.pipeline[2].scale == (320, 320)
    assert lines[0].startswith('size: 352 x 352, as --cfg-options say') and '50% with mixup' in lines[3]
    assert lines[2].startswith('length: 7 epochs of 2 steps, as asked for; 1 of them')
    cfg, lines = plan_of(tmp_path, options={'train_dataloader.batch_size': 4, 'optim_wrapper.accumulative_counts': 2})
    assert lines[1] == (
        'batch: 4 images, as --cfg-options say, 2 of them accumulated; 8 images an update; learning rate '
        '0.003, as measured for random weights'
    )


def test_the_recipes_constants_reach_the_config(tmp_path, monkeypatch):
    write_coco(tmp_path / 'data', num_images=20)
    monkeypatch.setitem(plan.AUGMENTATION, 'mixup_prob', 0.25)
    monkeypatch.setattr(plan, 'RATE', 0.002)
    cfg, lines = plan_of(tmp_path)
    assert cfg.train_dataloader.dataset.pipeline[0].mixup_prob == 0.25 and '25% with mixup' in lines[3]
    assert cfg.optim_wrapper.optimizer.lr == 0.002 and 'learning rate 0.002' in lines[1]
    assert plan_of(tmp_path, options={'optim_wrapper.optimizer.lr': 0.003})[0].optim_wrapper.optimizer.lr == 0.003


def test_the_rate_is_that_of_short_runs_and_grows_with_the_root_of_the_batch(tmp_path, monkeypatch):
    write_coco(tmp_path / 'data', num_images=20)
    for batch, rate in ((2, 0.0015), (8, 0.003), (200, 0.004)):
        cfg, _ = plan_of(tmp_path, config=COCO, options={'train_dataloader.batch_size': batch})
        assert cfg.optim_wrapper.optimizer.lr == rate and cfg.auto_scale_lr.base_batch_size == batch
    for options in ({'load_from': 'trained.pth'}, {'optim_wrapper.optimizer.type': 'SGD'}):
        cfg, lines = plan_of(tmp_path, options=options)
        assert cfg.optim_wrapper.optimizer.lr == (0.0005 if 'load_from' in options else 0.003)
    monkeypatch.setattr(schedule, 'SHORT_RUN', 5)
    cfg, lines = plan_of(tmp_path, config=COCO)
    assert (cfg.optim_wrapper.optimizer.lr, cfg.auto_scale_lr.base_batch_size) == (0.002, 128)
    assert 'learning rate 0.00025, as in the config' in lines[1]
    monkeypatch.undo()
    # A run that was begun before there were plans goes on with the rate that it had.
    (tmp_path / 'begun').mkdir()
    (tmp_path / 'begun/last_checkpoint').write_text('epoch_1.pth')
    cfg, lines = plan_of(tmp_path, config=COCO, resumed=tmp_path / 'begun')
    assert 'learning rate 0.00025, as in the config' in lines[1]


@pytest.mark.parametrize(
    ('text', 'seconds'),
    [('30m', 1800), ('2h', 7200), ('1h30m', 5400), ('90s', 90), ('1.5h', 5400), ('45min', 2700), ('1d', 86400)],
)
def test_times_are_read(text, seconds):
    assert WallTime.parse(text).seconds == seconds


@pytest.mark.parametrize('text', ['30', '', 'm', '0m', '-5m', '30m1h', '1 hour', 'nan'])
def test_other_times_are_refused(text):
    with pytest.raises(InputError, match='such as 30m, 2h, 1h30m or 90s' + ('.*30m or 30h' if text == '30' else '')):
        WallTime.parse(text)


LIMITS = Limits(40, 12, 5)


def test_validations_are_counted_as_mmengine_makes_them():
    from mmengine.runner import EpochBasedTrainLoop

    for epochs, every in ((1, 1), (2, 1), (7, 1), (40, 1), (100, 1), (40, 3), (40, 40), (100, 7)):
        schedule = make_schedule(10, epochs, LIMITS, every)
        loop = EpochBasedTrainLoop.__new__(EpochBasedTrainLoop)
        loop._max_epochs, loop.val_interval = epochs, schedule.interval
        loop.dynamic_milestones = [0, epochs - schedule.last]
        loop.dynamic_intervals = [schedule.interval, schedule.every]
        count = 0
        for loop._epoch in range(1, epochs + 1):
            loop._decide_current_val_interval()
            count += loop._epoch % loop.val_interval == 0 or loop._epoch == epochs
        assert schedule.num_validations == count


def fake_time(monkeypatch, seconds_a_measurement=10.0):
    """A clock that only measuring moves."""
    clock = [0.0]
    monkeypatch.setattr(time, 'monotonic', lambda: clock[0])

    def measurer(step, calls):
        def measure(size, budget, known):
            assert (known is None) == (not calls)
            calls.append(size)
            clock[0] += seconds_a_measurement
            return Costs(5.0, step * size[0] ** 2 / 320**2, 1.0, 4.0)

        return measure

    return measurer


SIZES = [(320, 320), (288, 288), (256, 256), (224, 224), (192, 192), (160, 160)]


def schedule_of(epochs, every):
    return make_schedule(26, epochs, LIMITS, every)


def test_the_longest_training_that_fits_is_taken(monkeypatch):
    calls = []
    found = plan_time(WallTime('30m', 1800, 0.0), SIZES, schedule_of, fake_time(monkeypatch)(0.7, calls))
    assert found.size == (320, 320) == calls[0] and len(calls) == 1
    total = 10 + found.costs.total(found.schedule)
    assert total <= 1800 < total + 1800 * 0.03 + 26 * 0.7 + 2 * (1 + 4)
    assert found.costs.total(found.schedule) == pytest.approx(
        5 + found.schedule.epochs * (26 * 0.7 + 1) + found.schedule.num_validations * 4
    )


def test_a_long_time_is_not_used_up(monkeypatch):
    found = plan_time(WallTime('9d', 9 * 86400, 0.0), SIZES, schedule_of, fake_time(monkeypatch)(0.7, []))
    assert found.schedule.epochs == wall_time.MAX_TIMED_EPOCHS


def test_where_few_epochs_do_not_fit_the_images_get_smaller(monkeypatch):
    calls = []
    found = plan_time(WallTime('6m', 360, 0.0), SIZES, schedule_of, fake_time(monkeypatch)(0.7, calls))
    assert calls == [(320, 320), found.size] and (160, 160) < found.size < (320, 320)
    assert found.schedule.epochs * 26 >= wall_time.ENOUGH_STEPS and found.costs.total(found.schedule) + 20 <= 360
    # Where the size is the user's, it stays.
    found = plan_time(WallTime('6m', 360, 0.0), SIZES[:1], schedule_of, fake_time(monkeypatch)(0.7, []))
    assert found.size == (320, 320) and found.schedule.epochs * 26 < wall_time.ENOUGH_STEPS


def test_too_short_a_time_is_refused_with_one_that_is_enough(monkeypatch):
    with pytest.raises(InputError, match=r'--time 50s: too short .* ask for --time (\d+)m at least') as caught:
        plan_time(WallTime('50s', 50, 0.0), SIZES, schedule_of, fake_time(monkeypatch)(0.7, []))
    least = WallTime.parse(str(caught.value).split('ask for --time ')[1].split()[0])
    found = plan_time(least._replace(begin=0.0), SIZES, schedule_of, fake_time(monkeypatch)(0.7, []))
    assert found.schedule.epochs * 26 >= wall_time.LEAST_STEPS
    assert longest(Costs(60.0, 1.0, 1.0, 1.0), 30.0, schedule_of) is None  # no time even to start


def test_steps_are_brought_to_the_mean_size():
    areas = np.array([1.0, 4.0, 9.0])
    assert at_area(0.1 * areas, areas, 6.0) == pytest.approx(0.6)
    assert at_area(np.full(3, 0.5), areas, 6.0) == pytest.approx(0.5)  # the reading rules
    assert at_area(1 - 0.1 * areas, areas, 6.0) == pytest.approx((1 - 0.1 * areas).mean())  # noise
    watch = Stopwatch(1.0)
    # Epochs of four steps: 3 s for the first, 0.5 s for the others, 0.7 s with the wait between epochs.
    watch.is_first = [i % 4 == 0 for i in range(20)]
    taken = [3.0] * 8 + [0.7 if first else 0.5 for first in watch.is_first[9:]]
    watch.ends, watch.areas = list(np.cumsum([0.0, *taken])), [1.0] * 20
    assert watch.step_and_epoch(1.0) == pytest.approx((0.5, 0.2))


SMALL = {
    'model.backbone.widen_factor': 0.125,
    'model.neck.in_channels': [16, 32, 64],
    'model.neck.out_channels': 16,
    'model.bbox_head.in_channels': 16,
    'train_dataloader.batch_size': 2,
    **{f'{split}_dataloader.num_workers': 0 for split in ('train', 'val', 'test')},
    **{f'{split}_dataloader.persistent_workers': False for split in ('train', 'val', 'test')},
}


def test_a_short_run_is_measured_and_leaves_nothing(tmp_path):
    write_coco(tmp_path / 'data', num_images=20)
    cfg, _ = plan_of(tmp_path, options=SMALL)
    files = sorted(tmp_path.rglob('*'))
    costs = measure_costs(cfg, 0.2)
    assert all(cost > 0 for cost in costs) and sorted(tmp_path.rglob('*')) == files
    again = measure_costs(cfg, 0.0, costs)
    assert again[2:] == costs[2:] and again.step > 0


def test_a_time_is_planned_and_kept_by_a_resumed_run(tmp_path, monkeypatch):
    write_coco(tmp_path / 'data', num_images=20)
    asked = []

    def measure(cfg, seconds, known):
        asked.append((training_size(cfg), cfg.train_dataloader.batch_size, cfg.model.backbone.widen_factor))
        return Costs(1.0, 0.1, 0.1, 0.2)

    monkeypatch.setattr(settings, 'measure_costs', measure)
    cfg, lines = plan_of(tmp_path, options=SMALL, wall_time=WallTime.parse('1m'))
    epochs = cfg.train_cfg.max_epochs
    assert asked == [((160, 160), 2, 0.125)] and 30 < epochs < 60 and cfg.param_scheduler[1].end == epochs
    assert 'for --time 1m: 0.1 s a step and 0.2 s a validation were measured' in lines[2]
    assert json.loads((tmp_path / 'work/own_data/plan.json').read_text())['time'] == '1m'
    for time_again in (WallTime.parse('60s'), None):
        again, lines = plan_of(tmp_path, options=SMALL, wall_time=time_again, resumed=tmp_path / 'work')
        assert again.train_cfg == cfg.train_cfg and len(asked) == 1
        assert 'as at the first start, for --time 1m' in lines[2] and 'where the run was stopped' in lines[4]
    with pytest.raises(InputError, match=r'begun for --time 1m, and --resume goes on with its plan.*--epochs'):
        plan_of(tmp_path, options=SMALL, wall_time=WallTime.parse('2m'), resumed=tmp_path / 'work')
    assert plan_of(tmp_path, options=SMALL, epochs=3, resumed=tmp_path / 'work')[0].train_cfg.max_epochs == 3


def test_a_run_from_before_there_were_plans_keeps_its_size(tmp_path):
    write_coco(tmp_path / 'data', num_images=20)
    assert training_size(plan_of(tmp_path, 'new', resumed=tmp_path / 'new')[0]) == (160, 160)  # nothing to resume
    (tmp_path / 'old').mkdir()
    (tmp_path / 'old/last_checkpoint').write_text('epoch_1.pth')
    assert training_size(plan_of(tmp_path, 'old', resumed=tmp_path / 'old')[0]) == (320, 320)
    with pytest.raises(InputError, match='begun without --time'):
        (tmp_path / 'old/own_data/plan.json').unlink()
        plan_of(tmp_path, 'old', wall_time=WallTime.parse('5m'), resumed=tmp_path / 'old')


@pytest.mark.parametrize('limit', [0, 1, 3, 7, 8, 9, 20, 33, 64, 100])
@pytest.mark.parametrize('start', [1, 8, 16])
def test_the_largest_batch_is_found(limit, start):
    tried = []

    def fits(batch):
        assert 1 <= batch <= 64
        tried.append(batch)
        return batch <= limit

    found = largest_batch(fits, start, 64)
    assert found <= limit and (found == 64 or found >= min(limit, 64) - found // 8 - 1)
    if limit <= 8:
        assert found == limit
    assert len(tried) == len(set(tried)) <= 10


def test_running_out_of_memory_is_an_answer():
    def peak(batch):
        if batch > 24:
            raise torch.OutOfMemoryError('CUDA out of memory')
        return 100 * batch

    assert largest_batch(within_memory(peak, 10000), 16, 64) in range(22, 25)
    assert largest_batch(within_memory(peak, 1250), 16, 64) == 12
    with pytest.raises(RuntimeError, match='other'):
        within_memory(lambda batch: (_ for _ in ()).throw(RuntimeError('other')), 1)(1)


def test_auto_on_a_cpu_is_the_configs_batch(tmp_path):
    write_coco(tmp_path / 'data', num_images=20)
    cfg, lines = plan_of(tmp_path, options={'train_dataloader.batch_size': 'auto'})
    assert cfg.train_dataloader.batch_size == 8
    assert lines[1].startswith('batch: 8 images, as in the config, since auto needs a GPU; ')


def test_the_batch_that_is_found_rules_steps_and_rate(tmp_path, monkeypatch):
    write_coco(tmp_path / 'data', num_images=500)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'mem_get_info', lambda: (1000, 2000))
    seen = []

    def peak(cfg, batch, size, count, device):
        seen.append((batch, size, device, cfg.model.bbox_head.num_classes))
        return 80 * batch

    monkeypatch.setattr(batch_size, 'peak_memory', peak)
    cfg, lines = plan_of(tmp_path, config=COCO)
    assert seen[0] == (16, (256, 256), 'cuda', 2)
    assert cfg.train_dataloader.batch_size == 10 and lines[1] == (
        'batch: 10 images, the most that the memory holds; learning rate 0.00335, as measured for random weights'
    )
    assert '40 steps' in lines[2]
    monkeypatch.setattr(batch_size, 'peak_memory', lambda *args: 1)
    cfg, lines = plan_of(tmp_path, config=BCCD)
    assert cfg.train_dataloader.batch_size == 16 and 'the most that leaves enough steps' in lines[1]
    monkeypatch.setattr(batch_size, 'peak_memory', lambda *args: 2000)
    with pytest.raises(UserError, match='not even one image of 160 x 160 with 3 boxes fits'):
        plan_of(tmp_path, config=BCCD)
    assert plan_of(tmp_path, options={'train_dataloader.batch_size': 3})[0].train_dataloader.batch_size == 3


def test_a_batch_of_noise_trains(tmp_path):
    write_coco(tmp_path / 'data', num_images=20)
    cfg, _ = plan_of(tmp_path, options=SMALL)
    train_noise(cfg, 2, (96, 64), 5, 'cpu')
    sizes = BoxSizes(np.ones((5, 2)), np.array([0, 0, 0, 0, 1]), np.ones((2, 2)))
    assert most_boxes(cfg, sizes) == int(4 + 3 * 2.5)
    assert measure.mean_area(cfg) == 160**2
