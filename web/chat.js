// The chat page: a conversation with one model, or with two side by side. Enters: what a person types, what the server
// streams. Leaves: elements, and the conversation in localStorage. The API key lives in sessionStorage.
// Invariant: nothing is sent without the person's act, and to no server but the page's own.

import {ApiError, listModels, streamChat} from './api.js';
import {directionOf, make, onLanguage, startLanguage, t} from './common.js';
import {boundedParameter, conversationFrom, exportJson, exportMarkdown, load, messagesFor, PARAMETERS, save} from './conversation.js';
import {WORDS} from './chat_words.js';
import {TurnsView} from './chat_turns.js';

const at = (id) => document.getElementById(id);
const conversation = load();
const {turns, settings} = conversation;
const running = new Set();  // an AbortController for each answer that is being made
let models = [];

const view = new TurnsView(at('turns'), {copy, edit: editTurn, retry: retryAnswer});

// ---- small things ----

function announce(words) { at('status').textContent = words; }

function warn(words) {
  at('notice').textContent = words;
  at('notice').hidden = words === '';
}

function keep() {
  if (!save(conversation)) warn(t('noStorage'));
}

/** Puts a text on the clipboard, and says so on the button that asked. */
async function copy(text, element) {
  await navigator.clipboard.writeText(text);
  announce(t('copied'));
  if (!element) return;
  const words = element.textContent;
  element.textContent = t('copied');
  setTimeout(() => (element.textContent = words), 1200);
}

function download(name, type, text) {
  const address = URL.createObjectURL(new Blob([text], {type: `${type};charset=utf-8`}));
  const anchor = make('a');
  anchor.href = address;
  anchor.download = name;
  anchor.click();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
}

const log = at('log');
const isAtEnd = () => log.scrollHeight - log.scrollTop - log.clientHeight < 80;
const toEnd = () => log.scrollTo({top: log.scrollHeight});

/** Draws, and follows the end where the reader was there. */
function following(draw) {
  const follows = isAtEnd();
  draw();
  if (follows) toEnd();
  at('latest').hidden = isAtEnd();
}

// ---- asking ----

/** Parameters as the API takes them: what is empty is left to the server. The seed is drawn here, so that it can be shown. */
function sampling() {
  const out = {};
  for (const {name} of PARAMETERS) if (settings.parameters[name] !== '') out[name] = settings.parameters[name];
  if (settings.guard) out.guard = true;
  if (out.seed === undefined) out.seed = crypto.getRandomValues(new Uint32Array(1))[0];
  return out;
}

function wordsOf(error) {
  if (!(error instanceof ApiError)) throw error;
  if (error.message === 'cut') return t('cut');
  if (error.status === 0) return error.message || t('noServer');
  if (error.status === 401) return t('noKey');
  if (error.status === 429 || error.status === 503) return t('busy');
  return t('failed', error.message || String(error.status));
}

/** Has `answer.model` answer the turn, and draws it as it comes. */
async function makeAnswer(turn, answer) {
  const controller = new AbortController(), started = performance.now(), parameters = sampling();
  running.add(controller);
  showRunning();
  Object.assign(answer, {text: '', finish: '', error: '', tokens: null, seconds: null, seed: parameters.seed});
  following(() => view.update(answer));
  let isDrawn = true, finish = 'stopped';
  const draw = () => {
    isDrawn = true;
    following(() => view.update(answer));
  };
  try {
    const messages = messagesFor(turns.slice(0, turns.indexOf(turn) + 1), answer.model, settings.system);
    for await (const part of streamChat({model: answer.model, messages, ...parameters}, sessionKey(), controller.signal)) {
      if (part.finish) finish = part.finish === 'length' ? 'length' : 'stop';
      if (part.tokens !== undefined) answer.tokens = part.tokens;
      if (!part.text) continue;
      answer.text += part.text;
      if (isDrawn) requestAnimationFrame(draw);
      isDrawn = false;
    }
  } catch (error) {
    if (error.name !== 'AbortError') {
      finish = 'error';
      answer.error = wordsOf(error);
    }
  } finally {
    running.delete(controller);
    answer.finish = finish;
    answer.seconds = (performance.now() - started) / 1000;
    following(() => view.update(answer));
    keep();
    showRunning();
    announce(finish === 'error' ? answer.error : finish === 'stop' ? t('ready') : t(finish));
  }
}

const chosen = () => (at('compare').checked && settings.other ? [settings.model, settings.other] : [settings.model]);

