import json

import numpy as np
import pytest
from small_model import CLASSES

from yolov7_simple.runtime.errors import InputError
from yolov7_simple.runtime.results import CocoResults


def test_results_take_ids_from_annotations(tmp_path):
    path = tmp_path / 'annotations.json'
    images = [{'id': 70 + i, 'file_name': f'images/image{i}.png'} for i in range(3)]
    categories = [{'id': 5 + i, 'name': name} for i, name in enumerate(CLASSES)]
    path.write_text(json.dumps({'images': images, 'categories': categories}))
    results = CocoResults(CLASSES, path)
    values = np.array([[1.0, 2.0, 4.0, 8.0]]), np.array([0.5]), np.array([2])
    results.add('images/image1.png', (10, 20), *values)
    (found,) = results.content['annotations']
    assert (found['image_id'], found['category_id'], found['bbox']) == (71, 7, [1, 2, 3, 6])
    with pytest.raises(InputError, match='is not among'):
        results.add('other.png', (10, 20), *values)
    with pytest.raises(InputError, match='no category'):
        CocoResults(('unicorn',), path)
