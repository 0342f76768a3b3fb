"""Options that would change nothing are refused, with advice that works; and our configs in Python style."""

import re
import shlex

import pytest
from conftest import ROOT
from mmdet.registry import MODELS, TRANSFORMS
from mmengine.config import Config, DictAction

from yolov7_simple.apis.config_options import TYPE_KEYS, check_config_options, length_options, load_config
from yolov7_simple.utils.configs import config_names, config_path, type_name
from yolov7_simple.utils.options import OptionError

COCO = config_path('yolov7_tiny_8xb16-300e_coco.py')


def parse(text):
    """As argparse does with mmengine's action."""
    pairs = (one.split('=', 1) for one in shlex.split(text))
    return {key: DictAction._parse_iterable(value) for key, value in pairs}


@pytest.fixture(scope='module')
def cfg():
    return Config.fromfile(COCO)


@pytest.mark.parametrize(
    ('option', 'message'),
    [
        ('max_epochs=5', 'Set --cfg-options train_cfg.max_epochs=5'),
        ('max_epoch=5', 'did you mean train_cfg.max_epochs?'),
        ('batch_size=8', 'Set --cfg-options train_dataloader.batch_size=8 val_dataloader.batch_size=8'),
        ('dataset_type=CocoDataset', 'train_dataloader.dataset.dataset.type=CocoDataset'),
        ('train_pipeline.0.mixup_prob=0.5', 'Set --cfg-options train_dataloader.dataset.pipeline.0.mixup_prob=0.5'),
        ('img_scale=(320,320)', 'train_dataloader.dataset.pipeline.0.img_scale=(320,320)'),
        ('bbox_head.num_classes=3', 'model.bbox_head.num_classes=3'),
        ('optim_wraper.optimizer.lr=1', 'did you mean optim_wrapper?'),
        ('xyzzy=1', 'nothing reads xyzzy; there are activation_checkpointing'),
        ('custom_imports.imports=mine', 'nothing reads custom_imports'),
        ('train_dataloader.dataset.pipline.0.mixup_prob=1', 'no option pipline; did you mean pipeline?'),
        ('train_dataloader.batch_sise=2', 'train_dataloader has no option batch_sise; did you mean batch_size?'),
        ('train_dataloader.dataset.dataset.filter_cfg.filter_emty_gt=True', 'did you mean filter_empty_gt?'),
        ('optim_wrapper.optimizer.lrr=1', 'AdamW has no option lrr; did you mean lr?'),
        ('optim_wrapper.paramwise_cfg.norm_decay=1', 'did you mean norm_decay_mult?'),
        ('model.bbox_head.num_clases=3', 'YOLOv7SimpleHead has no option num_clases; did you mean num_classes?'),
        ('default_hooks.checkpoint.intervall=2', 'SafeCheckpointHook has no option intervall; did you mean interval?'),
        ('optim_wrapper.optimizer.type=SGD optim_wrapper.optimizer.betas=(0.9,0.99)', 'SGD has no option betas'),
        ('train_cfg.max_epoch=3', 'ResumableTrainLoop has no option max_epoch; did you mean max_epochs?'),
        ('auto_scale_lr.enabled=True', 'did you mean enable?'),
        ('env_cfg.cudnn_benchmar=True', 'did you mean cudnn_benchmark?'),
        ('custom_hooks.7.priority=1', 'custom_hooks is a list of 2, and has no 7'),
        ('custom_hooks.LastStageHook.num_last_epochs=1', 'custom_hooks is a list of 2, and has no LastStageHook'),
        ('work_dir=a load_from.b=c', 'load_from is None, and has no b'),
    ],
)
def test_what_would_change_nothing_is_refused(cfg, option, message):
    with pytest.raises(OptionError, match=re.escape(message)):
        check_config_options(cfg, parse(option))


@pytest.mark.parametrize(
    'options',
    [
        'randomness.seed=0 load_from=a.pth work_dir=b resume=True',
        'model.backbone.init_cfg.type=Pretrained model.backbone.init_cfg.checkpoint=rtodlab://elannet_tiny',
        'default_hooks.fast.type=FastInferenceHook default_hooks.logger.priority=10',
        'param_scheduler.0.convert_to_iter_based=False param_scheduler.1.end=3',
        'test_evaluator.outfile_prefix=x optim_wrapper.dtype=bfloat16 optim_wrapper.accumulative_counts=4',
        'custom_hooks.0.begin_epoch=3 custom_hooks.0.device=cpu',  # the second is of the average
        'optim_wrapper._delete_=True optim_wrapper.type=OptimWrapper optim_wrapper.optimizer.type=SGD',
        'optim_wrapper.optimizer.type=SGD optim_wrapper.optimizer.momentum=0.9',  # the new type's options
        'train_dataloader.num_batch_per_epoch=3 train_dataloader.pin_memory=True tta_model.tta_cfg.max_per_img=3',
    ],
)
def test_what_is_read_is_taken(cfg, options):
    check_config_options(cfg, parse(options))


