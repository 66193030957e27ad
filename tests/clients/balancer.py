"""Attaches a connect program of somebody else's to a cgroup: a socket load balancer with one service.

    balancer.py CGROUP FLAGS SERVICE:PORT BACKEND:PORT

FLAGS are those of BPF_PROG_ATTACH: 0 none, 1 BPF_F_ALLOW_OVERRIDE, 2 BPF_F_ALLOW_MULTI. It stays when
this has ended, until the cgroup goes.
"""
import ctypes
import os
import socket
import struct
import sys

BPF_PROG_LOAD, BPF_PROG_ATTACH, CGROUP_SOCK_ADDR, INET4_CONNECT = 5, 8, 18, 10
SYS_BPF = {"x86_64": 321, "aarch64": 280}[os.uname().machine]
libc = ctypes.CDLL(None, use_errno=True)


def bpf(command, attr):
    done = libc.syscall(SYS_BPF, command, attr.ljust(144, b"\0"), 144)
    if done < 0:
        sys.exit(os.strerror(ctypes.get_errno()))
    return done


def endpoint(text):
    """Address and port as they stand in the context, as signed immediates."""
    address, port = text.split(":")
    return struct.unpack("=i", socket.inet_aton(address))[0], socket.htons(int(port))


def instruction(opcode, registers=0, offset=0, immediate=0):
    return struct.pack("=BBhi", opcode, registers, offset, immediate)


cgroup, flags = sys.argv[1], int(sys.argv[2])
(service, service_port), (backend, backend_port) = endpoint(sys.argv[3]), endpoint(sys.argv[4])
program = b"".join([
    instruction(0x61, 0x12, 4),  # r2 = ctx->user_ip4
    instruction(0x56, 0x02, 6, service),  # if (u32) r2 is another, out
    instruction(0x61, 0x12, 24),  # r2 = ctx->user_port
    instruction(0x56, 0x02, 4, service_port),  # if (u32) r2 is another, out
    instruction(0xB4, 0x03, 0, backend),  # (u32) r3 = backend
    instruction(0x63, 0x31, 4),  # ctx->user_ip4 = r3
    instruction(0xB4, 0x03, 0, backend_port),
    instruction(0x63, 0x31, 24),  # ctx->user_port = r3
    instruction(0xB7, 0x00, 0, 1),  # out: go on
    instruction(0x95),
])
code, licence = ctypes.create_string_buffer(program), ctypes.create_string_buffer(b"Apache-2.0")
loaded = bpf(BPF_PROG_LOAD, struct.pack(
    "=IIQQIIQII16sII", CGROUP_SOCK_ADDR, len(program) // 8, ctypes.addressof(code), ctypes.addressof(licence),
    0, 0, 0, 0, 0, b"balancer", 0, INET4_CONNECT))
directory = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY)
bpf(BPF_PROG_ATTACH, struct.pack("=IIIII", directory, loaded, INET4_CONNECT, flags, 0))
