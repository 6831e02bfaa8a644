"""Rates of requests on a clock that jumps; when the download pauses and gives up."""

import asyncio

import pytest

from data_prep.download.failures import UnavailableError
from data_prep.download.rate_limit import TRIAL, CircuitBreaker, RateLimiter


class JumpingLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock jumps to the next timer instead of waiting."""

    def __init__(self):
        super().__init__()
        self._now = 100.0
        select = self._selector.select
        self._selector.select = lambda timeout: [select(0), self._jump(timeout or 0)][0]

    def _jump(self, seconds):
        self._now += seconds

    def time(self):
        return self._now


def play(scene):
    """Runs scene(loop) on a jumping clock."""
    with asyncio.Runner(loop_factory=JumpingLoop) as runner:
        return runner.run(scene(runner.get_loop()))


async def count_requests(loop, limiter, seconds, waiting=20):
    """Returns the number of requests that `waiting` clients may send in some seconds."""
    sent = []

    async def send():
        while True:
            sent.append(await limiter.acquire())

    clients = [asyncio.create_task(send()) for _ in range(waiting)]
    await asyncio.sleep(seconds)
    for client in clients:
        client.cancel()
    await asyncio.gather(*clients, return_exceptions=True)
    return len(sent)


def test_requests_come_at_the_limit_without_a_burst_after_a_rest():
    async def scene(loop):
        limiter = RateLimiter(50.0)
        first = await count_requests(loop, limiter, 10)
        await asyncio.sleep(60)
        return first, await count_requests(loop, limiter, 1)

    first, after_rest = play(scene)
    assert first == pytest.approx(500, abs=4)
    assert after_rest == pytest.approx(50, abs=4)


def test_a_complaint_halves_the_rate_once_for_all_requests_in_flight():
    async def scene(loop):
        limiter = RateLimiter(64.0, doubling=60)
        sent = await limiter.acquire()
        await asyncio.sleep(1)
        for _ in range(5):
            limiter.slow_down(sent, 0)
        once = limiter.rate
        sent = await limiter.acquire()
        limiter.slow_down(sent, 0)
        return once, limiter.rate, await count_requests(loop, limiter, 1)

    once, twice, count = play(scene)
    assert once == pytest.approx(32)
    assert twice == pytest.approx(16, rel=0.01)
    assert count == pytest.approx(16, abs=2)


def test_the_rate_doubles_in_a_minute_between_the_minimum_and_the_limit():
    async def scene(loop):
        limiter = RateLimiter(64.0, doubling=60)
        for _ in range(12):
            limiter.slow_down(await limiter.acquire(), 0)
        rates = [limiter.rate]
        for _ in range(3):
            await asyncio.sleep(60)
            rates.append(limiter.rate)
        await asyncio.sleep(1e6)
        return [*rates, limiter.rate]

    assert play(scene) == pytest.approx([0.5, 1, 2, 4, 64])


def test_no_request_is_sent_before_retry_after_is_over_and_the_rate_does_not_rise_until_then():
    async def scene(loop):
        limiter = RateLimiter(64.0, doubling=60)
        limiter.slow_down(await limiter.acquire(), 120.0)
        limiter.slow_down(0.0, 5.0)  # a shorter pause does not end it
        start, rate = loop.time(), limiter.rate
        return await limiter.acquire() - start, rate, limiter.rate

    waited, before, after = play(scene)
    assert waited == pytest.approx(120)
    assert before == pytest.approx(32)
    assert after == pytest.approx(32, rel=0.01)


def feed(breaker, outcomes, *, now):
    """Returns the pauses after outcomes of requests sent at `now`."""
    return [seconds for failed in outcomes if (seconds := breaker.record(failed, sent=now, now=now))]


def test_at_most_half_of_the_window_may_fail():
    breaker = CircuitBreaker(window=20, pause=30, pauses=2)
    assert feed(breaker, [True, False] * 100, now=1) == []
    assert feed(breaker, [True] * 19, now=1) == [30]


def test_fewer_failures_than_the_window_cause_no_pause():
    assert feed(CircuitBreaker(window=20, pause=30, pauses=2), [True] * 19, now=1) == []


def test_requests_in_flight_do_not_prolong_a_pause():
    breaker = CircuitBreaker(window=20, pause=30, pauses=2)
    assert feed(breaker, [True] * 20, now=100) == [30]
    assert feed(breaker, [True] * 500, now=129.9) == []
    assert feed(breaker, [True] * TRIAL, now=130) == [60]


def test_pauses_double_until_it_gives_up():
    breaker = CircuitBreaker(window=20, pause=30, pauses=3)
    assert feed(breaker, [True] * 20, now=0) == [30]
    assert feed(breaker, [True] * TRIAL, now=1000) == [60]
    assert feed(breaker, [True] * TRIAL, now=2000) == [120]
    with pytest.raises(UnavailableError, match="10 of the latest 10 requests failed, after 3 pauses"):
        feed(breaker, [True] * TRIAL, now=3000)


def test_a_recovery_resets_the_pauses():
    breaker = CircuitBreaker(window=20, pause=30, pauses=1)
    assert feed(breaker, [True] * 20, now=0) == [30]
    assert feed(breaker, [False] * TRIAL, now=100) == []
    assert feed(breaker, [True] * 9, now=100) == []  # 9 of 19: less than a window
    assert feed(breaker, [True] * 2, now=100) == [30]
