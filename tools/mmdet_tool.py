"""Run any tool that mmdet ships, with yolov7_simple imported first.

Example: ``python tools/mmdet_tool.py analysis_tools/browse_dataset.py CONFIG``

The tools then work where mmcv has no compiled ops (mmcv-lite), and distributed ones also without a GPU.
"""

import argparse
import os
import runpy
import subprocess
import sys
from pathlib import Path

import installed  # noqa: F401

import yolov7_simple  # noqa: F401  (before mmdet: it stands in for missing mmcv ops)
from yolov7_simple.runtime.errors import run_tool
from yolov7_simple.utils.checkpoint import CAN_READ_SAFELY


def tools_dir() -> Path:
    """Find mmdet's tools: in the installed package, or beside it in a checkout."""
    import mmdet

    package = Path(mmdet.__file__).parent
    for folder in (package / '.mim' / 'tools', package.parent / 'tools'):
        if (folder / 'train.py').is_file():
            return folder
    sys.exit(f'This mmdet ({package}) has no tools: install mmdet 3.x from its wheel, or from a checkout.')


def join_processes_without_gpu() -> None:
    """Start torch.distributed on the CPU, for which mmengine requires a GPU."""
    import torch
    import torch.distributed as dist
    from mmengine.device import get_device

    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument('--launcher', default='none')  # of mmdet's tools
    launcher = parser.parse_known_args()[0].launcher
    if launcher == 'none' or get_device() != 'cpu':
        return
    if launcher == 'slurm' and 'SLURM_PROCID' in os.environ:
        use_slurms_numbers()
    if 'RANK' in os.environ:
        # The processes share the cores; torchrun's default is one thread each.
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // int(os.environ.get('LOCAL_WORLD_SIZE', 1))))
        dist.init_process_group('gloo')


def use_slurms_numbers() -> None:
    """Set torch.distributed's variables from slurm's, as mmengine does with a GPU."""
    nodes = subprocess.run(
        ['scontrol', 'show', 'hostnames', os.environ['SLURM_NODELIST']], stdout=subprocess.PIPE, text=True, check=True
    ).stdout.split()
    os.environ.setdefault('MASTER_ADDR', nodes[0])
    os.environ.setdefault('MASTER_PORT', '29500')
    os.environ.update(
        RANK=os.environ['SLURM_PROCID'],
        LOCAL_RANK=os.environ['SLURM_LOCALID'],
        WORLD_SIZE=os.environ['SLURM_NTASKS'],
        LOCAL_WORLD_SIZE=os.environ.get('SLURM_NTASKS_PER_NODE', os.environ['SLURM_NTASKS']),
    )


def run(tool: str) -> None:
    """Run a tool of mmdet with the arguments of this process."""
    path = tools_dir() / tool
    if not path.is_file():
        names = sorted(str(p.relative_to(tools_dir())) for p in tools_dir().rglob('*.py'))
        sys.exit(f'mmdet has no tool {tool}. It has:\n  ' + '\n  '.join(names))
    join_processes_without_gpu()
    sys.argv[0] = str(path)
    sys.path.insert(0, str(path.parent))
    if CAN_READ_SAFELY:
        # mmengine downloads checkpoints with torch.hub, which would otherwise run code pickled in them.
        os.environ['TORCH_FORCE_WEIGHTS_ONLY_LOAD'] = '1'
    runpy.run_path(str(path), run_name='__main__')


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1] in ('-h', '--help'):
        sys.exit(__doc__)
    run(sys.argv.pop(1))


if __name__ == '__main__':
    run_tool(main)
