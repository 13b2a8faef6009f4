#!/usr/bin/python3
"""The chat page in a real browser, against a server that says what it is told (fake_openai.py).

  chat_test.py SAAZ SOURCE_DIR [SCREENSHOTS]     one line a case; status 1 when any differs

A Persian conversation with lists, tables, code and mixed text: directions, streaming without jumps, stop, retry, edit,
compare, copy, export, keyboard, labels, a phone's width, both languages, a server that fails. SAAZ only tells where the
build keeps the packed fonts. hostile_test.py has what attackers try.
"""

import json
import pathlib
import re
import sys
import tempfile
import time

from chat_browser import Chat, case, finish
from selenium.webdriver.common.keys import Keys

SOURCE = pathlib.Path(sys.argv[2])
SHOTS = pathlib.Path(sys.argv[3]) if len(sys.argv) > 3 else None
ANSWERS = json.loads((SOURCE / "tests/web/chat_answers.json").read_text())
PYTHON, CAPITAL, POEM = ANSWERS["answers"]


def shoot(chat, name, width, height, scale=1):
    if not SHOTS:
        return
    chat.size(width, height, scale)
    time.sleep(0.3)
    chat.driver.save_screenshot(str(SHOTS / f"{name}.png"))


def directions(chat):
    chat.say(PYTHON)
    text = ".turn:last-child .answer .text"
    found = chat.js(f"""return [...document.querySelectorAll('{text} > *')].map(
        (e) => [e.tagName.toLowerCase(), e.className, e.dir, getComputedStyle(e).direction])""")
    kinds = [row[0] for row in found]
    case("every kind of block is there", kinds == ["h4", "p", "p", "ol", "blockquote", "div", "p", "div", "p", "p"], kinds)
    case("Persian blocks run right to left", all(row[3] == "rtl" for row in found[:7]), found)
    case("code runs left to right", found[7][3] == "ltr" and found[7][1] == "code-block", found[7])
    case("an English block runs left to right", found[9][3] == "ltr", found[9])
    inline = chat.js(f"""return [...document.querySelectorAll('{text} :is(code, bdi)')].map(
        (e) => [e.textContent, getComputedStyle(e).direction, getComputedStyle(e).unicodeBidi])""")
    case("code and terms are isolated", all(d == "ltr" and b == "isolate" for _, d, b in inline), inline)
    words = [row[0] for row in inline]
    case("C++, .NET, -5 and 3 + 4 + 5 = 12 are not torn apart",
         all(w in words for w in ("C++", ".NET", "-5", "3 + 4 + 5 = 12")), words)
    case("the nested list is nested", chat.count(f"{text} > ol > li > ul > li") == 3)
    edges = chat.js(f"""return [...document.querySelectorAll('{text} ol ul p')].map((e) => {{
        const range = document.createRange(); range.selectNodeContents(e);
        return Math.round(range.getBoundingClientRect().right);}})""")
    case("items of a right-to-left list line up, whatever they begin with", len(set(edges)) == 1, edges)
    case("the table has its rows", chat.count(f"{text} table tr") == 4)
    cells = chat.js(f"return [...document.querySelectorAll('{text} thead th')].map((e) => e.getBoundingClientRect().left)")
    case("the first column of a Persian table is the rightmost", cells == sorted(cells, reverse=True), cells)
    link = chat.js(f"const a = document.querySelector('{text} a'); return [a.href, a.rel, a.target, a.nextElementSibling.textContent]")
    case("a link shows its target", link[0] == link[3] == "https://docs.python.org/3/tutorial/" and "noopener" in link[1], link)
    case("ids of the turns are what was asked", chat.asked()[-1]["messages"] == [{"role": "user", "content": PYTHON}])
    font = chat.js("return document.fonts.check('16px \"Noto Sans Arabic\"', 'س') && [...document.fonts].some((f) => f.status === 'loaded')")
    case("the embedded font is in use", font is True)
    shoot(chat, "chat-fa", 1000, 1230)


