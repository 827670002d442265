"""Several processes as one run: how they find each other, before the first device is touched.

With nothing set there is one process and nothing is done. Otherwise every process gets either

    IIBLPO_COORDINATOR=host:port  IIBLPO_NUM_PROCESSES=N  IIBLPO_PROCESS_ID=i     (launch/local.sh sets them)
    IIBLPO_DISTRIBUTED=auto       JAX finds the same three under Slurm, Open MPI, Cloud TPU and Kubernetes

Process 0 listens on `port` (JAX's coordination service) and on the port beside it (watch.py: the roll call and the
watch). Time-outs in seconds: IIBLPO_INIT_TIMEOUT, for all processes to arrive, and IIBLPO_HEARTBEAT_TIMEOUT, after
which a silent machine counts as dead; a process that is killed is noticed at once.
"""

import atexit
import contextlib
import dataclasses
import os
import re
import signal
from collections.abc import Iterator, Mapping, Sequence

from iiblpo_jax.common.errors import InputError
from iiblpo_jax.devices import watch as peers

COORDINATOR, COUNT, INDEX = "IIBLPO_COORDINATOR", "IIBLPO_NUM_PROCESSES", "IIBLPO_PROCESS_ID"
AUTO = "IIBLPO_DISTRIBUTED"
INIT_TIMEOUT, HEARTBEAT_TIMEOUT = "IIBLPO_INIT_TIMEOUT", "IIBLPO_HEARTBEAT_TIMEOUT"
DEFAULT_SECONDS = {INIT_TIMEOUT: 300, HEARTBEAT_TIMEOUT: 60}
BACKUP = 30  # seconds by which JAX's own heartbeat is slower than ours: it ends with an abort and a stack trace


