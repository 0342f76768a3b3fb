"""What a user names as data, a folder, an archive or a file of labels -> the files to look at."""

from __future__ import annotations

import os
import shutil
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import yaml

from ..runtime.errors import InputError
from ..runtime.files import make_folder
from .files import Files, list_files
from .findings import Findings
from .names import with_suffix

LABEL_SUFFIXES = {'.json', '.xml', '.csv', '.yaml', '.yml'}
MAX_LEVELS = 2  # annotations/instances/train.json: the images may lie beside the folder above


def open_source(source: str | Path, out_dir: Path, findings: Findings) -> Files:
    """List the files of a folder, of an archive, or those that belong to one file of labels.

    Args:
        source: A folder; a .zip file, which is unpacked into ``out_dir``; or a file of labels or a data.yaml,
            which then is the only one that is read.
        out_dir: Folder for what is made.
        findings: Told what is not looked at.

    Raises:
        InputError: There is no such thing, or it cannot be read.
    """
    path = Path(source).expanduser().resolve()
    if path.is_dir():
        return list_files(path, out_dir, findings)
    if not path.is_file():
        raise InputError(f'{source}: there is no such folder or file')
    suffix = path.suffix.lower()
    if suffix == '.zip':
        return list_files(unpack(path, out_dir), out_dir, findings)
    if suffix not in LABEL_SUFFIXES:
        raise InputError(
            f'{source}: is neither a folder, nor a .zip file, nor a file of labels '
            f'({", ".join(sorted(LABEL_SUFFIXES))})'
        )
    root = folder_of_yaml(path) if suffix in ('.yaml', '.yml') else None
    for level in range(MAX_LEVELS + 1) if root is None else ():
        files = list_files(path.parents[level], out_dir, Findings())
        if files.images:
            root = files.root
            break
    if root is None:
        raise InputError(f'{source}: there are no images in its folder or the two above')
    files = list_files(root, out_dir, findings)
    chosen = path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)
    # A data.yaml has its labels in text files.
    suffixes = LABEL_SUFFIXES if suffix in ('.yaml', '.yml') else LABEL_SUFFIXES | {'.txt'}
    others = set(with_suffix(files.names, suffixes)) - {chosen}
    findings.leave_out(f'other files of labels, as {path.name} was named', sorted(others))
    return Files(root, [name for name in {*files.names, chosen} if name not in others], out_dir.resolve() / 'images')


def folder_of_yaml(path: Path) -> Path:
    """The folder that a data.yaml describes: its ``path`` if that is there, else the one that it is in.

    Raises:
        InputError: It is not YAML.
    """
    content = read_yaml(path)
    place = content.get('path') if isinstance(content, dict) else None
    folder = path.parent / str(place).strip() if place else path.parent
    return folder.resolve() if folder.is_dir() else path.parent


def read_yaml(path: Path) -> Any:
    """Read a YAML file. All scalars stay texts: a class may be called yes, no, on or 1e3.

    Raises:
        InputError: It is not YAML, or not in UTF-8.
    """
    try:
        return yaml.load(path.read_bytes(), yaml.BaseLoader)
    except (OSError, yaml.YAMLError, UnicodeError) as error:
        raise InputError(f'{path}: cannot be read as YAML in UTF-8: {" ".join(str(error).split())}') from error


def unpack(path: Path, out_dir: Path) -> Path:
    """Unpack an archive into a folder of the run, once; names that lead out of it lose that part.

    Raises:
        InputError: Not an archive that can be read, or one with more than the disk has room for.
    """
    status = path.stat()
    target = out_dir.resolve() / 'unpacked' / f'{path.stem}_{status.st_size}_{status.st_mtime_ns}'
    if target.is_dir():
        return target
    make_folder(target.parent)
    try:
        with zipfile.ZipFile(path) as archive:
            size, room = sum(one.file_size for one in archive.infolist()), shutil.disk_usage(target.parent).free
            if size > room:
                raise InputError(
                    f'{path}: needs {size / 1e9:.1f} GB unpacked, and {target.parent} has {room / 1e9:.1f}'
                )
            with tempfile.TemporaryDirectory(dir=target.parent) as folder:
                archive.extractall(f'{folder}/all')
                os.rename(f'{folder}/all', target)
    except (zipfile.BadZipFile, OSError, RuntimeError, NotImplementedError) as error:  # damaged, or with a password
        if not target.is_dir():  # or another rank was first
            raise InputError(f'{path}: cannot be unpacked: {error}') from error
    return target
