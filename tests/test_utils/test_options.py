"""Mistakes in configs, drawn by hypothesis: each is refused when it is built, with the class and the option named."""

import copy
import inspect
import os

import numpy as np
import pytest
from conftest import write_coco
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mmdet.registry import DATASETS, HOOKS, MODELS, TASK_UTILS, TRANSFORMS
from mmengine.config import Config

from yolov7_simple.utils.options import OptionError, checked_options, fits, list_options

NUM_CONFIGS = int(os.environ.get('YOLOV7_FUZZ', 0))
PIPELINE = [{'type': 'MosaicAffineMixUp', 'img_scale': (64, 64)}, {'type': 'PackDetInputs'}]
# Registry and config of each of our classes that a config names.
CONFIGS = {
    'ELANNet': (MODELS, {'arch': 'tiny', 'widen_factor': 0.125}),
    'ELANPAFPN': (MODELS, {'in_channels': [16, 32, 64], 'out_channels': 16, 'num_stages': 2}),
    'YOLOv7SimpleHead': (MODELS, {'num_classes': 2, 'in_channels': 16}),
    'BatchMultiScale': (MODELS, {'random_size_range': (64, 128)}),
    'BatchSimOTAAssigner': (TASK_UTILS, {}),
    'MosaicAffineMixUp': (TRANSFORMS, {}),
    'RandomHSVGain': (TRANSFORMS, {}),
    'CheckImageFile': (TRANSFORMS, {}),
    'LastStageHook': (HOOKS, {}),
    'MemoryFormatHook': (HOOKS, {}),
    'MixDatasetHook': (HOOKS, {}),
    'CheckpointCheckHook': (HOOKS, {}),
    'NonFiniteLossHook': (HOOKS, {}),
    'FastInferenceHook': (HOOKS, {}),
    'SeededMixDataset': (DATASETS, {'pipeline': PIPELINE}),
    'TiledDataset': (DATASETS, {'tile': 64}),
    'CheckedCocoDataset': (DATASETS, {}),
}
ODD = st.one_of(
    st.none(),
    st.booleans(),
    # Small numbers: a network of a million channels is built as asked.
    st.integers(-40, 40),
    st.floats(-4, 4) | st.sampled_from([float('nan'), float('inf'), -float('inf')]),
    st.text(max_size=5),
    st.lists(st.integers(-5, 5) | st.floats() | st.text(max_size=2), max_size=4),
    st.tuples(st.integers(-5, 200), st.integers(-5, 200)),
    st.dictionaries(
        st.sampled_from(['type', 'assigner', 'nms', 'score_thr', 'max_per_img', 'x']), st.none() | st.text()
    ),
)
# Of these mmdet, mmcv and mmengine tell more than the type, in words of their own, as of all that is inherited.
HOST_OPTIONS = {'norm_cfg', 'act_cfg', 'init_cfg', 'loss_cls', 'loss_bbox', 'loss_obj', 'loss_l1', 'backend_args'}
HOST_OPTIONS |= {'dataset'}


@pytest.fixture(scope='module')
def configs(tmp_path_factory):
    folder = tmp_path_factory.mktemp('options')
    write_coco(folder)
    configs = {name: {'type': name, **options} for name, (_, options) in CONFIGS.items()}
    configs['CheckedCocoDataset'].update(
        data_root=str(folder),
        ann_file='annotations/all.json',
        data_prefix={'img': 'images/'},
        metainfo={'classes': ('box', 'disc')},
        serialize_data=False,
    )
    for name in ('SeededMixDataset', 'TiledDataset'):
        configs[name]['dataset'] = configs['CheckedCocoDataset']
    return configs


def build(configs, name, **changes):
    return CONFIGS[name][0].build(copy.deepcopy({**configs[name], **changes}))


