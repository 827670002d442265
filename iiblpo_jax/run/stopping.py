"""Ending a run from outside, with SIGTERM or Ctrl-C."""

import os
import signal
import sys
import threading

from iiblpo_jax.devices.processes import any_process


class StopRequest:
    """Turns SIGTERM and Ctrl-C into a flag: the step under way is finished and saved. A second one exits at once.

    A context manager, for the main thread. A signal that one process of a run gets ends all of them, after the same
    step. SIGINT stays ignored where it was (a background process of a shell: whoever started it passes signals on).

    Attributes:
      received: the run is to end. Changes in `reached` only.
      signal: what this process got, SIGTERM where it was another process that got one.
    """

    def __init__(self):
        self.received = self._signalled = False
        self.signal = signal.SIGTERM

    def reached(self) -> bool:
        """Whether the run ends after this step; to be asked once a step, by all processes."""
        self.received = any_process(self._signalled)
        return self.received

    @property
    def status(self) -> int:
        """The exit status of a run that was ended so: 0, but 130 after Ctrl-C, which ends a loop of the shell too."""
        return 128 + self.signal if self.signal == signal.SIGINT else 0

    def __enter__(self) -> "StopRequest":
        # Python runs its handlers between bytecodes of the main thread, which may wait for the device for minutes. The
        # wake-up pipe is written at once, and a thread reads it.
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        taken = [signal.SIGTERM] + [signal.SIGINT] * (signal.getsignal(signal.SIGINT) is not signal.SIG_IGN)
        self._handlers = {number: signal.signal(number, lambda *_: None) for number in taken}
        self._pipe = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._pipe)
        os.close(self._writer)
        self._thread.join()
        os.close(self._reader)

    def _watch(self) -> None:
        while number := os.read(self._reader, 1):
            if number[0] not in self._handlers:
                continue
            got = signal.Signals(number[0])
            if self._signalled:
                print(f"second {got.name}: exits without saving", file=sys.stderr, flush=True)
                os._exit(128 + got)
            print(f"{got.name}: saves after this step and ends; a second one ends at once", file=sys.stderr, flush=True)
            self.signal, self._signalled = got, True
