// Markdown, the subset that models write, as elements. Enters: text of a model or a person. Leaves: elements made one
// by one, all text set as text: there is no way from a text to markup, to a script or to a request. Pictures are never
// loaded, and only http, https and mailto become links, with their target shown. Each block has the direction of its
// first strong letter of prose; code, formulas and terms that break in right-to-left text stand isolated left to right.
// Invariant: time grows linearly with the text, whatever it holds.

import {directionOf, make} from './common.js';

// A text nested deeper is shown as it is.
const MAX_DEPTH = 12;
// A mark that is not closed within so many characters is no mark.
const MAX_SPAN = 2000;
// A longer table row is text, and so is a longer line or a longer text as a whole.
const MAX_CELLS = 64, MAX_LINE = 10_000, MAX_TEXT = 400_000;

const FENCE = /^( {0,3})(`{3,}|~{3,})[ \t]*([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6})[ \t]+(\S.*)$/;
const RULE = /^ {0,3}(?:(?:-[ \t]*){3,}|(?:\*[ \t]*){3,}|(?:_[ \t]*){3,})$/;
const QUOTE = /^ {0,3}>[ \t]?/;
const ITEM = /^( *)([-*+•]|([0-9۰-۹٠-٩]{1,9})[.)])([ \t]+)(?=\S)/;
const DELIMITERS = /^ {0,3}\|?[ \t]*:?-+:?[ \t]*(?:\|[ \t]*:?-+:?[ \t]*)*\|?[ \t]*$/;

// ---- blocks: lines to {kind, source, ...} ----

const startsBlock = (line) => line.length <= MAX_LINE && startsKind(line);
const startsKind = (line) =>
    FENCE.test(line) || HEADING.test(line) || RULE.test(line) || QUOTE.test(line) || (ITEM.test(line) && indentOf(line) < 4);
const indentOf = (line) => line.length - line.trimStart().length;
const isBlank = (line) => line.trim() === '';

/** Cells of a table row; `|` in code or after a backslash divides nothing. */
function cellsOf(line) {
  const cells = [''];
  const inner = line.trim().replace(/^\|/, '').replace(/(^|[^\\])\|$/, '$1');
  let isCode = false;
  for (let i = 0; i < inner.length; ++i) {
    if (inner[i] === '\\' && inner[i + 1] === '|') cells[cells.length - 1] += inner[++i];
    else if (inner[i] === '|' && !isCode) cells.push('');
    else {
      if (inner[i] === '`') isCode = !isCode && inner.includes('`', i + 1);
      cells[cells.length - 1] += inner[i];
    }
  }
  return cells.map((cell) => cell.trim());
}

function readFence(lines, at) {
  const [, indent, mark, info] = FENCE.exec(lines[at]);
  const close = new RegExp(`^ {0,3}${mark[0]}{${mark.length},}[ \\t]*$`);
  let end = at + 1;
  while (end < lines.length && !close.test(lines[end])) ++end;
  const body = lines.slice(at + 1, end).map((line) => line.slice(Math.min(indent.length, indentOf(line))));
  return [{kind: 'code', language: info.trim().split(/\s/)[0], text: body.join('\n')}, Math.min(end + 1, lines.length)];
}

function readQuote(lines, at, depth) {
  const inner = [];
  let end = at;
  for (; end < lines.length && !isBlank(lines[end]); ++end) {
    if (!QUOTE.test(lines[end]) && startsBlock(lines[end])) break;
    inner.push(lines[end].replace(QUOTE, ''));
  }
  return [{kind: 'quote', blocks: parseLines(inner, depth + 1)}, end];
}

/** The lines of one item, without their indent, and where the next begins. */
function readItem(lines, at, marker) {
  const base = marker[1].length, offset = base + marker[2].length + Math.min(marker[4].length, 4);
  const inner = [lines[at].slice(marker[0].length)];
  let end = at + 1;
  for (; end < lines.length; ++end) {
    const line = lines[end], indent = indentOf(line);
    if (isBlank(line)) {
      const next = lines[end + 1];
      if (next === undefined || isBlank(next) || indentOf(next) < base + 2) break;
    } else if (indent < base + 2 && (startsBlock(line) || isBlank(lines[end - 1]))) {
      break;
    }
    inner.push(line.slice(Math.min(indent, offset)));
  }
  return [inner, end];
}

const latinDigits = (text) => text.replace(/[۰-۹٠-٩]/g, (d) => String(d.charCodeAt(0) & 15));

function readList(lines, at, depth) {
  const first = ITEM.exec(lines[at]), isOrdered = first[3] !== undefined;
  const list = {kind: isOrdered ? 'ordered' : 'bullets', items: []};
  if (isOrdered) {
    list.start = Number(latinDigits(first[3]));
    list.isPersian = /[۰-۹٠-٩]/.test(first[3]);
  }
  let end = at;
  while (end < lines.length) {
    const marker = ITEM.exec(lines[end]);
    if (!marker || marker[1].length > first[1].length + 1 || (marker[3] !== undefined) !== isOrdered) break;
    let inner;
    [inner, end] = readItem(lines, end, marker);
    list.items.push(parseLines(inner, depth + 1));
    while (end < lines.length && isBlank(lines[end]) && ITEM.test(lines[end + 1] ?? '')) ++end;
  }
  return [list, end];
}

const startsTable = (lines, at) =>
    lines[at].length <= MAX_LINE && lines[at].includes('|') && (lines[at + 1]?.length ?? 0) <= MAX_LINE && DELIMITERS.test(lines[at + 1] ?? '') && lines[at + 1].includes('-') &&
    cellsOf(lines[at]).length === cellsOf(lines[at + 1]).length && cellsOf(lines[at]).length <= MAX_CELLS;

function readTable(lines, at) {
  const head = cellsOf(lines[at]);
  const sides = cellsOf(lines[at + 1]).map((cell) => (cell.endsWith(':') ? (cell.startsWith(':') ? 'middle' : 'end') : ''));
  const rows = [];
  let end = at + 2;
  for (; end < lines.length && !isBlank(lines[end]) && lines[end].includes('|'); ++end) {
    const cells = cellsOf(lines[end]);
    rows.push(head.map((_, i) => cells[i] ?? ''));
  }
  return [{kind: 'table', head, sides, rows}, end];
}

function readParagraph(lines, at) {
  let end = at + 1;
  while (end < lines.length && !isBlank(lines[end]) && !startsBlock(lines[end]) && !startsTable(lines, end)) ++end;
  return [{kind: 'paragraph', text: lines.slice(at, end).map((line) => line.trim()).join('\n')}, end];
}

/** "## Title ##" closes with marks of its own, which are not part of the title. */
function titleOf(text) {
  let end = text.trimEnd().length;
  while (end > 0 && text[end - 1] === '#') --end;
  return end > 0 && text[end - 1] !== ' ' ? text.trimEnd() : text.slice(0, end).trimEnd();
}

function readBlock(lines, at, depth) {
  const line = lines[at];
  if (line.length > MAX_LINE) return readParagraph(lines, at);
  const heading = HEADING.exec(line);
  if (FENCE.test(line)) return readFence(lines, at);
  if (heading) return [{kind: 'heading', level: heading[1].length, text: titleOf(heading[2])}, at + 1];
  if (RULE.test(line)) return [{kind: 'rule'}, at + 1];
  if (depth < MAX_DEPTH && QUOTE.test(line)) return readQuote(lines, at, depth);
  if (depth < MAX_DEPTH && ITEM.test(line)) return readList(lines, at, depth);
  if (startsTable(lines, at)) return readTable(lines, at);
  return readParagraph(lines, at);
}

function parseLines(lines, depth) {
  const blocks = [];
  for (let at = 0; at < lines.length;) {
    if (isBlank(lines[at])) {
      ++at;
      continue;
    }
    const [block, end] = readBlock(lines, at, depth);
    block.source = lines.slice(at, end).join('\n');
    blocks.push(block);
    at = end;
  }
  return blocks;
}

/** The blocks of a text: [{kind, source, ...}]; `source` is the block's own Markdown. */
export function parseMarkdown(text) {
  if (text.length > MAX_TEXT) return [{kind: 'plain', text, source: text}];
  return parseLines(text.replace(/\r\n?/g, '\n').replace(/\t/g, '    ').split('\n'), 0);
}

// ---- inline: text to nodes ----

/** `https://host/path` when a target may be followed, null otherwise. */
export function safeTarget(target) {
  try {
    const url = new URL(target);
    return ['http:', 'https:', 'mailto:'].includes(url.protocol) ? url.href : null;
  } catch {
    return null;
  }
}

const ltr = (tag, className, text) => {
  const element = make(tag, className, text);
  element.dir = 'ltr';
  return element;
};

/** A link with its target in sight; what may not be followed is shown as text. */
function link(children, target, showsTarget) {
  const href = safeTarget(target);
  const shown = ltr('bdi', 'target', target.length > 120 ? target.slice(0, 117) + '…' : target);
  if (!href) return make('span', 'no-link', ...children, ' ', shown);
  const anchor = make('a', '', ...(showsTarget ? children : [shown]));
  anchor.href = href;
  anchor.rel = 'noopener noreferrer nofollow';
  anchor.target = '_blank';
  if (showsTarget) return make('span', '', anchor, ' ', shown);
  return anchor;
}

// What right-to-left text would tear apart: C++, .NET, --flag, /usr/bin, f(x), -5, 3 + 4 = 7.
const TERM = new RegExp([
  String.raw`[A-Za-z][\w.\-]*(?:\+\+|#|\([^()\s]{0,40}\))`,
  String.raw`(?<![\w\p{L}])(?:--?|~?\/|\.{1,2}\/|[.@#])[A-Za-z][\w.\/@:=\-]*`,
  String.raw`(?<![\w\p{L}\p{Nd}])[-+−±][\p{Nd}][\p{Nd}.,٫٬]*%?`,
  String.raw`[\p{Nd}][\p{Nd}.,٫٬]*(?: ?[-+−×÷*\/=<>^≤≥≈] ?[\p{Nd}][\p{Nd}.,٫٬]*)+`,
].join('|'), 'gu');

/** Plain text, with line breaks and with what must not be torn apart. */
function plain(text) {
  const nodes = [];
  text.split('\n').forEach((line, i) => {
    if (i > 0) nodes.push(document.createElement('br'));
    let done = 0;
    for (const match of line.length <= MAX_LINE ? line.matchAll(TERM) : []) {
      nodes.push(line.slice(done, match.index), ltr('bdi', '', match[0]));
      done = match.index + match[0].length;
    }
    nodes.push(line.slice(done));
  });
  return nodes.filter((node) => node !== '');
}

const EMPHASIS = [['***', ['strong', 'em']], ['**', ['strong']], ['__', ['strong']], ['~~', ['del']], ['*', ['em']], ['_', ['em']]];
const isWord = (letter) => letter !== undefined && /[\p{L}\p{N}_]/u.test(letter);
const isSpace = (letter) => letter === undefined || /\s/.test(letter);
const PUNCTUATION = /[!-\/:-@\[-`{-~]/;
const BARE_URL = /(?:https?:\/\/|www\.)[^\s<>"«»،؛؟`|\\]{1,2000}/iy;

/** Where `mark` stands next, or -1. */
function find(text, mark, from) {
  const at = text.slice(from, from + MAX_SPAN).indexOf(mark);
  return at === -1 ? -1 : from + at;
}

/** Where `mark` closes what opened before `from`, or -1. */
function closeOf(text, mark, from) {
  const limit = from + MAX_SPAN;
  for (let at = from + 1; (at = find(text, mark, at)) !== -1 && at < limit; ++at) {
    const next = at + mark.length;
    const isLonger = mark.length < 3 && text[next] === mark[0] && text[at - 1] !== mark[0];
    if (isLonger && mark.length === 1) ++at;
    else if (!isSpace(text[at - 1]) && text[at - 1] !== '\\' && (mark[0] !== '_' || !isWord(text[next]))) return isLonger ? next - mark.length + 1 : at;
  }
  return -1;
}

function readCode(text, at) {
  let n = 1;
  while (text[at + n] === '`') ++n;
  const mark = '`'.repeat(n);
  for (let close = find(text, mark, at + n); close !== -1 && close < at + MAX_SPAN;) {
    let run = n;
    while (text[close + run] === '`') ++run;
    if (run === n) return [ltr('code', '', text.slice(at + n, close).replace(/\n/g, ' ').replace(/^ (.+) $/, '$1')), close + n];
    close = find(text, mark, close + run);
  }
  return [mark, at + n];
}

/** [text](target) and ![alt](target), or null. */
function readLink(text, at, depth) {
  const isImage = text[at] === '!', start = at + (isImage ? 2 : 1);
  const pattern = /^\]\(\s*<?([^\s<>()]*(?:\([^\s<>()]*\)[^\s<>()]*)*)>?(?:\s+["'(][^"')]*["')])?\s*\)/;
  let close = find(text, ']', start);
  for (let n_tried = 0; close !== -1 && n_tried < 8; ++n_tried, close = find(text, ']', close + 1)) {
    const match = pattern.exec(text.slice(close, close + MAX_SPAN));
    if (!match) {
      if (text[close + 1] !== ']') return null;
      continue;
    }
    const label = text.slice(start, close), target = match[1];
    const end = close + match[0].length;
    if (isImage) return [make('span', 'image', '🖼 ', label || '…', ' ', link([], target, false)), end];
    return [label === target ? link([], target, false) : link(inline(label, depth + 1), target, true), end];
  }
  return null;
}

