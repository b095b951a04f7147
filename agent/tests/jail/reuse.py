"""What a task could leave behind for the next one in its slot, and what the next one could find.

`reuse.py NAME` leaves one thing and then looks; `reuse.py look` only looks. Whoever has left something
must see it, or looking would show nothing; the next task must not.
"""
import ctypes
import fcntl
import glob
import os
import pty
import resource
import signal
import socket
import struct
import sys
import time

libc = ctypes.CDLL(None, use_errno=True)


def stay():
    """A child that outlives its parent, in a session of its own, and holds what the parent has."""
    read, write = os.pipe()
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            for s in (signal.SIGTERM, signal.SIGHUP):
                signal.signal(s, signal.SIG_IGN)
            os.write(write, b"x")
            time.sleep(600)
        os._exit(0)
    os.read(read, 1)
    os.wait()


def processes():
    stay()


def listener():
    server = socket.create_server(("127.0.0.1", 5555))
    server.set_inheritable(True)
    stay()


def traffic():
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.sendto(b"x" * 100, ("127.0.0.1", 9))


def label():
    s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    # For one minute: to here, made anew, for everybody.
    wanted = socket.inet_pton(socket.AF_INET6, "::1") + struct.pack("!IBB", 0x12345, 0, 255)
    s.setsockopt(socket.IPPROTO_IPV6, 32, wanted + struct.pack("=HHHI", 1, 60, 60, 0))


def abstract():
    s = socket.socket(socket.AF_UNIX)
    s.bind("\0left behind")
    s.listen()
    stay()
    return s


def files():
    for place in ("/tmp", "/dev/shm", "/var/tmp"):
        os.mkdir(f"{place}/left in {place.replace('/', '-')}")
        open(f"{place}/left-{place.replace('/', '-')}", "w").write("left")


def queues():
    assert libc.msgget(77, 0o1666) >= 0


def segments():
    assert libc.shmget(77, 4096, 0o1666) >= 0


def semaphores():
    assert libc.semget(77, 1, 0o1666) >= 0


def mask():
    os.umask(0o077)


def limits():
    resource.setrlimit(resource.RLIMIT_NOFILE, (50, 60))
    resource.setrlimit(resource.RLIMIT_STACK, (1 << 20, 1 << 20))


def environment():
    os.environ["LEFT"] = "behind"
    libc.setenv(b"LEFT", b"behind", 1)


def signals():
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])


def timers():
    signal.setitimer(signal.ITIMER_REAL, 1000)
    timer = ctypes.c_void_p()
    assert libc.timer_create(0, None, ctypes.byref(timer)) == 0


def scheduling():
    os.nice(7)
    os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
    os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


def score():
    open("/proc/self/oom_score_adj", "w").write("900")


def slack():
    libc.prctl(29, 12345678, 0, 0, 0)


def terminal():
    global held
    held = pty.openpty()
    stay()


def lock():
    file = os.open("/etc/passwd", os.O_RDONLY)
    fcntl.flock(file, fcntl.LOCK_SH)
    stay()


def read(path):
    try:
        return open(path).read()
    except OSError as error:
        return error.strerror


def look():
    """Everything that a task can find out about its surroundings and that another could have changed."""
    seen = {path: read(path) for path in sorted(
        glob.glob("/proc/net/*") + glob.glob("/proc/sysvipc/*")
        + [f"/proc/self/{name}" for name in ("limits", "oom_score_adj", "timerslack_ns", "timers", "cgroup",
                                             "loginuid", "sessionid", "coredump_filter")]
        + ["/proc/locks", "/proc/sys/kernel/hostname", "/proc/sys/kernel/domainname", "/proc/mounts"])}
    # The newest comes last, which tells whether somebody was here before and not more.
    seen["/proc/mounts"] = sorted(seen["/proc/mounts"].splitlines())
    # Sockets have addresses in the kernel there, which say nothing.
    seen["/proc/net/unix"] = sorted(line.split(None, 7)[7:] for line in seen["/proc/net/unix"].splitlines())
    seen["/proc/net/netlink"] = [line.split()[1:9] for line in seen["/proc/net/netlink"].splitlines()]
    # Pools that all networks of the machine have in common.
    seen["/proc/net/protocols"] = seen["/proc/net/sockstat"] = seen["/proc/net/sockstat6"] = None
    seen["/proc/net/softnet_stat"] = seen["/proc/net/ptype"] = None
    status = [line for line in read("/proc/self/status").splitlines()
              if line.startswith(("Umask", "Uid", "Gid", "Groups", "Sig", "Shd", "Cap", "NoNew", "Seccomp:", "Cpus"))]
    seen["processes"] = sorted(read(f"/proc/{pid}/comm") for pid in os.listdir("/proc") if pid.isdigit())
    seen["status"] = status
    seen["files"] = [(at, sorted(dirs), sorted(names)) for place in ("/tmp", "/dev", "/run", "/var", "/dev/shm/", "/dev/pts/")
                     for at, dirs, names in os.walk(place)]
    seen["modes"] = [oct(os.stat(path).st_mode) for path in ("/", "/tmp", "/dev/shm", "/dev/pts/ptmx", "/dev/null", "/work")]
    seen["environment"] = sorted(os.environ.items())
    seen["timer"] = signal.getitimer(signal.ITIMER_REAL)[0] > 0
    seen["scheduling"] = (os.nice(0), sorted(os.sched_getaffinity(0)), os.sched_getscheduler(0))
    seen["place"] = (os.getcwd(), os.getsid(0) == os.getpid(), os.getpid() <= 2)
    return seen


if sys.argv[1] != "look":
    held = globals()[sys.argv[1]]()
print("\n".join(f"{key}: {value!r}" for key, value in look().items()), flush=True)
# Whose slot this is.
print(os.readlink("/proc/self/ns/user"), file=sys.stderr)
os._exit(0)
