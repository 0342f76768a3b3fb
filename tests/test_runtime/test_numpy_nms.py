import numpy as np
import pytest
import torch

from yolov7_simple.ops.nms import nms
from yolov7_simple.runtime.numpy_nms import numpy_nms


@pytest.mark.parametrize('threshold', [0.05, 0.5, 0.7])
@pytest.mark.parametrize('side', [30, 300])  # many ties and boxes without an area, or none
def test_it_keeps_what_the_exact_nms_of_the_model_keeps(threshold, side):
    rng = np.random.default_rng(0)
    for count in (0, 1, 200):
        corners = rng.integers(0, side, (count, 2))
        boxes = np.concatenate([corners, corners + rng.integers(0, side, (count, 2))], 1).astype(np.float32)
        scores, labels = rng.random(count, np.float32).round(2), rng.integers(0, 3, count)
        kept = numpy_nms(boxes, scores, labels, threshold)
        wanted = nms(*map(torch.from_numpy, (boxes, scores)), threshold, labels=torch.from_numpy(labels))
        assert kept.tolist() == wanted.tolist()
        assert len(kept) < count or count < 2
