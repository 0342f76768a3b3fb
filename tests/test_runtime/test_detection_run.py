"""A run over images and videos, with a detector that takes no time."""

import errno
import json
import os
import threading

import cv2
import numpy as np
import pytest
from test_runtime.test_videos import write_video

from yolov7_simple.runtime import Detections, InputError
from yolov7_simple.runtime import images as images_module
from yolov7_simple.runtime.detect import DetectionRun
from yolov7_simple.runtime.errors import OutputError
from yolov7_simple.runtime.outputs import ResultFiles
from yolov7_simple.runtime.sources import find_sources
from yolov7_simple.runtime.videos import Video, VideoFile

BOXES = np.array([[10, 5, 30.4, 25], [0, 0, 64, 48], [-3, -3, 5, 5], [60, 40, 70, 60]], np.float32).clip(
    0, [64, 48] * 2
)


class Stub:
    """Find the same four boxes, of falling scores, in each image."""

    classes = ('dog', 'a/b')
    score_threshold, iou_threshold = 0.001, 0.65

    def __call__(self, images):
        scores = np.array([0.9, 0.5, 0.15, 0.01], np.float32)
        return [Detections(BOXES, scores, np.array([0, 1, 1, 0])) for _ in images]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / 'in').mkdir()
    return tmp_path / 'in'


def write_picture(path, value=128):
    path.parent.mkdir(parents=True, exist_ok=True)
    (data,) = cv2.imencode('.png', np.full((48, 64, 3), value, np.uint8))[1:]
    path.write_bytes(data)
    return str(path)


def detect(inputs, out, stop=None, annotation_file=None, keep_thr=None, detector=None, batch_size=1, **options):
    """The finished run, its messages, and the content of its JSON."""
    messages = []
    run = DetectionRun(
        *(detector or Stub(), ResultFiles(out, **options), keep_thr, annotation_file, batch_size),
        report=messages.append,
        stop=stop,
    )
    for _ in run.run(find_sources(list(map(str, inputs)))[0]):
        pass
    return run, messages, json.loads((out / 'detections.json').read_text())


def listing(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob('*') if path.is_file())


@pytest.mark.parametrize(
    ('options', 'kept'), [({}, 3), ({'score_thr': 0.001}, 4), ({'keep_thr': 0.4}, 2), ({'keep_thr': 0.0}, 4)]
)
def test_weak_detections_are_not_kept(folder, tmp_path, options, kept):
    _, _, content = detect([write_picture(folder / 'a.png')], tmp_path / 'out', **options)
    assert len(content['annotations']) == kept


def test_an_evaluation_has_all_and_finds_images_by_the_ends_of_their_paths(folder, tmp_path, monkeypatch):
    names = ['a/x.png', 'b/x.png', 'y.png']
    images = [{'id': 7 + i, 'file_name': name} for i, name in enumerate(names)]
    categories = [{'id': 3, 'name': 'dog'}, {'id': 4, 'name': 'a/b'}]
    (tmp_path / 'ann.json').write_text(json.dumps({'images': images, 'categories': categories}))
    inputs = [write_picture(folder / name) for name in (*names, 'c/y.png', 'd/x.png')]
    run, messages, content = detect(inputs, tmp_path / 'out', annotation_file=tmp_path / 'ann.json')
    assert [image['id'] for image in content['images']] == [7, 8, 9] and len(content['annotations']) == 12
    assert len(messages) == len(run.failed) == 2
    assert 'another input was this image' in messages[0] and 'not among the images' in messages[1]


def test_no_two_inputs_have_one_picture(folder, tmp_path):
    names = ['a/x.png', 'b/x.png', 'x.tif', 'x.tif.png', 'X.PNG', 'x.bmp', '物' * 80 + '.png', 'n' * 250 + '.tif']
    inputs = [write_picture(folder / name) for name in (*names, 'caf\udce9.png')]
    run, messages, content = detect(inputs, tmp_path / 'out', with_labels=True, with_crops=True)
    assert not messages and not run.failed
    files = listing(tmp_path / 'out')
    assert sum(name.startswith('pictures/') for name in files) == len(inputs)
    assert sum(name.startswith('labels/') for name in files) == len(inputs)
    assert sum(name.startswith('crops/dog/') for name in files) == len(inputs)
    assert not [name for name in files if '.part' in name]
    assert len({image['file_name'] for image in content['images']}) == len(inputs)
    assert names[-1] in [image['file_name'] for image in content['images']]


