"""The command lines, run as a user runs them, on a set of eight images and a model of an eighth of Tiny's width."""

import os
import pickle
import re
import shlex
import signal
import struct
import subprocess
import sys

import pytest
import torch
from conftest import ROOT
from tool_runs import metric, scalars, tool


@pytest.fixture(scope='module')
def trained(project):
    """Two epochs, the second of them the last stage."""
    return tool('train.py', 'config.py', '--work-dir', 'work', fresh=True, cwd=project)


def test_training(project, trained):
    assert "'pin_memory' argument" not in trained  # of which torch would warn
    records = [record for record in scalars(project / 'work') if 'loss' in record]
    assert len(records) == 8  # two epochs of four steps: the image without a box is used
    assert ['loss_l1' in record for record in records] == [False] * 4 + [True] * 4
    assert {'loss_obj', 'loss_cls', 'loss_bbox', 'grad_norm', 'lr'} <= set(records[0])
    names = {path.name for path in (project / 'work').iterdir()}
    assert {'epoch_1.pth', 'epoch_2.pth', 'last_checkpoint', 'config.py'} <= names
    assert any(name.startswith('best_coco_bbox_mAP') for name in names)
    checkpoint = torch.load(project / 'work' / 'epoch_2.pth', weights_only=True)
    assert {'state_dict', 'ema_state_dict', 'optimizer', 'message_hub'} <= set(checkpoint)


def read_log(work_dir):
    (log,) = work_dir.glob('*/*.log')
    return log.read_text()


def test_the_screen_shows_plan_rows_and_what_comes_next(project, trained):
    lines = trained.splitlines()
    assert len(lines) <= 40
    assert trained.count('No GPU: training in float32') == 1 and 'Last stage from epoch 2' in trained
    assert len([line for line in lines if 'Training: 2 epochs of 4 steps of 2 images, on CPU in float32' in line]) == 1
    rows = [re.fullmatch(r'epoch (\d) of 2   loss +(\S+)   mAP (\S+)   mAP_50 \S+( +best)?.*', line) for line in lines]
    rows = [row.groups() for row in rows if row]
    assert [row[0] for row in rows] == ['1', '2'] and rows[0][3]
    records = scalars(project / 'work')
    losses = [record['loss'] for record in records if 'loss' in record]
    assert float(rows[0][1]) == pytest.approx(losses[3], abs=1e-3)  # the log has the mean, too
    scores = [record['coco/bbox_mAP'] for record in records if 'loss' not in record]
    assert [float(row[2]) for row in rows] == scores
    assert bool(rows[1][3]) == (scores[1] > scores[0])
    assert f'best mAP {max(scores):.3f}' in trained
    log = read_log(project / 'work')
    for text in ('System environment', 'Epoch(train)', 'Accumulating evaluation results'):
        assert text in log and text not in trained, text
    assert 'deprecated' not in trained


def test_what_comes_next_is_what_must_be_typed(project, trained):
    *_, before, detect, report, export = trained.splitlines()
    assert before.startswith('Next')
    for line, made in (
        (detect, 'outputs/detections.json'),
        (report, 'work/report.html'),
        (export, 'work/config.onnx'),
    ):
        if made.endswith('.onnx'):
            pytest.importorskip('onnxruntime')
        python, path, *arguments = shlex.split(line)
        assert python in ('python', sys.executable)
        printed = tool(os.path.relpath(path, ROOT / 'tools'), *arguments, cwd=project)
        assert (project / made).is_file() and len(printed.splitlines()) < 20


def test_verbose_shows_what_the_log_has(project, tmp_path):
    output = tool('train.py', project / 'config.py', '--work-dir', tmp_path, '--verbose', '--cfg-options',
                  'train_cfg.max_epochs=1')  # fmt: skip
    assert 'System environment' in output and 'Epoch(train) [1][4/4]' in output and 'Done after' not in output


def test_a_terminal_has_a_line_of_progress_which_ctrl_c_ends(project, tmp_path):
    pty = pytest.importorskip('pty')
    import fcntl
    import termios

    child, terminal = pty.fork()
    if not child:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # ignored where the tests run in the background of a shell
        options = ['--cfg-options', 'train_cfg.max_epochs=500', 'model.backbone.frozen_stages=1']
        command = [ROOT / 'tools/train.py', project / 'config.py', '--work-dir', tmp_path, *options]
        os.execv(sys.executable, [sys.executable, *map(str, command)])
    shown, pressed = b'', False
    try:
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack('HHHH', 24, 80, 0, 0))
        while True:
            shown += os.read(terminal, 4096)
            if not pressed and b'   mAP ' in shown:
                os.write(terminal, b'\x03')
                pressed = True
    except OSError:  # it has ended
        pass
    finally:
        os.close(terminal)
        _, status = os.waitpid(child, 0)
    text = shown.decode()
    assert os.waitstatus_to_exitcode(status) == 130 and 'Traceback' not in text, text
    assert re.search(r'\r.*epoch 1/500  [1-4]/4  loss \S+  \S+ images/s  .* left', text), text
    assert re.search(r'\repoch   1 of 500   loss +\S+   mAP ', text), text  # the row begins where progress was
    assert text.endswith('\rInterrupted. A training goes on with --resume, from its last checkpoint.\r\n'), text
    # One line for all the frozen tensors, whose names the log has.
    assert text.count('requires_grad=False') == 1 and 'more like it, in the log' in text
    assert read_log(tmp_path).count('requires_grad=False') > 10


