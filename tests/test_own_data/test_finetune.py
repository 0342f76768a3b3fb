"""`--pretrained`: from published weights, or a checkpoint, to a training on one's own classes."""

import os
import shutil

import pytest
import torch
from conftest import ROOT, write_coco
from mmdet.registry import MODELS
from mmengine.config import Config
from published_weights import Release, original
from tool_runs import scalars, tool

from yolov7_simple.models.rtodlab import SIZES, convert_state_dict
from yolov7_simple.models.rtodlab_weights import MIRROR, WEIGHTS
from yolov7_simple.own_data.config import own_config
from yolov7_simple.own_data.finetune import adapt_classes
from yolov7_simple.own_data.plan import learning_rate
from yolov7_simple.runtime.errors import UserError
from yolov7_simple.utils.checkpoint import read_checkpoint

TINY, LARGE, HUGE = SIZES
CONFIG = ROOT / 'configs' / 'yolov7' / 'yolov7_tiny_1xb8-40e_bccd.py'
# Full width, as the published weights have it; all else is small.
SMALL = """
_base_ = {base!r}
model = dict(data_preprocessor=dict(batch_augments=None), test_cfg=dict(nms_pre=50))
train_pipeline = _base_.train_pipeline
train_pipeline[0].img_scale = (64, 64)
test_pipeline = _base_.test_pipeline
test_pipeline[2].scale = (64, 64)
train_dataloader = dict(batch_size=4, num_workers=0, persistent_workers=False, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(num_workers=0, persistent_workers=False, dataset=dict(pipeline=test_pipeline))
test_dataloader = dict(num_workers=0, persistent_workers=False, dataset=dict(pipeline=test_pipeline))
"""


def small_cfg(model_cfg, num_classes):
    return Config({'model': {**model_cfg, 'bbox_head': {**model_cfg['bbox_head'], 'num_classes': num_classes}}})


def class_rows(state_dict, level=0):
    return state_dict[f'bbox_head.cls_preds.{level}.weight'], state_dict[f'bbox_head.cls_preds.{level}.bias']


def test_rows_follow_the_names_of_the_classes(small_model_cfg):
    trained = {key: torch.rand_like(value, dtype=torch.float) for key, value in
               MODELS.build(small_cfg(small_model_cfg, 4).model).state_dict().items()}  # fmt: skip
    cfg = small_cfg(small_model_cfg, 3)
    adapted, kept = adapt_classes(trained, ('cat', 'dog', 'car', 'cow'), cfg, ('Cow', 'hamster', 'dog'))
    assert kept == ['Cow', 'dog']
    MODELS.build(cfg.model).load_state_dict(adapted, strict=True)
    for level in range(3):
        for old, new in zip(class_rows(trained, level), class_rows(adapted, level)):
            assert torch.equal(new[0], old[3]) and torch.equal(new[2], old[1])
        weight, bias = class_rows(adapted, level)
        assert bias[1].sigmoid().item() == pytest.approx(0.01) and weight[1].abs().sum() > 0
    others = [key for key in trained if '.cls_preds.' not in key]
    assert all(adapted[key] is trained[key] for key in others)


def test_no_row_is_kept_behind_towers_of_another_width(small_model_cfg):
    trained = MODELS.build(small_cfg(small_model_cfg, 80).model).state_dict()  # wider than the 64 of the other model
    adapted, kept = adapt_classes(trained, ['dog'] * 80, small_cfg(small_model_cfg, 2), ('dog', 'cat'))
    assert not kept
    MODELS.build(small_cfg(small_model_cfg, 2).model).load_state_dict(adapted, strict=True)


@pytest.fixture(scope='module')
def published(tmp_path_factory):
    folder = tmp_path_factory.mktemp('published')
    torch.manual_seed(0)
    torch.save({'model': original(TINY)}, folder / WEIGHTS['yolov7_tiny'].file)
    return folder


@pytest.fixture
def release(published, tmp_path, monkeypatch):
    release = Release(published)
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch'))
    monkeypatch.setenv(MIRROR, release.address)
    yield release
    release.stop()


@pytest.fixture
def pets(tmp_path):
    write_coco(tmp_path / 'pets', classes=('Dog', 'hamster'))
    for split in ('train', 'val'):
        shutil.copy(tmp_path / 'pets/annotations/all.json', tmp_path / f'pets/annotations/{split}.json')
    (tmp_path / 'pets/annotations/all.json').unlink()
    return tmp_path / 'pets'


