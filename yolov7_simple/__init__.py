"""YOLOv7 without tricks, for MMDetection: importing this package registers all of it in mmdet's registries."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

__version__ = '0.1.0'

# Where each registered class is; `yolov7_simple.ELANNet` is the class itself.
_CLASSES = {
    'BatchMultiScale': 'models.multi_scale',
    'BatchSimOTAAssigner': 'models.assigner',
    'CheckImageFile': 'datasets.loading',
    'CheckedCocoDataset': 'datasets.coco',
    'CheckpointCheckHook': 'engine.hooks',
    'CosineToEndLR': 'engine.schedulers',
    'DeviceAwareDistributedDataParallel': 'engine.without_gpu',
    'DeviceAwareOptimWrapperConstructor': 'engine.without_gpu',
    'ELANNet': 'models.backbone',
    'ELANPAFPN': 'models.neck',
    'ExactFasterCocoMetric': 'evaluation',
    'FastInferenceHook': 'engine.hooks',
    'LastStageHook': 'engine.hooks',
    'LossValLoop': 'engine.loops',
    'MixDatasetHook': 'engine.hooks',
    'MosaicAffineMixUp': 'datasets.mosaic',
    'NonFiniteLossHook': 'engine.hooks',
    'RandomHSVGain': 'datasets.mosaic',
    'ReadableDetVisualizer': 'visualization',
    'ResumableTrainLoop': 'engine.loops',
    'SafeCheckpointHook': 'engine.safe_checkpoint',
    'SeededMixDataset': 'datasets.mix_dataset',
    'YOLOv7SimpleHead': 'models.head',
}
__all__ = [*_CLASSES, 'config_path']


def _change_process() -> None:
    """Do all that importing this package changes in the process; nothing else in it does.

    1. ``mmcv._ext`` gets a stand-in where mmcv has no compiled ops, before anything imports mmdet's models.
    2. The classes of ``__all__`` enter mmdet's registries.
    3. ``torch.load`` and mmengine's loader read mmengine's own checkpoints with ``weights_only`` on.
    4. mmengine gets a file backend of ours, which writes checkpoints.
    5. Two warnings are filtered: Pillow's, as an unreadable image raises our own error, and torch's on meshgrid.
    """
    from .ops import mmcv_ext

    mmcv_ext.install()
    for name, module in _CLASSES.items():
        globals()[name] = getattr(importlib.import_module(f'.{module}', __name__), name)

    import warnings

    from mmengine.fileio import register_backend

    from .engine.safe_checkpoint import BACKEND, AtomicLocalBackend
    from .utils.checkpoint import allow_mmengine_checkpoints

    allow_mmengine_checkpoints()
    register_backend(BACKEND, AtomicLocalBackend, force=True)
    warnings.filterwarnings('ignore', module=r'PIL\.')
    warnings.filterwarnings('ignore', message='torch.meshgrid: in an upcoming release')


# Without mmdet, or where only the runtime is asked for, nothing is registered and torch, which takes seconds to import,
# is not imported; only `yolov7_simple.runtime` works then.
if importlib.util.find_spec('mmdet') is not None and not os.environ.get('YOLOV7_SIMPLE_RUNTIME_ONLY'):
    _change_process()


def __getattr__(name: str) -> object:
    if name in _CLASSES:
        raise ImportError(
            f'yolov7_simple.{name} needs mmdet, which is not installed here, or YOLOV7_SIMPLE_RUNTIME_ONLY is set; '
            'yolov7_simple.runtime works without'
        )
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


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
    return str(configs[name].resolve())  # an editable install links to the checkout's file
