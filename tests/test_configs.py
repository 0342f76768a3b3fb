"""The recipe of the original, line by line, in the three COCO configs; and every config builds."""

import pytest
import torch
from conftest import ROOT
from mmdet.registry import MODELS, PARAM_SCHEDULERS
from mmengine.config import Config
from mmengine.logging import MessageHub
from mmengine.optim import CosineAnnealingLR
from torch.utils.flop_counter import FlopCounterMode

from yolov7_simple import ForeachExpMomentumEMA
from yolov7_simple.engine.loops import resolve_intervals
from yolov7_simple.models.ema import RECIPE_STEPS
from yolov7_simple.report.runs import POINTS_PER_EPOCH, plan_schedule

CONFIGS = sorted((ROOT / 'configs' / 'yolov7').glob('*.py'))
AROUND_A_DETECTOR = sorted(path for name in ('bytetrack', 'semi') for path in (ROOT / 'configs' / name).glob('*.py'))
COCO = [path for path in CONFIGS if path.stem.endswith('8xb16-300e_coco')]


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_builds_and_its_dump_loads_by_itself(path, tmp_path):
    cfg = Config.fromfile(path)
    with torch.device('meta'):
        model = MODELS.build({key: value for key, value in cfg.model.items() if key != 'data_preprocessor'})
        outs = model(torch.empty(1, 3, 64, 64), mode='tensor')
    assert [len(levels) for levels in outs] == [3, 3, 3]
    cfg.dump(tmp_path / 'dumped.py')
    assert Config.fromfile(tmp_path / 'dumped.py').to_dict() == cfg.to_dict()
    assert cfg.default_scope == 'mmdet'
    assert cfg.custom_imports == {'imports': ['yolov7_simple'], 'allow_failed_imports': False}


@pytest.mark.parametrize('path', AROUND_A_DETECTOR, ids=lambda path: path.stem)
def test_what_holds_a_detector_builds_and_its_dump_loads_by_itself(path, tmp_path):
    if 'bytetrack' in path.stem:
        pytest.importorskip('lap')
    cfg = Config.fromfile(path)
    with torch.device('meta'):
        MODELS.build(cfg.model)
    cfg.dump(tmp_path / 'dumped.py')
    assert Config.fromfile(tmp_path / 'dumped.py').to_dict() == cfg.to_dict()
    # mmdet's default leaves the teacher without BatchNorm statistics.
    assert all(hook.skip_buffer is False for hook in cfg.custom_hooks if hook.type == 'MeanTeacherHook')
    # What nothing reads would take no effect on a command line.
    assert not {'detector', 'data_preprocessor', 'batch_size'} & set(cfg)


def test_there_are_three_coco_configs():
    assert [path.stem for path in COCO] == [f'yolov7_{size}_8xb16-300e_coco' for size in ('l', 'tiny', 'x')]


@pytest.mark.parametrize(
    ('name', 'parameters', 'gflops', 'sizes'),
    [
        ('tiny', 7_968_159, 22.6, (320, 960)),
        ('l', 44_080_543, 144.6, (320, 800)),
        ('x', 78_869_895, 256.4, (320, 960)),
    ],
)
def test_size_cost_and_multi_scale(name, parameters, gflops, sizes):
    cfg = Config.fromfile(ROOT / 'configs' / 'yolov7' / f'yolov7_{name}_8xb16-300e_coco.py')
    with torch.device('meta'):
        model = MODELS.build({key: value for key, value in cfg.model.items() if key != 'data_preprocessor'})
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model.eval()(torch.empty(1, 3, 640, 640), mode='tensor')
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert counter.get_total_flops() / 1e9 == pytest.approx(gflops, abs=0.1)  # of convolutions, twice the multiply-adds
    (multi_scale,) = cfg.model.data_preprocessor.batch_augments
    assert multi_scale.random_size_range == sizes
    built = MODELS.build(multi_scale)
    assert (built._interval, built._size_divisor, built.min_bbox_size) == (1, 32, 8)


