"""What the tests share."""

import itertools
import json
import os
import shutil
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import settings

import yolov7_simple  # noqa: F401  (registers everything)

ROOT = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get('YOLOV7_SHARED', ROOT.parent / 'shared'))

PIP = [sys.executable, '-m', 'pip', '-q', '--disable-pip-version-check', '--no-input']

# Every run draws the same examples, so that a failure comes from the change; YOLOV7_FUZZ draws many others.
settings.register_profile('suite', derandomize='YOLOV7_FUZZ' not in os.environ)
settings.load_profile('suite')

run_numbers = itertools.count()


def pytest_addoption(parser):
    parser.addoption('--ranks', type=int, default=2, help='processes that tests/test_engine/test_ranks.py trains with')


@pytest.fixture(scope='session')
def num_ranks(request):
    return request.config.getoption('--ranks')


# These take longest; begun last, one of them would go on alone while the other process has nothing to do.
LONGEST = ('test_docs.py::test_commands_run_one', 'test_install.py', 'test_safe_checkpoint.py', 'test_ranks.py',
           'test_resume.py', 'test_command_options.py', 'test_tools.py', 'test_trackers_and_teachers.py')  # fmt: skip


def pytest_collection_modifyitems(items):
    def rank(item):
        return next((i for i, name in enumerate(LONGEST) if name in item.nodeid), len(LONGEST))

    items.sort(key=rank)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Let a process have a file of tests as a whole, whose fixtures they share, or a page of docs."""
    from xdist.scheduler import LoadScopeScheduling

    class FilesAndPages(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            return nodeid if LONGEST[0] in nodeid else nodeid.split('::')[0]

    config.option.loadscopereorder = False
    return FilesAndPages(config, log)


def pytest_collection_finish():
    from tool_runs import be_quick

    be_quick()


def pytest_terminal_summary(terminalreporter):
    found = 'found' if SHARED.is_dir() else 'absent: the tests that compare with the original were skipped'
    terminalreporter.write_line(f'torch {torch.__version__}; ground truth at {SHARED}: {found}')


@pytest.fixture(scope='session', autouse=True)
def default_scope():
    """What `default_scope = 'mmdet'` does in a config."""
    from mmengine.registry import init_default_scope

    init_default_scope('mmdet')


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)
    np.random.seed(0)


@pytest.fixture(scope='session')
def shared():
    if not SHARED.is_dir():
        pytest.skip(f'needs the ground truth of the developers, and {SHARED} is absent')
    return SHARED


@pytest.fixture(scope='session')
def source(tmp_path_factory):
    """A copy of the checkout, since pip leaves files behind in the folder that it builds in."""
    folder = tmp_path_factory.mktemp('source')
    for name in ('yolov7_simple', 'configs', 'tools'):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns('__pycache__', '.mim'))
    for name in ('setup.py', 'pyproject.toml', 'MANIFEST.in', 'README.md', 'model-index.yml'):
        shutil.copy(ROOT / name, folder)
    return folder


@pytest.fixture(scope='session')
def wheel(source, tmp_path_factory):
    """The wheel that is built from this checkout."""
    folder = tmp_path_factory.mktemp('wheel')
    build = [*PIP, 'wheel', '--no-deps', '--no-build-isolation', '-w', folder, source]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = folder.glob('*.whl')
    return wheel


def write_coco(folder: Path, num_images: int = 8, classes=('box', 'disc'), size=(96, 64), **extra) -> dict:
    """Write a small set: one bright rectangle or disc an image, the last image without any."""
    (folder / 'images').mkdir(parents=True, exist_ok=True)
    (folder / 'annotations').mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    width, height = size
    images, annotations = [], []
    for i in range(num_images):
        image = rng.integers(0, 60, (height, width, 3)).astype(np.uint8)
        if i < num_images - 1:
            w, h = rng.integers(20, 40, 2).tolist()
            x, y = int(rng.integers(0, width - w)), int(rng.integers(0, height - h))
            label = i % len(classes)
            if label == 0:
                image[y : y + h, x : x + w] = 230
            else:
                cv2.ellipse(image, (x + w // 2, y + h // 2), (w // 2, h // 2), 0, 0, 360, (40, 200, 90), -1)
            annotations.append(
                {
                    'id': i + 1,
                    'image_id': i,
                    'category_id': label + 1,
                    'bbox': [x, y, w, h],
                    'area': w * h,
                    'iscrowd': 0,
                }
            )
        cv2.imwrite(str(folder / 'images' / f'{i}.png'), image)
        images.append({'id': i, 'file_name': f'{i}.png', 'width': width, 'height': height})
    categories = [{'id': i + 1, 'name': name} for i, name in enumerate(classes)]
    content = {'images': images, 'annotations': annotations, 'categories': categories, **extra}
    (folder / 'annotations' / 'all.json').write_text(json.dumps(content))
    return content


def write_things(folder: Path, images: list[dict]) -> dict:
    """Write annotations of images, with one thing in each; returns the config of the dataset."""
    boxes = [
        dict(id=i, image_id=image['id'], category_id=1, bbox=[4, 4, 16, 12], area=192, iscrowd=0)
        for i, image in enumerate(images)
    ]
    content = dict(images=images, annotations=boxes, categories=[dict(id=1, name='thing')])
    (folder / 'a.json').write_text(json.dumps(content))
    return dict(
        type='CheckedCocoDataset',
        ann_file='a.json',
        data_root=f'{folder}/',
        data_prefix=dict(img=''),
        metainfo=dict(classes=('thing',)),
        pipeline=[dict(type='LoadAnnotations', with_bbox=True)],
    )


def write_mot(folder: Path, num_frames: int = 24, size=(128, 96)) -> None:
    """Write a video in MOTChallenge's form, in which two bright boxes pass one another."""
    video = folder / 'train/street'
    (video / 'img1').mkdir(parents=True)
    (video / 'gt').mkdir()
    (folder / 'test').mkdir()
    width, height = size
    rng = np.random.default_rng(0)
    ground = cv2.resize(rng.integers(0, 90, (6, 8, 3), np.uint8), size)
    rows = []
    for i in range(num_frames):
        image = ground + rng.integers(0, 10, ground.shape, np.uint8)
        moved = round(80 * i / (num_frames - 1))
        for number, (x, y, w, h) in enumerate([(4 + moved, 8, 32, 24), (92 - moved, 52, 24, 36)], 1):
            image[y : y + h, x : x + w] = 230
            rows.append(f'{i + 1},{number},{x},{y},{w},{h},1,1,1.0\n')
        cv2.imwrite(str(video / f'img1/{i + 1:06d}.jpg'), image)
    (video / 'gt/gt.txt').write_text(''.join(rows))
    (video / 'seqinfo.ini').write_text(
        f'[Sequence]\nname=street\nimDir=img1\nframeRate=10\nseqLength={num_frames}\nimWidth={width}\n'
        f'imHeight={height}\nimExt=.jpg\n'
    )


