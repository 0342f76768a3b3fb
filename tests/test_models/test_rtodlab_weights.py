"""The original's weights by name, from a server on this machine, in every way that a download can go wrong."""

import argparse
import errno
import hashlib
import os
import subprocess
import sys
import threading
import time

import pytest
import torch
from conftest import ROOT
from mmdet.apis import DetInferencer
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.runner import CheckpointLoader
from published_weights import Release, original, original_backbone

from yolov7_simple.apis.inference import load_inferencer, load_state_dict
from yolov7_simple.models import rtodlab_weights
from yolov7_simple.models.rtodlab import SIZES, convert_state_dict, original_key
from yolov7_simple.models.rtodlab_weights import MIRROR, WEIGHTS
from yolov7_simple.utils.checkpoint import CheckpointError

TINY, LARGE, _ = SIZES
CONFIG = ROOT / 'configs' / 'yolov7' / TINY.config
FILE = WEIGHTS['yolov7_tiny'].file


class Malicious:
    def __reduce__(self):
        return os.system, (f'touch {os.environ["CANARY"]}',)


@pytest.fixture(scope='module')
def published(tmp_path_factory):
    folder = tmp_path_factory.mktemp('published')
    torch.manual_seed(0)
    extras = {'mAP': 39.5, 'epoch': 300, 'args': argparse.Namespace(lr=0.001)}
    torch.save({'model': original(TINY), **extras}, folder / FILE)
    torch.save({'model': original_backbone(TINY)}, folder / WEIGHTS['elannet_tiny'].file)
    torch.save({'model': original(LARGE)}, folder / 'large.pth')
    return folder


@pytest.fixture
def release(published, tmp_path, monkeypatch):
    """A server that has the files, and an empty hub folder."""
    release = Release(tmp_path / 'release')
    release.folder.mkdir()
    for file in published.iterdir():
        (release.folder / file.name).symlink_to(file)
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch'))
    monkeypatch.setenv(MIRROR, release.address)
    yield release
    release.stop()


@pytest.fixture
def hub(tmp_path):
    return tmp_path / 'torch' / 'hub' / 'checkpoints'


def load(name='yolov7_tiny'):
    return CheckpointLoader.load_checkpoint(f'rtodlab://{name}', map_location='cpu')


def kept(hub):
    """Files that a later run would take for weights, or would leave room for."""
    return sorted(path.name for path in hub.iterdir() if path.suffix != '.lock') if hub.is_dir() else []


def test_a_detector_is_downloaded_once_and_converted(release, hub, published, caplog):
    checkpoint = load()
    expected = convert_state_dict(torch.load(published / FILE, weights_only=False)['model'])
    assert checkpoint['state_dict'].keys() == expected.keys()
    assert all(torch.equal(checkpoint['state_dict'][key], value) for key, value in expected.items())
    assert len(checkpoint['meta']['dataset_meta']['classes']) == 80
    assert kept(hub) == [FILE, f'{FILE}.sha256']
    digest = hashlib.sha256((published / FILE).read_bytes()).hexdigest()
    assert (hub / f'{FILE}.sha256').read_text() == f'{digest}  {FILE}\n'
    release.stop()  # no network
    assert torch.equal(load()['state_dict']['neck.spp.fuse.conv.weight'], expected['neck.spp.fuse.conv.weight'])
    assert release.asked == [f'/{FILE}']


@pytest.mark.parametrize('prefix', ['', 'backbone.', 'module.'])
def test_a_backbone_loads_whole_as_pretrained(release, prefix):
    state_dict = original_backbone(TINY)
    torch.save({'model': {prefix + key: value for key, value in state_dict.items()}}, release.folder / 'new.pth')
    (release.folder / 'new.pth').replace(release.folder / WEIGHTS['elannet_tiny'].file)
    init_cfg = {'type': 'Pretrained', 'checkpoint': 'rtodlab://elannet_tiny'}
    backbone = MODELS.build({'type': 'ELANNet', 'arch': 'tiny', 'init_cfg': init_cfg})
    backbone.init_weights()
    for key, value in backbone.state_dict().items():
        source = original_key(f'backbone.{key}', TINY).removeprefix('backbone.')
        assert torch.equal(value, state_dict[source]), key


