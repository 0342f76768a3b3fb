"""Count kernel launches and waits of one training step, and waits of one prediction, without a GPU.

    python tools/benchmarks/count_launches.py [--against DIR]

A step of each config runs on fake CUDA tensors: 16 images at 640 with 7 boxes each, mixed precision and EMA as in the
recipe. What a launch and a wait are is in ``launches.py``. With ``--against`` another checkout is counted too, in a
process of its own, and its figures come first. ``--waits`` names the callers of each wait.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import warnings
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = {'Tiny': 'yolov7_tiny_8xb16-300e_coco.py', 'L': 'yolov7_l_8xb16-300e_coco.py'}


def count(args: argparse.Namespace) -> dict:
    """Count with the package that this process imports: launches and waits of each model."""
    from yolov7_simple import config_path

    # isort: split
    from launches import FakeRun, fake_gpu
    from mmengine.config import Config
    from mmengine.logging import MMLogger
    from mmengine.registry import init_default_scope

    warnings.simplefilter('ignore')
    MMLogger.get_instance('mmengine', log_level='ERROR')
    init_default_scope('mmdet')
    found = {}
    with fake_gpu():
        for name in args.models:
            run = FakeRun(Config.fromfile(config_path(CONFIGS[name])), args.images, args.size, args.boxes)
            run.train_step()  # the first one makes the optimiser's state
            step, prediction = run.train_step(), run.predict()
            found[name] = {'launches': step.of_stage()}
            for what, counter in (('a step', step), ('a prediction', prediction)):
                for whose, is_ours in (('ours', True), ('the host', False)):
                    waits = [wait for wait in counter.waits if wait.is_ours == is_ours]
                    found[name][f'waits of {whose}, {what}'] = len(waits)
                    for wait, times in Counter((wait.op, wait.callers[:2]) for wait in waits).items():
                        found[name].setdefault('callers', []).append(f'{name}, {what}: {times} {wait}')
    return found


def count_in(checkout: Path, args: argparse.Namespace) -> dict:
    """Count with the package of a checkout, in a process of its own."""
    command = [sys.executable, __file__, '--json', '--models', *args.models]
    command += [f'--{name}={getattr(args, name)}' for name in ('images', 'size', 'boxes')]
    environment = {**os.environ, 'PYTHONPATH': str(checkout)}
    output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment).stdout
    return json.loads(output.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--models', nargs='+', choices=list(CONFIGS), default=list(CONFIGS))
    parser.add_argument('--against', type=Path, metavar='DIR', help='another checkout')
    parser.add_argument('--images', type=int, default=16, help='default: 16')
    parser.add_argument('--size', type=int, default=640, help='in pixels; default: 640')
    parser.add_argument('--boxes', type=int, default=7, help='an image; default: 7')
    parser.add_argument('--waits', action='store_true', help='name the callers of the waits')
    parser.add_argument('--json', action='store_true', help='print what --against reads')
    args = parser.parse_args()
    if args.json:
        print(f'\n{json.dumps(count(args))}')
        return
    checkouts = {'before': args.against.resolve(), 'now': ROOT} if args.against else {'now': ROOT}
    counts = {label: count_in(checkout, args) for label, checkout in checkouts.items()}
    columns = [(name, label) for name in args.models for label in counts]
    print('| launches a step | ' + ' | '.join(f'{name}, {label}' for name, label in columns) + ' |')
    print('| --- ' + '| ---: ' * len(columns) + '|')
    found = [counts[label][name] for name, label in columns]
    stages = [stage for stage in dict.fromkeys(stage for one in found for stage in one['launches'])]
    rows = {stage: [one['launches'].get(stage, 0) for one in found] for stage in stages}
    rows['**total**'] = [sum(one['launches'].values()) for one in found]
    rows |= {key: [one[key] for one in found] for key in found[0] if key.startswith('waits')}
    for name, values in rows.items():
        print(f'| {name} | ' + ' | '.join(f'{value:,}' for value in values) + ' |')
    if args.waits:
        for label, models in counts.items():
            print(f'\n{label}:', *(line for one in models.values() for line in one.get('callers', ())), sep='\n  ')


if __name__ == '__main__':
    main()
