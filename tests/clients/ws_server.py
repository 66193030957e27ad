"""A WebSocket server that wants a client certificate and sends back what it gets, text and binary, with the
serial of the certificate first. Arguments: address, port, certificate, key, clients' CA."""

import asyncio
import ssl
import sys

import websockets

ADDR, PORT, CERT, KEY, CLIENTS = sys.argv[1:6]


async def echo(socket):
    certificate = socket.transport.get_extra_info("peercert")
    await socket.send(certificate["serialNumber"].lower())
    async for message in socket:
        await socket.send(message)


async def main():
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=CLIENTS)
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(CERT, KEY)
    async with websockets.serve(echo, ADDR, int(PORT), ssl=context, max_size=None):
        print("listening", flush=True)
        await asyncio.Future()


asyncio.run(main())
