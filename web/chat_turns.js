// The turns of a conversation as elements. Enters: turns and answers of conversation.js. Leaves: one article for each
// message and answer, with its buttons. What a button does is the page's: `acts` {copy, edit, retry}.

import {decimals, digits, directionOf, language, make, t} from './common.js';
import {MarkdownView} from './markdown.js';

const button = (word, act) => {
  const element = make('button', 'quiet', t(word));
  element.type = 'button';
  element.addEventListener('click', () => act(element));
  return element;
};

/** A button in the corner of each block of code. */
function addCodeButtons(container, copy) {
  for (const block of container.querySelectorAll('.code-block:not(:has(button))')) {
    block.prepend(button('code', (element) => copy(block.querySelector('code').textContent, element)));
  }
}

const fallbackDirection = () => (language() === 'fa' ? 'rtl' : 'ltr');

/** What went wrong in the words of the interface; the server's own words come with it. */
function troubleOf(answer) {
  if (answer.finish === 'error') return answer.error;
  return answer.finish === 'stopped' || answer.finish === 'length' ? t(answer.finish) : '';
}

function figuresOf(answer) {
  const parts = [];
  if (answer.tokens !== null) {
    const rate = answer.seconds > 0 ? decimals(answer.tokens / answer.seconds, 1) : '–';
    parts.push(t('figures', digits(String(answer.tokens)), rate));
  }
  if (answer.seed !== null) parts.push(t('seedFigure', digits(String(answer.seed))));
  return parts.join(' · ');
}

/** One answer that may still be written. */
class AnswerView {
  constructor(turn, answer, acts) {
    this.answer = answer;
    this.fallback = directionOf(turn.text) || fallbackDirection();
    const name = make('bdi', 'model', answer.model);
    name.dir = 'ltr';
    this.text = make('div', 'text');
    this.trouble = make('p', 'trouble');
    this.figures = make('p', 'figures muted');
    const actions = make('div', 'actions', button('copy', (element) => acts.copy(answer.text, element)),
                         button('retry', () => acts.retry(turn, answer)));
    this.element = make('article', 'answer', make('header', 'who', name), this.text, this.trouble, this.figures, actions);
    this.element.setAttribute('aria-label', t('answerOf', answer.model));
    this.view = new MarkdownView(this.text);
    this.copy = acts.copy;
    this.update();
  }

  get isOpen() { return this.answer.finish === ''; }

  update() {
    const {answer, isOpen} = this;
    this.element.classList.toggle('open', isOpen);
    this.element.setAttribute('aria-busy', String(isOpen));
    this.element.classList.toggle('waiting', isOpen && answer.text === '');
    if (isOpen) this.view.grow(answer.text, this.fallback);
    else {
      this.view.show(answer.text, this.fallback);
      addCodeButtons(this.text, this.copy);
    }
    this.trouble.textContent = isOpen ? (answer.text ? '' : t('thinking')) : troubleOf(answer);
    this.trouble.classList.toggle('bad', answer.finish === 'error');
    this.figures.textContent = isOpen ? '' : figuresOf(answer);
  }
}

/** The message of a person; `edit` turns it into a box. */
function messageElement(turn, acts) {
  const text = make('div', 'text');
  new MarkdownView(text).show(turn.text, fallbackDirection());
  addCodeButtons(text, acts.copy);
  const edit = button('edit', () => openEditor(element, turn, acts));
  edit.classList.add('edit');
  const element = make('article', 'message', text,
                       make('div', 'actions', button('copy', (b) => acts.copy(turn.text, b)), edit));
  element.setAttribute('aria-label', t('you'));
  return element;
}

function openEditor(element, turn, acts) {
  const box = make('textarea');
  box.value = turn.text;
  box.rows = Math.min(turn.text.split('\n').length + 1, 12);
  box.dir = directionOf(turn.text) || fallbackDirection();
  box.setAttribute('aria-label', t('editing'));
  const close = () => {
    const fresh = messageElement(turn, acts);
    form.replaceWith(fresh);
    fresh.querySelector('.edit').focus();
  };
  const save = make('button', 'primary', t('save'));
  const form = make('form', 'editor', box, make('p', 'muted', t('editing')), make('div', 'row', save, button('cancel', close)));
  form.addEventListener('submit', (event) => {
    event.preventDefault();
    if (box.value.trim()) acts.edit(turn, box.value);
  });
  box.addEventListener('input', () => (box.dir = directionOf(box.value) || fallbackDirection()));
  box.addEventListener('keydown', (event) => {
    if (event.isComposing) return;
    if (event.key === 'Escape') close();
    else if (event.key === 'Enter' && !event.shiftKey) form.requestSubmit();
    else return;
    event.preventDefault();
    event.stopPropagation();
  });
  element.replaceWith(form);
  box.focus();
}

/** All turns in one container. */
export class TurnsView {
  constructor(container, acts) {
    this.container = container;
    this.acts = acts;
    this.views = new Map();  // answer to AnswerView
  }

  /** Draws every turn anew. */
  show(turns) {
    this.views.clear();
    this.container.replaceChildren(...turns.map((turn) => this.#turnElement(turn)));
    this.#markLast();
  }

  /** Adds the last of the turns. */
  add(turn) {
    this.container.append(this.#turnElement(turn));
    this.#markLast();
  }

  /** Draws what has grown of an answer. */
  update(answer) { this.views.get(answer)?.update(); }

  /** Opens the last message for editing; false when there is none. */
  editLast() {
    const edit = [...this.container.querySelectorAll('.edit')].at(-1);
    edit?.click();
    return edit !== undefined;
  }

  #turnElement(turn) {
    const answers = turn.answers.map((answer) => {
      const view = new AnswerView(turn, answer, this.acts);
      this.views.set(answer, view);
      return view.element;
    });
    const row = make('div', answers.length > 1 ? 'answers beside' : 'answers', ...answers);
    return make('section', 'turn', messageElement(turn, this.acts), row);
  }

  /** Only the last turn can be answered again: later ones were said after it. */
  #markLast() {
    for (const turn of this.container.children) turn.classList.toggle('last', turn === this.container.lastElementChild);
  }
}