function ask(text) {
  warn('');
  if (!settings.model) return warn(t('noModels'));
  const turn = {text, answers: chosen().map((model) => answerOf(model))};
  turns.push(turn);
  at('welcome').hidden = true;
  view.add(turn);
  keep();
  toEnd();
  announce(t('answering'));
  for (const answer of turn.answers) makeAnswer(turn, answer);
}

const answerOf = (model) => ({model, text: '', finish: '', error: '', tokens: null, seconds: null, seed: null});

function editTurn(turn, text) {
  stop();
  turns.length = turns.indexOf(turn);
  view.show(turns);
  ask(text);
  at('message').focus();
}

function retryAnswer(turn, answer) {
  if (running.size === 0 && turn === turns.at(-1)) makeAnswer(turn, answer);
}

function stop() {
  for (const controller of running) controller.abort();
}

function showRunning() {
  const isRunning = running.size > 0, hadFocus = document.activeElement === at('send') || document.activeElement === at('stop');
  at('send').hidden = isRunning;
  at('stop').hidden = !isRunning;
  document.body.classList.toggle('running', isRunning);
  if (hadFocus) at('message').focus();
}

function clear() {
  stop();
  turns.length = 0;
  view.show(turns);
  at('welcome').hidden = false;
  at('latest').hidden = true;
  keep();
  announce(t('cleared'));
  at('message').focus();
}

// ---- models ----

const sessionKey = () => at('key').value.trim();

function fillSelect(select, wanted) {
  const ids = models.map((model) => model.id);
  select.replaceChildren(...models.map(({id, isAdapter}) => {
    const option = make('option', '', isAdapter ? t('adapter', id) : id);
    option.value = id;
    return option;
  }));
  select.disabled = ids.length === 0;
  if (ids.includes(wanted)) select.value = wanted;
  return select.value;
}

/** The models on offer; of two the adapter is chosen, with its base beside it. */
function showModels() {
  const tuned = models.find((model) => model.isAdapter) ?? models[0];
  settings.model = fillSelect(at('model'), settings.model || tuned?.id);
  const base = models.find((model) => !model.isAdapter && model.id !== settings.model) ?? models.find((model) => model.id !== settings.model);
  const other = models.some((model) => model.id === settings.other) ? settings.other : base?.id;
  const shown = fillSelect(at('other'), other);
  if (at('compare').checked) settings.other = shown;
  at('compare').disabled = models.length < 2;
  at('other-field').hidden = !at('compare').checked;
}

async function loadModels() {
  try {
    models = await listModels(sessionKey());
    warn(models.length ? '' : t('noModels'));
  } catch (error) {
    warn(wordsOf(error));
  }
  at('compare').checked = settings.other !== '' && models.length > 1;
  showModels();
}

// ---- settings ----

function parameterField(parameter) {
  const field = make('input');
  Object.assign(field, {type: 'number', id: `parameter-${parameter.name}`, min: parameter.min, max: parameter.max, step: parameter.step, dir: 'ltr'});
  field.value = settings.parameters[parameter.name];
  field.addEventListener('change', () => {
    settings.parameters[parameter.name] = boundedParameter(parameter, field.value);
    field.value = settings.parameters[parameter.name];
    keep();
  });
  const label = make('label', '', t(parameter.name), ' ', make('small', 'muted', t(parameter.name + 'Hint')));
  label.htmlFor = field.id;
  return make('div', 'parameter', label, field);
}

function showSettings() {
  at('parameters').replaceChildren(...PARAMETERS.map(parameterField));
  at('guard').checked = settings.guard;
  at('system').value = settings.system;
  at('system').dir = directionOf(settings.system) || document.documentElement.dir;
}

function openSettings(isOpen) {
  at('settings').hidden = !isOpen;
  at('open-settings').setAttribute('aria-expanded', String(isOpen));
  (isOpen ? at('close-settings') : at('open-settings')).focus();
}

const exportName = () => `saaz-${new Date().toISOString().slice(0, 19).replace(/[:T]/g, '-')}`;

// ---- the message box and the keys ----

const box = at('message');

function directBox() {
  box.dir = directionOf(box.value) || document.documentElement.dir;
  box.rows = Math.min(box.value.split('\n').length, 8);
}

function sendBox() {
  if (running.size || !box.value.trim()) return;
  const text = box.value;
  box.value = '';
  directBox();
  ask(text);
}

function onBoxKey(event) {
  if (event.isComposing) return;
  if (event.key === 'Enter' && !event.shiftKey) {
    event.preventDefault();
    sendBox();
  } else if (event.key === 'ArrowUp' && box.value === '' && running.size === 0 && view.editLast()) {
    event.preventDefault();
  }
}

