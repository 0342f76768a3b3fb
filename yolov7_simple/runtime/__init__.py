"""Images -> detections -> pictures and JSON, with numpy, OpenCV and onnxruntime alone.

Nothing here imports torch, mmdet or any other folder of the package.
"""

from .drawing import draw_detections
from .errors import DamagedImageError, InputError, UserError
from .images import read_image
from .onnx_detector import Detections, OnnxDetector

__all__ = [
    'DamagedImageError',
    'Detections',
    'InputError',
    'OnnxDetector',
    'UserError',
    'draw_detections',
    'read_image',
]
