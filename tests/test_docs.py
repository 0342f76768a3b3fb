"""README and docs: commands are run, on tiny sets and models, configs build, and links lead somewhere."""

import ast
import functools
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import pytest
import torch
from conftest import ROOT, write_coco, write_mot
from mmdet.datasets import CocoDataset
from mmdet.registry import HOOKS, LOOPS, MODELS, TRANSFORMS
from mmengine.config import Config
from tool_runs import SMALL_OPTIONS, tool
from torch.distributed.run import get_args_parser

from yolov7_simple.apis.config_options import check_config_options
from yolov7_simple.models.rtodlab import SIZES, convert_state_dict, original_key
from yolov7_simple.models.rtodlab_weights import WEIGHTS

PAGES = [*sorted(ROOT.glob('*.md')), *sorted((ROOT / 'docs').glob('*.md')), ROOT / 'configs/yolov7/README.md']
FOLDERS = ('configs/', 'docs/', 'requirements/', 'tests/', 'tools/', 'yolov7_simple/')
BASE = ROOT / 'configs/yolov7/yolov7_tiny_8xb16-300e_coco.py'
BCCD_CLASSES = ('RBC', 'WBC', 'Platelets')
NUM_EPOCHS = 2
# Commands that install, serve a page until they are stopped, or ask for many processes. They are parsed here, and run
# by .ci/run, test_install.py, test_web_demo.py and test_ranks.py.
RUN_ELSEWHERE = r'make (demo|test)|\. |pip install|python tools/web_demo\.py|(\w+=\S+ )*tools/(dist|slurm)_\w+\.sh'


def name_of(page):
    return str(page.relative_to(ROOT))


def blocks(language, page):
    """The fenced blocks of a language on a page."""
    return re.findall(rf'^```{language}\n(.*?)^```', page.read_text(), re.M | re.S)


def commands(page):
    """The commands in blocks of sh, one a line."""
    return [line for block in blocks('sh', page) for line in block.splitlines() if line]


def is_run(line):
    return not re.match(RUN_ELSEWHERE, line)


ALL_COMMANDS = list(dict.fromkeys(line for page in PAGES for line in commands(page)))


@functools.cache
def functions(script):
    """Load a script without running its main."""
    return runpy.run_path(str(script), run_name='docs')


def parse(script, arguments, monkeypatch):
    """Parse arguments with the parser of a tool, or of mmdet's that it runs."""
    monkeypatch.setattr('sys.argv', [str(script), *arguments])
    if 'parse_args' not in functions(script):
        script = functions(ROOT / 'tools/mmdet_tool.py')['tools_dir']() / script.name
    return functions(script)['parse_args']()


def check_launcher(line, tmp_path, monkeypatch):
    """Run a launcher, with what it starts replaced by echo."""
    variables = {name for name, value in re.findall(r'(\w+)=(\S+)', line.split(' tools/')[0])}
    (script,) = (word for word in shlex.split(line) if word.endswith('.sh'))
    assert not {name for name in variables if name not in (ROOT / script).read_text()}
    (tmp_path / 'srun').write_text('#!/bin/sh\necho "$@"\n')
    (tmp_path / 'srun').chmod(0o755)
    environment = {**os.environ, 'PYTHON': 'echo', 'PATH': f'{tmp_path}:{os.environ["PATH"]}'}
    done = subprocess.run(
        ['bash', '-c', line], cwd=ROOT, env=environment, capture_output=True, text=True, check=True, timeout=60
    )
    started = done.stdout.split()
    (at,) = (i for i, word in enumerate(started) if re.search(r'/tools/(train|test)\.py$', word))
    if 'dist_' in script:
        assert started[:2] == ['-m', 'torch.distributed.run']
        get_args_parser().parse_args(started[2:])
    parse(Path(started[at]).resolve(), started[at + 1 :], monkeypatch)


