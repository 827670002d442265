"""The start of several processes: the environment they read, one collective between two, and the end of one of them."""

import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from iiblpo_jax.common.errors import InputError
from iiblpo_jax.devices import processes as distributed

ROOT = Path(__file__).parents[2]
COORDINATOR, COUNT, INDEX = "IIBLPO_COORDINATOR", "IIBLPO_NUM_PROCESSES", "IIBLPO_PROCESS_ID"
EXPLICIT = {COORDINATOR: "10.0.0.1:5555", COUNT: "4", INDEX: "3"}
KILL = signal.SIGKILL
CLUSTERS = ("SLURM_JOB_ID", "OMPI_MCA_orte_hnp_uri", "KUBERNETES_SERVICE_HOST", "TPU_WORKER_HOSTNAMES")


@pytest.fixture
def no_cluster(monkeypatch):
    for name in (*CLUSTERS, "JAX_COORDINATOR_ADDRESS", "JAX_COORDINATOR_PORT"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_nothing_set_is_one_process_and_costs_no_import():
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys\nfrom iiblpo_jax.devices.processes import initialize\n"
            "with initialize({}): print('jax' in sys.modules)",
        ],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "False\n"


def test_the_three_variables():
    place = distributed.find(EXPLICIT, timeout=5)
    assert (place.address, place.host, place.port, place.count, place.index) == (
        "10.0.0.1:5555",
        "10.0.0.1",
        5555,
        4,
        3,
    )
    assert (place.watch_port, place.local_devices) == (5556, None)


def test_an_ipv6_coordinator_and_the_last_port():
    place = distributed.find({**EXPLICIT, "IIBLPO_COORDINATOR": "[fd00::1]:65535"}, timeout=5)
    assert (place.host, place.address, place.watch_port) == ("fd00::1", "[fd00::1]:65535", 65534)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"IIBLPO_COORDINATOR": ""},
            f"{COUNT} and {INDEX} set without {COORDINATOR}; set all three",
        ),
        (
            {"IIBLPO_PROCESS_ID": ""},
            f"{COORDINATOR} and {COUNT} set without {INDEX}; set all three",
        ),
        ({"IIBLPO_COORDINATOR": "10.0.0.1"}, "IIBLPO_COORDINATOR=10.0.0.1; write host:port"),
        ({"IIBLPO_COORDINATOR": "a:70000"}, "IIBLPO_COORDINATOR=a:70000; write host:port"),
        ({"IIBLPO_NUM_PROCESSES": "two"}, "IIBLPO_NUM_PROCESSES=two; use a whole number"),
        ({"IIBLPO_NUM_PROCESSES": "0"}, "IIBLPO_NUM_PROCESSES=0; use 1 or more"),
        ({"IIBLPO_PROCESS_ID": "-1"}, "IIBLPO_PROCESS_ID=-1; use a whole number"),
        (
            {"IIBLPO_PROCESS_ID": "4"},
            "IIBLPO_PROCESS_ID=4 with IIBLPO_NUM_PROCESSES=4; number the processes from 0",
        ),
        ({"IIBLPO_DISTRIBUTED": "yes"}, "IIBLPO_DISTRIBUTED=yes; the only value is auto"),
        ({"IIBLPO_DISTRIBUTED": "auto"}, "IIBLPO_DISTRIBUTED=auto and IIBLPO_COORDINATOR are both set; unset one"),
        ({"IIBLPO_INIT_TIMEOUT": "1m"}, "IIBLPO_INIT_TIMEOUT=1m; use a whole number"),
        ({"IIBLPO_HEARTBEAT_TIMEOUT": "4"}, "IIBLPO_HEARTBEAT_TIMEOUT=4; use 5 seconds or more"),
    ],
)
def test_a_wrong_variable_is_named(changed, message):
    with pytest.raises(InputError) as error, distributed.initialize({**EXPLICIT, **changed}):
        pass
    assert str(error.value).startswith(message)


def test_slurm_is_found(no_cluster):
    """The port is JAX's rule: job id modulo 4096 above 61440."""
    for name, value in {
        "SLURM_JOB_ID": "4099",
        "SLURM_STEP_NODELIST": "node[007-009]",
        "SLURM_NTASKS": "6",
        "SLURM_PROCID": "5",
        "SLURM_LOCALID": "1",
        "SLURM_STEP_NUM_NODES": "3",
    }.items():
        no_cluster.setenv(name, value)
    place = distributed.find({"IIBLPO_DISTRIBUTED": "auto"}, timeout=5)
    assert (place.host, place.port, place.count, place.index) == ("node007", 61443, 6, 5)
    assert list(place.local_devices) == [1]


