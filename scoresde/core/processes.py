"""Who are the processes, and what they agree on."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any, NamedTuple

import torch
from torch import distributed

from scoresde.errors import ConfigError, SolverError

PATIENCE = timedelta(days=7)  # that a process waits for one with more, or slower, pieces


class Team(NamedTuple):
    """The processes that share the work: ``rank`` of this one, how many there are, and the device that this one computes on."""

    rank: int = 0
    world: int = 1
    device: torch.device = torch.device("cpu")

    @classmethod
    def find(cls) -> Team:
        """All processes of ``torchrun``, or of torch.distributed where that is at work already; else this one alone.

        Raises:
            ConfigError: WORLD_SIZE is set, but not the other variables that torchrun sets.
        """
        if not distributed.is_available():
            return cls()
        if not distributed.is_initialized():
            if int(os.environ.get("WORLD_SIZE", "1")) < 2:
                return cls()
            missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
            if missing:
                raise ConfigError(
                    f"WORLD_SIZE = {os.environ['WORLD_SIZE']}, but {missing[0]} is not set: start the processes with torchrun, or "
                    "share=False for this process alone"
                )
            distributed.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=PATIENCE)
        return cls(distributed.get_rank(), distributed.get_world_size())

    @classmethod
    def to_train(cls, where: torch.device) -> Team:
        """The same, or those of another launcher, each with a device of its own, as accelerate finds them; ``where`` is where the
        model is."""
        from accelerate.state import PartialState  # an Accelerator would also fix a precision for the whole process

        cls.find()
        usable = torch.cuda.is_available() or (hasattr(torch, "xpu") and torch.xpu.is_available())  # mps has no float64
        state = PartialState(cpu=not usable)
        device = state.device if usable else torch.device("cpu")
        if state.num_processes == 1 and where.type not in ("cpu", "mps"):
            device = where  # where the user put it
        return cls(state.process_index, state.num_processes, device)

    def of_the_first(self, value: int) -> int:
        """The value of the first process, in all of them."""
        if self.world == 1:
            return value
        tensor = torch.tensor(value, device=self.device)
        distributed.broadcast(tensor, 0)
        return int(tensor)

    def largest(self, value: int) -> int:
        """The largest value of all processes, in all of them."""
        if self.world == 1:
            return value
        tensor = torch.tensor(value, device=self.device)
        distributed.all_reduce(tensor, distributed.ReduceOp.MAX)
        return int(tensor)

    def wait(self) -> None:
        """Until all processes are here."""
        if self.world > 1:
            distributed.barrier()

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes, in all of them."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        distributed.all_gather_object(values, value)
        return values

    def agree(self, work: Callable[[], Any]) -> list[Any]:
        """What ``work`` gives in each process, in all of them; if it fails in one it fails in all, or they would wait for ever."""
        try:
            mine, error = work(), None
        except Exception as caught:
            mine, error = None, caught
        if self.world == 1:
            if error is not None:
                raise error
            return [mine]
        outcomes = self.gather((mine, None if error is None else f"{type(error).__name__}: {error}"))
        if error is not None:
            raise error
        for rank, (_, message) in enumerate(outcomes):
            if message is not None:
                raise SolverError(f"process {rank} of {self.world} failed: {message}")
        return [value for value, _ in outcomes]

