"""The processes of one run watch each other, so that none of them waits for ever for one that is gone.

JAX's own service ends the survivors too, but only after its heartbeat time-out, with an abort and a stack trace, and a
start that fails is an abort as well. Here process 0 holds a TCP connection to every other process, on the port beside
the coordinator's, and everything is said in lines of text:

    other -> 0   hello INDEX COUNT ... beat ... then  bye | fail REASON
    0 -> other   go | no REASON    ... beat ... then  bye | stop INDEX REASON

The kernel closes the connection of a killed process at once; a machine that vanishes falls silent. Process 0 then tells
the others, and every one of them ends with one line that names the process.
"""

import contextlib
import errno
import os
import select
import socket
import threading
import time
from collections.abc import Iterable

from iiblpo_jax.common.errors import InputError

BEAT = 1.0  # seconds between two signs of life
GRACE = 2.0  # seconds in which a death explains the errors that it causes in other processes
HELLO = 5.0  # seconds a new connection may take to say who it is; a port scanner never does
MAX_REASON = 300  # characters


class Link:
    """One connection, as lines."""

    def __init__(self, connection: socket.socket):
        connection.settimeout(HELLO)
        self.socket, self.host = connection, connection.getpeername()[0].removeprefix("::ffff:")
        self.heard = time.monotonic()
        self.left = False  # said bye: its end is no death
        self._rest = b""

    def send(self, line: str) -> None:
        with contextlib.suppress(OSError):  # a broken connection shows up when it is read
            self.socket.sendall(line.encode() + b"\n")

    def receive(self) -> list[str]:
        """The lines that have arrived, after waiting for some bytes.

        Raises:
          EOFError: the other side is gone.
          TimeoutError: nothing came within the socket's time-out.
        """
        try:
            data = self.socket.recv(4096)
        except ConnectionError:
            data = b""
        if not data:
            raise EOFError
        self.heard = time.monotonic()
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [line.decode(errors="replace") for line in lines]


class Watch:
    """Ends this process when another one of the run has died, failed or fallen silent.

    Args:
      index, count: of this process, and how many there are.
      links: of `roll_call`: process 0 has one to every other process, the others have one to process 0.
      silence: seconds without a sign of life after which a process counts as dead.
    """

    def __init__(self, index: int, count: int, links: dict[int, Link], *, silence: float):
        self._index, self._count, self._links, self._silence = index, count, links, silence
        self._dead: dict[int, str] = {}
        self._failed: dict[int, tuple[float, str]] = {}  # process -> (when, reason)
        self._leaving = False
        self._status = 1
        self._own_fault = False
        self._thread = threading.Thread(target=self._run, name="peers", daemon=True)

    def start(self) -> None:
        """From now on a death ends this process."""
        self._thread.start()

    def wait(self) -> None:
        """Returns when all processes have left; after `fail` or a death it does not return."""
        self._thread.join()

    def leave(self) -> None:
        """Says that this process has finished and returns when all have; a death while waiting still counts."""
        self._leaving = True
        if self._index:
            self._links[0].send("bye")
        self.wait()

    def fail(self, reason: str, *, status: int, own_fault: bool) -> None:
        """Says why this process cannot go on. The thread ends it as soon as it is clear which process was the first.

        Args:
          reason: for the other processes.
          status: of the exit.
          own_fault: whether the reason certainly lies here, so that no other process needs to be named.
        """
        self._status, self._own_fault = status, own_fault
        reason = " ".join(reason.split())[:MAX_REASON]
        if self._index:
            self._links[0].send(f"fail {reason}")
        else:
            self._failed[0] = time.monotonic(), reason

    def _run(self) -> None:
        beat_at = time.monotonic()
        while True:
            for index in self._readable(BEAT):
                self._hear(index)
            if time.monotonic() >= beat_at:
                self._tell("beat")
                beat_at = time.monotonic() + BEAT
            verdict = self._verdict(time.monotonic())
            if verdict:
                self._end(*verdict)
            if self._finished():
                self._tell("bye")
                return

    def _readable(self, seconds: float) -> list[int]:
        poll = select.poll()
        index_of = {link.socket.fileno(): index for index, link in self._links.items() if index not in self._dead}
        for number in index_of:
            poll.register(number, select.POLLIN)
        return [index_of[number] for number, _ in poll.poll(1000 * seconds)]

    def _hear(self, index: int) -> None:
        link = self._links[index]
        try:
            lines = link.receive()
        except (EOFError, OSError):
            if link.left:
                del self._links[index]
            else:
                self._dead[index] = "is gone: killed, or crashed"
            return
        for line in lines:
            word, _, rest = line.partition(" ")
            if word == "bye":
                link.left = True
            elif word == "fail":
                self._failed.setdefault(index, (time.monotonic(), rest))
            elif word == "stop":
                culprit, _, reason = rest.partition(" ")
                self._end(int(culprit), reason)

    def _verdict(self, now: float) -> tuple[int, str] | None:
        """(process, what happened to it), or None while all is well. A death comes first: it explains failures."""
        for index, reason in self._dead.items():
            return index, f"({self._links[index].host}) {reason}"
        for index, link in self._links.items():
            if not link.left and now - link.heard > self._silence:
                return index, f"({link.host}) has given no sign of life for {self._silence:.0f} s"
        for index, (when, reason) in sorted(self._failed.items(), key=lambda item: item[1]):
            if now - when > GRACE:
                return index, f"failed: {reason}"
        return None

    def _finished(self) -> bool:
        return self._leaving and all(link.left for link in self._links.values())

    def _tell(self, line: str) -> None:
        for link in self._links.values():
            link.send(line)

    def _end(self, culprit: int, reason: str) -> None:
        """Passes the verdict on, prints it and ends the process, whatever its main thread is blocked in."""
        self._tell(f"stop {culprit} {reason}")
        if not self._own_fault and culprit != self._index:
            line = (
                f"error: process {culprit} of {self._count} {reason}; process {self._index} stops; "
                "the same command resumes from the last checkpoint\n"
            )
            os.write(2, line.encode())  # not print: the main thread may hold the lock of sys.stderr
        if self._index == 0 and len(self._links) > len(self._dead):
            time.sleep(BEAT)  # when process 0 ends, so does JAX's service, and aborts whoever has not heard of it
        os._exit(self._status)


