"""mmdet's ByteTrack and SemiBaseDetector over our detector, as a user runs them, on a drawn video."""

import copy
import json
import re
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT, write_mot
from mmdet.registry import DATASETS, MODELS
from mmdet.structures.bbox import bbox_overlaps
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.hooks import Hook
from mmengine.logging import MessageHub
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner, load_checkpoint
from tool_runs import scalars, tool

from yolov7_simple.engine.branches import walk_samples
from yolov7_simple.engine.hooks import MixDatasetHook

NUM_EPOCHS, NUM_ITERS = 40, 20
TRACKER = """
_base_ = {base!r}
data_root = {data!r}
detector = dict(
    backbone=dict(widen_factor=0.125),
    neck=dict(in_channels=[16, 32, 64], out_channels=16),
    bbox_head=dict(in_channels=16),
    test_cfg=dict(nms=dict(iou_threshold=0.5)),
)
model = dict(
    data_preprocessor=dict(
        batch_augments=[dict(type='BatchMultiScale', random_size_range=(96, 128), min_bbox_size=4)]
    ),
    detector=detector,
)
size = (128, 128)
train_pipeline = _base_.train_pipeline
train_pipeline[0].update(img_scale=size, scaling_ratio_range=(0.7, 1.3), mixup_prob=0.0)
test_pipeline = _base_.test_pipeline
next(step for step in test_pipeline[0].transforms if step.type == 'Resize').scale = size
loader = dict(num_workers=0, persistent_workers=False)
train_dataloader = dict(
    loader, batch_size=4, dataset=dict(pipeline=train_pipeline, dataset=dict(data_root=data_root))
)
val_dataloader = dict(loader, dataset=dict(pipeline=test_pipeline, data_root=data_root))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + 'annotations/half-val_cocoformat.json')
test_evaluator = dict(val_evaluator, _delete_=True, type='CocoVideoMetric')
train_cfg = dict(max_epochs={epochs}, val_interval={epochs}, dynamic_intervals=None)
optim_wrapper = dict(optimizer=dict(lr=0.008))
param_scheduler = [dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=10)]
custom_hooks = _base_.custom_hooks
for hook in custom_hooks:
    if hook.type == 'EMAHook':
        hook.update(momentum=0.1, gamma=1)
    else:
        hook.num_last_epochs = {epochs} // 2
default_hooks = dict(logger=dict(interval=4), checkpoint=dict(interval={epochs}))
randomness = dict(seed=1)
"""
TEACHER = """
_base_ = {base!r}
data_root = {data!r}
metainfo = dict(classes=('pedestrian',))
# Nothing is learned from labels.
model = dict(
    detector=dict(
        backbone=dict(widen_factor=0.125),
        neck=dict(in_channels=[16, 32, 64], out_channels=16),
        bbox_head=dict(in_channels=16, num_classes=1),
    ),
    semi_train_cfg=dict(sup_weight=0.0, cls_pseudo_thr=0.3),
)
size = (128, 128)
labeled, unlabeled = _base_.labeled_dataset, _base_.unlabeled_dataset
source = dict(data_root=data_root, data_prefix=dict(img='train/'), metainfo=metainfo)
labeled.dataset.update(source, ann_file='annotations/half-train_cocoformat.json')
unlabeled.dataset.update(source, ann_file='annotations/unlabeled.json')
labeled.pipeline[0].update(img_scale=size, mixup_prob=0.0)
for branch in ('unsup_teacher', 'unsup_student'):
    unlabeled.pipeline[-1][branch][0].scale = [(96, 96), (160, 160)]
test_pipeline = _base_.test_pipeline
next(step for step in test_pipeline if step.type == 'Resize').scale = size
loader = dict(num_workers=0, persistent_workers=False)
train_dataloader = dict(
    loader, batch_size=4, sampler=dict(batch_size=4), dataset=dict(datasets=[labeled, unlabeled])
)
val_dataloader = dict(
    loader, dataset=dict(source, ann_file='annotations/half-val_cocoformat.json', pipeline=test_pipeline)
)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + 'annotations/half-val_cocoformat.json')
test_evaluator = val_evaluator
train_cfg = dict(max_iters={iters}, val_interval={iters})
optim_wrapper = dict(optimizer=dict(lr=0.002))
param_scheduler = None
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(interval={iters} // 2))
randomness = dict(seed=1)
"""


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Folder with MOT17/, tracker.py and its run in tracker/, detector.pth, teacher.py."""
    pytest.importorskip('lap')
    folder = tmp_path_factory.mktemp('trackers')
    data = folder / 'MOT17'
    write_mot(data)
    annotations = data / 'annotations'
    tool('mmdet_tool.py', 'dataset_converters/mot2coco.py', '-i', data, '-o', annotations, '--split-train')
    unlabeled = json.loads((annotations / 'half-val_cocoformat.json').read_text())
    (annotations / 'unlabeled.json').write_text(json.dumps({**unlabeled, 'annotations': []}))
    for name, text in {'bytetrack': TRACKER, 'semi': TEACHER}.items():
        (base,) = (ROOT / 'configs' / name).glob('*.py')
        values = {'base': str(base), 'data': f'{data}/', 'epochs': NUM_EPOCHS, 'iters': NUM_ITERS}
        (folder / f'{name}.py').write_text(text.format(**values))
    (folder / 'train.log').write_text(
        tool('train.py', folder / 'bytetrack.py', '--work-dir', folder / 'bytetrack', '--verbose')
    )
    weights = torch.load(folder / f'bytetrack/epoch_{NUM_EPOCHS}.pth', weights_only=True)['state_dict']
    detector = {key.removeprefix('detector.'): value for key, value in weights.items()}
    torch.save({'state_dict': detector}, folder / 'detector.pth')
    return folder


class Frames(Hook):
    """Notes what is tracked in each frame."""

    def __init__(self):
        self.samples = []

    def after_test_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.samples += [frame for video in outputs for frame in video]


def test_a_tracker_learns_and_keeps_its_tracks(folder):
    assert f'Last stage from epoch {NUM_EPOCHS // 2 + 1}' in (folder / 'train.log').read_text()
    losses = [record for record in scalars(folder / 'bytetrack') if 'loss' in record]
    assert losses[-1]['loss_l1'] > 0 and losses[0].get('loss_l1', 0) == 0
    cfg = Config.fromfile(folder / 'bytetrack.py')
    cfg.update(work_dir=str(folder / 'tracks'), load_from=str(folder / f'bytetrack/epoch_{NUM_EPOCHS}.pth'))
    cfg.experiment_name = 'tracks'
    frames = Frames()
    runner = Runner.from_cfg(cfg)
    runner.register_hook(frames)
    runner.test()
    assert len(frames.samples) == 11
    found = [set(), set()]
    for sample in frames.samples:
        tracks = sample.pred_track_instances
        overlaps = bbox_overlaps(torch.tensor([truth['bbox'] for truth in sample.instances]), tracks.bboxes)
        for numbers, of_truth in zip(found, overlaps):
            overlap, best = of_truth.max(0)
            numbers.add(int(tracks.instances_id[best]) if overlap > 0.5 else 'lost')
    assert len(found[0]) == len(found[1]) == 1 and found[0] != found[1] and 'lost' not in found[0] | found[1], found


def test_the_checkpoint_of_a_detector_tracks(folder):
    printed = tool('test.py', folder / 'bytetrack.py', folder / 'detector.pth', '--work-dir', folder / 'detector',
                   '--verbose')  # fmt: skip
    assert 'A checkpoint of a detector, for detector of ByteTrack' in printed
    trained = re.findall(r'coco/bbox_mAP: (\S+)', (folder / 'train.log').read_text())[-1]
    assert re.findall(r'coco/bbox_mAP: (\S+)', printed)[-1] == trained and float(trained) > 0.3


def test_a_student_learns_from_its_teachers_boxes(folder):
    start = f'load_from={folder / "detector.pth"}'
    printed = tool('train.py', folder / 'semi.py', '--work-dir', folder / 'semi', '--verbose', '--cfg-options', start)
    assert 'A checkpoint of a detector, for student and teacher of SemiBaseDetector' in printed
    records = [record for record in scalars(folder / 'semi') if 'unsup_loss_obj' in record]
    assert len(records) == NUM_ITERS and all(record['sup_loss_obj'] == 0 for record in records)
    assert all(record['loss'] > 0 for record in records)  # of pseudo boxes alone
    model, batch = build_semi(folder)
    before = pseudo_loss(model, batch)
    trained = torch.load(folder / f'semi/iter_{NUM_ITERS}.pth', weights_only=True)['state_dict']
    student = {key: value for key, value in trained.items() if key.startswith('student.')}
    model.load_state_dict(student, strict=False)
    assert pseudo_loss(model, batch) < before
    assert float(re.findall(r'teacher/coco/bbox_mAP: (\S+)', printed)[-1]) > 0.3
    assert list((folder / 'semi').glob('best_teacher*.pth'))
    work_dir = folder / 'semi'
    resumed = tool('train.py', folder / 'semi.py', '--work-dir', work_dir, '--verbose', '--resume', '--cfg-options',
                   f'train_cfg.max_iters={NUM_ITERS + 2}')  # fmt: skip
    assert f'resumed epoch: 0, iter: {NUM_ITERS}' in resumed


def pseudo_loss(model, batch):
    """Loss of the student on the boxes that its teacher finds in a batch."""
    torch.manual_seed(0)
    data = model.data_preprocessor(copy.deepcopy(batch), True)
    with torch.no_grad():
        losses = model(**data, mode='loss')
    return sum(float(value) for name, value in losses.items() if name.startswith('unsup_loss'))


def build_semi(folder, **options):
    """The model, with the detector's weights, and a batch of its data."""
    cfg = Config.fromfile(folder / 'semi.py')
    cfg.merge_from_dict(options)
    dataset = DATASETS.build(cfg.train_dataloader.dataset)
    batch = pseudo_collate([dataset[i] for i in (0, 13, 14, 20)])
    model = MODELS.build(cfg.model)
    load_checkpoint(model, str(folder / 'detector.pth'))
    return model, batch


