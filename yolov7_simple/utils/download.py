"""Files from the internet: downloaded once, whole or not at all, by one process at a time."""

from __future__ import annotations

import hashlib
import socket
import ssl
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError, URLError

import torch
from filelock import FileLock
from mmengine.logging import print_log

from ..runtime.files import make_folder, replacing
from .checkpoint import CheckpointError

# A server that says nothing for so many seconds is given up.
TIMEOUT = 60.0
NETWORK_ERRORS = (URLError, HTTPException, ConnectionError, TimeoutError, ssl.SSLError)


def weights_folder() -> Path:
    """Where torch's hub keeps checkpoints; ``TORCH_HOME`` moves it."""
    return Path(torch.hub.get_dir()) / 'checkpoints'


def fetch(name: str, addresses: Sequence[str], check: Callable[[Path], object], advice: str) -> tuple[Path, str]:
    """Give a checkpoint file from torch's hub folder, downloaded if it is not there.

    Processes that ask at once wait for the one that downloads. The SHA-256 of the file is noted beside it at its first
    use, as ``sha256sum`` writes it, and compared at each later one.

    Args:
        name: Of the file, here and there.
        addresses: Folders on the internet that may have it; the second is tried where the first fails, and so on.
        check: Reads a file and raises :class:`CheckpointError` where it is not what it should be; a download that fails
            this is thrown away.
        advice: What else a user can do where nothing can be downloaded.

    Returns:
        The path, and the SHA-256 as hexadecimal digits.

    Raises:
        CheckpointError: It can neither be found nor downloaded, or has changed since it was noted.
        InputError: The folder cannot be written.
    """
    path = weights_folder() / name
    if not path.is_file():
        make_folder(path.parent)
        with FileLock(path.with_name(f'{name}.lock')):
            if not path.is_file():  # or another process was first
                download(path, addresses, check, advice)
    return path, noted_sha256(path)


def download(path: Path, addresses: Sequence[str], check: Callable[[Path], object], advice: str) -> None:
    """Download a file from the first address that gives the right one; see :func:`fetch`."""
    for leftover in path.parent.glob(f'{path.name}.part*'):  # of a process that was killed
        leftover.unlink()
    part = path.with_name(f'{path.name}.part')
    problems = []
    for address in addresses:
        url = f'{address.rstrip("/")}/{path.name}'
        try:
            print_log(f'Downloading {url} to {path.parent}', logger='current')
            with socket_timeout(TIMEOUT):
                torch.hub.download_url_to_file(url, str(part))
            if is_web_page(part):
                raise CheckpointError('sent a web page instead, as a proxy or a login does')
            check(part)
            part.replace(path)
            return
        except CheckpointError as error:
            problems.append(f'{url}: {str(error).removeprefix(f"{part}: ")}')
        except NETWORK_ERRORS as error:
            reason = f'HTTP {error.code}' if isinstance(error, HTTPError) else getattr(error, 'reason', error)
            problems.append(f'{url}: {reason}')
        except ValueError as error:  # torch.hub was given what is no address
            problems.append(f'{url}: {error}')
        except OSError as error:
            raise CheckpointError(
                f'{path}: cannot be written: {error.strerror or error}; make room there, or let TORCH_HOME '
                'name another folder'
            ) from error
        finally:
            part.unlink(missing_ok=True)
    raise CheckpointError(
        f'{path.name} is not in {path.parent} and cannot be downloaded ({"; ".join(problems)}): put the file there, '
        f'{advice}'
    )


@contextmanager
def socket_timeout(seconds: float) -> Iterator[None]:
    """Let no new connection wait longer than this for the next bytes; torch.hub would wait forever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def is_web_page(path: Path) -> bool:
    """Whether a file begins as HTML does."""
    with path.open('rb') as file:
        return file.read(512).lstrip().lower().startswith((b'<!doctype', b'<html'))


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open('rb') as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def noted_sha256(path: Path) -> str:
    """SHA-256 of a file, compared with the one that is noted beside it; the first time it is noted.

    Raises:
        CheckpointError: The file has changed.
    """
    found = file_sha256(path)
    note = path.with_name(f'{path.name}.sha256')
    if note.is_file():
        noted = note.read_text().split(maxsplit=1)[0] if note.stat().st_size else 'nothing'
        if noted != found:
            raise CheckpointError(
                f'{path}: has changed: its SHA-256 is {found}, and {note.name} beside it notes {noted}; delete both '
                'files to download it again, or the note alone if the change was yours'
            )
    else:
        with suppress(OSError), replacing(note) as temporary:  # a folder that others share may be read-only
            temporary.write_text(f'{found}  {path.name}\n')
    return found
