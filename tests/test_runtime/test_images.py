import cv2
import numpy as np

from yolov7_simple.runtime.images import read_image


def test_read_image_keeps_the_pixels(tmp_path):
    image = np.random.default_rng(0).integers(0, 255, (20, 30, 3), np.uint8)
    cv2.imwrite(str(tmp_path / 'a.png'), image)
    assert (read_image(tmp_path / 'a.png') == image).all()
