// CONNECT over HTTP/2 by Node: GATEWAY AUTHORITY OPTIONS, the last as JSON.
//   ca: what signs the gateway's certificate, where it has one
//   tls: {ca, cert, key, servername} for TLS inside of the tunnel; files
//   send: what is sent, each but the first once something has come; then the client's side ends
//   tunnels: how many at a time, on the one connection (1)
//   stalled: one more tunnel, opened first, into which so many bytes go and of which nothing is ever read
// Prints the status, what came, and how it ended.
const fs = require('fs'), http2 = require('http2'), tls = require('tls');
const [gateway, authority, json] = process.argv.slice(1);
const options = JSON.parse(json);
const read = (path) => path && fs.readFileSync(path);

const session = http2.connect(gateway, { ca: read(options.ca) });
session.on('error', (error) => console.log(`session: ${error.message}`));

const open = () => session.request({ ':method': 'CONNECT', ':authority': authority }, { endStream: false });

const tunnel = () => new Promise((resolve) => {
  const stream = open();
  let text = '', status;
  const over = (how) => resolve(`status ${status}\n${text}\n${how}`);
  stream.on('error', (error) => over(`error: ${error.message}`));
  stream.on('response', (headers) => {
    status = headers[':status'];
    const inner = options.tls && status === 200
      ? tls.connect({ socket: stream, servername: options.tls.servername, ca: read(options.tls.ca),
        cert: read(options.tls.cert), key: read(options.tls.key) })
      : stream;
    const parts = status === 200 ? [...options.send] : [];
    const next = () => (parts.length > 1 ? inner.write(parts.shift()) : inner.end(parts.shift()));
    inner.on('error', (error) => over(`error: ${error.message}`));
    inner.on('data', (data) => { text += data; if (parts.length > 0) next(); });
    inner.on('end', () => over('end'));
    next();
  });
});

const main = async () => {
  if (options.stalled) {
    const stream = open();
    await new Promise((resolve) => stream.on('response', resolve));
    stream.pause();
    stream.write('x'.repeat(options.stalled));
  }
  const all = await Promise.all(Array.from({ length: options.tunnels || 1 }, tunnel));
  console.log(all.join('\n---\n'));
  session.destroy();
};
main();
