"""How fast a host is asked, on a clock that jumps."""

import asyncio

import pytest

from data_prep.download.pace import Pace


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
    """Runs scene(loop)."""
    with asyncio.Runner(loop_factory=JumpingLoop) as runner:
        return runner.run(scene(runner.get_loop()))


async def count_turns(loop, pace, seconds, waiting=20):
    """Turns that `waiting` clients get in so many seconds."""
    turns = []

    async def ask():
        while True:
            turns.append(await pace.turn())

    clients = [asyncio.create_task(ask()) for _ in range(waiting)]
    await asyncio.sleep(seconds)
    for client in clients:
        client.cancel()
    await asyncio.gather(*clients, return_exceptions=True)
    return len(turns)


def test_turns_come_at_the_ceiling_and_no_burst_follows_a_rest():
    async def scene(loop):
        pace = Pace(50.0)
        first = await count_turns(loop, pace, 10)
        await asyncio.sleep(60)
        return first, await count_turns(loop, pace, 1)

    first, after_rest = play(scene)
    assert first == pytest.approx(500, abs=4)
    assert after_rest == pytest.approx(50, abs=4)


def test_a_complaint_halves_the_rate_and_those_of_requests_under_way_do_not_halve_it_again():
    async def scene(loop):
        pace = Pace(64.0, doubling=60)
        sent = await pace.turn()
        await asyncio.sleep(1)
        for _ in range(5):
            pace.complain(sent, 0)
        once = pace.rate
        sent = await pace.turn()
        pace.complain(sent, 0)
        return once, pace.rate, await count_turns(loop, pace, 1)

    once, twice, turns = play(scene)
    assert once == pytest.approx(32)
    assert twice == pytest.approx(16, rel=0.01)
    assert turns == pytest.approx(16, abs=2)


def test_the_rate_doubles_in_its_time_up_to_the_ceiling_and_never_falls_below_the_floor():
    async def scene(loop):
        pace = Pace(64.0, doubling=60)
        for _ in range(12):
            pace.complain(await pace.turn(), 0)
        rates = [pace.rate]
        for _ in range(3):
            await asyncio.sleep(60)
            rates.append(pace.rate)
        await asyncio.sleep(1e6)
        return [*rates, pace.rate]

    assert play(scene) == pytest.approx([0.5, 1, 2, 4, 64])


def test_nobody_gets_a_turn_before_retry_after_is_over_and_the_rate_does_not_rise_meanwhile():
    async def scene(loop):
        pace = Pace(64.0, doubling=60)
        pace.complain(await pace.turn(), 120.0)
        pace.complain(0.0, 5.0)  # a shorter one does not end it
        asked, rate = loop.time(), pace.rate
        return await pace.turn() - asked, rate, pace.rate

    waited, before, after = play(scene)
    assert waited == pytest.approx(120)
    assert before == pytest.approx(32)
    assert after == pytest.approx(32, rel=0.01)
