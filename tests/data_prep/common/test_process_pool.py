"""Tests the pool of processes."""

import os
from functools import partial

import pytest

from data_prep.common.process_pool import process_map, usable_cores


def test_only_cores_of_this_process_are_counted(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {2, 5, 7}, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    assert usable_cores() == 3


def test_all_cores_are_counted_if_the_system_does_not_report_affinity(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    assert usable_cores() == 64
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert usable_cores() == 1


@pytest.mark.parametrize("processes", [1, 2])
def test_every_result_comes_with_the_index_of_its_argument(processes):
    with process_map(processes) as apply:
        assert sorted(apply(partial(pow, 2), [5, 0, 3])) == [(0, 32), (1, 1), (2, 8)]


def test_a_killed_worker_is_an_error_that_names_the_remedy():
    with process_map(2) as apply, pytest.raises(ChildProcessError, match="again with fewer --processes"):
        list(apply(os._exit, [9, 9, 9]))
