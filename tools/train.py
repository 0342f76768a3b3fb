"""Train a detector: mmdet's tools/train.py and its flags, and one command for a folder of one's own data.

    python tools/train.py CONFIG --data DIR [--epochs NUM] [flags]

DIR has images, and annotations in the form of COCO (one JSON a split, or one for all), YOLO, VOC or labelme. Classes,
schedule and learning rate are set from it; --epochs sets the length of the training by hand.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from mmdet_tool import run

from yolov7_simple.apis.inference import load_config
from yolov7_simple.own_data.config import own_config
from yolov7_simple.own_data.doctor import summary
from yolov7_simple.runtime.errors import InputError
from yolov7_simple.utils.checkpoint import CheckpointError


def use_own_data() -> None:
    """Put a config for --data in place of the one on the command line."""
    parser = argparse.ArgumentParser(allow_abbrev=False, usage='%(prog)s CONFIG --data DIR [--epochs NUM] [flags]')
    parser.add_argument('config')
    parser.add_argument('--data', required=True)
    parser.add_argument('--epochs', type=int)
    parser.add_argument('--work-dir')
    args, flags = parser.parse_known_args()
    if args.epochs is not None and args.epochs < 1:
        parser.error(f'--epochs {args.epochs}: must be at least 1')
    name = f'{Path(args.config).stem}_{Path(args.data).resolve().name}'
    work_dir = Path(args.work_dir or Path('work_dirs') / name)
    config, data, schedule = own_config(args.config, args.data, work_dir, args.epochs)
    # torchrun's name, and slurm's.
    if os.environ.get('RANK', os.environ.get('SLURM_PROCID', '0')) == '0':
        print(*summary(data, load_config(config)), f'{config}: {schedule}', sep='\n', flush=True)
    sys.argv[1:] = [str(config), '--work-dir', str(work_dir), *flags]


if __name__ == '__main__':
    if any(argument.split('=')[0] == '--data' for argument in sys.argv[1:]):
        try:
            use_own_data()
        except (InputError, CheckpointError) as error:
            sys.exit(f'error: {error}')
    elif {'-h', '--help'} & set(sys.argv[1:]):
        print(__doc__)
    run('train.py')
