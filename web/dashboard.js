// The dashboard of training runs. Enters: the server's event stream: "state" (everything) when it opens, then "news"
// (new rows only). Leaves: the page. Nothing is kept here that a reload would miss.
import {decimals, make, onLanguage, renderBlocks, setText, startLanguage, t} from './common.js';
import {colourOf, drawCharts, short} from './dashboard_charts.js';
import {words} from './dashboard_words.js';

const MAX_POINTS = 6000;
const $ = (id) => document.getElementById(id);

let runs = [];
let focus = 0;
let round = -1;          // of the probes; -1 follows the newest
let serverAhead = 0;     // seconds the server's clock is ahead of ours
let connection = 'connecting';
const view = {smoothing: 0.6, logarithmic: false};

// ---- the stream ----

function adopt(run) {
  const column = Object.fromEntries((run.step_columns ?? []).map((name, i) => [name, i]));
  return {...run, column, points: run.steps, evals: [...run.evals], probes: [...run.probes], samples: [...run.samples],
          notes: [...run.notes]};
}

/** Neighbours become their mean when there are too many to draw. */
function thinned(points) {
  if (points.length <= MAX_POINTS) return points;
  const out = [];
  for (let i = 0; i + 1 < points.length; i += 2) {
    out.push(points[i].map((a, k) => k === 0 || a === null || points[i + 1][k] === null ? points[i + 1][k] : (a + points[i + 1][k]) / 2));
  }
  return points.length % 2 ? [...out, points.at(-1)] : out;
}

function extend(run, news) {
  for (const key of ['status', 'max_steps', 'peak_bytes', 'seconds_per_update', 'seconds', 'n_tokens', 'last_time', 'final_loss']) run[key] = news[key];
  if (news.start) run.start = news.start;
  if (news.recipe) run.recipe = news.recipe;
  run.points = thinned([...run.points, ...news.steps]);
  for (const key of ['evals', 'probes', 'samples', 'notes']) run[key].push(...news[key]);
}

function open() {
  const source = new EventSource('events');
  source.addEventListener('state', (event) => {
    const data = JSON.parse(event.data);
    serverAhead = data.now - Date.now() / 1000;
    runs = data.runs.map(adopt);
    focus = Math.min(focus, runs.length - 1);
    connection = 'connected';
    draw();
  });
  source.addEventListener('news', (event) => {
    const data = JSON.parse(event.data);
    serverAhead = data.now - Date.now() / 1000;
    for (const news of data.runs) extend(runs[news.id], news);
    draw();
  });
  source.addEventListener('bye', () => {
    source.close();
    connection = 'over';
    drawConnection();
  });
  source.onerror = () => {
    connection = 'lost';
    drawConnection();
    // A refusal closes the stream for good; a broken connection is opened again by the browser.
    if (source.readyState === EventSource.CLOSED) setTimeout(open, 3000);
  };
}

// ---- figures ----

function duration(seconds) {
  if (!Number.isFinite(seconds)) return '–';
  const whole = Math.max(0, Math.round(seconds)), n = (value) => decimals(value, 0);
  if (whole >= 3600) return t('hours', n(Math.floor(whole / 3600)), n(Math.floor(whole % 3600 / 60)));
  if (whole >= 60) return t('minutes', n(Math.floor(whole / 60)), n(whole % 60));
  return t('seconds', n(whole));
}

function bytes(value) {
  if (!value) return '–';
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];
  let unit = 0;
  while (value >= 1024 && unit + 1 < units.length) value /= 1024, ++unit;
  return `${decimals(value, unit === 0 ? 0 : 2)} ${units[unit]}`;
}

const last = (list) => list.length ? list[list.length - 1] : null;
const value = (run, name) => last(run.points)?.[run.column[name]] ?? NaN;
const stepOf = (run) => last(run.points)?.[0] ?? 0;

/** What the run is doing, as a key of the words and how it looks. */
function statusOf(run) {
  if (run.is_foreign) return [t('foreign') + (run.status === 'finished' ? ` · ${t('finished')}` : ''), ''];
  if (run.status === 'finished') return [t('finished'), 'good'];
  if (run.status === 'stopped') return [t('stopped'), 'warn'];
  if (!run.start) return [t('waiting'), ''];
  const silence = Date.now() / 1000 + serverAhead - run.last_time;
  if (silence > Math.max(120, 20 * (run.seconds_per_update || 0))) return [t('silent', duration(silence)), 'bad'];
  return [t('running'), 'good'];
}

const TILE_WORDS = {grad_norm: 'norm', learning_rate: 'rate', tokens_per_s: 'speed'};

