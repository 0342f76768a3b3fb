"""Find inputs, and write results atomically."""

from __future__ import annotations

import glob
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from .errors import InputError

IMAGE_SUFFIXES = {'.jpg', '.jpeg', '.png', '.bmp', '.ppm', '.pgm', '.tif', '.tiff', '.webp'}
VIDEO_SUFFIXES = {'.mp4', '.avi', '.mov', '.mkv', '.webm', '.m4v', '.mpg', '.mpeg'}


def find_inputs(patterns: Sequence[str], suffixes: set[str]) -> list[Path]:
    """List the files that paths and glob patterns name.

    Args:
        patterns: Paths of files, of folders (their files with one of ``suffixes``, not those of their subfolders), or
            glob patterns (``**`` goes into subfolders).
        suffixes: Endings, in lower case, of the files to list from folders.

    Returns:
        The files in the order given, sorted within each pattern, without doubles. A named file is listed even if it
        does not exist; reading it then fails.

    Raises:
        InputError: A folder without such files, or a pattern that fits no file.
    """
    found: dict[Path, None] = {}
    for pattern in patterns:
        path = Path(pattern)
        if path.is_dir():
            files = sorted(file for file in path.iterdir() if file.suffix.lower() in suffixes and file.is_file())
            if not files:
                raise InputError(f'{path}: no file in this folder ends with one of {", ".join(sorted(suffixes))}')
        elif not path.exists() and glob.has_magic(pattern):
            files = sorted(Path(name) for name in glob.glob(pattern, recursive=True) if Path(name).is_file())
            if not files:
                raise InputError(f'{pattern}: no file fits this pattern')
        else:
            files = [path]
        found.update(dict.fromkeys(files))
    return list(found)


def check_writable(path: Path, overwrite: bool = False) -> None:
    """Check that a file can be written, before the work whose result it holds.

    Raises:
        InputError: It exists, is a folder, or its folder is missing or cannot be written.
    """
    if path.is_dir():
        raise InputError(f'{path}: is a folder; name a file')
    if path.exists() and not overwrite:
        raise InputError(f'{path}: exists already; remove it, or name another file')
    if not path.parent.is_dir():
        raise InputError(f'{path}: there is no folder {path.parent}; create it first')
    if not os.access(path.parent, os.W_OK):
        raise InputError(f'{path}: no permission to write into {path.parent}')


@contextmanager
def replacing(path: Path, to_disk: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; its file replaces ``path`` on success and is removed on failure.

    Args:
        path: File to replace. The temporary file has its suffix, by which some libraries choose the format.
        to_disk: Wait until the file is on the disk, so that a loss of power cannot leave half of it.
    """
    temporary = path.with_name(f'.{path.stem}.{os.getpid()}.part{path.suffix}')
    try:
        yield temporary
        if to_disk:
            with open(temporary, 'rb+') as file:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_partial(folder: Path, pattern: str) -> None:
    """Remove temporary files that killed processes left of :func:`replacing`, for targets that match a pattern."""
    stem, suffix = os.path.splitext(pattern)
    for path in folder.glob(f'.{stem}.*.part{suffix}'):
        path.unlink()


def write_json(path: Path, content: dict | list) -> None:
    """Write a JSON file atomically."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, ensure_ascii=False), encoding='utf-8')


def make_folder(path: Path) -> None:
    """Make a folder for results, if there is none.

    Raises:
        InputError: It cannot be made or written.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f'{path}: cannot be made a folder for results: {error.strerror or error}') from error
    if not os.access(path, os.W_OK):
        raise InputError(f'{path}: no permission to write into this folder')


def result_names(paths: Sequence[Path]) -> list[str]:
    """Names for results: the names of the inputs, preceded by their folders where they are not unique."""
    counts = Counter(path.name for path in paths)
    return [path.name if counts[path.name] == 1 else '_'.join(path.parts).replace(os.sep, '') for path in paths]
