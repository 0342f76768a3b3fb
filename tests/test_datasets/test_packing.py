"""What a worker sends is what the trainer gets."""

import copy
import pickle
import warnings

import numpy as np
import pytest
import torch
from mmdet.registry import DATASETS, MODELS
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import HorizontalBoxes
from mmdet.structures.mask import BitmapMasks
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.runner import Runner
from mmengine.structures import InstanceData, PixelData

from yolov7_simple.datasets import packing
from yolov7_simple.datasets.packing import packed_collate


def make_sample(i, boxes=(2, 1), wrap=HorizontalBoxes):
    sample = DetDataSample(metainfo={'img_id': i, 'img_path': f'{i}.jpg', 'img_shape': (64, 64), 'flip': False})
    for key, count in zip(('gt_instances', 'ignored_instances'), boxes):
        labels = torch.arange(count) + i
        sample.set_field(InstanceData(bboxes=wrap(torch.rand(count, 4) * 64), labels=labels), key)
    return {'inputs': torch.randint(256, (3, 64, 64), dtype=torch.uint8), 'data_samples': sample}


def make_batch(**kwargs):
    return [make_sample(i, (i, 2 - i), **kwargs) for i in range(3)]


def send(batch):
    """What another process gets; nothing may warn of arrays that must not be written to."""
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        return pickle.loads(pickle.dumps(packed_collate(batch)))


def assert_alike(found, wanted):
    assert type(found) is type(wanted)
    if isinstance(wanted, torch.Tensor):
        assert found.dtype == wanted.dtype and torch.equal(found, wanted)
    elif isinstance(wanted, (DetDataSample, InstanceData, PixelData)):
        assert_alike(wanted.metainfo, found.metainfo)
        assert_alike(dict(wanted.items()), dict(found.items()))
    elif isinstance(wanted, HorizontalBoxes):
        assert_alike(found.tensor, wanted.tensor)
    elif isinstance(wanted, BitmapMasks):
        assert np.array_equal(found.masks, wanted.masks)
    elif isinstance(wanted, dict):
        assert found.keys() == wanted.keys()
        for key, value in wanted.items():
            assert_alike(found[key], value)
    elif isinstance(wanted, (list, tuple)):
        assert len(found) == len(wanted)
        for ours, theirs in zip(found, wanted):
            assert_alike(ours, theirs)
    else:
        assert found == wanted


@pytest.mark.parametrize('wrap', [HorizontalBoxes, torch.Tensor])
def test_samples_arrive_as_they_were(wrap):
    batch = make_batch(wrap=wrap)
    found, wanted = send(batch), pseudo_collate(batch)
    assert torch.equal(found['inputs'], torch.stack(wanted['inputs'])) and found['inputs'].dtype == torch.uint8
    assert_alike(found['data_samples'], wanted['data_samples'])


def test_they_are_sent_as_two_arrays(monkeypatch):
    found = packed_collate([make_sample(i) for i in range(16)])['data_samples']
    monkeypatch.setattr(torch.Tensor, '__reduce_ex__', None)  # no tensor is sent
    monkeypatch.setattr(DetDataSample, '__reduce_ex__', None)
    assert len(pickle.loads(pickle.dumps(found))) == 16


def test_no_box_at_all():
    batch = [make_sample(i, (0, 0)) for i in range(2)]
    assert_alike(send(batch)['data_samples'], pseudo_collate(batch)['data_samples'])


def test_what_arrives_can_be_changed():
    """Batch augmentations scale boxes in place, of one image at a time."""
    found = send(make_batch())['data_samples']
    before = found[1].gt_instances.bboxes.tensor.clone()
    found[2].gt_instances.bboxes.tensor.mul_(2)
    found[2].set_metainfo({'img_shape': (1, 1)})
    assert torch.equal(found[1].gt_instances.bboxes.tensor, before) and found[1].img_shape == (64, 64)


def with_masks(sample):
    sample.gt_instances.masks = BitmapMasks(np.ones((len(sample.gt_instances), 64, 64), np.uint8), 64, 64)


def with_pixels(sample):
    sample.gt_sem_seg = PixelData(sem_seg=torch.ones(1, 64, 64))


def with_instance_metainfo(sample):
    sample.gt_instances.set_metainfo({'source': 'camera'})


