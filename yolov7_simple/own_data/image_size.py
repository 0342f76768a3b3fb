"""The size of the images in a config: all that depends on it is found by type, and set together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mmengine.config import Config

from ..utils.configs import type_name
from .plan import ImageSize
from .tiles import DIVISOR

# Type -> option in pixels that follows the size. Limits of boxes stay, as they are pixels that the network sees.
SIZED = {'MosaicAffineMixUp': 'img_scale', 'BatchMultiScale': 'random_size_range', 'Resize': 'scale'}


def sized_parts(cfg: Config) -> Iterator[tuple[str, Any]]:
    """Yield dotted key and dict of all parts of a config that have a size, whether they are in use or not."""
    seen: set[int] = set()

    def walk(node: Any, path: str) -> Iterator[tuple[str, Any]]:
        if id(node) in seen or not isinstance(node, (Mapping, list, tuple)):
            return
        seen.add(id(node))
        is_dict = isinstance(node, Mapping)
        if is_dict and isinstance(node.get(SIZED.get(type_name(node))), (list, tuple)):
            yield path, node
        for key, value in node.items() if is_dict else enumerate(node):
            yield from walk(value, f'{path}.{key}' if path else str(key))

    return walk(dict(cfg.items()), '')


def training_size(cfg: Config) -> ImageSize | None:
    """Width and height of the samples; None where no mosaic, or several, make them."""
    pipeline = (cfg.train_dataloader.get('dataset') or {}).get('pipeline') or ()
    mosaics = [step for step in pipeline if type_name(step) == 'MosaicAffineMixUp']
    return tuple(mosaics[0].get('img_scale', (640, 640))) if len(mosaics) == 1 else None


def all_sizes(cfg: Config) -> dict[str, Any]:
    """Dotted key -> value, of all sizes: equal for two configs whose sizes are."""
    return {path: tuple(part[SIZED[type_name(part)]]) for path, part in sized_parts(cfg)}


def set_size(cfg: Config, size: ImageSize) -> None:
    """Set the size of the images: samples, multi-scale training, validation, test and its augmentation, all in ratio.

    Args:
        cfg: One that has a :func:`training_size`.
        size: Width and height, multiples of 32.
    """
    before = training_size(cfg)
    if before is None or before == size:
        return
    factor = max(size) / max(before)
    for _, part in list(sized_parts(cfg)):
        option = SIZED[type_name(part)]
        divisor = part.get('size_divisor', DIVISOR)
        value = tuple(max(divisor, divisor * round(side * factor / divisor)) for side in part[option])
        part[option] = size if tuple(part[option]) == before and option != 'random_size_range' else value
    mosaic = next(one for one in cfg.train_dataloader.dataset.pipeline if type_name(one) == 'MosaicAffineMixUp')
    mosaic.img_scale = size
    if tuple(cfg.get('img_scale') or ()) == before:
        cfg.img_scale = size  # a variable that nothing reads, but a reader of the saved config
