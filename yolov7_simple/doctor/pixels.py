"""What the pixels of images tell: damage, one colour, and images that are the same or nearly so."""

from __future__ import annotations

import hashlib
import importlib.util
import os
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import cv2
import numpy as np
from mmengine.utils import track_parallel_progress
from numpy.typing import NDArray

from ..datasets.headers import read_header
from ..datasets.loading import decode_image
from ..runtime.errors import DamagedImageError, InputError
from .image_sets import ImageSet

# Levels of 255. A photograph of a white wall has some 2; one colour saved as JPEG has none.
ONE_COLOR_STD = 1.0
HASH_SIDE = 16  # of the perceptual hash, of 256 bits
# Bits that differ between copies: up to 26 after JPEG of quality 30, half the size, another shape, grey or brightness
# by 1.3, and up to 50 where a fiftieth is cut off each side. Between different images of blood cells, which look alike,
# they are 90 or more, and 98 or more in COCO.
MAX_BITS = 40
# Hashes that differ in MAX_BITS bits agree in one of so many random samples of bits with a probability of 0.98.
NUM_SAMPLES, BITS_OF_SAMPLE = 64, 16
# Of the images that agree in a sample each is compared with so many: a film of one scene would cost the square.
MAX_NEIGHBOURS = 200


class Pixels(NamedTuple):
    """What was found in an image file.

    Args:
        problem: Why it cannot be used, or ''.
        content: Digest of the upright pixels.
        hash: Perceptual hash, bits in bytes; b'': the image is of one colour, and looks like any other of one.
        orientation: By its EXIF tag, 1 to 8.
    """

    problem: str = ''
    content: bytes = b''
    hash: bytes = b''
    orientation: int = 1


def read_pixels(item: tuple[str, float, float], backend_args: dict | None = None) -> Pixels:
    """Read an image, given with the width and height that its annotations state."""
    import imagehash
    from PIL import Image

    path, width, height = item
    try:
        image = decode_image(path, backend_args=backend_args)
    except DamagedImageError as error:
        return Pixels(str(error))
    problem = ''
    if image.shape[1::-1] != (width, height):
        problem = f'{path} is {image.shape[1]} x {image.shape[0]} pixels, annotated as {width:g} x {height:g}'
    content = hashlib.blake2b(repr(image.shape).encode() + image.tobytes(), digest_size=16).digest()
    is_one_color = cv2.meanStdDev(image)[1].max() <= ONE_COLOR_STD
    bits = b''
    if not is_one_color:
        grey = Image.fromarray(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY))
        bits = np.packbits(imagehash.phash(grey, hash_size=HASH_SIDE).hash).tobytes()
    header = read_header(str(path)) if os.path.isfile(path) else None
    return Pixels(problem, content, bits, header.orientation if header else 1)


def read_all_pixels(one: ImageSet, workers: int, stream) -> list[Pixels]:
    """Read all images of a set in so many processes; the progress bar goes to ``stream``.

    Raises:
        InputError: The package that finds nearly equal images is missing.
    """
    if importlib.util.find_spec('imagehash') is None:
        raise InputError('to check images, pip install ImageHash: it finds those that are nearly the same')
    items = [(path, *size) for path, size in zip(one.paths, one.sizes.tolist())]
    read = partial(read_pixels, backend_args=one.backend_args)
    found = track_parallel_progress(read, items, workers, chunksize=8, file=stream)
    print(file=stream)
    return found


def find_near(queries: Sequence[bytes], base: Sequence[bytes]) -> dict[int, tuple[int, int]]:
    """Find for each hash one of others that differs in :data:`MAX_BITS` bits or fewer, without comparing all with all.

    Hashes that agree in one of several samples of their bits are compared. A pair at the limit is missed twice in
    a hundred times, a nearer one less often.

    Args:
        queries: N hashes.
        base: M hashes, different ones.

    Returns:
        Index of a query that has one near to it -> its index, and the number of different bits.
    """
    found: dict[int, tuple[int, int]] = {}
    bits, others = (
        np.frombuffer(b''.join(hashes), np.uint8).reshape(len(hashes), HASH_SIDE**2 // 8) for hashes in (queries, base)
    )
    rng = np.random.default_rng(0)
    waiting = np.arange(len(queries))
    for _ in range(NUM_SAMPLES):
        sample = rng.permutation(HASH_SIDE**2)[:BITS_OF_SAMPLE]
        order = rng.permutation(len(base))
        keys = keys_of(others[order], sample)
        ascending = np.argsort(keys, kind='stable')
        order, keys = order[ascending], keys[ascending]
        wanted = keys_of(bits[waiting], sample)
        start, end = (np.searchsorted(keys, wanted, side) for side in ('left', 'right'))
        rows = waiting
        for step in range(MAX_NEIGHBOURS):
            is_there = start + step < end
            rows, start, end = rows[is_there], start[is_there], end[is_there]
            if not len(rows):
                break
            partners = order[start + step]
            distances = np.unpackbits(bits[rows] ^ others[partners], axis=1).sum(1, dtype=int)
            near = distances <= MAX_BITS
            found.update(zip(rows[near].tolist(), zip(partners[near].tolist(), distances[near].tolist())))
            rows, start, end = rows[~near], start[~near], end[~near]
        waiting = np.array([i for i in waiting.tolist() if i not in found], int)
    return found


def keys_of(packed: NDArray, sample: NDArray) -> NDArray:
    """The sampled bits of hashes (N, bytes) as numbers, (N,)."""
    return np.unpackbits(packed, axis=1)[:, sample].astype(np.int64) @ (1 << np.arange(len(sample)))
