"""What a run would only fail at later is refused before training, with what to set."""

from types import SimpleNamespace

import pytest
import torch
from mmdet.registry import METRICS
from mmengine.hooks import Hook
from tool_runs import tool

from yolov7_simple.datasets.mosaic import MosaicAffineMixUp
from yolov7_simple.engine import run_checks
from yolov7_simple.utils.options import OptionError

SAVE_BEST = 'default_hooks.checkpoint.save_best'
EVALUATOR = {'val_evaluator.classwise': True}
PIPELINE = 'train_dataloader.dataset.dataset.pipeline'
# Read as train and val pipelines of the config are.
VAL_PIPELINE = [
    {'type': 'LoadImageFromFile'},
    {'type': 'Resize', 'scale': (96, 96), 'keep_ratio': True},
    {'type': 'LoadAnnotations', 'with_bbox': True},
    {'type': 'PackDetInputs', 'meta_keys': ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')},
]


def val_pipeline(step, **options):
    pipeline = [dict(one) for one in VAL_PIPELINE]
    pipeline[step].update(options)
    return {'val_dataloader.dataset.pipeline': pipeline}


@pytest.mark.parametrize(
    ('options', 'words'),
    [
        ({SAVE_BEST: 'pascal_voc/mAP'}, 'CocoMetric gives coco/bbox_mAP, .*save_best=coco/bbox_mAP'),
        ({SAVE_BEST: 'coco/bbox_map'}, 'save_best=coco/bbox_map is no key'),
        ({SAVE_BEST: ['coco/bbox_mAP', 'mAP']}, 'save_best=mAP is no key'),
        ({SAVE_BEST: 'coco/box_precision'}, 'is no key'),
        ({'val_evaluator.metric_items': ['mAP_50']}, 'gives coco/bbox_mAP_50. Set'),
        ({'val_evaluator.prefix': 'mine'}, 'gives mine/bbox_mAP'),
        ({'val_evaluator.format_only': True, 'val_evaluator.outfile_prefix': 'x'}, 'gives none. .*save_best=None'),
        ({PIPELINE: [{'type': 'LoadAnnotations', 'with_bbox': True, 'with_mask': True}]},
         'train_dataloader: .*with_mask=True.* CheckedCocoDataset.*set with_mask=False'),
        (val_pipeline(2, with_mask=True), 'val_dataloader: .*set with_mask=False'),
        (val_pipeline(0, color_type='grayscale'), "val_dataloader: .*color_type='grayscale'.*3 channels"),
        (val_pipeline(0, color_type='unchanged'), "color_type='unchanged'"),
        (val_pipeline(0, imdecode_backend='tifffile'), "imdecode_backend='tifffile'"),
        ({'model.backbone.in_channels': 1}, 'in_channels must be 3, got 1: '),
        ({'model.backbone.in_channels': 4}, 'in_channels must be 3, got 4: '),
        ({'train_dataloader.drop_last': True, 'train_dataloader.batch_size': 9, 'param_scheduler': None},
         '8 images are no batch of 9.*drop_last=False'),
        ({'custom_hooks': [{'type': 'YOLOXModeSwitchHook', 'num_last_epochs': 1}]},
         "LastStageHook', num_last_epochs=1"),
        ({'optim_wrapper.optimizer': {'_delete_': True, 'type': 'SGD', 'lr': 0.01}},
         'norm_decay_mult.* SGD sets none: set optim_wrapper.optimizer.weight_decay'),
        ({'activation_checkpointing': 'backbone', 'compile': True}, 'exclude each other'),
        ({'activation_checkpointing': ['backbon']}, "no module 'backbon'; it has data_preprocessor, backbone"),
    ],
    ids=str,
)  # fmt: skip
def test_refused(run, tmp_path, options, words):
    with pytest.raises(OptionError, match=words):
        run(tmp_path, **options)
    assert not list(tmp_path.glob('*.pth'))


class Own(Hook):
    """Adds a key, as a user's hook may."""

    def after_val_epoch(self, runner, metrics=None):
        metrics['mine'] = 1.0


@METRICS.register_module()
class OwnMetric(METRICS.get('CocoMetric')):
    """May give further keys, whatever it inherits."""

    default_prefix = 'own'

    def compute_metrics(self, results):
        return {**super().compute_metrics(results), 'more': 0.5}


@pytest.mark.parametrize(
    ('options', 'hooks', 'key'),
    [
        ({SAVE_BEST: 'mine'}, [Own()], 'mine'),
        ({SAVE_BEST: 'own/more', 'val_evaluator.type': 'OwnMetric'}, [], 'own_more'),
        ({SAVE_BEST: 'coco/box_precision', **EVALUATOR}, [], 'coco_box_precision'),
        ({SAVE_BEST: 'auto', 'default_hooks.checkpoint.rule': None, **EVALUATOR}, [], 'coco_bbox_mAP'),
        ({SAVE_BEST: 'val_loss', 'default_hooks.checkpoint.rule': 'less', 'val_cfg.type': 'LossValLoop'}, [],
         'val_loss'),
    ],
    ids=['hook', 'metric', 'class', 'auto', 'loss'],
)  # fmt: skip
def test_what_is_right_stays_allowed(run, tmp_path, options, hooks, key):
    run(tmp_path, *hooks, **options, **{'train_cfg.max_epochs': 1})
    assert [path.name for path in tmp_path.glob('best_*')] == [f'best_{key}_epoch_1.pth']


def test_a_validation_without_detections_is_no_end(run, tmp_path):
    """CocoMetric then gives no numbers at all."""
    run(tmp_path, **{'model.test_cfg.score_thr': 0.999, 'train_cfg.max_epochs': 1})
    assert (tmp_path / 'epoch_1.pth').exists() and not list(tmp_path.glob('best_*'))


def test_as_a_user_types_it(tmp_path, project):
    """A schedule that counts steps must not fail first; an error is one line."""
    options = ['train_dataloader.drop_last=True', 'train_dataloader.batch_size=16']
    output = tool('train.py', project / 'config.py', '--work-dir', tmp_path, '--cfg-options', *options, ok=False)
    assert 'error: train_dataloader: 8 images are no batch of 16' in output and 'Traceback' not in output


@pytest.mark.parametrize('ranks', [1, 4])
def test_shared_memory_is_for_all_ranks_of_the_machine(tmp_path, monkeypatch, ranks):
    torch.distributed.init_process_group('gloo', init_method=f'file://{tmp_path}/store', rank=0, world_size=1)
    try:
        monkeypatch.setenv('LOCAL_WORLD_SIZE', str(ranks))
        monkeypatch.setattr(run_checks.shutil, 'disk_usage', lambda path: SimpleNamespace(free=3 * 64 * 64 * 5 * 2))
        pipeline = [MosaicAffineMixUp(img_scale=(64, 64))]
        loader = SimpleNamespace(
            dataset=SimpleNamespace(pipeline=pipeline), num_workers=2, prefetch_factor=2, batch_size=2
        )
        if ranks == 1:
            run_checks.check_shared_memory(loader)
        else:
            with pytest.raises(OptionError, match='num_workers=0 and '):
                run_checks.check_shared_memory(loader)
    finally:
        torch.distributed.destroy_process_group()


def test_workers_that_do_not_fit_into_shared_memory_are_refused_with_what_to_set(run, tmp_path, monkeypatch):
    free = 3 * 64 * 64 * 2 * 5  # as many bytes as five batches have
    monkeypatch.setattr(run_checks.shutil, 'disk_usage', lambda path: SimpleNamespace(free=free))
    options = {
        'train_dataloader.dataset.pipeline.0.img_scale': (64, 64),
        'train_dataloader.batch_size': 2,
        'train_dataloader.num_workers': 3,
        'train_cfg.max_epochs': 1,
    }
    with pytest.raises(OptionError, match=r'3 workers keep batches of .*--shm-size=1g.*num_workers=2$'):
        run(tmp_path, **options)
    run(tmp_path, **{**options, 'train_dataloader.num_workers': 2})
