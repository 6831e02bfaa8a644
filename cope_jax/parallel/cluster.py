"""Several processes as one run: they meet before JAX starts, and none is left waiting for one that is gone.

Process 0 keeps a connection to each other process, and both ends of it send signs of life. So all of them end within a
minute, with a sentence that names the process, when one is killed, hangs or fails. JAX notices too, but later (up to
100 s), without the host's name, and ends the process with a stack trace from C++.
"""

import atexit
import json
import os
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

import jax

# Not public, but the only way to learn from Slurm, TPU pods and Kubernetes where process 0 is, before JAX starts there.
from jax._src.clusters import ClusterEnv

BEAT = 2.0  # seconds between signs of life
SILENCE = 40.0  # seconds without one after which a process counts as lost
GRACE = (
    5.0  # seconds between an error here and its report: often another process's end is the cause, and is known by then
)
FAILED = 1  # exit code: a process ended with an error, which will come again
LOST = 75  # exit code: a process was lost (EX_TEMPFAIL: call again)
GO_ON = "the same command on all hosts goes on from the last checkpoint"


class Line:
    """A connection to another process that carries JSON objects, one a line; empty lines are signs of life.

    Attributes:
        name: of the other process, for errors.
    """

    def __init__(self, connection: socket.socket, *, seconds: float):
        """Takes a connection over; whatever it waits for comes within `seconds`, or is a TimeoutError."""
        connection.settimeout(seconds)
        self.connection, self.name = connection, ""
        self.lines = connection.makefile(encoding="utf-8")
        self.lock = threading.Lock()

    def send(self, message: Mapping[str, Any] | None) -> None:
        """Sends a message, or with None a sign of life."""
        with self.lock:
            self.connection.sendall(b"\n" if message is None else json.dumps(message).encode() + b"\n")

    def receive(self) -> dict[str, Any]:
        """The next message.

        Raises:
            TimeoutError: there was not even a sign of life in time.
            ConnectionError: the other end closed.
        """
        for line in self.lines:
            if line != "\n":
                return json.loads(line)
        raise ConnectionResetError("closed")

    def ask(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """Sends a message and receives the answer; closes this end where there is none."""
        try:
            self.send(message)
            return self.receive()
        except OSError:
            self.close()
            raise

    def close(self) -> None:
        """Closes this end."""
        self.lines.close()
        self.connection.close()


@contextmanager
def joined(
    coordinator: str | None, processes: int | None, process: int | None, *, facts: Mapping[str, Any], seconds: float
) -> Iterator[None]:
    """Makes this process one of a run's, for what stands inside; all of them leave together.

    Inside, the end of any other process ends this one: with exit code LOST where that one was killed, hangs or cannot
    be reached, FAILED where it ended with an error.

    Args:
        coordinator: host:port of process 0; None, like the next two, where Slurm, a TPU pod, Kubernetes or MPI tells.
        processes: their number.
        process: this one's number, from 0.
        facts: what must be the same in all processes, by name.
        seconds: to wait for all processes to start.

    Raises:
        ValueError: arguments that are missing or contradict each other or those of another process; processes that do
            not start; other facts than process 0's; processes with different numbers of devices.
    """
    coordinator, processes, process = place(coordinator, processes, process, seconds=seconds)
    facts = json.loads(json.dumps(dict(facts)))  # as they arrive at the other end
    host, port = coordinator.rsplit(":", 1)
    if process == 0:
        lines = gather(int(port), processes, facts, seconds=seconds)
    else:
        lines = [reach(host.strip("[]"), int(port), hello(processes, process, facts), seconds=seconds)]
    watch = Watch(describe(process, processes, socket.gethostname()), lines, first=process == 0)
    try:
        jax.distributed.initialize(coordinator, processes, process)
        check_devices()
        if jax.default_backend() == "cpu":
            # Programs of process 0 alone are found there again; it would wait for the others longer than Gloo does.
            jax.config.update("jax_enable_compilation_cache", False)
        yield
    except BaseException as error:
        watch.fail(error)
        raise
    watch.finish()


def place(
    coordinator: str | None, processes: int | None, process: int | None, *, seconds: float
) -> tuple[str, int, int]:
    """Address of process 0, number of processes, number of this one: as given, else as the cluster tells.

    Raises:
        ValueError: neither tells all three, or they contradict each other.
    """
    coordinator = coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS")
    if None in (coordinator, processes, process):
        coordinator, processes, process, _ = ClusterEnv.auto_detect_unset_distributed_params(
            coordinator, processes, process, None, None, int(seconds)
        )
    given = {"--coordinator=HOST:PORT": coordinator, "--processes": processes, "--process": process}
    missing = [flag for flag, value in given.items() if value is None]
    if missing:
        raise ValueError(f"no cluster that JAX knows tells {', '.join(missing)}: add what is missing on each host")
    if not coordinator.rpartition(":")[0] or not coordinator.rpartition(":")[2].isdecimal():
        raise ValueError(f"--coordinator is {coordinator!r}; it must be HOST:PORT of process 0")
    if not 0 <= process < processes:
        raise ValueError(f"--process={process} does not go with --processes={processes}: they count from 0")
    return coordinator, processes, process


def describe(process: int, processes: int, host: str) -> str:
    """A process by number and host."""
    return f"process {process} of {processes} (host {host})"


def hello(processes: int, process: int, facts: Mapping[str, Any]) -> dict[str, Any]:
    """What a process tells process 0 first."""
    return {"processes": processes, "process": process, "host": socket.gethostname(), "facts": facts}


def gather(port: int, processes: int, facts: Mapping[str, Any], *, seconds: float) -> list[Line]:
    """As process 0, waits for all others and lets them go on.

    On the coordinator's own port, so that clusters need open no other; it is free again behind this.

    Raises:
        ValueError: the port is taken, a process does not come, or one contradicts this one. Those that came know.
    """
    came: dict[int, Line] = {}
    differences = []
    deadline = time.monotonic() + seconds
    with listen(port) as server:
        while missing := sorted(set(range(1, processes)) - set(came)):
            server.settimeout(max(deadline - time.monotonic(), 0.001))
            try:
                line = Line(server.accept()[0], seconds=GRACE)
            except TimeoutError:
                fault = f"of {processes} processes, {', '.join(map(str, missing))} did not start within {seconds:.0f} s"
                refuse(came.values(), f"{fault}: their logs tell why, or --join_seconds gives them longer")
            try:
                news = line.receive()
            except (OSError, ValueError):  # not one of ours, or gone again
                line.close()
                continue
            line.name = describe(news["process"], news["processes"], news["host"])
            if news["processes"] != processes:
                refuse([line, *came.values()], f"{line.name} contradicts process 0, which has --processes={processes}")
            if news["process"] not in missing:
                same = came[news["process"]].name
                refuse([line, *came.values()], f"two have --process={news['process']}: {same} and {line.name}")
            differences += differing(line.name, news["facts"], facts)
            came[news["process"]] = line
    if differences:
        refuse(came.values(), f"the processes were started differently: {'; '.join(differences)}")
    for line in came.values():
        line.connection.settimeout(SILENCE)
        line.send({"host": socket.gethostname()})
    return list(came.values())


def listen(port: int) -> socket.socket:
    """A listening socket on all addresses of this host, as JAX will make one later.

    Raises:
        ValueError: the port is taken.
    """
    both = socket.has_dualstack_ipv6()
    try:
        return socket.create_server(
            ("", port), family=socket.AF_INET6 if both else socket.AF_INET, dualstack_ipv6=both, backlog=1024
        )
    except OSError as error:
        raise ValueError(
            f"process 0 cannot listen on port {port} of {socket.gethostname()} ({error.strerror}): is there another "
            "--process=0, or an earlier run? Otherwise choose another port in --coordinator"
        ) from error


def differing(name: str, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> list[str]:
    """What the process of some name and process 0 do not have in common."""
    keys = [key for key in sorted({*theirs, *ours}) if theirs.get(key) != ours.get(key)]
    return [f"{key} is {theirs.get(key)!r} in {name} and {ours.get(key)!r} in process 0" for key in keys]


def refuse(lines: Iterable[Line], fault: str) -> NoReturn:
    """Ends the start everywhere, for one reason."""
    for line in lines:
        with suppress(OSError):
            line.send({"end": fault, "code": FAILED})
        line.close()
    raise ValueError(fault)


def reach(host: str, port: int, news: Mapping[str, Any], *, seconds: float) -> Line:
    """As one of the others, waits for process 0 and its word to go on.

    Raises:
        ValueError: process 0 does not answer, or refuses.
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            line = Line(socket.create_connection((host, port), timeout=seconds), seconds=seconds + GRACE)
            answer = line.ask(news)
            break
        except OSError as error:  # not there yet; or an earlier run's, which closes at such words
            if time.monotonic() > deadline:
                raise ValueError(
                    f"process 0 did not answer at {host}:{port} within {seconds:.0f} s ({error}): its log tells why, "
                    "or --coordinator is wrong, or --join_seconds gives it longer"
                ) from error
            time.sleep(0.5)
    if "end" in answer:
        line.close()
        raise ValueError(answer["end"])
    line.connection.settimeout(SILENCE)
    line.name = describe(0, news["processes"], answer["host"])
    return line


def check_devices() -> None:
    """Raises a ValueError where processes have different numbers of devices: each reads the same share of a batch."""
    counts = Counter(device.process_index for device in jax.devices())
    if len(set(counts.values())) > 1:
        found = ", ".join(f"process {process}: {count}" for process, count in sorted(counts.items()))
        raise ValueError(f"the processes have different numbers of devices ({found}); give each the same")


class Watch:
    """The lines of a process to others, each with a thread that listens; one more thread sends the signs of life."""

    def __init__(self, name: str, lines: list[Line], *, first: bool):
        """Begins to watch.

        Args:
            name: of this process.
            first: whether this is process 0, which hands on what it hears.
        """
        self.name, self.lines, self.first = name, lines, first
        self.finished = threading.Event()
        self.ending = threading.Lock()  # never given back: whoever gets it ends the process
        self.listeners = [threading.Thread(target=self.listen, args=(line,), daemon=True) for line in lines]
        for thread in (*self.listeners, threading.Thread(target=self.beat, daemon=True)):
            thread.start()

    def beat(self) -> None:
        """Sends signs of life, to the end."""
        while not self.finished.wait(BEAT):
            self.send_all(None)

    def listen(self, line: Line) -> None:
        """Waits for a line's last word, or for its silence."""
        try:
            message = line.receive()
        except TimeoutError:
            self.end(f"{line.name} gave no sign of life for {SILENCE:.0f} s, so the others end; {GO_ON}", LOST)
        except (OSError, ValueError):  # closed, also in the middle of a message
            self.end(f"{line.name} is gone: killed, crashed or cut off, as its log may tell; {GO_ON}", LOST)
        else:
            if "end" in message:
                self.end(message["end"], message["code"])

    def end(self, sentence: str, code: int) -> NoReturn:
        """Ends this process, whatever its other threads wait for, and where it is process 0 all others."""
        self.ending.acquire()
        if self.first:
            self.send_all({"end": sentence, "code": code})
        sys.stdout.flush()
        print(f"\n{sentence}", file=sys.stderr, flush=True)
        self.let_read()
        os._exit(code)

    def fail(self, error: BaseException) -> None:
        """Tells the others of an error that ends this process, unless another process turns out to be its cause."""
        time.sleep(GRACE)
        self.ending.acquire()
        self.send_all({"end": f"{self.name} ended with {type(error).__name__}: {error}", "code": FAILED})
        self.let_read()
        # Let the error be printed, but neither JAX nor a thread wait for the others, which end now.
        atexit.register(os._exit, FAILED)
        last = threading.Timer(GRACE, os._exit, (FAILED,))
        last.daemon = True
        last.start()

    def let_read(self) -> None:
        """Gives the others time to read: without the service in process 0, JAX would end them from C++."""
        if self.first:
            time.sleep(1)

    def finish(self) -> None:
        """Waits until all processes are here."""
        if not self.first:
            self.send_all({"done": True})
        for thread in self.listeners:
            thread.join()
        if self.first:
            self.send_all({"done": True})
        self.finished.set()
        for line in self.lines:
            line.close()

    def send_all(self, message: Mapping[str, Any] | None) -> None:
        """Sends to all that can be reached; the listeners notice the others."""
        for line in self.lines:
            with suppress(OSError):
                line.send(message)
