"""COCO datasets that are checked before training starts."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

from mmdet.datasets import CocoDataset
from mmdet.registry import DATASETS
from mmengine.fileio import get_text
from mmengine.logging import print_log

NUM_EXAMPLES = 5


def examples(items: list) -> str:
    """A list for a message, cut short."""
    more = f' and {len(items) - NUM_EXAMPLES} more' if len(items) > NUM_EXAMPLES else ''
    return ', '.join(map(str, items[:NUM_EXAMPLES])) + more


@DATASETS.register_module()
class CheckedCocoDataset(CocoDataset):
    """mmdet's CocoDataset, which says what it leaves out, and refuses what cannot be right.

    Refused, with the file and the record named: a file that is missing, empty, or not COCO's; ids that clash or point
    nowhere; a box that is not four finite numbers; classes that the file does not have, or has in another order.
    Repaired, counted and reported: boxes that leave the image are clipped to it. Left out, counted and reported:
    boxes outside of the image or below one pixel, as in CocoDataset. Also reported: classes without a box.
    """

    def load_data_list(self) -> list[dict]:
        """Load the annotations, after checking them.

        Raises:
            ValueError: The file is not what this dataset can be trained or judged on.
        """
        self._repairs: Counter[str] = Counter()
        content = self._read_annotations()
        self._check_classes(content)
        num_boxes = Counter(annotation['category_id'] for annotation in content['annotations'])
        data_list = super().load_data_list()

        names = {category['id']: category['name'] for category in content['categories']}
        unused = [name for id_, name in names.items() if not num_boxes[id_] and name in self.metainfo['classes']]
        notes = [f'{count} {what}' for what, count in self._repairs.items()]
        if unused:
            notes.append(f'{len(unused)} classes without a box: {examples(unused)}')
        empty = sum(not info['instances'] for info in data_list)
        print_log(
            f'{self.ann_file}: {len(data_list)} images ({empty} without a box), '
            f'{sum(len(info["instances"]) for info in data_list)} boxes, {len(self.metainfo["classes"])} classes'
            + ''.join(f'; {note}' for note in notes),
            'current',
        )
        return data_list

    def parse_data_info(self, raw_data_info: dict) -> dict:
        """Parse one image as CocoDataset does, counting what it leaves out and what is clipped."""
        image, annotations = raw_data_info['raw_img_info'], raw_data_info['raw_ann_info']
        used = []
        for annotation in annotations:
            x, y, width, height = annotation['bbox']
            x1, y1 = max(x, 0), max(y, 0)
            x2, y2 = min(x + width, image['width']), min(y + height, image['height'])
            if width < 1 or height < 1:
                self._repairs['boxes below one pixel left out'] += 1
            elif x2 <= x1 or y2 <= y1:
                self._repairs['boxes outside of their image left out'] += 1
            else:
                # Half a pixel: annotations are rounded.
                if min(x, y) < -0.5 or x + width > image['width'] + 0.5 or y + height > image['height'] + 0.5:
                    self._repairs['boxes clipped to their image'] += 1
                # CocoDataset leaves out boxes without an area, which many converters do not write.
                area = annotation.get('area') or width * height
                used.append({**annotation, 'bbox': [x1, y1, x2 - x1, y2 - y1], 'area': area})
        return super().parse_data_info({'raw_img_info': image, 'raw_ann_info': used})

    def _fail(self, problem: str) -> None:
        raise ValueError(f'{self.ann_file}: {problem}')

    def _read_annotations(self) -> dict[str, Any]:
        """Read the file and check that it is COCO's and fits itself."""
        if '://' not in self.ann_file and not Path(self.ann_file).is_file():
            raise FileNotFoundError(
                f'No annotation file at {Path(self.ann_file).resolve()}: set data_root and ann_file in the config '
                '(from the command line: --cfg-options data_root=DIR/ and so on)'
            )
        try:
            content = json.loads(get_text(self.ann_file, backend_args=self.backend_args))
        except json.JSONDecodeError as error:
            raise ValueError(f'{self.ann_file}: not a JSON file: {error}') from error
        for key in ('images', 'annotations', 'categories'):
            if not isinstance(content, dict) or not isinstance(content.get(key), list):
                self._fail(f'not a COCO file: it has no list of {key}')
        for key in ('images', 'categories') if self.test_mode else ('images', 'annotations', 'categories'):
            if not content[key]:
                self._fail(f'has no {key}')

        ids = {}
        for key, fields in (
            ('images', {'id': (int, str), 'file_name': str, 'width': (int, float), 'height': (int, float)}),
            ('categories', {'id': int, 'name': str}),
            ('annotations', {'id': (int, str), 'image_id': (int, str), 'category_id': int, 'bbox': list}),
        ):
            for i, record in enumerate(content[key]):
                for field, kind in fields.items():
                    if not isinstance(record, dict) or not isinstance(record.get(field), kind):
                        self._fail(f'{key}[{i}] has no usable {field}: {str(record)[:200]}')
            counts = Counter(record['id'] for record in content[key])
            doubled = [id_ for id_, count in counts.items() if count > 1]
            if doubled:
                self._fail(f'{len(doubled)} ids of {key} are used more than once: {examples(doubled)}')
            ids[key] = set(counts)

        for i, annotation in enumerate(content['annotations']):
            box = annotation['bbox']
            if len(box) != 4 or not all(isinstance(v, (int, float)) and math.isfinite(v) for v in box):
                self._fail(f'annotations[{i}] (id {annotation["id"]}): bbox must be four finite numbers, got {box}')
            for field, key in (('image_id', 'images'), ('category_id', 'categories')):
                if annotation[field] not in ids[key]:
                    self._fail(
                        f'annotations[{i}] (id {annotation["id"]}): {field} {annotation[field]} is not among {key}'
                    )
        return content

    def _check_classes(self, content: dict[str, Any]) -> None:
        """Compare the classes of the config with those of the file."""
        names = [category['name'] for category in content['categories']]
        classes = self.metainfo.get('classes')
        if isinstance(classes, str):
            self._fail(f'metainfo.classes must be a tuple of names, got the text {classes!r}: write ({classes!r},)')
        missing = [name for name in classes if name not in names]
        if missing:
            self._fail(
                f'{len(missing)} classes of the config are not in the file: {examples(missing)}. The file has '
                f'{examples(names)}. Set metainfo=dict(classes=...) of the dataset and bbox_head.num_classes to fit'
            )
        # mmdet numbers the classes in the order of the file, whatever the order in the config.
        in_file_order = tuple(name for name in names if name in set(classes))
        if in_file_order != tuple(classes):
            self._fail(f'classes of the config must be in the order of the file, which is {in_file_order}')