def test_labels_and_crops(folder, tmp_path):
    inputs = [write_picture(folder / 'a.png'), write_video(folder / 'v.avi', 2)]
    detect(inputs, tmp_path / 'out', with_scores=True, with_crops=True, with_pictures=False)
    assert listing(tmp_path / 'out') == [
        *(f'crops/a_b/{name}_1.jpg' for name in ('a', 'v/000000', 'v/000001')),
        *(f'crops/dog/{name}_0.jpg' for name in ('a', 'v/000000', 'v/000001')),
        'detections.json',
        *(f'labels/{name}.txt' for name in ('a', 'v/000000', 'v/000001')),
    ]
    rows = (tmp_path / 'out/labels/a.txt').read_text().splitlines()
    assert rows == ['0 0.315625 0.312500 0.318750 0.416667 0.900000', '1 0.500000 0.500000 1.000000 1.000000 0.500000']
    assert cv2.imread(str(tmp_path / 'out/crops/dog/a_0.jpg')).shape == (20, 21, 3)
    detect(inputs[:1], tmp_path / 'five', with_labels=True)
    assert (tmp_path / 'five/labels/a.txt').read_text().splitlines()[0] == rows[0][:-9]


def test_a_picture_that_cannot_be_written_costs_itself_alone(folder, tmp_path):
    (tmp_path / 'out/pictures/b.png').mkdir(parents=True)
    inputs = [write_picture(folder / f'{name}.png') for name in 'abc']
    run, messages, content = detect(inputs, tmp_path / 'out')
    assert len(content['images']) == 3 and listing(tmp_path / 'out') == [
        'detections.json',
        'pictures/a.png',
        'pictures/c.png',
    ]
    (message,) = messages
    assert 'b.png: cannot be written: Is a directory' in message and len(run.failed) == 1


def test_a_full_disk_stops_the_pictures_and_not_the_detections(folder, tmp_path, monkeypatch):
    write_bytes = type(tmp_path).write_bytes

    def full(path, data):
        write_bytes(path, data[:50])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    inputs = [write_picture(folder / f'{i}.png') for i in range(20)]
    monkeypatch.setattr(images_module.Path, 'write_bytes', full)
    _, messages, content = detect(inputs, tmp_path / 'out')
    assert len(content['images']) == 20 and listing(tmp_path / 'out') == ['detections.json']
    assert len(messages) == 1 and 'No space left on device; no more pictures are written' in messages[0]


def test_an_error_within_the_detector_keeps_what_was_found(folder, tmp_path):
    class Failing(Stub):
        left = 2

        def __call__(self, images):
            self.left -= 1
            if self.left < 0:
                raise RuntimeError('out of memory')
            return super().__call__(images)

    inputs = [write_picture(folder / f'{i}.png') for i in range(9)]
    with pytest.raises(RuntimeError, match='out of memory'):
        detect(inputs, tmp_path / 'out', detector=Failing())
    assert len(json.loads((tmp_path / 'out/detections.json').read_text())['images']) == 2


@pytest.mark.parametrize('batch_size', [1, 3, 20])
def test_the_frames_of_a_video_keep_their_order(folder, tmp_path, batch_size):
    run, messages, content = detect([write_video(folder / 'v.avi')], tmp_path / 'out', batch_size=batch_size)
    assert [image['file_name'] for image in content['images']] == [f'v.avi/{i:06d}' for i in range(12)]
    corners = [frame[-3:, :60].mean() for frame in Video(tmp_path / 'out/videos/v.avi.mp4')]
    assert len(corners) == 12 and (np.diff(corners) > 0).all() and not messages
    assert run.summary().startswith('36 detections in 12 images: ') and ' a second' in run.summary()


def test_a_video_that_cannot_be_written_costs_no_detections(folder, tmp_path, monkeypatch):
    def fail(self, frame):
        raise OutputError('v.mp4', 'no codec')

    monkeypatch.setattr(VideoFile, 'write', fail)
    run, messages, content = detect([write_video(folder / 'v.avi')], tmp_path / 'out')
    assert len(content['images']) == 12 and messages == ['v.mp4: cannot be written: no codec'] and len(run.failed) == 1


def test_a_stop_leaves_whole_files(folder, tmp_path):
    stop = threading.Event()

    class Stopping(Stub):
        left = 5

        def __call__(self, images):
            self.left -= 1
            if self.left == 0:
                stop.set()
            return super().__call__(images)

    inputs = [write_picture(folder / 'a.png'), write_video(folder / 'v.avi'), write_picture(folder / 'z.png')]
    run, messages, content = detect(inputs, tmp_path / 'out', stop, detector=Stopping())
    assert run.was_cut and len(content['images']) == 5
    assert listing(tmp_path / 'out') == ['detections.json', 'pictures/a.png', 'videos/v.avi.partial.mp4']
    assert len(list(Video(tmp_path / 'out/videos/v.avi.partial.mp4'))) == 4
    assert 'not whole' in messages[0]


@pytest.mark.parametrize(('name', 'is_folder'), [('detections.json', True), ('pictures', False), ('videos', False)])
def test_what_is_in_the_way_is_said_before_the_work(tmp_path, name, is_folder):
    (tmp_path / name).mkdir() if is_folder else (tmp_path / name).touch()
    with pytest.raises(InputError, match=name):
        ResultFiles(tmp_path)
