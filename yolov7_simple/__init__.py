"""YOLOv7 without tricks, for MMDetection: importing this package registers all of it in mmdet's registries."""

from __future__ import annotations

import importlib.util
import os

from .utils.configs import config_path

__version__ = '0.1.0'

# Where each registered class is; `yolov7_simple.ELANNet` is the class itself.
_CLASSES = {
    'BatchDetDataPreprocessor': 'models.data_preprocessor',
    'BatchMultiScale': 'models.multi_scale',
    'BatchSimOTAAssigner': 'models.assigner',
    'CheckImageFile': 'datasets.loading',
    'CheckedCocoDataset': 'datasets.coco',
    'CheckpointCheckHook': 'engine.hooks',
    'CosineToEndLR': 'engine.schedulers',
    'DeviceAwareDistributedDataParallel': 'engine.without_gpu',
    'DeviceAwareOptimWrapperConstructor': 'engine.optimizers',
    'ELANNet': 'models.backbone',
    'ELANPAFPN': 'models.neck',
    'ExactFasterCocoMetric': 'evaluation',
    'ExportedDetector': 'deploy.exported',
    'ExportedRunner': 'deploy.exported',
    'FastInferenceHook': 'engine.hooks',
    'FittedRateRunner': 'engine.schedulers',
    'ForeachExpMomentumEMA': 'models.ema',
    'LastStageHook': 'engine.hooks',
    'LossValLoop': 'engine.loops',
    'MemoryFormatHook': 'engine.memory_format',
    'MixDatasetHook': 'engine.hooks',
    'MosaicAffineMixUp': 'datasets.mosaic',
    'NoSyncGIoULoss': 'models.losses',
    'NonFiniteLossHook': 'engine.non_finite',
    'RandomHSVGain': 'datasets.mosaic',
    'ReadableDetVisualizer': 'visualization',
    'ResumableTrainLoop': 'engine.loops',
    'SafeCheckpointHook': 'engine.safe_checkpoint',
    'SeededMixDataset': 'datasets.mix_dataset',
    'TiledDataset': 'datasets.windows',
    'TiledDetector': 'models.tiled',
    'WholePictureCocoMetric': 'evaluation',
    'YOLOv7SimpleHead': 'models.head',
    'packed_collate': 'datasets.packing',
}
__all__ = [*_CLASSES, 'config_path']


def _change_process() -> None:
    """Do all that importing this package changes in the process; nothing else in it does.

    1. ``mmcv._ext`` gets a stand-in where mmcv has no compiled ops, before anything imports mmdet's models.
    2. The classes of ``__all__`` enter mmdet's registries.
    3. ``torch.load`` and mmengine's loader read mmengine's own checkpoints with ``weights_only`` on.
    4. mmengine gets a checkpoint scheme of ours, ``rtodlab://NAME``.
    5. mmengine gets a file backend of ours, which writes checkpoints, and subclasses of its own for HTTP, with timeouts
       and retries, and for LMDB, which workers can share.
    6. Three warnings are filtered: Pillow's, as an unreadable image raises our own error, torch's on meshgrid, and that
       on pinned memory, which the configs ask for and only a GPU has.
    """
    from .ops import mmcv_ext

    mmcv_ext.install()
    for name, module in _CLASSES.items():
        globals()[name] = getattr(importlib.import_module(f'.{module}', __name__), name)

    import warnings

    from mmengine.fileio import register_backend
    from mmengine.runner import CheckpointLoader

    from .datasets.remote import ForkedLmdbBackend, RetryingHTTPBackend
    from .engine.safe_checkpoint import BACKEND, AtomicLocalBackend
    from .models.rtodlab_weights import SCHEME, load_from_rtodlab
    from .utils.checkpoint import allow_mmengine_checkpoints

    allow_mmengine_checkpoints()
    CheckpointLoader.register_scheme(SCHEME, load_from_rtodlab, force=True)
    register_backend(BACKEND, AtomicLocalBackend, force=True)
    register_backend('http', RetryingHTTPBackend, force=True, prefixes=['http', 'https'])
    register_backend('lmdb', ForkedLmdbBackend, force=True)
    warnings.filterwarnings('ignore', module=r'PIL\.')
    warnings.filterwarnings('ignore', message='torch.meshgrid: in an upcoming release')
    warnings.filterwarnings('ignore', message="'pin_memory' argument is set as true")


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
