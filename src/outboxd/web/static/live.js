// Hears of changes by server-sent events; where that does not work, asks.

import { get } from './api.js';
import { byId, setText } from './dom.js';

const ASK_MS = 3000;
const WORDS = { connecting: 'Connecting', live: 'Live', asking: 'Live, every 3 s', offline: 'Offline' };

export class Live {
  /** `onChange()` hears that something changed, `onStatus(status)` how things stand. */
  constructor({ onChange, onStatus }) {
    this.onChange = onChange;
    this.onStatus = onStatus;
    this.failures = 0;
  }

  start() {
    if (!globalThis.EventSource) {
      this.ask();
      return;
    }
    const stream = new EventSource('/v1/stream');
    stream.addEventListener('changed', (event) => {
      this.failures = 0;
      this.say('live');
      this.onStatus(JSON.parse(event.data).status);
      this.onChange();
    });
    stream.addEventListener('open', () => this.say('live'));
    stream.addEventListener('error', () => {
      this.failures += 1;
      this.say('offline');
      // Refused for good (too many pages listen, a proxy in between): ask instead.
      if (stream.readyState === EventSource.CLOSED || this.failures > 20) {
        stream.close();
        this.ask();
      }
    });
  }

  async ask() {
    try {
      const status = await get('/v1/status', null, 'status');
      this.say('asking');
      this.onStatus(status);
      this.onChange();
    } catch {
      this.say('offline');
    }
    setTimeout(() => this.ask(), ASK_MS);
  }

  say(state) {
    const mark = byId('live');
    if (mark.dataset.state === state) return;
    mark.dataset.state = state;
    setText(mark.querySelector('.word'), WORDS[state]);
  }
}