@pytest.mark.parametrize('name', CONFIGS)
def test_unknown_options_are_named(configs, name):
    built = build(configs, name)
    with pytest.raises(OptionError, match=f'{name}: there is no option wrong_name; it has'):
        build(configs, name, wrong_name=1)
    for option in list_options(type(built)):
        with pytest.raises(OptionError, match=f'{name}: there is no option {option}x; did you mean'):
            build(configs, name, **{f'{option}x': 1})


def test_repr_shows_the_options(configs):
    """As mmcv's transforms do; a config of what is shown builds the same."""
    ours = [name for name, cls in TRANSFORMS.module_dict.items() if cls.__module__.startswith('yolov7_simple.')]
    assert len(ours) >= 3 and set(ours) <= set(CONFIGS)
    for name in [*ours, 'LastStageHook', 'CheckedCocoDataset']:
        built = build(configs, name)
        options = eval(repr(built), {name: dict})
        assert repr(build({name: {'type': name, **options}}, name)) == repr(built)
        assert options.keys() == list_options(type(built)).keys()
        for option, value in configs[name].items():
            assert option == 'type' or options[option] == value
    assert repr(build(configs, 'RandomHSVGain', hue=0.5)) == 'RandomHSVGain(hue=0.5, saturation=0.7, value=0.4)'
    assert repr(build(configs, 'YOLOv7SimpleHead')).startswith('YOLOv7SimpleHead(\n  (loss_cls)'), 'as modules do'


def test_repr_of_a_subclass_shows_what_its_base_was_given():
    class Plain(TRANSFORMS.get('RandomHSVGain')):
        def __init__(self, gain):
            super().__init__(value=gain)

    assert repr(Plain(0.25)) == 'Plain(hue=0.015, saturation=0.7, value=0.25)'
    assert repr(checked_options(Plain)(gain=0.25)) == 'Plain(gain=0.25)'
    assert repr(Plain.__new__(Plain)) == 'Plain()'


