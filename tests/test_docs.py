"""README and docs: commands parse, configs build, links lead somewhere, and the way to deployment is run."""

import ast
import functools
import inspect
import json
import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT, write_coco
from mmdet.registry import HOOKS, LOOPS, MODELS, TRANSFORMS
from mmengine.config import Config
from test_own_data import SMALL
from torch.distributed.run import get_args_parser

PAGES = [*sorted(ROOT.glob('*.md')), *sorted((ROOT / 'docs').glob('*.md'))]
FOLDERS = ('configs/', 'docs/', 'requirements/', 'tests/', 'tools/', 'yolov7_simple/')
BASE = ROOT / 'configs/yolov7/yolov7_tiny_8xb16-300e_coco.py'


def blocks(language, pages=PAGES):
    """The fenced blocks of a language, with the page that each is on."""
    return [
        pytest.param(block, id=f'{page.relative_to(ROOT)}-{i}')
        for page in pages
        for i, block in enumerate(re.findall(rf'^```{language}\n(.*?)^```', page.read_text(), re.M | re.S))
    ]


def commands(pages=PAGES):
    """The commands in blocks of sh, one a line."""
    return list(dict.fromkeys(line for block in blocks('sh', pages) for line in block.values[0].splitlines() if line))


@functools.cache
def functions(script):
    """What a script defines, without running its main."""
    return runpy.run_path(str(script), run_name='docs')


def parse(script, arguments, monkeypatch):
    """Parse arguments with the parser of a tool, or of mmdet's that it runs."""
    tools_dir = functions(ROOT / 'tools/mmdet_tool.py')['tools_dir']()
    monkeypatch.syspath_prepend(ROOT / 'tools')
    if script.name == 'mmdet_tool.py':
        script, arguments = tools_dir / arguments[0], arguments[1:]
    monkeypatch.setattr('sys.argv', [str(script), *arguments])
    if '--data' in arguments:
        functions(script)['use_own_data']()  # leaves the rest to mmdet's
    if 'parse_args' not in functions(script) and (tools_dir / script.name).exists():
        script = tools_dir / script.name
    if 'parse_args' not in functions(script):  # it parses in its main
        assert all(repr(word) in script.read_text() for word in arguments if word.startswith('--')), script
        return None
    return functions(script)['parse_args']()


def build(cfg):
    """Build what can be had without data."""
    with torch.device('meta'):
        MODELS.build(cfg.model)
    for hook in (*cfg.custom_hooks, *cfg.default_hooks.values()):
        assert isinstance(hook, dict), hook
        if hook['type'] != 'DetVisualizationHook':  # draws with the visualizer of a run
            HOOKS.build({key: value for key, value in hook.items() if key != 'priority'})
    for pipeline in (cfg.train_dataloader.dataset.pipeline, cfg.test_dataloader.dataset.pipeline, cfg.tta_pipeline):
        for transform in pipeline:
            TRANSFORMS.build(transform)
    for loop in (cfg.train_cfg, cfg.val_cfg, cfg.test_cfg):
        assert LOOPS.get(loop.type), loop.type


def check_launcher(line, words, tmp_path, monkeypatch):
    """Run a launcher, with what it starts replaced by echo."""
    variables = {name for name, value in re.findall(r'(\w+)=(\S+)', line.split(' tools/')[0])}
    (script,) = (word for word in words if word.endswith('.sh'))
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
    return parse(Path(started[at]).resolve(), started[at + 1 :], monkeypatch)


def check_others(words):
    """Check a command that is not of our tools."""
    name, *arguments = words
    flags = [word.lstrip('-').split('=')[0] for word in arguments if word.startswith('--')]
    if name == 'make':
        for argument in arguments:
            name, is_variable, _ = argument.partition('=')
            pattern = rf'^{name} \?=|\$\({name}\)' if is_variable else rf'^{argument}:'
            assert re.search(pattern, (ROOT / 'Makefile').read_text(), re.M), argument
    elif name == 'pip' and arguments[0] == 'install':
        known = '\n'.join(path.read_text() for path in ROOT.glob('requirements/*.txt'))
        for package in (word for word in arguments[1:] if word not in ('.', '--no-deps')):
            assert re.search(rf'^{re.escape(package)}\b', known, re.M), package
    elif words[:3] == ['sahi', 'coco', 'slice']:
        from sahi.scripts.slice_coco import slicer

        assert set(flags) <= set(inspect.signature(slicer).parameters)
    else:
        pytest.fail(f'tests/test_docs.py does not know how to check: {shlex.join(words)}')