def streams_without_jumps(chat):
    chat.control(pause=0.004, letters=1)
    chat.js("""window.seen = [];
        new MutationObserver(() => {
          const row = [...document.querySelectorAll('.turn:last-child .answer .text > *')].map((e) => e.dir);
          if (JSON.stringify(row) !== JSON.stringify(window.seen.at(-1))) window.seen.push(row);
        }).observe(document.getElementById('turns'), {subtree: true, childList: true, attributes: true});""")
    chat.say("`ls` را توضیح بده", seconds=0)
    time.sleep(0.1)
    chat.wait_end()
    chat.say(PYTHON)
    seen = chat.js("return window.seen")
    jumps = [(a, b) for a, b in zip(seen, seen[1:]) if len(b) >= len(a) and b[:len(a)] != a and a != [""]]
    case("while an answer grows no block changes its direction", len(seen) > 5 and not jumps, jumps[:3])
    chat.control(pause=0, letters=3)


def stops_and_retries(chat):
    chat.control(pause=0.05)
    chat.say(PYTHON, seconds=0)
    chat.wait(lambda: "پایتون" in chat.last_answer())
    case("while it runs there is a stop button and no send button", chat.shown("#stop") and not chat.shown("#send"))
    chat.find("#message").send_keys(Keys.ESCAPE)
    chat.wait_end()
    case("Esc stops the answer, what came stays", 3 < len(chat.last_answer()) < 200 and "متوقف" in chat.text(".turn:last-child .trouble"))
    chat.control(pause=0)
    chat.click(".turn:last-child .answer .actions button:nth-child(2)")
    chat.wait_end()
    case("again answers the same message anew", "This paragraph is in English" in chat.last_answer())
    case("only the last turn can be answered again", not chat.shown(".turn:first-child .answer .actions button:nth-child(2)"))


def edits(chat):
    before = chat.count(".turn")
    chat.find("#message").send_keys(Keys.ARROW_UP)
    box = chat.driver.switch_to.active_element
    case("the arrow up in an empty box edits the last message", box.get_attribute("value") == PYTHON)
    chat.set_value(box, POEM)
    box.send_keys(Keys.ENTER)
    chat.wait_end()
    case("an edited message replaces its turn", chat.count(".turn") == before and "ساقی" in chat.last_answer())
    case("verses keep their lines", chat.count(".turn:last-child .answer p br") == 2)
    marker = chat.js("return getComputedStyle(document.querySelector('.turn:last-child .answer ol')).listStyleType")
    case("a list numbered in Persian keeps Persian digits", marker == "persian", marker)


def compares(chat):
    chat.click("#compare")
    chat.say(CAPITAL)
    models = chat.js("return [...document.querySelectorAll('.turn:last-child .who')].map((e) => e.textContent)")
    case("two models answer side by side", models == ["persian-gk", "gemma-3-270m-it"], models)
    boxes = chat.js("return [...document.querySelectorAll('.turn:last-child .answer')].map((e) => e.getBoundingClientRect().top)")
    case("side by side means at one height", boxes[0] == boxes[1], boxes)
    asked = chat.asked()[-2:]
    case("both were asked the same", asked[0]["messages"] == asked[1]["messages"] and {a["model"] for a in asked} == set(models))
    chat.size(1000, 620)
    chat.js("document.querySelector('.turn:last-child').scrollIntoView()")
    shoot(chat, "chat-compare-fa", 1000, 620)
    chat.size(1000, 900)
    chat.click("#compare")


def keeps(chat):
    turns = chat.count(".turn")
    chat.driver.refresh()
    chat.wait(lambda: chat.count(".turn") == turns)
    case("a reload keeps the conversation", chat.count(".turn") == turns)
    case("and asks nothing", chat.count(".turn .open") == 0)