def test_a_backbone_can_be_cut_out_of_a_detector(release):
    init_cfg = {'type': 'Pretrained', 'checkpoint': 'rtodlab://yolov7_tiny', 'prefix': 'backbone.'}
    backbone = MODELS.build({'type': 'ELANNet', 'arch': 'tiny', 'init_cfg': init_cfg})
    backbone.init_weights()
    expected = load()['state_dict']
    assert all(torch.equal(value, expected[f'backbone.{key}']) for key, value in backbone.state_dict().items())


def test_a_backbone_of_another_size_is_refused(release):
    init_cfg = {'type': 'Pretrained', 'checkpoint': 'rtodlab://elannet_tiny'}
    backbone = MODELS.build({'type': 'ELANNet', 'arch': 'large', 'init_cfg': init_cfg})
    with pytest.raises(CheckpointError, match=r'rtodlab://elannet_tiny is not of this ELANNet: .* missing'):
        backbone.init_weights()


def test_what_mmdet_and_the_tools_load_with(release):
    """The tools come here through `load_from`, `load_inferencer` and `load_state_dict`."""
    name = 'rtodlab://yolov7_tiny'
    alone = DetInferencer(weights=name, device='cpu', show_progress=False)
    checked = load_inferencer(CONFIG, name, 'cpu')
    expected = load_state_dict(name)
    for inferencer in (alone, checked):
        state_dict = inferencer.model.state_dict()
        assert state_dict.keys() == expected.keys()
        assert all(torch.equal(value, expected[key]) for key, value in state_dict.items())
        assert inferencer.model.dataset_meta['classes'][:2] == ('person', 'bicycle')
    with pytest.raises(CheckpointError, match=r'rtodlab://yolov7_tiny is not of the model in .*yolov7_l_8xb16'):
        load_inferencer(CONFIG.with_name(LARGE.config), name, 'cpu')


def test_an_unknown_name_lists_the_names(release):
    with pytest.raises(CheckpointError) as error:
        load('yolov8')
    assert all(f'rtodlab://{name}' in str(error.value) for name in WEIGHTS) and not release.asked


def test_the_second_address_is_tried(release, hub, monkeypatch):
    monkeypatch.delenv(MIRROR)
    addresses = (f'{release.address}/absent', release.address)
    monkeypatch.setattr(rtodlab_weights, 'DETECTOR_RELEASES', addresses)
    load()
    assert release.asked == [f'/absent/{FILE}', f'/{FILE}'] and kept(hub) == [FILE, f'{FILE}.sha256']


def html(body):
    return b'<!DOCTYPE html><html>Please log in</html>'.ljust(len(body))


def save(folder, content):
    (folder / FILE).unlink()
    torch.save(content, folder / FILE)