CHANGED_IN_THE_FILE = """
_base_ = {base!r}
dataset = dict(data_root='DIR/')
train_dataloader = dict(dataset=dict(dataset=dataset))
val_dataloader = dict(dataset=dataset)
test_dataloader = dict(dataset=dataset)
val_evaluator = dict(ann_file='DIR/annotations/instances_val2017.json')
test_evaluator = val_evaluator
"""


def test_the_advice_for_a_variable_does_what_changing_it_in_the_file_does(tmp_path):
    with pytest.raises(OptionError) as refusal:
        load_config(COCO, {'data_root': 'DIR/'})
    advised = load_config(COCO, parse(str(refusal.value).split('Set --cfg-options ')[1]))
    (tmp_path / 'changed.py').write_text(CHANGED_IN_THE_FILE.format(base=COCO))
    expected = Config.fromfile(tmp_path / 'changed.py')
    for key in ('train_dataloader', 'val_dataloader', 'test_dataloader', 'val_evaluator', 'test_evaluator'):
        assert advised[key] == expected[key], key


# Options that messages, docstrings and docs advise, with some value; a message may break the line after the flag.
TEXTS = [path.read_text() for folder in ('yolov7_simple', 'tools') for path in (ROOT / folder).rglob('*.py')]
FOLLOWING = [text for content in TEXTS for text in re.findall(r"--cfg-options (?:'\s+f')?([^'`\n]*)", content)]
ADVICE = sorted({f'{key}=x' for text in FOLLOWING for key in re.findall(r'([a-z_]+(?:\.\w+)*)=', text)})


@pytest.mark.parametrize('option', ADVICE)
def test_options_that_our_messages_advise_are_taken(cfg, option):
    key = option.partition('=')[0]
    options = {'model.backbone.init_cfg.type': 'Pretrained', key: 'x'}
    if key == 'data_root':  # the one that is advised for its answer
        with pytest.raises(OptionError, match='Set --cfg-options train_dataloader'):
            check_config_options(cfg, options)
    else:
        check_config_options(cfg, options)


def test_advice_is_found():
    assert {'data_root=x', 'model.backbone.init_cfg.type=x'} <= set(ADVICE)


def test_a_schedule_of_ones_own_follows_the_length(tmp_path):
    (tmp_path / 'own.py').write_text(
        f'_base_ = {COCO!r}\ntrain_cfg = dict(max_epochs=100, dynamic_intervals=[(85, 1)])\n'
        "param_scheduler = [dict(type='LinearLR', begin=0, end=5),\n"
        "    dict(type='CosineAnnealingLR', begin=5, end=100, T_max=95),\n"
        "    dict(type='ConstantLR', by_epoch=False, begin=0, end=100)]\n"
    )
    cfg = Config.fromfile(tmp_path / 'own.py')
    expected = {'param_scheduler.1.end': 40, 'param_scheduler.1.T_max': 35, 'train_cfg.dynamic_intervals': [(25, 1)]}
    assert length_options(cfg, {'train_cfg.max_epochs': 40}) == expected
    given = {'train_cfg.max_epochs': 40, 'param_scheduler.1.end': 39}
    assert length_options(cfg, given).keys() == expected.keys() - given.keys()
    assert not length_options(Config.fromfile(COCO), {'train_cfg.max_epochs': 40})  # ends with the run by itself


def bare(node, key=''):
    """Without the modules of types, as mmengine writes classes."""
    if isinstance(node, dict):
        return {name: bare(value, name) for name, value in node.items()}
    if isinstance(node, (list, tuple)):
        return type(node)(bare(value, key) for value in node)
    return node.rpartition('.')[2] if key in TYPE_KEYS and isinstance(node, str) else node


@pytest.mark.parametrize('name', config_names())
def test_python_style(name, tmp_path):
    """The same config, with classes; its dump, in which they are names with modules, is one too."""
    (tmp_path / 'yolov7').symlink_to(ROOT / 'yolov7_simple' / 'configs')
    (tmp_path / 'mine.py').write_text(
        'from mmengine.config import read_base\n\nwith read_base():\n'
        f'    from .yolov7.{name.replace("-", "_").removesuffix(".py")} import *\n'
    )
    cfg, expected = Config.fromfile(tmp_path / 'mine.py'), bare(Config.fromfile(config_path(name)).to_dict())
    assert bare(cfg.to_dict()) == expected
    head = cfg.model.get('detector', cfg.model).bbox_head
    assert head.type is MODELS.get('YOLOv7SimpleHead')
    if 'detector' not in cfg.model:
        assert cfg.train_dataloader.dataset.dataset.pipeline[0].type is TRANSFORMS.get('LoadAnnotations')  # not mmcv's
    cfg.dump(tmp_path / 'dumped.py')
    dumped = Config.fromfile(tmp_path / 'dumped.py')
    assert bare(dumped.to_dict()) == expected
    for one in (cfg, dumped):
        assert type_name(one.model.get('detector', one.model).bbox_head) == 'YOLOv7SimpleHead'
