// The charts of the dashboard. Enters: the runs' points. Leaves: Chart.js charts, drawn again when points come. Every
// run keeps its colour in every chart.
/* global Chart */
import {decimals, digits, language, t} from './common.js';

export const COLOURS = ['#0d9488', '#ea580c', '#6366f1', '#db2777', '#65a30d', '#0284c7'];
export const colourOf = (index) => COLOURS[index % COLOURS.length];
const HEALTH = ['half_space_accuracy', 'foreign_rate', 'arabic_letter_rate', 'repetition'];
const HEALTH_DASHES = [[], [6, 4], [2, 3], [10, 3, 2, 3]];

const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

/** A short number for an axis: 1200 in the digits of the interface, 0.00002 as 2e-5, which has no Persian form. */
export function short(value) {
  if (value === 0) return digits('0');
  const size = Math.abs(value);
  if (size < 1e-3 || size >= 1e6) return value.toExponential().replace('e+', 'e');
  return digits(String(Number(value.toPrecision(4))));
}

/** Means of a run so far that forget: as TensorBoard smooths, with the first points not pulled to zero. */
export function smooth(points, weight) {
  let mean = 0, mass = 0;
  const out = [];
  for (const {x, y} of points) {
    if (!Number.isFinite(y)) continue;
    mean = mean * weight + y * (1 - weight);
    mass = mass * weight + (1 - weight);
    out.push({x, y: mean / mass});
  }
  return out;
}

function options(n_decimals) {
  return {
    animation: false,
    maintainAspectRatio: false,
    parsing: false,
    normalized: true,
    interaction: {mode: 'nearest', axis: 'x', intersect: false},
    scales: {
      x: {type: 'linear', ticks: {maxRotation: 0, autoSkipPadding: 24, callback: short}, grid: {}},
      y: {type: 'linear', ticks: {maxTicksLimit: 7, callback: short}, grid: {}},
    },
    plugins: {
      legend: {display: false},
      decimation: {enabled: true, algorithm: 'min-max'},
      tooltip: {
        callbacks: {
          title: (items) => items.length ? t('at_step', decimals(items[0].parsed.x, 0)) : '',
          label: (item) => `${item.dataset.label}: ` +
              (n_decimals < 0 ? short(item.parsed.y) : decimals(item.parsed.y, n_decimals)),
        },
      },
    },
  };
}

const line = (label, colour, data, more = {}) => ({
  label, data, borderColor: colour, backgroundColor: colour, borderWidth: 1.8, pointRadius: 0, pointHitRadius: 6,
  spanGaps: true, ...more,
});

const charts = {};

function chart(id, n_decimals) {
  charts[id] ??= new Chart(document.getElementById(id), {type: 'line', data: {datasets: []}, options: options(n_decimals)});
  return charts[id];
}

function draw(id, n_decimals, datasets, change = () => {}) {
  const drawn = chart(id, n_decimals), ink = style('--muted'), grid = style('--line');
  // A single point has no line to be seen by.
  for (const set of datasets) if (set.data.length === 1) set.pointRadius = 3;
  drawn.data.datasets = datasets;
  for (const axis of Object.values(drawn.options.scales)) {
    axis.ticks.color = ink;
    axis.grid.color = grid;
    axis.grid.borderColor = grid;
  }
  drawn.options.plugins.tooltip.rtl = language() === 'fa';
  drawn.options.plugins.tooltip.textDirection = language() === 'fa' ? 'rtl' : 'ltr';
  change(drawn.options);
  drawn.update('none');
}

const points = (run, column) => run.points.map((p) => ({x: p[0], y: p[column]})).filter((p) => Number.isFinite(p.y));
const named = (run, runs, what) => runs.length > 1 ? `${run.name} · ${what}` : what;

/** Draws every chart; health is the run `focus`'s alone. `view`: {smoothing, logarithmic}. */
export function drawCharts(runs, focus, view) {
  Chart.defaults.font.family = '"Noto Sans Arabic", system-ui, sans-serif';
  const losses = [];
  runs.forEach((run, i) => {
    const raw = points(run, run.column.loss), colour = colourOf(i);
    losses.push(line(named(run, runs, t('each_update')), colour + '59', raw, {borderWidth: 1}));
    losses.push(line(named(run, runs, t('smoothed')), colour, smooth(raw, view.smoothing), {borderWidth: 2.2}));
    losses.push(line(named(run, runs, t('validation')), colour, run.evals.map(([x, y]) => ({x, y})),
        {borderDash: [5, 4], borderWidth: 1.4, pointRadius: 4, pointStyle: 'rectRot'}));
  });
  draw('loss', 4, losses, (o) => { o.scales.y.type = view.logarithmic ? 'logarithmic' : 'linear'; });
  for (const [id, n_decimals] of [['grad_norm', 3], ['learning_rate', -1], ['tokens_per_s', 0]]) {
    draw(id, n_decimals, runs.map((run, i) => line(named(run, runs, t(id)), colourOf(i), points(run, run.column[id]))));
  }
  drawHealth(runs[focus]);
}

function drawHealth(run) {
  document.getElementById('health_card').hidden = run.probes.length === 0;
  if (run.probes.length === 0) return;
  const sets = HEALTH.map((measure, m) => {
    const data = run.probes.filter((p) => Number.isFinite(p.health?.[measure])).map((p) => ({x: p.step, y: 100 * p.health[measure]}));
    return line(t(measure), COLOURS[m], data, {borderDash: HEALTH_DASHES[m], pointRadius: 3});
  });
  draw('health', 1, sets, (o) => {
    o.scales.y.min = 0;
    o.scales.y.suggestedMax = 100;
    o.plugins.legend.display = true;
    o.plugins.legend.rtl = language() === 'fa';
    o.plugins.legend.textDirection = language() === 'fa' ? 'rtl' : 'ltr';
    o.plugins.legend.labels = {boxWidth: 22, boxHeight: 0, color: style('--muted')};
  });
}