def png_bomb(width: int, height: int) -> bytes:
    """A valid PNG file of a few bytes whose header claims this size."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack('>I', len(data)) + name + data + struct.pack('>I', zlib.crc32(name + data))

    header = struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(1000))
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + chunk(b'IDAT', pixels) + chunk(b'IEND', b'')


@pytest.fixture
def coco_folder(tmp_path):
    write_coco(tmp_path)
    return tmp_path


@pytest.fixture(scope='session')
def small_model_cfg():
    """A detector small enough for seconds: an eighth of Tiny's width, two classes."""
    return {
        'type': 'SingleStageDetector',
        'data_preprocessor': {
            'type': 'DetDataPreprocessor',
            'mean': [0, 0, 0],
            'std': [255, 255, 255],
            'pad_size_divisor': 32,
        },
        'backbone': {'type': 'ELANNet', 'arch': 'tiny', 'widen_factor': 0.125},
        'neck': {'type': 'ELANPAFPN', 'in_channels': [16, 32, 64], 'out_channels': 16, 'num_stages': 2},
        'bbox_head': {'type': 'YOLOv7SimpleHead', 'num_classes': 2, 'in_channels': 16},
        'test_cfg': {'nms_pre': 1000, 'score_thr': 0.001, 'nms': {'type': 'nms', 'iou_threshold': 0.7}},
    }


@pytest.fixture(scope='module')
def project(tmp_path_factory):
    """A folder with a set of eight images and a small config for it."""
    from tool_runs import write_config

    folder = tmp_path_factory.mktemp('project')
    write_coco(folder / 'data')
    write_config(folder / 'config.py', folder / 'data')
    return folder


@pytest.fixture(scope='module')
def run(project):
    """Train as tools/train.py does, in this process: three epochs of four steps, the recipe, seed 1."""
    from mmengine.config import Config
    from mmengine.runner import Runner

    def run(work_dir, *hooks, resume=False, **options):
        cfg = Config.fromfile(project / 'config.py')
        cfg.work_dir, cfg.resume = str(work_dir), bool(resume)
        if not isinstance(resume, bool):
            cfg.load_from = str(resume)
        # Runs that start in the same second would share a timestamp.
        cfg.experiment_name = cfg.visualizer.name = f'run_{next(run_numbers)}'
        cfg.log_level = 'WARNING'
        cfg.merge_from_dict({'train_cfg.max_epochs': 3, **options})
        runner = Runner.from_cfg(cfg)
        for hook in hooks:
            runner.register_hook(hook, 'VERY_HIGH')
        runner.train()
        return runner

    return run
