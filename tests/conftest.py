"""One thread: results to the bit, and other work on the machine undisturbed."""

from __future__ import annotations

import signal

import pytest
import torch

torch.set_num_threads(1)
# a shell that starts pytest in the background makes it ignore Ctrl-C, and then there is nothing to test
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _global_state_is_left_alone():
    """No call of scoresde may leave the default dtype, the gradient mode or the number of threads changed."""
    before = torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_num_threads()
    yield
    assert (torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_num_threads()) == before
