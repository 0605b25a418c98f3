// Hears of changes by server-sent events; where that does not work, asks. A tab
// that nobody sees lets go of its connection and fetches nothing: a browser has
// only six for one listener. Of those that are seen a few listen, the others ask.

import { forget, get } from './api.js';
import { byId, setText } from './dom.js';

const ASK_MS = 3000;
const RETRY_MS = 2000;
const STREAMS = 4; // of one browser, which leaves it two connections for all else
const ANSWER_MAX_MS = 4000; // one that stands still takes a question and never answers
// A stream says something at least every 5 s; after twice that it is dead.
const SILENCE_MAX_MS = 11_000;
const WORDS = { connecting: 'Connecting', live: 'Live', asking: 'Live, every 3 s', paused: 'Paused', offline: 'No answer' };

export class Live {
  /** `onChange()` hears that something changed, `onStatus(status)` how things stand,
   * `onStale(since)` since when there is no answer (null: there is one again), `onPause()`
   * that nothing may change any more. */
  constructor({ onChange, onStatus, onStale, onPause }) {
    this.onChange = onChange;
    this.onStatus = onStatus;
    this.onStale = onStale;
    this.onPause = onPause;
    this.failures = 0;
    this.paused = false;
    this.heardAt = Date.now();
    this.isStale = false;
    this.mark = byId('live');
    this.mark.addEventListener('click', () => this.toggle());
    document.addEventListener('visibilitychange', () => (document.hidden ? this.letGo() : this.goOn()));
    setInterval(() => this.stream && Date.now() - Math.max(this.heardAt, this.begunAt) > SILENCE_MAX_MS && this.lost(), 1000);
  }

  start() {
    this.goOn();
  }

  toggle() {
    this.paused = !this.paused;
    if (this.paused) {
      this.letGo();
      this.onPause();
      this.say('paused');
    } else this.goOn();
  }

  letGo() {
    this.stream?.close();
    this.stream = null;
    this.giveBack?.();
    this.giveBack = null;
    this.turn = (this.turn ?? 0) + 1;
    clearTimeout(this.timer);
    forget('status');
  }

  async goOn() {
    if (this.paused || document.hidden) return;
    this.letGo();
    const { turn } = this;
    if (!globalThis.EventSource || this.failures > 3) {
      this.ask();
      return;
    }
    const giveBack = await place();
    if (turn !== this.turn) {
      giveBack?.();
      return;
    }
    this.giveBack = giveBack;
    if (!giveBack) {
      this.ask();
      return;
    }
    this.begunAt = Date.now();
    const stream = this.stream = new EventSource('/v1/stream');
    stream.addEventListener('changed', (event) => {
      this.failures = 0;
      this.heard('live');
      this.onStatus(JSON.parse(event.data).status);
      this.onChange();
    });
    stream.addEventListener('alive', () => this.heard('live'));
    stream.addEventListener('error', () => this.stream === stream && this.lost());
  }

  /** The stream ended, or was refused: asking tells whether the program still answers. */
  lost() {
    this.letGo();
    this.failures += 1;
    this.ask();
  }

  async ask() {
    clearTimeout(this.timer);
    try {
      const status = await get('/v1/status', null, 'status', JSON.parse, ANSWER_MAX_MS);
      this.heard('asking');
      this.onStatus(status);
      this.onChange();
      // A stream again, after a while: it may have been one restart.
      this.timer = setTimeout(() => (this.failures > 3 ? this.ask() : this.goOn()), ASK_MS);
    } catch (error) {
      if (error.name === 'AbortError') return;
      this.say('offline');
      this.isStale = true;
      this.onStale(this.heardAt);
      this.failures = 0;
      this.timer = setTimeout(() => this.ask(), RETRY_MS);
    }
  }

  heard(state) {
    this.heardAt = Date.now();
    if (this.isStale) {
      this.isStale = false;
      this.onStale(null);
    }
    this.say(this.paused ? 'paused' : state);
  }

  say(state) {
    if (this.mark.dataset.state === state) return;
    this.mark.dataset.state = state;
    this.mark.setAttribute('aria-pressed', String(state === 'paused'));
    this.mark.title = state === 'paused' ? 'Go on with the live view' : 'Pause the live view';
    setText(this.mark.querySelector('.word'), WORDS[state]);
  }
}

/** One of the places for a stream, which all pages of this browser share: gives it back
 * when called. Null where all are taken. */
async function place() {
  if (!navigator.locks) return () => {};
  for (let number = 0; number < STREAMS; number += 1) {
    const found = await new Promise((resolve) => {
      navigator.locks.request(`outboxd-stream-${number}`, { ifAvailable: true }, (lock) => (lock
        ? new Promise((giveBack) => { resolve(giveBack); }) : resolve(null)));
    });
    if (found) return found;
  }
  return null;
}
