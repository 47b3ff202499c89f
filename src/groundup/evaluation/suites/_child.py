"""The child in which a generated program runs: cut off and limited first, then the program, nothing else.

Started by `code.run` with the program's path, seconds and bytes of memory. Imports only the standard
library, as it runs by itself.
"""

import ctypes
import os
import resource
import sys

NEW_USERS, NEW_NETWORK = 0x10000000, 0x40000000
NO_GUARD = 97
LARGEST_FILE = 1 << 20
FORBIDDEN = (
    "ctypes.",
    "ftplib.",
    "http.",
    "os.chmod",
    "os.chown",
    "os.exec",
    "os.fork",
    "os.forkpty",
    "os.kill",
    "os.link",
    "os.mkdir",
    "os.posix_spawn",
    "os.putenv",
    "os.remove",
    "os.rename",
    "os.rmdir",
    "os.setxattr",
    "os.spawn",
    "os.symlink",
    "os.system",
    "os.truncate",
    "pty.spawn",
    "shutil.",
    "signal.pthread_kill",
    "smtplib.",
    "socket.",
    "subprocess.",
    "urllib.",
    "webbrowser.",
)


def cut_off() -> bool:
    """Whether this process is now without network: in a network of its own that has no connection."""
    library = ctypes.CDLL(None, use_errno=True)
    return any(library.unshare(what) == 0 for what in (NEW_USERS | NEW_NETWORK, NEW_NETWORK))


def limit(seconds: int, memory_bytes: int) -> None:
    """Bound processor time, memory, processes and what may be written."""
    bounds = {
        resource.RLIMIT_CPU: seconds,
        resource.RLIMIT_AS: memory_bytes,
        resource.RLIMIT_FSIZE: LARGEST_FILE,
        resource.RLIMIT_NOFILE: 64,
        resource.RLIMIT_CORE: 0,
    }
    for name, most in bounds.items():
        # The signal that tells of spent time comes at the lower limit; at the higher one the process is killed.
        resource.setrlimit(name, (most, most + 1 if name == resource.RLIMIT_CPU else most))


def guard(event: str, details: tuple) -> None:  # type: ignore[type-arg]
    """Refuse what no small function needs: writing files, other programs, the network."""
    if event.startswith(FORBIDDEN):
        raise PermissionError(f"{event} is not allowed here")
    if event == "open" and len(details) > 2 and _writes(details[1], details[2]):
        raise PermissionError("writing files is not allowed here")


def _writes(mode: object, flags: object) -> bool:
    if isinstance(mode, str) and set(mode) & set("wax+"):
        return True
    return isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC))


def main() -> None:
    """Run the program named first among the arguments."""
    path, seconds, memory_bytes = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    if not cut_off():
        os._exit(NO_GUARD)
    with open(path, encoding="utf-8") as file:
        text = file.read()
    limit(seconds, memory_bytes)
    sys.argv = [path]
    sys.addaudithook(guard)
    code = 1
    try:
        exec(compile(text, path, "exec"), {"__name__": "__main__"})
        code = 0
    except BaseException:
        code = 1  # a program that leaves before its last test, by sys.exit say, has not passed either
    # Straight out: what the program left behind (threads, exit handlers) has no say in how it ended.
    os._exit(code)


if __name__ == "__main__":
    main()
