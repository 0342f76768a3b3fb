"""What the pixels of images tell: damage, one colour, and images that are the same or nearly so."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from mmengine.utils import track_parallel_progress
from numpy.typing import NDArray

from ..datasets.loading import decode_image
from ..own_data.sizes import read_header
from ..runtime.errors import DamagedImageError
from .image_sets import ImageSet

# Levels of 255. A photograph of a white wall has some 2; one colour saved as JPEG has none.
ONE_COLOR_STD = 1.0
HASH_SIDE = 16  # of the perceptual hash, of 256 bits
# Bits that differ between copies: up to 26 after JPEG of quality 30, half the size, another shape, grey or brightness
# by 1.3, and up to 50 where a fiftieth is cut off each side. Between different images of blood cells, which look alike,
# they are 90 or more, and 98 or more in COCO.
MAX_BITS = 40
# Hashes that differ in MAX_BITS bits agree in one of so many random samples of bits with a probability of 0.99.
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
    header = read_header(Path(path)) if os.path.isfile(path) else None
    return Pixels(problem, content, bits, header.orientation if header else 1)


def read_all_pixels(one: ImageSet, workers: int, stream) -> list[Pixels]:
    """Read all images of a set in so many processes; the progress bar goes to ``stream``."""
    items = [(path, *size) for path, size in zip(one.paths, one.sizes.tolist())]
    read = partial(read_pixels, backend_args=one.backend_args)
    found = track_parallel_progress(read, items, workers, chunksize=8, file=stream)
    print(file=stream)
    return found


def equal_pairs(keys: NDArray, max_neighbours: int | None = None) -> Iterator[tuple[NDArray, NDArray]]:
    """Pairs of indices whose keys are equal, each pair once, in as few blocks as the most frequent key is often.

    Args:
        keys: (N,).
        max_neighbours: Of one key, pair each only with so many; None: with all.
    """
    order = np.argsort(keys, kind='stable')
    keys = keys[order]
    left = np.arange(len(keys))
    for distance in range(1, min(len(keys), (max_neighbours or len(keys)) + 1)):
        left = left[left < len(keys) - distance]
        left = left[keys[left] == keys[left + distance]]
        if not len(left):
            return
        yield order[left], order[left + distance]


def near_pairs(hashes: Sequence[bytes]) -> tuple[NDArray, NDArray]:
    """Find the pairs of hashes that differ in :data:`MAX_BITS` bits or fewer, without comparing all with all.

    Hashes that agree in one of several samples of their bits are compared. A pair at the limit is missed once in a
    hundred times, a nearer one less often.

    Args:
        hashes: N different ones.

    Returns:
        (P, 2), indices, and (P,), the number of different bits, the nearest first.
    """
    packed = np.frombuffer(b''.join(hashes), np.uint8).reshape(len(hashes), HASH_SIDE**2 // 8)
    bits = np.unpackbits(packed, axis=1)
    rng = np.random.default_rng(0)
    found = [np.zeros((0, 3), int)]
    for _ in range(NUM_SAMPLES if len(packed) > 1 else 0):
        sample = rng.permutation(bits.shape[1])[:BITS_OF_SAMPLE]
        keys = bits[:, sample].astype(np.int64) @ (1 << np.arange(BITS_OF_SAMPLE))
        for a, b in equal_pairs(keys, MAX_NEIGHBOURS):
            distance = np.unpackbits(packed[a] ^ packed[b], axis=1).sum(1, dtype=int)
            near = distance <= MAX_BITS
            found.append(np.stack([distance[near], np.minimum(a, b)[near], np.maximum(a, b)[near]], 1))
    rows = np.unique(np.concatenate(found), axis=0)
    return rows[:, 1:], rows[:, 0]