def test_pseudo_boxes_are_where_the_objects_are_in_the_students_image(folder):
    model, batch = build_semi(folder)
    assert len(list(walk_samples(batch['data_samples']))) == 1 + 2 * 3
    data = model.data_preprocessor(batch, True)
    samples = data['data_samples']
    pseudo, _ = model.get_pseudo_instances(data['inputs']['unsup_teacher'], samples['unsup_teacher'])
    projected = model.project_pseudo_instances(pseudo, samples['unsup_student'])
    sizes = set()
    for image, sample in zip(data['inputs']['unsup_student'], projected):
        sizes.add(sample.img_shape)
        instances = sample.gt_instances
        for x1, y1, x2, y2 in instances.bboxes[instances.scores > 0.3].round().int().tolist():
            assert image[:, y1:y2, x1:x2].median() > 0.5
        assert (instances.scores > 0.3).sum() >= 2
    assert len(sizes) > 1


def test_a_resize_that_moves_pseudo_boxes_is_refused(folder):
    scale = {'type': 'BatchMultiScale', 'random_size_range': (64, 128)}
    model, batch = build_semi(folder, **{'model.data_preprocessor.data_preprocessor.batch_augments': [scale]})
    MessageHub.get_current_instance().update_info('iter', 0)
    with pytest.raises(ValueError, match=r'leave it out of batch_augments, and use RandomResize'):
        model.data_preprocessor(batch, True)


