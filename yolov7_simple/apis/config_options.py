"""Load a config, with ``--cfg-options KEY=VALUE``; mmengine takes any key, so those that change nothing are refused."""

from __future__ import annotations

import difflib
import inspect
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import mmdet.registry
from mmcv.transforms import LoadImageFromFile
from mmengine.config import Config
from mmengine.config.lazy import LazyObject
from mmengine.hooks import Hook
from mmengine.optim import _ParamScheduler
from mmengine.registry import Registry
from torch.utils.data import DataLoader

from ..utils.checkpoint import CheckpointError
from ..utils.config_differences import RUNNER_KEYS
from ..utils.configs import config_names, config_path, type_name
from ..utils.options import OptionError

# Top-level keys that are read after the config has been loaded: by mmengine's runner as its arguments, and from the
# whole config by the runner, by mmdet's tools and by ours.
READ_KEYS = RUNNER_KEYS | {
    'activation_checkpointing',
    'compile',
    'efficient_conv_bn_eval',
    'find_unused_parameters',
    'model_wrapper_cfg',
    'runner_type',
    'strategy',
    'sync_bn',
    'tta_model',
    'tta_pipeline',
}
# Of dicts without a type of their own, by their name; the host reads these and passes over all others.
DICT_KEYS = {
    'auto_scale_lr': {'base_batch_size', 'enable'},
    'env_cfg': {'cudnn_benchmark', 'dist_cfg', 'mp_cfg', 'resource_limit'},
    'filter_cfg': {'filter_empty_gt', 'min_size'},
    'paramwise_cfg': {
        'bias_decay_mult',
        'bias_lr_mult',
        'bypass_duplicate',
        'custom_keys',
        'dcn_offset_lr_mult',
        'dwconv_decay_mult',
        'flat_decay_mult',
        'norm_decay_mult',
    },
}
LOADER_KEYS = inspect.signature(DataLoader.__init__).parameters.keys() - {'self'} | {'num_batch_per_epoch'}
# What builders take out before they build a class.
BUILDER_KEYS = {'type', '_delete_', '_scope_'}
# Of our configs, where a value is the name of a class.
TYPE_KEYS = {'constructor', 'dataset_type', 'ema_type', 'runner_type', 'type'}
CLOSE = 0.8  # likeness, from 0 to 1, of a misspelt option where a class takes any


def load_config(path: str | Path, options: Mapping[str, Any] | None = None) -> Config:
    """Load the config of a detector, also a Python-style one.

    Args:
        path: Of the file.
        options: Dotted key -> value, which replace those of the file.

    Raises:
        CheckpointError: No file, not a config, or a config without a model or a test dataloader.
        OptionError: An option that nothing would read.
    """
    if not Path(path).is_file():
        raise CheckpointError(f'{path}: no such config file')
    try:
        cfg = Config.fromfile(path)
    except Exception as error:  # a config is Python, so any error is possible
        raise CheckpointError(f'{path}: cannot be loaded as a config: {type(error).__name__}: {error}') from error
    for key in ('model', 'test_dataloader'):
        if key not in cfg:
            raise CheckpointError(f'{path}: has no {key}, so it is not the config of a detector')
    check_config_options(cfg, options or {})
    cfg.merge_from_dict(options or {})
    if cfg.get('default_scope') is None:  # as in Python-style configs: what has no type is the host's
        cfg.default_scope = 'mmdet'
    for step in (cfg.test_dataloader.get('dataset') or {}).get('pipeline', ()):
        if type_name(step) == 'LoadImageFromFile' and _find_class(step.type) is LoadImageFromFile:
            step.type = 'LoadImageFromFile'  # as mmdet's inferencer looks for it
    return cfg


def python_style(module: str) -> dict[str, Any]:
    """Load the config that a module of ``yolov7_simple/configs`` stands for, with classes as types.

    Args:
        module: Path of the module, whose name is that of the config with ``_`` for ``-``.

    Returns:
        Variables for ``globals()`` of the module, which ``with read_base()`` then takes as a Python-style config.
    """
    name = next(one for one in config_names() if one.replace('-', '_') == Path(module).name)
    return _with_classes(Config.fromfile(config_path(name)).to_dict())


