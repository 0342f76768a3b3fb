import errno
import json
import os

import numpy as np
import pytest

from yolov7_simple.runtime import coco_stream
from yolov7_simple.runtime.coco_stream import CocoStream, RecordFile
from yolov7_simple.runtime.errors import OutputError
from yolov7_simple.runtime.results import CocoResults

ONE = np.array([[1.0, 2.0, 4.0, 8.0]]), np.array([0.5]), np.array([1])
NONE = np.zeros((0, 4)), np.zeros(0), np.zeros(0, int)


def full_disk(monkeypatch, room):
    """From now on, only so many bytes fit."""
    write, left = RecordFile.write, [room]

    def write_some(self, data):
        if len(data) > left[0]:
            write(self, data[: left[0]])
            left[0] = 0
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        left[0] -= len(data)
        write(self, data)

    monkeypatch.setattr(RecordFile, 'write', write_some)


def test_the_file_is_as_if_it_had_been_in_memory(tmp_path):
    results, stream = CocoResults(['a', 'Ä']), CocoStream(tmp_path / 'out.json', ['a', 'Ä'])
    with stream:
        for i, found in enumerate([NONE, ONE, ONE, NONE]):
            for one in (results, stream):
                one.add(f'图{i}.jpg', (10, 20), *found)
    assert json.loads((tmp_path / 'out.json').read_text('utf-8')) == results.content
    assert (stream.num_images, stream.num_annotations) == (4, 2)
    assert stream.content['annotations'] == [], 'nothing is kept in memory'
    assert [path.name for path in tmp_path.iterdir()] == ['out.json']


@pytest.mark.parametrize('error', [RuntimeError, KeyboardInterrupt])
def test_what_there_was_before_an_error_is_kept(tmp_path, error):
    (tmp_path / 'out.json').write_text('of before')
    with pytest.raises(error), CocoStream(tmp_path / 'out.json', ['a', 'b']) as stream:
        stream.add('x.jpg', (10, 20), *ONE)
        raise error
    content = json.loads((tmp_path / 'out.json').read_text())
    assert len(content['images']) == len(content['annotations']) == 1
    assert [path.name for path in tmp_path.iterdir()] == ['out.json']


@pytest.mark.parametrize('room', [0, 50, 150, 200])  # within annotations and within images
def test_a_full_disk_costs_the_last_image_alone(tmp_path, monkeypatch, room):
    with CocoStream(tmp_path / 'out.json', ['a', 'b']) as stream:
        for i in range(20):
            stream.add(f'{i}.jpg', (10, 20), *ONE)
        with monkeypatch.context() as context, pytest.raises(OutputError) as caught:
            full_disk(context, room)
            for i in range(20, 22):
                stream.add(f'{i}.jpg', (10, 20), *ONE)
    assert caught.value.is_full and 'out.json: cannot be written: No space left' in str(caught.value)
    content = json.loads((tmp_path / 'out.json').read_text())
    assert 20 <= len(content['images']) == len(content['annotations']) < 22


def test_the_images_make_room_for_themselves_at_the_end(tmp_path, monkeypatch):
    with CocoStream(tmp_path / 'out.json', ['a', 'b']) as stream:
        for i in range(20):
            stream.add(f'{i}.jpg', (10, 20), *ONE)

        def fail(*_):
            raise OSError(errno.ENOSPC, 'full')

        monkeypatch.setattr(coco_stream.shutil, 'copyfileobj', fail)
    content = json.loads((tmp_path / 'out.json').read_text())
    assert len(content['images']) == len(content['annotations']) == 20


def test_names_that_are_not_text_are_escaped(tmp_path):
    with CocoStream(tmp_path / 'out.json', ['a', 'b']) as stream:
        stream.add('caf\udce9.jpg', (10, 20), *NONE)
    assert json.loads((tmp_path / 'out.json').read_bytes())['images'][0]['file_name'] == 'caf\udce9.jpg'
