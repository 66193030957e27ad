// What Node itself offers, without a package, to a pod that was told of a gateway:
//
//   node gateway.js FORM GATEWAY URL [CA CERTIFICATE KEY]
//
// One POST of 100,000 bytes. FORM is `fetch` or `h2c` (to the gateway's own address), `absolute` (a URL as target) or
// `connect` (an agent that makes its connections by CONNECT, and TLS within them); `straight` is a GET to the URL
// itself. Says status and body as JSON.
'use strict';
const fs = require('fs');
const http = require('http');
const http2 = require('http2');
const https = require('https');
const tls = require('tls');

const [form, gateway, target, ...files] = process.argv.slice(1);
const url = new URL(target);
const [host, port] = gateway.split(':');
const payload = Buffer.alloc(100000, 'x');
const headers = { 'x-token': form };
const say = (status, body) => console.log(JSON.stringify({ status, body }));

function sayWhatComes(request) {
  request.on('response', (response) => collect(response, (body) => say(response.statusCode, body)));
  request.end(payload);
}

function collect(stream, done) {
  let body = '';
  stream.setEncoding('utf8');
  stream.on('data', (piece) => { body += piece; });
  stream.on('end', () => done(body));
}

class Through extends https.Agent {
  createConnection(options, done) {
    const path = `${options.host}:${options.port}`;
    const request = http.request({ host, port, method: 'CONNECT', path, headers: { host: path } });
    request.on('connect', (answer, socket) => {
      if (answer.statusCode !== 200) return done(new Error(`the gateway says ${answer.statusCode}`));
      return done(null, tls.connect({ ...options, socket }));
    });
    request.on('error', done);
    request.end();
  }
}

async function fetched(where, body) {
  const response = await fetch(where, { method: body ? 'POST' : 'GET', headers, body });
  say(response.status, await response.text());
}

const forms = {
  straight: () => fetched(url),
  fetch: () => fetched(`http://${gateway}${url.pathname}`, payload),
  absolute: () => sayWhatComes(
    http.request({ host, port, method: 'POST', path: url.href, headers: { ...headers, host: url.host } }),
  ),
  connect: () => {
    const [ca, cert, key] = files.map((file) => fs.readFileSync(file));
    const agent = new Through({ ca, cert, key });
    sayWhatComes(https.request(url, { method: 'POST', headers, agent }));
  },
  h2c: () => {
    const session = http2.connect(`http://${gateway}`);
    const stream = session.request({ ':method': 'POST', ':path': url.pathname, ...headers });
    stream.on('response', (head) => collect(stream, (body) => {
      say(head[':status'], body);
      session.close();
    }));
    stream.end(payload);
  },
};
forms[form]();
