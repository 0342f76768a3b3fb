"""Kill a training run again and again with SIGKILL, go on with --resume, and compare with a run that nothing stopped.

    python tests/kill_and_resume.py --kills 20 --epochs 30

Every other kill waits until a checkpoint is being written; the others come at random moments, from the first second
on. After each, all checkpoints must load and at most one interval of them (an epoch) may be lost. In the end the last
checkpoint must be that of the run without faults, bit for bit: weights, EMA and its step, optimiser, learning rate,
best score, and the history of all logged numbers.
"""

import argparse
import os
import random
import re
import signal
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '1')  # a process with more threads cannot be forked
ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / 'tools'), str(ROOT / 'tests')]

import torch  # noqa: E402

STEPS = 4  # of an epoch


def load(path):
    return torch.load(path, weights_only=True)


def assert_same(a, b, path='checkpoint'):
    """Bit for bit, for anything in a checkpoint but times, paths and the config."""
    assert type(a) is type(b), path
    if isinstance(a, dict):
        assert set(a) == set(b), path
        for key in a:
            if not any(word in str(key) for word in ('time', 'cfg', 'ckpt', 'experiment_name', 'eta', 'resumed_keys')):
                assert_same(a[key], b[key], f'{path}.{key}')
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), path
        for i, (x, y) in enumerate(zip(a, b)):
            assert_same(x, y, f'{path}[{i}]')
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b), path
    elif hasattr(a, 'data'):  # mmengine's HistoryBuffer
        assert [part.tolist() for part in a.data] == [part.tolist() for part in b.data], path
    else:
        assert a == b or a != a, path


def start(config: Path, work_dir: Path, epochs: int, log: Path) -> int:
    """Run tools/train.py --resume in a copy of this process, which has imported everything; return its number."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT), 1)
        os.dup2(1, 2)
        options = [f'train_cfg.max_epochs={epochs}', 'default_hooks.checkpoint.max_keep_ckpts=1', 'log_level=INFO']
        sys.argv = ['train.py', str(config), '--work-dir', str(work_dir), '--resume', '--cfg-options', *options]
        import mmdet_tool

        mmdet_tool.run('train.py')
        status = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(status)


def is_written(work_dir: Path) -> bool:
    return any(name.endswith('.part') for name in os.listdir(work_dir))


def wait(child: int, is_moment) -> bool:
    """Kill a process at a moment; False if it ended before."""
    while True:
        if os.waitpid(child, os.WNOHANG)[0]:
            return False
        if is_moment():
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return True
        time.sleep(0.0005)


def steps_in(log: Path) -> tuple[int, int, bool]:
    """From which step on a run was, its last one, and whether it came to an end of its own."""
    text = log.read_text()
    resumed = re.findall(r'resumed epoch: \d+, iter: (\d+)', text)
    done = re.findall(r'Epoch\(train\)\s+\[(\d+)\]\[\s*(\d+)/', text)
    first = int(resumed[-1]) if resumed else 0
    last = (int(done[-1][0]) - 1) * STEPS + int(done[-1][1]) if done else first
    return first, last, 'Traceback' in text


def kill_and_resume(folder: Path, kills: int, epochs: int, seed: int = 0) -> None:
    """Do it, say what happens.

    Raises:
        AssertionError: Something was lost.
    """
    from conftest import write_coco
    from test_tools import write_config

    import yolov7_simple  # noqa: F401

    rng = random.Random(seed)
    write_coco(folder / 'data')
    config = folder / 'config.py'
    write_config(config, folder / 'data')
    straight, work_dir = folder / 'straight', folder / 'killed'
    for path in (straight, work_dir):
        path.mkdir()
    begin = time.time()
    assert not wait(start(config, straight, epochs, folder / 'straight.log'), lambda: False)
    seconds = time.time() - begin
    final = f'epoch_{epochs}.pth'
    print(f'Without faults: {epochs} epochs in {seconds:.0f} s, {score(straight / final)}', flush=True)

    last = 0
    for i in range(kills + 1):
        log = folder / f'{i}.log'
        child = start(config, work_dir, epochs, log)
        begin = time.time()
        if i == kills:
            in_time, where = not wait(child, lambda: False), 'to the end'
        elif i % 2:
            in_time = wait(child, lambda: is_written(work_dir))
            where = f'killed while writing {", ".join(path.stem for path in work_dir.glob("*.part")) or "(just ended)"}'
        else:
            moment = begin + rng.uniform(0, 2 * seconds / (kills + 2) + 2)
            in_time = wait(child, lambda moment=moment: time.time() > moment)
            where = f'killed after {time.time() - begin:.1f} s'
        assert in_time, f'the run ended before kill {i + 1}: more epochs are needed'
        first, reached, failed = steps_in(log)
        assert not failed, f'run {i + 1} failed: {log.read_text()[-3000:]}'
        lost, last = last - first, max(reached, first)
        print(f'Run {i + 1}: from step {first} ({lost} lost) to {last}, {where}', flush=True)
        assert 0 <= lost <= STEPS, 'more than one interval of checkpoints was lost'
        for path in work_dir.glob('*.pth'):
            load(path)
    assert_same(load(work_dir / final), load(straight / final))
    assert not list(work_dir.glob('*.part'))
    print(f'{kills} kills later: the same to the last bit, {score(work_dir / final)}')


def score(path: Path) -> str:
    best = load(path)['message_hub']
    last = best['log_scalars']['val/coco/bbox_mAP'].current()
    return f'mAP {last}, best {best["runtime_info"]["best_score"]}'


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--kills', type=int, default=20)
    parser.add_argument('--epochs', type=int, default=30)
    parser.add_argument('--seed', type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        kill_and_resume(Path(name), arguments.kills, arguments.epochs, arguments.seed)
