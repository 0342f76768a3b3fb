"""Run the step again at which a training stopped with a value that is not finite, and say where it comes from.

    python tools/replay_step.py CONFIG WORK_DIR/non_finite.pth

It names the first layer whose output is not finite while its inputs are, else the first loss or gradient. The status is
0 if a value was not finite again, and 1 if all were finite, or an argument is wrong.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import installed  # noqa: F401

from mmengine.device import get_device

from yolov7_simple.apis.config_options import load_config
from yolov7_simple.apis.inference import quiet
from yolov7_simple.engine.replay import replay_step
from yolov7_simple.runtime.errors import run_tool


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='of the run, as in its work dir')
    parser.add_argument('step', type=Path, help='non_finite.pth of the run')
    parser.add_argument('--device', default=get_device(), help='such as cpu or cuda:0; default: the best there is')
    return parser.parse_args()


def main() -> int:
    args = parse_args()
    cfg = load_config(args.config)
    with quiet():
        replay = replay_step(cfg, args.config, args.step, args.device)
    print(*replay.lines, sep='\n')
    return 0 if replay.is_found else 1


if __name__ == '__main__':
    run_tool(main)