def _with_classes(node: Any, key: str = '') -> Any:
    """Replace names of classes by what mmengine's import of a class would be."""
    if isinstance(node, dict):
        return {name: _with_classes(value, name) for name, value in node.items()}
    if isinstance(node, (list, tuple)):
        return type(node)(_with_classes(value, key) for value in node)
    found = _find_class(node) if key in TYPE_KEYS and isinstance(node, str) else None
    return node if found is None else LazyObject(found.__module__, found.__qualname__)


def check_config_options(cfg: Config, options: Mapping[str, Any]) -> None:
    """Refuse options that nothing would read.

    Args:
        cfg: The config that they are for, as it is loaded.
        options: Dotted key -> value.

    Raises:
        OptionError: A key whose top level was only a variable of the config file, or that the class it belongs to does
            not take. The message names those that would do it.
    """
    for key, value in options.items():
        if key.partition('.')[0] not in READ_KEYS:
            raise OptionError(f'--cfg-options {key}={value}: {_variable_problem(cfg, key, value)}')
        parents = [key[:i] for i, letter in enumerate(key) if letter == '.']
        if not any(f'{parent}._delete_' in options for parent in parents):
            _check_path(cfg, key, options)


def length_options(cfg: Config, options: Mapping[str, Any]) -> dict[str, Any]:
    """Options that let a schedule follow ``train_cfg.max_epochs``, where the config counts its end in epochs.

    Args:
        cfg: The config, without the options.
        options: Those of the command line; what they set themselves stays.

    Returns:
        Further options, for ``end`` and ``T_max`` of schedulers and for ``dynamic_intervals`` that end as the old run.
    """
    train_cfg, after = cfg.get('train_cfg') or {}, options.get('train_cfg.max_epochs')
    before = train_cfg.get('max_epochs')
    if not isinstance(after, int) or not isinstance(before, int) or after == before:
        return {}
    found: dict[str, Any] = {}
    schedulers = cfg.get('param_scheduler') or []
    for i, one in enumerate(schedulers if isinstance(schedulers, list) else ()):
        begin = one.get('begin', 0)
        if not one.get('by_epoch', True) or type_name(one).startswith(('Constant', 'Linear')):
            continue  # the length of a warm-up is its own
        if one.get('end') == max(before, begin + 1):
            found[f'param_scheduler.{i}.end'] = max(after, begin + 1)
        if one.get('T_max') == max(before - begin, 1):
            found[f'param_scheduler.{i}.T_max'] = max(after - begin, 1)
    intervals = train_cfg.get('dynamic_intervals') or []
    if any(epoch > 0 for epoch, _ in intervals):
        moved = [(max(epoch + after - before, 0) if epoch > 0 else epoch, every) for epoch, every in intervals]
        found['train_cfg.dynamic_intervals'] = moved
    return {key: value for key, value in found.items() if key not in options}


