"""Write COCO's JSON as the detections come, in constant memory."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from .errors import OutputError
from .files import json_bytes, temporary_path
from .results import CocoResults

IMAGES = b'\n], "images": [\n'  # between annotations and images


class RecordFile:
    """A file of JSON's records with commas between them, of which only whole ones stay.

    Args:
        path: The file, which is made anew.
        start: What comes before the records.
    """

    def __init__(self, path: Path, start: bytes = b'') -> None:
        self.path = path
        self.file = open(path, 'w+b', buffering=0)  # what was written can be told from what was not  # noqa: SIM115
        self._has_records = False
        self.end = 0  # of what is whole
        self.write(start)
        self.end = len(start)

    def write(self, data: bytes) -> None:
        """Write all bytes, behind what is whole; they are whole once ``end`` says so."""
        self.file.seek(self.end)
        rest = memoryview(data)
        while len(rest):
            rest = rest[self.file.write(rest) :]

    def append(self, records: Sequence[dict]) -> int:
        """Write records; returns where they end, for ``end``."""
        if not records:
            return self.end
        data = (b',\n' if self._has_records else b'') + b',\n'.join(map(json_bytes, records))
        self.write(data)
        self._has_records = True
        return self.end + len(data)

    def cut(self) -> None:
        """Remove what is not whole."""
        self.file.truncate(self.end)
        self.file.seek(self.end)


class CocoStream(CocoResults):
    """A COCO file that is written as the detections come. At its end, however it comes, it has all images so far.

    Use it in a ``with`` statement.

    Args:
        path: The file, replaced at the end.
        classes: See :class:`CocoResults`.
        annotation_file: See :class:`CocoResults`.

    Raises:
        InputError: See :class:`CocoResults`.
    """

    def __init__(self, path: Path, classes: Sequence[str], annotation_file: Path | None = None) -> None:
        super().__init__(classes, annotation_file)
        self.path = path
        self._annotations: RecordFile | None = None
        self._images: RecordFile | None = None

    def __enter__(self) -> CocoStream:
        try:
            start = b'{"categories": ' + json_bytes(self.categories) + b', "annotations": [\n'
            self._annotations = RecordFile(temporary_path(self.path), start)
            self._images = RecordFile(temporary_path(self.path.with_suffix(f'.images{self.path.suffix}')))
        except OSError as error:
            self._remove()
            raise OutputError(self.path, error) from error
        return self

    def _keep(self, image: dict, annotations: list[dict]) -> None:
        try:
            ends = self._annotations.append(annotations), self._images.append([image])
        except OSError as error:
            raise OutputError(self.path, error) from error
        self._annotations.end, self._images.end = ends

    def __exit__(self, *_: Any) -> None:
        target, source = self._annotations, self._images
        try:
            target.cut()
            source.cut()
            try:
                source.file.seek(0)
                target.write(IMAGES)
                shutil.copyfileobj(source.file, target.file)
                target.file.write(b'\n]}\n')
            except OSError:
                # The disk is full: the images make room for themselves.
                target.cut()
                source.file.seek(0)
                images = source.file.read()
                source.file.truncate(0)
                target.write(IMAGES + images + b'\n]}\n')
            target.file.close()
            os.replace(target.path, self.path)
        except OSError as error:
            raise OutputError(self.path, error) from error
        finally:
            self._remove()

    def _remove(self) -> None:
        for part in filter(None, (self._annotations, self._images)):
            part.file.close()
            with suppress(OSError):
                part.path.unlink()
