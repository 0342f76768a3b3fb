"""`--cfg-options compile=True` trains; mmengine compiles the whole step."""

import copy

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import ConfigDict
from mmengine.model import BaseModel
from mmengine.optim import build_optim_wrapper
from mmengine.utils import digit_version
from test_optimizers import RECIPE, make_model
from test_ranks import make_batch


class Small(BaseModel):
    def __init__(self):
        super().__init__()
        self.layers = make_model().float()

    def forward(self, inputs, data_samples=None, mode='loss'):
        return {'loss': self.layers(inputs).square().mean()}


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def test_a_compiled_step_trains_as_it_does_otherwise():
    """The optimiser's groups must be plain dicts: dynamo refuses mmengine's ConfigDicts."""
    weights = []
    for is_compiled in (False, True):
        model = Small()
        wrapper = build_optim_wrapper(model, ConfigDict(copy.deepcopy(RECIPE)))
        step = torch.compile(model.train_step, backend='aot_eager') if is_compiled else model.train_step
        for seed in range(3):
            torch.manual_seed(seed)
            step({'inputs': torch.randn(4, 3, 6, 6)}, optim_wrapper=wrapper)
        weights.append([parameter.detach().clone() for parameter in model.parameters()])
    before = [parameter.detach() for parameter in Small().parameters()]
    for plain, compiled, start in zip(*weights, before):
        torch.testing.assert_close(compiled, plain, rtol=1e-4, atol=1e-5)
        assert not torch.equal(plain, start)


@pytest.mark.skipif(digit_version(torch.__version__) < digit_version('2.13'), reason='older dynamo breaks more often')
def test_network_and_loss_are_one_graph(small_model_cfg):
    model = MODELS.build(copy.deepcopy(small_model_cfg))
    model.bbox_head.use_l1 = True
    batch = model.data_preprocessor(make_batch([3, 0]), True)
    found = torch._dynamo.explain(lambda **batch: model(**batch, mode='loss'))(**batch)
    assert (found.graph_count, found.graph_break_count) == (1, 0), found.break_reasons
