"""Run a command, and end it with all that it started once the standard input ends.

`python -m mir_task.commands.guard COMMAND…` is between a zoo and each of its runs, and holds the other
end of a pipe: however the zoo ends, the pipe does too. Launchers put their workers into sessions of
their own, where neither signals to a group nor the launcher's end reach them, so processes are told by
a variable of their environment, which all of them inherit.
"""

import os
import subprocess
import sys
import threading

import psutil

RUN_VARIABLE = "MIR_TASK_RUN"
"""Environment variable that names the run to which a process belongs."""

_SECONDS = 10.0
"""For processes to end by themselves before they are killed."""


def end_run(name: str) -> None:
    """End all processes of a run but the one that asks."""
    for end in (psutil.Process.terminate, psutil.Process.kill):
        processes = _processes(name)
        for process in processes:
            try:
                end(process)
            except psutil.Error:  # it has ended by itself
                continue
        psutil.wait_procs(processes, _SECONDS)


def _processes(name: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.environ().get(RUN_VARIABLE) == name:
                found.append(process)
        except (psutil.Error, OSError):  # of another user, or ended
            continue
    return found


def main() -> int:
    """Run the command of the arguments; its exit code."""
    process = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
    threading.Thread(target=_end_with_input, daemon=True).start()
    code = process.wait()
    end_run(os.environ[RUN_VARIABLE])
    return code


def _end_with_input() -> None:
    sys.stdin.buffer.read()
    end_run(os.environ[RUN_VARIABLE])


if __name__ == "__main__":
    sys.exit(main())