@pytest.mark.parametrize('line', [line for line in ALL_COMMANDS if not is_run(line)])
def test_commands_that_are_run_elsewhere_parse(line, tmp_path, monkeypatch):
    words = shlex.split(line)
    if any(word.endswith('.sh') for word in words):
        check_launcher(line, tmp_path, monkeypatch)
    elif words[0] == 'python':
        parse(ROOT / words[1], words[2:], monkeypatch)
    elif words[0] == 'make':
        for argument in words[1:]:
            name, is_variable, _ = argument.partition('=')
            pattern = rf'^{name} \?=' if is_variable else rf'^{argument}:'
            assert re.search(pattern, (ROOT / 'Makefile').read_text(), re.M), argument
    elif words[0] == 'pip':
        known = '\n'.join(path.read_text() for path in ROOT.glob('requirements/*.txt'))
        for package in (word for word in words[2:] if word not in ('.', '--no-deps')):
            assert re.search(rf'^{re.escape(package)}\b', known, re.M), package
    else:
        assert line == '. .venv/bin/activate'


def of_type(parts, name):
    return next(part for part in parts if part.type == name)


def shrink_wrapped(cfg):
    """Make a config small whose model holds a detector: of a tracker, or of student and teacher."""
    cfg.merge_from_dict({key.replace('model.', 'model.detector.'): value for key, value in SMALL_OPTIONS.items()})
    if cfg.model.type == 'ByteTrack':
        of_type(cfg.train_dataloader.dataset.pipeline, 'MosaicAffineMixUp').img_scale = (320, 320)
        of_type(cfg.model.data_preprocessor.batch_augments, 'BatchMultiScale').random_size_range = (160, 320)
        cfg.train_cfg.update(max_epochs=NUM_EPOCHS, val_interval=NUM_EPOCHS, dynamic_intervals=None)
        of_type(cfg.custom_hooks, 'LastStageHook').num_last_epochs = 1
    else:
        cfg.train_dataloader.sampler.batch_size = SMALL_OPTIONS['train_dataloader.batch_size']
        cfg.train_cfg.update(max_iters=NUM_EPOCHS, val_interval=NUM_EPOCHS)


def shrink_configs():
    """Make every config that this process reads small: model, images, length of training, and no workers.

    Weights of the original come in full size only, so a command that names them keeps the width.
    """
    read = Config.fromfile
    full_width = ('yolov7_tiny.pth', 'rtodlab://', '--pretrained')
    keeps_width = any(name in argument for argument in sys.argv for name in full_width)

    def read_small(*args, **kwargs):
        cfg = read(*args, **kwargs)
        if 'model' in cfg and 'detector' in cfg.model:
            shrink_wrapped(cfg)
        elif 'model' in cfg:
            options = {
                key: value
                for key, value in SMALL_OPTIONS.items()
                if not (keeps_width and key.startswith(('model.backbone', 'model.neck', 'model.bbox_head')))
            }
            cfg.merge_from_dict(options)
            mosaic = of_type(cfg.train_dataloader.dataset.pipeline, 'MosaicAffineMixUp')
            if tuple(mosaic.img_scale) == (640, 640):  # a quarter of the time
                mosaic.img_scale = (320, 320)
                sizes = of_type(cfg.model.data_preprocessor.batch_augments, 'BatchMultiScale')
                sizes.random_size_range = (160, 320)
                for loader in (cfg.val_dataloader, cfg.test_dataloader):
                    of_type(loader.dataset.pipeline, 'Resize').scale = (320, 320)
            cfg.train_cfg.update(max_epochs=NUM_EPOCHS, val_interval=NUM_EPOCHS, dynamic_intervals=None)
            for hook in cfg.custom_hooks:
                if hook.type == 'LastStageHook':
                    hook.num_last_epochs = 1
        return cfg

    Config.fromfile = read_small


def shorten(text):
    """Name the checkpoints of a short training."""
    return re.sub(r'(epoch|iter)_\d+\.pth', rf'\g<1>_{NUM_EPOCHS}.pth', text)


