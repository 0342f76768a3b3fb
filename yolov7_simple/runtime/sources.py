"""What to detect in: files, folders, patterns, cameras and addresses."""

from __future__ import annotations

import http.client
import re
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from .errors import InputError, examples
from .files import IMAGE_SUFFIXES, find_files
from .images import image_from_bytes, read_image
from .names import result_names
from .videos import VIDEO_SUFFIXES, Video

ANSWER_TIMEOUT = 30  # seconds
MAX_DOWNLOAD = 256_000_000  # bytes of an image
NOT_READ = {'.heic', '.heif', '.avif', '.jxl'}  # images, but OpenCV cannot read them or not everywhere
HOW_TO_CONVERT = 'convert it to JPEG or PNG first'


class InputSource(NamedTuple):
    """One thing to detect in.

    Attributes:
        address: Path of a file, number of a camera, or URL.
        name: Name for the results, unlike those of all others.
    """

    address: Path | int | str
    name: str

    @property
    def may_be_video(self) -> bool:
        """Whether it is more than one image, as far as its name tells."""
        if isinstance(self.address, Path):
            return self.address.suffix.lower() in VIDEO_SUFFIXES
        return isinstance(self.address, int) or suffix_of(self.address) not in IMAGE_SUFFIXES

    def __str__(self) -> str:
        return f'camera {self.address}' if isinstance(self.address, int) else without_password(str(self.address))


def suffix_of(url: str) -> str:
    """Suffix of the path in a URL, in lower case."""
    return Path(urlsplit(url).path).suffix.lower()


def without_password(url: str) -> str:
    """A URL as it may be shown."""
    return re.sub(r'(?<=://)[^/@]*@', '', url)


def name_of(url: str) -> str:
    """Name for the results of a URL: its host and path."""
    parts = urlsplit(without_password(url))
    return re.sub(r'[^\w.-]+', '_', f'{parts.netloc}{parts.path}').strip('._')[-100:] or 'stream'


def find_sources(patterns: Sequence[str]) -> tuple[list[InputSource], list[str], list[str]]:
    """Find what to detect in.

    Args:
        patterns: Paths, folders and patterns as in :func:`find_files`; numbers of cameras, if there is no file of this
            name; URLs.

    Returns:
        The sources in the order given, without doubles; the patterns that name nothing, as messages; and what was left
        out of folders, as messages.
    """
    found: dict[Path | int | str, Path] = {}  # and what to name it after
    problems, notes = [], []
    for pattern in patterns:
        if re.match(r'[A-Za-z][A-Za-z0-9+.-]+://', pattern):
            try:
                found.setdefault(pattern, Path(name_of(pattern)))
            except ValueError as error:
                problems.append(f'{pattern}: not an address: {error}')
        elif re.fullmatch('[0-9]{1,3}', pattern) and not Path(pattern).exists():
            found.setdefault(int(pattern), Path(f'camera{int(pattern)}'))
        else:
            try:
                files, left_out = find_files(pattern, IMAGE_SUFFIXES | VIDEO_SUFFIXES)
            except InputError as error:
                problems.append(str(error))
                continue
            found.update((file, file) for file in files if file not in found)
            if left_out:
                notes.append(f'{pattern}: {describe_left_out(left_out, pattern)}')
    return list(map(InputSource, found, result_names(list(found.values())))), problems, notes


def describe_left_out(left_out: Sequence[Path], folder: str) -> str:
    """Say what was left out of a folder, and what to do."""
    kinds: Counter[str] = Counter()
    for path in left_out:
        if path.is_dir():
            kinds['folder within it'] += 1
        elif not path.exists():
            kinds['link that leads nowhere'] += 1
        else:
            kinds[f'{path.suffix.lower()} file' if path.suffix else 'file without a suffix'] += 1
    text = 'left out ' + examples([f'{count} x {kind}' for kind, count in kinds.most_common()], 8)
    if any(path.suffix.lower() in NOT_READ for path in left_out):
        text += f' ({"/".join(sorted(kind[1:] for kind in NOT_READ))}: {HOW_TO_CONVERT})'
    if 'folder within it' in kinds:
        text += f" (to go into folders: '{Path(folder) / '**'}')"
    return text


def open_input(source: InputSource, max_megapixels: float | None) -> NDArray[np.uint8] | Video:
    """Read an image, (H, W, 3), BGR, or open a video.

    Raises:
        InputError: It is neither, or of a size that cannot be used.
    """
    address = source.address
    if isinstance(address, int):
        return Video(address, str(source), max_megapixels)
    if isinstance(address, str):
        content = fetch_image(address)
        return (
            Video(address, str(source), max_megapixels)
            if content is None
            else image_from_bytes(content, str(source), max_megapixels)
        )
    suffix = address.suffix.lower()
    if suffix in VIDEO_SUFFIXES:
        video = Video(address, str(source), max_megapixels)
        return video.single_image() if suffix == '.gif' and video.is_single else video
    try:
        return read_image(address, max_megapixels)
    except InputError as error:
        if suffix in IMAGE_SUFFIXES or not address.is_file():
            raise
        if suffix in NOT_READ:
            raise InputError(f'{error}: {HOW_TO_CONVERT}') from error
        try:
            return Video(address, str(source), max_megapixels)
        except InputError:
            raise error from None


def fetch_image(url: str) -> bytes | None:
    """Fetch an image by HTTP; None if there is something else, such as a video.

    Raises:
        InputError: It cannot be fetched.
    """
    if not url.lower().startswith(('http://', 'https://')):
        return None
    request = urllib.request.Request(url, headers={'User-Agent': 'yolov7_simple'})
    try:
        with urllib.request.urlopen(request, timeout=ANSWER_TIMEOUT) as answer:
            kind = answer.headers.get_content_type()
            is_image = kind.startswith('image/') or kind == 'application/octet-stream'
            if not is_image or kind == 'image/gif' or (kind[0] == 'a' and suffix_of(url) not in IMAGE_SUFFIXES):
                return None
            content = answer.read(MAX_DOWNLOAD + 1)
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = getattr(error, 'reason', None) or error
        raise InputError(f'{without_password(url)}: cannot be fetched: {reason}') from error
    if len(content) > MAX_DOWNLOAD:
        raise InputError(f'{without_password(url)}: an image of more than {MAX_DOWNLOAD / 1e6:.0f} MB')
    return content