def copies_and_exports(chat):
    chat.driver.execute_cdp_cmd("Browser.grantPermissions", {"permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"]})
    chat.click(".turn:last-child .answer .actions button")
    copied = chat.driver.execute_async_script("navigator.clipboard.readText().then(arguments[0], (e) => arguments[0](String(e)))")
    case("copy takes the answer's own Markdown", copied == ANSWERS["answers"][CAPITAL]["persian-gk"], copied)
    with tempfile.TemporaryDirectory() as folder:
        chat.driver.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": folder})
        chat.click("#open-settings")
        for kind in ("json", "markdown"):
            chat.click(f"#export-{kind}")
        chat.wait(lambda: len([p for p in pathlib.Path(folder).iterdir() if p.suffix in (".json", ".md")]) == 2)
        files = {p.suffix: p.read_text() for p in pathlib.Path(folder).iterdir()}
    rows = json.loads(files.get(".json", "[]"))
    case("the JSON export has a conversation for each model", [r["model"] for r in rows] == ["persian-gk", "gemma-3-270m-it"], rows[:1])
    roles = [m["role"] for m in rows[0]["messages"]]
    case("its roles take turns", roles == ["user", "assistant"] * (len(roles) // 2) and roles, roles)
    case("the Markdown export has messages and answers", PYTHON in files[".md"] and "| ویژگی | پایتون | C++ |" in files[".md"])
    controls = re.compile("[\u200e\u200f\u202a-\u202e\u2066-\u2069]")
    case("exports hold no marks of direction", not any(controls.search(t) for t in files.values()))
    chat.click("#close-settings")


def has_settings(chat):
    chat.find("#message").send_keys(Keys.ALT + "p" + Keys.NULL)
    case("Alt+P opens the settings", chat.shown("#settings"))
    for name, value in {"temperature": "0.2", "top_p": "0.5", "top_k": "5", "min_p": "0.05", "repetition_penalty": "1.1",
                        "max_tokens": "77", "seed": "42"}.items():
        field = chat.find(f"#parameter-{name}")
        field.clear()
        field.send_keys(value, Keys.TAB)
    chat.find("#system").send_keys("کوتاه پاسخ بده")
    chat.click("#guard")
    chat.find("#parameter-temperature").clear()
    chat.find("#parameter-temperature").send_keys("99", Keys.TAB)
    case("a value beyond its limits is brought back", chat.find("#parameter-temperature").get_attribute("value") == "2")
    chat.click("#close-settings")
    chat.say("سلام")
    asked = chat.asked()[-1]
    wanted = {"temperature": 2, "top_p": 0.5, "top_k": 5, "min_p": 0.05, "repetition_penalty": 1.1, "max_tokens": 77, "seed": 42,
              "guard": True}
    case("every parameter goes to the server", {k: asked.get(k) for k in wanted} == wanted, asked)
    case("the system text comes first", asked["messages"][0] == {"role": "system", "content": "کوتاه پاسخ بده"})
    chat.click("#open-settings")
    chat.click("#reset")
    chat.set_value(chat.find("#system"), "")
    chat.click("#close-settings")


def speaks_both_languages(chat):
    chat.click("#open-settings")
    chat.click("[data-language=en]")
    case("English: the page runs left to right", chat.js("return [document.documentElement.dir, document.documentElement.lang]") == ["ltr", "en"])
    case("English: words are English", chat.text("#send") == "Send")
    case("English: Persian answers stay right to left",
         chat.js("return getComputedStyle(document.querySelector('.answer .text > p')).direction") == "rtl")
    chat.click("#close-settings")
    chat.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": "dark"}]})
    chat.js("document.getElementById('log').scrollTop = 0")
    shoot(chat, "chat-en-dark", 1000, 620)
    chat.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    chat.click("#open-settings")
    chat.click("[data-language=fa]")
    chat.click("#close-settings")
    same = chat.driver.execute_async_script("""import('/assets/chat_words.js').then(({WORDS}) => arguments[0](
        [Object.keys(WORDS.en).filter((k) => !WORDS.fa[k]), Object.keys(WORDS.fa).filter((k) => !WORDS.en[k])]))""")
    case("both languages have every word", same == [[], []], same)


def is_accessible(chat):
    unnamed = chat.js("""return [...document.querySelectorAll('button, input, select, textarea, a')].filter((e) =>
        e.checkVisibility() && !e.textContent.trim() && !e.getAttribute('aria-label') && !(e.labels && e.labels.length)).map((e) => e.outerHTML)""")
    case("every control has a name", not unnamed, unnamed)
    log = chat.js("const e = document.getElementById('log'); return [e.getAttribute('role'), e.getAttribute('aria-live'), e.getAttribute('aria-label')]")
    case("the conversation is a polite log", log == ["log", "polite", "گفت‌وگو"], log)
    case("finished answers are announced", chat.text("#status") != "")
    chat.js("document.querySelector('.skip').focus()")
    order = ["skip"]
    for _ in range(5):
        chat.driver.switch_to.active_element.send_keys(Keys.TAB)
        order.append(chat.js("return document.activeElement.id || document.activeElement.className"))
    case("Tab goes through the page in reading order", order == ["skip", "model", "compare", "new", "open-settings", "log"], order)
    chat.js("document.activeElement.blur()")
    chat.find("body").send_keys("?")
    case("? lists the keys", chat.shown("#keys") and chat.count("#key-list dt") == 10)
    chat.find("#keys").send_keys(Keys.ESCAPE)
    chat.find("body").send_keys("/")
    case("/ goes to the message box", chat.js("return document.activeElement.id") == "message")
    chat.find("#message").send_keys("یک", Keys.SHIFT + Keys.ENTER + Keys.NULL, "دو")
    case("Shift+Enter starts a new line", chat.find("#message").get_attribute("value") == "یک\nدو")
    chat.set_value(chat.find("#message"), "")


def fits_a_phone(chat):
    chat.size(360, 740, 2)
    time.sleep(0.3)
    wide = chat.js("return [document.documentElement.scrollWidth, document.getElementById('log').scrollWidth, innerWidth]")
    case("nothing is wider than 360 px", max(wide) == 360, wide)
    chat.js("document.getElementById('log').scrollTop = 0")
    shoot(chat, "chat-phone-fa", 360, 740)
    chat.click("#open-settings")
    box = chat.js("const r = document.getElementById('settings').getBoundingClientRect(); return [r.left, r.width]")
    case("the settings cover a phone", box == [0, 360], box)
    chat.click("#close-settings")
    chat.size(1000, 900)


def survives_trouble(chat):
    case("the console is clean, and the page broke no rule of its policy", chat.console() == [], chat.console())
    chat.control(refuse="max_tokens must be at least 1")
    chat.say("سلام")
    case("a refusal is shown with the server's words", "max_tokens must be at least 1" in chat.text(".turn:last-child .trouble"))
    chat.control(refuse=None, cut=True)
    chat.click(".turn:last-child .answer .actions button:nth-child(2)")
    chat.wait_end()
    case("an answer that breaks off says so and stays", "نیمه‌کاره" in chat.text(".turn:last-child .trouble") and "سلام" in chat.last_answer())
    chat.control(cut=False)
    chat.click(".turn:last-child .answer .actions button:nth-child(2)")
    chat.wait_end()
    case("and can be asked again", chat.text(".turn:last-child .trouble") == "")
    chat.say("فقط این👩‍👩‍👧")
    case("letters of several code points arrive whole", "👩‍👩‍👧" in chat.last_answer())


def clears(chat):
    chat.click("#new")
    case("a new chat asks first", chat.shown("#ask-clear"))
    chat.click("#ask-clear button[value=clear]")
    chat.wait(lambda: chat.count(".turn") == 0)
    stored = json.loads(chat.js("return localStorage.getItem('saaz-chat')"))
    case("clearing empties the page and what was kept", chat.count(".turn") == 0 and stored["turns"] == [] and chat.shown("#welcome"))


def main():
    with Chat(sys.argv[1], SOURCE, ANSWERS) as chat:
        for part in (directions, streams_without_jumps, stops_and_retries, edits, compares, keeps, copies_and_exports, has_settings,
                     speaks_both_languages, is_accessible, fits_a_phone, survives_trouble, clears):
            part(chat)
    finish()


main()