class Sandbox:
    """A folder like the checkout of someone with data of COCO, of blood cells and of their own."""

    def __init__(self, folder):
        self.folder, self.hub = folder, folder / 'torch/hub/checkpoints'
        for name in ('tools', 'configs'):
            (folder / name).symlink_to(ROOT / name)
        coco, mine = folder / 'data/coco', folder / 'data/mine'
        write_coco(coco, num_images=4, classes=CocoDataset.METAINFO['classes'])
        for split in ('train2017', 'val2017'):
            shutil.copytree(coco / 'images', coco / split)
            shutil.copy(coco / 'annotations/all.json', coco / f'annotations/instances_{split}.json')
        bccd = write_coco(folder / 'data/bccd', classes=BCCD_CLASSES, info={}, licenses=[])
        for split in ('train', 'val', 'test'):
            (folder / f'data/bccd/annotations/{split}.json').write_text(json.dumps(bccd))
        (folder / 'data/bccd/annotations/all.json').unlink()
        content = write_coco(mine, num_images=4, size=(160, 96))
        for split, ids in (('train', {0, 1}), ('val', {2, 3})):
            images = [one for one in content['images'] if one['id'] in ids]
            annotations = [one for one in content['annotations'] if one['image_id'] in ids]
            part = {**content, 'images': images, 'annotations': annotations}
            (mine / f'annotations/{split}.json').write_text(json.dumps(part))
        (mine / 'annotations/all.json').unlink()
        shutil.copy(mine / 'images/0.png', folder / 'photo.jpg')
        write_mot(folder / 'data/MOT17', num_frames=6)
        writer = cv2.VideoWriter(str(folder / 'video.mp4'), cv2.VideoWriter_fourcc(*'mp4v'), 5, (160, 96))
        for _ in range(3):
            writer.write(cv2.imread(str(folder / 'photo.jpg')))
        writer.release()
        (wide,) = (block for block in blocks('python', ROOT / 'docs/image_sizes.md'))
        (folder / 'wide.py').write_text(wide)

    def publish(self, name, folder):
        """Write a detector as the original publishes it, if it is not there."""
        size = next(size for size in SIZES if size.arch == WEIGHTS[name].arch)
        file = folder / WEIGHTS[name].file
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            weights = MODELS.build(Config.fromfile(BASE.with_name(size.config)).model).state_dict()
            torch.save({'model': {original_key(key, size): value for key, value in weights.items()}}, file)

    def run(self, line):
        """Run a command; epochs are those of a short training."""
        line = shorten(line)
        words = shlex.split(line)
        for work_dir in re.findall(r'(?<!--work-dir )\b(work_dirs/[\w-]+)', line):
            # Another page has made these by then.
            if not (self.folder / work_dir).exists():
                self.run(next(one for one in ALL_COMMANDS if is_run(one) and is_training(one, work_dir)))
        if 'misc/split_coco.py' in words:
            enlarge(self.folder / 'data/coco/annotations/instances_train2017.json')
        if 'yolov7_tiny_coco.pth' in words:
            self.publish('yolov7_tiny', self.folder)
        for name in re.findall(r'rtodlab://(\w+)', line.replace('--pretrained', 'rtodlab://yolov7_tiny')):
            self.publish(name, self.hub)
        if words[:2] == ['make', 'report']:
            dry = subprocess.run(['make', '-n', *words[1:]], cwd=ROOT, capture_output=True, text=True, check=True)
            # The commands of make, run without its environment.
            words = shlex.split(re.search(r'python -W ignore (tools/\S+ .*)', dry.stdout)[1])
        else:
            assert words.pop(0) == 'python', f'tests/test_docs.py does not know how to run: {line}'
        # The doctor warns of this set as a whole: its val split has one of the two classes.
        is_warned = words[0] == 'tools/check_dataset.py' and '--ann' not in words
        printed = tool(
            words[0].removeprefix('tools/'),
            *words[1:],
            ok=not is_warned,
            cwd=self.folder,
            before=shrink_configs,
            TORCH_HOME=str(self.folder / 'torch'),
        )
        assert 'warning: 1 of 2 classes have no box in val' in printed or not is_warned
        return printed


