"""What runs an exported file: ONNX Runtime or OpenVINO, each with the same few methods."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from .errors import InputError


class Engine(Protocol):
    """A loaded file.

    Attributes:
        metadata: Of the file, as text.
        input_size: Height and width of the input; None: any.
        session: The engine's own object.
    """

    session: object
    metadata: dict[str, str]
    input_size: tuple[int, int] | None

    def run(self, images: NDArray[np.float32], names: Sequence[str]) -> list[NDArray]:
        """Compute the outputs of these names for images (B, 3, H, W)."""


class OnnxRuntimeEngine:
    """ONNX Runtime, on a GPU if it can.

    Args:
        path: ONNX file.
        num_threads: None: one for each core.

    Raises:
        InputError: The package is missing, or cannot load the file.
    """

    def __init__(self, path: Path, num_threads: int | None = None) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise InputError(f'{path}: ONNX files need onnxruntime: pip install onnxruntime ({error})') from error
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        if num_threads is not None:
            options.intra_op_num_threads = num_threads
        try:
            self.session = onnxruntime.InferenceSession(str(path), options, providers=pick_providers(onnxruntime))
        except Exception as error:  # onnxruntime's errors have no common base class
            raise InputError(f'{path}: onnxruntime cannot load it: {str(error).splitlines()[0]}') from error
        self.metadata = dict(self.session.get_modelmeta().custom_metadata_map)
        height, width = self.session.get_inputs()[0].shape[-2:]
        self.input_size = (height, width) if isinstance(height, int) else None

    def run(self, images: NDArray[np.float32], names: Sequence[str]) -> list[NDArray]:
        """Compute the outputs of these names."""
        return self.session.run(list(names), {'images': images})


class OpenVINOEngine:
    """OpenVINO, on the CPU.

    Args:
        path: ONNX file.
        num_threads: None: as many as OpenVINO likes.

    Raises:
        InputError: The package is missing, or cannot load the file.
    """

    def __init__(self, path: Path, num_threads: int | None = None) -> None:
        try:
            import openvino
        except ImportError as error:
            raise InputError(f'{path}: engine openvino needs its package: pip install openvino ({error})') from error
        # Where a processor has bfloat16 or float16, OpenVINO would compute with that, and give other numbers.
        options: dict[str, object] = {'INFERENCE_PRECISION_HINT': 'f32', 'PERFORMANCE_HINT': 'LATENCY'}
        if num_threads is not None:
            options['INFERENCE_NUM_THREADS'] = num_threads
        try:
            core = openvino.Core()
            model = core.read_model(str(path))
            self.session = core.compile_model(model, 'CPU', options)
        except RuntimeError as error:
            reason = next((line for line in reversed(str(error).splitlines()) if line.strip()), '')
            raise InputError(f'{path}: openvino cannot load it: {reason}') from error
        info = model.get_rt_info()
        own = dict(info['framework']) if 'framework' in info else {}  # where OpenVINO puts a file's metadata
        self.metadata = {key: str(getattr(value, 'value', value)) for key, value in own.items()}
        height, width = list(self.session.input(0).partial_shape)[-2:]
        self.input_size = (height.get_length(), width.get_length()) if height.is_static else None
        self._lock = Lock()  # one request, that one thread at a time can use

    def run(self, images: NDArray[np.float32], names: Sequence[str]) -> list[NDArray]:
        """Compute the outputs of these names."""
        with self._lock:
            outputs = self.session({'images': images})
        return [outputs[name] for name in names]


ENGINES = {'onnxruntime': OnnxRuntimeEngine, 'openvino': OpenVINOEngine}


def load_engine(name: str, path: Path, num_threads: int | None = None) -> Engine:
    """Load a file.

    Args:
        name: A key of ``ENGINES``.
        path: ONNX file.
        num_threads: None: the engine's default.

    Raises:
        InputError: There is no such engine, or it is not installed, or there is no such file, or it cannot be loaded.
    """
    if name not in ENGINES:
        raise InputError(f'engine {name}: there is none of this name, but {", ".join(ENGINES)}')
    if not path.is_file():
        raise InputError(f'{path}: no such ONNX file')
    return ENGINES[name](path, num_threads)


def pick_providers(onnxruntime) -> list[str]:
    """CUDA, where this build of onnxruntime has it, then the CPU."""
    return [
        name
        for name in ('CUDAExecutionProvider', 'CPUExecutionProvider')
        if name in onnxruntime.get_available_providers()
    ]
