"""Kill a training run again and again with SIGKILL, go on with --resume, and compare with a run that nothing stopped.

    python tests/manual/kill_and_resume.py --kills 20 --epochs 30

Every other kill comes when half of a checkpoint is written; the others at random moments, from the first second
on. After each, all checkpoints must load and at most one interval of them (an epoch) may be lost. In the end the last
checkpoint must be that of the run without faults, bit for bit: weights, EMA and its step, optimiser, learning rate,
best score, and the history of all logged numbers.
"""

import argparse
import math
import os
import random
import re
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '1')  # a process with more threads cannot be forked
ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / 'tools'), str(ROOT / 'tests')]

import torch  # noqa: E402

STEPS = 4  # of an epoch


def load(path):
    return torch.load(path, weights_only=True)


def assert_same(a, b, path='checkpoint'):
    """Whether two checkpoints are equal, bit for bit, in all but times, paths and the config."""
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


def die_while_writing(countdown: int) -> None:
    """Let this process kill itself half-way through the writing of a file."""
    from mmengine.fileio import LocalBackend

    put = LocalBackend.put

    def put_half(self, obj, path):
        nonlocal countdown
        countdown -= 1
        if countdown:
            return put(self, obj, path)
        put(self, obj[: len(obj) // 2], path)
        print(f'killed while writing {path}', flush=True)
        os.kill(os.getpid(), signal.SIGKILL)

    LocalBackend.put = put_half


def start(config: Path, work_dir: Path, epochs: int, log: Path, die_at: int = 0) -> int:
    """Run tools/train.py --resume in a copy of this process, which has imported everything; return its number.

    Args:
        config: Of the run.
        work_dir: Of the run.
        epochs: Its length.
        log: File for what it prints.
        die_at: Which of the files that it writes it does not survive, or 0.
    """
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

        die_while_writing(die_at)
        mmdet_tool.run('train.py')
        status = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(status)


def was_killed(child: int, is_time: Callable[[], bool] = lambda: False, delay: float = 0) -> bool:
    """Wait for the end of a process, or kill it a while after something is true; False if it came to an end itself."""
    moment = math.inf
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.WIFSIGNALED(status)
        if moment == math.inf and is_time():
            moment = time.time() + delay
        if time.time() > moment:
            os.kill(child, signal.SIGKILL)
            is_time, moment = lambda: False, math.inf
        time.sleep(0.002)


def steps_in(log: Path, before: int) -> tuple[int, int, bool]:
    """First and last step of a run, and whether it failed; ``before`` is the last step of the previous run."""
    text = log.read_text()
    resumed = re.findall(r'resumed epoch: \d+, iter: (\d+)', text)
    done = re.findall(r'Epoch\(train\)\s+\[(\d+)\]\[\s*(\d+)/', text)
    # A run that was killed before its first step has lost nothing.
    first = int(resumed[-1]) if resumed else 0 if done else before
    last = (int(done[-1][0]) - 1) * STEPS + int(done[-1][1]) if done else first
    return first, last, 'Traceback' in text


def kill_and_resume(folder: Path, kills: int, epochs: int, seed: int = 0) -> None:
    """Run it, and print what happens.

    Raises:
        AssertionError: Something was lost.
    """
    from conftest import write_coco
    from tool_runs import write_config

    import yolov7_simple  # noqa: F401

    rng = random.Random(seed)
    write_coco(folder / 'data')
    config = folder / 'config.py'
    write_config(config, folder / 'data')
    straight, work_dir = folder / 'straight', folder / 'killed'
    for path in (straight, work_dir):
        path.mkdir()
    begin = time.time()
    assert not was_killed(start(config, straight, epochs, folder / 'straight.log'))
    seconds = time.time() - begin
    final = f'epoch_{epochs}.pth'
    print(f'Without faults: {epochs} epochs in {seconds:.0f} s, {score(straight / final)}', flush=True)

    last = 0
    for i in range(kills + 1):
        log = folder / f'{i}.log'
        log.touch()  # it may be killed before it has written anything
        child = start(config, work_dir, epochs, log, die_at=rng.randint(1, 3) if i % 2 and i < kills else 0)
        begin = time.time()
        if i == kills:
            in_time, where = not was_killed(child), 'to the end'
        elif i % 2:
            in_time = was_killed(child)
            where = f'killed while writing {", ".join(path.name for path in work_dir.glob(".*"))}'
        else:
            # By steps, not by the clock: machines differ, and their load does.
            room = (epochs * STEPS - last) // (kills - i + 1) - STEPS
            step = last + rng.randint(0, max(room, 0))
            in_time = was_killed(child, lambda log=log, step=step: steps_in(log, 0)[1] >= step, rng.uniform(0, 0.3))
            where = f'killed after {time.time() - begin:.1f} s'
        assert in_time, f'the run ended before kill {i + 1}: more epochs are needed'
        first, reached, failed = steps_in(log, last)
        assert not failed, f'run {i + 1} failed: {log.read_text()[-3000:]}'
        lost, last = last - first, max(reached, first)
        print(f'Run {i + 1}: from step {first} ({lost} lost) to {last}, {where}', flush=True)
        assert 0 <= lost <= STEPS, 'more than one interval of checkpoints was lost'
        for path in work_dir.glob('[!.]*.pth'):
            load(path)
    assert_same(load(work_dir / final), load(straight / final))
    assert not list(work_dir.glob('.*'))
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
