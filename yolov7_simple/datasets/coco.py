"""COCO datasets that are checked before training starts."""

from __future__ import annotations

import os
from collections import Counter
from typing import Any

from mmdet.datasets import CocoDataset
from mmdet.datasets.api_wrappers import COCO
from mmdet.registry import DATASETS
from mmengine.dist import is_main_process
from mmengine.logging import print_log
from tqdm import tqdm

from ..runtime.errors import examples
from ..utils.options import OptionError, Share, checked_options
from .annotation_checks import AnnotationError, find_missing, is_text
from .annotation_reading import paused_gc, read_annotations
from .headers import BAR, Header, image_headers
from .remote import is_remote


def clip_xywh(box: list[float], width: float, height: float) -> tuple[list[float], str | None]:
    """Clip a box to its image.

    Args:
        box: x, y, width and height in pixels, any numbers.
        width: Of the image.
        height: Of the image.

    Returns:
        The clipped box, and what was done to it: None, 'clipped to their image', or why it is left out.
    """
    x, y, w, h = box
    x1, y1, x2, y2 = max(x, 0), max(y, 0), min(x + w, width), min(y + h, height)
    clipped = [x1, y1, x2 - x1, y2 - y1]
    if min(w, h) < 0:
        return clipped, 'with a negative side left out'
    if min(w, h) < 1:
        return clipped, 'below one pixel left out'
    if x2 <= x1 or y2 <= y1:
        return clipped, 'outside of their image left out'
    if min(clipped[2:]) < 1:
        return clipped, 'below one pixel inside of their image left out'
    # Annotations are rounded, so half a pixel outside is still inside.
    is_inside = min(x, y) >= -0.5 and x + w <= width + 0.5 and y + h <= height + 0.5
    return clipped, None if is_inside else 'clipped to their image'


