import cv2
import numpy as np
import pytest

from yolov7_simple.runtime.errors import InputError
from yolov7_simple.runtime.images import is_cut_short, read_image


def test_read_image_keeps_the_pixels(tmp_path):
    image = np.random.default_rng(0).integers(0, 255, (20, 30, 3), np.uint8)
    cv2.imwrite(str(tmp_path / 'a.png'), image)
    assert (read_image(tmp_path / 'a.png') == image).all()


def test_a_chunk_that_claims_more_than_the_file_has(tmp_path):
    data = cv2.imencode('.png', np.zeros((8, 8, 3), np.uint8))[1].tobytes()
    assert not is_cut_short(data) and not is_cut_short(data + b'more')
    damaged = data[:33] + b'\x7f\xff\xff\xfftEXt' + data[33:]
    assert is_cut_short(damaged)
    (tmp_path / 'a.png').write_bytes(damaged)
    with pytest.raises(InputError, match='a damaged or cut one'):
        read_image(tmp_path / 'a.png')