function readMath(text, at) {
  for (const [open, close] of [['$$', '$$'], ['\\(', '\\)'], ['\\[', '\\]']]) {
    if (!text.startsWith(open, at)) continue;
    const end = find(text, close, at + 2);
    return end === -1 ? null : [ltr('span', 'math', text.slice(at + 2, end)), end + 2];
  }
  const match = /\$(?![\s\d])([^$\n]{0,400}[^\s$\\])\$(?!\d)/y;
  match.lastIndex = at;
  const found = match.exec(text);
  return found && [ltr('span', 'math', found[1]), match.lastIndex];
}

function readEmphasis(text, at, depth) {
  for (const [mark, tags] of EMPHASIS) {
    if (!text.startsWith(mark, at) || isSpace(text[at + mark.length])) continue;
    if (mark[0] === '_' && isWord(text[at - 1])) continue;
    const close = closeOf(text, mark, at + mark.length);
    if (close === -1) continue;
    const inner = inline(text.slice(at + mark.length, close), depth + 1);
    return [tags.reduceRight((children, tag) => [make(tag, '', ...children)], inner)[0], close + mark.length];
  }
  return null;
}

function readUrl(text, at) {
  BARE_URL.lastIndex = at;
  const match = BARE_URL.exec(text);
  if (!match || isWord(text[at - 1])) return null;
  const address = match[0].replace(/[.,:;!?)\]}'*_]+$/, '');
  return [link([], /^www\./i.test(address) ? 'https://' + address : address, false), at + address.length];
}

