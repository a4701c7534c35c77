"""The processes of a run: pinned to cores, watched through /proc, and ended with the run."""

import ctypes
import os
import resource
import signal
import subprocess
import time
from pathlib import Path

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
PR_SET_CHILD_SUBREAPER = 36


def adopt_orphans():
    """A gateway that was upgraded outlives its parent. As its subreaper we still see it, count it and end it."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def raise_file_limit(wanted=65536):
    """As many file descriptors as we may have, for us and all we start; 10,000 idle connections need about 11,000."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(wanted, hard), max(wanted, hard)))
    except (ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def start(command, cores, log, cwd=None):
    """Starts `command` on `cores`, its output in the file `log`. In its own session, so that Ctrl-C reaches us alone."""
    pinned = ["taskset", "-c", ",".join(map(str, cores)), *map(str, command)]
    with open(log, "wb") as output:
        return subprocess.Popen(
            pinned, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, cwd=cwd, start_new_session=True
        )


def wait_for(condition, seconds):
    """Waits until the condition holds, at most as long."""
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)


def stop(process):
    """Ends a process and all below it at once: nothing that is measured depends on how it stops."""
    kill(family(process.pid))
    process.wait()


def stop_all():
    """Ends everything below this process, orphans included."""
    kill(set(family(os.getpid())) - {os.getpid()})
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                time.sleep(0.01)
        except ChildProcessError:
            return


def kill(pids):
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


def stat(pid):
    """The fields of /proc/PID/stat from the third on, or None if the process is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None


def family(root):
    """`root` and every process below it."""
    parents = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit() and (fields := stat(entry)):
            parents.setdefault(int(fields[1]), []).append(int(entry))
    found = [root]
    for pid in found:
        found.extend(parents.get(pid, []))
    return found


def running_from(executable):
    """The processes below this one that run `executable`."""
    pids = []
    for pid in family(os.getpid()):
        try:
            if os.path.samefile(f"/proc/{pid}/exe", executable):
                pids.append(pid)
        except OSError:
            continue  # Ended meanwhile, or a zombie.
    return pids


def cpu_seconds(root):
    """User and system time of the whole family, including children that already ended."""
    ticks = 0
    for pid in family(root):
        if fields := stat(pid):
            ticks += sum(map(int, fields[11:15]))  # utime, stime, cutime, cstime
    return ticks / TICKS_PER_SECOND


def memory_mib(root, field="VmRSS"):
    """Resident memory of the family; VmHWM for its peak. Pages that processes share count once for each."""
    kib = 0
    for pid in family(root):
        try:
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        except (FileNotFoundError, ProcessLookupError):
            continue
        kib += sum(int(line.split()[1]) for line in lines if line.startswith(field + ":"))
    return kib / 1024


def busy_seconds(cores):
    """How long these cores have been busy since boot, with whatever."""
    wanted = {f"cpu{core}" for core in cores}
    ticks = 0
    for line in Path("/proc/stat").read_text().splitlines():
        name, *times = line.split()
        if name in wanted:
            user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, times[:8])
            ticks += user + nice + system + irq + softirq + steal
    return ticks / TICKS_PER_SECOND
