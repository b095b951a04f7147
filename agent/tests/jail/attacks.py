"""Hostile programs, one a name. Each tries one thing and says "reached" with what it got, or "denied".

They run inside the strict sandbox, where each must be denied, and without what covers them, where each
must reach its aim: an attack that cannot succeed shows nothing. Bombs stop at a cap.
"""
import ctypes
import errno
import mmap
import os
import platform
import resource
import signal
import socket
import struct
import subprocess
import sys

libc = ctypes.CDLL(None, use_errno=True)
X86 = platform.machine() == "x86_64"
# Numbers of system calls: x86-64, 64-bit Arm.
CALLS = {
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "unshare": (272, 97), "mount": (165, 40),
    "setns": (308, 268), "chroot": (161, 51), "mknodat": (259, 33), "open_by_handle_at": (304, 265),
    "name_to_handle_at": (303, 264), "keyctl": (250, 219), "add_key": (248, 217), "bpf": (321, 280),
    "userfaultfd": (323, 282), "io_uring_setup": (425, 425), "perf_event_open": (298, 241),
    "clone3": (435, 435), "pidfd_getfd": (438, 438), "kcmp": (312, 272),
    "io_setup": (206, 0),
}
NEWUSER, NEWNS = 0x10000000, 0x00020000


def call(name, *args):
    """A system call by its name; raises what it fails with."""
    number = CALLS[name][0 if X86 else 1]
    words = [ctypes.c_long(a) if isinstance(a, int) else a for a in args]
    result = libc.syscall(ctypes.c_long(number), *words)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def reached(what=""):
    print("reached", what, flush=True)


def fork_bomb(cap):
    """Children that only wait, until there are no more or too many."""
    children = []
    try:
        while len(children) < int(cap):
            child = os.fork()
            if child == 0:
                signal.pause()
            children.append(child)
        reached(f"{len(children)} processes")
    except OSError as error:
        print("denied after", len(children), error, flush=True)
    for child in children:
        os.kill(child, signal.SIGKILL)


def heap(size):
    """Memory that is written to."""
    held = bytearray(int(size))
    for at in range(0, len(held), 4096):
        held[at] = 1
    reached(f"{len(held)} bytes")


def fill(directory, size):
    """A file as large as it gets."""
    path = os.path.join(directory, f"fill-{os.getpid()}")
    written = 0
    try:
        with open(path, "wb", buffering=0) as file:
            while written < int(size):
                written += file.write(b"x" * 65536)
        reached(f"{written} bytes")
    finally:
        os.unlink(path)


def litter(directory, count):
    """As many files as there may be."""
    path = os.path.join(directory, f"litter-{os.getpid()}")
    os.mkdir(path)
    made = 0
    try:
        for made in range(int(count)):
            os.close(os.open(f"{path}/{made}", os.O_CREAT | os.O_WRONLY))
        reached(f"{made} files")
    finally:
        subprocess.run(["rm", "-rf", path], check=True)


def real_time():
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    reached()


def priority():
    reached(os.nice(-5))


def read(path):
    reached(open(path, "rb").read(100))


def enter(directory):
    """What somebody keeps, by its names."""
    reached(os.listdir(directory))


def environ(pid):
    """The environment of a process outside."""
    reached(open(f"/proc/{pid}/environ", "rb").read(100))


def any_environ(secret):
    """A secret in any environment that can be seen."""
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            if secret.encode() in open(f"/proc/{pid}/environ", "rb").read() and int(pid) != os.getpid():
                reached(pid)
        except OSError:
            pass


def kill(pid):
    os.kill(int(pid), 0)
    reached()


def descriptors():
    """What this process was given besides the three that everybody gets."""
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            continue
        if int(name) > 2 and not target.startswith("/proc/"):
            reached(target)


def keeper():
    """The files and the memory of process 1."""
    os.listdir("/proc/1/root/")
    open("/proc/1/maps").read()
    reached()


