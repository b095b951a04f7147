"""Takes all that it gets of what a machine has little of for everybody, or for each of its users, and says how
much that is."""
import ctypes
import os
import resource

libc = ctypes.CDLL(None, use_errno=True)
resource.setrlimit(resource.RLIMIT_NOFILE, [resource.getrlimit(resource.RLIMIT_NOFILE)[1]] * 2)


def until_full(name, take):
    count = 0
    while take():
        count += 1
    print(name, count, flush=True)


def names():
    for at, dirs, files in os.walk("/usr"):
        yield from (f"{at}/{name}" for name in dirs + files)


def terminal():
    try:
        return os.open("/dev/ptmx", os.O_RDWR | os.O_NOCTTY) >= 0
    except OSError:
        return False


def watch():
    # Something else each time: a second watch of a file, by whatever name, is none.
    for name in every:
        number = libc.inotify_add_watch(first, os.fsencode(name), 2)
        if number < 0 or number not in watches:
            watches.add(number)
            return number >= 0
    return False


first, watches, every, timer = libc.inotify_init(), set(), names(), ctypes.c_void_p()
until_full("watches", watch)
until_full("instances", lambda: libc.inotify_init() >= 0)
until_full("timers", lambda: libc.timer_create(1, None, ctypes.byref(timer)) == 0)
until_full("terminals", terminal)
