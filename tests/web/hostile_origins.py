"""Other origins, rebound names and raw requests against `saaz serve` itself, with the tiny model of `saaz try`. What
counts is the server's own log: no request of an attacker may ever be answered with more than a refusal."""

import json
import os
import socket
import subprocess
import threading
import time

from chat_browser import Chat, case, new_browser
from selenium.common.exceptions import NoSuchFrameException
from selenium.webdriver.common.by import By

BODY = json.dumps({"model": "tiny", "max_tokens": 4, "messages": [{"role": "user", "content": "سلام"}]})


class Server:
    """`saaz serve` on any port, with a log line for every request."""

    def __init__(self, saaz, source, keys=None):
        environment = {k: v for k, v in os.environ.items() if k != "SAAZ_API_KEY"} | ({"SAAZ_API_KEY": keys} if keys else {})
        self.process = subprocess.Popen(
            [saaz, "--json", "serve", "--model", str(source / "data/try/model"), "--served-model-name", "tiny", "--port", "0", "--log-requests"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
        self.requests = []
        threading.Thread(target=self.read_log, daemon=True).start()
        self.address = json.loads(self.process.stdout.readline())["address"]
        self.port = int(self.address.rsplit(":", 1)[1])

    def read_log(self):
        for line in self.process.stderr:
            try:
                event = json.loads(line)
            except ValueError:
                continue
            if isinstance(event, dict) and event.get("event") == "request":
                self.requests.append(event)

    def since(self, mark):
        """The requests since then that were answered, but those that a page may make and cannot read."""
        time.sleep(0.3)
        return [r for r in self.requests[mark:] if r["status"] < 400 and r["route"] not in ("/", "/v1/models") and not r["route"].startswith("/assets/")]

    def end(self):
        self.process.terminate()
        return self.process.wait(60)

    def raw(self, method, path, headers=(), body=""):
        """The status of a request with exactly these headers."""
        lines = [f"{method} {path} HTTP/1.1", *headers, "Connection: close"]
        if body:
            lines.append(f"Content-Length: {len(body.encode())}")
        with socket.create_connection(("127.0.0.1", self.port), 20) as connection:
            connection.sendall(("\r\n".join(lines) + "\r\n\r\n" + body).encode())
            answer = b""
            while piece := connection.recv(65536):
                answer += piece
        self.last = answer.decode(errors="replace")
        return int(self.last.split(" ", 2)[1])


def raw_requests(server):
    own, json_type = f"Host: 127.0.0.1:{server.port}", "Content-Type: application/json"
    chat = "/v1/chat/completions"
    cases = [
        ("a rebound name", "GET", "/v1/models", [f"Host: evil.test:{server.port}"], ""),
        ("a rebound name on the page", "GET", "/", [f"Host: evil.test:{server.port}"], ""),
        ("a rebound name with our address in it", "GET", "/v1/models", [f"Host: 127.0.0.1.evil.test:{server.port}"], ""),
        ("a rebound name that ends in localhost", "GET", "/v1/models", ["Host: localhost.evil.test"], ""),
        ("no Host", "GET", "/v1/models", [], ""),
        ("two Hosts", "GET", "/v1/models", [own, "Host: evil.test"], ""),
        ("an absolute target of another host", "GET", "http://evil.test/v1/models", ["Host: evil.test"], ""),
        ("a foreign Origin", "POST", chat, [own, json_type, "Origin: https://evil.test"], BODY),
        ("an Origin of our host and another port", "POST", chat, [own, json_type, f"Origin: http://127.0.0.1:{server.port + 1}"], BODY),
        ("the Origin null", "POST", chat, [own, json_type, "Origin: null"], BODY),
        ("a form's content type", "POST", chat, [own, "Content-Type: text/plain"], BODY),
        ("a form's other content type", "POST", chat, [own, "Content-Type: application/x-www-form-urlencoded"], BODY),
        ("no content type", "POST", chat, [own], BODY),
        ("a GET that would chat", "GET", chat, [own], ""),
        ("a method override", "GET", chat, [own, "X-HTTP-Method-Override: POST"], BODY),
        ("a path out of the assets", "GET", "/assets/../v1/models", [own], ""),
        ("an encoded path out of the assets", "GET", "/assets/%2e%2e/%2e%2e/etc/passwd", [own], ""),
        ("a file that is none of ours", "GET", "/assets/chat.html.bak", [own], ""),
    ]
    for what, method, path, headers, body in cases:
        status = server.raw(method, path, headers, body)
        case(f"{what} is refused ({status})", 400 <= status < 500, status)
    preflight = server.raw("OPTIONS", chat, [own, "Origin: https://evil.test", "Access-Control-Request-Method: POST", "Access-Control-Request-Headers: content-type"])
    case(f"a preflight of another origin gets no leave ({preflight})", "access-control-allow" not in server.last.lower(), server.last)
    server.raw("GET", "/v1/models", [own, "Origin: https://evil.test"])
    case("a reply to another origin's read carries no CORS field", "access-control" not in server.last.lower(), server.last)
    status = server.raw("GET", "/", [own])
    head = server.last.lower()
    wanted = ["content-security-policy: default-src 'self'", "frame-ancestors 'none'", "x-content-type-options: nosniff", "charset=utf-8"]
    case("the page comes with its policy", status == 200 and all(w in head for w in wanted) and "unsafe" not in head, head[:800])


ATTACK = """<!doctype html><meta charset=utf-8><title>attacker</title><script>
const target = 'http://127.0.0.1:%(port)d', read = [];
window.done = (async () => {
  const body = %(body)s;
  const tries = {
    'reads itself': () => fetch(location.href).then((r) => r.text()),
    'reads models': () => fetch(target + '/v1/models').then((r) => r.text()),
    'reads the page': () => fetch(target + '/').then((r) => r.text()),
    'chats with JSON': () => fetch(target + '/v1/chat/completions', {method: 'POST', body, headers: {'Content-Type': 'application/json'}}).then((r) => r.text()),
    'chats with credentials': () => fetch(target + '/v1/chat/completions', {method: 'POST', body, credentials: 'include', headers: {'Content-Type': 'application/json'}}).then((r) => r.text()),
    'chats as a simple request': () => fetch(target + '/v1/chat/completions', {method: 'POST', body, mode: 'no-cors'}).then((r) => r.text()),
    'chats as a simple request with a keyless type': () => fetch(target + '/v1/chat/completions', {method: 'POST', body: new Blob([body]), mode: 'no-cors'}).then((r) => r.text()),
    'chats with a beacon': async () => (navigator.sendBeacon(target + '/v1/chat/completions', body), ''),
    'loads an adapter': () => fetch(target + '/v1/load_lora_adapter', {method: 'POST', mode: 'no-cors', body: '{"lora_name":"x","lora_path":"/etc"}'}).then((r) => r.text()),
    'deletes': () => fetch(target + '/v1/models/tiny', {method: 'DELETE'}).then((r) => r.text()),
    'opens a stream': () => new Promise((done) => { const s = new EventSource(target + '/v1/models'); s.onmessage = (e) => done(e.data); s.onerror = () => done(''); }),
    'opens a socket': () => new Promise((done) => { const s = new WebSocket(target.replace('http', 'ws') + '/v1/models'); s.onopen = () => done('open'); s.onerror = () => done(''); }),
    'loads models as a script': () => new Promise((done) => { const s = document.createElement('script'); s.src = target + '/v1/models'; s.onload = () => done('loaded'); s.onerror = () => done(''); document.head.append(s); }),
    'loads our script': () => new Promise((done) => { const s = document.createElement('script'); s.type = 'module'; s.src = target + '/assets/chat.js'; s.onload = () => done('loaded'); s.onerror = () => done(''); document.head.append(s); }),
    'loads our style': () => new Promise((done) => { const s = document.createElement('link'); s.rel = 'stylesheet'; s.href = target + '/assets/chat.css'; s.onload = () => done('loaded'); s.onerror = () => done(''); document.head.append(s); }),
    'loads models as an image': () => new Promise((done) => { const i = new Image(); i.onload = () => done('loaded'); i.onerror = () => done(''); i.src = target + '/v1/models'; }),
    'frames the page': () => new Promise((done) => { const f = document.createElement('iframe'); f.src = target + '/'; f.onload = () => { try { done(f.contentDocument ? '' : (f.contentWindow.length, '')); } catch { done(''); } }; document.documentElement.append(f); }),
  };
  const out = {};
  for (const [what, act] of Object.entries(tries)) {
    try { out[what] = await Promise.race([act(), new Promise((d) => setTimeout(() => d(''), 3000))]); } catch { out[what] = ''; }
  }
  return out;
})();
</script><form id=plain method=post enctype="text/plain" action="http://127.0.0.1:%(port)d/v1/chat/completions"><input name='{"model":"tiny","max_tokens":4,"messages":[{"role":"user","content":"x' value='"}]}'></form>
<form id=plainget method=get action="http://127.0.0.1:%(port)d/v1/chat/completions"><input name=q value=x></form>"""


def other_pages(server, canary, canary_port):
    canary.pages["attack"] = ATTACK % {"port": server.port, "body": json.dumps(BODY)}
    driver = new_browser("--host-resolver-rules=MAP *.test 127.0.0.1")
    try:
        for origin in (f"http://127.0.0.1:{canary_port}", f"http://evil.test:{canary_port}"):
            mark = len(server.requests)
            driver.get(f"{origin}/page/attack")
            driver.set_script_timeout(120)
            found = driver.execute_async_script("window.done.then(arguments[0], (e) => arguments[0]({error: String(e)}))")
            case("the attacker's page can run and read itself", "attacker" in found.pop("reads itself", ""), found)
            for what, read in found.items():
                case(f"{origin.split(':')[1][2:]}: a page that {what} gets nothing", read == "", read)
            case("the frame it made holds nothing of ours", framed_text(driver) == "", framed_text(driver))
            case(f"{origin.split(':')[1][2:]}: and the server did nothing for it", server.since(mark) == [], server.since(mark))
        for form in ("plain", "plainget"):
            mark = len(server.requests)
            driver.get(f"http://evil.test:{canary_port}/page/attack")
            driver.execute_script(f"document.getElementById('{form}').submit()")
            time.sleep(1)
            case(f"a form of another site ({form}) is refused", server.since(mark) == [], server.since(mark))
        driver.get(f"http://rebound.test:{server.port}/")
        case("a page under a rebound name is not served", "chat.js" not in driver.page_source, driver.page_source[:200])
        read = driver.execute_async_script("fetch('/v1/models').then((r) => arguments[0](r.status), () => arguments[0](0))")
        case("and what it asks for is refused", read in (0, 400, 403, 421), read)
    finally:
        driver.quit()


def framed_text(driver):
    """What of ours stands in the frame that the attacker made; a refused page leaves the browser's own error there."""
    try:
        driver.switch_to.frame(driver.find_element(By.TAG_NAME, "iframe"))
        return driver.execute_script("return document.getElementById('message') ? 'the page' : ''")
    except NoSuchFrameException:
        return ""
    finally:
        driver.switch_to.default_content()


def own_page(server, saaz, source):
    with Chat(saaz, source, {}, server.address) as chat:
        chat.js("""window.broken = [];
            document.addEventListener('securitypolicyviolation', (e) => window.broken.push(e.violatedDirective));""")
        chat.say("سلام")
        case("our own page talks with the model", chat.last_answer() != "" and chat.text(".turn:last-child .trouble") in ("", "در بلندترین پاسخ بریده شد"), chat.text(".turn:last-child"))
        case("keeps its policy, with a clean console", chat.js("return window.broken") == [] and chat.console() == [], chat.console())
        font = chat.js("return [...document.fonts].some((f) => f.status === 'loaded')")
        case("and has its font from the program", font is True)


def keyed(saaz, source):
    server = Server(saaz, source, "k-3407")
    own = f"Host: 127.0.0.1:{server.port}"
    case("with a key set, models ask for it", server.raw("GET", "/v1/models", [own]) == 401)
    case("a wrong key is refused", server.raw("GET", "/v1/models", [own, "Authorization: Bearer k-3406"]) == 401)
    case("a key in the address is none", server.raw("GET", "/v1/models?key=k-3407&api_key=k-3407", [own]) == 401)
    with Chat(saaz, source, {}, server.address) as chat:
        case("the page is served without it, and says what is missing", "کلید" in chat.text("#notice"), chat.text("#notice"))
        chat.click("#open-settings")
        chat.find("#key").send_keys("k-3407\t")
        chat.wait(lambda: chat.js("return document.getElementById('model').options.length") > 0)
        chat.click("#close-settings")
        chat.say("سلام")
        case("with the key it talks", chat.last_answer() != "", chat.text(".turn:last-child"))
        stored = chat.js("return JSON.stringify(localStorage) + document.cookie + location.href")
        case("the key is in no storage that outlives the tab", "k-3407" not in stored, stored)
    server.end()


def run(saaz, source, canary, canary_port):
    server = Server(saaz, source)
    raw_requests(server)
    other_pages(server, canary, canary_port)
    own_page(server, saaz, source)
    case("SIGTERM ends the server well", server.end() == 0)
    keyed(saaz, source)
