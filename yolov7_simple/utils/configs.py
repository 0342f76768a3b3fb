"""Where the configs are that come with this package, and what their types are called."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..runtime.tiles import Tiling


def config_path(name: str) -> str:
    """Find a config that comes with this package, for ``_base_ = __import__('yolov7_simple').config_path(...)``.

    Args:
        name: File name, such as ``'yolov7_tiny_8xb16-300e_coco.py'``.

    Returns:
        Its absolute path, in the installed package or in the checkout that it is installed from.

    Raises:
        FileNotFoundError: There is no config of that name; the message lists those that there are.
    """
    configs = _configs()
    if name not in configs:
        raise FileNotFoundError(f'yolov7_simple has no config {name!r}; it has: {", ".join(configs)}')
    return str(configs[name].resolve())  # an editable install links to the checkout's file


def config_names() -> list[str]:
    """File names of the configs that come with this package."""
    return list(_configs())


def _configs() -> dict[str, Path]:
    package = Path(__file__).resolve().parents[1]
    folder = package / '.mim' if (package / '.mim').is_dir() else package.parent
    return {path.name: path for path in sorted((folder / 'configs').glob('[!_]*/*.py'))}


def type_name(cfg: Mapping[str, Any]) -> str:
    """Name of the class that a dict of a config stands for.

    Args:
        cfg: Its ``type`` may be a name, one with a scope or a module (``'mmdet.Resize'``), or the class itself, as in a
            Python-style config.

    Returns:
        The bare name, such as ``'Resize'``; empty without a type.
    """
    kind = cfg.get('type', '')
    return getattr(kind, '__name__', str(kind)).rpartition('.')[2]


def innermost_dataset(dataset: Mapping[str, Any]) -> Mapping[str, Any]:
    """The dict of a config's dataset that no other one wraps, such as SeededMixDataset does."""
    while 'dataset' in dataset:
        dataset = dataset['dataset']
    return dataset


def tiling_of(cfg: Mapping[str, Any]) -> Tiling | None:
    """How the detector of a config looks at large pictures in windows; None if it does not."""
    model = cfg.get('model') or {}
    if type_name(model) != 'TiledDetector':
        return None
    return Tiling(model['tile'], model.get('overlap', 0.2), model['scale'])
