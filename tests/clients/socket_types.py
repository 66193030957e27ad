"""Makes sockets of the types that a pod may want, and says for each "made" or why not."""
import errno
import socket

TYPES = {
    "tcp": (socket.AF_INET, socket.SOCK_STREAM, 0),
    "udp6": (socket.AF_INET6, socket.SOCK_DGRAM, 0),
    "unix": (socket.AF_UNIX, socket.SOCK_STREAM, 0),
    "icmp": (socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP),
    "any": (socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW),
    "icmp6": (socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6),
}
for name, kind in TYPES.items():
    try:
        socket.socket(*kind).close()
        print(name, "made")
    except OSError as error:
        print(name, errno.errorcode[error.errno])
