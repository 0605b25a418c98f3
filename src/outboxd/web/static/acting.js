// Acting: only with the right that `outboxd page` gives to one browser. The link's
// token is handed in once; the cookie stays with the browser, the key in this
// origin's storage, which no other port of the host can read.

import { get, post } from './api.js';
import { announce, byId, h, setText } from './dom.js';
import { count } from './format.js';
import { KIND } from './view.js';

const KEY = 'outboxd-key';

export class Acting {
  /** `onChange()` hears when the right comes or goes, `onDone(path)` when something was
   * done (null: refused, so that what is shown is old). */
  constructor({ onChange, onDone }) {
    this.onChange = onChange;
    this.onDone = onDone;
    this.may = false;
    this.by = '';
    this.until = 0; // by this browser's clock, in ms
    this.isUnanswered = false;
  }

  /** Whether the agent answers: nothing can be done while it does not, and whether this
   * browser may act is looked at anew when it does again, as it may be another process. */
  setUnanswered(isUnanswered) {
    const isBack = this.isUnanswered && !isUnanswered;
    this.isUnanswered = isUnanswered;
    if (isBack && this.may) this.start();
    else this.told();
  }

  /** Hands in the token of a link, or looks whether this browser may act already. */
  async start() {
    if (KIND !== 'agent') return;
    const token = new URLSearchParams(location.hash.slice(1)).get('act');
    if (token) history.replaceState(history.state, '', location.pathname + location.search);
    try {
      if (token) {
        const answer = await post('/v1/session', { token });
        localStorage.setItem(KEY, answer.key);
        this.set(answer);
      } else if (localStorage.getItem(KEY)) {
        const response = await fetch('/v1/session', { headers: { 'X-Outboxd-Key': localStorage.getItem(KEY) } });
        this.set(await response.json());
      } else this.set({ mayAct: false });
    } catch (error) {
      this.set({ mayAct: false, trouble: `${error.message}${error.hint ? `: ${error.hint}` : ''}` });
    }
  }

  set({ mayAct, by = '', leftSeconds = 0, trouble = '' }) {
    this.may = mayAct;
    this.by = by;
    this.trouble = trouble;
    this.until = Date.now() + leftSeconds * 1000;
    clearTimeout(this.ends);
    if (mayAct) this.ends = setTimeout(() => this.set({ mayAct: false }), leftSeconds * 1000);
    this.told();
  }

  /** Says whether this browser may act, and has the buttons follow. */
  told() {
    const mark = byId('acting');
    const isIdle = this.may && this.isUnanswered;
    setText(mark, isIdle ? 'Cannot act now' : this.may ? 'May act' : this.trouble || 'Read only');
    if (isIdle) mark.title = 'The agent does not answer';
    else if (this.may) mark.title = `As ${this.by}, until ${new Date(this.until).toLocaleTimeString()}`;
    else mark.title = 'outboxd page, run by root or the agent’s own user, opens this page with the right to act';
    mark.dataset.may = String(this.may && !isIdle);
    this.onChange();
  }

  /** A button that acts: while the agent does not answer it can be seen, and not pressed. */
  button(word, onclick, { danger = false, ...attributes } = {}) {
    return h('button', {
      type: 'button', class: danger ? 'button danger' : 'button', onclick, ...attributes,
      ...(this.isUnanswered ? { disabled: true, title: 'The agent does not answer' } : {}),
    }, word);
  }

  /** Says something that stands until it is closed. */
  tell(text) {
    return told(text);
  }

  /** Does something after a question; `what` says it in words, with its number. */
  async act(what, path, content = {}, { danger = false, number = 1 } = {}) {
    if (!(await confirmed(what, danger ? number : null))) return false;
    try {
      const answer = await post(path, content, localStorage.getItem(KEY));
      announce(answer.changed === undefined ? 'Done' : `Done: ${count(answer.changed, 'event', 'events')}`);
      this.onDone(path);
      return true;
    } catch (error) {
      const had = this.may;
      if (error.status === 403) await this.start();
      await told(had && !this.may ? 'Nothing was done: the right to act has ended. `outboxd page` gives a new link, good for an hour.'
        : error.status === 404 ? 'Nothing was done: this event is gone. Somebody dropped it, or it was delivered and pruned.'
          : `${error.message}${error.hint ? ` (${error.hint})` : ''}`);
      this.onDone(null);
      return false;
    }
  }
}

/** Asks; a dangerous one wants the number typed. */
function confirmed(what, number) {
  return new Promise((resolve) => {
    const field = number === null ? null : h('input', { type: 'text', inputmode: 'numeric', autocomplete: 'off', 'aria-label': 'The number of events' });
    const yes = h('button', { type: 'submit', class: number === null ? 'button primary' : 'button danger' }, 'Do it');
    const no = h('button', { type: 'button', class: 'button', onclick: () => dialog.close() }, 'Leave it');
    const form = h('form', { method: 'dialog' }, h('p', { id: 'question' }, what),
      field ? h('label', {}, `This cannot be undone. Type ${number} to go on `, field) : '', h('div', { class: 'buttons' }, no, yes));
    const dialog = h('dialog', { class: 'question', 'aria-labelledby': 'question' }, form);
    let answer = false;
    if (field) {
      yes.disabled = true;
      field.addEventListener('input', () => { yes.disabled = field.value.trim() !== String(number); });
    }
    form.addEventListener('submit', (event) => {
      event.preventDefault();
      answer = true;
      dialog.close();
    });
    dialog.addEventListener('close', () => {
      dialog.remove();
      resolve(answer);
    });
    document.body.append(dialog);
    dialog.showModal();
  });
}

function told(text) {
  return new Promise((resolve) => {
    const dialog = h('dialog', { class: 'question' }, h('p', {}, text),
      h('div', { class: 'buttons' }, h('button', { type: 'button', class: 'button', onclick: () => dialog.close() }, 'Close')));
    dialog.addEventListener('close', () => {
      dialog.remove();
      resolve();
    });
    document.body.append(dialog);
    dialog.showModal();
  });
}

/** How many dead letters a view's filters leave. */
export async function deadCount(query) {
  const dead = new URLSearchParams(query);
  dead.delete('state');
  dead.set('state', 'dead');
  let answer;
  do answer = await get('/v1/facets', dead, 'dead-count'); while (!answer.complete);
  return answer.matched;
}
