"""Decoded training images, kept for all processes of a machine: each is decoded once for all epochs.

The pixels lie in one file that all processes map: anonymous memory for ``'ram'``, an unlinked file for ``'disk'``. The
system takes both back when the last process ends, however it ends. All room is reserved before training. A slot for
each image, and each fraction of its size that training asks for, holds what :func:`.loading.decode_image` returns, so
samples are the same with the cache and without. Only where not all fit, images are shrunk to the largest size that
training asks for.
"""

from __future__ import annotations

import hashlib
import math
import mmap
import os
import struct
import tempfile
import weakref
from collections.abc import Sequence
from typing import Literal

import cv2
import numpy as np
from mmdet.datasets import MultiImageMixDataset
from mmengine.dist import is_main_process
from mmengine.logging import print_log
from numpy.typing import NDArray

from ..utils.options import OptionError
from ..utils.shared_files import GB, free_bytes, locked, reserved_file, shared_path
from .loading import REDUCED_FLAGS, Decoded, fitting_reduction
from .remote import is_remote

Storage = Literal['ram', 'disk']
MAX_SHARE = {'ram': 0.5, 'disk': 0.9}  # of what is free, where no limit is set
REDUCTIONS = np.array(sorted(REDUCED_FLAGS))
RECORD = np.dtype([('version', '<i8'), ('turned', '<i8')])
DIGEST_BYTES = 32
HEAD = struct.Struct(f'<{DIGEST_BYTES}sq?7x')  # digest of the plan, number of images that fit, whether they are shrunk
ALIGNMENT = 64


