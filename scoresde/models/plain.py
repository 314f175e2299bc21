"""The network itself, without what torch puts around it: ``torch.compile``, ``nn.DataParallel`` and their like."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


def plain(net: nn.Module) -> nn.Module:
    """The network inside ``torch.compile(net)``, ``nn.DataParallel(net)`` and ``DistributedDataParallel(net)``, in whatever order
    they were put around it; any other network as it is.

    It has the same parameters (the same tensors), and names them as it did before it was wrapped. What a wrapper cannot do takes
    this: a compiled network has one first derivative and no second one, replicas have no batched ones, and neither has the state dict
    of the network.
    """
    while True:
        if isinstance(net, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            net = net.module
        elif is_compiled(net):
            net = dict(net.named_children())["_orig_mod"]
        else:
            return net


def is_compiled(net: nn.Module) -> bool:
    """Whether this is what ``torch.compile(net)`` gave."""
    dynamo: Any = sys.modules.get("torch._dynamo")  # who compiles has imported it; it takes two seconds
    return dynamo is not None and isinstance(net, dynamo.OptimizedModule)


_eager_lock = threading.Lock()
_eager: list[Any] = []  # of all threads that are within ``eagerly``: the stance of torch.compile belongs to the process


@contextmanager
def eagerly(model: nn.Module) -> Iterator[None]:
    """Calls of this model run as if nothing in it were compiled: for answers that are to be differentiated.

    It is for the parts of a network that were compiled, and for ``net.compile()``, where ``plain`` finds nothing to take off.
    """
    if "torch._dynamo" not in sys.modules or torch.compiler.is_compiling() or not _has_compiled_parts(model):
        yield
        return
    with _eager_lock:
        if not _eager:
            _eager.append(torch.compiler.set_stance("force_eager"))
        else:
            _eager.append(None)
    try:
        yield
    finally:
        with _eager_lock:
            first = _eager.pop(0)
            if _eager:
                _eager[0] = first
            else:
                first.__exit__(None, None, None)


def _has_compiled_parts(model: nn.Module) -> bool:
    return any(is_compiled(m) or m._compiled_call_impl is not None for m in model.modules())
