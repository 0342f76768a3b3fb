"""Where the configs are that come with this package."""

from __future__ import annotations

from pathlib import Path


def config_path(name: str) -> str:
    """Find a config that comes with this package, for ``_base_ = __import__('yolov7_simple').config_path(...)``.

    Args:
        name: File name, such as ``'yolov7_tiny_8xb16-300e_coco.py'``.

    Returns:
        Its absolute path, in the installed package or in the checkout that it is installed from.

    Raises:
        FileNotFoundError: There is no config of that name; the message lists those that there are.
    """
    package = Path(__file__).resolve().parents[1]
    folder = package / '.mim' if (package / '.mim').is_dir() else package.parent
    configs = {path.name: path for path in sorted((folder / 'configs').glob('[!_]*/*.py'))}
    if name not in configs:
        raise FileNotFoundError(f'yolov7_simple has no config {name!r}; it has: {", ".join(configs)}')
    return str(configs[name].resolve())  # an editable install links to the checkout's file