@pytest.mark.parametrize(
    ('spoil', 'message'),
    [
        (lambda release: (release.folder / FILE).unlink(), 'HTTP 404'),
        (lambda release: release.stop(), 'refused'),
        (lambda release: setattr(release, 'answer', lambda body: body[: len(body) // 2]), 'damaged'),
        (lambda release: setattr(release, 'answer', html), 'web page instead'),
        (lambda release: setattr(release, 'answer', lambda body: b''), 'damaged'),
        (lambda release: save(release.folder, {'model': original(TINY), 'extra': Malicious()}), 'system'),
        (lambda release: save(release.folder, {'model': original(LARGE)}), 'another model of RT-ODLab'),
        (lambda release: save(release.folder, {'model': original(TINY, 20)}), 'another model of RT-ODLab'),
        (lambda release: save(release.folder, {'model': {'a': torch.zeros(1)}}), 'not a YOLOv7 of RT-ODLab'),
    ],
    ids=['404', 'no network', 'cut', 'web page', 'empty', 'malicious', 'other size', 'other classes', 'other network'],
)
def test_what_is_wrong_is_said_and_not_kept(release, hub, published, tmp_path, monkeypatch, spoil, message):
    monkeypatch.setenv('CANARY', str(tmp_path / 'canary'))
    spoil(release)
    with pytest.raises(CheckpointError) as error:
        load()
    text = str(error.value)
    assert message in text and f'{release.address}/{FILE}' in text and MIRROR in text and '\n' not in text
    assert not (tmp_path / 'canary').exists() and not kept(hub)
    # The advice of the message.
    (hub / FILE).symlink_to(published / FILE)
    release.asked.clear()
    assert len(load()['state_dict']) == len(original(TINY)) and not release.asked


def test_a_wrong_address_is_named(release, monkeypatch):
    monkeypatch.setenv(MIRROR, 'mirror')
    with pytest.raises(CheckpointError, match=f'mirror/{FILE}: unknown url type'):
        load()


def test_a_full_disk_is_named_and_left_as_it_was(release, hub, monkeypatch):
    real_open = open

    def full(path, *args, **kwargs):
        file = real_open(path, *args, **kwargs)
        if '.partial' in str(path):
            file.close()

            class Full:
                name = path

                def write(self, data):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

                def close(self):
                    pass

            return Full()
        return file

    monkeypatch.setattr(torch.hub, 'open', full, raising=False)
    with pytest.raises(CheckpointError, match=f'{FILE}: cannot be written: No space left on device; .*TORCH_HOME'):
        load()
    assert not kept(hub)


def test_a_folder_that_cannot_be_made_is_named(release, tmp_path):
    (tmp_path / 'torch').write_text('no folder')
    with pytest.raises(ValueError, match='hub/checkpoints: cannot be made a folder'):
        load()


def test_what_a_killed_process_left_is_removed(release, hub):
    hub.mkdir(parents=True)
    (hub / f'{FILE}.part.123.partial').write_bytes(b'half')
    load()
    assert kept(hub) == [FILE, f'{FILE}.sha256']


def test_a_file_that_has_changed_is_named(release, hub, published):
    load()
    torch.save({'model': original(TINY)}, hub / FILE)
    with pytest.raises(CheckpointError, match=f'{FILE}: has changed: its SHA-256 is .*delete both'):
        load()
    (hub / f'{FILE}.sha256').unlink()  # "the change was yours"
    load()
    torch.save({'model': original(TINY)}, hub / FILE)
    for path in (hub / FILE, hub / f'{FILE}.sha256'):  # "delete both"
        path.unlink()
    load()
    assert (hub / FILE).read_bytes() == (published / FILE).read_bytes()


def test_a_silent_server_is_given_up(release, monkeypatch):
    monkeypatch.setattr('yolov7_simple.utils.download.TIMEOUT', 0.2)
    waiting = threading.Event()

    def silent(body):
        waiting.wait(10)
        return body

    release.answer = silent
    try:
        with pytest.raises(CheckpointError, match='timed out'):
            load()
    finally:
        waiting.set()


def test_processes_that_ask_at_once_download_once(release, hub, tmp_path):
    script = (
        'import pathlib, os, yolov7_simple\n'
        'from mmengine.runner import CheckpointLoader\n'
        'pathlib.Path(f"asks.{os.getpid()}").touch()\n'
        'print(len(CheckpointLoader.load_checkpoint("rtodlab://yolov7_tiny", map_location="cpu")["state_dict"]))'
    )

    def answer_when_both_ask(body):
        for _ in range(600):
            if len(list(tmp_path.glob('asks.*'))) == 2:
                break
            time.sleep(0.1)
        time.sleep(0.5)
        return body

    release.answer = answer_when_both_ask
    environment = {**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1'}
    command = [sys.executable, '-W', 'ignore', '-c', script]
    processes = [
        subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    printed = [process.communicate(timeout=120)[0].splitlines()[-1] for process in processes]
    assert printed == [str(len(original(TINY)))] * 2 and release.asked == [f'/{FILE}']


def test_the_config_in_the_checkpoint_is_the_models(release):
    cfg = Config.fromstring(load()['message_hub']['runtime_info']['cfg'], '.py')
    assert cfg.model == Config.fromfile(CONFIG).model
