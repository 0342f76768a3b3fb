import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import cv2
import detect as tool
import numpy as np
import pytest
from small_model import CLASSES, ROOT, build_model, export, write_images, write_model

from yolov7_simple.apis.inference import load_inferencer
from yolov7_simple.runtime import InputError, OnnxDetector, read_image
from yolov7_simple.runtime.images import MAX_MEGAPIXELS
from yolov7_simple.runtime.numpy_nms import numpy_nms
from yolov7_simple.runtime.videos import Video

KINDS = ('torch', 'onnx')


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    """Folder with small.py, small.pth, small.onnx, images/, video.mp4, and empty.mp4."""
    folder = tmp_path_factory.mktemp('detect')
    paths = write_images(folder / 'images')
    writer = cv2.VideoWriter(str(folder / 'video.mp4'), cv2.VideoWriter_fourcc(*'mp4v'), 5, (260, 200))
    for _ in range(3):
        writer.write(cv2.imread(str(paths[2])))
    writer.release()
    cv2.VideoWriter(str(folder / 'empty.mp4'), cv2.VideoWriter_fourcc(*'mp4v'), 5, (260, 200)).release()
    config, checkpoint = write_model(folder, max_per_img=30)
    model = load_inferencer(config, checkpoint, 'cpu').model
    export(model, folder / 'small.onnx', config, dynamic_size=True)
    return folder


def run_tool(monkeypatch, files, *args):
    monkeypatch.setattr(sys, 'argv', ['detect.py', *map(str, (files / 'small.py', files / 'small.pth', *args))])
    return tool.main(tool.parse_args())


BLOCK_TORCH = (
    'import runpy, sys; sys.modules.update({}); sys.argv = sys.argv[1:]; sys.path.insert(0, {!r})\n'
    'try: runpy.run_path(sys.argv[0], run_name="__main__")\n'
    'finally: print("imported:", [name for name in ("torch", "mmdet", "mmengine") if sys.modules.get(name)])'
)


def detect_onnx(*args, blocked=()):
    """Run the tool in a process of its own, with modules that cannot be imported in it."""
    code = BLOCK_TORCH.format(dict.fromkeys(blocked), str(ROOT / 'tools'))
    command = [sys.executable, '-c', code, str(ROOT / 'tools/detect.py'), *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_images_and_videos_give_pictures_and_json(files, tmp_path, monkeypatch):
    assert run_tool(monkeypatch, files, files / 'images', files / 'video.mp4', '--out-dir', tmp_path) == 0
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob('*.*')) == [
        'detections.json',
        'pictures/image0.png',
        'pictures/image1.png',
        'pictures/image2.png',
        'videos/video.mp4',
    ]
    content = json.loads((tmp_path / 'detections.json').read_text())
    names = [image['file_name'] for image in content['images']]
    assert names == ['image0.png', 'image1.png', 'image2.png', *(f'video.mp4/{i:06d}' for i in range(3))]
    inferencer = load_inferencer(files / 'small.py', files / 'small.pth', 'cpu')
    wanted = inferencer(str(files / 'images/image1.png'))['predictions'][0]
    found = [one for one in content['annotations'] if one['image_id'] == 2]
    assert len(found) == len(wanted['scores']) > 5
    np.testing.assert_allclose([one['score'] for one in found], wanted['scores'], atol=1e-5)
    x1, y1, x2, y2 = wanted['bboxes'][0]
    np.testing.assert_allclose(found[0]['bbox'], [x1, y1, x2 - x1, y2 - y1], atol=1e-2)
    frames = list(Video(tmp_path / 'videos/video.mp4'))
    assert len(frames) == 3 and frames[0].shape[1] >= 260
    assert np.abs(frames[0].astype(int) - frames[0][::-1]).mean() > 1


