"""A model that several threads use at once."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import nn

import scoresde as sd
from scoresde.models.base import frozen, inference


class Drops(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.dropout = nn.Linear(3, 2), nn.Dropout(0.5)

    def forward(self, x, c_noise):
        return self.dropout(self.linear(torch.cat([x, c_noise[:, None]], 1)))


def model():
    torch.manual_seed(0)
    return sd.NetworkModel(Drops(), sd.VPSDE(), (2,)).train()


def test_sampling_in_threads_is_sampling():
    found = model()
    expected = [sd.sample(found, 4, steps=30, seed=seed) for seed in range(24)]
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(lambda seed: sd.sample(found, 4, steps=30, seed=seed), range(24)))
    assert all(torch.equal(a, b) for a, b in zip(together, expected, strict=True))
    assert all(module.training for module in found.modules())


def test_the_last_one_gives_the_model_back():
    found = model()
    found.net.dropout.eval()  # as the user left it
    inside, leave = threading.Event(), threading.Event()

    def stay():
        with inference(found), frozen(found):
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=stay)
    thread.start()
    inside.wait(10)
    with inference(found), frozen(found):
        assert not found.training
    assert not found.training
    assert not any(p.requires_grad for p in found.parameters())
    leave.set()
    thread.join()
    assert found.training
    assert not found.net.dropout.training
    assert all(p.requires_grad for p in found.parameters())
