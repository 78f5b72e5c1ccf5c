"""Each way to die, and what is told of it: the rows of the crash table."""

from __future__ import annotations

FUSE = "JUPYTER_DDP_FUSE"
"""The environment variable that `tests.fault.fuse_in_rank` reads."""
IMPORTS = (
    "import ctypes, faulthandler, mmap, os, resource, signal, subprocess, sys, tempfile, threading, time"
)

DEATHS = {
    "SIGKILL": ("os.kill(os.getpid(), signal.SIGKILL)", "killed by SIGKILL"),
    "SIGTERM": ("os.kill(os.getpid(), signal.SIGTERM)", "killed by SIGTERM"),
    "SIGHUP": ("os.kill(os.getpid(), signal.SIGHUP)", "killed by SIGHUP"),
    "SIGSEGV": ("faulthandler._sigsegv()", "killed by SIGSEGV"),
    "SIGABRT": ("os.abort()", "killed by SIGABRT"),
    "SIGFPE": ("faulthandler._sigfpe()", "killed by SIGFPE"),
    "SIGBUS": (
        "f = tempfile.TemporaryFile(); f.truncate(1); m = mmap.mmap(f.fileno(), 1); f.truncate(0); m[0]",
        "killed by SIGBUS",
    ),
    "no stack": ("faulthandler._stack_overflow()", "killed by SIGSEGV"),
    "no memory": (
        "resource.setrlimit(resource.RLIMIT_AS, (1, 1)); faulthandler._sigsegv()",
        "killed by SIGSEGV",
    ),
    "_exit(0)": ("os._exit(0)", "exited with code 0"),
    "_exit(3)": ("os._exit(3)", "exited with code 3"),
    "_exit in a thread": (
        "threading.Thread(target=os._exit, args=[4]).start(); time.sleep(60)",
        "exited with code 4",
    ),
    "exec": ("os.execv('/bin/sh', ['sh', '-c', 'exit 5'])", "exited with code 5"),
    "with children": (
        "subprocess.Popen(['sleep', '300']); os.fork() or time.sleep(300); "
        "os.kill(os.getpid(), signal.SIGKILL)",
        "killed by SIGKILL",
    ),
}
"""What a rank does to itself, as one line of Python after IMPORTS: (the line, the words for it)."""

WITH_LINE = {"SIGSEGV", "SIGABRT", "SIGFPE", "SIGBUS", "no stack", "_exit(0)", "_exit(3)"}
"""Deaths that are told with the very line of the cell; of the others the last one seen is, if any was."""

NO_DEATHS = {
    "sys.exit(3)": "sys.exit(3)",
    "exit()": "exit()",
    "exception": "raise LookupError('on purpose')",
    "sys.exit in a thread": "t = threading.Thread(target=sys.exit, args=[3]); t.start(); t.join()",
    "exception in a thread": "t = threading.Thread(target={}.pop, args=['on purpose']); t.start(); t.join()",
}
"""What ends a cell at most: a rank that runs cells lives on."""

OTHERS_DEATHS = {
    "agent": "os.kill(os.getppid(), signal.SIGKILL); time.sleep(60)",
    "forkserver": "import tests.fault.fuse_in_rank as fuse; os.kill(fuse.FORKSERVER, signal.SIGKILL)",
    "kernel": "os.kill(int(os.environ['KERNEL']), signal.SIGKILL); time.sleep(60)",
}
"""What a rank does to those that it owes its life to: its node agent, its forkserver, the notebook kernel."""
