"""What a way of computing costs in quality, on figures that are worked out by hand."""

import math

import pytest
import torch

from tests.performance.quality import Quality, text_ids

HALF, QUARTER = math.log(1 / 2), math.log(1 / 4)
REFERENCE = torch.tensor([[HALF, QUARTER, QUARTER], [QUARTER, HALF, QUARTER]])


def test_the_reference_itself_loses_nothing_however_its_logits_are_shifted() -> None:
    quality = Quality.of(REFERENCE, REFERENCE + 5, torch.tensor([0, 2]))
    assert quality.agreement == 1
    assert (quality.loss, quality.surprise, quality.regret) == pytest.approx((0, 0, 0), abs=1e-7)
    assert quality.is_enough()


def test_another_choice_is_seen_in_every_figure() -> None:
    candidate = torch.tensor([[HALF, QUARTER, QUARTER], [HALF, QUARTER, QUARTER]])
    quality = Quality.of(REFERENCE, candidate, torch.tensor([0, 0]))
    assert quality.agreement == 0.5
    # Of the second token alone: a half of log 2 is lost and a quarter of it gained.
    assert quality.loss == pytest.approx(math.log(2) / 4 / 2)
    assert quality.surprise == pytest.approx(-math.log(2) / 2)
    assert quality.regret == pytest.approx(math.log(2) / 2)
    assert not quality.is_enough()


def test_a_peer_lowers_the_gate_to_what_it_reaches_and_never_raises_it() -> None:
    poor = Quality(agreement=0.95, loss=0.004, surprise=0, regret=0)
    good = Quality(agreement=0.99, loss=0.0001, surprise=0, regret=0)
    fair = Quality(agreement=0.96, loss=0.0029, surprise=0, regret=0)
    assert not poor.is_enough()
    assert poor.is_enough(poor)
    assert not poor.is_enough(good)
    assert fair.is_enough(good)


def test_the_text_is_long_enough() -> None:
    assert len(text_ids()) == 481
