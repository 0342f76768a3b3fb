"""mmdet's COCO metric, computed by faster-coco-eval."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from mmdet.evaluation.metrics import CocoMetric, coco_metric
from mmdet.registry import METRICS
from pycocotools.cocoeval import COCOeval

from .utils.options import OptionError


@METRICS.register_module()
class ExactFasterCocoMetric(CocoMetric):
    """:class:`CocoMetric`, with the same options and the same numbers to the last digit, in a fraction of the time.

    Args:
        args: As of CocoMetric.
        kwargs: As of CocoMetric.

    Raises:
        OptionError: The faster-coco-eval package is missing, or ``use_mp_eval`` asks for yet another implementation.
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        if self.use_mp_eval:
            raise OptionError('ExactFasterCocoMetric: use_mp_eval=True is for CocoMetric; leave it out')
        self.evaluator = faster_coco_eval_class()

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Evaluate all results, as CocoMetric does."""
        with evaluated_by(self.evaluator):
            return super().compute_metrics(results)


class WholePictureEval(COCOeval):
    """pycocotools' COCOeval, whose mAP counts as many detections as its other numbers do."""

    def summarize(self) -> None:
        """Print all numbers as COCO does, and replace the mAP."""
        super().summarize()
        precision = self.eval['precision'][..., 0, -1]  # (T, R, K), of all sizes and most detections
        known = precision[precision > -1]
        self.stats[0] = known.mean() if known.size else -1


@METRICS.register_module()
class WholePictureCocoMetric(CocoMetric):
    """:class:`CocoMetric`, whose ``bbox_mAP`` counts more than the best 100 detections of a class in a picture.

    A large picture may hold more objects than that, and the mAP could then not come near 1. As many are counted as for
    ``bbox_mAP_50`` and the others: the last of ``proposal_nums``.

    Args:
        args: As of CocoMetric.
        kwargs: As of CocoMetric.
    """

    evaluator = WholePictureEval

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Evaluate all results, as CocoMetric does."""
        with evaluated_by(self.evaluator):
            return super().compute_metrics(results)


@contextmanager
def evaluated_by(evaluator: type) -> Iterator[None]:
    """Let CocoMetric use another class in place of COCOeval, which it looks up by its name."""
    coco_metric.COCOeval = evaluator
    try:
        yield
    finally:
        coco_metric.COCOeval = COCOeval


def faster_coco_eval_class() -> type:
    """Make a replacement for pycocotools' COCOeval that gives the same numbers, bit for bit.

    T thresholds of IoU, R of recall, K classes, A ranges of area, M numbers of detections an image.

    Raises:
        OptionError: The faster-coco-eval package is missing.
    """
    try:
        from faster_coco_eval.core.faster_eval_api import COCOeval as FasterCOCOeval
    except ImportError as error:
        raise OptionError(
            'ExactFasterCocoMetric needs the faster-coco-eval package: pip install faster-coco-eval, or write '
            f"type='CocoMetric' in its place ({error})"
        ) from error

    class Evaluator(FasterCOCOeval):
        # faster-coco-eval's AP is that of maxDets[-1], 1000 in mmdet; pycocotools' is that of the best 100 detections.
        summarize = COCOeval.summarize

        def __init__(self, *args) -> None:
            super().__init__(*args, separate_eval=True)

        def accumulate(self, p=None) -> None:
            # pycocotools adds 2.2e-16 to the number of detections before dividing by it, which only changes a 1: where
            # a class's best detection is right and its second is wrong, the precision is 1 - 2.2e-16 and not 1. Whether
            # both are right is read from the precision at a recall between those of one and of two boxes.
            recalls, index = np.unique(1.5 / self._count_truth().clip(1), return_inverse=True)
            params = self._paramsEval
            self._paramsEval = copy.copy(params)
            self._paramsEval.recThrs = recalls
            super().accumulate()
            precision = self.eval['precision']  # (T, R', K, A, M)
            classes, areas = np.ogrid[: precision.shape[2], : precision.shape[3]]
            first_two = precision[:, index.reshape(len(classes), -1), classes, areas] == 1  # (T, K, A, M)

            self._paramsEval = params
            super().accumulate()
            precision = self.eval['precision']  # (T, R, K, A, M)
            precision[(precision == 1) & ~first_two[:, None]] = 1 / (1 + np.spacing(1))

        def _count_truth(self) -> np.ndarray:
            """Count boxes of each class and range of area, (K, A), without crowds."""
            params = self._paramsEval
            columns = {one: i if params.useCats else 0 for i, one in enumerate(params.catIds)}
            counts = np.zeros((len(columns) if params.useCats else 1, len(params.areaRng)))
            for box in self.cocoGt.loadAnns(self.cocoGt.getAnnIds(imgIds=params.imgIds, catIds=params.catIds)):
                if not box.get('iscrowd', 0):
                    counts[columns[box['category_id']]] += [low <= box['area'] <= high for low, high in params.areaRng]
            return counts

    return Evaluator
