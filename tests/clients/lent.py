"""Dials with a socket that no hook has seen a connect() of the pod's for.

    lent.py ADDRESS PORT lend SOCKET     makes a socket and lends it to whoever asks at SOCKET
    lent.py ADDRESS PORT borrow SOCKET   dials with a socket lent there
    lent.py ADDRESS PORT move PROCS      makes a socket, moves into a cgroup, then dials
    lent.py ADDRESS PORT here            dials
    lent.py ADDRESS PORT always STOP     dials until the file STOP is there, and counts what came of it

Says what came of it: "connected", or the error's name and the milliseconds until then. PATIENCE in the
environment is the number of seconds after which that is ETIMEDOUT.
"""
import array
import errno
import os
import socket
import sys
import time

address, port, how = sys.argv[1], int(sys.argv[2]), sys.argv[3]
PATIENCE = float(os.environ.get("PATIENCE", "20"))
# Between two attempts of "always", in seconds.
PAUSE = float(os.environ.get("PAUSE", "0.002"))


def make():
    made = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
    made.settimeout(PATIENCE)
    return made


def dial(dialling):
    started = time.monotonic()
    try:
        dialling.connect((address, port))
        dialling.sendall(b"GET /hello?token=lent HTTP/1.1\r\nhost: manager.hnp.test\r\n\r\n")
        dialling.recv(1)
        return "connected"
    except TimeoutError:
        return f"ETIMEDOUT {PATIENCE * 1000:.0f}"
    except OSError as error:
        return f"{errno.errorcode[error.errno]} {(time.monotonic() - started) * 1000:.0f}"


if how == "lend":
    at = socket.socket(socket.AF_UNIX)
    at.bind(sys.argv[4])
    at.listen()
    made = make()
    asker, _ = at.accept()
    asker.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [made.fileno()]))])
    asker.recv(1)
elif how == "borrow":
    lender = socket.socket(socket.AF_UNIX)
    until = time.monotonic() + PATIENCE
    while lender.connect_ex(sys.argv[4]) and time.monotonic() < until:
        time.sleep(0.01)
    _, ancillary, _, _ = lender.recvmsg(1, socket.CMSG_SPACE(4))
    lent = socket.socket(fileno=array.array("i", ancillary[0][2])[0])
    lent.settimeout(PATIENCE)
    print(dial(lent))
elif how == "move":
    made = make()
    with open(sys.argv[4], "w") as procs:
        procs.write("0")
    print(dial(made))
elif how == "always":
    counts = {}
    while not os.path.exists(sys.argv[4]):
        said = dial(make()).split()[0]
        counts[said] = counts.get(said, 0) + 1
        time.sleep(PAUSE)
    print(counts)
else:
    print(dial(make()))
