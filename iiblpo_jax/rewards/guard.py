"""What an answer may not do inside a worker: write files, start programs, open sockets, call native code.

SymPy's parser evaluates Python, and so do scorers of reasoning-gym. `gym.py` refuses answers that are more than an
expression; this hook is the second line, for what slips through. It is no sandbox: code that already runs in the
interpreter can read files and the gold answer, and a bug in native code is out of its reach.
"""

from __future__ import annotations

import contextlib
import os
import resource
import sys

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
FORBIDDEN = frozenset(
    """
    code.__new__ ctypes.dlopen ctypes.dlsym ctypes.call_function ctypes.cdata fcntl.ioctl gc.get_objects
    gc.get_referrers mmap.__new__ os.chdir os.chflags os.chmod os.chown os.exec os.fork os.forkpty os.kill os.killpg
    os.link os.lockf os.mkdir os.posix_spawn os.putenv os.remove os.rename os.rmdir os.setxattr os.spawn os.startfile
    os.symlink os.system os.truncate os.unsetenv os.utime pty.spawn resource.prlimit
    signal.pthread_kill subprocess.Popen sys.addaudithook sys.setprofile sys.settrace syslog.syslog
    """.split()
)
FORBIDDEN_MODULES = ("ftplib", "http", "shutil", "smtplib", "socket", "sqlite3", "tempfile", "urllib", "webbrowser")


class Refused(BaseException):
    """Raised where the answer reached out; not an Exception, so that a grader does not swallow it."""


def arm() -> None:
    """From here on this process cannot do any of the above; there is no way back."""
    sys.dont_write_bytecode = True
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))

    # Bound here, so that replacing a name of this module does not disarm it.
    def hook(event, args, forbidden=FORBIDDEN, modules=FORBIDDEN_MODULES, writing=WRITING, refused=Refused):
        if event == "open":
            if isinstance(args[2], int) and args[2] & writing:
                raise refused(event)
        elif event in forbidden or event.partition(".")[0] in modules:
            raise refused(event)

    sys.addaudithook(hook)
