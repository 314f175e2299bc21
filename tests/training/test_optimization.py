"""The loop that every training shares, on a quadratic: its steps, its looks, what stops it, and what it shows."""

from __future__ import annotations

import math
import os
import signal

import pytest
import torch

from scoresde.errors import TrainingDiverged
from scoresde.training.optimization import Descent, descend
from scoresde.training.schedule import Schedule


class Bowl:
    """|w - 1|^2/2 from w = 0, by plain gradient steps; the gradient or the loss can be spoiled at one step."""

    def __init__(self, steps, lr=0.1, spoil=None, by="loss", **how):
        self.w = torch.nn.Parameter(torch.zeros(3, dtype=torch.float64))
        self.spoil, self.by, self.path = spoil, by, []
        how.setdefault("diverged", lambda where: f"not finite at {where}")
        self.descent = Descent(torch.optim.SGD([self.w], lr=1.0), Schedule(lr, steps, 0, 0, "constant"), **how)

    def gradient(self, k):
        self.path.append(self.w.detach().clone())
        loss = (self.w - 1).square().sum() / 2
        loss.backward()
        if k + 1 == self.spoil and self.by == "gradient":
            self.w.grad[1] = math.inf
        return loss.detach() * (math.nan if k + 1 == self.spoil and self.by == "loss" else 1)

    def run(self, between=lambda k: "", **how):
        descend(self.descent, self.gradient, between, **{"progress": False, "what": "bowl", **how})


def test_steps_follow_the_schedule_and_the_clip():
    bowl, averaged = Bowl(20), []
    bowl.descent.schedule = Schedule(0.1, 20, warmup=4, hold=4)
    bowl.descent.average = lambda: averaged.append(bowl.w.detach().clone())
    seen = []
    bowl.run(lambda k: seen.append((k, float(bowl.descent.norm))) or "")
    w = torch.zeros(3, dtype=torch.float64)
    for k in range(20):
        assert torch.allclose(bowl.path[k], w, rtol=0, atol=1e-15)
        assert seen[k] == (k + 1, pytest.approx(float((w - 1).norm())))
        w = w - bowl.descent.schedule(k) * (w - 1)
        assert torch.allclose(averaged[k], w, rtol=0, atol=1e-15)
    assert bowl.w.grad is None
    clipped = Bowl(5, clip=0.5)
    clipped.run()
    assert torch.stack(clipped.path).diff(dim=0).norm(dim=1).tolist() == pytest.approx([0.05] * 4, rel=1e-5)
    assert float(clipped.descent.norm) > 1  # before clipping


def test_losses_are_added_up_until_they_are_taken():
    bowl, taken = Bowl(7), []
    bowl.run(lambda k: taken.append(bowl.descent.take()) or "" if k % 3 == 0 else "")
    losses = [float((w - 1).square().sum()) / 2 for w in bowl.path]
    assert [n for _, n in taken] == [3, 3]
    assert [float(total) for total, _ in taken] == pytest.approx([sum(losses[:3]), sum(losses[3:6])])
    assert bowl.descent.take()[1] == 1


@pytest.mark.parametrize("by", ["loss", "gradient"])
@pytest.mark.parametrize(
    ("every", "spoil", "where"),
    [
        (1, 5, "step 5"),
        (4, 5, "one of the steps 5..8"),
        (4, 8, "one of the steps 5..8"),
        (16, 3, "one of the steps 1..10"),
        (16, 10, "one of the steps 1..10"),
    ],
)
def test_what_is_not_finite_is_found_at_the_next_look_and_told(by, every, spoil, where):
    bowl = Bowl(10, spoil=spoil, by=by, every=every)
    with pytest.raises(TrainingDiverged, match=rf"^not finite at {where.replace('.', '[.]')}$"):
        bowl.run()
    assert bowl.w.grad is None
    if every == 1:
        assert bowl.w.isfinite().all()  # the step itself was not taken
        assert bowl.descent.step == spoil - 1


def test_a_look_in_between_is_a_look():
    bowl = Bowl(10, spoil=4, every=100)
    with pytest.raises(TrainingDiverged, match=r"one of the steps 3\.\.4"):
        bowl.run(lambda k: bowl.descent.check_finite() or "" if k % 2 == 0 else "")
    resumed = Bowl(10, spoil=8)
    resumed.descent.resume(7, 12)
    with pytest.raises(TrainingDiverged, match=r"at step 8$"):
        resumed.run()
    assert len(resumed.path) == 1
    assert resumed.descent.steps == 12


def test_steps_may_become_known_on_the_way():
    bowl = Bowl(None)

    def between(k):
        if k == 3:
            bowl.descent.steps = 6
        return ""

    bowl.run(between)
    assert bowl.descent.step == len(bowl.path) == 6
    done = Bowl(6)
    done.descent.resume(6, 6)
    done.run(lambda k: pytest.fail("nothing is left to do"))


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_it_between_two_steps(signum, capsys):
    before = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    bowl, left = Bowl(9), []

    def gradient(k):
        if k == 3:
            os.kill(os.getpid(), signum)  # in the middle of a step, which is finished
        return bowl.gradient(k)

    def leave(k):
        left.append(k)
        return f"kept step {k}"

    with pytest.raises(SystemExit if signum == signal.SIGTERM else KeyboardInterrupt) as caught:
        descend(bowl.descent, gradient, lambda k: "", progress=False, what="bowl", leave=leave)
    assert (left, bowl.descent.step) == ([4], 4)
    if signum == signal.SIGTERM:
        assert caught.value.code == 143
        assert capsys.readouterr().err == "kept step 4\n"
    else:
        assert str(caught.value) == "kept step 4"
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == before
    assert float(bowl.w.detach()[0]) == pytest.approx(1 - 0.9**4)
    assert bowl.w.grad is None


def test_a_second_signal_is_immediate_and_one_at_the_last_step_comes_too_late():
    bowl = Bowl(9)

    def twice(k):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        pytest.fail("the second one must be immediate")

    with pytest.raises(KeyboardInterrupt) as caught:
        descend(bowl.descent, twice, lambda k: "", progress=False, what="bowl")
    assert "step" not in str(caught.value)
    done = Bowl(3)
    done.run(lambda k: os.kill(os.getpid(), signal.SIGINT) or "" if k == 3 else "")
    assert done.descent.step == 3


def test_the_bar_goes_on_where_the_run_does(capfd):
    bowl = Bowl(None)
    bowl.descent.resume(40, None)

    def between(k):
        bowl.descent.steps = 50
        return f"at {k}"

    bowl.run(between, progress=True, keep=True)
    text = capfd.readouterr().err
    assert "bowl: 40step" in text
    assert "50/50" in text
    assert "at 50" in text
