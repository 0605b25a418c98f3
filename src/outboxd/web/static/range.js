// A time range to type, in local time or in UTC; the zone is always shown.

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
    this.utc.addEventListener('change', () => this.show(this.since, this.until));
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

  give() {
    const bounds = [];
    for (const field of [this.from, this.to]) {
      const at = field.value.trim() === '' ? null : read(field.value.trim(), this.utc.value === 'utc');
      if (Number.isNaN(at)) {
        setText(this.trouble, `“${field.value}” is no time: write it as 2026-11-21 23:31 or 2026-11-21T23:31:36Z`);
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

/** "2026-11-21 23:31:36" as milliseconds; with an offset of its own that one counts. */
export function read(text, isUtc) {
  const parts = /^(\d{4})-(\d\d)-(\d\d)(?:[T ](\d\d):(\d\d)(?::(\d\d)(?:\.\d+)?)?)?\s*(Z|[+-]\d\d:\d\d)?$/i.exec(text);
  if (!parts) return NaN;
  if (parts[7]) return Date.parse(text.replace(' ', 'T').replace(/\s+/, ''));
  const [year, month, day, hour, minute, second] = parts.slice(1, 7).map((part) => Number(part ?? 0));
  const at = isUtc ? Date.UTC(year, month - 1, day, hour, minute, second) : new Date(year, month - 1, day, hour, minute, second).getTime();
  const check = new Date(at);
  const same = isUtc ? check.getUTCDate() === day && check.getUTCMonth() === month - 1 : check.getDate() === day && check.getMonth() === month - 1;
  return same && hour < 24 && minute < 60 && second < 60 ? at : NaN;
}

function written(at, isUtc) {
  const date = new Date(isUtc ? at : at - new Date(at).getTimezoneOffset() * 60_000);
  return date.toISOString().slice(0, 19).replace('T', ' ');
}