def keeper_limits():
    """The open files of process 1, which looks at what its task writes."""
    resource.prlimit(1, resource.RLIMIT_NOFILE, resource.getrlimit(resource.RLIMIT_NOFILE))
    reached()


def asynchronous():
    """The machine's stock of places for the kernel's own asynchronous input and output."""
    context = ctypes.c_ulong()
    call("io_setup", 1000, ctypes.byref(context))
    reached()


def trace():
    """Ptrace, by asking to be traced."""
    call("ptrace", 0, 0, 0, 0)
    reached()


def read_memory():
    """The call that reads another process's memory, on this one: it must not even be there."""
    buffer = ctypes.create_string_buffer(8)
    iovec = struct.pack("PN", ctypes.addressof(buffer), 8)
    call("process_vm_readv", os.getpid(), iovec, 1, iovec, 1, 0)
    reached()


def attach(pid):
    """Ptrace, of somebody outside."""
    call("ptrace", 16, int(pid), 0, 0)
    os.waitpid(int(pid), 0x40000000)
    call("ptrace", 17, int(pid), 0, 0)
    reached()


def read_other(pid, address, size):
    """The memory of somebody outside."""
    buffer = ctypes.create_string_buffer(int(size))
    here = struct.pack("PN", ctypes.addressof(buffer), int(size))
    call("process_vm_readv", int(pid), here, 1, struct.pack("PN", int(address), int(size)), 1, 0)
    reached(buffer.raw)


def take_descriptor():
    """The call that takes a descriptor out of another process, likewise."""
    reached(call("pidfd_getfd", os.pidfd_open(os.getpid()), 0, 0))


def compare():
    """The call that tells what two processes have in common, likewise."""
    reached(call("kcmp", os.getpid(), os.getpid(), 2, 0, 0))


def namespace():
    call("unshare", NEWUSER)
    reached()


def mount():
    """A mount, in a namespace where one is allowed to if that can be had."""
    try:
        call("unshare", NEWUSER | NEWNS)
    except OSError:
        pass
    call("mount", b"x", b"/tmp", b"tmpfs", 0, None)
    reached()


def change_root():
    try:
        call("unshare", NEWUSER)
    except OSError:
        pass
    call("chroot", b"/tmp")
    reached()


def enter_namespace():
    try:
        call("unshare", NEWUSER | NEWNS)
    except OSError:
        pass
    call("setns", os.open("/proc/self/ns/mnt", os.O_RDONLY), NEWNS)
    reached()


def device():
    """A device file, of the machine's memory."""
    path = f"device-{os.getpid()}"
    call("mknodat", -100, path.encode(), 0o20666, 0x101)
    os.unlink(path)
    reached()


def by_handle():
    """A file by its handle, past every directory."""
    handle = ctypes.create_string_buffer(struct.pack("Ii", 128, 0) + bytes(128))
    mount_id = ctypes.c_int()
    call("name_to_handle_at", -100, b"/usr", handle, ctypes.byref(mount_id), 0)
    call("open_by_handle_at", os.open("/", os.O_RDONLY), handle, 0)
    reached()


def by_handle_of_its_own():
    """The same in a file system of its own, where newer kernels let everybody."""
    uid, gid = os.getuid(), os.getgid()
    call("unshare", NEWUSER | NEWNS)
    for file, text in ("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1"):
        with open(f"/proc/self/{file}", "w") as written:
            written.write(text)
    call("mount", b"x", b"/tmp", b"tmpfs", 0, None)
    os.mkdir("/tmp/aim")
    handle = ctypes.create_string_buffer(struct.pack("Ii", 128, 0) + bytes(128))
    call("name_to_handle_at", -100, b"/tmp/aim", handle, ctypes.byref(ctypes.c_int()), 0)
    call("open_by_handle_at", os.open("/tmp", os.O_RDONLY), handle, os.O_DIRECTORY)
    reached()


