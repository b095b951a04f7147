"""Runs a program on a kernel that seems to lack some system calls: `deny.py CALL... -- PROGRAM [ARG]...`

CALL is a number; `NUMBER=VALUE` lacks it with this first argument alone, `NUMBER:BITS` with any of these
bits in it.
"""
import ctypes
import os
import struct
import sys

libc = ctypes.CDLL(None, use_errno=True)
split = sys.argv.index("--")
calls, program = sys.argv[1:split], sys.argv[split + 1:]
ENOSYS = 38
LACKS = (0x06, 0, 0, 0x00050000 | ENOSYS)
code = [(0x20, 0, 0, 0)]  # the number of the call
for call in calls:
    number, by, argument = call.partition("=") if "=" in call else call.partition(":")
    if not by:
        code += [(0x15, 0, 1, int(number)), LACKS]
        continue
    # Its first argument, the lower half; then the number again for what comes next.
    test = 0x15 if by == "=" else 0x45
    code += [(0x15, 0, 4, int(number)), (0x20, 0, 0, 16), (test, 0, 1, int(argument)), LACKS, (0x20, 0, 0, 0)]
code += [(0x06, 0, 0, 0x7FFF0000)]
text = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *op) for op in code))
filter = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(code), ctypes.addressof(text)))
if os.getuid() != 0 and libc.prctl(38, 1, 0, 0, 0) != 0:
    sys.exit("no_new_privs")
if libc.prctl(22, 2, filter, 0, 0) != 0:
    sys.exit(f"seccomp: {os.strerror(ctypes.get_errno())}")
os.execvp(program[0], program)
