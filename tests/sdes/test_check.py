"""The checker of SDEs catches what it should."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import pytest
import torch
from problems import SMAX, SMIN
from sdes.cases import by_name

import scoresde as sd


@by_name
def test_the_checker_passes_the_built_in_ones(sde):
    assert sd.check_sde(sde) == []


@dataclass(frozen=True)
class DoubleDrift(sd.VPSDE):
    def drift_coefficient(self, t):
        return -(self.beta_min + (self.beta_max - self.beta_min) * t)  # not halved


@dataclass(frozen=True)
class MissingSquareRoot(sd.VPSDE):
    def sigma(self, t):
        return -torch.expm1(-self.integral(t))

    def diffusion(self, t):
        return (self.beta_min + (self.beta_max - self.beta_min) * t).sqrt()  # VP's g with sub-VP's sigma


@dataclass(frozen=True)
class MissingSquareRootOfLog(sd.VESDE):
    def diffusion(self, t):
        return self.sigma(t) * 2 * math.log(self.sigma_max / self.sigma_min)  # deepinv's fault


@dataclass(frozen=True)
class WrongSign(sd.VPSDE):
    def drift_coefficient(self, t):
        return 0.5 * (self.beta_min + (self.beta_max - self.beta_min) * t)

    def diffusion(self, t):
        return (self.beta_min + (self.beta_max - self.beta_min) * t).sqrt()


@dataclass(frozen=True)
class OneMinusExp(sd.VPSDE):
    def sigma(self, t):
        return (1 - torch.exp(-self.integral(t))).sqrt()


@dataclass(frozen=True)
class OneMinusExpSub(sd.SubVPSDE):
    def sigma(self, t):
        return 1 - torch.exp(-self.integral(t))


@dataclass(frozen=True)
class SquaredDiffusion(sd.VPSDE):
    def diffusion(self, t):
        return self.beta_min + (self.beta_max - self.beta_min) * t  # g^2 for g


@dataclass(frozen=True)
class RisingLogSNR(sd.SDE):
    t_min: float = 0.01
    t_max: float = 0.99

    def alpha(self, t):
        return t

    def sigma(self, t):
        return 1 - t  # time the wrong way round


@dataclass(frozen=True)
class BumpyLogSNR(sd.SDE):
    """Falls over all, but not everywhere."""

    def alpha(self, t):
        return torch.exp(-5 * t)

    def sigma(self, t):
        return 0.3 + t + 0.2 * torch.sin(40 * t)

    def diffusion(self, t):
        sigma, slope = self.sigma(t), 1 + 8 * torch.cos(40 * t)
        return (2 * sigma * (slope + 5 * sigma)).clamp_min(0).sqrt()


@dataclass(frozen=True)
class WrongInverse(sd.VESDE):
    def time_of_log_snr(self, log_snr):
        return -(log_snr + math.log(self.sigma_min)) / math.log(self.sigma_max / self.sigma_min)


@dataclass(frozen=True)
class WrongPriorStd(sd.VESDE):
    @property
    def prior_std(self):
        return 1.0


@dataclass(frozen=True)
class WrongPriorLogProb(sd.VESDE):
    def prior_log_prob(self, x):
        return -0.5 * (x.double().flatten(1) / self.prior_std).square().sum(1)  # no normalizer


@dataclass(frozen=True)
class DataStillShow(sd.VPSDE):
    beta_max: float = 2.0


@dataclass(frozen=True)
class SigmaZeroForgotten(sd.SDE):
    """VE by its coefficients: without sigma_0 it starts from clean data, while its log-SNR says otherwise."""

    def drift_coefficient(self, t):
        return torch.zeros_like(t)

    def diffusion(self, t):
        return SMIN * (SMAX / SMIN) ** t * math.sqrt(2 * math.log(SMAX / SMIN))

    def log_snr(self, t):
        return -2 * (math.log(SMIN) + t * math.log(SMAX / SMIN))


@dataclass(frozen=True)
class NotElementwise(sd.VPSDE):
    def sigma(self, t):
        return (-torch.expm1(-self.integral(t))).mean().sqrt()


@dataclass(frozen=True)
class NotElementwiseInDisguise(sd.VPSDE):
    """The right shape, but each value depends on the batch."""

    def sigma(self, t):
        return super().sigma(t) * (1 + 1e-3 * t.mean())


@dataclass(frozen=True)
class LosesItsDtype(sd.VPSDE):
    def alpha(self, t):
        return torch.exp(-0.5 * self.integral(t)).double()


@dataclass(frozen=True)
class NegativeDiffusion(sd.EDMSDE):
    def diffusion(self, t):
        return -(2 * t).sqrt()


@dataclass(frozen=True)
class NotFinite(sd.SDE):
    def alpha(self, t):
        return torch.log(t - 0.5)

    def sigma(self, t):
        return t


@dataclass(frozen=True)
class VanishingAlpha(sd.SDE):
    def alpha(self, t):
        return (1 - 2 * t).clamp_min(0)

    def sigma(self, t):
        return t


@dataclass(frozen=True)
class SlightlyWrongDrift(sd.VPSDE):
    """Off by 10^-5: what a typo in a constant looks like."""

    def drift_coefficient(self, t):
        return -0.5 * (self.beta_min + (self.beta_max - self.beta_min) * t) * (1 + 1e-5)

BROKEN = {
    DoubleDrift: r"alpha' = f alpha",
    MissingSquareRoot: r"\(sigma\^2\)' = 2 f sigma\^2 \+ g\^2",
    MissingSquareRootOfLog: r"\(sigma\^2\)' = 2 f sigma\^2 \+ g\^2",
    WrongSign: r"alpha' = f alpha",
    OneMinusExp: "sigma.*float32.*expm1",
    OneMinusExpSub: "sigma.*float32.*expm1",
    SquaredDiffusion: r"\(sigma\^2\)' = 2 f sigma\^2 \+ g\^2",
    RisingLogSNR: "log_snr does not fall|not finite",
    BumpyLogSNR: "log_snr does not fall",
    WrongInverse: "time_of_log_snr does not invert",
    WrongPriorStd: r"prior_std = 1, but sigma\(t_max\) = 50",
    WrongPriorLogProb: "prior_log_prob",
    DataStillShow: "data still show",
    SigmaZeroForgotten: r"log_snr = 2 log\(alpha/sigma\)|time_of_log_snr",
    NotElementwise: "elementwise",
    NotElementwiseInDisguise: "elementwise|does not hold",
    LosesItsDtype: "dtype",
    NegativeDiffusion: "negative",
    NotFinite: "not finite",
    VanishingAlpha: "positive|not finite",
    SlightlyWrongDrift: r"alpha' = f alpha",
}


@pytest.mark.parametrize("broken", list(BROKEN), ids=lambda c: c.__name__)
def test_the_checker_catches(broken):
    findings = sd.check_sde(broken())
    assert findings
    assert any(re.search(BROKEN[broken], finding) for finding in findings), findings
    for finding in findings:  # each is a sentence
        assert finding.endswith(".")
        assert len(finding.split()) >= 5


def test_the_checker_never_raises_on_a_broken_sde():
    @dataclass(frozen=True)
    class Raises(sd.SDE):
        def alpha(self, t):
            raise ZeroDivisionError("division by zero")

        def sigma(self, t):
            return t

    @dataclass(frozen=True)
    class BadRange(sd.SDE):
        t_min: float = 0.0

        def alpha(self, t):
            return 1 - t

        def sigma(self, t):
            return t

    @dataclass(frozen=True)
    class WrongShape(sd.SDE):
        def alpha(self, t):
            return torch.ones(3)

        def sigma(self, t):
            return t

    assert "ZeroDivisionError" in " ".join(sd.check_sde(Raises()))
    assert "t_min > 0" in " ".join(sd.check_sde(BadRange()))
    assert "elementwise" in " ".join(sd.check_sde(WrongShape()))


class Plateaus(sd.SDE):
    """A table read without interpolation at its end: alpha stands still there, so that g = 0."""

    t_min, t_max = 1e-3, 1.0

    def _integral(self, t):
        table = torch.linspace(0, 1, 101, dtype=torch.float64).square() * 10
        u = (t.double() * 101).clamp(0.001, 99.999)
        i = u.long()  # of a NaN: an index far outside
        return (table[i] + (u - i) * (table[i + 1] - table[i])).to(t.dtype)

    def alpha(self, t):
        return torch.exp(-self._integral(t) / 2)

    def sigma(self, t):
        return torch.sqrt(-torch.expm1(-self._integral(t)))


def test_a_table_is_never_asked_for_times_that_are_no_numbers():
    assert Plateaus().time_of_log_snr(torch.tensor([-2.0, 0.0, 2.0], dtype=torch.float64)).isfinite().all()
    assert any("log_snr" in line or "does not hold" in line for line in sd.check_sde(Plateaus()))


class ByMath(sd.SDE):
    t_min, t_max = 1e-3, 1.0

    def alpha(self, t):
        return math.exp(-4 * t)

    def sigma(self, t):
        return math.sqrt(-math.expm1(-8 * t))


def test_functions_of_numbers_are_refused_when_a_model_is_made():
    target = sd.GaussianMixture(torch.zeros(1, 2), torch.ones(1))
    with pytest.raises(sd.errors.ConfigError, match=r"ByMath, asked for alpha, sigma .* at a tensor of times .*raised (TypeError|ValueError)"):
        sd.ExactModel(target, ByMath())
