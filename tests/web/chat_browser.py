"""What the tests of the chat page share: a browser on the page, a server to talk to, and counting of cases."""

import json
import pathlib
import sys
import time
import urllib.request

import fake_openai
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

failed = passed = 0


def case(what, is_right, found=""):
    """One line; `found` tells what there was instead."""
    global failed, passed
    print(f"{'ok     ' if is_right else 'FAILED '} {what}" + ("" if is_right else f": {str(found)[:600]}"), flush=True)
    failed += not is_right
    passed += bool(is_right)


def finish():
    print(f"{passed} passed, {failed} failed")
    sys.exit(failed > 0)


def new_browser(*more):
    options = webdriver.ChromeOptions()
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars",
                     "--force-device-scale-factor=1", "--window-size=1000,900", "--lang=en", *more):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    return webdriver.Chrome(service=Service("/usr/bin/chromedriver"), options=options)


class Chat:
    """A browser on the chat page. Without `address` a fake server serves it."""

    def __init__(self, saaz, source, script, address=None):
        self.server = None
        if address is None:
            fonts = pathlib.Path(saaz).resolve().parent / "web"
            self.fake, self.server, address = fake_openai.serve(source / "web", fonts, script)
        self.address = address
        self.driver = new_browser()
        self.logged = []
        self.open()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.driver.quit()
        if self.server:
            self.server.shutdown()

    def open(self, query="?lang=fa"):
        self.driver.get(f"{self.address}/{query}")
        self.wait(lambda: self.js("return document.getElementById('model').options.length > 0 || !document.getElementById('notice').hidden"))

    def js(self, script):
        return self.driver.execute_script(script)

    def find(self, selector):
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def click(self, selector):
        self.find(selector).click()

    def count(self, selector):
        return len(self.driver.find_elements(By.CSS_SELECTOR, selector))

    def text(self, selector):
        return self.js(f"return document.querySelector({json.dumps(selector)}).textContent")

    def shown(self, selector):
        return all(e.is_displayed() for e in self.driver.find_elements(By.CSS_SELECTOR, selector)) and self.count(selector) > 0

    def set_value(self, element, text):
        """ChromeDriver cannot type everything that a person can."""
        self.driver.execute_script("""arguments[0].value = arguments[1];
            arguments[0].dispatchEvent(new Event('input', {bubbles: true}))""", element, text)

    def size(self, width, height, scale=1):
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride",
                                    {"width": width, "height": height, "deviceScaleFactor": scale, "mobile": width < 500})

    def wait(self, condition, seconds=20):
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end:
                return False
            time.sleep(0.02)
        return True

    def wait_end(self, seconds=60):
        time.sleep(0.05)
        self.wait(lambda: not self.js("return document.body.classList.contains('running')"), seconds)

    def say(self, text, seconds=60):
        """Sends a message, and waits for the answers unless `seconds` is 0."""
        box = self.find("#message")
        self.set_value(box, text)
        box.send_keys(Keys.ENTER)
        if seconds:
            self.wait_end(seconds)

    def last_answer(self):
        return self.text(".turn:last-child .answer .text")

    def control(self, **values):
        self.fake.script |= values

    def asked(self):
        return self.fake.asked

    def console(self):
        """Warnings, errors and broken rules since the start."""
        self.logged += [row for row in self.driver.get_log("browser") if row["level"] not in ("DEBUG", "INFO")]
        return self.logged