@DATASETS.register_module()
@checked_options
class CheckedCocoDataset(CocoDataset):
    """mmdet's CocoDataset, which refuses what cannot be right, and reports what it repairs or leaves out.

    Refused, naming file and record: what the tables of :mod:`.annotation_checks` forbid, classes that the file lacks or
    has in another order, images outside of the data folder, too many missing images, a set with no image or box left.
    Repaired, counted and reported: boxes that leave the image are clipped, boxes without an area get that of their
    sides. Left out, counted and reported: boxes that have a negative side, lie outside of the image, are below one
    pixel, are marked ``ignore`` or have a class that the config lacks; images that ``filter_cfg`` filters. Reported:
    classes without a box, missing images, files shared by several images, images of another size than annotated.
    Polygons and masks are not read.

    Args:
        max_missing: Share of the images that may be missing in training, where others replace them; in testing none
            may be.
        allow_outside: Whether images may lie outside of ``data_root`` and ``data_prefix``, through ``..``, an absolute
            path or a link.
    """

    def __init__(self, *args: Any, max_missing: Share = 0.01, allow_outside: bool = False, **kwargs: Any) -> None:
        self.max_missing = max_missing
        self.allow_outside = allow_outside
        super().__init__(*args, **kwargs)

    @paused_gc()
    def load_data_list(self) -> list[dict]:
        """Load the annotations, after checking them.

        Raises:
            AnnotationError: The file is not what this dataset can be trained or evaluated on.
        """
        self.repairs: Counter[str] = Counter()  # what was done -> how often
        if not self.ann_file:
            raise OptionError('CheckedCocoDataset: ann_file must be set')
        content = read_annotations(self.ann_file, self.test_mode, self.backend_args)
        problem = self._find_wrong_classes(content)
        if problem:
            self._fail(problem)
        notes = self._check_files(content['images'])
        self._content = content
        with tqdm(total=len(content['images']), desc='Annotations', **BAR) as self._progress:
            data_list = super().load_data_list()
        del self._content, self._progress

        labels = Counter(instance['bbox_label'] for info in data_list for instance in info['instances'])
        if not labels and not self.test_mode:
            self._fail(f'has no box that can be trained on: {self._repairs_text()}')
        unused = [name for label, name in enumerate(self.metainfo['classes']) if not labels[label]]
        if unused:
            notes.append(f'{len(unused)} classes without a box: {examples(unused)}')
        empty = sum(not info['instances'] for info in data_list)
        self._report(
            f'{len(data_list)} images ({empty} without a box), {labels.total()} boxes, '
            f'{len(self.metainfo["classes"])} classes',
            self._repairs_text(),
            *notes,
        )
        return data_list

    def COCOAPI(self, path: str) -> COCO:
        """Index what was read, in place of the class that would read the file once more."""
        api = COCO()
        api.dataset = self._content
        api.createIndex()
        api.img_ann_map, api.cat_img_map = api.imgToAnns, api.catToImgs
        return api

    def parse_data_info(self, raw_data_info: dict) -> dict:
        """Parse one image as CocoDataset does, counting what it leaves out and what is clipped."""
        image, used = raw_data_info['raw_img_info'], []
        for annotation in raw_data_info['raw_ann_info']:
            box, what = clip_xywh(annotation['bbox'], image['width'], image['height'])
            area = annotation.get('area', 0)
            if annotation.get('ignore'):
                what = 'marked ignore left out'
            elif annotation['category_id'] not in self.cat2label:
                what = 'of other classes left out'
            elif area <= 0 and not (what or '').endswith('left out'):
                self.repairs['boxes without an area given that of their sides'] += 1
                area = box[2] * box[3]
            if what:
                self.repairs[f'boxes {what}'] += 1
            if not (what or '').endswith('left out'):
                used.append({**annotation, 'bbox': box, 'area': area})
        self._progress.update()
        return super().parse_data_info({'raw_img_info': image, 'raw_ann_info': used})

    def filter_data(self) -> list[dict]:
        """Filter as CocoDataset does, and report how many images are left out."""
        kept = super().filter_data()
        if not kept:
            self._fail(f'no image is left by filter_cfg={self.filter_cfg}')
        if len(kept) < len(self.data_list):
            self._report(f'{len(self.data_list) - len(kept)} images left out by filter_cfg={self.filter_cfg}')
        return kept

    def _fail(self, problem: str) -> None:
        raise AnnotationError(f'{self.ann_file}: {problem}')

    def _report(self, *notes: str) -> None:
        print_log(f'{self.ann_file}: {"; ".join(filter(None, notes))}', 'current')

    def _repairs_text(self) -> str:
        return '; '.join(f'{count} {what}' for what, count in self.repairs.items())

    def _find_wrong_classes(self, content: dict[str, Any]) -> str | None:
        """Compare the classes of the config with those of the file."""
        names = [category['name'] for category in content['categories']]
        classes = self.metainfo.get('classes')
        if not isinstance(classes, (tuple, list)) or not all(map(is_text, classes)):
            return f"metainfo.classes must be a tuple of names, such as ('cat',), got {classes!r}"
        missing = [name for name in classes if name not in names]
        if missing:
            return (
                f'{len(missing)} classes of the config are not in the file: {examples(missing)}. The file has '
                f'{examples(names)}. Set metainfo=dict(classes=...) of the dataset and bbox_head.num_classes to fit'
            )
        # mmdet numbers the classes in the order of the file, whatever the order in the config.
        in_file_order = tuple(name for name in names if name in set(classes))
        if in_file_order != tuple(classes):
            return f'classes of the config must be in the order of the file, which is {in_file_order}'
        return None

    def _check_files(self, images: list[dict]) -> list[str]:
        """Check where the images are, and the sizes of some; return what is to be reported."""
        if 'img' not in self.data_prefix:
            self._fail(f'data_prefix must tell the folder of the images, as dict(img=...), got {self.data_prefix}')
        folder = self.data_prefix['img']
        try:
            missing = find_missing(images, folder, self.data_root or None, self.allow_outside, self.backend_args)
        except AnnotationError as error:
            self._fail(str(error))
        absent = f'{len(missing)} of {len(images)} images are not there: {examples(missing)}'
        if len(missing) > (0 if self.test_mode else self.max_missing) * len(images):
            self._fail(
                f'{absent}. Set data_root and data_prefix=dict(img=...) of the dataset, or take them out of the file'
                + ('' if self.test_mode else f' (in training max_missing={self.max_missing} of them may be absent)')
            )
        notes = [absent] if missing else []
        names = Counter(image['file_name'] for image in images)
        doubled = [name for name, count in names.items() if count > 1]
        if doubled:
            notes.append(f'{len(doubled)} files are of several images: {examples(doubled)}')
        return notes + self._compare_sizes(images, folder)

    def _compare_sizes(self, images: list[dict], folder: str) -> list[str]:
        """Compare annotated sizes with those of the files, by their headers; one process of several does it."""
        if is_remote(folder, self.backend_args) or not is_main_process():
            return []
        headers = image_headers([os.path.join(folder, image['file_name']) for image in images])
        other = [
            (image, header)
            for image, header in zip(images, headers)
            if isinstance(header, Header) and header[:2] != (image['width'], image['height'])
        ]  # damaged files are reported when they are loaded
        if not other:
            return []
        turned = sum(header[1::-1] == (image['width'], image['height']) for image, header in other)
        sizes = [
            f'{image["file_name"]} is {header[0]} x {header[1]}, annotated as {image["width"]} x {image["height"]}'
            for image, header in other
        ]
        return [
            f'{len(other)} of {len(images)} images have another size than annotated, which is taken as it is in the '
            f'file, {turned} of them turned by a quarter, as by EXIF: {examples(sizes)}'
        ]