def test_bad_inputs_are_reported_and_the_rest_goes_on(files, tmp_path):
    bad = tmp_path / 'bad'
    bad.mkdir()
    (bad / 'text.jpg').write_text('not an image')
    (bad / 'empty.png').write_bytes(b'')
    cv2.imwrite(str(bad / 'pixel.png'), np.zeros((1, 1, 3), np.uint8))
    cv2.imwrite(str(bad / 'huge.png'), np.zeros((10000, 10000), np.uint8))
    cv2.imwrite(str(bad / 'thin.png'), np.zeros((4, 500, 3), np.uint8))
    jpeg = cv2.imencode('.jpg', cv2.imread(str(files / 'images/image2.png')))[1].tobytes()
    (bad / 'cut.jpg').write_bytes(jpeg[: len(jpeg) // 2])
    inputs = [bad, files / 'empty.mp4', tmp_path / 'none.png', files / 'images/image0.png']
    done = subprocess.run(
        [sys.executable, ROOT / 'tools/detect.py', files / 'small.py', files / 'small.pth', *inputs]  # noqa: RUF005
        + ['--out-dir', tmp_path / 'out'],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    errors = [line for line in done.stderr.splitlines() if line.startswith('error: ')]
    for name, why in {
        'text.jpg': 'not an image',
        'empty.png': 'not an image',
        'pixel.png': '1 x 1 pixels',
        'huge.png': '100 megapixels',
        'thin.png': '500 x 4 pixels',
        'cut.jpg': 'cut',
        'empty.mp4': 'without frames',
        'none.png': 'cannot be read',
    }.items():
        assert sum(name in error and why in error for error in errors) == 1, (name, done.stderr)
    assert len(errors) == 8
    assert '8 of 9 inputs could not be used' in done.stdout
    assert sorted(path.name for path in (tmp_path / 'out').rglob('*.*')) == ['detections.json', 'image0.png']


def test_an_empty_folder_is_an_error(files, tmp_path, monkeypatch):
    with pytest.raises(InputError, match='no file in this folder'):
        run_tool(monkeypatch, files, tmp_path, '--out-dir', tmp_path / 'out')
    with pytest.raises(InputError, match='no file fits'):
        run_tool(monkeypatch, files, tmp_path / '*.jpg', '--out-dir', tmp_path / 'out')
    assert not list(tmp_path.iterdir())


def test_an_empty_folder_does_not_stop_the_rest(files, tmp_path):
    (tmp_path / 'empty').mkdir()
    done = detect_onnx(files / 'small.onnx', tmp_path / 'empty', files / 'images', '--out-dir', tmp_path / 'out')
    assert done.returncode == 1 and 'error: ' in done.stderr and 'no file in this folder' in done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].endswith(f' detections in 3 images: {tmp_path / "out/detections.json"}')
    assert re.fullmatch(r'3 images in [0-9.]+ s, [0-9.]+ a second; 1 of 4 inputs could not be used', lines[1])


def test_labels_and_crops_are_written(files, tmp_path):
    options = '--save-txt', '--save-crops', '--no-pictures', '--out-dir', tmp_path
    assert detect_onnx(files / 'small.onnx', files / 'images/image1.png', *options).returncode == 0
    rows = np.loadtxt(tmp_path / 'labels/image1.txt', ndmin=2)
    assert rows.shape[1] == 5 and (rows[:, 1:] >= 0).all() and (rows[:, 1:] <= 1).all()
    assert len(list((tmp_path / 'crops').rglob('image1_*.jpg'))) == len(rows) > 0
    assert not (tmp_path / 'pictures').exists()


def test_ctrl_c_leaves_whole_files(files, tmp_path):
    """One signal, while a video is being read, of which the rest is never seen."""
    writer = cv2.VideoWriter(str(tmp_path / 'long.mp4'), cv2.VideoWriter_fourcc(*'mp4v'), 5, (260, 200))
    for _ in range(3000):
        writer.write(np.zeros((200, 260, 3), np.uint8))
    writer.release()
    command = [sys.executable, ROOT / 'tools/detect.py', files / 'small.onnx', tmp_path / 'long.mp4']
    process = subprocess.Popen(
        [*command, '--out-dir', tmp_path / 'out'], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while process.poll() is None and not list(tmp_path.glob('out/videos/.*')):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and 'Traceback' not in errors, errors
    count = len(json.loads((tmp_path / 'out/detections.json').read_text())['images'])
    assert 0 < count < 3000 and f'in {count} images' in output
    assert len(list(Video(tmp_path / 'out/videos/long.partial.mp4'))) == count
    assert not list((tmp_path / 'out').rglob('.*'))


def test_slices_find_what_is_small_in_a_large_image(files, tmp_path, monkeypatch):
    image = np.full((400, 520, 3), 114, np.uint8)
    small = cv2.imread(str(files / 'images/image0.png'))
    image[300 : 300 + small.shape[0], 380 : 380 + small.shape[1]] = small
    cv2.imwrite(str(tmp_path / 'large.png'), image)
    counts = {}
    for name, options in {'whole': [], 'sliced': ['--slice', 128]}.items():
        out = tmp_path / name
        run_tool(monkeypatch, files, tmp_path / 'large.png', '--out-dir', out, '--score-thr', 0.6, *options)
        boxes = [one['bbox'] for one in json.loads((out / 'detections.json').read_text())['annotations']]
        inside = [x > 370 and y > 290 and x + w <= 520 and y + h <= 400 and max(w, h) < 60 for x, y, w, h in boxes]
        counts[name] = sum(inside)
    assert counts['sliced'] > counts['whole']


@pytest.mark.parametrize('blocked', [(), ('torch', 'mmdet', 'mmengine', 'mmcv', 'rich', 'PIL', 'yaml')])
def test_an_onnx_file_needs_no_torch_and_bad_images_are_reported(files, tmp_path, blocked):
    detector = OnnxDetector(files / 'small.onnx')
    (tmp_path / 'bad.jpg').write_text('not an image')
    inputs = files / 'images', tmp_path / 'bad.jpg', tmp_path / 'none.jpg'
    done = detect_onnx(files / 'small.onnx', *inputs, '--out-dir', tmp_path / 'out', blocked=blocked)
    assert done.returncode == 1, done.stderr
    assert 'imported: []' in done.stdout
    assert 'bad.jpg: not an image' in done.stderr and 'none.jpg: cannot be read' in done.stderr
    content = json.loads((tmp_path / 'out/detections.json').read_text())
    assert [image['file_name'] for image in content['images']] == ['image0.png', 'image1.png', 'image2.png']
    assert [category['name'] for category in content['categories']] == list(CLASSES)
    boxes, scores, _ = detector([read_image(files / 'images/image1.png')])[0]
    found = [one for one in content['annotations'] if one['image_id'] == 2]
    np.testing.assert_allclose([one['score'] for one in found], scores, atol=1e-5)
    x, y, width, height = found[0]['bbox']
    np.testing.assert_allclose([x, y, x + width, y + height], boxes[0], atol=1e-2)
    for name in ('image0.png', 'image1.png', 'image2.png'):
        drawn = read_image(tmp_path / 'out/pictures' / name)
        assert drawn.shape[0] >= read_image(files / 'images' / name).shape[0]


def test_both_kinds_of_model_give_the_same_files(files, tmp_path, monkeypatch):
    inputs = files / 'images', files / 'video.mp4'
    assert run_tool(monkeypatch, files, *inputs, '--out-dir', tmp_path / 'torch', '--batch-size', 2) == 0
    done = detect_onnx(files / 'small.onnx', *inputs, '--out-dir', tmp_path / 'onnx', '--batch-size', 2)
    assert done.returncode == 0, done.stderr
    names = [sorted(path.relative_to(tmp_path / kind) for path in (tmp_path / kind).rglob('*')) for kind in KINDS]
    assert names[0] == names[1] and len(names[0]) == 7
    content = [json.loads((tmp_path / kind / 'detections.json').read_text()) for kind in KINDS]
    assert content[0]['images'] == content[1]['images'] and len(content[0]['images']) == 6
    scores = [[one['score'] for one in of_kind['annotations']] for of_kind in content]
    np.testing.assert_allclose(*scores, atol=1e-5)
    assert len(scores[0]) > 50


def test_tracks_are_the_same_for_both_kinds_of_model(files, tmp_path, monkeypatch):
    """Three frames of one picture: what is found in all of them is one track, from the second one on."""
    pytest.importorskip('trackers')
    options = files / 'video.mp4', '--track', '--score-thr', 0.6, '--out-dir'
    assert run_tool(monkeypatch, files, *options, tmp_path / 'torch') == 0
    done = detect_onnx(
        files / 'small.onnx', *options, tmp_path / 'onnx', blocked=('torch', 'mmdet', 'mmengine', 'mmcv')
    )
    assert done.returncode == 0, done.stderr
    found = [json.loads((tmp_path / kind / 'detections.json').read_text())['annotations'] for kind in KINDS]
    tracks = [[one.get('track_id') for one in of_kind] for of_kind in found]
    assert tracks[0] == tracks[1]
    first, second, third = ([one for one in found[0] if one['image_id'] == i] for i in (1, 2, 3))
    assert not any('track_id' in one for one in first)
    places = {one['track_id']: np.array(one['bbox']) for one in second if 'track_id' in one}
    assert len(places) > 5 and sorted(places) == list(range(1, len(places) + 1))
    kept = [one for one in third if one.get('track_id') in places]
    assert len(kept) > 0.9 * len(places)
    assert all(np.abs(places[one['track_id']] - one['bbox']).max() < 8 for one in kept)
    frames = list(Video(tmp_path / 'onnx/videos/video.mp4'))
    assert np.abs(frames[0].astype(int) - frames[1]).mean() > 1  # grey, then colours


def test_one_object_one_box(files, tmp_path, monkeypatch):
    path = files / 'images/image2.png'
    inferencer = load_inferencer(files / 'small.py', files / 'small.pth', 'cpu')
    scores = []
    for name, flag in (('classes', []), ('objects', ['--agnostic-nms'])):
        run_tool(monkeypatch, files, path, '--no-pictures', '--out-dir', tmp_path / name, *flag)
        found = json.loads((tmp_path / name / 'detections.json').read_text())['annotations']
        scores.append([one['score'] for one in found])
        inferencer.model.bbox_head.test_cfg.nms.class_agnostic = bool(flag)
        assert scores[-1] == pytest.approx(inferencer(str(path))['predictions'][0]['scores'], abs=1e-5)
    assert scores[0] != scores[1]
    counts = []
    for agnostic in (False, True):
        boxes, values, labels = OnnxDetector(files / 'small.onnx', agnostic_nms=agnostic)([read_image(path)])[0]
        counts.append(len(boxes) - len(numpy_nms(boxes, values, 0 * labels, 0.5)))
    assert counts[0] > counts[1] == 0


def test_tracks_need_videos_and_the_package(files, tmp_path, monkeypatch):
    pytest.importorskip('trackers')
    for inputs in ([files / 'images'], [files / 'video.mp4', files / 'images/image0.png']):
        with pytest.raises(InputError, match=r'--track follows objects .* these are none: .*image0\.png'):
            run_tool(monkeypatch, files, *inputs, '--track', '--out-dir', tmp_path / 'out')
    done = detect_onnx(files / 'none.onnx', files / 'video.mp4', '--track', blocked=('trackers',))
    assert done.returncode == 1 and 'error: --track needs the trackers package: pip install trackers' in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['small.onnx', 'images', '--device', 'cpu'], '--device is not for small.onnx, only for a config'),
        (['small.onnx', 'images', '--slice', '64'], '--slice is not for small.onnx'),
        (['small.onnx', 'images', '--no-fast'], '--fast is not for small.onnx'),
        (['small.onnx', 'images', '--compile'], '--compile is not for small.onnx'),
        (['small.py', 'small.pth', 'images', '--threads', '2'], '--threads is not for small.py, only for an ONNX file'),
        (['small.onnx', 'images', '--threads', '0'], '--threads 0: must be at least 1'),
        (['small.py', 'small.pth', 'images', '--batch-size', '0'], '--batch-size 0: must be at least 1'),
        (['small.onnx', 'images', '--score-thr', 'nan'], '--score-thr nan: must be from 0 to 1'),
        (['small.onnx', 'images', '--score-thr', '2'], '--score-thr 2.0: must be from 0 to 1'),
        (['small.onnx', 'images', '--keep-thr', '-1'], '--keep-thr -1.0: must be from 0 to 1'),
        (['small.onnx', 'images', '--max-megapixels', 'nan'], '--max-megapixels nan: must be more than 0'),
        (['small.py', 'images'], 'small.py images: name a config, its checkpoint, and then what to detect in'),
    ],
)
def test_flags_of_the_other_kind_of_model_are_refused(monkeypatch, capsys, arguments, message):
    monkeypatch.setattr(sys, 'argv', ['detect.py', *arguments])
    with pytest.raises(SystemExit):
        tool.parse_args()
    assert message in capsys.readouterr().err


def test_the_help_tells_the_limit_on_images(monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', ['detect.py', '--help'])
    with pytest.raises(SystemExit):
        tool.parse_args()
    assert f'default: {MAX_MEGAPIXELS:g}, or any size' in ' '.join(capsys.readouterr().out.split())


def test_a_file_without_nms_is_refused_before_any_image_is_read(files, tmp_path):
    config = files / 'small.py'
    export(build_model(config), tmp_path / 'raw.onnx', config, with_nms=False)
    with pytest.raises(InputError, match=r'raw\.onnx was exported with --raw'):
        tool.load_detector(str(tmp_path / 'raw.onnx'), None)


@pytest.mark.parametrize('name', ['detect.py', 'model_converters/rtodlab_to_mmdet.py'])
def test_a_tool_without_the_package_says_so(tmp_path, name):
    # A copy, so that nothing is found beside it; -S: no site-packages.
    tools = shutil.copytree(ROOT / 'tools', tmp_path / 'tools')
    environment = {name: value for name, value in os.environ.items() if name != 'PYTHONPATH'}
    done = subprocess.run(
        [sys.executable, '-S', tools / name], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        'error: yolov7_simple is not installed in this Python: pip install -e . in the checkout'
    ]