@pytest.mark.parametrize('path', COCO, ids=lambda path: path.stem)
def test_recipe(path):
    cfg = Config.fromfile(path)
    assert cfg.train_dataloader.batch_size == 16 and cfg.auto_scale_lr == {'enable': False, 'base_batch_size': 128}
    assert cfg.sync_bn == 'torch'
    optim = cfg.optim_wrapper
    assert (optim.type, optim.loss_scale) == ('AmpOptimWrapper', 'dynamic')
    assert optim.optimizer == {'type': 'AdamW', 'lr': 0.001 / 64 * 128, 'weight_decay': 0.05}
    assert optim.paramwise_cfg == {'norm_decay_mult': 0.0, 'bias_decay_mult': 0.0}
    assert optim.clip_grad == {'max_norm': 35.0, 'norm_type': 2}
    warmup, cosine = cfg.param_scheduler
    assert (warmup.type, warmup.begin, warmup.end) == ('LinearLR', 0, 3)
    built = build_scheduler(cosine, max_epochs=300, epoch_length=1)
    assert isinstance(built, CosineAnnealingLR) and (built.begin, built.end, built.T_max) == (3, 300, 297)
    assert cosine.eta_min_ratio == 0.01 and warmup.convert_to_iter_based and cosine.convert_to_iter_based
    assert cfg.train_cfg.max_epochs == 300
    assert cfg.train_cfg.val_interval == 10
    assert resolve_intervals(cfg.train_cfg.dynamic_intervals, 300) == [(280, 1)]
    hooks = {hook.type: hook for hook in cfg.custom_hooks}
    assert hooks['LastStageHook'].num_last_epochs == 20
    ema = hooks['EMAHook']
    assert (ema.ema_type, ema.momentum, ema.gamma, ema.update_buffers) == ('ForeachExpMomentumEMA', 0.0002, 2000, True)
    assert RECIPE_STEPS < 117_000 // 128 * 300  # so that the recipe's own numbers are for the recipe's own run
    assert {'NumClassCheckHook', 'NonFiniteLossHook'} <= {hook.type for hook in cfg.default_hooks.values()}
    assert cfg.default_hooks.checkpoint.save_best == 'coco/bbox_mAP'
    mosaic, hsv, _ = cfg.train_dataloader.dataset.pipeline
    assert mosaic.center_ratio_range == (0.5, 1.5) and mosaic.img_scale == (640, 640)
    assert (mosaic.max_rotate_degree, mosaic.max_shear_degree, mosaic.max_translate_ratio) == (10, 2, 0.1)
    assert mosaic.scaling_ratio_range == (0.1, 2.0) and mosaic.mixup_ratio_range == (0.5, 1.5)
    assert (mosaic.flip_prob, mosaic.get('mixup_prob', 1.0)) == (0.5, 1.0)
    assert (hsv.hue, hsv.saturation, hsv.value) == (0.015, 0.7, 0.4)
    test_cfg = cfg.model.test_cfg
    assert (test_cfg.nms_pre, test_cfg.score_thr, test_cfg.nms.iou_threshold) == (1000, 0.001, 0.7)
    assert 'max_per_img' not in test_cfg
    preprocessor = cfg.model.data_preprocessor
    assert preprocessor.std == [255.0] * 3 and not preprocessor.bgr_to_rgb
    assert preprocessor.pad_value == pytest.approx(114 / 255)


