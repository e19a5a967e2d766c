#!/usr/bin/env python3
"""Measures one upstream directly, through rathole, through bore and through tunnel, in turn.

Python's standard library and cargo are all it needs; see README.md beside it. Linux only: CPU time is read from /proc.
"""

import argparse
import asyncio
import json
import os
import platform
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path

PEERS = {
    # Not with the versions it was released with: one of them does not build with a Rust of today.
    "rathole": ["rathole", "--version", "0.5.0", "--no-default-features", "--features", "client,server"],
    "bore": ["bore-cli", "--version", "0.6.0", "--locked"],
}
TICK = 1 / os.sysconf("SC_CLK_TCK")
VERSION = b'{"version":"0.17.1"}'
CHUNK = b'{"model":"peer","created_at":"2026-01-01T00:00:00Z","response":" word","done":false}\n'
START_WITHIN = 20.0


# The upstream: Ollama's version, and a stream of tokens.


class Upstream(asyncio.Protocol):
    def connection_made(self, transport):
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.transport, self.unread, self.timer = transport, b"", None

    def connection_lost(self, error):
        if self.timer:
            self.timer.cancel()

    def data_received(self, data):
        self.unread += data
        while b"\r\n\r\n" in self.unread:
            head, rest = self.unread.split(b"\r\n\r\n", 1)
            length = field(head, b"content-length") or 0
            chunked = b"transfer-encoding: chunked" in head.lower()
            end = rest.find(b"0\r\n\r\n") + 5 if chunked else length
            if len(rest) < end or end == 4:
                return
            body, self.unread = rest[:end], rest[end:]
            self.answer(head, body)

    def answer(self, head, body):
        if head.startswith(b"GET "):
            self.transport.write(
                b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(VERSION), VERSION)
            )
            return
        asked = json.loads(body[body.find(b"{") : body.rfind(b"}") + 1])
        self.transport.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        self.stream(asked["count"], asked["every"], asyncio.get_running_loop().time())

    def stream(self, left, every, due):
        if left == 0:
            self.transport.write(b"0\r\n\r\n")
            return
        self.transport.write(b"%x\r\n%s\r\n" % (len(CHUNK), CHUNK))
        due += every
        self.timer = asyncio.get_running_loop().call_at(due, self.stream, left - 1, every, due)


def field(head, name):
    """A number in a head, or None."""
    for line in head.split(b"\r\n")[1:]:
        key, _, value = line.partition(b":")
        if key.strip().lower() == name:
            return int(value)
    return None


async def serve():
    server = await asyncio.get_running_loop().create_server(Upstream, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


# The callers.


class Crowd(asyncio.Protocol):
    """One of many callers: asks, and asks again when it has the answer."""

    def __init__(self, request, until, done):
        self.request, self.until, self.done = request, until, done
        self.times, self.unread = [], b""

    def connection_made(self, transport):
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.transport = transport
        self.ask()

    def ask(self):
        if time.perf_counter() >= self.until:
            self.finish()
        else:
            self.asked = time.perf_counter()
            self.transport.write(self.request)

    def data_received(self, data):
        self.unread += data
        head, end, body = self.unread.partition(b"\r\n\r\n")
        if not end or len(body) < field(head, b"content-length"):
            return
        if not head.startswith(b"HTTP/1.1 200") or body != VERSION:
            self.finish(RuntimeError(f"a wrong answer: {self.unread[:200]!r}"))
            return
        self.times.append(time.perf_counter() - self.asked)
        self.unread = b""
        self.ask()

    def connection_lost(self, error):
        self.finish(RuntimeError(f"the connection was lost: {error}"))

    def finish(self, error=None):
        if not self.done.done():
            if error:
                self.done.set_exception(error)
            else:
                self.done.set_result(self.times)
        self.transport.close()


class Reader(asyncio.Protocol):
    """Reads one stream of tokens and notes when each came."""

    def __init__(self, request, count, done):
        self.request, self.count, self.done = request, count, done
        self.times, self.unread = [], b""

    def connection_made(self, transport):
        self.transport = transport
        transport.write(self.request)

    def data_received(self, data):
        now = time.perf_counter()
        self.unread += data
        while b'"done":false}' in self.unread:
            _, self.unread = self.unread.split(b'"done":false}', 1)
            self.times.append(now)
        if len(self.times) == self.count and self.unread.endswith(b"0\r\n\r\n"):
            self.done.set_result(self.times)
            self.transport.close()

    def connection_lost(self, error):
        if not self.done.done():
            self.done.set_exception(RuntimeError(f"a stream ended after {len(self.times)} tokens: {error}"))


async def ask(way, callers, seconds):
    loop = asyncio.get_running_loop()
    request = way.head(b"GET /api/version") + b"\r\n"
    until = time.perf_counter() + seconds
    waits = []
    for _ in range(callers):
        done = loop.create_future()
        await loop.create_connection(lambda: Crowd(request, until, done), "127.0.0.1", way.port)
        waits.append(done)
    return [t for times in await asyncio.wait_for(asyncio.gather(*waits), seconds + 30) for t in times]


async def read(way, streams, every, seconds):
    loop = asyncio.get_running_loop()
    count = max(2, int(seconds / every))
    body = json.dumps({"model": "peer", "count": count, "every": every}).encode()
    request = way.head(b"POST /api/generate") + b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
    waits = []
    for _ in range(streams):
        done = loop.create_future()
        await loop.create_connection(lambda: Reader(request, count, done), "127.0.0.1", way.port)
        waits.append(done)
        await asyncio.sleep(every / streams)
    return await asyncio.wait_for(asyncio.gather(*waits), seconds + 30)


def one_caller(way, seconds):
    """Times of one caller's requests, with as little of Python between as can be."""
    request = way.head(b"GET /api/version") + b"\r\n"
    with socket.create_connection(("127.0.0.1", way.port)) as stream:
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        times, until = [], time.perf_counter() + seconds
        while True:
            asked = time.perf_counter()
            if asked >= until:
                return times
            stream.sendall(request)
            answer = stream.recv(65536)
            while not answer.endswith(VERSION):
                more = stream.recv(65536)
                if not more:
                    raise RuntimeError(f"{way.name}: a wrong answer: {answer[:200]!r}")
                answer += more
            times.append(time.perf_counter() - asked)
            if not answer.startswith(b"HTTP/1.1 200"):
                raise RuntimeError(f"{way.name}: a wrong answer: {answer[:200]!r}")


# The ways.


class Way:
    def __init__(self, name, port, processes, token=None):
        self.name, self.port, self.processes, self.token = name, port, processes, token

    def head(self, line):
        head = line + b" HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n" % self.port
        return head + (b"Authorization: Bearer %s\r\n" % self.token.encode() if self.token else b"")

    def cpu(self):
        """Seconds of CPU time that its processes have spent."""
        spent = 0
        for process in self.processes:
            fields = Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1].split()
            spent += (int(fields[11]) + int(fields[12])) * TICK
        return spent

    def wait(self):
        """Until requests get through."""
        until = time.monotonic() + START_WITHIN
        while True:
            try:
                return one_caller(self, 0.01)
            except (OSError, RuntimeError):
                if time.monotonic() > until:
                    raise
                time.sleep(0.05)