def roll_call(index: int, count: int, *, host: str, port: int, timeout: float) -> dict[int, Link]:
    """Connects the processes of a run and returns when all of them are there.

    Args:
      index, count: of this process, and how many there are.
      host, port: where process 0 listens.
      timeout: seconds to wait for the others.

    Raises:
      InputError: somebody did not come, cannot be reached, or counts differently.
    """
    if index:
        return {0: _report(index, count, host, port, timeout)}
    links: dict[int, Link] = {}
    try:
        _gather(links, count, port, timeout)
    except InputError as error:
        for link in links.values():
            link.send(f"no {error}")
        raise
    for link in links.values():
        link.send("go")
    return links


def listen(port: int) -> socket.socket:
    """A listening socket on all addresses.

    Raises:
      InputError: the port is taken.
    """
    try:
        if socket.has_dualstack_ipv6():
            with contextlib.suppress(OSError):  # no IPv6 on this machine, or taken: IPv4 will tell
                return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
        return socket.create_server(("", port))
    except OSError as error:
        reason = "is taken by another program" if error.errno == errno.EADDRINUSE else f"cannot be used ({error})"
        raise InputError(f"port {port} of process 0 {reason}; choose another port in IIBLPO_COORDINATOR") from None


def _gather(links: dict[int, Link], count: int, port: int, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    with listen(port) as server:
        while len(links) < count - 1:
            left = deadline - time.monotonic()
            if left <= 0:
                missing = _names(set(range(1, count)) - set(links))
                raise InputError(
                    f"{missing} of {count} did not start within {timeout:.0f} s; look at their logs, or wait longer "
                    "with IIBLPO_INIT_TIMEOUT"
                )
            server.settimeout(left)
            with contextlib.suppress(TimeoutError):
                link = Link(server.accept()[0])
                _admit(link, links, count)


def _admit(link: Link, links: dict[int, Link], count: int) -> None:
    try:
        index, theirs = _greeting(link.receive()[0])
    except (EOFError, OSError, ValueError, IndexError):  # somebody else's connection
        link.socket.close()
        return
    wrong = None
    if theirs != count:
        wrong = f"process 0 counts {count} processes and process {index} counts {theirs}; set one IIBLPO_NUM_PROCESSES"
    elif index in links:
        wrong = f"two processes have IIBLPO_PROCESS_ID={index}; number them from 0 to {count - 1}"
    if wrong:
        link.send(f"no {wrong}")
        raise InputError(wrong)
    links[index] = link


def _greeting(text: str) -> tuple[int, int]:
    """(number of a process, how many it counts) out of its first message."""
    word, index, count = text.split()
    if word != "hello":
        raise ValueError(text)
    return int(index), int(count)


def _report(index: int, count: int, host: str, port: int, timeout: float) -> Link:
    """The connection of process `index` to process 0, once all are there."""
    deadline = time.monotonic() + timeout
    link = Link(_connect(index, host, port, deadline, timeout))
    link.send(f"hello {index} {count}")
    link.socket.settimeout(timeout + HELLO)  # process 0 speaks first, whatever it has to say
    try:
        word, _, reason = next(iter(link.receive()), "").partition(" ")
    except (EOFError, TimeoutError):
        word, reason = "no", f"process 0 at {host}:{port} stopped before the run began; look at its log"
    if word != "go":
        raise InputError(reason or f"{host}:{port} is not process 0 of this run; check IIBLPO_COORDINATOR")
    link.socket.settimeout(HELLO)
    return link


def _connect(index: int, host: str, port: int, deadline: float, timeout: float) -> socket.socket:
    while True:
        try:
            return socket.create_connection((host, port), timeout=HELLO)
        except OSError as error:  # also a name that cannot be resolved yet
            if time.monotonic() > deadline:
                raise InputError(
                    f"process {index} cannot reach process 0 at {host}:{port} ({error.strerror or error}) after "
                    f"{timeout:.0f} s; check IIBLPO_COORDINATOR, that process 0 runs, and that no firewall is between"
                ) from None
        time.sleep(0.2)


def _names(indices: Iterable[int]) -> str:
    indices = sorted(indices)
    some = ", ".join(map(str, indices[:8])) + (", ..." if len(indices) > 8 else "")
    return f"process {some}" if len(indices) == 1 else f"processes {some}"
