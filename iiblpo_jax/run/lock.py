"""One run a workdir: WORKDIR/lock says who is at work there, and is known to be stale when that is gone.

Two signs of life, because no single one is to be had everywhere:

    flock    the kernel's lock on the file, which goes with its process however that ends. It holds among processes of
             one machine, containers included, and on most shared file systems among machines.
    beat     a number in the file that the owner raises every BEAT seconds. Where a file was left behind by another
             machine, whose flock this file system may not show, it is watched for WATCH seconds: if it rests, nobody is
             there. Numbers are compared, not clocks.

In a run of several processes the first one has the lock for all. A process may lock a workdir several times.
"""

import contextlib
import fcntl
import json
import os
import socket
import threading
import time
from pathlib import Path

import jax

from iiblpo_jax.common.errors import InputError, warn

FILE = "lock"
BEAT = 10.0  # seconds between two beats
WATCH = 30.0  # seconds that a file of another machine is watched: a shared file system may show a beat late
MAX_BYTES = 4096

_held: dict[Path, "_Owned"] = {}


class WorkdirLock:
    """The lock of a workdir, from here to `release`, or to the end of the process.

    Raises:
      InputError: another process has it.
    """

    def __init__(self, workdir: Path | str):
        self._path: Path | None = None
        if jax.process_index():
            return
        self._path = (Path(workdir) / FILE).resolve()
        if self._path not in _held:
            _held[self._path] = _Owned(self._path)
        _held[self._path].users += 1

    def release(self) -> None:
        """Gives it back; a second call does nothing."""
        path, self._path = self._path, None
        if path is None:
            return
        _held[path].users -= 1
        if not _held[path].users:
            _held.pop(path).release()

    def __enter__(self) -> "WorkdirLock":
        return self

    def __exit__(self, *_) -> None:
        self.release()


class _Owned:
    """The locked file, and the thread that keeps its beat."""

    def __init__(self, path: Path):
        self.users = 0
        self._path, self._file = path, _locked(path)
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        self._card = {"host": socket.gethostname(), "process": os.getpid(), "since": since, "machine": _machine()}
        self._ended, self._beat = threading.Event(), 0
        self._write()
        self._thread = threading.Thread(target=self._keep_beating, daemon=True)
        self._thread.start()

    def release(self) -> None:
        self._ended.set()
        self._thread.join()
        with contextlib.suppress(OSError):
            self._path.unlink()
        os.close(self._file)

    def _keep_beating(self) -> None:
        while not self._ended.wait(BEAT):
            self._beat += 1
            with contextlib.suppress(OSError):  # a full disk: the flock is left
                self._write()

    def _write(self) -> None:
        text = json.dumps(self._card | {"beat": self._beat}).encode() + b"\n"
        os.pwrite(self._file, text, 0)
        os.ftruncate(self._file, len(text))
        os.fsync(self._file)


def _locked(path: Path) -> int:
    """A descriptor of the file that this process has locked; InputError where it is somebody else's."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            seen = _flock(file, path)
            card = _card(path)
            if card and not (seen and card.get("machine") == _machine()):
                _watch(path, card)
            if os.path.exists(path) and os.path.samestat(os.fstat(file), os.stat(path)):
                return file
        except BaseException:
            os.close(file)
            raise
        os.close(file)  # its owner has just unlinked it


def _flock(file: int, path: Path) -> bool:
    """Takes the kernel's lock; False where the file system has none."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise _in_use(path, _card(path)) from None
    except OSError:
        return False
    return True


def _watch(path: Path, card: dict) -> None:
    """InputError if the file changes within WATCH seconds: its owner lives, on another machine."""
    warn(f"{path} was left by {_owner(card)}; watching for {WATCH:.0f} s whether that still runs")
    deadline = time.monotonic() + WATCH
    while time.monotonic() < deadline:
        time.sleep(WATCH / 30)
        if (now := _card(path)) != card:
            raise _in_use(path, now or card)


def _in_use(path: Path, card: dict) -> InputError:
    return InputError(
        f"workdir {path.parent} is in use by {_owner(card)}; wait for its end or stop it, or use another --workdir"
    )


def _owner(card: dict) -> str:
    since = f" (since {card['since']})" if "since" in card else ""
    return f"process {card.get('process', 'unknown')} on host {card.get('host', 'unknown')}{since}"


def _card(path: Path) -> dict:
    """What the file says of its owner; empty where it says nothing."""
    try:
        with path.open("rb") as file:
            card = json.loads(file.read(MAX_BYTES))
    except (OSError, ValueError, RecursionError):
        return {}
    return card if isinstance(card, dict) else {}


def _machine() -> str:
    """Names the running kernel: what a flock is seen by. The host's name where there is no /proc."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return socket.gethostname()
