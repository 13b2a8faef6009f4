"""An OpenAI server without a model, for the tests of the chat page: says what it is told to say, as a stream.

  fake_openai.py WEB_FOLDER FONT_FOLDER ANSWERS.json [PORT]     prints its address and serves until it is ended

ANSWERS.json: {"models": [{"id", "parent"}], "answers": {"PROMPT": {"MODEL" or "*": "TEXT"}}}. A prompt that is not there
is said again. "pause" seconds lie between pieces of `letters` letters. POST /control sets any of these. GET /asked gives
the bodies of all requests so far. The headers of pages are those of the real server, so that the browser holds the same
policy.
"""

import json
import pathlib
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

POLICY = ("default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; "
          "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
          "require-trusted-types-for 'script'; trusted-types 'none'")
TYPES = {".js": "text/javascript", ".css": "text/css", ".html": "text/html", ".woff2": "font/woff2"}


class Fake:
    def __init__(self, web, fonts, script):
        self.folders = [web, fonts]
        self.script = {"models": [{"id": "base"}], "answers": {}, "pause": 0.0, "letters": 3} | script
        self.asked = []

    def file(self, name):
        for folder in self.folders:
            path = folder / name
            if path.parent == folder and path.is_file():
                return path.read_bytes(), TYPES[path.suffix]
        return None

    def answer(self, body):
        prompt = body["messages"][-1]["content"]
        texts = self.script["answers"].get(prompt, {})
        return texts.get(body["model"], texts.get("*", prompt))


def handler(fake):
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def reply(self, status, content_type, body):
            self.send_response(status)
            self.send_header("Content-Type", f"{content_type}; charset=utf-8")
            self.send_header("Content-Security-Policy", POLICY)
            self.send_header("X-Content-Type-Options", "nosniff")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def json(self, value, status=200):
            self.reply(status, "application/json", json.dumps(value).encode())

        def do_GET(self):
            path = self.path.partition("?")[0]
            name = "chat.html" if path == "/" else path.removeprefix("/assets/")
            if path == "/v1/models":
                self.json({"object": "list", "data": fake.script["models"]})
            elif path == "/asked":
                self.json(fake.asked)
            elif found := fake.file(name):
                self.reply(200, found[1], found[0])
            else:
                self.json({"error": {"message": "no such path"}}, 404)

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self.path == "/control":
                fake.script |= body
                self.json({})
                return
            fake.asked.append(body)
            if address := fake.script.get("redirect"):
                self.send_response(307)
                self.send_header("Location", address)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            if message := fake.script.get("refuse"):
                self.json({"error": {"message": message}}, 400)
                return
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream; charset=utf-8")
            self.end_headers()
            try:
                self.stream(body)
            except BrokenPipeError:  # stopped by the person
                pass

        def event(self, value):
            self.wfile.write(f"data: {json.dumps(value)}\n\n".encode())

        def stream(self, body):
            text, letters = fake.answer(body), fake.script["letters"]
            for extra in fake.script.get("raw", []):
                self.wfile.write(extra.encode())
            for start in range(0, len(text), letters):
                self.event({"choices": [{"index": 0, "delta": {"content": text[start:start + letters]}}]})
                time.sleep(fake.script["pause"])
            if fake.script.get("cut"):
                return
            self.event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
            self.event({"choices": [], "usage": {"completion_tokens": len(text)}})
            self.wfile.write(b"data: [DONE]\n\n")

    return Handler


def serve(web, fonts, script, port=0):
    """A running fake and its address."""
    fake = Fake(pathlib.Path(web), pathlib.Path(fonts), script)
    server = ThreadingHTTPServer(("127.0.0.1", port), handler(fake))
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return fake, server, f"http://127.0.0.1:{server.server_address[1]}"


if __name__ == "__main__":
    script = json.loads(pathlib.Path(sys.argv[3]).read_text()) if len(sys.argv) > 3 else {}
    print(serve(sys.argv[1], sys.argv[2], script, int(sys.argv[4]) if len(sys.argv) > 4 else 0)[2], flush=True)
    threading.Event().wait()
