"""Image files by the hundred, cut, corrupted, disguised or absurd: each is read, or refused by its name, at once.

`YOLOV7_FUZZ=2000 python -m pytest tests/test_datasets/test_fuzz_images.py` draws 2000 files, new ones each time.
"""

import io
import os
import resource

import cv2
import numpy as np
import pytest
from conftest import png_bomb
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from PIL import Image

from yolov7_simple.datasets.headers import image_size
from yolov7_simple.datasets.loading import CheckImageFile, decode_image
from yolov7_simple.datasets.mosaic import MosaicAffineMixUp
from yolov7_simple.runtime.errors import DamagedImageError

NUM_FILES = int(os.environ.get('YOLOV7_FUZZ', 0))
OTHERS = (
    b'',
    b'\xff\xd8',
    b'\xff\xd8\xff\xd9',
    b'\x89PNG\r\n\x1a\n',
    b'<html><body>404 Not Found</body></html>',
    b'<svg xmlns="http://www.w3.org/2000/svg" width="10" height="10"/>',
    b'PK\x03\x04' + bytes(100),
    b'%PDF-1.7',
    b'P6 99999999 99999999 255\n' + bytes(100),
    b'P6 0 0 255\n',
    b'BM' + b'\xff' * 60,
    bytes(5000),
)
SIZES = st.sampled_from([0, 1, 2, 7, 100, 65535, 30000, 2**20, 2**31 - 1])


def encode(format, rng):
    height, width = rng.integers(1, 120, 2)
    smooth = cv2.resize(rng.integers(0, 256, (4, 5, 3), np.uint8), (int(width), int(height)))
    buffer = io.BytesIO()
    Image.fromarray(smooth).save(buffer, format)
    return buffer.getvalue()


FORMATS = ['JPEG', 'PNG', 'BMP', 'TIFF', 'WEBP', 'PPM']
# OpenCV 5 reads it, 4.11 does not.
if cv2.imdecode(np.frombuffer(encode('GIF', np.random.default_rng(0)), np.uint8), cv2.IMREAD_COLOR) is not None:
    FORMATS.append('GIF')


@st.composite
def image_files(draw):
    """Bytes of a file, and the kind of it."""
    kind = draw(st.sampled_from(('whole', 'cut', 'bytes', 'zeros', 'longer', 'other', 'absurd')))
    if kind == 'other':
        return draw(st.sampled_from(OTHERS)), kind
    if kind == 'absurd':
        return png_bomb(draw(SIZES), draw(SIZES)), kind
    data = encode(draw(st.sampled_from(FORMATS)), np.random.default_rng(draw(st.integers(0, 999))))
    i = draw(st.integers(0, len(data) - 1))
    if kind == 'cut':
        data = data[:i]
    elif kind == 'bytes':
        for _ in range(draw(st.integers(1, 8))):
            i = draw(st.integers(0, min(len(data) - 1, draw(st.sampled_from((60, 10**6))))))
            data = data[:i] + draw(st.binary(min_size=1, max_size=4)) + data[i + 1 :]
    elif kind == 'zeros':
        data = data[:i] + bytes(len(data) - i)
    elif kind == 'longer':
        data += draw(st.binary(max_size=50))
    return data, kind


def info(path, size=(64, 48)):
    return {
        'img_path': str(path),
        'width': size[0],
        'height': size[1],
        'gt_bboxes': np.float32([[4, 4, 40, 40]]),
        'gt_bboxes_labels': np.array([0]),
        'gt_ignore_flags': np.array([False]),
    }


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('images')
    cv2.imwrite(str(folder / 'good.jpg'), np.full((48, 64, 3), 128, np.uint8))
    return folder


@settings(
    max_examples=NUM_FILES or 300,
    derandomize=not NUM_FILES,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
@given(file=image_files(), reduction=st.sampled_from((1, 2, 4, 8)), closed=st.booleans(), seed=st.integers(0, 99))
def test_any_file_is_read_or_refused_by_name(folder, file, reduction, closed, seed):
    data, kind = file
    path = folder / 'image.jpg'  # whatever the format
    path.write_bytes(data)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        image = decode_image(str(path), reduction)
    except DamagedImageError as error:
        event(f'{kind} refused')
        assert kind != 'whole'
        assert str(path) in str(error)
        # A training sample with this file must raise the same error and no other.
        with pytest.raises(DamagedImageError):
            sample(path, closed, seed)
    else:
        event(f'{kind} read')
        assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3 and image.size
        if kind == 'whole':
            assert image.shape[:2] == tuple(-(-side // reduction) for side in reversed(image_size(str(path))))
        assert CheckImageFile().transform({'img_path': str(path)})
        assert sample(path, closed, seed)['img'].shape == (64, 96, 3)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 600e3  # kB: 0.5 GB are allowed


def sample(path, closed, seed):
    """A training sample that shows all of this file."""
    np.random.seed(seed)
    fixed = {'scaling_ratio_range': (0.5, 0.5), 'max_translate_ratio': 0.0, 'center_ratio_range': (1, 1)}
    transform = MosaicAffineMixUp((96, 64), mixup_prob=0.0, max_shear_degree=0.0, **fixed)
    transform.close(closed)
    good = path.parent / 'good.jpg'
    return transform.transform({**info(path), 'mix_results': [] if closed else [info(good) for _ in range(3)]})


@pytest.mark.parametrize('pillow_limit', [Image.MAX_IMAGE_PIXELS, None])
@pytest.mark.parametrize('size', [(30000, 30000), (65535, 65535), (60000, 10), (1, 101)])
def test_absurd_dimensions_are_refused_before_they_are_decoded(folder, monkeypatch, size, pillow_limit):
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', pillow_limit)  # SAHI's import makes it None
    path = folder / 'bomb.png'
    path.write_bytes(png_bomb(*size))
    for read in (decode_image, image_size, lambda path: CheckImageFile().transform({'img_path': path})):
        with pytest.raises(
            DamagedImageError, match=r'bomb\.png (claims to have more than 179 million|is \d+ x \d+) pix'
        ):
            read(str(path))
