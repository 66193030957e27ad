"""A server that authenticates connections and not requests, as NTLM does: after two requests with an Authorization
of its scheme a connection is somebody's, whatever comes on it. Wants a client certificate. Each answer has the
connection's number. Arguments: address, port, certificate, key, clients' CA."""

import http.server
import itertools
import ssl
import sys

ADDR, PORT, CERT, KEY, CLIENTS = sys.argv[1:6]
NUMBERS = itertools.count(1)


class Ntlm(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def setup(self):
        super().setup()
        self.number, self.legs = next(NUMBERS), 0

    def do_GET(self):
        if self.headers.get("authorization", "").lower().startswith("ntlm "):
            self.legs += 1
        body = str(self.number).encode()
        self.send_response(200 if self.legs >= 2 else 401)
        if self.legs < 2:
            self.send_header("WWW-Authenticate", "NTLM" if self.legs == 0 else "NTLM Y2hhbGxlbmdl")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=CLIENTS)
context.verify_mode = ssl.CERT_REQUIRED
context.load_cert_chain(CERT, KEY)
server = http.server.ThreadingHTTPServer((ADDR, int(PORT)), Ntlm)
server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
print("listening", flush=True)
server.serve_forever()