def enlarge(path, times=10):
    """Name each image of a set several times, so that a tenth of them is something."""
    content = json.loads(path.read_text())
    for key in ('images', 'annotations'):
        more = [{**one, 'id': 100 * i + one['id']} for i in range(times) for one in content[key]]
        content[key] = more
    for i, one in enumerate(content['annotations']):
        one['image_id'] += 100 * (i // (len(content['annotations']) // times))
    content.update(info={}, licenses=[])
    path.write_text(json.dumps(content))


def is_training(line, work_dir):
    """Whether a command trains into this folder."""
    if not line.startswith('python tools/train.py') or '--resume' in line:
        return False
    named = re.search(r'--work-dir (\S+)', line)
    return work_dir == (named[1] if named else f'work_dirs/{Path(line.split()[2]).stem}')


def weights(path):
    return torch.load(path, weights_only=True)['state_dict']


def check_readme(folder, printed):
    assert json.loads((folder / 'outputs/detections.json').read_text())['images']
    assert 'coco/bbox_mAP: ' in printed
    assert list((folder / 'outputs').rglob('*.png'))


def logs(folder):
    return '\n'.join(log.read_text() for log in folder.glob('work_dirs/*/*/*.log'))


def check_deployment(folder, printed):
    """Detections of PyTorch and of ONNX Runtime on the same images agree."""
    by_torch, by_onnx = (
        json.loads((folder / 'outputs' / name / 'detections.json').read_text()) for name in ('torch', 'onnx')
    )
    assert by_torch['images'] == by_onnx['images'] and len(by_torch['images']) == 4
    assert len(by_torch['annotations']) == len(by_onnx['annotations'])  # the export has compared them
    assert (folder / 'outputs/onnx/pictures').is_dir() and (folder / 'dataset_check/index.html').is_file()
    assert 'coco/bbox_mAP: ' in printed


def check_image_sizes(folder, printed):
    assert 'img_size: ' in logs(folder) and 'input batch x 3 x 96 x 160' in printed  # as no image is larger
    assert (folder / 'outputs/pictures/photo.jpg').is_file()
    assert 'windows of ' in printed and (folder / 'tiles.onnx').is_file()


def check_training(folder, printed):
    """In the last run the backbone is frozen: it keeps weights and statistics as loaded, while the neck learns."""
    work_dir = folder / 'work_dirs/yolov7_tiny_8xb16-300e_coco_mine'
    published = torch.load(folder / 'torch/hub/checkpoints/yolov7_tiny_coco.pth', weights_only=True)['model']
    before, after = convert_state_dict(published), weights(work_dir / f'epoch_{NUM_EPOCHS}.pth')
    same = {key for key, value in after.items() if value.shape == before[key].shape}
    # An average of equal weights may differ in the last digit.
    same = {key for key in same if torch.allclose(after[key], before[key], 1e-6)}
    changed = {key.split('.')[0] for key in after.keys() - same}
    assert changed == {'neck', 'bbox_head'}
    assert 'Other classes than in the checkpoint' in printed and 'goes on after epoch 2' in printed


def check_finetuning(folder, printed):
    assert (folder / 'work_dirs/mine/own_data/pretrained.pth').is_file()
    assert 'coco/bbox_mAP: ' in printed and ' mAP ' in printed and 'anew for box, disc' in printed


def check_tracking(folder, printed):
    assert (folder / 'outputs/videos/video.mp4').is_file()
    assert 'HOTA: ' in printed and 'IDF1: ' in printed
    assert 'teacher/coco/bbox_mAP: ' in logs(folder) and 'student/coco/bbox_mAP: ' in logs(folder)


def check_understand(folder, printed):
    for name in ('work_dirs/bccd/report.html', 'bccd.html', 'yolov7_tiny_1xb8-40e_bccd_schedule.html'):
        assert '</html>' in (folder / name).read_text()
    assert 'AP50 ' in printed and 'mending one type of error would add: ' in printed


CHECKS = {
    'README.md': check_readme,
    'docs/deployment.md': check_deployment,
    'docs/finetuning.md': check_finetuning,
    'docs/image_sizes.md': check_image_sizes,
    'docs/tracking.md': check_tracking,
    'docs/training.md': check_training,
    'docs/understand.md': check_understand,
}


@pytest.mark.parametrize('page', [page for page in PAGES if any(map(is_run, commands(page)))], ids=name_of)
def test_commands_run_one_after_the_other(page, tmp_path, monkeypatch):
    sandbox = Sandbox(tmp_path)
    printed = '\n'.join([sandbox.run(line) for line in commands(page) if is_run(line)])
    # None of the warnings may be ours.
    assert 'yolov7_simple/' not in ''.join(line for line in printed.splitlines() if 'Warning' in line)
    if name_of(page) in CHECKS:
        CHECKS[name_of(page)](tmp_path, printed)
    monkeypatch.chdir(tmp_path)
    for block in blocks('python', page):
        if re.search('^(import|from) ', block, re.M):
            exec(compile(shorten(block), name_of(page), 'exec'), {})


@pytest.mark.parametrize('line', [line for line in ALL_COMMANDS if '--cfg-options' in line])
def test_options_are_of_the_config(line):
    words = shlex.split(line)
    config = ROOT / words[2]
    cfg = Config.fromfile(config if config.exists() else BASE)
    options = words[words.index('--cfg-options') + 1 :]
    check_config_options(cfg, dict(option.split('=', 1) for option in options))


def build(cfg):
    """Build every part that needs no data."""
    with torch.device('meta'):
        MODELS.build(cfg.model)
    for hook in (*cfg.custom_hooks, *cfg.default_hooks.values()):
        assert isinstance(hook, dict), hook
        if hook['type'] != 'DetVisualizationHook':  # draws with the visualizer of a run
            HOOKS.build({key: value for key, value in hook.items() if key != 'priority'})
    training = cfg.train_dataloader.dataset
    pipelines = [one.pipeline for one in training.get('datasets', [training])]
    for pipeline in (*pipelines, cfg.test_dataloader.dataset.pipeline, cfg.tta_pipeline):
        for transform in pipeline:
            TRANSFORMS.build(transform)
    for loop in (cfg.train_cfg, cfg.val_cfg, cfg.test_cfg):
        assert LOOPS.get(loop.type), loop.type


PYTHON_BLOCKS = [
    pytest.param(block, id=f'{name_of(page)}-{i}') for page in PAGES for i, block in enumerate(blocks('python', page))
]


@pytest.mark.parametrize('block', PYTHON_BLOCKS)
def test_python_builds_or_imports(block, tmp_path):
    if re.search('^(import|from) ', block, re.M):
        if 'from supervision ' in block:  # optional, and not for each Python
            pytest.importorskip('supervision')
        imports = [node for node in ast.parse(block).body if isinstance(node, (ast.Import, ast.ImportFrom))]
        exec(compile(ast.Module(imports, []), 'docs', 'exec'), {})
        return
    if '_base_ =' not in block:  # a part of a config
        block = f'_base_ = {str(BASE)!r}\n{block}'
    (tmp_path / 'config.py').write_text(block)
    build(Config.fromfile(tmp_path / 'config.py'))


def anchors(page):
    """What GitHub makes of the headings of a page."""
    headings = re.findall(r'^#+ (.*)', re.sub(r'^```.*?^```', '', page.read_text(), flags=re.M | re.S), re.M)
    return {re.sub(r'[^\w\- ]', '', heading.lower()).replace(' ', '-') for heading in headings}


@pytest.mark.parametrize('page', PAGES, ids=name_of)
def test_links_and_paths_lead_somewhere(page):
    text = page.read_text()
    for link in re.findall(r'\[[^\]]*\]\(([^)\s]+)\)', text):
        if link.startswith('https://'):
            continue
        path, _, anchor = link.partition('#')
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link
    if page.name == 'CHANGELOG.md':
        return  # it names files that have moved
    for code in re.findall(r'`([^`\s]+)`', text):
        if code.startswith(FOLDERS) and '/.mim/' not in code:
            assert list(ROOT.glob(code)), code


def test_the_drawing_has_the_networks_shapes():
    cfg = Config.fromfile(BASE)
    with torch.device('meta'):
        model = MODELS.build(cfg.model).eval()
        modules = {**dict(model.backbone.named_children()), **dict(model.neck.named_children())}
        shapes = {}
        for name, module in modules.items():
            module.register_forward_hook(lambda *args, name=name: shapes.update({name: args[2].shape[1:]}))
        model(torch.empty(1, 3, 640, 640), mode='tensor')
    drawn = re.findall(r'>(\d+) \S (\d+) \S (\d+)<', (ROOT / 'docs/architecture.svg').read_text())
    names = ('stem', 'stage1', 'stage2', 'stage3', 'stage4', 'top_down_p3', 'top_down_p4', 'spp', 'bottom_up_p4')
    names += ('bottom_up_p5', 'out_p3', 'out_p4', 'out_p5')
    expected = [(3, 640, 640), *(tuple(shapes[name]) for name in names)]
    assert sorted(tuple(map(int, shape)) for shape in drawn) == sorted(expected)
