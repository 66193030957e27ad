"""A client with one connection that rests: it asks, says "open", and waits to be told that it is over.

    resting.py ADDRESS PORT GO

Says what the connection came to without having been used again: an errno, or "answered" when it still
answered once the file GO was there.
"""
import errno
import os
import select
import socket
import sys

address, port, go = sys.argv[1], int(sys.argv[2]), sys.argv[3]
REQUEST = b"GET /hello?token=%s HTTP/1.1\r\nhost: manager.hnp.test\r\n\r\n"
connection = socket.create_connection((address, port), 20)


def ask(token):
    connection.sendall(REQUEST % token)
    return connection.recv(65536).split(b"\r\n")[0].decode()


print(ask(b"older"), flush=True)
print("open", flush=True)
try:
    while not os.path.exists(go):
        if select.select([connection], [], [], 0.005)[0]:
            print("closed" if connection.recv(1, socket.MSG_PEEK) == b"" else "bytes", flush=True)
            sys.exit()
    print("answered" if ask(b"late").startswith("HTTP/1.1 200") else "nothing", flush=True)
except OSError as error:
    print(errno.errorcode[error.errno], flush=True)
