"""Run any tool that mmdet ships, with yolov7_simple imported first.

Example: ``python tools/mmdet_tool.py analysis_tools/browse_dataset.py CONFIG``

The tools then work where mmcv has no compiled ops (mmcv-lite), and distributed ones also without a GPU.
"""

import argparse
import os
import runpy
import sys
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import installed  # noqa: F401

from mmengine.config import Config, DictAction

from yolov7_simple.apis.config_options import check_config_options, length_options
from yolov7_simple.deploy.exported import SUFFIXES as EXPORTED_SUFFIXES
from yolov7_simple.engine.screen import short_screen
from yolov7_simple.engine.screen_hook import ScreenHook
from yolov7_simple.engine.without_gpu import join_processes_without_gpu
from yolov7_simple.runtime.errors import InputError, run_tool
from yolov7_simple.utils.checkpoint import CAN_READ_SAFELY

# That mmengine reads configs from.
CONFIG_SUFFIXES = ('.py', '.yaml', '.yml', '.json')


def tools_dir() -> Path:
    """Find mmdet's tools: in the installed package, or beside it in a checkout."""
    import mmdet

    package = Path(mmdet.__file__).parent
    for folder in (package / '.mim' / 'tools', package.parent / 'tools'):
        if (folder / 'train.py').is_file():
            return folder
    sys.exit(f'This mmdet ({package}) has no tools: install mmdet 3.x from its wheel, or from a checkout.')


def take_verbose() -> bool:
    """Take --verbose out of the arguments; return whether mmengine's logs are shown, as they are under a launcher."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument('--verbose', action='store_true')
    parser.add_argument('--launcher', default='none')
    args = parser.parse_known_args()[0]
    if args.verbose:
        sys.argv.remove('--verbose')
    return args.verbose or args.launcher != 'none'


def take_engine() -> str | None:
    """Take --engine out of the arguments."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument('--engine')
    args, sys.argv[1:] = parser.parse_known_args()
    return args.engine


def check_options(tool: str, arguments: list[str], engine: str | None = None) -> list[str]:
    """Check the --cfg-options of a tool.

    Args:
        tool: Its path among mmdet's.
        arguments: Of its command line; the first file of a config's kind is the config.
        engine: What runs an exported file.

    Returns:
        Arguments to add, with which the rest of the config follows the options.

    Raises:
        UserError: One of the options would change nothing.
    """
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument('--cfg-options', nargs='+', action=DictAction)
    try:
        args, others = parser.parse_known_args(arguments)
    except ValueError as error:  # of DictAction
        raise InputError('--cfg-options: each one must be KEY=VALUE, and the config comes before them') from error
    is_exported = tool == 'test.py' and any(one.endswith(EXPORTED_SUFFIXES) for one in others)
    if engine is not None and not is_exported:
        raise InputError('--engine is for an exported file, MODEL.onnx')
    if not args.cfg_options and tool != 'train.py' and not is_exported:
        return []  # the file may be no config
    config = next((one for one in others if Path(one).suffix in CONFIG_SUFFIXES and Path(one).is_file()), None)
    if config is None:
        return []  # the tool says so
    cfg, options = Config.fromfile(config), args.cfg_options or {}
    check_config_options(cfg, options)
    more = length_options(cfg, options)
    if tool == 'train.py' and 'runner_type' not in {*cfg, *options}:
        more['runner_type'] = 'mmdet.FittedRateRunner'
    if is_exported:
        more.update(runner_type='mmdet.ExportedRunner', engine=engine or 'onnxruntime')
    return ['--cfg-options', *(f'{key}={value}'.replace(' ', '') for key, value in more.items())] if more else []


def run(tool: str, short: bool = False) -> None:
    """Run a tool of mmdet with the arguments of this process.

    Args:
        tool: Its path among mmdet's.
        short: Show what fits on a screen, unless --verbose is among the arguments.
    """
    own_folder = Path(sys.argv[0]).parent
    path = tools_dir() / tool
    if not path.is_file():
        names = sorted(str(p.relative_to(tools_dir())) for p in tools_dir().rglob('*.py'))
        sys.exit(f'mmdet has no tool {tool}. It has:\n  ' + '\n  '.join(names))
    engine = take_engine() if tool == 'test.py' else None
    sys.argv += check_options(tool, sys.argv[1:], engine)
    join_processes_without_gpu(sys.argv[1:])
    sys.argv[0] = str(path)
    sys.path.insert(0, str(path.parent))
    if CAN_READ_SAFELY:
        # mmengine downloads checkpoints with torch.hub, which would otherwise run code pickled in them.
        os.environ['TORCH_FORCE_WEIGHTS_ONLY_LOAD'] = '1'
    is_short = short and not take_verbose()
    with short_screen(partial(ScreenHook, tools=own_folder)) if is_short else nullcontext():
        runpy.run_path(str(path), run_name='__main__')


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1] in ('-h', '--help'):
        sys.exit(__doc__)
    run(sys.argv.pop(1))


if __name__ == '__main__':
    run_tool(main)
