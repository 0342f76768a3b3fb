"""YOLOv7 without tricks, for MMDetection: importing this package registers all of it in mmdet's registries."""

from . import mmcv_ext

# First of all: without it mmdet's models cannot be imported where mmcv has no compiled ops.
mmcv_ext.install()

from .assigner import BatchSimOTAAssigner  # noqa: E402
from .backbone import ELANNet  # noqa: E402
from .checkpoint import allow_mmengine_checkpoints  # noqa: E402
from .dataset import CheckedCocoDataset  # noqa: E402
from .head import YOLOv7SimpleHead  # noqa: E402
from .hooks import DeviceAwareOptimWrapperConstructor, LastStageHook  # noqa: E402
from .neck import ELANPAFPN  # noqa: E402
from .transforms import BatchMultiScale, MosaicAffineMixUp, RandomHSVGain  # noqa: E402

allow_mmengine_checkpoints()

__version__ = '0.1.0'
__all__ = [
    'ELANPAFPN',
    'BatchMultiScale',
    'BatchSimOTAAssigner',
    'CheckedCocoDataset',
    'DeviceAwareOptimWrapperConstructor',
    'ELANNet',
    'LastStageHook',
    'MosaicAffineMixUp',
    'RandomHSVGain',
    'YOLOv7SimpleHead',
]
