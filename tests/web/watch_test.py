#!/usr/bin/python3
"""The dashboard in a real browser: what a person sees while a run trains and afterwards.
  watch_test.py SAAZ SOURCE_DIR [SCREENSHOTS]     one line a case; status 1 when any differs
Runs the tiny model of `saaz try` with the dashboard on, opens it in headless Chromium, and checks live updates, a
reload, a foreign run, two runs, both languages, a phone's width, and that nothing is blocked or logged as an error."""
import json
import pathlib
import re
import subprocess
import sys
import tempfile
import time

from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By

SAAZ, SOURCE = sys.argv[1], pathlib.Path(sys.argv[2])
SHOTS = pathlib.Path(sys.argv[3]) if len(sys.argv) > 3 else None
failed = 0


def case(what, is_right, found=''):
    global failed
    print(f"{'ok     ' if is_right else 'FAILED '} {what}" + ('' if is_right else f': {found}'), flush=True)
    failed += not is_right


def browser(width=1280, height=1600):
    options = webdriver.ChromeOptions()
    for argument in ('--headless=new', '--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage', '--force-device-scale-factor=1',
                     f'--window-size={width},{height}', '--lang=en'):
        options.add_argument(argument)
    options.set_capability('goog:loggingPrefs', {'browser': 'ALL'})
    return webdriver.Chrome(service=Service('/usr/bin/chromedriver'), options=options)


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if (found := condition()):
                return found
        except Exception:  # the page is being drawn
            pass
        time.sleep(0.1)
    return None


