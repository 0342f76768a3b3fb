"""Several processes train one model; when one dies, the job ends and can be resumed. More ranks: --ranks 8."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT, write_coco
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.optim import OptimWrapper
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from mmengine.structures import InstanceData
from mmengine.utils import digit_version
from tool_runs import fork_server, free_port, scalars, tool, write_config
from torch import nn

import yolov7_simple  # noqa: F401
from yolov7_simple.engine.without_gpu import DeviceAwareDistributedDataParallel

RANKS, IMAGES = 8, 2


def make_batch(num_boxes: list[int]) -> dict:
    """Images with these numbers of boxes."""
    samples = []
    for count in num_boxes:
        corner, size = torch.rand(count, 2) * 40, torch.rand(count, 2) * 20 + 4
        boxes, labels = torch.cat([corner, corner + size], 1), torch.randint(0, 2, (count,))
        sample = DetDataSample(metainfo={'img_shape': (64, 64), 'img_path': 'x.jpg'})
        sample.gt_instances = InstanceData(bboxes=boxes, labels=labels)
        sample.ignored_instances = InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.long))
        samples.append(sample)
    return {
        'inputs': [torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8) for _ in num_boxes],
        'data_samples': samples,
    }


def make_whole_batch() -> dict:
    """Data that is equal in each process. Some ranks get no box, and numbers of boxes differ widely."""
    torch.manual_seed(0)
    return make_batch([5, 0, 0, 0, 1, 2, 12, 3, 0, 1, 4, 4, 7, 0, 2, 30])


def part(batch: dict, start: int, stop: int) -> dict:
    return {key: values[start:stop] for key, values in batch.items()}


def make_model(cfg: dict) -> nn.Module:
    init_default_scope('mmdet')
    torch.manual_seed(0)
    model = MODELS.build(cfg)
    model.init_weights()
    model.bbox_head.use_l1 = True
    return model


def losses_and_gradients(model: nn.Module, batch: dict) -> tuple[dict, dict]:
    """With BatchNorm's statistics fixed."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    detector = getattr(model, 'module', model)
    losses = model(**detector.data_preprocessor(batch, True), mode='loss')
    sum(losses.values()).backward()
    numbers = {name: loss.item() for name, loss in losses.items()}
    return numbers, {name: parameter.grad.clone() for name, parameter in detector.named_parameters()}


