#!/usr/bin/env python3
"""Serves one GGUF file with saaz and with llama.cpp's server, and asks both the same, one after the other.

  bench/serve_beside_llama.py SAAZ LLAMA_SERVER MODEL.gguf [--rounds N] [--tokens N] [--threads N] [--saaz-flags ...]

SAAZ: build/release/saaz. LLAMA_SERVER: what `tools/build-llama-oracle server` prints. Each round starts either server,
warms it, and for 1, 4 and 16 streams sends that many completions at once (POST /v1/completions, streamed, temperature
0, end-of-text ignored, the same prompts to both, no prompt twice to one server). A stream's first token is timed from
sending its request; tokens/s are all tokens of a group over the time from its first request to its last event. Printed
are medians over the rounds, each with its extremes, and the load average of the machine around it. The clients are this
process: they cost both servers the same. Needs Python 3 alone.
"""
import argparse
import http.client
import json
import os
import re
import statistics
import subprocess
import threading
import time

STREAMS = (1, 4, 16)
SENTENCES = (
    "Wind towers of old houses catch the breeze above the roofs and lead it down into the rooms, which",
    "The bazaar opens early; bakers carry warm bread through its gates, and the first customers ask",
    "In the valley behind the village grew pomegranate trees that her grandfather had planted when",
    "A river that comes from the mountains in spring is lost in the salt of the desert, because",
    "The teacher wrote two lines of a poem on the board and asked the class what the poet meant by",
    "Before the railway was built, caravans needed nine days from the capital to the sea, and they",
)


def prompt(round_, group, stream):
    """Some 64 tokens; the number at the start keeps prompts apart from the first token on."""
    number = 100 * round_ + 20 * group + stream
    return f"{number}. " + " ".join(SENTENCES[(number + i) % len(SENTENCES)] for i in range(3))


class Stream:
    """One completion: when its events came."""

    def __init__(self, port, text, n_tokens):
        self.body = json.dumps({"prompt": text, "max_tokens": n_tokens, "temperature": 0, "stream": True,
                                "ignore_eos": True, "stream_options": {"include_usage": True}})
        self.port, self.n_tokens = port, 0
        self.started = self.first = self.last = None

    def run(self):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
        self.started = time.monotonic()
        connection.request("POST", "/v1/completions", self.body, {"Content-Type": "application/json"})
        reply = connection.getresponse()
        if reply.status != 200:
            raise RuntimeError(f"status {reply.status}: {reply.read(500)}")
        for line in reply:
            if not line.startswith(b"data: {"):
                continue
            self.last = time.monotonic()
            self.first = self.first or self.last
            usage = json.loads(line[6:]).get("usage")
            if usage:
                self.n_tokens = usage["completion_tokens"]
        connection.close()


def ask(port, texts, n_tokens):
    """All at once. Tokens a second of all together, and the median time to a first token in ms."""
    streams = [Stream(port, text, n_tokens) for text in texts]
    threads = [threading.Thread(target=stream.run) for stream in streams]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for stream in streams:
        if stream.n_tokens != n_tokens:
            raise RuntimeError(f"{stream.n_tokens} tokens instead of {n_tokens}")
    seconds = max(s.last for s in streams) - min(s.started for s in streams)
    return len(streams) * n_tokens / seconds, 1000 * statistics.median(s.first - s.started for s in streams)


def start(command, port):
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for _ in range(600):
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            connection.request("GET", "/health")
            if connection.getresponse().status == 200:
                return server
        except OSError:
            pass
        if server.poll() is not None:
            raise RuntimeError(f"{command[0]} ended with status {server.returncode}")
        time.sleep(0.1)
    raise RuntimeError(f"{command[0]} is not ready after a minute")


def measure(command, port, round_, n_tokens):
    server = start(command, port)
    try:
        ask(port, ["Once upon a time"], 16)
        return [ask(port, [prompt(round_, group, i) for i in range(n)], n_tokens) for group, n in enumerate(STREAMS)]
    finally:
        server.terminate()
        server.wait()


def processor():
    with open("/proc/cpuinfo", encoding="utf-8") as lines:
        return re.search(r"model name\s*: (.*)", lines.read()).group(1)


def shown(values):
    return f"{statistics.median(values):8.1f} ({min(values):.1f} to {max(values):.1f})"


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("saaz")
    arguments.add_argument("llama_server")
    arguments.add_argument("model")
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--tokens", type=int, default=64)
    arguments.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    arguments.add_argument("--port", type=int, default=18080)
    arguments.add_argument("--saaz-flags", default="", help="more flags of saaz serve, as one text")
    options = arguments.parse_args()
    port, threads = options.port, str(options.threads)
    servers = {
        "saaz": [options.saaz, "--threads", threads, "serve", "--model", options.model, "--port", str(port),
                 "--context", "512", "--max-running", "16", *options.saaz_flags.split()],
        "llama.cpp": [options.llama_server, "-m", options.model, "--host", "127.0.0.1", "--port", str(port),
                      "-t", threads, "-tb", threads, "-np", "16", "-c", str(16 * 512), "-ngl", "0"],
    }
    loads = [os.getloadavg()[0]]
    figures = {name: [] for name in servers}
    for round_ in range(options.rounds):
        for name in servers if round_ % 2 == 0 else reversed(servers):
            figures[name].append(measure(servers[name], port, round_, options.tokens))
            loads.append(os.getloadavg()[0])
    print(f"{processor()}, {threads} threads, {options.rounds} rounds, {options.tokens} tokens a stream, load average "
          f"{loads[0]:.1f} before, {min(loads[1:]):.1f} to {max(loads[1:]):.1f} meanwhile (this comparison is in it)")
    for group, n in enumerate(STREAMS):
        rates = {name: [r[group][0] for r in rounds] for name, rounds in figures.items()}
        for name, rounds in figures.items():
            print(f"{n:2} streams, {name:10} {shown(rates[name])} tokens/s, first token after "
                  f"{shown([r[group][1] for r in rounds])} ms")
        ratio = statistics.median(rates["saaz"]) / statistics.median(rates["llama.cpp"])
        print(f"{n:2} streams, saaz / llama.cpp {ratio:.2f}")


if __name__ == "__main__":
    main()
