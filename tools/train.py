"""Train a detector: mmdet's tools/train.py and its flags, and one command for a folder of one's own data.

    python tools/train.py CONFIG [--epochs NUM] [flags]
    python tools/train.py CONFIG --data DIR [--pretrained [WEIGHTS]] [--epochs NUM | --time TIME] [--tile [SIDE]]
        [flags]

DIR has images, and labels of COCO, YOLO, VOC, labelme or another format of docs/own_data.md. Classes, size of the
images, batch, learning rate and length are planned from it and told; what --cfg-options says wins. --epochs sets the
length of the training by hand: the schedule, the last stage and the validations follow it. --time 30m (2h, 1h30m, 90s)
lets it end in that time: a few steps are measured first. With --resume the plan of the first start stays. --pretrained
starts from trained weights, by a recipe for that: a name, a checkpoint file, or else those for COCO of the config's
size. --tile is for small objects in large pictures: it trains, validates and detects in windows of SIDE pixels, or of
what suits the boxes. It is on by itself where more than a third of the boxes would be below 8 pixels; --no-tile forbids
it.

On a GPU the batch is as large as memory and set allow, up to twice the config's learning rate;
--cfg-options train_dataloader.batch_size=16 sets it.

The screen shows the plan, progress and results. --verbose shows all that goes into the log file, too; with a launcher
it is on.
"""

from __future__ import annotations

import argparse
import os
import sys
import textwrap
from pathlib import Path

from installed import BEGIN

from mmdet_tool import run
from mmengine.config import DictAction

from yolov7_simple.apis.inference import load_config
from yolov7_simple.doctor.doctor import summary
from yolov7_simple.own_data.config import own_config
from yolov7_simple.own_data.wall_time import WallTime
from yolov7_simple.runtime.errors import InputError, run_tool

USAGE = '%(prog)s CONFIG --data DIR [--pretrained [WEIGHTS]] [--epochs NUM | --time TIME] [--tile [SIDE]] [flags]'


def tile_side(text: str) -> int | str:
    """Read the value of --tile, which is 'auto' where it has none."""
    if text == 'auto':
        return text
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f'{text!r} is no whole number of pixels') from None


def use_own_data() -> None:
    """Put a config for --data in place of the one on the command line."""
    parser = argparse.ArgumentParser(allow_abbrev=False, usage=USAGE)
    parser.add_argument('config')
    parser.add_argument('--data', required=True)
    parser.add_argument('--pretrained', nargs='?', const='')
    parser.add_argument('--epochs', type=int)
    tile = parser.add_mutually_exclusive_group()
    tile.add_argument('--tile', nargs='?', type=tile_side, const='auto', metavar='SIDE')
    tile.add_argument('--no-tile', action='store_const', dest='tile', const=0)
    parser.add_argument('--work-dir')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, default={})
    parser.add_argument('--time')
    args, flags = parser.parse_known_args()
    if args.pretrained is not None and 'load_from' in args.cfg_options:
        parser.error('--pretrained and load_from= both say where to start from: give one of them')
    if args.time is not None and (args.epochs is not None or 'train_cfg.max_epochs' in args.cfg_options):
        parser.error('--time and --epochs (or train_cfg.max_epochs=) both say how long to train: give one of them')
    wall_time = None if args.time is None else WallTime.parse(args.time, BEGIN)
    name = f'{Path(args.config).stem}_{Path(args.data).resolve().name}'
    work_dir = Path(args.work_dir or Path('work_dirs') / name)
    resumed, launcher = find_resumed(flags, args.cfg_options, work_dir)
    config, data, plan = own_config(
        args.config,
        args.data,
        work_dir,
        args.epochs,
        args.pretrained,
        args.cfg_options,
        args.tile,
        wall_time,
        resumed,
        launcher,
    )
    # torchrun's name, and slurm's.
    if os.environ.get('RANK', os.environ.get('SLURM_PROCID', '0')) == '0':
        print(*summary(data, load_config(config)), f'{config}:', textwrap.indent(plan, '  '), sep='\n', flush=True)
    sys.argv[1:] = [str(config), '--work-dir', str(work_dir), *flags]


def find_resumed(flags: list[str], options: dict, work_dir: Path) -> tuple[Path | None, str]:
    """Find the work dir of the run that goes on, if one does, and the launcher among the flags."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument('--resume', nargs='?', const='auto')
    parser.add_argument('--launcher', default='none')
    args = parser.parse_known_args(flags)[0]
    file = options.get('load_from') if args.resume in (None, 'auto') else args.resume
    if args.resume is None and not options.get('resume'):
        return None, args.launcher
    return Path(file).parent if file else work_dir, args.launcher


def take_epochs() -> None:
    """Turn --epochs into the option of the config that rules the length."""
    parser = argparse.ArgumentParser(allow_abbrev=False, add_help=False)
    parser.add_argument('--epochs', type=int)
    args, flags = parser.parse_known_args()
    if args.epochs is None:
        return
    if args.epochs < 1:
        parser.error(f'--epochs {args.epochs}: must be at least 1')
    if any(flag.startswith('train_cfg.max_epochs=') for flag in flags):
        parser.error('--epochs and train_cfg.max_epochs= both say how long to train: give one of them')
    sys.argv[1:] = [*flags, '--cfg-options', f'train_cfg.max_epochs={args.epochs}']


def main() -> None:
    take_epochs()
    given = {argument.split('=')[0] for argument in sys.argv[1:]}
    if '--data' in given:
        use_own_data()
    elif '--time' in given:
        raise InputError('--time plans a training with --data: give the folder of the data, or set --epochs')
    elif 'train_dataloader.batch_size=auto' in sys.argv[1:]:
        raise InputError('train_dataloader.batch_size=auto needs --data, or give a number')
    elif given & {'--tile', '--no-tile'}:
        raise InputError('--tile: needs --data, a folder of your own data; in a config, TiledDataset and TiledDetector')
    elif {'-h', '--help'} & set(sys.argv[1:]):
        print(__doc__)
    run('train.py', short=True)


if __name__ == '__main__':
    run_tool(main)
