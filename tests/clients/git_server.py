"""A git server behind a strict TLS front: git's own http-backend as a CGI program, for clients with a
certificate only. Arguments: address, port, certificate, key, clients' CA, directory of repositories,
git's exec path. Prints one line per request: method, path, the client certificate's serial."""

import http.server
import os
import ssl
import subprocess
import sys

ADDR, PORT, CERT, KEY, CLIENTS, ROOT, EXEC = sys.argv[1:8]


class Git(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def run(self):
        path, _, query = self.path.partition("?")
        length = int(self.headers.get("content-length") or 0)
        body = self.rfile.read(length) if length else self.chunks()
        env = {
            "PATH": os.environ["PATH"],
            "GIT_PROJECT_ROOT": ROOT,
            "GIT_HTTP_EXPORT_ALL": "1",
            "PATH_INFO": path,
            "QUERY_STRING": query,
            "REQUEST_METHOD": self.command,
            "CONTENT_TYPE": self.headers.get("content-type", ""),
            "CONTENT_LENGTH": str(len(body)),
            "HTTP_CONTENT_ENCODING": self.headers.get("content-encoding", ""),
            "GIT_PROTOCOL": self.headers.get("git-protocol", ""),
            "REMOTE_USER": "pod",
            "GIT_CONFIG_COUNT": "1",
            "GIT_CONFIG_KEY_0": "safe.directory",
            "GIT_CONFIG_VALUE_0": "*",
        }
        done = subprocess.run([EXEC + "/git-http-backend"], input=body, env=env, stdout=subprocess.PIPE, check=False)
        head, _, answer = done.stdout.partition(b"\r\n\r\n")
        fields = [line.split(b": ", 1) for line in head.split(b"\r\n")]
        status = next((value for name, value in fields if name == b"Status"), b"200 OK")
        self.send_response(int(status.split()[0]))
        for name, value in fields:
            if name != b"Status":
                self.send_header(name.decode(), value.decode())
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)
        serial = self.connection.getpeercert().get("serialNumber", "none").lower()
        print(self.command, path, serial, flush=True)

    do_GET = do_POST = run

    def chunks(self):
        if self.headers.get("transfer-encoding", "").lower() != "chunked":
            return b""
        body = b""
        while size := int(self.rfile.readline().strip(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def log_message(self, *_):
        pass


context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(CERT, KEY)
context.load_verify_locations(CLIENTS)
context.verify_mode = ssl.CERT_REQUIRED
server = http.server.ThreadingHTTPServer((ADDR, int(PORT)), Git)
server.daemon_threads = True
server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
print("listening", flush=True)
server.serve_forever()
