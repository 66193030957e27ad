"""A WebSocket server that sends back what it gets, text and binary, with the serial of the client's certificate
first. Arguments: address, port, and then certificate, key, clients' CA; without them it listens in the clear, behind
a proxy that says the serial and the version of HTTP in X-Client-Serial and X-Version."""

import asyncio
import ssl
import sys

import websockets

ADDR, PORT, *FILES = sys.argv[1:]


def who(socket):
    if FILES:
        return socket.transport.get_extra_info("peercert")["serialNumber"].lower()
    # The name that older versions have.
    headers = socket.request_headers if hasattr(socket, "request_headers") else socket.request.headers
    return f"{headers['X-Client-Serial'].lower()} over {headers['X-Version']}"


async def echo(socket):
    await socket.send(who(socket))
    async for message in socket:
        await socket.send(message)


async def main():
    context = None
    if FILES:
        certificate, key, clients = FILES
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=clients)
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_cert_chain(certificate, key)
    async with websockets.serve(echo, ADDR, int(PORT), ssl=context, max_size=None):
        print("listening", flush=True)
        await asyncio.Future()


asyncio.run(main())