def serve(*arguments):
    """Starts saaz and returns it with the address it serves at."""
    process = subprocess.Popen([SAAZ, *arguments], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    for line in process.stderr:
        if (address := re.search(r'dashboard: (http://\S+)', line)):
            return process, address[1]
    raise SystemExit(f'no dashboard: {arguments}')


def drain(process):
    """Lets a process end although nobody reads its log."""
    import threading
    threading.Thread(target=process.stderr.read, daemon=True).start()


def tile(page, key):
    return page.find_element(By.CSS_SELECTOR, f'#tiles [data-key={key}]').text


def step_of(page):
    return int(page.find_element(By.TAG_NAME, 'body').get_attribute('data-step') or -1)


def is_drawn(page, canvas):
    """Whether a chart has more than one colour on it."""
    return page.execute_script(
        "const c = document.getElementById(arguments[0]); if (!c.width) return false;"
        "const p = c.getContext('2d').getImageData(0, 0, c.width, c.height).data; const seen = new Set();"
        "for (let i = 0; i < p.length; i += 4) if (p[i + 3]) seen.add((p[i] << 16) | (p[i + 1] << 8) | p[i + 2]);"
        "return seen.size > 2;", canvas)


def overflow(page):
    return page.execute_script('return document.documentElement.scrollWidth - document.documentElement.clientWidth')


def shot(page, name):
    if SHOTS:
        SHOTS.mkdir(parents=True, exist_ok=True)
        page.save_screenshot(str(SHOTS / f'{name}.png'))


def train_flags(out, steps, *more):
    data = SOURCE / 'data/try'
    settings = {'model.base': data / 'model', 'data.train': data / 'train.jsonl', 'data.validation.file': data / 'valid.jsonl',
                'output.dir': out, 'train.max_steps': steps, 'eval.every_steps': 20, 'eval.probes': 'default-fa', 'output.save_steps': 50}
    flags = ['train', str(data / 'recipe.yaml')]
    for key, value in settings.items():
        flags += ['--set', f'{key}={value}']
    return [*flags, *more]


def foreign_run(folder):
    state = {'global_step': 40, 'max_steps': 40, 'epoch': 1.0, 'log_history': []}
    for step in range(1, 41):
        state['log_history'].append({'epoch': step / 40, 'grad_norm': 2.0 / step, 'learning_rate': 2e-5, 'loss': 8 / step ** 0.5, 'step': step})
    state['log_history'].append({'epoch': 1.0, 'eval_loss': 1.5, 'step': 40})
    (folder / 'checkpoint-40').mkdir(parents=True)
    (folder / 'checkpoint-40/trainer_state.json').write_text(json.dumps(state))


def main():
    work = pathlib.Path(tempfile.mkdtemp(prefix='saaz-web-'))
    page = browser()
    errors = []

    def open_page(address):
        page.get(address)
        page.execute_script("window.violations = []; document.addEventListener('securitypolicyviolation', (e) => violations.push(e.violatedDirective + ' ' + e.blockedURI))")

    def collect():
        # Chromium's advice about reading a canvas is for is_drawn above, not for the page.
        errors.extend(e['message'] for e in page.get_log('browser')
                      if e['level'] in ('SEVERE', 'WARNING') and 'willReadFrequently' not in e['message'])
        errors.extend(page.execute_script('return window.violations ?? []'))

    # A run that trains.
    process, address = serve(*train_flags(work / 'first', 160), '--watch=127.0.0.1:0')
    drain(process)
    open_page(address + '/?lang=en')
    first = wait_for(lambda: step_of(page) >= 2 and step_of(page))
    case('the page shows updates', first is not None, page.page_source[:300])
    later = wait_for(lambda: step_of(page) > first and step_of(page))
    case('it goes on by itself', later is not None)
    case('the state is told', 'training' in page.find_element(By.ID, 'status').text, page.find_element(By.ID, 'status').text)
    case('the time left is told', re.search(r'\d', tile(page, 'left')) is not None, tile(page, 'left'))
    for canvas in ('loss', 'grad_norm', 'learning_rate', 'tokens_per_s'):
        case(f'the chart {canvas} is drawn', wait_for(lambda: is_drawn(page, canvas), 10) is not None)
    case('the probes are shown', wait_for(lambda: len(page.find_elements(By.CSS_SELECTOR, '#answers .answer')) == 8) is not None)
    prompt = page.find_element(By.CSS_SELECTOR, '#answers .answer p')
    case('a Persian prompt reads from right to left', prompt.value_of_css_property('direction') == 'rtl')
    case('training rows are shown', len(page.find_elements(By.CSS_SELECTOR, '#rows .sample')) == 3)
    case('what is trained on is marked', len(page.find_elements(By.CSS_SELECTOR, '#rows .turn.trained')) >= 3)
    before = step_of(page)
    page.refresh()
    case('a reload shows everything again', wait_for(lambda: step_of(page) >= before and is_drawn(page, 'loss'), 15) is not None, step_of(page))
    shot(page, 'dashboard-live-en')
    case('the end is told', wait_for(lambda: page.find_element(By.ID, 'status').text == 'finished', 180) is not None,
         page.find_element(By.ID, 'status').text)
    case('all updates came', step_of(page) == 160, step_of(page))
    case('the server has said goodbye', wait_for(lambda: 'has ended' in page.find_element(By.ID, 'connection').text, 10) is not None)
    collect()
    case('training ends as without viewers', process.wait(60) == 0, process.returncode)

    # Finished, in Persian.
    process, address = serve('watch', str(work / 'first'), '--listen', '127.0.0.1:0')
    drain(process)
    open_page(address + '/?lang=fa')
    case('a finished run is shown', wait_for(lambda: step_of(page) == 160 and is_drawn(page, 'loss')) is not None)
    case('the page is Persian and right to left', page.find_element(By.TAG_NAME, 'html').value_of_css_property('direction') == 'rtl'
         and page.find_element(By.ID, 'status').text == 'پایان یافته', page.find_element(By.ID, 'status').text)
    case('figures have Persian digits', '۱۶۰' in tile(page, 'step'), tile(page, 'step'))
    case('the recipe stays left to right', page.execute_script("return getComputedStyle(document.getElementById('recipe_text')).direction") == 'ltr')
    case('the font came with the page', page.execute_script("return document.fonts.check('16px \"Noto Sans Arabic\"', 'سلام')"))
    shot(page, 'dashboard-fa')
    page.execute_script("const r = document.getElementById('round'); r.value = 0; r.dispatchEvent(new Event('input'))")
    case('earlier answers can be looked at', wait_for(lambda: page.find_element(By.ID, 'round_text').text == 'پیش از آموزش', 10) is not None)
    page.find_element(By.CSS_SELECTOR, '[data-language=en]').click()
    case('the language is changed on the page', wait_for(lambda: page.find_element(By.ID, 'status').text == 'finished', 10) is not None)
    collect()
    page.set_window_size(500, 900)
    page.execute_cdp_cmd('Emulation.setDeviceMetricsOverride', {'width': 360, 'height': 780, 'deviceScaleFactor': 1, 'mobile': True})
    for language in ('fa', 'en'):
        open_page(f'{address}/?lang={language}')
        wait_for(lambda: is_drawn(page, 'loss'))
        case(f'nothing is wider than a phone ({language})', overflow(page) <= 0, overflow(page))
        shot(page, f'dashboard-phone-{language}')
    page.execute_cdp_cmd('Emulation.clearDeviceMetricsOverride', {})
    page.set_window_size(1280, 1600)
    collect()
    process.terminate()
    case('watch ends quietly on a signal', process.wait(10) == 0, process.returncode)

    # A foreign run beside ours, and another of ours.
    foreign_run(work / 'trainer')
    subprocess.run([SAAZ, '--quiet', *train_flags(work / 'second', 60, '--set', 'train.learning_rate=1e-3')], check=True)
    process, address = serve('watch', str(work / 'first'), str(work / 'second'), str(work / 'trainer'), '--listen', '127.0.0.1:0')
    drain(process)
    open_page(address + '/?lang=en')
    case('three runs are shown', wait_for(lambda: len(page.find_elements(By.CSS_SELECTOR, '#runs button')) == 3) is not None)
    wait_for(lambda: is_drawn(page, 'loss'))
    rows = {row.find_elements(By.TAG_NAME, 'td')[0].text: [cell.text for cell in row.find_elements(By.TAG_NAME, 'td')[1:]]
            for row in page.find_elements(By.CSS_SELECTOR, '#comparison tr')[1:]}
    case('what differs in the recipes is told', rows.get('train.learning_rate') == ['0.003', '0.001', '–'], rows)
    case('what is the same is not', 'train.seed' not in rows, rows)
    shot(page, 'dashboard-compare-en')
    page.find_elements(By.CSS_SELECTOR, '#runs button')[2].click()
    case('a Trainer’s run is shown', wait_for(lambda: 'Hugging Face' in page.find_element(By.ID, 'status').text and step_of(page) == 40, 10) is not None)
    shot(page, 'dashboard-foreign-en')
    collect()
    case('nothing was blocked or logged as an error', not errors, errors)
    process.terminate()
    process.wait(10)
    page.quit()
    sys.exit(1 if failed else 0)


main()
