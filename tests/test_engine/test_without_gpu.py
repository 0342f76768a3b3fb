"""Devices without mixed precision and SyncBN: the CPU, and Apple's MPS."""

import pytest
import torch
from torch import nn

from yolov7_simple.engine import without_gpu


@pytest.mark.parametrize(
    ('device', 'expected'),
    [('cpu', False), ('mps', False), ('cuda', True), ('npu', True), ('mlu', True), ('musa', True)],
)
def test_mixed_precision_is_for_devices_that_mmengine_supports(monkeypatch, device, expected):
    monkeypatch.setattr(without_gpu, 'get_device', lambda: device)
    assert without_gpu.has_mixed_precision() is expected


@pytest.mark.parametrize('device', ['cpu', 'mps', 'npu'])
def test_ranks(monkeypatch, device):
    """Without such a device SyncBN is replaced, DDP gets no number of a device, and gloo joins the processes."""
    monkeypatch.setattr(without_gpu, 'get_device', lambda: device)
    made, joined = {}, []
    monkeypatch.setattr(without_gpu.MMDistributedDataParallel, '__init__', lambda self, **options: made.update(options))
    monkeypatch.setattr(torch.distributed, 'init_process_group', joined.append)
    monkeypatch.setattr(torch, 'set_num_threads', lambda number: None)
    monkeypatch.setenv('RANK', '0')
    without_gpu.DeviceAwareDistributedDataParallel(nn.Sequential(nn.SyncBatchNorm(4)), [0])
    without_gpu.join_processes_without_gpu(['--launcher', 'pytorch'])
    assert isinstance(made['module'][0], nn.SyncBatchNorm) is (device == 'npu')
    assert made['device_ids'] == ([0] if device == 'npu' else None)
    assert joined == ([] if device == 'npu' else ['gloo'])
