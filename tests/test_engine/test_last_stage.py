"""The last stage: from the right epoch on, in every worker, also in a resumed run; and what the epochs seed."""

import re
from multiprocessing.process import BaseProcess

import cv2
import numpy as np
import pytest
import torch
from conftest import write_things
from mmdet.datasets import MultiImageMixDataset
from mmengine.logging import MMLogger
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import nn

from yolov7_simple.engine.hooks import LastStageHook, MixDatasetHook

NUM_IMAGES = 8


class Head(nn.Module):
    use_l1 = False


class Model(BaseModel):
    """Writes down what it was trained with."""

    def __init__(self, head=True):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        if head:
            self.bbox_head = Head()
        self.seen = []

    def forward(self, inputs, data_samples, mode):
        for image, sample in zip(inputs, data_samples):
            letterboxed = 'content_shape' in sample.metainfo
            self.seen.append((letterboxed, self.bbox_head.use_l1, int(image.sum())))
        return dict(loss=self.weight.sum())


@pytest.fixture
def make_runner(tmp_path):
    rng = np.random.default_rng(0)
    images = []
    for i in range(NUM_IMAGES):
        cv2.imwrite(str(tmp_path / f'{i}.jpg'), rng.integers(0, 256, (24, 32, 3), np.uint8))
        images.append(dict(id=i, file_name=f'{i}.jpg', width=32, height=24))
    inner = write_things(tmp_path, images)

    def make(max_epochs, num_last_epochs, num_workers=0, persistent=False, model=None, wrapper=None, **arguments):
        dataset = dict(
            type='SeededMixDataset',
            dataset=inner,
            pipeline=[
                dict(type='MosaicAffineMixUp', img_scale=(32, 32)),
                dict(type='PackDetInputs', meta_keys=('img_path', 'content_shape')),
            ],
            max_damaged=0.5,
        )
        settings = dict(
            model=model or Model(),
            work_dir=str(tmp_path / 'work_dir'),
            train_dataloader=dict(
                batch_size=4,
                num_workers=num_workers,
                persistent_workers=persistent,
                sampler=dict(type='DefaultSampler', shuffle=True),
                dataset=dict(type=wrapper, times=2, dataset=dataset) if wrapper else dataset,
            ),
            train_cfg=dict(by_epoch=True, max_epochs=max_epochs),
            optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
            custom_hooks=[dict(type='LastStageHook', num_last_epochs=num_last_epochs), dict(type='MixDatasetHook')],
            default_hooks=dict(checkpoint=dict(type='CheckpointHook', interval=1)),
            default_scope='mmdet',
            randomness=dict(seed=3),
            log_level='WARNING',
            experiment_name=f'last_stage_{rng.integers(2**40)}',
        )
        return Runner(**{**settings, **arguments})

    return make


def stages(model):
    """Whether each epoch was the last stage, which all of its samples must agree on."""
    epochs = [model.seen[i : i + NUM_IMAGES] for i in range(0, len(model.seen), NUM_IMAGES)]
    assert all(letterboxed == use_l1 for letterboxed, use_l1, _ in model.seen)
    assert all(len({use_l1 for _, use_l1, _ in epoch}) == 1 for epoch in epochs)
    return [epoch[0][1] for epoch in epochs]


@pytest.mark.parametrize('num_workers, persistent', [(0, False), (2, False), (2, True)])
def test_last_stage_begins_in_all_workers_and_restarts_none(make_runner, num_workers, persistent, monkeypatch):
    runner = make_runner(4, 2, num_workers, persistent)
    started = []
    start = BaseProcess.start
    monkeypatch.setattr(BaseProcess, 'start', lambda process: started.append(process) or start(process))
    runner.train()
    assert stages(runner.model) == [False, False, True, True]
    assert len(started) == num_workers * (1 if persistent else 4)


