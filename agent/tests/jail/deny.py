"""Runs a program on a kernel that seems to lack some system calls: `deny.py NUMBER... -- PROGRAM [ARG]...`"""
import ctypes
import os
import struct
import sys

libc = ctypes.CDLL(None, use_errno=True)
split = sys.argv.index("--")
numbers, program = [int(word) for word in sys.argv[1:split]], sys.argv[split + 1:]
ENOSYS = 38
code = [(0x20, 0, 0, 0)]  # the number of the call
for number in numbers:
    code += [(0x15, 0, 1, number), (0x06, 0, 0, 0x00050000 | ENOSYS)]
code += [(0x06, 0, 0, 0x7FFF0000)]
text = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *op) for op in code))
filter = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(code), ctypes.addressof(text)))
if os.getuid() != 0 and libc.prctl(38, 1, 0, 0, 0) != 0:
    sys.exit("no_new_privs")
if libc.prctl(22, 2, filter, 0, 0) != 0:
    sys.exit(f"seccomp: {os.strerror(ctypes.get_errno())}")
os.execvp(program[0], program)