@pytest.mark.parametrize('line', commands())
def test_commands_parse(line, tmp_path, monkeypatch):
    stub = type('Data', (), {'root': '', 'form': '', 'classes': (), 'splits': {}})
    monkeypatch.setattr('yolov7_simple.own_config.own_config', lambda config, *_: (config, stub, ''))
    words = shlex.split(line)
    for word in words:
        path = word.split('=')[-1]
        assert not path.startswith(FOLDERS) or (ROOT / path).exists(), f'{path} is not there'
    args = None
    if any(word.endswith('.sh') for word in words):
        args = check_launcher(line, words, tmp_path, monkeypatch)
    elif words[0] == 'python' and words[1].startswith('tools/'):
        args = parse(ROOT / words[1], words[2:], monkeypatch)
    else:
        check_others(words)
    if getattr(args, 'cfg_options', None):
        config = ROOT / args.config
        cfg = Config.fromfile(config if config.exists() else BASE)
        for key in args.cfg_options:
            parent = cfg
            for name in key.split('.')[:-1] if not key.startswith(('default_hooks.', 'randomness.')) else ():
                parent = parent[int(name) if name.isdigit() else name]  # a typo has no parent
        cfg.merge_from_dict(args.cfg_options)
        build(cfg)


@pytest.mark.parametrize('block', blocks('python'))
def test_python_builds_or_imports(block, tmp_path):
    if re.search('^(import|from) ', block, re.M):
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


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_links_and_paths_lead_somewhere(page):
    text = page.read_text()
    for link in re.findall(r'\[[^\]]*\]\(([^)\s]+)\)', text):
        if link.startswith('https://'):
            continue
        path, _, anchor = link.partition('#')
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link
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


# Runs each command in a process of its own, which has everything imported already.
RUNNER = """
import json, os, runpy, sys, traceback
import yolov7_simple
import mmdet.apis, mmengine.runner, onnx, onnxruntime
for words in json.loads(sys.stdin.read()):
    sys.stdout.flush()
    pid = os.fork()
    if not pid:
        status = 1
        try:
            if words[0].endswith('.py'):
                sys.argv, sys.path[0] = words, os.path.dirname(os.path.realpath(words[0]))
                runpy.run_path(words[0], run_name='__main__')
            else:
                exec(words[0])
            status = 0
        except SystemExit as end:
            status = 1 if end.code else 0
            print(end.code)
        except BaseException:
            traceback.print_exc()
        finally:  # without the clean-up of libraries whose threads are the parent's
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]):
        sys.exit(f'failed: {words}')
"""


def test_from_label_to_deployment(tmp_path):
    """What docs/deployment.md types, on images that are not square, with a frozen backbone."""
    page = ROOT / 'docs/deployment.md'
    (whole_way,) = (block.values[0] for block in blocks('sh', [page]) if 'onnx_detect.py' in block.values[0])
    lines = [shlex.split(line.replace('epoch_50', 'epoch_2'))[1:] for line in whole_way.splitlines()]
    tools = [Path(words[0]).name for words in lines]
    assert tools == ['check_dataset.py', 'train.py', 'test.py', 'detect.py', 'export_onnx.py', 'onnx_detect.py']
    train = lines[1]
    train[1], train[train.index('--epochs') + 1] = 'wide.py', '2'
    train += [*SMALL, 'model.backbone.frozen_stages=4']
    lines += [[block.values[0].replace('epoch_50', 'epoch_2')] for block in blocks('python', [page])]

    write_coco(tmp_path / 'data/mine', size=(160, 96))
    annotations = tmp_path / 'data/mine/annotations'
    (annotations / 'all.json').rename(annotations / 'train.json')
    (tmp_path / 'photo.jpg').write_bytes((tmp_path / 'data/mine/images/0.png').read_bytes())
    (wide,) = (block.values[0] for block in blocks('python', [ROOT / 'docs/image_sizes.md']))
    (tmp_path / 'wide.py').write_text(wide)
    (tmp_path / 'tools').symlink_to(ROOT / 'tools')
    done = subprocess.run(
        [sys.executable, '-c', RUNNER], input=json.dumps(lines), cwd=tmp_path, check=False, timeout=600, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env={**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:]
    assert 'img_size: ' in done.stdout and 'coco/bbox_mAP: ' in done.stdout
    assert 'input batch x 3 x 384 x 640' in done.stdout

    first, second = (torch.load(tmp_path / f'work_dirs/mine/epoch_{i}.pth', weights_only=True) for i in (1, 2))
    same = {key for key, value in first['state_dict'].items() if torch.equal(value, second['state_dict'][key])}
    assert {key for key in first['state_dict'] if key.startswith('backbone.')} <= same
    assert not {key for key in first['state_dict'] if key.startswith('neck.')} <= same  # the neck learns

    by_torch, by_onnx = (
        json.loads((tmp_path / 'outputs' / name / 'detections.json').read_text()) for name in ('torch', 'onnx')
    )
    assert by_torch['images'] == by_onnx['images'] and len(by_torch['images']) == 8
    assert by_torch['annotations'] and by_onnx['annotations']  # the export has compared them
    assert (tmp_path / 'outputs/onnx/pictures').is_dir() and (tmp_path / 'dataset_check/train.png').is_file()
