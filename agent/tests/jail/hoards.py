"""Fills memory that belongs to no process, in the way that is named, a mebibyte at a time, and says so."""
import ctypes, fcntl, mmap, os, socket, struct, sys, time

MIB = 1 << 20
# As large a room for what comes in as any machine gives a socket.
ROOM = 200_000
libc = ctypes.CDLL(None, use_errno=True)
kept = []


def memfd():
    fd = os.memfd_create("hoard")
    os.write(fd, bytes(MIB))
    kept.append(fd)


def shared():
    # Mapped, filled and left: neither in a resident set nor in /proc/PID/smaps of anybody then.
    room = mmap.mmap(-1, MIB, mmap.MAP_SHARED | mmap.MAP_ANONYMOUS)
    room.write(bytes(MIB))
    room.madvise(mmap.MADV_DONTNEED)
    kept.append(room)


def segment():
    libc.shmat.restype = ctypes.c_void_p
    number = libc.shmget(0, MIB, 0o1600)
    assert number >= 0, os.strerror(ctypes.get_errno())
    place = libc.shmat(number, None, 0)
    ctypes.memset(place, 1, MIB)
    libc.shmdt(ctypes.c_void_p(place))


def pipe():
    read, write = os.pipe()
    size = fcntl.fcntl(write, 1031, MIB)
    os.set_blocking(write, False)
    assert os.write(write, bytes(size)) == size
    kept.append((read, write))


def send_all_that_is_taken(s):
    s.setblocking(False)
    sent = 0
    try:
        while sent < MIB:
            sent += s.send(bytes(64 * 1024))
    except BlockingIOError:
        pass


def local():
    here, there = socket.socketpair()
    kept.append((here, there))
    send_all_that_is_taken(here)


def tcp():
    server = socket.create_server(("127.0.0.1", 0))
    here = socket.create_connection(server.getsockname())
    there = server.accept()[0]
    kept.append((here, there))
    send_all_that_is_taken(here)


def udp():
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.bind(("127.0.0.1", 0))
    s.setblocking(False)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, ROOM)
    kept.append(s)
    try:
        for _ in range(10):
            s.sendto(bytes(50_000), s.getsockname())
    except BlockingIOError:
        pass


def netlink():
    """Asks for what there is about the loopback, and does not listen."""
    s = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)
    s.bind((0, 0))
    s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, ROOM)
    kept.append(s)
    ask = struct.pack("=IHHII", 32, 18, 1, 1, 0) + struct.pack("=BBHiII", 0, 0, 0, 1, 0, 0)
    for _ in range(250):
        s.send(ask)


def waiting():
    """Bytes that the kernel holds in sockets of the internet protocols, of the whole machine."""
    lines = [line.split() for line in open("/proc/net/sockstat")]
    pages = [int(words[words.index("mem") + 1]) for words in lines if words[0] in ("TCP:", "UDP:")]
    return sum(pages) * mmap.PAGESIZE


before = waiting()
fill = globals()[sys.argv[1]]
for _ in range(int(sys.argv[2])):
    fill()
    print("one more", flush=True)
print(waiting() - before)
time.sleep(float(sys.argv[3]) if len(sys.argv) > 3 else 0)
