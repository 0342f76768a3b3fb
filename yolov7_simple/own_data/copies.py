"""Copies of images in formats that training does not read, or reads too dark, in the folder of the run."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps
from tqdm.contrib.concurrent import thread_map

from ..runtime.errors import InputError
from ..runtime.files import make_folder
from ..runtime.images import read_image, write_image
from .files import Files
from .findings import Findings

# Which of these OpenCV reads depends on how it was built.
CONVERTED_SUFFIXES = {'.gif', '.avif', '.jp2', '.j2k', '.heic', '.heif'}
DEEP_SUFFIXES = {'.png', '.tif', '.tiff', '.ppm', '.pgm'}  # may have 16 bits
MIN_COPIES_SHOWN = 200  # images from which on the progress is shown


def allow_heic(images: Sequence[str], root: Path) -> None:
    """Let Pillow read HEIC, where there is any.

    Raises:
        InputError: That needs a package which is not here.
    """
    heic = [image for image in images if Path(image).suffix.lower() in ('.heic', '.heif')]
    if heic:
        try:
            import pillow_heif
        except ImportError as error:
            raise InputError(
                f'{root / heic[0]}: to read the {len(heic)} HEIC images, pip install pillow-heif ({error})'
            ) from error
        pillow_heif.register_heif_opener()


def has_16_bits(path: Path) -> bool:
    """Whether a PNG, TIFF or PNM file has more than eight bits a channel, by its header."""
    with open(path, 'rb') as file:
        start = file.read(26)
    if start.startswith(b'\x89PNG'):
        return len(start) >= 25 and start[24] == 16
    if start[:2] in (b'P5', b'P6'):
        with Image.open(path) as image:
            return image.mode.startswith('I') or b'65535' in path.open('rb').read(64)
    if start[:2] in (b'II', b'MM'):
        with Image.open(path) as image:
            bits = image.tag_v2.get(258, (8,))
            return max(bits if isinstance(bits, tuple) else (bits,)) > 8
    return False


def copy_images(files: Files, images: Sequence[str], out_dir: Path, findings: Findings) -> dict[str, Path]:
    """Copy the images that need it as PNG files of eight bits, upright.

    Args:
        files: The files of the folder.
        images: Those that are used.
        out_dir: The copies go to ``images/`` in it.
        findings: Told how many there are, and why.

    Returns:
        Copy by image, for those that have one.

    Raises:
        InputError: An image cannot be read.
    """
    reasons: dict[str, str] = {}
    for image in images:
        suffix = Path(image).suffix.lower()
        if suffix in CONVERTED_SUFFIXES:
            reasons[image] = f'{suffix[1:].upper()} images copied as PNG'
        elif suffix in DEEP_SUFFIXES:
            try:
                if has_16_bits(files.path(image)):
                    reasons[image] = 'images of 16 bits copied with the 8 that are in use'
            except (OSError, SyntaxError, struct.error, Image.DecompressionBombError):
                continue  # damaged: refused, and named, where its size is read
    if not reasons:
        return {}
    folder = out_dir.resolve() / 'images'
    make_folder(folder)
    disable = True if len(reasons) < MIN_COPIES_SHOWN else None
    copies = thread_map(
        partial(copy_image, files, folder), reasons, max_workers=2, desc='Copies of images', disable=disable
    )
    for image, reason in reasons.items():
        findings.repair(reason, image)
    return dict(zip(reasons, copies))


def copy_image(files: Files, folder: Path, image: str) -> Path:
    """Write one copy, unless it is there and not older than the image; return its path."""
    source = files.path(image)
    # Under its own name, which tools show; x.gif and x.tif have a folder each.
    target = folder / source.suffix[1:].lower() / Path(image).with_suffix('.png')
    if target.is_file() and target.stat().st_mtime >= source.stat().st_mtime:
        return target
    make_folder(target.parent)
    if source.suffix.lower() in CONVERTED_SUFFIXES:
        try:
            with Image.open(source) as opened:
                pixels = np.asarray(ImageOps.exif_transpose(opened).convert('RGB'))
        except Exception as error:  # whatever damaged bytes make Pillow do
            raise InputError(f'{source}: not an image that can be read: {error}') from error
        write_image(target, cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))
    else:
        write_image(target, read_image(source, None))
    return target
