import json
import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner
from mmengine.structures import InstanceData
from small_model import CLASSES, ROOT, write_images, write_model

from yolov7_simple.apis.inference import load_inferencer
from yolov7_simple.models.fast import speed_up
from yolov7_simple.runtime.drawing import class_color, draw_detections, place_label
from yolov7_simple.runtime.errors import InputError
from yolov7_simple.runtime.files import find_inputs, replacing, result_names
from yolov7_simple.runtime.images import read_image
from yolov7_simple.runtime.results import CocoResults
from yolov7_simple.visualization import ReadableDetVisualizer

sys.path.insert(0, str(ROOT / 'tools'))
import detect as tool


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    """Folder with small.py, small.pth, images/, annotations.json and video.mp4."""
    folder = tmp_path_factory.mktemp('detect')
    paths = write_images(folder / 'images')
    images = []
    for i, path in enumerate(paths):
        height, width = cv2.imread(str(path)).shape[:2]
        images.append({'id': 70 + i, 'file_name': f'images/{path.name}', 'height': height, 'width': width})
    boxes = [
        {
            'id': i + 1,
            'image_id': 70 + i % 3,
            'category_id': 5 + i % 3,
            'bbox': [10, 10, 40, 30],
            'area': 1200,
            'iscrowd': 0,
        }
        for i in range(9)
    ]
    categories = [{'id': 5 + i, 'name': name} for i, name in enumerate(CLASSES)]
    content = {'images': images, 'categories': categories, 'annotations': boxes}
    (folder / 'annotations.json').write_text(json.dumps(content))
    writer = cv2.VideoWriter(str(folder / 'video.mp4'), cv2.VideoWriter_fourcc(*'mp4v'), 5, (260, 200))
    for _ in range(3):
        writer.write(cv2.imread(str(paths[2])))
    writer.release()
    cv2.VideoWriter(str(folder / 'empty.mp4'), cv2.VideoWriter_fourcc(*'mp4v'), 5, (260, 200)).release()
    write_model(folder, f'{folder}/')
    return folder


def run_tool(monkeypatch, files, *args):
    monkeypatch.setattr(sys, 'argv', ['detect.py', *map(str, (files / 'small.py', files / 'small.pth', *args))])
    return tool.main()


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
    frames = list(tool.read_video(tmp_path / 'videos/video.mp4', None))
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


def test_fast_switch_gives_the_same_detections(files):
    inferencer = load_inferencer(files / 'small.py', files / 'small.pth', 'cpu')
    plain = inferencer.model
    fast = speed_up(plain)
    assert sum(isinstance(module, torch.nn.BatchNorm2d) for module in plain.modules()) > 50
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in fast.modules())
    weight = fast.backbone.stem[0].conv.weight
    assert weight.is_contiguous(memory_format=torch.channels_last) and not weight.requires_grad
    results = []
    for model in (plain, fast):
        inferencer.model = model
        results.append(inferencer(str(files / 'images/image2.png'))['predictions'][0])
    assert len(results[0]['scores']) > 5
    for key in ('scores', 'bboxes', 'labels'):
        np.testing.assert_allclose(results[1][key], results[0][key], rtol=1e-4, atol=1e-3)


def test_fast_hook_and_tta_run_in_mmdets_test(files, tmp_path):
    cfg = Config.fromfile(files / 'small.py')
    tta = Config.fromfile(ROOT / 'configs/_base_/tta.py')
    scales = [step['scale'] for step in tta.tta_pipeline[-1]['transforms'][0]]
    flips = [step['prob'] for step in tta.tta_pipeline[-1]['transforms'][1]]
    assert len(scales) == 3 and flips == [0.0, 1.0]
    cfg.work_dir = str(tmp_path)
    cfg.load_from = str(files / 'small.pth')
    cfg.default_hooks.fast = dict(type='FastInferenceHook')
    results = []
    for with_tta in (False, True):
        if with_tta:
            cfg.model = dict(**tta.tta_model, module=cfg.model)
            cfg.test_dataloader.dataset.pipeline = tta.tta_pipeline
        cfg.experiment_name = f'fast_{with_tta}'
        runner = Runner.from_cfg(cfg)
        model = runner.model
        seen = []
        original = type(runner.test_loop).run_iter

        def run_iter(loop, index, batch, original=original, seen=seen):
            seen.append(any(isinstance(part, torch.nn.BatchNorm2d) for part in loop.runner.model.modules()))
            return original(loop, index, batch)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(runner.test_loop), 'run_iter', run_iter)
            results.append(runner.test())
        assert seen == [False] * 3, 'the test ran on the faster copy'
        assert runner.model is model
        assert any(isinstance(part, torch.nn.BatchNorm2d) for part in model.modules())
    assert all('coco/bbox_mAP' in result for result in results)


