"""Checkpoints and folders of runs say what made them."""

import hashlib
import json
import subprocess
import sys

import mmengine
import torch
from kill_and_resume import load

from yolov7_simple.engine.provenance import annotation_files, code_version, provenance_differences


def test_a_run_says_what_made_it(run, project, tmp_path):
    runner = run(tmp_path / 'first', **{'train_cfg.max_epochs': 1})
    found = load(tmp_path / 'first/epoch_1.pth')['meta']['provenance']
    (file,) = (tmp_path / 'first').glob('*/provenance.json')
    assert json.loads(file.read_text()) == found
    digest = hashlib.sha256((project / 'data/annotations/all.json').read_bytes()).hexdigest()
    assert found['training annotations'] == found['validation annotations'] == f'all.json sha256:{digest[:16]}'
    assert (found['torch'], found['mmengine']) == (torch.__version__, mmengine.__version__)
    assert (found['ranks'], found['seed']) == ('1', str(runner.seed))
    assert found['command'].startswith(sys.orig_argv[0]) and sys.orig_argv[-1] in found['command']
    assert all(isinstance(value, str) for value in found.values())
    # The same labels with a space more: another file.
    labels = (project / 'data/annotations/all.json').read_text()
    (tmp_path / 'all.json').write_text(labels + ' ')
    options = {'train_dataloader.dataset.dataset.ann_file': str(tmp_path / 'all.json')}
    run(tmp_path / 'second', resume=tmp_path / 'first/epoch_1.pth', **{**options, 'train_cfg.max_epochs': 2})
    (log,) = (tmp_path / 'second').glob('*/*.log')
    rows = [line for line in log.read_text().splitlines() if 'annotations' in line and 'sha256' in line]
    assert len(rows) == 1 and rows[0].split()[0] == 'training' and digest[:16] in rows[0]


def test_commit_of_a_checkout(tmp_path, monkeypatch):
    module = tmp_path / 'yolov7_simple/engine/provenance.py'
    module.parent.mkdir(parents=True)
    module.write_text('')
    monkeypatch.setattr('yolov7_simple.engine.provenance.__file__', str(module))
    version = code_version()
    assert 'commit' not in version
    identity = ['-c', 'user.name=a', '-c', 'user.email=a@b.c']
    for command in (['init', '-q'], ['add', '.'], [*identity, 'commit', '-qm', 'A']):
        subprocess.run(['git', *command], cwd=tmp_path, check=True)
    commit = subprocess.run(
        ['git', 'rev-parse', '--short=12', 'HEAD'], cwd=tmp_path, check=True, capture_output=True, text=True
    ).stdout.strip()
    assert code_version() == f'{version}, commit {commit}'
    module.write_text('# changed')
    assert code_version() == f'{version}, commit {commit}+'


def test_what_differs():
    saved = {'command': 'a', 'seed': '1', 'torch': '2.6.0', 'numpy': '2', 'mmcv': '2.1.0'}
    now = {'command': 'b', 'seed': '2', 'torch': '2.13.0', 'numpy': '2', 'mmcv-lite': '2.1.0'}
    assert provenance_differences(saved, now) == [('torch', '2.6.0', '2.13.0')]


def test_datasets_without_a_file_have_none():
    assert annotation_files(torch.utils.data.TensorDataset(torch.zeros(1))) == []