@pytest.mark.parametrize(
    'max_epochs, num_last_epochs, expected',
    [
        (1, 0, [False]),
        (1, 1, [True]),
        (3, 1, [False, False, True]),
        (3, 3, [True] * 3),
        (2, 5, [True] * 2),
        (3, 0, [False] * 3),
    ],
)
def test_any_number_of_epochs(make_runner, max_epochs, num_last_epochs, expected):
    runner = make_runner(max_epochs, num_last_epochs)
    runner.train()
    assert stages(runner.model) == expected


@pytest.mark.parametrize('first_epochs', [1, 2, 3])
def test_a_resumed_run_is_as_one_that_never_stopped(make_runner, first_epochs):
    whole = make_runner(4, 2)
    whole.train()
    # Stopped before, at and after the switch.
    stopped = make_runner(4, 2)
    stopped.register_hook(StopHook(first_epochs))
    stopped.train()
    assert len(stopped.model.seen) == first_epochs * NUM_IMAGES
    resumed = make_runner(4, 2, resume=True, load_from=f'{stopped.work_dir}/epoch_{first_epochs}.pth')
    resumed.train()
    assert stages(resumed.model) == [False, False, True, True][first_epochs:]
    assert resumed.model.seen == whole.model.seen[first_epochs * NUM_IMAGES :]
    assert len({fingerprint for *_, fingerprint in whole.model.seen[: 2 * NUM_IMAGES]}) == 2 * NUM_IMAGES


class StopHook(MixDatasetHook):
    """Ends the training after some epochs, as a time limit would."""

    def __init__(self, num_epochs):
        self.num_epochs = num_epochs

    def before_train(self, runner):
        pass

    before_train_epoch = before_train

    def after_train_epoch(self, runner):
        runner.train_loop.stop_training = runner.epoch + 1 == self.num_epochs


def test_damaged_files_are_reported_after_each_epoch(make_runner, tmp_path, monkeypatch):
    (tmp_path / '5.jpg').write_bytes(b'')
    runner = make_runner(2, 0, num_workers=2, persistent=True)
    messages = []
    monkeypatch.setattr(MMLogger, 'warning', lambda self, message, *_: messages.append(message))
    runner.train()
    assert [m for m in messages if 'cannot be read' in m] == [
        '1 of 8 training images cannot be read, 1 new in this epoch.',
        '1 of 8 training images cannot be read, 0 new in this epoch.',
    ]
    # The workers have named the image in the log file, once.
    log = ''.join(path.read_text() for path in (tmp_path / 'work_dir').rglob('*.log'))
    assert len(re.findall('5.jpg is cut short', log)) == 1


class Pair(BaseModel):
    """A model that holds others, as trackers and semi-supervised detectors do."""

    def __init__(self):
        super().__init__()
        self.student, self.teacher = Model(), Model()

    def forward(self, inputs, data_samples, mode):
        return self.student(inputs, data_samples, mode)


def test_heads_are_found_inside_of_other_models(make_runner):
    runner = make_runner(2, 1, model=Pair())
    runner.train()
    assert stages(runner.model.student) == [False, True] and runner.model.teacher.bbox_head.use_l1


def test_mistakes_are_named_before_training(make_runner):
    with pytest.raises(ValueError, match='num_last_epochs must be a whole number, 0 or more'):
        LastStageHook(-1)
    with pytest.raises(ValueError, match='use_l1'):
        make_runner(2, 1, model=Model(head=False)).train()
    with pytest.raises(ValueError, match='EpochBasedTrainLoop'):
        make_runner(2, 1, train_cfg=dict(by_epoch=False, max_iters=4)).train()
    with pytest.raises(ValueError, match='RepeatDataset around SeededMixDataset'):
        make_runner(2, 1, wrapper='RepeatDataset').train()


def test_rounds_of_a_loop_without_epochs_differ(make_runner):
    runner = make_runner(2, 0, train_cfg=dict(by_epoch=False, max_iters=4))
    runner.train()
    assert len({fingerprint for *_, fingerprint in runner.model.seen}) == 2 * NUM_IMAGES


def test_it_is_a_dataset_of_mmdet(make_runner):
    assert isinstance(
        make_runner(1, 0).build_dataloader(make_runner(1, 0)._train_dataloader).dataset, MultiImageMixDataset
    )
