import cv2
import numpy as np
import pytest
from mmcv.transforms import LoadImageFromFile

from yolov7_simple.datasets.loading import CheckImageFile, decode_image
from yolov7_simple.runtime.images import read_image


@pytest.mark.parametrize('suffix', ['.png', '.tif', '.ppm'])
@pytest.mark.parametrize('bits', [8, 12, 16])
@pytest.mark.parametrize('dtype', [np.uint8, np.float32])
def test_a_picture_looks_the_same_in_training_evaluation_and_detection(tmp_path, suffix, bits, dtype):
    highest = 2**bits - 1
    image = np.random.default_rng(0).integers(0, highest + 1, (32, 40, 3)).astype(np.uint8 if bits == 8 else np.uint16)
    image[0, 0] = highest
    path = tmp_path / f'a{suffix}'
    cv2.imwrite(str(path), image)
    wanted = image >> (bits - 8)
    assert (read_image(path) == wanted).all()
    assert (decode_image(str(path)) == wanted).all()
    assert decode_image(str(path), 2).shape == (16, 20, 3)
    loaded = LoadImageFromFile(to_float32=dtype == np.float32)({'img_path': str(path)})
    evaluated = CheckImageFile()(loaded)['img']
    assert evaluated.dtype == dtype and (evaluated == wanted).all()