class Stage:
    """All processes; they end with it."""

    def __init__(self, scratch):
        self.scratch, self.started = scratch, []

    def start(self, name, *arguments, env=None, output=subprocess.DEVNULL):
        log = open(self.scratch / f"{name}.log", "wb")
        process = subprocess.Popen(
            [str(argument) for argument in arguments],
            env={**os.environ, **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=log,
        )
        self.started.append(process)
        return process

    def end(self):
        for process in self.started:
            process.kill()
        for process in self.started:
            process.wait()


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def set_stage(stage, tunnel):
    upstream = stage.start("upstream", sys.executable, __file__, "--upstream", output=subprocess.PIPE)
    port = int(upstream.stdout.readline())
    ways = [Way("direct", port, [])]
    ways.append(rathole(stage, port))
    ways.append(bore(stage, port))
    ways += [through_tunnel(stage, tunnel, port, transport) for transport in ("ws", "poll")]
    for way in ways:
        way.wait()
    return ways


def rathole(stage, upstream):
    control, public = free_port(), free_port()
    server, client = stage.scratch / "server.toml", stage.scratch / "client.toml"
    server.write_text(
        f'[server]\nbind_addr = "127.0.0.1:{control}"\ndefault_token = "peers"\n'
        f'[server.services.up]\nbind_addr = "127.0.0.1:{public}"\n'
    )
    client.write_text(
        f'[client]\nremote_addr = "127.0.0.1:{control}"\ndefault_token = "peers"\n'
        f'[client.services.up]\nlocal_addr = "127.0.0.1:{upstream}"\n'
    )
    program = stage.scratch / "bin" / "rathole"
    processes = [stage.start("rathole-server", program, "--server", server)]
    time.sleep(0.3)
    processes.append(stage.start("rathole-client", program, "--client", client))
    return Way("rathole", public, processes)


def bore(stage, upstream):
    public = free_port()
    program = stage.scratch / "bin" / "bore"
    processes = [stage.start("bore-server", program, "server", "--min-port", 1024)]
    time.sleep(0.3)
    processes.append(stage.start("bore-local", program, "local", upstream, "--to", "127.0.0.1", "--port", public))
    return Way("bore", public, processes)


def through_tunnel(stage, program, upstream, transport):
    public = free_port()
    data = stage.scratch / f"relay-{transport}"
    data.mkdir(exist_ok=True)
    token = subprocess.run(
        [program, "relay", "token", "--user", "peers", "--data-dir", data], check=True, capture_output=True, text=True
    ).stdout.strip()
    relay = stage.start(f"relay-{transport}", program, "relay", "--listen", f"127.0.0.1:{public}", "--data-dir", data)
    time.sleep(0.3)
    bridge = stage.start(
        f"bridge-{transport}", program, "bridge",
        "--relay", f"http://127.0.0.1:{public}", "--transport", transport, "--name", transport,
        "--upstream", f"http://127.0.0.1:{upstream}", "--state-dir", data / "bridge",
        env={"TUNNEL_TOKEN": token},
    )  # fmt: skip
    return Way(f"tunnel, {transport}", public, [relay, bridge], token)


# Measuring.


def measure(ways, options):
    """Figures of each round: way → name → values. The first round warms up and does not count."""
    figures = {way.name: {} for way in ways}
    for number in range(options.rounds + 1):
        for turn in range(len(ways)):
            way = ways[(turn + number) % len(ways)]
            show(f"round {number} of {options.rounds}: {way.name}")
            for name, value in round_of(way, options).items():
                if number > 0:
                    figures[way.name].setdefault(name, []).append(value)
    show("")
    return figures


def round_of(way, options):
    found = {}
    times = one_caller(way, options.slice)
    found["p50"] = statistics.median(times) * 1e6
    before = way.cpu()
    times = asyncio.run(ask(way, options.callers, options.slice))
    found["rate"] = len(times) / options.slice
    found["request"] = (way.cpu() - before) / len(times) * 1e6
    before = way.cpu()
    streams = asyncio.run(read(way, options.streams, options.every / 1e3, options.slice))
    gaps = sorted(b - a for times in streams for a, b in zip(times, times[1:]))
    found["gap"] = gaps[int(len(gaps) * 0.99)] * 1e3
    found["chunk"] = (way.cpu() - before) / sum(len(times) for times in streams) * 1e6
    return found


def show(text):
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


def table(figures, options):
    median = lambda way, name: statistics.median(figures[way][name])
    ratios = lambda way, name: [mine / other for mine, other in zip(figures[way][name], figures["direct"][name])]
    lines = [
        f"| | p50, one caller | ÷ direct (range) | requests/s, {options.callers} callers | ÷ direct (range) "
        f"| CPU per request | gap p99, a token every {options.every:g} ms | CPU per token |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for way in figures:
        cells = [way, f"{median(way, 'p50'):.0f} µs", "", f"{median(way, 'rate'):,.0f}", "", "", "", ""]
        cells[6] = f"{median(way, 'gap'):.1f} ms"
        if way != "direct":
            for cell, name in ((2, "p50"), (4, "rate")):
                values = ratios(way, name)
                cells[cell] = f"{statistics.median(values):.2f} ({min(values):.2f}–{max(values):.2f})"
            cells[5] = f"{median(way, 'request'):.0f} µs"
            cells[7] = f"{median(way, 'chunk'):.0f} µs"
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def machine():
    cpu = next((line.split(":", 1)[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), "?")
    load = open("/proc/loadavg").read().split()[0]
    return f"{os.cpu_count()} cores, {cpu}, Linux {platform.release().split('-')[0]}, load {load}"


# Installing.


def install(scratch):
    for name, (crate, *arguments) in PEERS.items():
        if not (scratch / "bin" / name).exists():
            subprocess.run(["cargo", "install", "--root", scratch, crate, *arguments], check=True)


def build():
    root = Path(__file__).resolve().parents[2]
    built = subprocess.run(
        ["cargo", "build", "--profile", "dist", "--locked", "--message-format=json-render-diagnostics"],
        cwd=root, check=True, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    messages = map(json.loads, built.stdout.splitlines())
    return next(m["executable"] for m in messages if m.get("executable") and m["target"]["name"] == "tunnel")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scratch", type=Path, default=Path.home() / ".cache" / "tunnel-peers", help="where to install")
    parser.add_argument("--tunnel", type=Path, help="a tunnel that is built already")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--slice", type=float, default=1.0, help="seconds for one way and figure")
    parser.add_argument("--callers", type=int, default=16)
    parser.add_argument("--streams", type=int, default=8, help="streams of tokens side by side")
    parser.add_argument("--every", type=float, default=5.0, help="milliseconds between two tokens of a stream")
    parser.add_argument("--upstream", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.upstream:
        asyncio.run(serve())
        return
    if not shutil.which("cargo") or not Path("/proc/self/stat").exists():
        sys.exit("run.py: cargo and Linux are needed")
    options.scratch.mkdir(parents=True, exist_ok=True)
    install(options.scratch)
    tunnel = options.tunnel or build()
    # Ctrl-C and an end from outside take the processes along.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    stage = Stage(options.scratch)
    try:
        before = machine()
        figures = measure(set_stage(stage, tunnel), options)
    except KeyboardInterrupt:
        sys.exit("interrupted")
    finally:
        stage.end()
    print(f"{before}; {options.rounds} rounds of {options.slice:g} s after one that does not count\n")
    print(table(figures, options))


if __name__ == "__main__":
    main()
