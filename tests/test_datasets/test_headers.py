"""The quick reading of a header: what it finds is what Pillow finds, and what it does not find goes to Pillow."""

import io

import numpy as np
import pytest
from PIL import Image

from yolov7_simple.datasets import headers
from yolov7_simple.datasets.headers import image_size, stored_size
from yolov7_simple.runtime.errors import DamagedImageError


def encode(format, size=(50, 40), mode='RGB', **options):
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((size[1], size[0], 3), np.uint8)).convert(mode).save(buffer, format, **options)
    return buffer.getvalue()


def exif(orientation):
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


@pytest.mark.parametrize(
    ('format', 'options'),
    [
        ('JPEG', {}),
        ('JPEG', {'progressive': True}),
        ('JPEG', {'mode': 'L', 'comment': bytes(60000), 'icc_profile': b'\xff\xc0' * 50000}),
        ('JPEG', {'mode': 'CMYK'}),
        ('PNG', {}),
        ('PNG', {'mode': 'P'}),
    ],
)
def test_the_size_is_found_without_pillow(format, options, monkeypatch):
    data = encode(format, **options)
    assert stored_size(data) == (50, 40)
    monkeypatch.setattr(headers, 'read_header', None)
    assert image_size('a', data) == (50, 40)


def test_a_header_that_is_not_plain_is_left_to_pillow():
    data = encode('JPEG')
    # Fill bytes before a marker are allowed. Read as a length, they would lead to anywhere.
    anywhere = 2 + 2 + 0xE000
    filled = data[:2] + b'\xff' + data[2:]
    filled = filled[:anywhere].ljust(anywhere, b'\0') + b'\xff\xc0\0\x11\x08\xff\xff\xff\xff\x03'
    assert stored_size(filled) is None
    for other in (data[:2], data[:100], data[:2] + data[-2:], encode('PNG')[:20], encode('BMP'), encode('WEBP'), b''):
        assert stored_size(other) is None
        size = image_size('a', other)
        assert size is None or size[1] == 40
    for format in ('JPEG', 'PNG'):
        turned = encode(format, exif=exif(6))
        assert stored_size(turned) is None and image_size('a', turned) == (40, 50)


@pytest.mark.parametrize('size', [(60000, 60000), (1, 101), (101, 1)])
@pytest.mark.parametrize('format', ['JPEG', 'PNG', 'BMP'])
def test_absurd_dimensions_are_refused_in_each_format(format, size):
    data = bytearray(encode(format))
    width, height = size
    if format == 'JPEG':
        i = data.index(b'\xff\xc0') + 5
        data[i : i + 4] = height.to_bytes(2, 'big') + width.to_bytes(2, 'big')
    elif format == 'PNG':
        data[16:24] = width.to_bytes(4, 'big') + height.to_bytes(4, 'big')
    else:
        data[18:26] = width.to_bytes(4, 'little') + height.to_bytes(4, 'little')
    with pytest.raises(DamagedImageError, match=r'a\.file (claims to have more than 179 million|is \d+ x \d+) pix'):
        image_size('a.file', bytes(data))
