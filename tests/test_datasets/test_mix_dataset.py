"""Samplers and wrappers of mmdet's and mmengine's with SeededMixDataset."""

import os
import pickle
import signal

import pytest
import torch
from kill_and_resume import assert_same, load
from mmdet.registry import DATASETS
from mmengine.hooks import Hook

from yolov7_simple.datasets.mix_dataset import NumberedSampler, RepeatedIndex

CLASS_AWARE = {'train_dataloader.sampler': {'_delete_': True, 'type': 'ClassAwareSampler'}}


class Record(Hook):
    """Keep what a run trains on."""

    def __init__(self, kill_at=0):
        self.kill_at = kill_at
        self.paths, self.repeats, self.sums, self.named = [], [], [], []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter + 1 == self.kill_at:
            os.kill(os.getpid(), signal.SIGTERM)
        for image, sample in zip(data_batch['inputs'], data_batch['data_samples']):
            self.paths.append(sample.img_path)
            self.repeats.append(sample.metainfo.get('repeat', 0))
            self.sums.append((runner.epoch, int(image.sum())))
        hook = next(hook for hook in runner.hooks if type(hook).__name__ == 'NonFiniteLossHook')
        self.named.append(
            set(hook._files(runner, data_batch)) >= {sample.img_path for sample in data_batch['data_samples']}
        )


def test_class_aware_sampler(run, tmp_path):
    """Images that come several times an epoch give other samples, which the message of a wrong loss can find again."""
    record = Record()
    run(tmp_path, record, **CLASS_AWARE)
    assert max(record.repeats) > 0
    assert len(set(record.sums)) == len(record.sums) and all(record.named)


def test_class_aware_sampler_resumes(run, tmp_path):
    """Without a seed of the config, too: the sampler was built before that of the checkpoint was known."""
    run(tmp_path / 'straight', **CLASS_AWARE)
    with pytest.raises(SystemExit):
        run(tmp_path / 'stopped', Record(kill_at=6), **CLASS_AWARE)
    run(tmp_path / 'stopped', resume=True, **CLASS_AWARE, **{'randomness.seed': None})
    straight, stopped = (load(tmp_path / name / 'epoch_3.pth') for name in ('straight', 'stopped'))
    for key in ('state_dict', 'ema_state_dict', 'optimizer'):
        assert_same(stopped[key], straight[key])


def test_numbers_are_of_one_rank():
    indexes = [list(NumberedSampler([3, 1, 3, 3], rank, 2)) for rank in (0, 1)]
    assert indexes == [[3, 1, 3, 3]] * 2
    assert [[index.repeat for index in own] for own in indexes] == [[0, 0, 2, 4], [1, 1, 3, 5]]
    sent = pickle.loads(pickle.dumps(indexes[1][2]))  # to a worker
    assert (sent, sent.repeat) == (3, 3)


@pytest.fixture
def single(coco_folder):
    return {
        'type': 'CheckedCocoDataset',
        'data_root': f'{coco_folder}/',
        'metainfo': {'classes': ('box', 'disc')},
        'ann_file': 'annotations/all.json',
        'data_prefix': {'img': 'images/'},
        'filter_cfg': {'filter_empty_gt': False},
        'pipeline': [{'type': 'LoadAnnotations', 'with_bbox': True}],
    }


@pytest.mark.parametrize(
    ('wrapper', 'length'),
    [
        (lambda one: {'type': 'ConcatDataset', 'datasets': [one, one]}, 16),
        (lambda one: {'type': 'RepeatDataset', 'times': 2, 'dataset': one}, 16),
        (lambda one: {'type': 'ClassBalancedDataset', 'oversample_thr': 0.9, 'dataset': one}, 15),
    ],
    ids=['concat', 'repeat', 'balanced'],
)
def test_wrappers_inside(single, wrapper, length):
    pipeline = [{'type': 'MosaicAffineMixUp', 'img_scale': (64, 64)}, {'type': 'PackDetInputs'}]
    dataset = DATASETS.build({'type': 'SeededMixDataset', 'dataset': wrapper(single), 'pipeline': pipeline})
    dataset.set_epoch(0, 0)
    assert len(dataset) == length
    labels = [dataset.get_cat_ids(i) for i in range(len(dataset))]
    assert labels[:2] == [[0], [1]] or wrapper(single)['type'] == 'ClassBalancedDataset'
    sampler = {'type': 'ClassAwareSampler', 'seed': 0}
    from mmdet.registry import DATA_SAMPLERS

    indexes = list(DATA_SAMPLERS.build({**sampler, 'dataset': dataset}))
    assert len(indexes) == length and {label for i in indexes for label in labels[i]} == {0, 1}
    first, same, other = (dataset[i]['inputs'] for i in (0, 0, RepeatedIndex.number(0, 1)))
    assert torch.equal(first, same) and not torch.equal(first, other)


def test_wrappers_outside_are_refused(run, tmp_path, single):
    mix = {
        'type': 'SeededMixDataset',
        'dataset': single,
        'pipeline': [{'type': 'MosaicAffineMixUp', 'img_scale': (96, 96)}, {'type': 'PackDetInputs'}],
    }
    balanced = {'_delete_': True, 'type': 'ClassBalancedDataset', 'oversample_thr': 0.9, 'dataset': mix}
    with pytest.raises(ValueError, match='ClassBalancedDataset around SeededMixDataset would repeat its samples: swap'):
        run(tmp_path, **{'train_dataloader.dataset': balanced})