def test_evaluating_the_dumped_config_gives_the_same(project, trained):
    output = tool('test.py', project / 'work' / 'config.py', project / 'work' / 'epoch_2.pth',
                  '--work-dir', project / 'test')  # fmt: skip
    assert metric(output) == f'{scalars(project / "work")[-1]["coco/bbox_mAP"]:.4f}'
    assert len(output.splitlines()) <= 40


def test_evaluating_leaves_the_config_that_training_saved(project, trained):
    """With --tta or other options the config would describe another model, which other tools could not use."""
    saved = (project / 'work' / 'config.py').read_bytes()
    tool('test.py', project / 'work' / 'config.py', project / 'work' / 'epoch_2.pth', '--work-dir', project / 'work',
         '--cfg-options', 'model.test_cfg.score_thr=0.1')  # fmt: skip
    assert (project / 'work' / 'config.py').read_bytes() == saved


def test_resuming_goes_on_where_it_stopped(project, trained):
    output = tool('train.py', project / 'config.py', '--work-dir', project / 'resumed', '--resume',
                  project / 'work' / 'epoch_1.pth')  # fmt: skip
    assert 'goes on after epoch 1, step 4' in output
    assert 'Last stage from epoch 2' in output
    records = [record for record in scalars(project / 'resumed') if 'loss' in record]
    assert len(records) == 4 and all('loss_l1' in record for record in records)
    before = [record for record in scalars(project / 'work') if 'loss' in record]
    assert [record['lr'] for record in records] == [record['lr'] for record in before[4:]]


def test_any_tool_of_mmdet_runs(project):
    output = tool('mmdet_tool.py', 'misc/print_config.py', project / 'config.py', fresh=True)
    assert 'YOLOv7SimpleHead' in output
    assert 'analysis_tools/browse_dataset.py' in tool('mmdet_tool.py', 'no_such_tool.py', ok=False)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (['model.backbone.arch=small'], "arch must be one of ['huge', 'large', 'tiny'], got 'small'"),
        (['model.backbone.widen_factor=0.25'], 'set neck.in_channels to what the backbone puts out'),
        (['model.bbox_head.in_channels=32'], 'set bbox_head.in_channels to the out_channels of the neck'),
        (['model.bbox_head.num_classes=3'], '`num_classes` (3) in YOLOv7SimpleHead'),
        (['train_dataloader.dataset.dataset.ann_file=nowhere.json'], 'No annotation file at'),
    ],
)
def test_mistakes_stop_the_run_before_the_first_step(project, tmp_path, options, message):
    output = tool('train.py', project / 'config.py', '--work-dir', tmp_path, '--cfg-options', *options, ok=False)
    assert message in output
    assert not scalars(tmp_path)
    assert not list(tmp_path.glob('*.pth'))


def test_a_checkpoint_of_another_size_is_refused(project, trained, tmp_path):
    output = tool('test.py', project / 'config.py', project / 'work' / 'epoch_2.pth', '--work-dir', tmp_path,
                  '--cfg-options', 'model.bbox_head.num_classes=5', ok=False)  # fmt: skip
    assert 'the checkpoint is not of this model: 6 of another shape, such as bbox_head.cls_preds.0.weight' in output


class Payload:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.makedirs, (self.folder,)


@pytest.mark.parametrize(
    'command',
    [
        'test.py CONFIG EVIL --work-dir WORK',
        'train.py CONFIG --resume EVIL --work-dir WORK',
        'train.py CONFIG --cfg-options load_from=EVIL --work-dir WORK',
        'model_converters/rtodlab_to_mmdet.py EVIL OUT.pth',
        'export_onnx.py CONFIG EVIL OUT.onnx',
        'detect.py CONFIG EVIL IMAGES --out-dir WORK',
    ],
)
def test_a_malicious_checkpoint_does_nothing_and_is_refused(project, tmp_path, command):
    evil, made = tmp_path / 'evil.pth', tmp_path / 'made'
    torch.save({'state_dict': {'weight': torch.ones(1)}, 'payload': Payload(made)}, evil)
    pickle.loads(pickle.dumps(Payload(made)))
    made.rmdir()  # the folder was made, so the attack works where it is not prevented
    places = {
        'CONFIG': project / 'config.py',
        'EVIL': evil,
        'WORK': tmp_path / 'work',
        'OUT': tmp_path / 'out',
        'IMAGES': project / 'data/images',
    }
    output = tool(*re.sub(r'[A-Z]+', lambda match: str(places[match[0]]), command).split(), ok=False)
    assert not made.exists()
    assert f'{evil}: not a checkpoint that can be read safely' in output and 'makedirs' in output
    assert 'Traceback' not in output and 'weights_only' not in output
    assert not list(tmp_path.glob('out*')) and not list(tmp_path.glob('work/*.pth'))


@pytest.mark.parametrize('script', ['dist_train.sh', 'dist_test.sh', 'slurm_train.sh', 'slurm_test.sh'])
def test_launchers_say_how_they_are_used(script):
    assert f'{script} ' in tool(script, ok=False)
    subprocess.run(['bash', '-n', ROOT / 'tools' / script], check=True)
