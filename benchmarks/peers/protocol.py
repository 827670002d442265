"""Peers run in processes of their own, each under its own interpreter: one JSON object a line, request and reply.

A peer's own memory can then be measured, its packages may contradict ours, and its threads sleep while others run. Only
the standard library here: both sides import this file.
"""

import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping


class PeerError(RuntimeError):
    """The peer could not start, or failed; the message is its own."""


class Peer:
    """The benchmark's side: `ask` sends one request and waits for its reply. Use as a context manager."""

    def __init__(self, interpreter: str, script: str, *arguments: str, environment: Mapping[str, str] | None = None):
        self.process = subprocess.Popen(
            [interpreter, script, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **(environment or {})},
        )
        self.facts = self._reply()

    def ask(self, command: str, **values) -> dict:
        """The reply to one request; PeerError with the peer's traceback if it failed."""
        self.process.stdin.write(json.dumps({"command": command, **values}) + "\n")
        self.process.stdin.flush()
        return self._reply()

    def _reply(self) -> dict:
        line = self.process.stdout.readline()
        if not line:
            raise PeerError(f"{' '.join(self.process.args)} ended with status {self.process.wait()}")
        reply = json.loads(line)
        if "error" in reply:
            raise PeerError(reply["error"])
        return reply

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        self.process.wait(timeout=30)


def serve(facts: Mapping[str, object], handlers: Mapping[str, Callable[..., dict]]) -> None:
    """The peer's side: says what it is, then answers requests until its input ends."""
    out = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever libraries print must not look like a reply

    def reply(value):
        out.write(json.dumps(value) + "\n")
        out.flush()

    reply(dict(facts))
    for line in sys.stdin:
        request = json.loads(line)
        try:
            reply(handlers[request.pop("command")](**request))
        except Exception:
            reply({"error": traceback.format_exc()})
