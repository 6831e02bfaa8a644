"""When the download pauses, and when it gives up."""

import pytest

from data_prep.download.breaker import TRIAL, Breaker
from data_prep.download.failures import Unavailable


def feed(breaker, outcomes, *, now):
    """Pauses that outcomes of requests sent at `now` bring."""
    return [seconds for failed in outcomes if (seconds := breaker.record(failed, sent=now, now=now))]


def test_half_of_the_window_may_fail():
    breaker = Breaker(window=20, pause=30, pauses=2)
    assert feed(breaker, [True, False] * 100, now=1) == []
    assert feed(breaker, [True] * 19, now=1) == [30]


def test_few_requests_prove_nothing():
    assert feed(Breaker(window=20, pause=30, pauses=2), [True] * 19, now=1) == []


def test_requests_under_way_at_the_pause_do_not_prolong_it():
    breaker = Breaker(window=20, pause=30, pauses=2)
    assert feed(breaker, [True] * 20, now=100) == [30]
    assert feed(breaker, [True] * 500, now=129.9) == []
    assert feed(breaker, [True] * TRIAL, now=130) == [60]


def test_pauses_double_and_then_it_gives_up():
    breaker = Breaker(window=20, pause=30, pauses=3)
    assert feed(breaker, [True] * 20, now=0) == [30]
    assert feed(breaker, [True] * TRIAL, now=1000) == [60]
    assert feed(breaker, [True] * TRIAL, now=2000) == [120]
    with pytest.raises(Unavailable, match="10 of the latest 10 requests failed, after 3 pauses"):
        feed(breaker, [True] * TRIAL, now=3000)


def test_after_a_recovery_it_is_patient_again():
    breaker = Breaker(window=20, pause=30, pauses=1)
    assert feed(breaker, [True] * 20, now=0) == [30]
    assert feed(breaker, [False] * TRIAL, now=100) == []
    assert feed(breaker, [True] * 9, now=100) == []  # 9 of 19: not a window yet
    assert feed(breaker, [True] * 2, now=100) == [30]