const SHORTCUTS = {
  KeyR: () => turns.length && retryAnswer(turns.at(-1), turns.at(-1).answers[0]),
  KeyC: () => turns.length && copy(turns.at(-1).answers[0].text),
  KeyP: () => openSettings(at('settings').hidden),
  KeyN: () => turns.length && at('ask-clear').showModal(),
};
const KEYS = [['Enter', 'keySend'], ['Shift+Enter', 'keyLine'], ['Esc', 'keyStop'], ['↑', 'keyEdit'], ['Alt+R', 'keyRetry'],
              ['Alt+C', 'keyCopy'], ['Alt+P', 'keySettings'], ['Alt+N', 'keyNew'], ['/', 'keyFocus'], ['?', 'keyHelp']];

function onKey(event) {
  const isTyping = event.target.matches('input, textarea, select');
  if (document.querySelector('dialog[open]') || event.isComposing) return;
  if (event.altKey && !event.ctrlKey && !event.metaKey && SHORTCUTS[event.code]) SHORTCUTS[event.code]();
  else if (event.key === 'Escape' && running.size) stop();
  else if (event.key === 'Escape' && !at('settings').hidden) openSettings(false);
  else if (!isTyping && event.key === '/') box.focus();
  else if (!isTyping && (event.key === '?' || event.key === '؟')) at('keys').showModal();
  else return;
  event.preventDefault();
}

// ---- start ----

function showWords() {
  document.title = t('page');
  log.setAttribute('aria-label', t('log'));
  box.placeholder = t('write');
  at('settings').setAttribute('aria-label', t('settings'));
  at('key-list').replaceChildren(...KEYS.flatMap(([key, word]) => [make('dt', '', make('kbd', '', key)), make('dd', '', t(word))]));
  view.show(turns);
  showModels();
  showSettings();
  directBox();
}

function listen() {
  at('composer').addEventListener('submit', (event) => {
    event.preventDefault();
    sendBox();
  });
  box.addEventListener('keydown', onBoxKey);
  box.addEventListener('input', directBox);
  document.addEventListener('keydown', onKey);
  log.addEventListener('scroll', () => (at('latest').hidden = isAtEnd()), {passive: true});
  const clicks = {
    stop, latest: toEnd,
    new: () => (turns.length ? at('ask-clear').showModal() : box.focus()),
    clear: () => at('ask-clear').showModal(),
    'open-settings': () => openSettings(at('settings').hidden),
    'close-settings': () => openSettings(false),
    'open-keys': () => at('keys').showModal(),
    'export-json': () => download(`${exportName()}.json`, 'application/json', exportJson(conversation)),
    'export-markdown': () => download(`${exportName()}.md`, 'text/markdown', exportMarkdown(conversation, {title: t('page'), system: t('system'), user: t('you')})),
    reset: () => {
      settings.parameters = conversationFrom({}).settings.parameters;
      settings.guard = false;
      showSettings();
      keep();
    },
  };
  for (const [id, act] of Object.entries(clicks)) at(id).addEventListener('click', act);
  at('ask-clear').addEventListener('close', () => at('ask-clear').returnValue === 'clear' && clear());
  at('model').addEventListener('change', () => {
    settings.model = at('model').value;
    showModels();
    keep();
  });
  at('other').addEventListener('change', () => {
    settings.other = at('other').value;
    keep();
  });
  at('compare').addEventListener('change', () => {
    settings.other = at('compare').checked ? at('other').value : '';
    showModels();
    keep();
  });
  at('guard').addEventListener('change', () => {
    settings.guard = at('guard').checked;
    keep();
  });
  at('system').addEventListener('input', () => {
    settings.system = at('system').value;
    at('system').dir = directionOf(settings.system) || document.documentElement.dir;
    keep();
  });
  at('key-form').addEventListener('submit', (event) => event.preventDefault());
  at('key').addEventListener('change', () => {
    try {
      sessionStorage.setItem('saaz-key', sessionKey());
    } catch { /* a page without storage forgets */ }
    loadModels();
  });
}

/** The key of this tab, if one was given. */
function recallKey() {
  try {
    at('key').value = sessionStorage.getItem('saaz-key') ?? '';
  } catch { /* as above */ }
}

startLanguage(WORDS);
onLanguage(showWords);
recallKey();
listen();
at('welcome').hidden = turns.length > 0;
showWords();
loadModels();
toEnd();
box.focus();
