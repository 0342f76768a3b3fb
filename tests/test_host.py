"""Private parts of mmengine, mmdet and others that the package uses, which an update may remove."""

import ast
import importlib
import inspect
import pkgutil

import pytest
from test_layers import MODULES, folder_of

import yolov7_simple

# Owner and name of a function or method, or of an attribute that the owner's code sets on itself.
PRIVATE = [
    ('mmengine.optim', '_ParamScheduler'),
    ('mmengine.runner:Runner', '_resume'),
    ('mmengine.runner:Runner', '_load_from'),
    ('mmengine.runner:Runner', '_randomness_cfg'),
    ('mmengine.runner:EpochBasedTrainLoop', '_decide_current_val_interval'),
    ('mmengine.runner.runner:_SlicedDataset', '_dataset'),
    ('mmengine.fileio:LmdbBackend', '_client'),
    ('mmengine.fileio:LmdbBackend', '_get_client'),
    ('mmengine.hooks:CheckpointHook', '_save_checkpoint_with_step'),
    ('mmengine.hooks:CheckpointHook', '_save_best_checkpoint'),
    ('mmdet.models.data_preprocessors:BatchSyncRandomResize', '_random_size_range'),
    ('mmdet.models.data_preprocessors:BatchSyncRandomResize', '_interval'),
    ('mmdet.models.data_preprocessors:BatchSyncRandomResize', '_size_divisor'),
    ('mmdet.models.data_preprocessors:BatchSyncRandomResize', '_input_size'),
    ('mmdet.models.data_preprocessors:BatchSyncRandomResize', '_get_random_size'),
    ('mmdet.datasets:MultiImageMixDataset', '_skip_type_keys'),
    ('mmdet.visualization:DetLocalVisualizer', '_draw_instances'),
    ('mmdet.evaluation:CocoMetric', '_coco_api'),
    ('faster_coco_eval.core.faster_eval_api:COCOeval', '_paramsEval'),
    ('torch.nn.modules.batchnorm', '_BatchNorm'),
    ('torch', '_foreach_mul_'),
    ('torch', '_foreach_add_'),
    ('torch', '_foreach_copy_'),
    ('numpy', '_core'),
    ('numpy:{core}.multiarray', '_reconstruct'),
]
# Public names that the package assigns to, which works only while the host looks them up at each use.
PUBLIC = [
    ('torch.utils.data:BatchSampler', 'sampler'),
    ('torch.utils.data:DataLoader', 'worker_init_fn'),
    ('mmdet.evaluation.metrics.coco_metric', 'COCOeval'),
    ('mmengine.hooks:CheckpointHook', 'file_backend'),
    ('mmengine.optim:OptimWrapper', 'clip_func'),
    ('mmengine.optim:OptimWrapper', 'clip_grad_kwargs'),
    ('mmengine.optim:OptimWrapper', 'grad_name'),
]
# Private by name only: they are documented.
# Of os, of NamedTuple, of VIA's files, of mmengine's configs, and the end of a metric's name.
NOT_OF_THE_HOST = {
    '_exit',
    '_checked_options',
    '_replace',
    '_fields',
    '_via_img_metadata',
    '_delete_',
    '_scope_',
    '_precision',
}
METACLASS = {'_abc_impl', '_instance_dict'}  # attributes that metaclasses add to classes


def find_owner(place):
    import numpy

    module = place.split(':')[0]
    if module.startswith('faster_coco_eval'):
        pytest.importorskip('faster_coco_eval')
    importlib.import_module(module)
    return pkgutil.resolve_name(place.format(core='_core' if hasattr(numpy._core, 'multiarray') else 'core'))


@pytest.mark.parametrize(('place', 'name'), PRIVATE + PUBLIC, ids=lambda value: value)
def test_the_host_has_it(place, name):
    owner = find_owner(place)
    is_set = inspect.isclass(owner) and any(
        f'self.{name} = ' in inspect.getsource(base) or f'self.{name}: ' in inspect.getsource(base)
        for base in owner.__mro__
        if base.__module__ != 'builtins'
    )
    assert hasattr(owner, name) or is_set, f'{place} has no {name} here: see where the package uses it'


def is_private(name):
    return name.startswith('_') and name.isidentifier() and not name.startswith('__') and name != '_'


def own_names(tree):
    """Private names that a module defines, or sets on `self`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and is_self(node.value):
            yield node.attr


def is_self(node):
    return isinstance(node, ast.Name) and node.id in ('self', 'cls')


def foreign_private_names(tree):
    """Private names that a module uses of others: imported, of another object, by `getattr`, or inherited."""
    own = set(own_names(tree))
    in_f_strings = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and not node.level:
            yield from (alias.name for alias in node.names if is_private(alias.name))
        elif isinstance(node, ast.Attribute) and is_private(node.attr):
            if not is_self(node.value) or node.attr not in own:
                yield node.attr
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and is_private(node.value):
            yield from [] if id(node) in in_f_strings else [node.value]


def overridden_private_names():
    """Private methods of ours that take the place of one of the host's."""
    for cls in (getattr(yolov7_simple, name) for name in yolov7_simple.__all__):
        if inspect.isclass(cls):
            theirs = {n for base in cls.__mro__ if not base.__module__.startswith('yolov7_simple') for n in vars(base)}
            yield from filter(is_private, vars(cls).keys() & theirs - METACLASS)


def test_nothing_else_of_the_host_is_used():
    listed = {name for _, name in PRIVATE}
    trees = {module: tree for module, tree in MODULES.items() if folder_of(module) != 'tools'}
    used = {name: module for module, tree in trees.items() for name in foreign_private_names(tree)}
    used.update(dict.fromkeys(overridden_private_names(), 'overridden'))
    assert not {name: module for name, module in used.items() if name not in listed | NOT_OF_THE_HOST}
    nodes = [node for tree in trees.values() for node in ast.walk(tree)]
    attributes = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    assert not listed - used.keys() - attributes, 'listed, but no longer used'
