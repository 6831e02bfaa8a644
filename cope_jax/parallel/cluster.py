"""Runs several processes as one: they meet before JAX starts, and all of them end if one is lost.

Process 0 keeps a connection to every other process; both ends send heartbeats. If a process is killed, hangs or fails,
the others end within a minute with a message that names it and its host. JAX alone takes longer, does not know the
hosts, and aborts from C++ with a stack trace, even if a process merely does not start.
"""

import json
import os
import socket
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import jax

# Private, but the only way to find process 0 on Slurm, TPU pods, Kubernetes and MPI before JAX starts.
from jax._src.clusters import ClusterEnv

from cope_jax.parallel.monitor import GRACE_PERIOD, HEARTBEAT_TIMEOUT, Message, Monitor, Peer


@contextmanager
def join_cluster(
    coordinator: str | None, processes: int | None, process: int | None, *, settings: Mapping[str, Any], seconds: float
) -> Iterator[None]:
    """Makes this process part of a cluster, whose processes leave the context together.

    Inside, the end of any other process ends this one: with EXIT_RETRY if the other one was killed, hangs or cannot be
    reached, with EXIT_FAILED if it raised an error. Raises ValueError if arguments are missing or contradict each
    other, a process does not start, or processes differ in their arguments, settings or numbers of devices.

    Args:
        coordinator: HOST:PORT of process 0. Like the next two, detected on Slurm, TPU pods, Kubernetes and MPI if None.
        processes: Number of processes.
        process: Number of this process, from 0.
        settings: JSON values by name that must be the same in all processes.
        seconds: How long to wait for all processes to start.
    """
    coordinator, processes, process = detect_cluster(coordinator, processes, process, seconds=seconds)
    name = f"process {process} of {processes} (host {socket.gethostname()})"
    settings = json.loads(json.dumps({"--processes": processes, **settings}))  # as other processes receive them
    hello = {"name": name, "process": process, "settings": settings}
    if process == 0:
        peers = accept_peers(coordinator, hello, seconds=seconds)
    else:
        peers = [connect(coordinator, hello, seconds=seconds)]
    monitor = Monitor(name, peers, is_hub=process == 0)
    try:
        jax.distributed.initialize(coordinator, processes, process)
        counts = Counter(device.process_index for device in jax.devices())
        if len(set(counts.values())) > 1:  # each process reads the same share of a batch
            found = ", ".join(f"process {number}: {count}" for number, count in sorted(counts.items()))
            raise ValueError(f"the processes have different numbers of devices ({found}); give each the same number")
        if jax.default_backend() == "cpu":
            # Process 0 would load programs that it runs alone from the cache, waiting for the others longer than Gloo.
            jax.config.update("jax_enable_compilation_cache", False)
        yield
    except BaseException as error:
        monitor.fail(error)
        raise
    monitor.finish()


def detect_cluster(
    coordinator: str | None, processes: int | None, process: int | None, *, seconds: float
) -> tuple[str, int, int]:
    """Returns the address of process 0, the number of processes and that of this one, detected unless given."""
    coordinator = coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS")
    if None in (coordinator, processes, process):
        coordinator, processes, process, _ = ClusterEnv.auto_detect_unset_distributed_params(
            coordinator, processes, process, None, None, int(seconds)
        )
    if coordinator is None or processes is None or process is None:
        flags = {"--coordinator=HOST:PORT": coordinator, "--processes": processes, "--process": process}
        missing = ", ".join(flag for flag, value in flags.items() if value is None)
        raise ValueError(f"JAX detects no cluster that provides {missing}; set what is missing on each host")
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal():
        raise ValueError(f"--coordinator is {coordinator!r}; it must be HOST:PORT of process 0")
    if not 0 <= process < processes:
        raise ValueError(f"--process={process} must be at least 0 and less than --processes={processes}")
    return coordinator, processes, process


def accept_peers(coordinator: str, hello: Message, *, seconds: float) -> list[Peer]:
    """Waits, in process 0, for all other processes and compares their settings with its own.

    Listens on the coordinator's port, which JAX binds afterwards, so that no second port must be reachable. Raises
    ValueError if a process is missing or differs; the processes that came get the same error.
    """
    peers: list[Peer] = []
    names, settings = {0: hello["name"]}, hello["settings"]
    processes, differences, error = settings["--processes"], [], ""
    deadline = time.monotonic() + seconds
    with listen(int(coordinator.rpartition(":")[2])) as server:
        while missing := [number for number in range(processes) if number not in names]:
            server.settimeout(max(deadline - time.monotonic(), 0.001))
            try:
                peer = Peer(server.accept()[0], timeout=GRACE_PERIOD)
            except TimeoutError:
                numbers = ", ".join(map(str, missing))
                error = f"of {processes} processes, {numbers} did not start within {seconds:.0f} s: see their logs, "
                error += "or wait longer with --join_seconds"
                break
            try:
                other = peer.receive()
                peer.name, number, theirs = other["name"], other["process"], other["settings"]
            except (OSError, ValueError, LookupError, TypeError):  # another program, or closed again
                peer.close()
                continue
            peers.append(peer)
            if number in names:
                differences.append(f"two have --process={number}, {names[number]} and {peer.name}")
            for key in sorted({*settings, *theirs}):
                if theirs.get(key) != (ours := settings.get(key)):
                    differences.append(f"{key} is {theirs.get(key)!r} in {peer.name} and {ours!r} in process 0")
            names[number] = peer.name
            if differences:  # soon reported, together with those of processes that start now
                deadline = min(deadline, time.monotonic() + GRACE_PERIOD)
    if differences:
        error = f"the processes were started differently: {'; '.join(differences)}"
    for peer in peers:
        peer.connection.settimeout(HEARTBEAT_TIMEOUT)
        with suppress(OSError):  # the monitor will notice
            peer.send({"name": hello["name"], "error": error})
        if error:
            peer.close()
    if error:
        raise ValueError(error)
    return peers


def listen(port: int) -> socket.socket:
    """Returns a socket that listens on all addresses of this host, as JAX's will; ValueError if the port is taken."""
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    try:
        return socket.create_server(("", port), family=family, dualstack_ipv6=both, backlog=1024)
    except OSError as error:
        raise ValueError(
            f"process 0 cannot listen on port {port} of {socket.gethostname()} ({error.strerror}): stop the other "
            "--process=0 or the earlier run, or choose another port in --coordinator"
        ) from error


def connect(coordinator: str, hello: Message, *, seconds: float) -> Peer:
    """Connects to process 0 and waits until all processes have joined; ValueError if it reports an error."""
    host, _, port = coordinator.rpartition(":")
    deadline = time.monotonic() + seconds
    while True:
        try:
            connection = socket.create_connection((host.strip("[]"), int(port)), timeout=seconds)
            peer = Peer(connection, timeout=seconds + GRACE_PERIOD)
            peer.send(hello)
            answer = peer.receive()
            break
        except (OSError, ValueError) as error:  # not started yet, or the coordinator of an earlier run
            if time.monotonic() > deadline:
                raise ValueError(
                    f"process 0 did not answer at {coordinator} within {seconds:.0f} s ({error}): see its log, correct "
                    "--coordinator, or wait longer with --join_seconds"
                ) from error
            time.sleep(0.5)
    if answer["error"]:
        peer.close()
        raise ValueError(answer["error"])
    peer.connection.settimeout(HEARTBEAT_TIMEOUT)
    peer.name = answer["name"]
    return peer