@pytest.mark.parametrize(
    ('change', 'loop', 'message'),
    [
        ({'batch_size': 2}, IterBasedTrainLoop, 'batch_size is 2, and sampler.batch_size in it 4: set both alike'),
        ({'sampler.source_ratio': [9, 1]}, IterBasedTrainLoop, r'takes \[4, 0\] images: each dataset must have one'),
        ({}, EpochBasedTrainLoop, 'use IterBasedTrainLoop and max_iters'),
    ],
)
def test_batches_that_would_lack_a_branch_are_refused(folder, change, loop, message):
    cfg = Config.fromfile(folder / 'semi.py')
    cfg.merge_from_dict({f'train_dataloader.{key}': value for key, value in change.items()})
    loader = Runner.build_dataloader(cfg.train_dataloader, seed=0)
    runner = SimpleNamespace(train_dataloader=loader, train_loop=object.__new__(loop))
    with pytest.raises(ValueError, match=message):
        MixDatasetHook().before_train(runner)


def test_the_tools_for_detectors_refuse_what_holds_one(folder):
    printed = tool(
        'detect.py', folder / 'semi.py', folder / 'detector.pth', folder / 'MOT17/train/street/img1', ok=False
    )
    assert re.search(
        r'error: .*semi\.py: SemiBaseDetector holds a detector: take it out, see docs/tracking\.md', printed
    )


def test_a_loss_that_is_not_finite_names_the_files_of_all_branches(folder):
    printed = tool('train.py', folder / 'semi.py', '--work-dir', folder / 'nan', '--cfg-options',
                   'optim_wrapper.optimizer.lr=1e30', 'model.semi_train_cfg.sup_weight=1', ok=False)  # fmt: skip
    files = re.search(r'files of this batch: (.*)', printed)[1]
    assert len(re.findall(r'street/img1/\d+\.jpg', files)) >= 4
