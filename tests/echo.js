// A TLS server that speaks HTTP/1.1 and HTTP/2 and answers with what it was sent, as JSON.
// node echo.js <key and certificate, PEM> [address]; prints its port.
"use strict";
const fs = require("node:fs");
const http2 = require("node:http2");

const pem = fs.readFileSync(process.argv[2]);
const server = http2.createSecureServer({ key: pem, cert: pem, allowHTTP1: true }, (request, response) => {
  const pieces = [];
  request.on("data", (piece) => pieces.push(piece));
  request.on("end", () => {
    const body = Buffer.concat(pieces);
    const size = Number(new URL(request.url, "https://x").searchParams.get("size") || 0);
    response.setHeader("content-type", "application/json");
    const said = {
      method: request.method,
      url: request.url,
      version: request.httpVersion,
      headers: request.headers,
      raw: request.rawHeaders,
      trailers: request.trailers,
      bytes: body.length,
      body: body.subarray(0, 1000).toString("latin1"),
      padding: "x".repeat(size),
    };
    response.end(JSON.stringify(said));
  });
});
server.on("sessionError", () => {});
server.listen(0, process.argv[3] || "0.0.0.0", () => console.log(server.address().port));
