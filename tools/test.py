"""Evaluate a detector: mmdet's tools/test.py and its flags, which keeps the config that training saved.

In the place of the checkpoint it also takes an exported file, MODEL.onnx, and evaluates that; --engine openvino runs it
with OpenVINO.
--verbose shows all that goes into the log file, too; with a launcher it is on.
"""

import sys
from pathlib import Path

from mmdet_tool import run
from mmengine.runner import Runner

from yolov7_simple.runtime.errors import run_tool


def keep_saved_config() -> None:
    """Do not overwrite a saved config, since with --tta the new one would be of another model."""
    dump_config = Runner.dump_config

    def dump_if_new(runner: Runner) -> None:
        if not Path(runner.work_dir, Path(runner.cfg.filename or '').name).is_file():
            dump_config(runner)

    Runner.dump_config = dump_if_new


def main() -> None:
    keep_saved_config()
    if {'-h', '--help'} & set(sys.argv[1:]):
        print(__doc__)
    run('test.py', short=True)


if __name__ == '__main__':
    run_tool(main)