class CachePlan:
    """Which images have a slot, for which fractions of their sizes, and where.

    Args:
        paths: Path of each image; the same one may come again.
        sizes: (N, 2), width and height of each.
        frame: Width and height that images are letterboxed into.
        enlargement: By how much training enlarges a letterboxed image at most.
        views: (N, 2), width and height of the smallest part of each that is letterboxed alone; None: all of it.
    """

    def __init__(
        self,
        paths: Sequence[str],
        sizes: NDArray,
        frame: tuple[int, int],
        enlargement: float,
        views: NDArray | None = None,
    ) -> None:
        keys, first = np.unique([path_key(path) for path in paths], return_index=True)
        self.keys = keys
        self.order = np.argsort(np.argsort(first))  # of each key; images keep the order of the dataset
        self.sizes = np.asarray(sizes, np.int64)[np.sort(first)]
        self.is_square = frame[0] == frame[1]
        views = self.sizes if views is None else np.asarray(views, np.int64)[np.sort(first)]
        zoom = np.minimum(1, (np.array(frame) / views).min(1) * enlargement)[:, None]
        finest = np.array([fitting_reduction(one) for one in zoom.flat])
        self.reduced = -(-self.sizes[:, None] // REDUCTIONS[:, None])  # (N, levels, 2)
        self.reduced[finest[:, None] > REDUCTIONS] = 0
        self._needed = np.ceil(self.sizes * zoom - 1e-6).astype(np.int64)[:, None]
        what = (keys, first, self.sizes, views, np.array([*frame, enlargement]))
        self.digest = hashlib.blake2b(b''.join(part.tobytes() for part in what), digest_size=DIGEST_BYTES).digest()
        self.lay_out(shrink=False)

    def lay_out(self, shrink: bool) -> None:
        """Set where the slots are, with room for what is decoded, or for no more than training asks for."""
        self.room = np.minimum(self.reduced, self._needed) if shrink else self.reduced
        num_bytes = -(-3 * self.room.prod(2) // ALIGNMENT) * ALIGNMENT
        self.pixels_at = -(-(HEAD.size + RECORD.itemsize * num_bytes.size) // mmap.PAGESIZE) * mmap.PAGESIZE
        ends = self.pixels_at + np.cumsum(num_bytes).reshape(num_bytes.shape)
        self.starts, self.ends = ends - num_bytes, ends[:, -1]

    def __len__(self) -> int:
        return len(self.keys)

    def num_bytes(self, num_images: int) -> int:
        """Size of the file with the first images."""
        return int(self.ends[num_images - 1]) if num_images else self.pixels_at

    def num_within(self, num_bytes: float) -> int:
        """How many images fit into a file of this size."""
        return int(np.searchsorted(self.ends, num_bytes, 'right'))

    def find(self, path: str) -> int:
        """Number of an image, or -1."""
        key = path_key(path)
        i = int(np.searchsorted(self.keys, key))
        return int(self.order[i]) if i < len(self) and self.keys[i] == key else -1


class ImageCache:
    """Decoded images in a file that all processes of a machine map; see the module.

    Pickled, it holds the path of that file, so processes that are not forked map it too. All ranks of a machine use the
    file of the first one.

    Args:
        kind: ``'ram'`` or ``'disk'``.
        plan: Of the images.
        limit_gb: Size that it may have, in GiB; None: half of the free memory, or nine tenths of the free disk.
        folder: For ``'disk'``.
        is_local: Whether the images are files, so that a change is noticed.

    Raises:
        OptionError: There is not the room that was asked for.
    """

    def __init__(
        self, kind: Storage, plan: CachePlan, limit_gb: float | None, folder: str, is_local: bool = True
    ) -> None:
        self.plan = plan
        self.is_local = is_local
        self.path = shared_path(plan.digest.hex(), lambda: self._make(kind, limit_gb, folder), self._is_right)
        self._map()
        if is_main_process():  # whichever rank has made it: others log nothing
            print_log(self._describe(kind, limit_gb, folder), 'current')

    def __getstate__(self) -> dict:
        return {name: self.__dict__[name] for name in ('plan', 'is_local', 'path')}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._map()

    def _make(self, kind: Storage, limit_gb: float | None, folder: str) -> str:
        """Make the file, with all its room; return a path that other processes can open."""
        advice = 'Set cache_gb to less, or cache_images to ' + ("'disk' or None" if kind == 'ram' else 'None')
        if kind == 'disk':
            advice += ', or cache_folder to a folder on another disk'
        free = free_bytes(None if kind == 'ram' else folder)
        limit = MAX_SHARE[kind] * free if limit_gb is None else limit_gb * GB
        shrink = self.plan.num_bytes(len(self.plan)) > limit
        self.plan.lay_out(shrink)
        num_images = self.plan.num_within(limit)
        num_bytes = self.plan.num_bytes(num_images)
        problem = f'cache_images={kind!r}: {num_bytes / GB:.2f} GB are wanted of the {place_of(kind, folder)}'
        if num_bytes > free:
            raise OptionError(f'{problem}, and {free / GB:.2f} GB are free. {advice}')
        try:
            file, path = reserved_file(num_bytes, None if kind == 'ram' else folder)
        except OSError as error:
            raise OptionError(f'{problem}: {error.strerror or error}. {advice}') from error
        weakref.finalize(self, os.close, file)
        os.pwrite(file, HEAD.pack(self.plan.digest, num_images, shrink), 0)
        return path

    def _describe(self, kind: Storage, limit_gb: float | None, folder: str) -> str:
        """Say how many images are kept, and where."""
        count, place = len(self.plan), place_of(kind, folder)
        size = self.plan.num_bytes(self.num_images) / GB
        note = f'{self.num_images} of {count} images are kept decoded, in {size:.2f} GB of the {place}'
        num_shrunk = int((self.plan.room != self.plan.reduced).any((1, 2))[: self.num_images].sum())
        if num_shrunk:
            note += f', {num_shrunk} of them shrunk to what training asks for'
        if self.num_images < count:
            bound = f'{MAX_SHARE[kind]:.0%} of what is free' if limit_gb is None else 'cache_gb'
            total = self.plan.num_bytes(count) / GB
            note += f'; the others do not fit into {bound} (all take {total:.2f} GB), and are decoded when needed'
        return note

    def _is_right(self, path: str) -> bool:
        try:
            with open(path, 'rb') as file:
                return file.read(DIGEST_BYTES) == self.plan.digest
        except OSError:
            return False

    def _map(self) -> None:
        self._file = os.open(self.path, os.O_RDWR)
        weakref.finalize(self, os.close, self._file)
        _, self.num_images, shrink = HEAD.unpack(os.pread(self._file, HEAD.size, 0))
        self.plan.lay_out(shrink)
        self._bytes = np.frombuffer(mmap.mmap(self._file, os.fstat(self._file).st_size), np.uint8)
        shape = self.plan.starts.shape
        records = self._bytes[HEAD.size : HEAD.size + RECORD.itemsize * math.prod(shape)]
        self._records = records.view(RECORD).reshape(shape)

    def version(self, path: str) -> int | None:
        """Tell a file from what it was before; None if there is none."""
        if not self.is_local:
            return 1
        try:
            status = os.stat(path)
        except OSError:
            return None
        return hash((status.st_mtime_ns, status.st_size, status.st_ino)) or 1

    def get(self, path: str, reduction: int) -> Decoded | None:
        """Look an image up.

        Args:
            path: Path of the file, as in the plan.
            reduction: The image at 1 / reduction of its size.

        Returns:
            None if it is not there, or if its file has changed. Its pixels are read-only.
        """
        slot = self._slot(path, reduction)
        version = slot and int(self._records['version'][slot])
        if not version or version != self.version(path):
            return None
        is_turned = bool(self._records['turned'][slot])
        return self._decoded(self._pixels(slot, is_turned), slot, is_turned)

    def put(self, path: str, reduction: int, image: Decoded, version: int | None) -> Decoded:
        """Keep an image, if it has a slot.

        Args:
            path: Path of the file, as in the plan.
            reduction: As in :meth:`get`.
            image: What was decoded.
            version: Of the file, before it was read.

        Returns:
            What later calls of :meth:`get` return, so that a sample does not depend on what is kept already.
        """
        slot = self._slot(path, reduction)
        if slot is None:
            return image
        size = self.plan.sizes[slot[0]]
        is_turned = self.plan.is_square and (image.size == size[::-1]).all() and size[0] != size[1]
        if not is_turned and (image.size != size).any():
            return image  # annotated with another size: there is no room for it
        room, pixels = self._pixels(slot, is_turned, writeable=True), image.pixels
        if pixels.shape != room.shape:
            pixels = cv2.resize(pixels, room.shape[1::-1], interpolation=cv2.INTER_AREA)
        with locked(self._file, slot[0] * len(REDUCTIONS) + slot[1]):
            # Two processes may have decoded the image, or two versions of it: the one that is on the disk now is kept.
            if version is not None and version == self.version(path) != self._records['version'][slot]:
                self._records['version'][slot] = 0
                room[:] = pixels
                self._records['turned'][slot] = is_turned
                self._records['version'][slot] = version
        return self._decoded(pixels, slot, is_turned)

    def _slot(self, path: str, reduction: int) -> tuple[int, int] | None:
        image, level = self.plan.find(path), reduction.bit_length() - 1
        return (image, level) if 0 <= image < self.num_images and self.plan.room[image, level, 0] else None

    def _pixels(self, slot: tuple[int, int], is_turned: bool, writeable: bool = False) -> NDArray:
        width, height = self.plan.room[slot][:: -1 if is_turned else 1].tolist()
        start = int(self.plan.starts[slot])
        pixels = self._bytes[start : start + 3 * width * height].reshape(height, width, 3)
        pixels.flags.writeable = writeable
        return pixels

    def _decoded(self, pixels: NDArray, slot: tuple[int, int], is_turned: bool) -> Decoded:
        turn = slice(None, None, -1 if is_turned else 1)
        reduction = REDUCTIONS[slot[1]] * self.plan.reduced[slot] / self.plan.room[slot]
        return Decoded(pixels, tuple(reduction[turn].tolist()), self.plan.sizes[slot[0]][turn])


def keep_images(dataset: MultiImageMixDataset, kind: Storage, limit_gb: float | None, folder: str | None) -> None:
    """Make a cache for a dataset of mixed samples, and give it to the transform that reads the images.

    Args:
        dataset: Its pipeline has a transform with ``use_cache``.
        kind: As in :class:`ImageCache`.
        limit_gb: As in :class:`ImageCache`.
        folder: As in :class:`ImageCache`; None: that for temporary files.

    Raises:
        OptionError: No transform can use it, sizes of images are not known, or there is no room.
    """
    readers = [transform for transform in dataset.pipeline if hasattr(transform, 'use_cache')]
    if len(readers) != 1:
        raise OptionError(
            f'{type(dataset).__name__}: cache_images={kind!r} needs one MosaicAffineMixUp in its pipeline, which reads '
            f'the images, and there are {len(readers)}: leave it out'
        )
    infos = [dataset.get_data_info(i) for i in range(len(dataset))]
    sizes = {info['img_path']: (info['width'], info['height']) for info in infos if info.get('width')}
    if not sizes:
        raise OptionError(f'{type(dataset).__name__}: cache_images needs width and height of each image in the dataset')
    is_local = not any(is_remote(name, readers[0].backend_args) for name in {os.path.dirname(path) for path in sizes})
    views = dict(sizes)
    for i, info in enumerate(infos if hasattr(dataset.dataset, 'view_size') else ()):  # windows of pictures
        views[info['img_path']] = tuple(np.minimum(views[info['img_path']], dataset.dataset.view_size(i)).tolist())
    plan = CachePlan(
        list(sizes), list(sizes.values()), readers[0].img_scale, readers[0].enlargement, list(views.values())
    )
    readers[0].use_cache(ImageCache(kind, plan, limit_gb, folder or tempfile.gettempdir(), is_local))


def place_of(kind: Storage, folder: str) -> str:
    """Where a cache is, in words."""
    return 'memory' if kind == 'ram' else f'disk ({folder})'


def path_key(path: str) -> int:
    """Key of a path, in 64 bits: a table of texts would be copied by each worker."""
    return int.from_bytes(hashlib.blake2b(os.fsencode(path), digest_size=8).digest(), 'little', signed=True)