@dataclasses.dataclass(frozen=True, kw_only=True)
class Place:
    """Where this process stands in the run.

    Attributes:
      host, port: of the coordination service, which process 0 runs.
      count: number of processes.
      index: of this one, 0 to count - 1.
      local_devices: which devices of the machine are this process's; None = all that JAX sees.
    """

    host: str
    port: int
    count: int
    index: int
    local_devices: Sequence[int] | None = None

    @property
    def address(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def watch_port(self) -> int:
        return self.port + 1 if self.port < 65535 else self.port - 1


@contextlib.contextmanager
def initialize(environ: Mapping[str, str] = os.environ) -> Iterator[None]:
    """The run of this process among the others: every verb does its work inside, and imports jax no earlier.

    Leaving it waits for the other processes. When another process dies, this one ends with status 1 and a line on
    stderr that names it, whatever it is blocked in. An exception that leaves it ends the other processes.

    Raises:
      InputError: a variable is missing or wrong, or the processes do not find each other.
    """
    init, silence = (_seconds(environ, name) for name in (INIT_TIMEOUT, HEARTBEAT_TIMEOUT))
    place = find(environ, timeout=init)
    if place is None or place.count == 1:
        yield
        return
    if place.index == 0:
        peers.listen(place.port).close()  # taken: JAX would wait for processes that talk to somebody else
    links = peers.roll_call(place.index, place.count, host=place.host, port=place.watch_port, timeout=init)
    watch = peers.Watch(place.index, place.count, links, silence=silence)
    watch.start()
    try:
        _start_jax(place, init, silence)
        yield
    except BaseException as error:
        _give_up(watch, error)
        raise
    watch.leave()


def any_process(flag: bool) -> bool:
    """Whether the flag is set in any process: all of them get the same answer, at the price of one small collective.

    A SIGTERM reaches the processes at different steps; what they do about it must happen at the same one.
    """
    import jax

    if jax.process_count() == 1:
        return flag
    import numpy as np
    from jax.experimental import multihost_utils

    return bool(multihost_utils.process_allgather(np.array(flag)).any())


def find(environ: Mapping[str, str], *, timeout: int) -> Place | None:
    """This process's place according to the environment; None = it is alone.

    Args:
      environ: os.environ.
      timeout: seconds that the detection of a cluster may take.

    Raises:
      InputError: some variables are set and others not, or a value is wrong.
    """
    explicit = {name: environ.get(name, "") for name in (COORDINATOR, COUNT, INDEX)}
    auto = environ.get(AUTO, "")
    if auto not in ("", "auto"):
        raise InputError(f"{AUTO}={auto}; the only value is auto, and without it set {COORDINATOR}, {COUNT}, {INDEX}")
    if any(explicit.values()):
        missing = [name for name, value in explicit.items() if not value]
        if missing:
            given = " and ".join(name for name, value in explicit.items() if value)
            raise InputError(f"{given} set without {' and '.join(missing)}; set all three, or none for one process")
        if auto:
            raise InputError(f"{AUTO}=auto and {COORDINATOR} are both set; unset one of them")
        return _explicit(explicit)
    return _detect(timeout) if auto else None


def _explicit(values: dict[str, str]) -> Place:
    found = re.fullmatch(r"\[?(.+?)\]?:(\d{1,5})", values[COORDINATOR])
    port = int(found[2]) if found else 0
    if found is None or not 1 <= port <= 65535:
        raise InputError(f"{COORDINATOR}={values[COORDINATOR]}; write host:port of process 0, such as 10.0.0.1:5555")
    count, index = (_whole(name, values[name]) for name in (COUNT, INDEX))
    if count < 1:
        raise InputError(f"{COUNT}={count}; use 1 or more")
    if index >= count:
        raise InputError(f"{INDEX}={index} with {COUNT}={count}; number the processes from 0 to {count - 1}")
    return Place(host=found[1], port=port, count=count, index=index)


def _detect(timeout: int) -> Place:
    """What `jax.distributed.initialize()` would find; asked for before it, because that aborts when it fails."""
    from jax._src.clusters import ClusterEnv

    try:
        address, count, index, devices = ClusterEnv.auto_detect_unset_distributed_params(
            os.environ.get("JAX_COORDINATOR_ADDRESS"), None, None, None, None, timeout
        )
    except Exception as error:  # metadata servers, name services and cluster interfaces raise what they like
        raise InputError(f"{AUTO}=auto: the cluster was found but cannot be read ({error})") from error
    if address is None or count is None or index is None:
        raise InputError(
            f"{AUTO}=auto, but no cluster was found (Slurm, Open MPI, Cloud TPU, Kubernetes with the package "
            f"kubernetes); start the processes with launch/local.sh, or set {COORDINATOR}, {COUNT} and {INDEX}"
        )
    host, _, port = address.rpartition(":")
    return Place(host=host.strip("[]"), port=int(port), count=count, index=index, local_devices=devices)


def _start_jax(place: Place, init: int, silence: int) -> None:
    import jax

    jax.distributed.initialize(
        place.address,
        num_processes=place.count,
        process_id=place.index,
        local_device_ids=place.local_devices,
        cluster_detection_method="deactivate",
        initialization_timeout=init,
        heartbeat_timeout_seconds=silence + BACKUP,
    )
    # JAX's preemption notifier has just taken SIGTERM and would swallow it until the training loop sets its handler.
    signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))


def _give_up(watch: peers.Watch, error: BaseException) -> None:
    """Tells the others, and keeps JAX from waiting for them at exit. Errors of input and of nobody's are our own."""
    status = {InputError: 2, KeyboardInterrupt: 130}.get(type(error), 1)
    own_fault = isinstance(error, InputError) or not isinstance(error, Exception)
    watch.fail(
        str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}",
        status=status,
        own_fault=own_fault,
    )
    atexit.register(watch.wait)  # the traceback is out by then; the watch ends the process


def _seconds(environ: Mapping[str, str], name: str) -> int:
    value = environ.get(name, "")
    seconds = _whole(name, value) if value else DEFAULT_SECONDS[name]
    if seconds < 5:
        raise InputError(f"{name}={value}; use 5 seconds or more")
    return seconds


def _whole(name: str, value: str) -> int:
    if not value.isdecimal():
        raise InputError(f"{name}={value}; use a whole number")
    return int(value)
