"""The recipe of the original, line by line, in the three COCO configs; and every config builds."""

import pytest
import torch
from conftest import ROOT
from mmdet.registry import MODELS
from mmengine.config import Config
from torch.utils.flop_counter import FlopCounterMode

CONFIGS = sorted((ROOT / 'configs' / 'yolov7').glob('*.py'))
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
    assert (cosine.type, cosine.begin, cosine.end, cosine.T_max) == ('CosineAnnealingLR', 3, 300, 297)
    assert cosine.eta_min_ratio == 0.01 and warmup.convert_to_iter_based and cosine.convert_to_iter_based
    assert cfg.train_cfg.max_epochs == 300
    assert (cfg.train_cfg.val_interval, cfg.train_cfg.dynamic_intervals) == (10, [(280, 1)])
    hooks = {hook.type: hook for hook in cfg.custom_hooks}
    assert hooks['LastStageHook'].num_last_epochs == 20
    ema = hooks['EMAHook']
    assert (ema.ema_type, ema.momentum, ema.gamma, ema.update_buffers) == ('ExpMomentumEMA', 0.0002, 2000, True)
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


def test_ema_ramps_as_the_originals():
    from mmdet.models.layers import ExpMomentumEMA

    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(model.weight)
    ema = ExpMomentumEMA(model, momentum=0.0002, gamma=2000)
    expected = 0.0
    torch.nn.init.ones_(model.weight)
    ema.steps.fill_(1)  # the first call only copies
    for step in range(2, 6):
        ema.update_parameters(model)
        decay = 0.9998 * (1 - torch.exp(torch.tensor(-step / 2000)).item())
        expected = decay * expected + (1 - decay)
        assert ema.module.weight.item() == pytest.approx(expected, rel=1e-6)
