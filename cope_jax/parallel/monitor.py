"""Connections between the processes of a cluster, which end all of them if one fails or is lost."""

import atexit
import json
import os
import socket
import sys
import threading
import time
from contextlib import suppress
from typing import Any

HEARTBEAT_INTERVAL = 2.0  # seconds
HEARTBEAT_TIMEOUT = 40.0  # seconds without a heartbeat after which a process counts as lost
GRACE_PERIOD = 5.0  # seconds before an error is reported: the loss of another process, known by then, may be its cause
EXIT_FAILED = 1  # exit code: a process ended with an error, which would occur again
EXIT_RETRY = 75  # exit code: a process was lost (EX_TEMPFAIL: run the same command again)
RESUME_HINT = "run the same command on all hosts again to resume from the last checkpoint"

Message = dict[str, Any]  # a JSON object


class Peer:
    """A connection to another process that carries messages, one per line; empty ones are heartbeats."""

    def __init__(self, connection: socket.socket, *, timeout: float):
        connection.settimeout(timeout)
        self.connection, self.name = connection, ""  # the name describes the other process in errors
        self.lines = connection.makefile(encoding="utf-8")
        self.lock = threading.Lock()

    def send(self, message: Message) -> None:
        """Sends a message."""
        with self.lock:
            self.connection.sendall(json.dumps(message).encode() + b"\n")

    def receive(self) -> Message:
        """Returns the next message that is not a heartbeat.

        Raises OSError if nothing arrives in time or the other end closed, ValueError if the message is not JSON.
        """
        for line in self.lines:
            if message := json.loads(line):
                return message
        raise ConnectionResetError("closed")

    def close(self) -> None:
        """Closes this end."""
        self.lines.close()
        self.connection.close()


class Monitor:
    """Ends this process if another one fails or is lost, and reports its own failure to the others.

    One thread listens to each peer, and one sends heartbeats. Process 0, the hub, passes on what it hears.
    """

    def __init__(self, name: str, peers: list[Peer], *, is_hub: bool):
        self.name, self.peers, self.is_hub = name, peers, is_hub
        self.finished = threading.Event()
        self.ending = threading.Lock()  # never released: the thread that acquires it ends the process
        self.listeners = [threading.Thread(target=self.listen, args=(peer,), daemon=True) for peer in peers]
        for thread in (*self.listeners, threading.Thread(target=self.send_heartbeats, daemon=True)):
            thread.start()

    def send_heartbeats(self) -> None:
        """Sends heartbeats until the process finishes."""
        while not self.finished.wait(HEARTBEAT_INTERVAL):
            self.send_to_all({})

    def send_to_all(self, message: Message) -> None:
        """Sends to all peers that can be reached; the listeners notice the others."""
        for peer in self.peers:
            with suppress(OSError):
                peer.send(message)

    def listen(self, peer: Peer) -> None:
        """Waits until a peer finishes, fails or is lost."""
        try:
            message = peer.receive()
        except TimeoutError:
            error = f"{peer.name} sent no heartbeat for {HEARTBEAT_TIMEOUT:.0f} s; {RESUME_HINT}"
            message = {"error": error, "code": EXIT_RETRY}
        except (OSError, ValueError):  # closed, possibly within a message
            error = f"{peer.name} is gone: killed, crashed or disconnected, see its log; {RESUME_HINT}"
            message = {"error": error, "code": EXIT_RETRY}
        if error := message.get("error"):
            self.announce_end(message)
            sys.stdout.flush()
            print(f"\n{error}", file=sys.stderr, flush=True)
            os._exit(message["code"])  # whatever other threads wait for

    def announce_end(self, reason: Message) -> None:
        """Returns in one thread only, which then ends the process. If this is the hub, all others end as well."""
        self.ending.acquire()
        self.send_to_all(reason)
        if self.is_hub:
            time.sleep(1)  # without its service in process 0, JAX would abort the others before they report

    def fail(self, error: BaseException) -> None:
        """Reports an error that ends this process, unless the loss of another process caused it."""
        time.sleep(GRACE_PERIOD)
        self.announce_end({"error": f"{self.name} ended with {type(error).__name__}: {error}", "code": EXIT_FAILED})
        # The error can still be printed, but neither JAX nor a thread may wait for the others, which are ending.
        atexit.register(os._exit, EXIT_FAILED)
        timer = threading.Timer(GRACE_PERIOD, os._exit, (EXIT_FAILED,))
        timer.daemon = True
        timer.start()

    def finish(self) -> None:
        """Waits until all processes have finished."""
        if not self.is_hub:
            self.send_to_all({"finished": True})
        for thread in self.listeners:
            thread.join()
        if self.is_hub:
            self.send_to_all({"finished": True})
        self.finished.set()
        for peer in self.peers:
            peer.close()
