"""Label formats: one module each, with a reader that finds its labels among the files of a folder, or finds none.

A reader takes :class:`~yolov7_simple.own_data.files.Files` and :class:`~yolov7_simple.own_data.findings.Findings`,
and returns :class:`~yolov7_simple.own_data.labels.Labels` or None. What it cannot read once the format is known is an
:class:`InputError` with file and line; what it repairs or leaves out it tells the findings. To add a format, write a
module with such a reader and add it here.
"""

from __future__ import annotations

from collections.abc import Callable

from ..files import Files
from ..findings import Findings
from ..labels import Labels
from .coco import read_coco
from .createml import read_createml
from .cvat import read_cvat
from .datumaro import read_datumaro
from .kitti import read_kitti
from .label_studio import read_label_studio
from .labelme import read_labelme
from .supervisely import read_supervisely
from .tables import read_tables
from .via import read_via
from .voc import read_voc
from .yolo import read_yolo

Reader = Callable[[Files, Findings], Labels | None]
READERS: dict[str, Reader] = {
    'COCO': read_coco,
    'YOLO': read_yolo,
    'VOC': read_voc,
    'labelme': read_labelme,
    'CVAT': read_cvat,
    'VIA': read_via,
    'CSV': read_tables,
    'CreateML': read_createml,
    'Supervisely': read_supervisely,
    'KITTI': read_kitti,
    'Label Studio': read_label_studio,
    'Datumaro': read_datumaro,
}