/** The node that starts at `at` and where it ends, or null when the letter is a letter. */
function readSpan(text, at, depth) {
  switch (text[at]) {
    case '`': return readCode(text, at);
    case '\\': return readMath(text, at) ?? (PUNCTUATION.test(text[at + 1] ?? '') ? [text[at + 1], at + 2] : null);
    case '$': return readMath(text, at);
    case '[': return readLink(text, at, depth);
    case '!': return text[at + 1] === '[' ? readLink(text, at, depth) : null;
    case '*': case '_': case '~': return readEmphasis(text, at, depth);
    case '<': {
      const match = /<(?:br\s*\/?|((?:https?:\/\/|mailto:)[^\s<>]{1,500}))>/iy;
      match.lastIndex = at;
      const found = match.exec(text);
      return found && [found[1] ? link([], found[1], false) : document.createElement('br'), match.lastIndex];
    }
    case 'h': case 'H': case 'w': case 'W': return readUrl(text, at);
    default: return null;
  }
}

const MARKS = /[`\\$[!*_~<hHwW]/g;

/** The nodes of a line or paragraph. */
export function inline(text, depth = 0) {
  if (depth > MAX_DEPTH) return plain(text);
  const nodes = [];
  let pending = '', at = 0;
  const flush = () => {
    nodes.push(...plain(pending));
    pending = '';
  };
  while (at < text.length) {
    MARKS.lastIndex = at;
    const next = MARKS.exec(text)?.index ?? text.length;
    pending += text.slice(at, next);
    at = next;
    const span = at < text.length ? readSpan(text, at, depth) : null;
    if (span && typeof span[0] === 'string') pending += span[0];
    else if (span) {
      flush();
      nodes.push(span[0]);
    } else if (at < text.length) pending += text[at];
    at = span ? span[1] : at + 1;
  }
  flush();
  return nodes;
}

// ---- elements ----

/** Gives an element its direction, and a screen reader its language. */
function direct(element, text, fallback) {
  const direction = directionOf(text) || fallback;
  if (direction) element.dir = direction;
  if (direction) element.lang = direction === 'rtl' ? 'fa' : 'en';
  return element;
}

function codeBlock(block) {
  const pre = make('pre', '', make('code', '', block.text));
  pre.dir = 'ltr';
  pre.tabIndex = 0;
  return make('div', 'code-block', ltr('span', 'code-language', block.language), pre);
}

function list(block, fallback) {
  const element = direct(make(block.kind === 'ordered' ? 'ol' : 'ul', block.isPersian ? 'persian' : ''), block.source, fallback);
  if (block.start > 1) element.start = block.start;
  for (const blocks of block.items) {
    const item = make('li');
    if (blocks[0]?.kind === 'paragraph') {
      const task = /^\[([ xX])\]\s+/.exec(blocks[0].text);
      if (task) blocks[0] = {...blocks[0], text: (task[1] === ' ' ? '☐ ' : '☑ ') + blocks[0].text.slice(task[0].length)};
    }
    item.append(...blocks.map((inner) => elementOf(inner, element.dir)));
    element.append(item);
  }
  return element;
}

function table(block, fallback) {
  const element = direct(make('table'), block.source, fallback);
  const row = (cells, tag) => make('tr', '', ...cells.map((text, i) => {
    const cell = direct(make(tag, block.sides[i] ?? '', ...inline(text)), text, element.dir);
    if (tag === 'th') cell.scope = 'col';
    return cell;
  }));
  element.append(make('thead', '', row(block.head, 'th')), make('tbody', '', ...block.rows.map((cells) => row(cells, 'td'))));
  const frame = make('div', 'table-frame', element);
  frame.tabIndex = 0;
  if (element.dir) frame.dir = element.dir;
  return frame;
}

function elementOf(block, fallback) {
  switch (block.kind) {
    case 'code': return codeBlock(block);
    case 'rule': return make('hr');
    case 'plain': return direct(make('p', 'plain', block.text), block.text.slice(0, MAX_LINE), fallback);
    // The page has its own h1 and h2.
    case 'heading': return direct(make('h' + Math.min(block.level + 2, 6), '', ...inline(block.text)), block.text, fallback);
    case 'quote': {
      const quote = direct(make('blockquote'), block.source, fallback);
      quote.append(...block.blocks.map((inner) => elementOf(inner, quote.dir)));
      return quote;
    }
    case 'ordered': case 'bullets': return list(block, fallback);
    case 'table': return table(block, fallback);
    default: return direct(make('p', '', ...inline(block.text)), block.text, fallback);
  }
}

// ---- streaming ----

// A last line of nothing but marks may still become anything: a list, a rule, a table's second row.
const UNDECIDED_LINE = /(^|\n)[-*_+=#>`~|: \t0-9۰-۹.)]*$/;
// Half an address or open code at the end would lend its letters to the direction.
const OPEN_CODE = /`[^`\n]*$/;
const HALF_ADDRESS = /(?<![\w\p{L}])(?:h|ht|htt|https?|https?:|https?:\/|w|ww|www)$/iu;