def test_from_published_weights_to_a_run_that_needs_no_network(release, pets, tmp_path):
    (tmp_path / 'small.py').write_text(SMALL.format(base=str(CONFIG)))
    work = tmp_path / 'work'
    output = tool(
        'train.py', tmp_path / 'small.py', '--data', pets, '--pretrained', '--epochs', '1', '--work-dir', work
    )
    assert 'from rtodlab://yolov7_tiny; ' in output
    assert 'class rows kept for Dog; anew for hamster' in output
    assert 'start anew' not in output and 'do not match' not in output
    cfg = Config.fromfile(work / 'work.py')
    assert cfg.load_from == str(work / 'own_data/pretrained.pth')
    assert cfg.optim_wrapper.optimizer.lr == learning_rate(cfg.train_dataloader.batch_size, is_trained=True)
    expected = convert_state_dict(torch.load(release.folder / WEIGHTS['yolov7_tiny'].file)['model'])
    start = read_checkpoint(cfg.load_from)['state_dict']
    assert torch.equal(start['neck.spp.fuse.conv.weight'], expected['neck.spp.fuse.conv.weight'])
    assert torch.equal(class_rows(start)[0][0], class_rows(expected)[0][16])  # a dog is COCO's 17th class

    release.stop()
    shutil.rmtree(tmp_path / 'torch')
    again = tool('train.py', work / 'work.py', '--work-dir', tmp_path / 'again')
    assert f'starts from the weights of {cfg.load_from}' in again
    assert [one['loss'] for one in scalars(tmp_path / 'again') if 'loss' in one]


def test_a_checkpoint_of_either_kind_is_taken(release, pets, tmp_path):
    theirs = release.folder / WEIGHTS['yolov7_tiny'].file
    converted = convert_state_dict(torch.load(theirs)['model'])
    classes = ('hamster', *map(str, range(79)))
    torch.save({'state_dict': converted, 'meta': {'dataset_meta': {'classes': classes}}}, tmp_path / 'ours.pth')
    for file, kept in ((theirs, 'Dog; anew for hamster'), (tmp_path / 'ours.pth', 'hamster; anew for Dog')):
        _, _, words = own_config(CONFIG, pets, tmp_path / 'work', pretrained=str(file))
        assert words.endswith(f'class rows kept for {kept}') and f'from {file}' in words
    torch.save({'state_dict': converted}, tmp_path / 'bare.pth')
    assert own_config(CONFIG, pets, tmp_path / 'work', pretrained=str(tmp_path / 'bare.pth'))[2].endswith(
        '; anew for Dog, hamster'
    )
    assert not release.asked


def test_the_length_is_a_third_unless_given(release, pets, tmp_path):
    def epochs(**options):
        cfg = Config.fromfile(own_config(CONFIG, pets, tmp_path / 'work', **options)[0])
        assert cfg.param_scheduler[1].end == cfg.train_cfg.max_epochs
        return cfg.train_cfg.max_epochs

    assert epochs(pretrained='yolov7_tiny') == -(-epochs() // 3)
    assert epochs(pretrained='yolov7_tiny', epochs=7) == 7


@pytest.mark.parametrize(
    ('config', 'weights', 'message'),
    [
        (CONFIG, 'yolov8', 'yolov8: there is no such file, and no such name; there are yolov7_tiny, yolov7$'),
        (CONFIG.with_name(HUGE.config), '', "for a backbone of arch 'huge'.*--pretrained FILE$"),
        (CONFIG.with_name(LARGE.config), 'rtodlab://yolov7_tiny', 'yolov7_tiny is not of the model in .*yolov7_l_'),
        (CONFIG, 'elannet_tiny', 'a backbone alone; .*checkpoint=rtodlab://elannet_tiny$'),
        (CONFIG, str(ROOT / 'README.md'), r'README\.md: not a checkpoint that can be read safely'),
    ],
    ids=['name', 'no size', 'other size', 'backbone', 'no checkpoint'],
)
def test_mistakes_are_named(release, pets, tmp_path, config, weights, message):
    with pytest.raises(UserError, match=message):
        own_config(config, pets, tmp_path / 'work', pretrained=weights)
    assert not (tmp_path / 'work/own_data/pretrained.pth').exists()


def test_the_advice_for_a_backbone_builds():
    cfg = Config.fromfile(CONFIG)
    cfg.merge_from_dict(
        {'model.backbone.init_cfg.type': 'Pretrained', 'model.backbone.init_cfg.checkpoint': 'rtodlab://elannet_tiny'}
    )
    assert MODELS.build(cfg.model.backbone).init_cfg['checkpoint'] == 'rtodlab://elannet_tiny'


@pytest.mark.parametrize(
    ('flags', 'told'),
    [
        ([], True),
        (['--resume'], False),
        (['--cfg-options', 'load_from=a.pth'], False),
        (['--cfg-options', 'model.backbone.init_cfg.type=Pretrained'], False),
    ],
)
def test_random_weights_are_said(pets, tmp_path, monkeypatch, capsys, flags, told):
    monkeypatch.syspath_prepend(ROOT / 'tools')
    import train

    for name in ('RANK', 'SLURM_PROCID'):
        monkeypatch.delenv(name, raising=False)
    arguments = [str(CONFIG), '--data', str(pets), '--work-dir', str(tmp_path / 'work'), *flags]
    monkeypatch.setattr('sys.argv', ['train.py', *arguments])
    train.use_own_data()
    assert ('from random weights; --pretrained' in capsys.readouterr().out) == told


def test_two_starts_are_refused(pets, tmp_path):
    arguments = ['--data', pets, '--pretrained', '--work-dir', tmp_path / 'work', '--cfg-options', 'load_from=a.pth']
    output = tool('train.py', CONFIG, *arguments, ok=False)
    assert '--pretrained and load_from=' in output and not os.path.exists(tmp_path / 'work')
