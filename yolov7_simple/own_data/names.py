"""What names of files and folders say: an image or a drawing, a label, a split."""

from __future__ import annotations

import contextlib
import posixpath
import re
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath
from urllib.parse import unquote, urlsplit

from ..runtime.files import IMAGE_SUFFIXES

# Beside those that every tool here reads, formats that are copied for training.
LABELLED_SUFFIXES = IMAGE_SUFFIXES | {'.jfif', '.jpe', '.gif', '.avif', '.jp2', '.j2k', '.heic', '.heif'}
# Folders that hold pictures made from images, with the names of the images.
DRAWING_WORDS = {
    *('mask', 'masks', 'trimap', 'trimaps', 'segmentationclass', 'segmentationobject', 'segmentation', 'depth'),
    *('vis', 'viz', 'visualization', 'visualizations', 'visualisation', 'visualisations', 'overlay', 'overlays'),
    *('drawn', 'drawings', 'annotated', 'preview', 'previews', 'thumb', 'thumbs', 'thumbnail', 'thumbnails', 'debug'),
    *('pred', 'preds', 'prediction', 'predictions', 'results', 'outputs'),
}
IMAGE_FOLDERS = {
    'images',
    'image',
    'imgs',
    'img',
    'jpegimages',
    'data',
    'photos',
    'pictures',
    'obj_train_data',
    'image_2',
}
LABEL_FOLDERS = {'labels', 'label', 'annotations', 'annotation', 'ann', 'xml', 'xmls', 'txt', 'json', 'label_2'}
SPLIT_WORDS = {
    **dict.fromkeys(('train', 'training', 'trn'), 'train'),
    **dict.fromkeys(('val', 'valid', 'validation', 'eval', 'evaluation', 'dev', 'minival'), 'val'),
    **dict.fromkeys(('test', 'testing'), 'test'),
    'trainval': 'trainval',
}
BACKGROUND_WORDS = {'background', 'backgrounds', 'negative', 'negatives', 'empty'}


def normalize(name: str) -> str:
    """A name without regard to case and to how accents are composed."""
    return unicodedata.normalize('NFC', name).casefold()


def words_of(text: str) -> list[str]:
    """The words of a name in lower case, without digits: 'train2017_images' -> train, images."""
    return re.findall('[a-z]+', text.lower())


def with_suffix(files: Iterable[str], suffixes: Iterable[str]) -> list[str]:
    """Those with one of some suffixes."""
    return [file for file in files if posixpath.splitext(file)[1].lower() in suffixes]


def parts_of(path: str) -> tuple[str, ...]:
    """The folders and the name of a path."""
    return tuple(part for part in path.split('/') if part not in ('', '.'))


def name_variants(name: str) -> Iterator[tuple[str, ...]]:
    """Parts of a file name as another machine may have written it.

    Backslashes separate as slashes do; drives, '..', the address of a server and the query around a path say nothing
    about this folder; escaped characters are tried as they are, then unescaped.
    """
    if '?d=' in name:  # Label Studio's local files
        name = name.split('?d=', 1)[1]
    if '://' in name:
        with contextlib.suppress(ValueError):  # not an address after all
            name = urlsplit(name).path
    for text in dict.fromkeys((name, unquote(name))):
        parts = tuple(
            part
            for part in re.split(r'[\\/]+', text.strip())
            if part not in ('', '.', '..') and not re.fullmatch('[A-Za-z]:', part)
        )
        if parts:
            yield parts


def drop_image_suffix(name: str) -> str:
    """A name without the suffix of an image; other dots stay."""
    return name[: -len(PurePosixPath(name).suffix)] if PurePosixPath(name).suffix.lower() in LABELLED_SUFFIXES else name


def is_drawing(path: str) -> bool:
    """Whether the folders of a picture say that it was made from an image: a mask, a drawing, a thumbnail."""
    return any(set(words_of(part)) & DRAWING_WORDS for part in parts_of(path)[:-1])


def split_in(text: str) -> str | None:
    """The split that one name speaks of, None if it speaks of none or of several."""
    found = {SPLIT_WORDS[word] for word in words_of(text) if word in SPLIT_WORDS}
    return found.pop() if len(found) == 1 else None


def split_of_folders(path: str) -> str | None:
    """The split that the folders of a file speak of, the innermost first."""
    return next(filter(None, map(split_in, parts_of(path)[-2::-1])), None)


def split_of_file(path: str) -> str | None:
    """The split that an annotation file or a list is for: by its own name, or else by its folders."""
    return split_in(PurePosixPath(path).stem) or split_of_folders(path)
