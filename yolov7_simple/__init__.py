"""YOLOv7 without tricks, for MMDetection: importing this package registers all of it in mmdet's registries."""

from pathlib import Path

from . import mmcv_ext

# First of all: without it mmdet's models cannot be imported where mmcv has no compiled ops.
mmcv_ext.install()

from .assigner import BatchSimOTAAssigner  # noqa: E402
from .backbone import ELANNet  # noqa: E402
from .checkpoint import CheckpointCheckHook, allow_mmengine_checkpoints  # noqa: E402
from .dataset import CheckedCocoDataset  # noqa: E402
from .fast import FastInferenceHook  # noqa: E402
from .faster_coco import ExactFasterCocoMetric  # noqa: E402
from .head import YOLOv7SimpleHead  # noqa: E402
from .hooks import DeviceAwareDistributedDataParallel, DeviceAwareOptimWrapperConstructor, LastStageHook, MixDatasetHook  # noqa: E402
from .images import CheckImageFile  # noqa: E402
from .loops import LossValLoop, ResumableTrainLoop  # noqa: E402
from .mix_dataset import SeededMixDataset  # noqa: E402
from .multi_scale import BatchMultiScale  # noqa: E402
from .neck import ELANPAFPN  # noqa: E402
from .safety import NonFiniteLossHook, SafeCheckpointHook  # noqa: E402
from .transforms import MosaicAffineMixUp, RandomHSVGain  # noqa: E402
from .visualizer import ReadableDetVisualizer  # noqa: E402

allow_mmengine_checkpoints()

__version__ = '0.1.0'
__all__ = [
    'ELANPAFPN',
    'BatchMultiScale',
    'BatchSimOTAAssigner',
    'CheckImageFile',
    'CheckedCocoDataset',
    'CheckpointCheckHook',
    'DeviceAwareDistributedDataParallel',
    'DeviceAwareOptimWrapperConstructor',
    'ELANNet',
    'ExactFasterCocoMetric',
    'FastInferenceHook',
    'LastStageHook',
    'LossValLoop',
    'MixDatasetHook',
    'MosaicAffineMixUp',
    'NonFiniteLossHook',
    'RandomHSVGain',
    'ReadableDetVisualizer',
    'ResumableTrainLoop',
    'SafeCheckpointHook',
    'SeededMixDataset',
    'YOLOv7SimpleHead',
    'config_path',
]


def config_path(name: str) -> str:
    """Find a config that comes with this package, for ``_base_ = __import__('yolov7_simple').config_path(...)``.

    Args:
        name: File name, such as ``'yolov7_tiny_8xb16-300e_coco.py'``.

    Returns:
        Its absolute path, in the installed package or in the checkout that it is installed from.

    Raises:
        FileNotFoundError: There is no config of that name; the message lists those that there are.
    """
    package = Path(__file__).resolve().parent
    folder = package / '.mim' if (package / '.mim').is_dir() else package.parent
    configs = {path.name: path for path in sorted((folder / 'configs' / 'yolov7').glob('*.py'))}
    if name not in configs:
        raise FileNotFoundError(f'yolov7_simple has no config {name!r}; it has: {", ".join(configs)}')
    return str(configs[name].resolve())  # of an editable install the file in the checkout, not the link to it
