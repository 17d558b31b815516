"""Every field compiles as one graph, once for all times."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter

from tasks.models.cnf import FlowField
from tasks.models.convnet import ConvField
from tasks.models.ode_rnn import TanhField

FIELDS = {
    "images": (ConvField(4), torch.randn(2, 4, 5, 5)),
    "series": (TanhField(4), torch.randn(2, 4)),
    "flow, exact": (FlowField(3, 4, 3, "softplus", "exact"), (torch.randn(2, 3), torch.zeros(2))),
    "flow": (FlowField(3, 4, 3, "tanh", "rademacher"), (torch.randn(2, 3), torch.zeros(2))),
}


@pytest.mark.parametrize("name", sorted(FIELDS))
def test_field_compiles_once(name: str) -> None:
    field, state = FIELDS[name]
    if isinstance(field, FlowField):
        field.draw(state[0], torch.Generator().manual_seed(0))
    torch._dynamo.reset()
    counter = CompileCounter()
    compiled = torch.compile(field, backend=counter, fullgraph=True)
    for time in (0.0, 0.25, 1.0):
        t = torch.tensor(time)
        torch.testing.assert_close(compiled(t, state), field(t, state))
        if isinstance(field, FlowField):
            field.draw(state[0], torch.Generator().manual_seed(1))
    assert counter.frame_count == 1


def test_time_matters_where_the_paper_has_it() -> None:
    for name, (field, state) in FIELDS.items():
        if isinstance(field, FlowField):
            field.draw(state[0], torch.Generator().manual_seed(0))
        early, late = (field(torch.tensor(t), state) for t in (0.0, 1.0))
        first = (early, late) if isinstance(early, torch.Tensor) else (early[0], late[0])
        assert torch.equal(*first) is (name == "series")
        assert isinstance(field, nn.Module)
