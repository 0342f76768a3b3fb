import http.server
import threading
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
from test_runtime.test_videos import write_video

from yolov7_simple.runtime import InputError
from yolov7_simple.runtime.sources import InputSource, find_sources, name_of, open_input, without_password
from yolov7_simple.runtime.videos import Video

# Three frames and one, of 4 x 4 pixels.
HEAD = b'GIF89a\x04\x00\x04\x00\x80\x00\x00\x00\x00\x00\xff\xff\xff!\xff\x0bNETSCAPE2.0\x03\x01\x00\x00\x00'
PICTURE = b'!\xf9\x04\x04\x0a\x00\x00\x00,\x00\x00\x00\x00\x04\x00\x04\x00\x00\x02\x04\x84\x8f\x09\x05\x00'


@pytest.fixture
def folder(tmp_path):
    for name in ('a.jpg', 'sub/b.jpg', 'notes.txt', 'c.HEIC'):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(cv2.imencode('.jpg', np.zeros((8, 8, 3), np.uint8))[1])
    (tmp_path / 'gone.png').symlink_to('nowhere')
    (tmp_path / 'empty').mkdir()
    return tmp_path


def test_folders_say_what_they_leave_out(folder):
    sources, problems, notes = find_sources([str(folder)])
    assert [source.address for source in sources] == [folder / 'a.jpg'] and not problems
    (note,) = notes
    for part in (
        '1 x .txt',
        '1 x .heic',
        '1 x link that leads nowhere',
        '2 x folder within',
        'convert',
        f'{folder}/**',
    ):
        assert part in note, note
    sources, problems, notes = find_sources([f'{folder}/**'])
    assert [source.name for source in sources] == ['a.jpg', 'b.jpg'] and not problems
    assert '1 x .txt' in notes[0]


def test_what_names_nothing_does_not_stop_the_rest(folder, monkeypatch):
    monkeypatch.chdir(folder)
    sources, problems, _ = find_sources([str(folder / 'empty'), 'none*.jpg', '', 'a.jpg', './a.jpg'])
    assert [source.name for source in sources] == ['a.jpg']
    assert len(problems) == 3 and 'no file in this folder' in problems[0] and 'no file fits' in problems[1]
    assert problems[2].startswith("'' is not a path")
    (folder / 'deep/er').mkdir(parents=True)
    (problem,) = find_sources(['deep'])[1]
    assert "name the pattern 'deep/**'" in problem


def test_cameras_and_addresses(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    urls = ['rtsp://user:secret@host/stream?x=1', 'http://host/a/b.jpg', 'https://host/clip.mp4']
    sources, problems, _ = find_sources(['0', *urls, '0'])
    assert not problems
    assert [source.address for source in sources] == [0, *urls]
    assert [source.name for source in sources] == ['camera0', 'host_stream', 'host_a_b.jpg', 'host_clip.mp4']
    assert [source.may_be_video for source in sources] == [True, True, False, True]
    assert 'secret' not in str(sources[1]) and 'secret' not in sources[1].name
    (tmp_path / '0').write_text('')
    assert find_sources(['0'])[0][0].address == Path('0')
    assert name_of('http://[::1]:80/') == '1_80' and without_password('http://a@b/c@d') == 'http://b/c@d'


def test_files_are_opened_by_what_they_hold(folder):
    gif, still = folder / 'a.gif', folder / 'b.gif'
    gif.write_bytes(HEAD + PICTURE * 3 + b';')
    still.write_bytes(HEAD + PICTURE + b';')
    video = open_input(InputSource(gif, 'a.gif'), None)
    assert isinstance(video, Video) and len(list(video)) == 3
    assert open_input(InputSource(still, 'b.gif'), None).shape == (4, 4, 3)
    write_video(folder / 'a.avi', 3).rename(folder / 'a.xyz')
    assert len(list(open_input(InputSource(folder / 'a.xyz', 'a'), None))) == 3
    (folder / 'c.heic').write_text('ftypheic')
    with pytest.raises(InputError, match='convert it to JPEG or PNG first'):
        open_input(InputSource(folder / 'c.heic', 'c'), None)
    with pytest.raises(InputError, match='camera 97: not a camera'):
        open_input(InputSource(97, 'camera97'), None)


def test_addresses_are_read(folder):
    image = np.random.default_rng(0).integers(0, 255, (8, 8, 3), np.uint8)
    cv2.imwrite(str(folder / 'a.png'), image)
    write_video(folder / 'a.avi', 3)
    (folder / 'notes.txt').write_text('text')

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), partial(Quiet, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        host = f'http://127.0.0.1:{server.server_address[1]}'
        assert (open_input(InputSource(f'{host}/a.png', 'a'), None) == image).all()
        assert len(list(open_input(InputSource(f'{host}/a.avi', 'a'), None))) == 3
        with pytest.raises(InputError, match=r'none\.png: cannot be fetched: .*ot .ound'):
            open_input(InputSource(f'{host}/none.png', 'a'), None)
        with pytest.raises(InputError, match=r'notes\.txt: not a video'):
            open_input(InputSource(f'{host}/notes.txt', 'a'), None)
        server.shutdown()