def test_auto_without_a_cluster(no_cluster):
    with pytest.raises(InputError, match=r"IIBLPO_DISTRIBUTED=auto, but no cluster was found .*launch/local\.sh"):
        distributed.find({"IIBLPO_DISTRIBUTED": "auto"}, timeout=5)


def test_a_taken_port_is_told_before_jax_starts():
    with socket.create_server(("", 0)) as server:
        environ = {**EXPLICIT, "IIBLPO_PROCESS_ID": "0", "IIBLPO_COORDINATOR": f"localhost:{server.getsockname()[1]}"}
        with pytest.raises(InputError, match="is taken by another program"), distributed.initialize(environ):
            pass


PROGRAM = """
    import os, signal, sys, time
    from iiblpo_jax.devices import processes as distributed

    with distributed.initialize():
        import jax
        import jax.numpy as jnp
        import numpy as np
        from jax.sharding import Mesh, NamedSharding, PartitionSpec as P

        me = jax.process_index()
        mesh = Mesh(np.array(jax.devices()), ("x",))
        x = jax.make_array_from_process_local_data(NamedSharding(mesh, P("x")), np.array([10.0 ** me], np.float32))
        total = jax.jit(jax.shard_map(lambda x: jax.lax.psum(x, "x"), mesh=mesh, in_specs=P("x"), out_specs=P()))
        line = [jax.process_count(), float(total(x)[0])]
        line += [distributed.any_process(flag) for flag in (me == 1, False)]
        line += [signal.getsignal(signal.SIGTERM) == signal.SIG_DFL]
        os.write(1, f"{line}\\n".encode())
        if sys.argv[1] == "loop":
            while True:
                total(x).block_until_ready()
        if sys.argv[1] == "wait" and me == 0:
            total(x).block_until_ready()  # a collective that nobody joins
        if sys.argv[1] == "wait":
            time.sleep(1000)
"""


def start(tmp_path, port: int, mode: str, environment: dict) -> list[subprocess.Popen]:
    """Two processes of PROGRAM, after their first collective: 10^0 + 10^1."""
    (tmp_path / "program.py").write_text(textwrap.dedent(PROGRAM))
    shared = {
        **environment,
        "PYTHONPATH": str(ROOT),
        "IIBLPO_NUM_PROCESSES": "2",
        "IIBLPO_COORDINATOR": f"127.0.0.1:{port}",
        "IIBLPO_HEARTBEAT_TIMEOUT": "20",
        "IIBLPO_INIT_TIMEOUT": "60",
    }
    processes = [
        subprocess.Popen(
            [sys.executable, "program.py", mode],
            cwd=tmp_path,
            env={**shared, "IIBLPO_PROCESS_ID": str(index)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    for process in processes:
        lines = iter(process.stdout.readline, "")
        assert next((line for line in lines if line.startswith("[2")), None) == "[2, 11.0, True, False, True]\n"
    return processes


def test_two_processes_add_up_and_end_together(tmp_path, neighbouring_ports, virtual_devices):
    processes = start(tmp_path, neighbouring_ports(), "end", virtual_devices(1))
    assert [process.wait(30) for process in processes] == [0, 0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "victim", "sent"),
    [
        ("loop", 1, signal.SIGKILL),
        ("loop", 0, signal.SIGKILL),
        ("wait", 1, signal.SIGKILL),
        ("loop", 1, signal.SIGTERM),
    ],
)
def test_when_one_dies_the_other_stops_and_names_it(tmp_path, mode, victim, sent, neighbouring_ports, virtual_devices):
    processes = start(tmp_path, neighbouring_ports(), mode, virtual_devices(1))
    processes[victim].send_signal(sent)
    killed, survivor = time.monotonic(), processes[1 - victim]
    stderr = survivor.communicate(timeout=30)[1]
    assert time.monotonic() - killed < 15  # at once; a silent machine would take IIBLPO_HEARTBEAT_TIMEOUT
    assert survivor.returncode == 1
    assert f"error: process {victim} of 2 (127.0.0.1) is gone: killed, or crashed; " in stderr
    assert processes[victim].wait(5) == -sent