/** What of a text that is still being written can be shown. */
function settled(text) {
  const head = text.replace(UNDECIDED_LINE, '$1').replace(HALF_ADDRESS, '');
  const isInFence = (head.match(/^ {0,3}(?:```|~~~)/gm) ?? []).length % 2 === 1;
  if (isInFence) return text.replace(/\n[`~ ]*$/, '');
  const lastLine = head.slice(head.lastIndexOf('\n') + 1);
  if ((lastLine.match(/`/g) ?? []).length % 2 === 1) return head.replace(OPEN_CODE, '');
  if ((lastLine.match(/\*\*/g) ?? []).length % 2 === 1) return head.trimEnd().replace(/\*+$/, '') + '**';
  return head;
}

/**
 * Shows a text that grows. Blocks whose source has not changed keep their elements, so nothing that was read moves,
 * and the reader's selection stays. A block without a strong letter yet takes the direction of the block before it.
 */
export class MarkdownView {
  constructor(container) {
    this.container = container;
    this.shown = [];  // [{source, fallback, element}]
  }

  /** All of `text`; `fallback`: the direction before the first strong letter. */
  show(text, fallback = '') {
    this.#show(parseMarkdown(text), fallback);
  }

  /** The beginning `text` of a text that is still being written. */
  grow(text, fallback = '') {
    this.#show(parseMarkdown(settled(text)), fallback);
  }

  #show(blocks, fallback) {
    const next = [];
    let direction = fallback;
    blocks.forEach((block, i) => {
      const before = this.shown[i];
      const isSame = before?.source === block.source && before.fallback === direction;
      const element = isSame ? before.element : elementOf(block, direction);
      if (before?.element.dir && block.source.startsWith(before.source)) element.dir = before.element.dir;
      if (!isSame && before) before.element.replaceWith(element);
      else if (!before) this.container.append(element);
      next.push({source: block.source, fallback: direction, element});
      direction = element.dir || direction;
    });
    for (const gone of this.shown.slice(blocks.length)) gone.element.remove();
    this.shown = next;
  }
}
