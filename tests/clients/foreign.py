"""Pins a classifier of somebody else's: it drops all IPv4 and knows nothing of hnp.

    foreign.py PIN
"""
import ctypes
import os
import struct
import sys

BPF_PROG_LOAD, BPF_OBJ_PIN, SCHED_CLS, SYS_BPF = 5, 6, 3, {"x86_64": 321, "aarch64": 280}[os.uname().machine]
libc = ctypes.CDLL(None, use_errno=True)


def bpf(command, *fields):
    attr = struct.pack("=" + "".join(kind for kind, _ in fields), *(value for _, value in fields)).ljust(144, b"\0")
    done = libc.syscall(SYS_BPF, command, attr, len(attr))
    if done < 0:
        sys.exit(os.strerror(ctypes.get_errno()))
    return done


def instruction(opcode, registers=0, offset=0, immediate=0):
    return struct.pack("=BBhi", opcode, registers, offset, immediate)


program = b"".join([
    instruction(0x61, 0x11, 16),  # r1 = skb->protocol
    instruction(0xB7, 0x00, 0, -1),  # r0 = TC_ACT_UNSPEC
    instruction(0x55, 0x01, 1, 0x0008),  # if r1 is not IPv4, skip
    instruction(0xB7, 0x00, 0, 2),  # r0 = TC_ACT_SHOT
    instruction(0x95),
])
code, licence = ctypes.create_string_buffer(program), ctypes.create_string_buffer(b"Apache-2.0")
path = ctypes.create_string_buffer(sys.argv[1].encode())
loaded = bpf(BPF_PROG_LOAD, ("I", SCHED_CLS), ("I", 5), ("Q", ctypes.addressof(code)), ("Q", ctypes.addressof(licence)))
bpf(BPF_OBJ_PIN, ("Q", ctypes.addressof(path)), ("I", loaded))
