"""Prints all that a task without a sandbox finds as its own and that one before it could have changed; with
an argument it changes all of it first, and leaves a process behind that ignores what can be ignored."""
import ctypes
import os
import resource
import signal
import sys
import time

libc = ctypes.CDLL(None, use_errno=True)


def leave():
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
                signal.signal(number, signal.SIG_IGN)
            # At once and whole: whoever sees it may end this process.
            open("left-behind.new", "w").write(str(os.getpid()))
            os.rename("left-behind.new", "left-behind.pid")
            time.sleep(600)
        os._exit(0)
    os.wait()
    while not os.path.exists("left-behind.pid"):
        time.sleep(0.01)
    os.umask(0o077)
    os.chdir("/usr")
    os.environ["LEFT"] = "behind"
    for limit in (resource.RLIMIT_STACK, resource.RLIMIT_FSIZE):
        resource.setrlimit(limit, (1 << 20, 1 << 20))
    resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2, signal.SIGTERM])
    signal.setitimer(signal.ITIMER_REAL, 1000)
    os.nice(7)
    os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
    open("/proc/self/oom_score_adj", "w").write("900")
    open("/proc/self/coredump_filter", "w").write("0")
    libc.prctl(29, 12345678, 0, 0, 0)
    libc.prctl(36, 1, 0, 0, 0)
    os.dup2(1, 77)


def look():
    read = lambda name: open(f"/proc/self/{name}").read()
    yield "limits", read("limits")
    yield "score", read("oom_score_adj")
    yield "slack", read("timerslack_ns")
    yield "core", read("coredump_filter")
    wanted = ("Umask", "Uid", "Gid", "Groups", "Sig", "Shd", "Cap", "NoNew", "Seccomp:", "Cpus_allowed:")
    yield "status", [line for line in read("status").splitlines() if line.startswith(wanted)]
    yield "environment", sorted(os.environ.items())
    yield "files", [(fd, os.readlink(f"/proc/self/fd/{fd}").split(":")[0]) for fd in range(3)]
    yield "more files", [fd for fd in range(3, 200) if os.path.exists(f"/proc/self/fd/{fd}")]
    yield "timer", signal.getitimer(signal.ITIMER_REAL)[0] > 0
    yield "scheduling", (os.nice(0), sorted(os.sched_getaffinity(0)), os.sched_getscheduler(0))
    subreaper = ctypes.c_int()
    libc.prctl(37, ctypes.byref(subreaper), 0, 0, 0)
    yield "subreaper", subreaper.value
    yield "place", (os.path.basename(os.getcwd()), os.getsid(0) == os.getpid())


if len(sys.argv) > 1:
    leave()
print("\n".join(f"{key}: {value!r}" for key, value in look()), flush=True)
# Whose keeper this is.
print(os.getppid(), file=sys.stderr)
os._exit(0)
