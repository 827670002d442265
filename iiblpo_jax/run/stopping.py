"""Ending a run from outside, with SIGTERM."""

import os
import signal
import sys
import threading

from iiblpo_jax.devices.processes import any_process


class StopRequest:
    """Turns a SIGTERM into a flag, so that the step under way is finished and saved; a second one exits at once.

    A context manager, for the main thread. A signal that one process of a run gets ends all of them, after the same
    step.

    Attributes:
      received: the run is to end. Changes in `reached` only.
    """

    def __init__(self):
        self.received = self._signalled = False

    def reached(self) -> bool:
        """Whether the run ends after this step; to be asked once a step, by all processes."""
        self.received = any_process(self._signalled)
        return self.received

    def __enter__(self) -> "StopRequest":
        # Python runs its handlers between bytecodes of the main thread, which may wait for the device for minutes. The
        # wake-up pipe is written at once, and a thread reads it.
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        self._handler = signal.signal(signal.SIGTERM, lambda *_: None)
        self._pipe = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        signal.signal(signal.SIGTERM, self._handler)
        signal.set_wakeup_fd(self._pipe)
        os.close(self._writer)
        self._thread.join()
        os.close(self._reader)

    def _watch(self) -> None:
        while number := os.read(self._reader, 1):
            if number[0] != signal.SIGTERM:
                continue
            if self._signalled:
                print("second SIGTERM: exits without saving", file=sys.stderr, flush=True)
                os._exit(128 + signal.SIGTERM)
            self._signalled = True
