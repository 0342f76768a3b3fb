"""What made a checkpoint: versions, code, data, command line."""

from __future__ import annotations

import platform
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from mmengine.dist import get_world_size
from mmengine.runner import Runner
from torch.utils.data import Dataset

from ..utils.config_differences import DifferenceRow
from ..utils.download import file_sha256
from .branches import walk_datasets

PROVENANCE = 'provenance'  # in the meta of a checkpoint
PACKAGES = (
    *('torch', 'numpy', 'pycocotools', 'opencv-python', 'opencv-python-headless'),
    *('mmengine', 'mmcv', 'mmcv-lite', 'mmdet', 'onedl-mmengine', 'onedl-mmcv', 'onedl-mmdetection'),
)
# The command differs each time; the seed is the checkpoint's, unless the config has one.
OF_ONE_START = ('command', 'seed')


def describe_run(runner: Runner) -> dict[str, str]:
    """Tell what makes a run.

    Returns:
        Plain text for each of: the command line, versions of Python, packages and code, ranks, seed, and SHA-256 of
        each annotation file that is read from the disk.
    """
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    found = {
        'command': shlex.join(sys.orig_argv),
        'python': platform.python_version(),
        **versions,
        'yolov7_simple': code_version(),
        'ranks': str(get_world_size()),
        'seed': str(runner.seed),
    }
    for split, loop in (('training', runner.train_loop), ('validation', runner.val_loop)):
        files = [] if loop is None else annotation_files(loop.dataloader.dataset)
        hashes = [f'{file.name} sha256:{file_sha256(file)[:16]}' for file in files]
        if hashes:
            found[f'{split} annotations'] = ', '.join(hashes)
    return found


def annotation_files(dataset: Dataset) -> list[Path]:
    """Annotation files of a dataset and of those that it wraps, where they are files on this machine."""
    files = [Path(inner.ann_file) for inner in walk_datasets(dataset) if getattr(inner, 'ann_file', None)]
    return [file for file in dict.fromkeys(files) if file.is_file()]


def code_version() -> str:
    """Version of this package, and its commit where it is a checkout, with + if files have changed since."""
    version = metadata.version('yolov7_simple')
    root = Path(__file__).resolve().parents[2]
    if not (root / '.git').exists():
        return version

    def git(*arguments: str) -> str:
        return subprocess.run(
            ['git', '-C', str(root), *arguments], capture_output=True, text=True, check=True, timeout=30
        ).stdout.strip()

    try:
        commit, changed = git('rev-parse', '--short=12', 'HEAD'), git('status', '--porcelain', '-uno')
    except (OSError, subprocess.SubprocessError):  # no git, or not the owner's
        return version
    return f'{version}, commit {commit}{"+" if changed else ""}'


def provenance_differences(saved: dict[str, str], now: dict[str, str]) -> list[DifferenceRow]:
    """Compare what made a checkpoint with what goes on from it; what only one of them knows is not compared."""
    both = [key for key in now if key in saved and key not in OF_ONE_START]
    return [(key, saved[key], now[key]) for key in both if saved[key] != now[key]]
