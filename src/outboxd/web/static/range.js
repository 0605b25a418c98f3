// A time range to type, in local time or in UTC; the zone is always shown.

import { now as currentTime } from './clock.js';
import { byId, h, setText } from './dom.js';

const ZONE = new Intl.DateTimeFormat().resolvedOptions().timeZone;

export class Range {
  /** `onSelect(since, until)` hears of a range; null is no bound. */
  constructor({ onSelect }) {
    this.onSelect = onSelect;
    const field = (label) => h('input', { type: 'text', 'aria-label': label, placeholder: '2026-11-21 23:31', autocomplete: 'off', spellcheck: 'false', size: 19 });
    this.from = field('From');
    this.to = field('To');
    this.utc = h('select', { 'aria-label': 'Time zone' }, h('option', { value: '' }, `Local (${ZONE})`), h('option', { value: 'utc' }, 'UTC'));
    this.trouble = h('p', { class: 'trouble', role: 'alert' });
    this.form = h('form', { id: 'typed-range', class: 'card typed-range', hidden: true },
      h('label', {}, 'From ', this.from), h('label', {}, 'to ', this.to), h('label', {}, this.utc),
      h('button', { type: 'submit', class: 'button primary' }, 'Show'), this.trouble);
    byId('ranges').after(this.form);
    this.button = h('button', { type: 'button', 'aria-expanded': 'false', 'aria-controls': 'typed-range', title: 'Type a time range', onclick: () => this.toggle() }, 'From … to');
    byId('ranges').append(this.button);
    this.form.addEventListener('submit', (event) => {
      event.preventDefault();
      this.give();
    });
    this.utc.addEventListener('change', () => this.rewrite());
  }

  toggle(open = this.form.hidden) {
    this.form.hidden = !open;
    this.button.setAttribute('aria-expanded', String(open));
    if (open) this.from.focus();
  }

  close() {
    this.toggle(false);
    this.button.focus();
  }

  /** Shows the present range in the fields. */
  show(since, until) {
    this.since = since;
    this.until = until;
    this.button.setAttribute('aria-pressed', String(since !== null || until !== null));
    if ([this.from, this.to].includes(document.activeElement)) return; // somebody types
    this.from.value = since === null ? '' : written(since, this.utc.value === 'utc');
    this.to.value = until === null ? '' : written(until, this.utc.value === 'utc');
  }

  /** In the other zone; what somebody has typed stays, and is meant in that one. */
  rewrite() {
    const isUtc = this.utc.value === 'utc';
    for (const [field, at] of [[this.from, this.since], [this.to, this.until]]) {
      if (at !== null && field.value === written(at, !isUtc)) field.value = written(at, isUtc);
    }
  }

  /** What a field says: null for nothing, NaN for what is no time. What nobody changed is the
   * moment that it was: its text has no fraction of a second, and an hour may come twice. */
  read(text, before) {
    const isUtc = this.utc.value === 'utc';
    if (text === '') return null;
    return before !== null && text === written(before, isUtc) ? before : read(text, isUtc);
  }

  give() {
    const bounds = [];
    for (const [field, shown] of [[this.from, this.since], [this.to, this.until]]) {
      const at = this.read(field.value.trim(), shown);
      if (Number.isNaN(at)) {
        setText(this.trouble, `“${field.value}” is no time: write it as 2026-11-21 23:31, 2026-11-21T23:31:36Z, 23:31 (of today) or 2h (ago)`);
        field.focus();
        return;
      }
      bounds.push(at);
    }
    if (bounds[0] !== null && bounds[1] !== null && bounds[0] >= bounds[1]) {
      setText(this.trouble, 'The range ends before it begins.');
      return;
    }
    setText(this.trouble, '');
    this.onSelect(...bounds);
  }
}

const AGO = /^-?(\d{1,5})\s*([smhd])$/i;
const UNITS_MS = { s: 1000, m: 60_000, h: 3_600_000, d: 86_400_000 };
const CLOCK = /^(\d?\d):(\d\d)(?::(\d\d))?$/;
const DATE = /^(\d{4})-(\d\d)-(\d\d)(?:[T ](\d\d):(\d\d)(?::(\d\d)(\.\d+)?)?)?\s*(?:(Z)|([+-])(\d\d):?(\d\d))?$/i;

/** "2026-11-21 23:31:36" as milliseconds; with an offset of its own that one counts. A time
 * alone is one of today, "2h" was so long ago, as in the commands. NaN for what is no time. */
export function read(text, isUtc, now = currentTime()) {
  const ago = AGO.exec(text);
  if (ago) return now - Number(ago[1]) * UNITS_MS[ago[2].toLowerCase()];
  const clock = CLOCK.exec(text);
  const today = written(now, isUtc).slice(0, 10);
  const parts = DATE.exec(clock ? `${today} ${text.padStart(clock[3] ? 8 : 5, '0')}` : text);
  if (!parts) return NaN;
  const [year, month, day, hour, minute, second, fraction] = parts.slice(1, 8).map((part) => Number(part ?? 0));
  const offset = parts[9] ? Number(`${parts[9]}1`) * (Number(parts[10]) * 60 + Number(parts[11])) : 0;
  const date = new Date(0);
  const set = isUtc || parts[8] || parts[9] ? 'setUTC' : 'set';
  date[`${set}FullYear`](year, month - 1, day);
  date[`${set}Hours`](hour, minute, second, Math.floor(fraction * 1000));
  const [shownMonth, shownDay] = set === 'set' ? [date.getMonth(), date.getDate()] : [date.getUTCMonth(), date.getUTCDate()];
  return shownMonth === month - 1 && shownDay === day && hour < 24 && minute < 60 && second < 60 ? date.getTime() - offset * 60_000 : NaN;
}

function written(at, isUtc) {
  const date = new Date(isUtc ? at : at - new Date(at).getTimezoneOffset() * 60_000);
  return date.toISOString().slice(0, 19).replace('T', ' ');
}
