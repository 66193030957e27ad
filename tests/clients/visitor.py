"""A process in a pod's cgroup that went to another network namespace, as fault injectors' proxies do.

    visitor.py PORT MANAGER MANAGERS_OTHER_PORT

Listens on PORT, connects to itself, sends itself a datagram, and asks the manager on a port that is no
destination. Says what came of each, one line each.
"""
import errno
import socket
import sys

port, manager, other = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
PATIENCE = 20


def said(what):
    try:
        return what()
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error))


def listens():
    listener = socket.create_server(("127.0.0.1", port))
    dialled = socket.create_connection(("127.0.0.1", port), PATIENCE)
    accepted, _ = listener.accept()
    accepted.sendall(b"x")
    return "peer %s:%d" % dialled.getpeername() if dialled.recv(1) == b"x" else "nothing"


def datagrams():
    receiver, sender = (socket.socket(type=socket.SOCK_DGRAM) for _ in range(2))
    receiver.settimeout(PATIENCE)
    receiver.bind(("127.0.0.1", port))
    sender.sendto(b"y", receiver.getsockname())
    return receiver.recv(1).decode()


def asks():
    connection = socket.create_connection((manager, other), PATIENCE)
    connection.sendall(b"GET /visitor HTTP/1.1\r\nhost: manager.hnp.test\r\nconnection: close\r\n\r\n")
    return "%s %s:%d" % (connection.recv(12).decode(), *connection.getpeername())


for what in (listens, datagrams, asks):
    print(said(what), flush=True)
