"""Find files, and write files atomically."""

from __future__ import annotations

import glob
import json
import os
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from .errors import InputError

IMAGE_SUFFIXES = {'.jpg', '.jpeg', '.png', '.bmp', '.ppm', '.pgm', '.tif', '.tiff', '.webp'}
MAX_NAME_BYTES = 255  # bytes of a name, on most file systems


def find_files(pattern: str, suffixes: set[str]) -> tuple[list[Path], list[Path]]:
    """List the files that a path or a glob pattern names.

    Args:
        pattern: Path of a file, of a folder (its files with one of ``suffixes``, not those of its subfolders), or a
            glob pattern (``**`` goes into subfolders).
        suffixes: Endings, in lower case, of the files to list from folders. A pattern names files with other endings,
            too, if it fits no others.

    Returns:
        The files, sorted, and what is left out: other files, folders within a folder, and links that lead nowhere. A
        named file is listed even if it does not exist; reading it then fails.

    Raises:
        InputError: A folder without such files, a pattern that fits no file, or an empty string.
    """
    path = Path(pattern)
    if not pattern:
        raise InputError("'' is not a path; the current folder is '.'")
    if path.is_dir():
        try:
            inside = sorted(path.iterdir())
        except OSError as error:
            raise InputError(f'{path}: this folder cannot be read: {error.strerror or error}') from error
        files = [file for file in inside if file.suffix.lower() in suffixes and file.is_file()]
        if not files:
            deeper = any(file.is_dir() for file in inside)
            raise InputError(
                f'{path}: no file in this folder ends with one of {", ".join(sorted(suffixes))}'
                + (f"; for those in folders within it, name the pattern '{path / '**'}'" if deeper else '')
            )
        chosen = set(files)
        return files, [file for file in inside if file not in chosen]
    if path.exists() or not glob.has_magic(pattern):
        return [path], []
    fitting = [Path(name) for name in sorted(glob.glob(pattern, recursive=True))]
    files = [file for file in fitting if file.is_file()]
    if not files:
        raise InputError(f"{pattern}: no file fits this pattern, in which [ ] * ? have a meaning ('[[]' is one '[')")
    chosen = [file for file in files if file.suffix.lower() in suffixes]
    dangling = [file for file in fitting if file.is_symlink() and not file.exists()]
    return (chosen, [file for file in files if file not in set(chosen)] + dangling) if chosen else (files, dangling)


def find_inputs(patterns: Sequence[str], suffixes: set[str]) -> list[Path]:
    """List the files that paths and glob patterns name, in the order given, without doubles.

    Args:
        patterns: See :func:`find_files`.
        suffixes: See :func:`find_files`.

    Raises:
        InputError: See :func:`find_files`.
    """
    return list(dict.fromkeys(file for pattern in patterns for file in find_files(pattern, suffixes)[0]))


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


def cut_name(name: str, room: int) -> str:
    """Cut a name to so many bytes, between two characters."""
    encoded = os.fsencode(name)
    return name if len(encoded) <= room else encoded[: max(room, 0)].decode('utf-8', 'ignore')


def temporary_path(path: Path) -> Path:
    """Path beside a file, with its suffix, for what is to become this file. It is hidden, and not too long a name."""
    stem, suffix = path.stem, f'.{os.getpid()}.part{path.suffix}'
    room = MAX_NAME_BYTES - len(os.fsencode(suffix)) - 1
    if len(os.fsencode(stem)) > room:
        # Many long names begin alike.
        stem = f'{cut_name(stem, room - 9)}~{zlib.crc32(os.fsencode(stem)):08x}'
    return path.with_name(f'.{stem}{suffix}')


@contextmanager
def replacing(path: Path, to_disk: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; its file replaces ``path`` on success and is removed on failure.

    Args:
        path: File to replace. The temporary file has its suffix, by which some libraries choose the format.
        to_disk: Wait until the file is on the disk, so that a loss of power cannot leave half of it.
    """
    temporary = temporary_path(path)
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


def json_bytes(content: dict | list) -> bytes:
    """JSON in UTF-8. What is no text in it, of a file's name, is escaped as JSON does it."""
    return json.dumps(content, ensure_ascii=False).encode('utf-8', 'backslashreplace')


def write_json(path: Path, content: dict | list) -> None:
    """Write a JSON file atomically."""
    with replacing(path) as temporary:
        temporary.write_bytes(json_bytes(content))


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