function drawTiles(run) {
  const best = run.evals.reduce((least, [, loss]) => Math.min(least, loss ?? Infinity), Infinity);
  const left = run.status === 'running' && run.max_steps ? (run.max_steps - stepOf(run)) * run.seconds_per_update : NaN;
  const lr = value(run, 'learning_rate');
  const rows = [
    ['step', run.max_steps ? t('step_of', decimals(stepOf(run), 0), decimals(run.max_steps, 0)) : '–'],
    ['epoch', decimals(value(run, 'epoch'), 2)],
    ['train_loss', decimals(value(run, 'loss'), 4)],
    ['eval_loss', decimals(last(run.evals)?.[1] ?? NaN, 4)],
    ['grad_norm', decimals(value(run, 'grad_norm'), 3)],
    ['learning_rate', Number.isFinite(lr) ? short(Number(lr.toPrecision(3))) : '–'],
    ['tokens_per_s', decimals(value(run, 'tokens_per_s'), 0)],
    ['memory', bytes(run.peak_bytes)],
    ['left', duration(left)],
    ['spent', run.seconds > 0 ? duration(run.seconds) : '–'],
  ];
  $('tiles').replaceChildren(...rows.map(([key, text]) => {
    const figure = make('dd', '', make('bdi', '', text));
    if (key === 'eval_loss' && Number.isFinite(best)) figure.title = t('best', decimals(best, 4));
    figure.dataset.key = key;
    return make('div', '', make('dt', '', t(TILE_WORDS[key] ?? key)), figure);
  }));
}

function drawConnection() {
  $('connection').textContent = t(connection);
  $('connection').className = `badge ${{connected: 'good', lost: 'bad'}[connection] ?? ''}`;
}

function drawRuns() {
  $('runs').hidden = runs.length < 2;
  $('runs').replaceChildren(...runs.map((run, i) => {
    const button = make('button', '', make('span', `swatch c${i % 6}`), make('bdi', '', run.name));
    button.type = 'button';
    button.setAttribute('aria-pressed', String(i === focus));
    button.addEventListener('click', () => {
      focus = i;
      round = -1;
      shown.clear();
      draw();
    });
    return button;
  }));
}

function drawLegend() {
  const items = [['each_update', 'pale'], ['smoothed', ''], ['validation', 'dot']];
  $('legend').replaceChildren(...items.map(([key, look]) =>
    make('li', '', make('span', `swatch c${focus % 6} ${look}`), t(key))));
}

// ---- side by side ----

/** "a.b" and value of every leaf of a resolved recipe: two levels of indentation, as the program writes it. */
function settings(recipe) {
  const out = new Map(), path = [];
  for (const text of recipe.split('\n')) {
    const [, indent, key, rest] = text.match(/^( *)([\w.]+):(?: (.*))?$/) ?? [];
    if (key === undefined) continue;
    path.length = indent.length / 2;
    path.push(key);
    if (rest !== undefined) out.set(path.join('.'), rest);
  }
  return out;
}

function drawComparison() {
  $('compare').hidden = runs.length < 2;
  if (runs.length < 2) return;
  const recipes = runs.map((run) => settings(run.recipe ?? ''));
  const keys = [...new Set(recipes.flatMap((recipe) => [...recipe.keys()]))].filter((key) =>
    key !== 'output.dir' && new Set(recipes.filter((r) => r.size).map((recipe) => recipe.get(key))).size > 1);
  const rows = [
    [t('step'), (run) => `${decimals(stepOf(run), 0)} / ${decimals(run.max_steps || NaN, 0)}`],
    [t('final_loss'), (run) => decimals(run.final_loss ?? NaN, 4)],
    [t('eval_loss'), (run) => decimals(last(run.evals)?.[1] ?? NaN, 4)],
    [t('speed'), (run) => decimals(value(run, 'tokens_per_s'), 0)],
    [t('memory'), (run) => bytes(run.peak_bytes)],
    [t('spent'), (run) => run.seconds > 0 ? duration(run.seconds) : '–'],
    ...keys.map((key) => [make('code', '', key), (_, i) => recipes[i].get(key) ?? '–']),
  ];
  const head = make('tr', '', make('th', '', t('setting')), ...runs.map((run, i) =>
    make('th', '', make('span', `swatch c${i % 6}`), ' ', make('bdi', '', run.name))));
  $('comparison').replaceChildren(head, ...rows.map(([name, text]) =>
    make('tr', '', make('td', '', name), ...runs.map((run, i) => make('td', '', make('bdi', '', text(run, i)))))));
}

// ---- probes, samples, recipe, log: redrawn only when they change, so that reading and selecting is not disturbed ----

const shown = new Map();
function whenChanged(name, key, drawIt) {
  if (shown.get(name) === key) return;
  shown.set(name, key);
  drawIt();
}

const percent = (rate) => decimals(100 * rate, 0) + (document.documentElement.lang === 'fa' ? '٪' : ' %');
const LIMITS = {half_space_accuracy: (x) => x < 0.9, foreign_rate: (x) => x > 0.01, arabic_letter_rate: (x) => x > 0, repetition: (x) => x > 0.2};