def setuid(program):
    """A program with the setuid bit of another user."""
    uid = int(subprocess.run([program, "-u"], stdout=subprocess.PIPE, check=True).stdout)
    if uid != os.getuid():
        reached(uid)


def keys():
    call("add_key", b"user", b"mesh-attack", b"secret", 6, -3)
    reached(call("keyctl", 11, call("keyctl", 10, -3, b"user", b"mesh-attack", 0), None, 0))


def programs_in_the_kernel():
    code = struct.pack("<BBhi", 0xB7, 0, 0, 0) + struct.pack("<BBhi", 0x95, 0, 0, 0)
    text = ctypes.create_string_buffer(code)
    licence = ctypes.create_string_buffer(b"GPL")
    attributes = struct.pack("<IIQQIIQII", 1, 2, ctypes.addressof(text), ctypes.addressof(licence), 0, 0, 0, 0, 0)
    reached(call("bpf", 5, attributes, len(attributes)))


def ask_for_programs():
    """The same call with a question that the kernel answers everybody: no such map."""
    try:
        call("bpf", 1, struct.pack("IxxxxQQQ", 0x7FFFFFFF, 0, 0, 0), 32)
    except OSError as error:
        if error.errno != errno.EBADF:
            raise
        reached(error)


def page_faults():
    reached(call("userfaultfd", 1))


def ring():
    reached(call("io_uring_setup", 1, bytes(120)))


def counters():
    # A software clock of this process, user mode alone.
    attributes = struct.pack("<IIQQQQQ", 1, 112, 0, 0, 0, 0, 1 << 5 | 1 << 6) + bytes(64)
    reached(call("perf_event_open", ctypes.create_string_buffer(attributes), 0, -1, -1, 0))


def new_clone():
    """The call whose flags no filter can see: it must seem not to exist."""
    try:
        call("clone3", 0, 0)
    except OSError as error:
        if error.errno != errno.ENOSYS:
            reached(error)
            return
    print("denied")


def foreign():
    """A system call of 32-bit x86."""
    code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    code.write(b"\xb8\x14\x00\x00\x00\xcd\x80\xc3")  # getpid
    function = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))
    reached(function())


def hypervisor():
    socket.socket(40, socket.SOCK_STREAM)
    reached()


def connect(port):
    socket.create_connection(("127.0.0.1", int(port)), 3)
    reached()


def abstract(name):
    """A socket without a file, of somebody outside."""
    client = socket.socket(socket.AF_UNIX)
    client.connect("\0" + name)
    reached()


def local(path):
    """A socket with a name in the file tree, such as a database's."""
    socket.socket(socket.AF_UNIX).connect(path)
    reached()


def write(path):
    with open(path, "w") as file:
        file.write("x")
    reached()


def memory_device():
    os.open("/dev/mem", os.O_RDONLY)
    reached()


def terminal():
    """A character typed into a terminal that somebody else reads."""
    import fcntl
    import pty
    import termios
    child, end = pty.fork()
    if child == 0:
        try:
            fcntl.ioctl(0, termios.TIOCSTI, b"x")
            os._exit(0)
        except OSError as error:
            os._exit(error.errno)
    status = os.waitpid(child, 0)[1]
    os.close(end)
    if status:
        raise OSError(os.waitstatus_to_exitcode(status), "TIOCSTI")
    reached()


def controlling_terminal():
    """The terminal of whoever started the agent."""
    os.close(os.open("/dev/tty", os.O_RDWR))
    reached()


def file_capability(program, path):
    """A program that brings a capability to read everything."""
    done = subprocess.run([program, path], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    if done.returncode == 0:
        reached(done.stdout)
    else:
        print("denied", done.stderr, flush=True)


try:
    globals()[sys.argv[1]](*sys.argv[2:])
except (OSError, MemoryError, subprocess.SubprocessError) as error:
    print("denied", error, flush=True)