def build_scheduler(cfg, max_epochs, epoch_length):
    """As mmengine's runner does."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 1.0)
    cfg = {'end': max_epochs, **cfg}
    return PARAM_SCHEDULERS.build(cfg, default_args={'optimizer': optimizer, 'epoch_length': epoch_length})


def own_config(tmp_path, text):
    path = tmp_path / 'own.py'
    path.write_text(f'_base_ = {str(COCO[1])!r}\n{text}\n')
    return Config.fromfile(path)


def test_max_epochs_alone_sets_the_length(tmp_path):
    cfg = own_config(tmp_path, 'train_cfg = dict(max_epochs=50)')
    schedule = plan_schedule(cfg)
    assert (schedule.warmup, schedule.last_stage, len(schedule.lrs)) == (3, 30, 50 * POINTS_PER_EPOCH)
    assert max(schedule.lrs) == pytest.approx(0.002)
    assert schedule.lrs.index(max(schedule.lrs)) == 3 * POINTS_PER_EPOCH - 1
    # Half-way from the warm-up to the end the rate is half-way from 0.002 to its hundredth.
    assert schedule.lrs[int(26.5 * POINTS_PER_EPOCH)] == pytest.approx(0.002 * 1.01 / 2)
    assert schedule.lrs[-1] == pytest.approx(0.00002, rel=1e-2)
    assert schedule.validations == [10, 20, *range(29, 51)]


def test_warm_up_and_last_stage_are_found_by_type(tmp_path):
    text = """
train_cfg = dict(max_epochs=12, val_interval=4, dynamic_intervals=[(-2, 1)])
param_scheduler = _base_.param_scheduler
next(one for one in param_scheduler if one.type == 'LinearLR').end = 1
next(one for one in param_scheduler if one.type == 'CosineToEndLR').begin = 1
custom_hooks = _base_.custom_hooks
next(hook for hook in custom_hooks if hook.type == 'LastStageHook').num_last_epochs = 3
"""
    schedule = plan_schedule(own_config(tmp_path, text))
    assert (schedule.warmup, schedule.last_stage, schedule.validations) == (1, 9, [4, 8, 9, 10, 11, 12])
    assert schedule.lrs.index(max(schedule.lrs)) == POINTS_PER_EPOCH - 1
    assert schedule.lrs[-1] == pytest.approx(0.00002, rel=0.02)


@pytest.mark.parametrize('max_epochs', [1, 2, 3])
def test_a_run_may_end_within_the_warm_up(tmp_path, max_epochs):
    schedule = plan_schedule(own_config(tmp_path, f'train_cfg = dict(max_epochs={max_epochs})'))
    assert schedule.lrs == sorted(schedule.lrs) and len(schedule.lrs) == max_epochs * POINTS_PER_EPOCH
    assert (schedule.last_stage, schedule.validations) == (0, list(range(1, max_epochs + 1)))


@pytest.mark.parametrize('max_iters, momentum, gamma', [(None, 2e-4, 2000), (300_000, 2e-4, 2000), (1000, 0.05, 8)])
def test_ema_follows_the_length_of_the_run(max_iters, momentum, gamma):
    """Over a run of 1000 steps the recipe's own average would reach back 5000."""
    model = torch.nn.Linear(1, 1)
    torch.nn.init.zeros_(model.weight)
    ema = ForeachExpMomentumEMA(model, momentum=0.0002, gamma=2000)
    chosen = ForeachExpMomentumEMA(model, momentum=0.1, gamma=1)
    hub = MessageHub.get_instance(f'ema_{max_iters}')
    if max_iters:
        hub.update_info('max_iters', max_iters)
    for average in (ema, chosen):
        average.update_parameters(model)
    assert (ema.momentum, ema.gamma) == pytest.approx((momentum, gamma))
    assert (chosen.momentum, chosen.gamma) == (0.1, 1)  # as its owner has set it
    ema.steps.fill_(100_000)
    with torch.no_grad():
        model.weight.add_(1)
    before = ema.module.weight.item()
    ema.update_parameters(model)
    assert ema.module.weight.item() - before == pytest.approx(momentum, rel=0.01)


def test_ema_ramps_as_the_originals():
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(model.weight)
    ema = ForeachExpMomentumEMA(model, momentum=0.0002, gamma=2000, base_steps=None)
    expected = 0.0
    torch.nn.init.ones_(model.weight)
    ema.steps.fill_(1)  # the first call only copies
    for step in range(2, 6):
        ema.update_parameters(model)
        decay = 0.9998 * (1 - torch.exp(torch.tensor(-step / 2000)).item())
        expected = decay * expected + (1 - decay)
        assert ema.module.weight.item() == pytest.approx(expected, rel=1e-6)
