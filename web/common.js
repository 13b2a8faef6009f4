// What the pages share: the language of the interface (fa or en), the direction of a text, numbers. Enters: texts of
// models and people, which are only ever set as text, never as markup. Leaves: elements with a direction of their own.
// Invariant: the direction of a block comes from its first strong letter of prose, not from the interface.

const RTL = /[\u0591-\u08ff\ufb1d-\ufdff\ufe70-\ufefc]/;
const STRONG = /\p{L}/u;
// Code, LaTeX and addresses are no prose: they do not decide a direction.
const NO_PROSE = /```[^]*?(?:```|$)|`[^`\n]*`|\$[^$\n]+\$|https?:\/\/\S+|[\w.+-]+@[\w-]+\.[\w.]+/g;

/** 'rtl' or 'ltr' by the first strong letter outside code and addresses; '' when there is none. */
export function directionOf(text) {
  for (const letter of text.replace(NO_PROSE, ' ')) {
    if (STRONG.test(letter)) return RTL.test(letter) ? 'rtl' : 'ltr';
  }
  return '';
}

/** Sets an element's text and its direction; without a strong letter the direction is left to the surroundings. */
export function setText(element, text) {
  element.textContent = text;
  const direction = directionOf(text);
  if (direction) element.dir = direction;
  else element.removeAttribute('dir');
  return element;
}

/** A new element: make('p', 'muted', 'text'), or make('div', 'row', child, child). Strings become text. */
export function make(tag, className, ...children) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  element.append(...children);
  return element;
}

/** Turns `code` in a paragraph's text into elements. */
function withCode(paragraph) {
  const parts = paragraph.textContent.split(/`([^`\n]+)`/);
  if (parts.length > 1) paragraph.replaceChildren(...parts.map((part, i) => i % 2 ? make('code', '', part) : part));
  return paragraph;
}

/** Plain text as blocks, each with its own direction; fenced code becomes a <pre>. */
export function renderBlocks(container, text) {
  container.replaceChildren();
  for (const part of text.split(/(```[^]*?(?:```|$))/)) {
    if (part.startsWith('```')) {
      const code = make('pre', '', part.replace(/^```[^\n]*\n?/, '').replace(/\n?```$/, ''));
      code.dir = 'ltr';
      container.append(code);
      continue;
    }
    for (const line of part.split('\n')) {
      if (line.trim()) container.append(withCode(setText(make('p'), line)));
    }
  }
  return container;
}

// ---- language of the interface ----

let dictionaries = {en: {}, fa: {}};
let current = 'en';
const listeners = [];

/** The language in force: 'fa' or 'en'. */
export const language = () => current;

/** The words of a key; {0}, {1} are replaced by the arguments. */
export function t(key, ...values) {
  const words = dictionaries[current][key] ?? dictionaries.en[key] ?? key;
  return words.replace(/\{(\d)\}/g, (_, i) => values[i]);
}

function apply() {
  document.documentElement.lang = current;
  document.documentElement.dir = current === 'fa' ? 'rtl' : 'ltr';
  for (const element of document.querySelectorAll('[data-t]')) element.textContent = t(element.dataset.t);
  for (const element of document.querySelectorAll('[data-t-label]')) {
    element.setAttribute('aria-label', t(element.dataset.tLabel));
    element.title = t(element.dataset.tLabel);
  }
  for (const button of document.querySelectorAll('[data-language]')) {
    button.setAttribute('aria-pressed', String(button.dataset.language === current));
  }
  for (const listener of listeners) listener(current);
}

export function setLanguage(wanted) {
  current = wanted === 'fa' ? 'fa' : 'en';
  try {
    localStorage.setItem('saaz-language', current);
  } catch { /* a page without storage forgets */ }
  apply();
}

/** Called after each change of language, to redraw what `data-t` does not reach. */
export const onLanguage = (listener) => listeners.push(listener);

/**
 * Starts with ?lang=, the last choice, or the browser's language. `words`: {en: {key: text}, fa: {...}} for elements
 * with data-t="key" (text) and data-t-label="key" (title and accessible name). Buttons with data-language="fa" switch.
 */
export function startLanguage(words) {
  dictionaries = words;
  let stored = null;
  try {
    stored = localStorage.getItem('saaz-language');
  } catch { /* as above */ }
  const asked = new URLSearchParams(location.search).get('lang');
  current = (asked || stored || navigator.language || 'en').startsWith('fa') ? 'fa' : 'en';
  for (const button of document.querySelectorAll('[data-language]')) {
    button.addEventListener('click', () => setLanguage(button.dataset.language));
  }
  apply();
}

// ---- numbers ----

const formats = new Map();

/** A number in the digits of the interface: decimals(0.5, 2) is 0.50 or ۰٫۵۰. Unknown (null, NaN) is '–'. */
export function decimals(value, n_decimals) {
  if (value === null || value === undefined || !Number.isFinite(value)) return '–';
  const key = current + n_decimals;
  if (!formats.has(key)) {
    const locale = current === 'fa' ? 'fa-IR' : 'en-GB';
    formats.set(key, new Intl.NumberFormat(locale, {minimumFractionDigits: n_decimals, maximumFractionDigits: n_decimals}));
  }
  return formats.get(key).format(value);
}

/** Digits of the interface in a text that already has its form, such as 2.0e-4. */
export const digits = (text) =>
    current === 'fa' ? text.replace(/[0-9]/g, (d) => '۰۱۲۳۴۵۶۷۸۹'[d]).replace(/(?<=[۰-۹])\.(?=[۰-۹])/g, '٫') : text;
