"""How an engine process stands among others: whom it obeys, whom it outlives, and who goes first when memory ends."""

from __future__ import annotations

import faulthandler
import os
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path

OOM_SCORE = Path("/proc/self/oom_score_adj")
ORPHANED_EVERY_S = 1.0
"""How often it is checked whether the process that started this one is still there."""


def settle() -> None:
    """Make this process an engine's: call it once, from the main thread."""
    # A Ctrl-C in the terminal reaches the whole group; when work ends is for the supervisor to say.
    for name in ("SIGTERM", "SIGINT"):
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    # A crash in native code, and a supervisor that finds the process hung, have it say where it stood.
    faulthandler.enable()
    if hasattr(faulthandler, "register"):
        faulthandler.register(signal.SIGUSR1, all_threads=True)
    # Where memory runs out, Linux is to end this process and not the front, which can start it again.
    with suppress(OSError):
        OOM_SCORE.write_text("500")
    end_with_parent()


def limit_memory(more: int) -> None:
    """Let this process have so many bytes more than it has now; does nothing where the system knows no such limit."""
    with suppress(ImportError, OSError, ValueError):
        import resource

        import psutil

        most = psutil.Process().memory_info().vms + more
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def end_with_parent() -> None:
    """End this process when the one that started it is gone, even in the middle of a step that never ends."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(ORPHANED_EVERY_S)
        os._exit(1)

    threading.Thread(target=watch, name="orphan watch", daemon=True).start()
