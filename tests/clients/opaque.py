"""Bytes that are no HTTP, to a server that greets, sends back what it gets and says good-bye: in the clear or in TLS,
straight or through a proxy's CONNECT. What is sent comes from standard input; each direction ends on its own.

    opaque.py HOST PORT [--proxy HOST:PORT] [--cacert FILE [--cert FILE --key FILE]]

Says the greeting, the hash of what came back and the good-bye, one line each.
"""
import hashlib
import socket
import ssl
import sys

PATIENCE = 20
GREETING = 11  # b"220 ready\r\n"

HOST, PORT = sys.argv[1], int(sys.argv[2])
OPTIONS = dict(zip(sys.argv[3::2], sys.argv[4::2]))


class Clear:
    def __init__(self, sock):
        self.sock = sock
        self.send = sock.sendall

    def receive(self):
        return self.sock.recv(65536)

    def end(self):
        self.sock.shutdown(socket.SHUT_WR)


class Tls:
    """By hand over two buffers: a socket of Python's cannot end one direction and go on reading."""

    def __init__(self, sock):
        context = ssl.create_default_context(cafile=OPTIONS["--cacert"])
        if "--cert" in OPTIONS:
            context.load_cert_chain(OPTIONS["--cert"], OPTIONS["--key"])
        self.sock, self.incoming, self.outgoing = sock, ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_hostname=HOST)
        self.turn(self.tls.do_handshake)

    def turn(self, step, *what):
        while True:
            try:
                result = step(*what)
                self.flush()
                return result
            except ssl.SSLWantReadError:
                self.flush()
                piece = self.sock.recv(65536)
                self.incoming.write(piece) if piece else self.incoming.write_eof()

    def flush(self):
        self.sock.sendall(self.outgoing.read())

    def send(self, data):
        self.turn(self.tls.write, data)

    def receive(self):
        try:
            return self.turn(self.tls.read, 65536)
        except ssl.SSLZeroReturnError:
            return b""

    def end(self):
        try:
            self.tls.unwrap()
        except ssl.SSLWantReadError:
            pass  # It waits for the other side's end, and we do not.
        self.flush()


def connect():
    if "--proxy" not in OPTIONS:
        return socket.create_connection((HOST, PORT), PATIENCE)
    host, port = OPTIONS["--proxy"].rsplit(":", 1)
    sock = socket.create_connection((host, int(port)), PATIENCE)
    sock.sendall(b"CONNECT %b:%d HTTP/1.1\r\nHost: %b:%d\r\n\r\n" % ((HOST.encode(), PORT) * 2))
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        byte = sock.recv(1)
        if not byte:
            break
        head += byte
    if not head.startswith(b"HTTP/1.1 200 "):
        sys.exit("the proxy says %r" % head)
    return sock


def whole(length):
    data = b""
    while len(data) < length:
        piece = wire.receive()
        if not piece:
            sys.exit("an end after %d of %d bytes: %r" % (len(data), length, data[:200]))
        data += piece
    return data


sent = sys.stdin.buffer.read()
wire = (Tls if "--cacert" in OPTIONS else Clear)(connect())
greeting = whole(GREETING)
wire.send(sent)
back = whole(len(sent))
wire.end()
bye = b""
while piece := wire.receive():
    bye += piece
print(greeting.decode().strip(), hashlib.sha256(back).hexdigest(), bye.decode().strip(), sep="\n")