def be_a_rank(rank: int, folder: str, cfg: dict) -> None:
    """What each process does."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group('gloo', f'file://{folder}/store', rank=rank, world_size=RANKS)
    model = DeviceAwareDistributedDataParallel(make_model(cfg))
    batch = part(make_whole_batch(), rank * IMAGES, (rank + 1) * IMAGES)
    result = {'same': losses_and_gradients(model, batch)}

    # In each step one rank has no boxes, one has a shorter batch, and one is late.
    torch.manual_seed(rank)
    batch = make_batch([0, 0] if rank == 1 else [3] if rank == 2 else [2, 0])
    wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.01))
    keys = []
    for _ in range(3):
        if rank == 3:
            time.sleep(0.5)
        losses = model.train_step(batch, wrapper)
        assert all(value.isfinite() for value in losses.values())
        keys.append(list(losses))
    result['keys'] = keys
    result['weight'] = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
    torch.save(result, f'{folder}/{rank}.pt')
    torch.distributed.destroy_process_group()


@pytest.fixture(scope='module')
def results(tmp_path_factory, small_model_cfg):
    """One rank with sixteen images computes the same as eight ranks with two."""
    folder = tmp_path_factory.mktemp('ranks')
    fork_server()
    torch.multiprocessing.start_processes(be_a_rank, (str(folder), small_model_cfg), RANKS, start_method='forkserver')
    ranks = [torch.load(folder / f'{rank}.pt', weights_only=True) for rank in range(RANKS)]
    return losses_and_gradients(make_model(small_model_cfg), make_whole_batch()), ranks


def test_eight_ranks_of_two_images_are_one_of_sixteen(results):
    (losses, gradients), ranks = results
    for name, loss in losses.items():
        assert sum(rank['same'][0][name] for rank in ranks) / RANKS == pytest.approx(loss, rel=1e-4, abs=1e-4)
    for rank in ranks:
        for name, gradient in gradients.items():
            torch.testing.assert_close(rank['same'][1][name], gradient, rtol=1e-4, atol=1e-4, msg=name)
    assert max(gradient.abs().max() for gradient in gradients.values()) > 0.1


def test_ranks_without_boxes_with_fewer_images_or_late_do_not_matter(results):
    _, ranks = results
    assert all(rank['keys'] == [['loss', 'loss_obj', 'loss_bbox', 'loss_cls', 'loss_l1']] * 3 for rank in ranks)
    assert all(torch.equal(rank['weight'], ranks[0]['weight']) for rank in ranks)


@pytest.fixture(scope='module')
def project(tmp_path_factory):
    folder = tmp_path_factory.mktemp('project')
    write_coco(folder / 'data', num_images=15)  # not divisible by any number of ranks in use
    write_config(folder / 'config.py', folder / 'data')
    return folder


def launch(config: Path, work_dir: Path, ranks: int, *arguments: str, log: str = 'log', **environment: str):
    """Start tools/dist_train.sh."""
    work_dir.mkdir(exist_ok=True)
    return subprocess.Popen(
        [ROOT / 'tools' / 'dist_train.sh', config, str(ranks), '--work-dir', work_dir, *arguments],
        env={**os.environ, 'PYTHON': sys.executable, 'PORT': free_port(), **environment},
        stdout=(work_dir / log).open('w'),
        stderr=subprocess.STDOUT,
    )


def end(process: subprocess.Popen, log: Path, seconds: float = 240) -> str:
    """Wait for a job; return what it printed."""
    try:
        process.wait(seconds)
    finally:
        process.kill()
    return log.read_text()


def wait_for(process: subprocess.Popen, log: Path, pattern: str) -> None:
    """Wait until a job has printed something."""
    while not re.search(pattern, log.read_text()):
        assert process.poll() is None, log.read_text()[-4000:]
        time.sleep(0.02)


def pid_of_rank(launcher: int, rank: int) -> int:
    for child in Path(f'/proc/{launcher}/task/{launcher}/children').read_text().split():
        if f'\0RANK={rank}\0'.encode() in Path(f'/proc/{child}/environ').read_bytes():
            return int(child)
    raise LookupError(f'no process of rank {rank}')


def test_a_killed_rank_ends_the_job_which_goes_on(project, num_ranks):
    """Kill a rank and resume; signal the job as slurm does and resume to the end; evaluate on many ranks and on one."""
    config, work_dir = project / 'config.py', project / 'work'
    steps = -(-15 // (2 * num_ranks))
    # Enough steps that the model detects something; with more images a step, more are needed.
    num_epochs = 2 * num_ranks**2
    epochs = ['--cfg-options', f'train_cfg.max_epochs={num_epochs}', f'train_cfg.val_interval={num_epochs}']
    log = work_dir / 'log'
    process = launch(config, work_dir, num_ranks, *epochs)
    wait_for(process, log, r'Epoch\(train\)\s+\[2\]')
    os.kill(pid_of_rank(process.pid, 1), signal.SIGKILL)
    begin = time.time()
    output = end(process, log)
    assert time.time() - begin < 60
    assert process.returncode != 0
    assert re.search(r'rank +: 1 ', output) and 'Signal 9 (SIGKILL)' in output

    process = launch(config, work_dir, num_ranks, '--resume', *epochs)
    wait_for(process, log, rf'Epoch\(train\)\s+\[\d+\]\[1/{steps}\]')
    # torchrun hands SIGUSR1 on since torch 2.9.
    number = signal.SIGUSR1 if digit_version(torch.__version__) >= digit_version('2.9') else signal.SIGTERM
    process.send_signal(number)
    output = end(process, log)
    resumed = int(re.search(r'resumed epoch: (\d+)', output)[1])
    assert process.returncode != 0 and resumed >= 1
    file, step = re.search(rf'{number.name}: stopped after step (\d+), saved as \S*/(\S+.pth)', output).group(2, 1)
    assert (work_dir / file).is_file() and file.endswith(f'_iter_{step}.pth')

    process = launch(config, work_dir, num_ranks, '--resume', *epochs)
    output = end(process, log)
    assert process.returncode == 0, output[-4000:]
    assert f'iter: {step}' in output and output.count('No GPU: training in float32') == 1
    last = work_dir / f'epoch_{num_epochs}.pth'
    assert torch.load(last, weights_only=True)['meta']['iter'] == num_epochs * steps

    tool('dist_test.sh', config, last, num_ranks, '--work-dir', project / 'many', PORT=free_port())
    many = json.loads(next((project / 'many').glob('*/*.json')).read_text())
    cfg = Config.fromfile(config)
    cfg.work_dir, cfg.load_from = str(project / 'one'), str(last)
    one = Runner.from_cfg(cfg).test()
    assert {key: many[key] for key in one} == one and one['coco/bbox_mAP'] > 0  # to the last printed digit


def test_two_nodes(project):
    work_dir = project / 'nodes'
    port = free_port()
    nodes = [
        launch(project / 'config.py', work_dir, 1, log=f'log{node}', NNODES='2', NODE_RANK=str(node),
               MASTER_ADDR='127.0.0.2', PORT=port)
        for node in range(2)
    ]  # fmt: skip
    outputs = [end(node, work_dir / f'log{i}') for i, node in enumerate(nodes)]
    assert [node.returncode for node in nodes] == [0, 0], outputs[0][-3000:] + outputs[1][-3000:]
    assert len([record for record in scalars(work_dir) if 'loss' in record]) == 2 * 4  # of 2 x 2 images
    assert torch.load(work_dir / 'epoch_2.pth', weights_only=True)['meta']['iter'] == 8


# What slurm does for a job of one node, as far as the tools can see: a process for each task, with numbers.
SRUN = """#!/usr/bin/env bash
while [[ $1 == -* ]]; do
    case $1 in
        -p) shift ;;
        --ntasks=*) export SLURM_NTASKS=${1#*=} ;;
        --ntasks-per-node=*) export SLURM_NTASKS_PER_NODE=${1#*=} ;;
    esac
    shift
done
export SLURM_NODELIST=here
for ((i = 0; i < SLURM_NTASKS; i++)); do SLURM_PROCID=$i SLURM_LOCALID=$i "$@" & done
status=0
for job in $(jobs -p); do wait "$job" || status=$?; done
exit "$status"
"""


def test_slurms_launcher(project, tmp_path):
    for name, text in (('srun', SRUN), ('scontrol', '#!/bin/sh\necho 127.0.0.1\n')):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    places = {'PATH': f'{tmp_path}:{os.environ["PATH"]}', 'MASTER_PORT': free_port()}
    output = tool('slurm_train.sh', 'gpu', 'yolov7', project / 'config.py', tmp_path / 'work', '--cfg-options',
                  'train_cfg.max_epochs=1', GPUS='2', GPUS_PER_NODE='2', **places)  # fmt: skip
    assert output.count('No GPU: training in float32') == 1
    assert len([record for record in scalars(tmp_path / 'work') if 'loss' in record]) == 4  # 15 images, 2 ranks of 2
    assert torch.load(tmp_path / 'work' / 'epoch_1.pth', weights_only=True)['meta']['iter'] == 4
