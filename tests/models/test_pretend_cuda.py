"""The pretended cards refuse what CUDA refuses, count what waits, and compute what the processor computes."""

import numpy as np
import pytest
import torch
from pretend_cuda import DevicesMixed, cards

from helpers import ROOT
from harness.models import generation, loading, scoring

PROMPTS = ["the film was good and the plot is lovely . answer: " * 3 + "very " * n + "good answer:" for n in range(12)]
LABELS = [" good", " not bad"]


def test_what_cuda_refuses_is_refused():
    with cards(2) as state:
        x = torch.ones(3, device="cuda")
        assert (x + torch.tensor(1.0)).device == torch.device("cuda:0") == x[torch.tensor([0])].device
        for mixed in (lambda: x + torch.ones(3), lambda: x + x.to("cuda:1"), lambda: torch.ones(3)[x.long()]):
            with pytest.raises(DevicesMixed):
                mixed()
        with pytest.raises(TypeError, match="numpy"):
            x.numpy()
        assert x.sum().item() == 3.0 and x.tolist() == [1.0] * 3
        assert state.waits["item", None] == state.waits["tolist", None] == 1
        with pytest.raises(RuntimeError, match="invalid device ordinal 2"):
            x.to("cuda:2")
    assert not torch.cuda.is_available() or torch.version.cuda


def test_bytes_are_counted_until_the_last_view_is_gone():
    with cards():
        start = torch.cuda.memory_allocated()
        x = torch.zeros(1024, device="cuda")
        view = x[:4]
        del x
        assert torch.cuda.memory_allocated() == start + 4096
        del view
        assert torch.cuda.memory_allocated() == start and torch.cuda.max_memory_allocated() == start + 4096
    with cards(limit=4096), pytest.raises(torch.OutOfMemoryError):
        torch.zeros(1025, device="cuda")