def _walk(node: Any, path: str = '') -> Iterator[tuple[str, Any]]:
    """Yield the dotted key and value of everything in a config that an option can set."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        yield f'{path}{key}', value
        yield from _walk(value, f'{path}{key}.')


def _variable_problem(cfg: Config, key: str, value: Any) -> str:
    """Say which keys were set from a variable of the config file, or are named like an unknown key."""
    name, _, rest = key.partition('.')
    read = {one: cfg[one] for one in cfg if one in READ_KEYS}
    before = cfg.get(name)
    advice: dict[str, Any] = {}
    for path, old in _walk(read):
        if any(path.startswith(f'{taken}.') for taken in advice):
            continue
        is_value = isinstance(before, (str, tuple, list, dict)) and before and old == before
        if is_value or path.rpartition('.')[2] == name:
            advice[path] = value
        elif isinstance(old, str) and isinstance(before, str) and isinstance(value, str) and not rest:
            folder = before.rstrip('/') + '/'
            if before and old.startswith(folder):
                advice[path] = f'{value.rstrip("/")}/{old.removeprefix(folder)}'
    if advice:
        options = [f'{path}{"." * bool(rest)}{rest}={new}'.replace(' ', '') for path, new in advice.items()]
        return f'nothing reads {name} once the config is loaded. Set --cfg-options {shlex.join(options)}'
    if name in cfg:
        return f'nothing reads {name} once the config is loaded: set it in a config file'
    last = {path.rpartition('.')[2]: path for path, _ in _walk(read)}
    close = difflib.get_close_matches(name, [*READ_KEYS, *last], 1)
    hint = f'did you mean {last.get(close[0], close[0])}?' if close else f'there are {", ".join(sorted(READ_KEYS))}'
    return f'nothing reads {name}; {hint}'


def _check_path(cfg: Config, key: str, options: Mapping[str, Any]) -> None:
    """Follow a key into the config, and check the first part that is not there."""
    node, names = cfg, key.split('.')
    for i, name in enumerate(names):
        place = '.'.join(names[:i])
        if isinstance(node, list):
            if not name.isdigit() or int(name) >= len(node):
                raise OptionError(f'--cfg-options {key}: {place} is a list of {len(node)}, and has no {name}')
            node = node[int(name)]
        elif not isinstance(node, (dict, Config)):
            raise OptionError(f'--cfg-options {key}: {place} is {node!r}, and has no {name}')
        elif name in node:
            node = node[name]
        else:
            if i:
                kind = options.get(f'{place}.type', node.get('type'))
                _check_new(kind, names[i - 1], name, f'--cfg-options {key}: {place}')
            return


def _check_new(kind: Any, parent: str, name: str, where: str) -> None:
    """Check an option that a dict of the config, of this type or None, does not have yet."""
    known, is_open, owner = DICT_KEYS.get(parent, set()), parent == 'paramwise_cfg', parent
    if parent.endswith('dataloader'):
        known = LOADER_KEYS
    if kind is not None:
        cls = _find_class(kind)
        if not inspect.isclass(cls):
            return
        (options, is_open), owner = _options_of(cls), cls.__name__
        known = options | BUILDER_KEYS
        if issubclass(cls, Hook):
            known |= {'priority'}
        if issubclass(cls, _ParamScheduler):
            known |= {'convert_to_iter_based'}
        if parent == 'optim_wrapper':
            known |= {'constructor', 'optimizer', 'paramwise_cfg'}
    if not known or name in known:
        return
    close = difflib.get_close_matches(name, known, 1, CLOSE if is_open else 0.6)
    if close or not is_open:
        hint = f'did you mean {close[0]}?' if close else f'it has {", ".join(sorted(known - BUILDER_KEYS))}'
        raise OptionError(f'{where}: {owner} has no option {name}; {hint}')


def _options_of(cls: type) -> tuple[set[str], bool]:
    """Names of the options of a class and of the bases that it passes others on to, and whether it takes any name."""
    names: set[str] = set()
    for base in cls.__mro__[:-1]:
        if '__init__' in vars(base):
            parameters = inspect.signature(inspect.unwrap(base.__init__)).parameters.values()
            names.update(one.name for one in parameters)
            if not any(one.kind == one.VAR_KEYWORD for one in parameters):
                return names - {'self'}, False
    return names - {'self'}, bool(names)


def _find_class(kind: Any) -> Any:
    """The class that a type of a config names, in any of mmdet's registries; None if there is none."""
    if not isinstance(kind, str):
        return kind
    for registry in vars(mmdet.registry).values():
        if isinstance(registry, Registry) and registry.scope == 'mmdet':  # and not the host's, which it looks in last
            try:
                found = registry.get(kind)
            except RuntimeError:  # mmengine's word for a name that it does not know
                continue
            if found is not None:
                return found
    return None
