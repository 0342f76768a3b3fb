import json

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner
from small_model import CLASSES, ROOT, write_images, write_model

from yolov7_simple.apis.inference import load_inferencer
from yolov7_simple.models.fast import speed_up


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    """Folder with small.py, small.pth, images/ and annotations.json."""
    folder = tmp_path_factory.mktemp('fast')
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
    write_model(folder, f'{folder}/')
    return folder


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
