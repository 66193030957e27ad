"""A client with connections that are older than the agent: one that rests, one that sends all the while.

    older.py ADDRESS PORT GO

Opens both, asks on the resting one and says "open". When the file GO is there, it asks there once more
and says what came of it: "answered", or "reset" with the number of milliseconds it took to know. Then
the same of the other. A connection that was reset is opened again, as clients do, and asked once more.
"""
import os
import socket
import sys
import threading
import time

address, port, go = sys.argv[1], int(sys.argv[2]), sys.argv[3]
PATIENCE = 20


def connect():
    connection = socket.create_connection((address, port), PATIENCE)
    connection.settimeout(PATIENCE)
    return connection


def ask(connection, path):
    connection.sendall(f"GET {path} HTTP/1.1\r\nhost: manager.hnp.test\r\n\r\n".encode())
    answer = b""
    while b"\r\n\r\n" not in answer:
        part = connection.recv(65536)
        if not part:
            raise ConnectionResetError("closed")
        answer += part
    return answer.split(b"\r\n")[0].decode()


resting, busy = connect(), connect()
print(ask(resting, "/hello?token=older"), flush=True)

outcome = []


def stream():
    """A body that does not end: large segments, one behind the other."""
    try:
        busy.sendall(b"POST /sink HTTP/1.1\r\nhost: manager.hnp.test\r\ntransfer-encoding: chunked\r\n\r\n")
        block = b"100000\r\n" + bytes(0x100000) + b"\r\n"
        while not stopped.is_set():
            busy.sendall(block)
            time.sleep(0.005)
        busy.sendall(b"0\r\n\r\n")
        outcome.append("answered" if busy.recv(12) == b"HTTP/1.1 200" else "closed")
    except (ConnectionResetError, BrokenPipeError):
        outcome.append("reset")
    except OSError as error:
        outcome.append(repr(error))


stopped = threading.Event()
streaming = threading.Thread(target=stream)
streaming.start()
print("open", flush=True)
while not os.path.exists(go):
    time.sleep(0.005)
started = time.monotonic()
try:
    ask(resting, "/hello?token=late")
    print("resting answered", flush=True)
except (ConnectionResetError, BrokenPipeError):
    print(f"resting reset {(time.monotonic() - started) * 1000:.0f}", flush=True)
    print(ask(connect(), "/hello?token=again"), flush=True)
stopped.set()
streaming.join()
print("busy", outcome[0], flush=True)