def with_double_boxes(sample):
    sample.gt_instances.bboxes = HorizontalBoxes(sample.gt_instances.bboxes.tensor.double())


def with_plain_boxes(sample):
    sample.gt_instances.bboxes = sample.gt_instances.bboxes.tensor


def with_soft_labels(sample):
    sample.gt_instances.labels = torch.rand(len(sample.gt_instances))


def with_list_of_labels(sample):
    sample.gt_instances.labels = [str(label) for label in sample.gt_instances.labels]


def without_ignored(sample):
    del sample.ignored_instances


def without_boxes(sample):
    sample.gt_instances = InstanceData(labels=sample.gt_instances.labels)


def with_metainfo_of_all_kinds(sample):
    sample.set_metainfo({'homography_matrix': np.eye(3, dtype=np.float32), 'tensor': torch.ones(2), 'none': None})


@pytest.mark.parametrize(
    'change',
    [
        with_masks,
        with_pixels,
        with_instance_metainfo,
        with_double_boxes,
        with_plain_boxes,
        with_soft_labels,
        with_list_of_labels,
        without_ignored,
        without_boxes,
    ],
)
@pytest.mark.parametrize('number', [0, 2])
def test_what_cannot_be_packed_arrives_unchanged(change, number):
    batch = make_batch()
    change(batch[number]['data_samples'])
    assert packing.pack_samples([one['data_samples'] for one in batch]) is None
    assert_alike(send(batch)['data_samples'], pseudo_collate(batch)['data_samples'])


def test_metainfo_of_all_kinds():
    batch = make_batch()
    with_metainfo_of_all_kinds(batch[1]['data_samples'])
    found = send(batch)['data_samples'][1]
    assert found.tensor.tolist() == [1, 1] and found.none is None
    assert found.homography_matrix.dtype == np.float32 and np.array_equal(found.homography_matrix, np.eye(3))


@pytest.mark.parametrize('image', [torch.zeros(3, 32, 64, dtype=torch.uint8), torch.zeros(3, 64, 64)])
def test_images_that_differ_stay_a_list(image):
    batch = make_batch()
    batch[2]['inputs'] = image
    assert_alike(send(batch), pseudo_collate(batch))


def test_batches_of_other_forms():
    branches = [{key: {'sup': value} for key, value in one.items()} for one in make_batch()]
    assert_alike(send(branches), pseudo_collate(branches))
    assert send([(1, 'a'), (2, 'b')]) == pseudo_collate([(1, 'a'), (2, 'b')])
    assert send([{**one, 'weight': 0.5} for one in make_batch()])['weight'] == [0.5] * 3
    assert send([{'inputs': one['inputs']} for one in make_batch()])['inputs'].shape == (3, 3, 64, 64)


def test_copies_of_what_was_not_sent():
    """Without workers the list itself is the batch."""
    found = packed_collate(make_batch())['data_samples']
    assert isinstance(found, list) and isinstance(found[0], DetDataSample)
    assert_alike(copy.deepcopy(found), list(found))


@pytest.mark.parametrize('name', ['BatchDetDataPreprocessor', 'DetDataPreprocessor'])
@pytest.mark.parametrize('workers', [0, 1])
def test_models_get_the_same(project, name, workers):
    """Through loaders of mmengine's, and a preprocessor of ours or mmdet's."""
    options = {'mean': [1.0, 2.0, 3.0], 'std': [255.0] * 3, 'pad_size_divisor': 32, 'bgr_to_rgb': True}
    preprocessor = MODELS.build({'type': name, **options})
    cfg = Config.fromfile(project / 'config.py').train_dataloader
    assert cfg.collate_fn.type == 'packed_collate'
    dataset = DATASETS.build(cfg.dataset)
    dataset.set_epoch(0, 0)
    cfg.update(dataset=dataset, num_workers=workers, persistent_workers=False)
    cfg.sampler.shuffle = False
    batches = [preprocessor(batch, True) for batch in Runner.build_dataloader(cfg)]
    del cfg.collate_fn  # as of a config of before
    for found, wanted in zip(batches, Runner.build_dataloader(cfg), strict=True):
        assert_alike({**found, 'data_samples': list(found['data_samples'])}, preprocessor(wanted, True))
