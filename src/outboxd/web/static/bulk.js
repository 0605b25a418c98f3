// Acting on all that a view leaves, and on the destination: the buttons for whom may,
// and the command that does the same.

import { deadCount } from './acting.js';
import { isStale } from './api.js';
import { now } from './clock.js';
import { announce, become, byId, h, isSelectedIn } from './dom.js';
import { copied } from './drawer.js';
import { count } from './format.js';
import { toThisAgent } from './standing.js';
import { apiQuery, commandWords, hasDead } from './view.js';

const QUESTIONS = {
  retry: (all) => `Send ${all} that these filters leave once more?`,
  drop: (all) => `Remove ${all} that these filters leave for good?`,
};

export class Bulk {
  /** `acting` knows what this browser may do, `view()` what is shown. */
  constructor({ acting, view }) {
    this.acting = acting;
    this.view = view;
    this.destinationHeld = false;
    this.copyWord = 'Copy';
    this.element = byId('act');
    this.element.addEventListener('click', (event) => this.press(event.target.closest('[data-act]')?.dataset.act));
  }

  /** What stays the same stays the same element: somebody may be pressing it. */
  paint() {
    const buttons = this.acting.may ? [...this.ofDeadLetters(), ...this.ofDestination()] : [];
    become(this.element, [...buttons, this.commandLine()]);
  }

  /** The same for a range that ends now, but for who is selecting the command. */
  paintMoment() {
    if (!isSelectedIn(this.element)) this.paint();
  }

  ofDeadLetters() {
    if (!hasDead(this.view())) return [];
    return [this.button('retry', 'Retry all dead letters shown'), this.button('drop', 'Drop them', { danger: true })];
  }

  ofDestination() {
    if (this.destinationHeld) return [this.button('release', 'Release the destination')];
    return [this.button('hold', 'Hold the destination'), this.button('now', 'Try now')];
  }

  button(name, word, more = {}) {
    return this.acting.button(word, undefined, { 'data-act': name, ...more });
  }

  commandLine() {
    if (!hasDead(this.view())) return h('span', { class: 'bulk-command' }, h('span', {}, 'No dead letter is in this view.'));
    return h('span', { class: 'bulk-command' }, h('span', {}, 'All dead letters of this view: '), h('code', {}, this.command()),
      h('button', { type: 'button', class: 'copy', 'data-act': 'copy', 'aria-label': 'Copy the command for all dead letters of this view' }, this.copyWord));
  }

  /** For the view as it is now: its last hour is the one before this moment. */
  command() {
    const words = commandWords(this.view());
    return `outboxd dead-letters retry --all${words ? ` ${words}` : ''}${toThisAgent()}`;
  }

  press(name) {
    const { acting } = this;
    if (name in QUESTIONS) this.change(name);
    else if (name === 'hold') acting.act('Send nothing more until somebody releases it?', '/v1/hold', { reason: 'from the page' });
    else if (name === 'release') acting.act('Let the destination go on?', '/v1/release');
    else if (name === 'now') acting.act('End every wait and send now?', '/v1/release');
    else if (name === 'copy') this.copy();
  }

  /** Retries or drops all dead letters of the view, after their number. */
  async change(name) {
    const { acting } = this;
    const query = apiQuery(this.view());
    query.delete('state');
    // What comes in while somebody reads the question is not meant by its number. What is
    // sent once more without being meant is no loss, and a clock may have been set back.
    if (name === 'drop' && !query.has('until')) query.set('until', new Date(now()).toISOString());
    try {
      const number = await deadCount(query);
      if (number === 0) acting.tell('No dead letter is among these events.');
      else acting.act(QUESTIONS[name](count(number, 'dead letter', 'dead letters')), `/v1/dead-letters/${name}?${query}`, {}, { danger: name === 'drop', number });
    } catch (error) {
      if (!isStale(error)) acting.tell(`Nothing was done: ${error.message}`);
    }
  }

  async copy() {
    const say = (word) => {
      this.copyWord = word;
      this.paint();
    };
    say((await copied(this.command())) ? 'Copied' : 'Press Ctrl+C');
    announce(this.copyWord);
    setTimeout(say, 1600, 'Copy');
  }
}
