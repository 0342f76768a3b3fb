from pathlib import Path

import cv2
import numpy as np
import pytest

from yolov7_simple.runtime import InputError
from yolov7_simple.runtime.errors import OutputError
from yolov7_simple.runtime.videos import Video, VideoFile


def frame(i, size=(64, 48)):
    return np.full((*size[::-1], 3), 10 * i, np.uint8)


def write_video(path, count=12, fourcc='MJPG'):
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*fourcc), 5, (64, 48))
    for i in range(count):
        writer.write(frame(i))
    writer.release()
    return path


@pytest.mark.parametrize(
    ('name', 'fourcc'),
    [('a.avi', 'MJPG'), ('a.mp4', 'mp4v'), ('a.mkv', 'MJPG'), ('a.wmv', 'WMV2'), ('a.flv', 'FLV1'), ('a.ts', 'mp4v')],
)
def test_whole_videos_have_no_shortfall(tmp_path, name, fourcc):
    video = Video(write_video(tmp_path / name, fourcc=fourcc))
    means = [image.mean() for image in video]
    np.testing.assert_allclose(means, 10 * np.arange(12), atol=4)
    assert video.shortfall is None and not video.is_live and not video.is_single
    if not name.endswith('ts'):
        assert video.rate == 5


def test_a_video_that_was_cut_says_so_after_its_last_frame(tmp_path):
    path, random = tmp_path / 'a.avi', np.random.default_rng(0)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*'MJPG'), 5, (320, 240))
    for _ in range(12):
        writer.write(random.integers(0, 255, (240, 320, 3), np.uint8))
    writer.release()
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 6 // 10])
    video = Video(path)
    count = len(list(video))
    assert 3 < count < 9 and f'a.avi: ends after {count} of 12 frames: it is cut short' in video.shortfall


@pytest.mark.parametrize('name', ['caf\udce9.avi', 'a:b.avi', '100%.avi', 'x_001.avi'])
def test_names_do_not_matter(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    write_video('a.avi', 3)
    (tmp_path / 'a.avi').rename(name)
    assert len(list(Video(Path(name)))) == 3


def test_what_is_no_video_is_refused(tmp_path):
    (tmp_path / 'a.mp4').write_text('text')
    with pytest.raises(InputError, match=r'a\.mp4: not a video'):
        Video(tmp_path / 'a.mp4')
    with pytest.raises(InputError, match='no such file'):
        Video(tmp_path / 'b.mp4')
    with pytest.raises(InputError, match='megapixels'):
        Video(write_video(tmp_path / 'c.avi'), max_megapixels=0.001)


def test_frames_of_other_sizes_are_resized(tmp_path):
    file = VideoFile(tmp_path / 'videos/out.mp4', 5)
    for i, size in enumerate([(64, 48), (32, 24), (64, 48)]):
        file.write(frame(i, size))
    assert file.close() == tmp_path / 'videos/out.mp4'
    assert [image.shape for image in Video(tmp_path / 'videos/out.mp4')] == [(48, 64, 3)] * 3
    assert len(list((tmp_path / 'videos').iterdir())) == 1


def test_what_is_not_whole_does_not_keep_its_name(tmp_path):
    file = VideoFile(tmp_path / 'out.mp4', 5)
    file.write(frame(0))
    assert file.close(is_whole=False) == tmp_path / 'out.partial.mp4'
    file = VideoFile(tmp_path / 'out.mp4', 5)
    for i in range(3):
        file.write(frame(i))
    file._writer.release()
    file._temporary.write_bytes(file._temporary.read_bytes()[:300])  # as a full disk does
    with pytest.raises(OutputError, match=r'0 of 3 frames arrived there; is the disk full\?'):
        file.close()
    assert [path.name for path in tmp_path.iterdir()] == ['out.partial.mp4']
    assert VideoFile(tmp_path / 'none.mp4', 5).close() is None
    (tmp_path / 'file').touch()
    file = VideoFile(tmp_path / 'file/out.mp4', 5)
    with pytest.raises(InputError, match='cannot be made a folder'):
        file.write(frame(0))
    file.write(frame(1))  # said once
