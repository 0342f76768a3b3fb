"""The images of a training sample, or the parts of them that are used, each read once."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ..runtime.errors import DamagedImageError
from .image_cache import ImageCache
from .loading import Decoded, decode_content, fitting_reduction, read_file


class ImageReader:
    """Reads the images of one sample, each once, from the cache or from its file.

    Args:
        backend_args: Options of mmengine's file backend.
        cache: Of this dataset, if it has one.
    """

    def __init__(self, backend_args: dict | None, cache: ImageCache | None) -> None:
        self._backend_args = backend_args
        self._cache = cache
        self._images: dict[tuple[str, int], Decoded] = {}

    def read(self, path: str, size: NDArray | None, scale_of: Callable[[NDArray], float]) -> Decoded:
        """Read an image, at the smallest size that is not below its final one.

        Args:
            path: Path of the file.
            size: Width and height, as annotated; the file may have another one.
            scale_of: Size of the image -> by how much it is scaled in the end.

        Raises:
            DamagedImageError: No image can be read from the file.
        """
        image = size is not None and self._find(path, fitting_reduction(scale_of(size)))
        return image or self._read_file(path, size, scale_of)

    def _find(self, path: str, reduction: int) -> Decoded | None:
        image = self._images.get((path, reduction))
        return self._cache.get(path, reduction) if image is None and self._cache else image

    def _read_file(self, path: str, size: NDArray | None, scale_of: Callable[[NDArray], float]) -> Decoded:
        version = self._cache and self._cache.version(path)
        content, found = read_file(path, self._backend_args)
        is_as_annotated = size is None or found is None or tuple(size) == found
        size = np.array(found) if found else size
        # Of an image that is not as annotated, no pixels are left out, so that its boxes are as exact as they can be.
        reduction = fitting_reduction(scale_of(size)) if size is not None and is_as_annotated else 1
        pixels = decode_content(content, path, reduction)
        if size is None or pixels.shape[1::-1] != tuple(-(-size // reduction)):
            # A header that says something else than the decoder: the decoder decides.
            pixels, reduction = (pixels if reduction == 1 else decode_content(content, path, 1)), 1
            size = np.array(pixels.shape[1::-1])
        image = Decoded(pixels, (reduction, reduction), size)
        if self._cache:
            image = self._cache.put(path, reduction, image, version)
        self._images[path, reduction] = image
        return image


class Source:
    """An image that goes into a sample: its path, its boxes, and its pixels once they are needed.

    Args:
        results: Of the dataset. With a ``window``, xyxy, the source is that part of the image, and its boxes are in
            pixels of the window.
        reader: For the images of this sample.

    Attributes:
        size: Width and height, as annotated until the file shows another size; None if not annotated.
        origin: (x, y) of its first pixel in the image.
        boxes, labels, ignored: (N, 4) xyxy, (N,) and (N,).
        image: What was decoded, or None.
    """

    def __init__(self, results: dict, reader: ImageReader) -> None:
        self._reader = reader
        self.path = results['img_path']
        size = (results.get('width'), results.get('height'))
        self._window = results.get('window')
        self.origin = (0, 0) if self._window is None else tuple(self._window[:2].tolist())
        self._image_size = np.array(size) if all(size) else None
        self.size = None if self._image_size is None else self._part(self._image_size)
        self.boxes = np.asarray(getattr(results['gt_bboxes'], 'tensor', results['gt_bboxes']))
        self.labels = results['gt_bboxes_labels']
        self.ignored = results['gt_ignore_flags']
        self.image: Decoded | None = None

    def read(self, scale_of: Callable[[NDArray], float]) -> None:
        """Read the image, as :meth:`ImageReader.read`; its size is then that of the file."""
        self.image = self._reader.read(self.path, self._image_size, lambda size: scale_of(self._part(size)))
        self.size = self._part(self.image.size)

    def _part(self, size: NDArray) -> NDArray:
        """Width and height of the window in an image of this size."""
        if self._window is None:
            return size
        part = np.minimum(size, self._window[2:]) - self._window[:2]
        if (part < 1).any():
            raise DamagedImageError(self.path, f'has {size[0]} x {size[1]} pixels, fewer than annotated')
        return part