function badges(answer) {
  const out = [make('span', 'badge', t(answer.finish_reason === 'length' ? 'cut' : 'n_tokens', decimals(answer.n_tokens, 0)))];
  for (const [measure, isBad] of Object.entries(LIMITS)) {
    const rate = answer.health?.[measure];
    if (!Number.isFinite(rate)) continue;
    out.push(make('span', `badge ${isBad(rate) ? 'warn' : ''}`, `${t(measure)} `, make('bdi', '', percent(rate))));
  }
  return make('div', 'badges', ...out);
}

const roundName = (step) => step === 0 ? t('before') : t('at_step', decimals(step, 0));

function drawProbes(run) {
  $('probes').hidden = run.probes.length === 0;
  if (run.probes.length === 0) return;
  const at = round < 0 ? run.probes.length - 1 : Math.min(round, run.probes.length - 1);
  const now = run.probes[at], first = run.probes[0];
  $('round').max = run.probes.length - 1;
  $('round').value = at;
  $('round_text').textContent = roundName(now.step);
  $('answers').replaceChildren(...now.answers.map((answer, i) => {
    const pair = make('div', 'pair');
    if (at > 0 && first.answers[i]) {
      pair.append(make('div', 'text then', make('h3', '', roundName(first.step)), renderBlocks(make('div'), first.answers[i].answer)));
    }
    pair.append(make('div', 'text now', make('h3', '', roundName(now.step)), renderBlocks(make('div'), answer.answer), badges(answer)));
    return make('article', 'answer', setText(make('p'), answer.prompt), pair);
  }));
}

function drawSamples(run) {
  $('samples').hidden = run.samples.length === 0;
  $('rows').replaceChildren(...run.samples.map((sample) => {
    const row = make('div', 'sample', make('p', 'muted', t('sample', decimals(sample.index + 1, 0), decimals(sample.n_tokens, 0), decimals(sample.n_scored, 0))));
    for (const turn of sample.turns) {
      const role = ['user', 'model', 'system', 'text'].includes(turn.role) ? t(turn.role) : turn.role;
      row.append(make('div', turn.n_scored > 0 ? 'turn trained' : 'turn',
          make('h3', '', make('span', '', role), make('span', '', t('n_tokens', decimals(turn.n_tokens, 0)))), renderBlocks(make('div'), turn.text)));
    }
    return row;
  }));
}

function drawNotes(run) {
  $('log').hidden = run.notes.length === 0;
  $('notes').replaceChildren(...[...run.notes].reverse().map((note) => {
    if (note.event !== 'save') return setText(make('li'), note.text ?? '');
    const folder = make('code', '', (note.folder ?? '').split('/').at(-1));
    return make('li', '', ...t('saved', decimals(note.step, 0), '\u0000').split('\u0000').flatMap((part, i) => i ? [folder, part] : [part]));
  }));
}

// ---- all of it ----

function drawRun() {
  const run = runs[focus];
  setText($('name'), run.name);
  const [status, look] = statusOf(run);
  $('status').textContent = status;
  $('status').className = `badge ${look}`;
  $('base').replaceChildren(...[run.start?.base?.split('/').at(-1), run.start?.backend].filter(Boolean)
      .flatMap((text, i) => [i ? ' · ' : '', make('bdi', '', text)]));
  $('bar').value = run.max_steps ? stepOf(run) / run.max_steps : 0;
  drawTiles(run);
  const key = [focus, document.documentElement.lang];
  whenChanged('probes', [...key, run.probes.length, round].join(), () => drawProbes(run));
  whenChanged('samples', [...key, run.samples.length].join(), () => drawSamples(run));
  whenChanged('notes', [...key, run.notes.length].join(), () => drawNotes(run));
  whenChanged('recipe', [...key, run.recipe].join(), () => {
    $('recipe').hidden = !run.recipe;
    $('recipe_text').textContent = run.recipe ?? '';
  });
  document.title = `${run.name} · ${decimals(stepOf(run), 0)}/${decimals(run.max_steps || NaN, 0)} · Saaz`;
}

let isDue = false;
function draw() {
  if (isDue) return;
  isDue = true;
  requestAnimationFrame(() => {
    isDue = false;
    drawConnection();
    if (runs.length === 0) return;
    drawRuns();
    drawRun();
    drawLegend();
    drawComparison();
    drawCharts(runs, focus, view);
    document.body.dataset.step = stepOf(runs[focus]);
  });
}

$('smoothing').addEventListener('input', () => {
  view.smoothing = Number($('smoothing').value);
  draw();
});
$('logarithmic').addEventListener('change', () => {
  view.logarithmic = $('logarithmic').checked;
  draw();
});
$('round').addEventListener('input', () => {
  round = Number($('round').value);
  if (round === Number($('round').max)) round = -1;
  draw();
});
matchMedia('(prefers-color-scheme: dark)').addEventListener('change', draw);
setInterval(draw, 10000);  // the time since the last news
onLanguage(draw);
startLanguage(words);
document.fonts?.ready.then(draw);
open();