def test_find_inputs_and_names(tmp_path):
    for name in ('b.JPG', 'a.png', 'notes.txt', 'sub/a.png'):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text('')
    found = find_inputs([str(tmp_path), str(tmp_path / '**/a.png')], {'.png', '.jpg'})
    assert found == [tmp_path / 'a.png', tmp_path / 'b.JPG', tmp_path / 'sub/a.png']
    names = result_names(found)
    assert names[1] == 'b.JPG' and len(set(names)) == 3 and names[2].endswith('sub_a.png')


def test_nothing_half_written_stays(tmp_path):
    target = tmp_path / 'out.json'
    target.write_text('old')
    with pytest.raises(RuntimeError), replacing(target) as temporary:
        temporary.write_text('ne')
        raise RuntimeError
    assert target.read_text() == 'old' and len(list(tmp_path.iterdir())) == 1


def test_results_take_ids_from_annotations(files):
    results = CocoResults(CLASSES, files / 'annotations.json')
    values = np.array([[1.0, 2.0, 4.0, 8.0]]), np.array([0.5]), np.array([2])
    results.add('images/image1.png', (10, 20), *values)
    (found,) = results.content['annotations']
    assert (found['image_id'], found['category_id'], found['bbox']) == (71, 7, [1, 2, 3, 6])
    with pytest.raises(InputError, match='is not among'):
        results.add('other.png', (10, 20), *values)
    with pytest.raises(InputError, match='no category'):
        CocoResults(('unicorn',), files / 'annotations.json')


def test_labels_keep_off_their_boxes_and_each_other():
    canvas, size = (400, 300), (90, 16)
    boxes = np.array([[20, 40, 120, 90], [20, 40, 121, 91], [300, 0, 400, 60], [0, 200, 60, 300], [0, 0, 400, 300.0]])
    taken = np.zeros((0, 4))
    for i, box in enumerate(boxes):
        label = place_label(box, size, canvas, boxes, taken)
        assert (label[:2] >= 0).all() and (label[2:] <= canvas).all()
        sides = np.minimum(label[2:], taken[:, 2:]) - np.maximum(label[:2], taken[:, :2])
        assert not (sides > 0).all(1).any(), 'labels overlap'
        if i < 4:  # there is no room around the last one
            assert not (np.minimum(label[2:], box[2:]) - np.maximum(label[:2], box[:2]) > 0).all(), 'hides its box'
        taken = np.concatenate([taken, label[None]])


def test_colors_are_steady_and_apart():
    assert [class_color(i) for i in range(3)] == [class_color(i) for i in range(3)]
    colors = np.array([class_color(i) for i in range(12)], float)
    distances = np.linalg.norm(colors[:, None] - colors, axis=2) + 1e9 * np.eye(12)
    assert distances.min() > 40


@pytest.mark.parametrize('shape', [(16, 24), (120, 160), (480, 640), (2000, 3000)])
def test_labels_are_readable_at_any_size(shape):
    image = np.full((*shape, 3), 128, np.uint8)
    box = np.array([[shape[1] * 0.3, shape[0] * 0.4, shape[1] * 0.6, shape[0] * 0.8]])
    drawn = draw_detections(image, box, np.array([0.9]), np.array([0]), ['ball'])
    zoom = drawn.shape[0] // shape[0]
    assert drawn.shape == (shape[0] * zoom, shape[1] * zoom, 3)
    # A label is a filled area: rows in which its colour covers much of the width of the text.
    color = (drawn == class_color(0)).all(2)
    rows = (color.sum(1) > 20 * (1 + (min(drawn.shape[:2]) > 1500))).nonzero()[0]
    assert len(rows) >= 9, 'letters of fewer pixels cannot be read'
    assert (image == 128).all(), 'the image itself is left alone'


def test_mmdets_visualizer_draws_the_same():
    image = np.random.default_rng(0).integers(0, 255, (480, 640, 3), np.uint8)
    boxes, labels = np.array([[100.0, 100, 300, 250]]), np.array([1])
    instances = InstanceData(bboxes=torch.tensor(boxes), labels=torch.tensor(labels), scores=torch.tensor([0.8]))
    drawn = ReadableDetVisualizer()._draw_instances(image[..., ::-1], instances, list(CLASSES), None)
    wanted = draw_detections(image, boxes, np.array([0.8]), labels, CLASSES)
    assert (drawn[..., ::-1] == wanted).all() and (wanted != image).any()


def test_read_image_keeps_the_pixels(tmp_path):
    image = np.random.default_rng(0).integers(0, 255, (20, 30, 3), np.uint8)
    cv2.imwrite(str(tmp_path / 'a.png'), image)
    assert (read_image(tmp_path / 'a.png') == image).all()