@settings(
    max_examples=NUM_CONFIGS or 300,
    derandomize=not NUM_CONFIGS,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
@given(data=st.data())
def test_any_value_is_taken_or_refused_by_name(configs, data):
    """Where the value fits its type it may still not fit the other options: that, too, is told by name."""
    name = data.draw(st.sampled_from([name for name in CONFIGS if list_options(CONFIGS[name][0].get(name))]))
    cls = CONFIGS[name][0].get(name)
    options = list_options(cls)
    option = data.draw(st.sampled_from(sorted(options)))
    value = data.draw(ODD)
    hint, default = options[option]
    is_ours = option in inspect.signature(cls).parameters and option not in HOST_OPTIONS
    try:
        build(configs, name, **{option: value})
    except Exception as error:
        if value is not default and not fits(value, hint):
            assert isinstance(error, OptionError) and f'{name}: {option} must be ' in str(error)
        elif is_ours:
            assert isinstance(error, OptionError) and name in str(error), error
    else:
        assert value is default or fits(value, hint)


@pytest.mark.parametrize(
    ('name', 'changes', 'message'),
    [
        ('ELANNet', {'widen_factor': '0.5'}, "ELANNet: widen_factor must be a number, got '0.5'"),
        ('ELANNet', {'widen_factor': float('nan')}, 'ELANNet: widen_factor must be a number, got nan'),
        ('ELANNet', {'norm_eval': 1}, 'ELANNet: norm_eval must be True or False, got 1'),
        ('ELANNet', {'norm_cfg': 'BN'}, "ELANNet: norm_cfg must be dict or None, got 'BN'"),
        (
            'ELANPAFPN',
            {'in_channels': 16},
            'ELANPAFPN: in_channels must be a list of a whole number, 1 or more, got 16',
        ),
        ('YOLOv7SimpleHead', {'num_classes': 0}, 'num_classes must be a whole number, 1 or more, got 0'),
        ('YOLOv7SimpleHead', {'num_classes': True}, 'num_classes must be a whole number, 1 or more, got True'),
        ('YOLOv7SimpleHead', {'test_cfg': {'score_thresh': 0.3}}, 'test_cfg: there is no option score_thresh; did you'),
        ('YOLOv7SimpleHead', {'test_cfg': {'score_thr': 3}}, 'test_cfg: score_thr must be a number, 0 to 1, got 3'),
        ('YOLOv7SimpleHead', {'train_cfg': {'asigner': {}}}, 'train_cfg: there is no option asigner; did you mean ass'),
        (
            'YOLOv7SimpleHead',
            {'train_cfg': {'assigner': {'type': 'BatchSimOTAAssigner', 'center_radius': -1}}},
            'BatchSimOTAAssigner: center_radius must be a number, 0 or more, got -1',
        ),
        ('MosaicAffineMixUp', {'pad_val': 114.0}, 'pad_val must be a whole number, 0 to 255, got 114.0'),
        ('MosaicAffineMixUp', {'img_scale': 640}, r'img_scale must be \(a whole number, 1 or more, a whole number'),
        ('SeededMixDataset', {'max_damaged': 5}, 'SeededMixDataset: max_damaged must be a number, 0 to 1, got 5'),
        ('CheckedCocoDataset', {'max_missing': None}, 'CheckedCocoDataset: max_missing must be a number, 0 to 1, got'),
        ('CheckedCocoDataset', {'ann_file': 5}, 'CheckedCocoDataset: ann_file must be a text or None, got 5'),
        ('CheckedCocoDataset', {'ann_file': None}, 'CheckedCocoDataset: ann_file must be set'),
        ('LastStageHook', {'num_last_epochs': -1}, 'num_last_epochs must be a whole number, 0 or more, got -1'),
        ('LastStageHook', {'num_last_epochs': 2.5}, 'num_last_epochs must be a whole number, 0 or more, got 2.5'),
    ],
)
def test_wrong_types_and_ranges_are_named(configs, name, changes, message):
    with pytest.raises(OptionError, match=message):
        build(configs, name, **changes)


def test_what_must_be_set_is_named(configs):
    with pytest.raises(OptionError, match='YOLOv7SimpleHead: num_classes must be set'):
        MODELS.build({'type': 'YOLOv7SimpleHead', 'in_channels': 16})


@pytest.mark.parametrize(
    ('name', 'changes', 'wanted'),
    [
        ('ELANNet', {'out_indices': range(2, 5)}, (2, 3, 4)),
        ('ELANNet', {'out_indices': np.array([1, 4])}, (1, 4)),
        ('ELANNet', {'out_indices': [np.int64(3)], 'norm_eval': np.bool_(True)}, (3,)),
        ('ELANPAFPN', {'in_channels': np.array([16, 32, 64])}, (16, 32, 64)),
        ('LastStageHook', {'num_last_epochs': np.int32(7)}, 7),
        ('BatchSimOTAAssigner', {'center_radius': np.float32(1.5)}, 1.5),
        ('YOLOv7SimpleHead', {'test_cfg': {'score_thr': np.float64(0.25)}}, {'score_thr': 0.25}),
        ('YOLOv7SimpleHead', {'test_cfg': Config({'nms': {'iou_threshold': 0.5}})}, {'nms': {'iou_threshold': 0.5}}),
    ],
)
def test_what_numpy_and_python_count_with_is_taken(configs, name, changes, wanted):
    """As numbers of Python's own, which all that comes after understands."""
    got = getattr(build(configs, name, **changes), next(iter(changes)))
    assert got == wanted and 'numpy' not in repr(got) and 'np.' not in repr(got)


@pytest.mark.parametrize('value', [np.float64(2.5), np.int64(-1), np.array(2.5), np.array([1]), float('nan'), range(2)])
def test_and_is_refused_where_it_does_not_fit(configs, value):
    with pytest.raises(OptionError, match='num_last_epochs must be a whole number, 0 or more, got'):
        build(configs, 'LastStageHook', num_last_epochs=value)


def test_lists_are_tuples_and_whole_numbers_are_numbers(configs):
    assert build(configs, 'MosaicAffineMixUp', img_scale=[64, 32], max_rotate_degree=10).img_scale.tolist() == [64, 32]
