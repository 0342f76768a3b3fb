"""The batch that mmdet's DetDataPreprocessor gives, without waits for a GPU."""

import copy

import pytest
import torch
from mmdet.models.data_preprocessors import DetDataPreprocessor
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.logging import MessageHub
from mmengine.structures import InstanceData

from yolov7_simple.utils.options import OptionError

OPTIONS = {'mean': [1.0, 2.0, 3.0], 'std': [255.0] * 3, 'pad_size_divisor': 32, 'pad_value': 114 / 255}
MULTI_SCALE = [{'type': 'BatchMultiScale', 'random_size_range': (32, 96)}]


def make_batch(shapes=((64, 64), (64, 64))):
    images, samples = [], []
    for i, shape in enumerate(shapes):
        sample = DetDataSample(metainfo={'img_shape': shape, 'pad_shape': shape})
        for key in ('gt_instances', 'ignored_instances'):
            boxes = torch.tensor([[0.0, 0, 30, 30], [0, 0, 40, 9], [5, 5, 20, 12]])[i:]
            sample.set_field(InstanceData(bboxes=boxes, labels=torch.arange(len(boxes))), key)
        samples.append(sample)
        images.append(torch.randint(256, (3, *shape), dtype=torch.uint8))
    return {'inputs': images, 'data_samples': samples}


def run(cls, batch, step, training=True, **options):
    hub = MessageHub.get_instance('preprocessor')
    hub.update_info('iter', step)
    preprocessor = MODELS.build({'type': cls, **OPTIONS, **options})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MessageHub, 'get_current_instance', classmethod(lambda cls: hub))
        patch.setattr('yolov7_simple.models.multi_scale.sync_random_seed', lambda: 0)
        return preprocessor(copy.deepcopy(batch), training)


@pytest.mark.parametrize('shapes', [((64, 64), (64, 64)), ((60, 50), (33, 70)), ((40, 64),)])
@pytest.mark.parametrize('training', [True, False])
def test_equals_mmdets(shapes, training):
    batch, dropped = make_batch(shapes), 0
    for step in range(6):
        wanted, found = (
            run(cls, batch, step, training, batch_augments=MULTI_SCALE)
            for cls in ('DetDataPreprocessor', 'BatchDetDataPreprocessor')
        )
        assert torch.equal(found['inputs'], wanted['inputs'])
        for ours, theirs, source in zip(found['data_samples'], wanted['data_samples'], batch['data_samples']):
            assert ours.metainfo == theirs.metainfo
            for key in ('gt_instances', 'ignored_instances'):
                assert torch.equal(ours.get(key).bboxes, theirs.get(key).bboxes)
                assert torch.equal(ours.get(key).labels, theirs.get(key).labels)
                dropped += len(source.get(key)) - len(ours.get(key))
    assert (dropped > 0) == training


def test_without_samples():
    batch = {'inputs': make_batch()['inputs']}
    found = run('BatchDetDataPreprocessor', batch, 0, False)
    assert found['data_samples'] is None and found['inputs'].shape == (2, 3, 64, 64)
    # What is stacked on a GPU gives the same numbers.
    stacked = run('DetDataPreprocessor', {'inputs': torch.stack(batch['inputs'])}, 0, False)
    assert torch.equal(found['inputs'], stacked['inputs'])


def test_boxes_are_dropped_before_they_are_on_the_device():
    """The meta device has no numbers, so filtering on it fails, as it makes a GPU wait."""
    seen = []

    class Augment(torch.nn.Module):
        def forward(self, inputs, samples):
            seen.append((inputs.device.type, samples[0].gt_instances.bboxes.device.type))
            for sample in samples:
                sample.gt_instances = sample.gt_instances[sample.gt_instances.labels == 1]
            return inputs, samples

    preprocessor = MODELS.build({'type': 'BatchDetDataPreprocessor', **OPTIONS}).to('meta')
    preprocessor.batch_augments = [Augment()]
    batch = make_batch()
    found = preprocessor(batch, True)
    assert seen == [('meta', 'cpu')]
    assert found['inputs'].shape == (2, 3, 64, 64) and found['inputs'].is_meta
    for sample in found['data_samples']:
        assert sample.gt_instances.bboxes.is_meta and sample.gt_instances.bboxes.shape == (1, 4)
    assert [len(sample.gt_instances) for sample in batch['data_samples']] == [3, 2]  # those of the loader are its own


def test_channels_that_do_not_fit_are_refused_on_a_gpu_too():
    batch = {'inputs': [torch.zeros(1, 64, 64, dtype=torch.uint8)] * 2}
    for device in ('cpu', 'meta'):
        with pytest.raises(OptionError, match=r"an image has 1: .*color_type='color'"):
            MODELS.build({'type': 'BatchDetDataPreprocessor', **OPTIONS}).to(device)(batch)


def test_is_mmdets_for_whoever_asks():
    assert isinstance(MODELS.build({'type': 'BatchDetDataPreprocessor', **OPTIONS}), DetDataPreprocessor)
