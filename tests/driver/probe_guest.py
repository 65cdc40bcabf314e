"""PID 1 of driver tests: answers /health, /init and /envs as the real guest, and runs commands."""

import asyncio
import json
import subprocess
import time

STATE: dict = {"env": {}, "token": None}


async def main() -> None:
    server = await asyncio.start_server(serve, "0.0.0.0", 49983)
    async with server:
        await server.serve_forever()


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while head := await read_head(reader):
            method, path, headers = head
            body = await reader.readexactly(int(headers.get("content-length", 0)))
            status, answer = await handle(method, path, headers, body)
            writer.write(
                f"HTTP/1.1 {status} X\r\ncontent-length: {len(answer)}\r\n\r\n".encode() + answer
            )
            await writer.drain()
    except (OSError, asyncio.IncompleteReadError):
        pass
    finally:
        writer.close()


async def read_head(reader: asyncio.StreamReader):
    try:
        lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    except asyncio.IncompleteReadError:
        return None
    method, path, _ = lines[0].split(" ")
    headers = dict(line.lower().split(": ", 1) for line in lines[1:] if line)
    return method, path, headers


async def handle(method: str, path: str, headers: dict, body: bytes) -> tuple[int, bytes]:
    if path == "/health":
        return 204, b""
    if STATE["token"] not in {None, headers.get("x-access-token")}:
        return 401, b'{"code": 401, "message": "bad token"}'
    if path == "/init":
        wanted = json.loads(body)
        STATE["token"] = wanted.get("accessToken")
        STATE["env"] |= wanted.get("envVars", {})
        return 200, b'{"changes": {}}'
    if path == "/envs":
        return 200, json.dumps(STATE["env"]).encode()
    if path == "/run":
        done = await asyncio.to_thread(
            subprocess.run, ["/bin/sh", "-c", json.loads(body)["command"]], capture_output=True
        )
        return 200, done.stdout + done.stderr
    if path == "/sleep":
        delays = []
        for _ in range(20):
            begin = time.monotonic()
            await asyncio.sleep(0.1)
            delays.append((time.monotonic() - begin - 0.1) * 1000)
        return 200, json.dumps([round(d, 2) for d in delays]).encode()
    if path == "/exit":
        raise SystemExit(json.loads(body)["status"])
    if path == "/python":
        names: dict = {}
        exec(json.loads(body)["code"], names)
        return 200, str(names.get("result")).encode()
    return 404, b""


asyncio.run(main())
