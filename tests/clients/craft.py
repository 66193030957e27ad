"""Sends TCP segments and datagrams that no connect() announced, and says what came back.

    craft.py HOW ADDRESS PORT

HOW is packet (a packet socket), raw (a raw socket), fragments, options (IPv4 options, IPv6 destination
options), source-route (IPv4: by way of the gateway), tagged (behind two priority tags) or datagram. The
answer is one word on standard output: syn-ack, refused, data, nothing. A reset with a wrong checksum or
number is an error.
"""
import ipaddress
import json
import os
import select
import socket
import struct
import subprocess
import sys
import time

TCP, UDP, FRAGMENT, DESTINATION_OPTIONS = 6, 17, 44, 60
SYN, RST, ACK = 2, 4, 16
SEQ = 0x01020304
# A packet that crosses two namespaces comes back in microseconds; silence is told by a probe behind it.
PATIENCE = 10.0


def checksum(data):
    data += b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def addresses(source, target):
    return source.packed + target.packed


def upper(source, target, protocol, data):
    """The data with its checksum in place."""
    offset = {TCP: 16, UDP: 6}[protocol]
    pseudo = addresses(source, target) + struct.pack("!LL", len(data), protocol)
    total = checksum(pseudo + data)
    return data[:offset] + struct.pack("!H", total) + data[offset + 2:]


def syn(source, target, source_port, port):
    # With options, so that there is something to cut off behind the header.
    head = struct.pack("!HHLLBBHHH", source_port, port, SEQ, 0, 8 << 4, SYN, 65535, 0, 0)
    return upper(source, target, TCP, head + b"\x02\x04\x05\xb4" + b"\x01" * 8)


def datagram(source, target, source_port, port):
    payload = b"anybody?"
    return upper(source, target, UDP, struct.pack("!HHHH", source_port, port, 8 + len(payload), 0) + payload)


def ip4(source, target, protocol, data, options=b"", fragment=0, via=None):
    length = 20 + len(options)
    head = struct.pack("!BBHHHBBH", 0x40 | length // 4, 0, length + len(data), 77, fragment, 64, protocol, 0)
    head += source.packed + (via or target).packed + options
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + data


def ip6(source, target, protocol, data):
    return struct.pack("!LHBB", 6 << 28, len(data), protocol, 64) + addresses(source, target) + data


def packets(how, source, target, protocol, data, gateway):
    v4 = target.version == 4
    ip = ip4 if v4 else ip6
    if how == "fragments":
        if v4:
            # The ports are in the first one, the flags in the second.
            return [ip(source, target, protocol, data[:8], fragment=0x2000), ip(source, target, protocol, data[8:], fragment=1)]
        # Linux wants the whole header in the first one (RFC 7112).
        part = lambda offset, more: struct.pack("!BBHL", protocol, 0, offset | more, 77)
        return [ip(source, target, FRAGMENT, part(0, 1) + data[:24]), ip(source, target, FRAGMENT, part(24, 0) + data[24:])]
    if how == "options":
        if v4:
            return [ip(source, target, protocol, data, options=b"\x01\x01\x01\x00")]
        return [ip(source, target, DESTINATION_OPTIONS, struct.pack("!BB", protocol, 0) + b"\x01\x04\0\0\0\0" + data)]
    if how == "source-route":
        return [ip4(source, target, protocol, data, b"\x83\x07\x04" + target.packed + b"\x00", via=gateway)]
    return [ip(source, target, protocol, data)]


def route(target):
    """Our own address on the way there, the gateway, and its hardware address."""
    family = "-4" if target.version == 4 else "-6"
    way = json.loads(subprocess.check_output(["ip", family, "-j", "route", "get", str(target)]))[0]
    source, gateway = ipaddress.ip_address(way["prefsrc"]), ipaddress.ip_address(way["gateway"])
    asker = socket.socket(socket.AF_INET if target.version == 4 else socket.AF_INET6, socket.SOCK_DGRAM)
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        asker.sendto(b"", (str(gateway), 9))
        known = json.loads(subprocess.check_output(["ip", family, "-j", "neigh", "show", str(gateway)]) or "[]")
        if known and "lladdr" in known[0]:
            return source, gateway, bytes.fromhex(known[0]["lladdr"].replace(":", ""))
    sys.exit("the gateway does not answer")


def answer(frame, source, target, source_port, port, is_whole):
    """What a frame says to us, if it does."""
    v4 = target.version == 4
    if frame[12:14] != (b"\x08\x00" if v4 else b"\x86\xdd"):
        return None
    packet = frame[14:]
    if v4:
        protocol, start, length = packet[9], (packet[0] & 15) * 4, struct.unpack("!H", packet[2:4])[0]
        peers = packet[12:20]
        assert checksum(packet[:start]) == 0, "the IP header's checksum"
    else:
        protocol, start, length = packet[6], 40, 40 + struct.unpack("!H", packet[4:6])[0]
        peers = packet[8:40]
    if peers != target.packed + source.packed:
        return None
    data = packet[start:length]
    if data[:4] != struct.pack("!HH", port, source_port):
        return None
    if protocol == UDP:
        return "data"
    seq, ack, _, flags = struct.unpack("!LLBB", data[4:14])
    assert flags & ACK and ack == SEQ + 1, f"flags {flags:#x}, ack {ack:#x}"
    if flags & RST:
        # The guard's answer to what came with a whole checksum has one, too; a kernel's is offloaded.
        pseudo = peers + struct.pack("!LL", len(data), TCP)
        assert not is_whole or checksum(pseudo + data) == 0, "the reset's checksum"
        assert (seq, flags, len(data)) == (0, RST | ACK, 20), (seq, flags, len(data))
        return "refused"
    return "syn-ack"


def main():
    how, target, port = sys.argv[1], ipaddress.ip_address(sys.argv[2]), int(sys.argv[3])
    source, gateway, hardware = route(target)
    source_port = 20000 + os.getpid() % 10000
    wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
    wire.bind(("eth0", 0))
    protocol, make = (UDP, datagram) if how == "datagram" else (TCP, syn)
    segments = packets(how, source, target, protocol, make(source, target, source_port, port), gateway)
    # A port that nobody guards and nobody listens at: its refusal says that what went before was carried.
    closed = syn(source, target, source_port, port + 1)
    behind = packets("packet", source, target, TCP, closed, gateway)
    kind = struct.pack("!H", 0x0800 if target.version == 4 else 0x86DD)
    if how == "tagged":
        kind = struct.pack("!HHHH", 0x8100, 0, 0x8100, 0) + kind
    header = hardware + wire.getsockname()[4] + kind
    if how == "raw":
        ours = socket.socket(socket.AF_INET if target.version == 4 else socket.AF_INET6, socket.SOCK_RAW, TCP)
        ours.sendto(make(source, target, source_port, port), (str(target), 0))
    else:
        for segment in segments:
            wire.send(header + segment)
    plain = header[:12] + header[-2:]
    until, sent, heard_behind = time.monotonic() + PATIENCE, 0.0, 0
    while time.monotonic() < until and heard_behind < 3:
        if time.monotonic() - sent > 0.05:
            sent = time.monotonic()
            for packet in behind:
                wire.send(plain + packet)
        if not select.select([wire], [], [], 0.02)[0]:
            continue
        frame = wire.recv(65535)
        if said := answer(frame, source, target, source_port, port, True):
            print(said)
            return
        heard_behind += answer(frame, source, target, source_port, port + 1, False) == "refused"
    if heard_behind < 3:
        sys.exit("not even the closed port answers")
    print("nothing")


main()
