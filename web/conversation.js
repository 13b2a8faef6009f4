// The conversation: its turns, its settings, where it is kept and what is exported. Enters: whatever localStorage holds,
// which anybody at this machine may have written. Leaves: objects with the fields below and no others. Invariant: what
// is read is checked field by field into new objects; nothing is merged, so no key can reach a prototype.
//   conversation {turns, settings}
//   turn         {text, answers: [answer]}           one answer, or two side by side
//   answer       {model, text, finish, error, tokens, seconds, seed}
//   settings     {model, other, system, guard, parameters}  other: the model beside it, or ''; guard: clean Persian

const KEY = 'saaz-chat';
const FINISHES = ['stop', 'length', 'stopped', 'error'];

/** The sampling parameters: name in the API, limits, step of the field, start value ('' leaves it to the server). */
export const PARAMETERS = [
  {name: 'temperature', min: 0, max: 2, step: 0.05, start: 0.7},
  {name: 'top_p', min: 0, max: 1, step: 0.01, start: 0.95},
  {name: 'top_k', min: 0, max: 1000, step: 1, start: 64},
  {name: 'min_p', min: 0, max: 1, step: 0.01, start: 0},
  {name: 'repetition_penalty', min: 0.5, max: 2, step: 0.01, start: 1},
  {name: 'max_tokens', min: 1, max: 32768, step: 1, start: 512},
  {name: 'seed', min: 0, max: 2 ** 32 - 1, step: 1, start: ''},
];

const own = (object, key) => (Object.prototype.hasOwnProperty.call(object, key) ? object[key] : undefined);
const isObject = (value) => value !== null && typeof value === 'object' && !Array.isArray(value);
const text = (value, limit = 1_000_000) => (typeof value === 'string' ? value.slice(0, limit) : '');
const number = (value) => (typeof value === 'number' && Number.isFinite(value) ? value : null);
const list = (value) => (Array.isArray(value) ? value.filter(isObject) : []);

/** A parameter's value within its limits, or '' when it is none. */
export function boundedParameter({min, max, step}, value) {
  const wanted = typeof value === 'string' ? (value.trim() === '' ? NaN : Number(value)) : value;
  if (typeof wanted !== 'number' || !Number.isFinite(wanted)) return '';
  const bounded = Math.min(Math.max(wanted, min), max);
  return step === 1 ? Math.round(bounded) : bounded;
}

const answerFrom = (value) => ({
  model: text(own(value, 'model'), 300),
  text: text(own(value, 'text')),
  finish: FINISHES.includes(own(value, 'finish')) ? own(value, 'finish') : 'stopped',
  error: text(own(value, 'error'), 2000),
  tokens: number(own(value, 'tokens')),
  seconds: number(own(value, 'seconds')),
  seed: number(own(value, 'seed')),
});

/** Settings out of anything at all. */
function settingsFrom(value) {
  const from = isObject(value) ? value : {};
  const stored = isObject(own(from, 'parameters')) ? own(from, 'parameters') : {};
  const parameters = {};
  for (const parameter of PARAMETERS) {
    const found = own(stored, parameter.name);
    parameters[parameter.name] = found === undefined ? parameter.start : boundedParameter(parameter, found);
  }
  return {model: text(own(from, 'model'), 300), other: text(own(from, 'other'), 300), system: text(own(from, 'system')), guard: own(from, 'guard') === true, parameters};
}

/** A conversation out of anything at all. */
export function conversationFrom(value) {
  const from = isObject(value) ? value : {};
  const turns = list(own(from, 'turns')).slice(-1000).map((turn) => ({
    text: text(own(turn, 'text')),
    answers: list(own(turn, 'answers')).slice(0, 2).map(answerFrom),
  }));
  return {turns: turns.filter((turn) => turn.text.trim() !== ''), settings: settingsFrom(own(from, 'settings'))};
}

/** The kept conversation, or a new one. */
export function load() {
  try {
    return conversationFrom(JSON.parse(localStorage.getItem(KEY) ?? '{}'));
  } catch {
    return conversationFrom({});
  }
}

/** Keeps the conversation; false when the browser has no room or no storage. */
export function save(conversation) {
  try {
    localStorage.setItem(KEY, JSON.stringify(conversation));
    return true;
  } catch {
    return false;
  }
}

/** The answer a model saw as its own: its own where it gave one, else the one that there is. */
const heardBy = (turn, model) =>
    turn.answers.find((answer) => answer.model === model && answer.text) ?? turn.answers.find((answer) => answer.text);

/** The messages that ask `model` for its answer to the last of `turns`. Unanswered turns before it are left out. */
export function messagesFor(turns, model, system) {
  const messages = system.trim() ? [{role: 'system', content: system}] : [];
  turns.forEach((turn, i) => {
    const answer = i + 1 < turns.length ? heardBy(turn, model) : null;
    if (answer || i + 1 === turns.length) messages.push({role: 'user', content: turn.text});
    if (answer) messages.push({role: 'assistant', content: answer.text});
  });
  return messages;
}

const modelsOf = (turns) => [...new Set(turns.flatMap((turn) => turn.answers.map((answer) => answer.model)))];

/** Rows that `saaz data` reads as conversations, one for each model. */
export function exportJson({turns, settings}) {
  const rows = modelsOf(turns).map((model) => {
    const messages = settings.system.trim() ? [{role: 'system', content: settings.system}] : [];
    for (const turn of turns) {
      const answer = heardBy(turn, model);
      if (answer) messages.push({role: 'user', content: turn.text}, {role: 'assistant', content: answer.text});
    }
    return {messages, model, parameters: settings.parameters};
  });
  return JSON.stringify(rows, null, 2) + '\n';
}

/** The conversation for people. `words`: {title, system, user}. */
export function exportMarkdown({turns, settings}, words) {
  const parts = [`# ${words.title}`];
  if (settings.system.trim()) parts.push(`## ${words.system}`, settings.system.trim());
  for (const turn of turns) {
    parts.push(`## ${words.user}`, turn.text.trim());
    for (const answer of turn.answers) if (answer.text) parts.push(`## ${answer.model}`, answer.text.trim());
  }
  return parts.join('\n\n') + '\n';
}
