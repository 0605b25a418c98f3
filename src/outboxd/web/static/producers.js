// Who hands in: a line that says how many they are and what is wrong with them, and
// behind it a table: who was refused and why, and on a gateway also who was
// throttled, whose clock is wrong, and who came without a token.

import { get } from './api.js';
import { now } from './clock.js';
import { byId, h, isSelectedIn, setText } from './dom.js';
import { ago, compact, count, full, largest, number } from './format.js';
import { producerName, producerTitle } from './names.js';

const ASK_MS = 5000;
const NAMED = 3; // in the line
const SHOWN_MAX = 100;
const FRESH_MS = 24 * 3600e3; // what was refused longer ago is in the table alone
const REASONS = {
  invalid: 'not valid', too_large: 'too large', stalled: 'stalled', not_allowed: 'not allowed',
  full: 'no room in the outbox', disk_short: 'the disk was short', no_right: 'no right to act',
};

export class Producers {
  /** `onFilter(name, value, wish)` hears of a click on one. */
  constructor({ onFilter }) {
    this.onFilter = onFilter;
    this.counts = [];
    this.distinct = 0;
    this.gateway = null;
    this.users = [];
    this.usersLeftOut = 0;
    this.line = h('span', { class: 'line-told' });
    this.trouble = h('span', { class: 'trouble' });
    this.body = h('div', { class: 'producers-body' });
    this.element = byId('producers');
    this.body.addEventListener('pointerleave', () => this.paint());
    this.element.append(h('summary', {}, h('b', {}, 'Producers'), this.line, this.trouble), this.body);
    this.element.addEventListener('toggle', () => this.element.open && this.load());
    setInterval(() => document.hidden || this.load(), ASK_MS);
  }

  /** How the agent stands; whether it is a gateway is in every status, who came is asked for. */
  setStatus(status) {
    const isFirst = !this.asked && !document.hidden;
    this.asked ||= isFirst;
    this.gateway = status.gateway ? { ...this.gateway, ...status.gateway } : null;
    if (isFirst) this.load();
    this.paint();
  }

  /** How many events there are of each, with the filters that are set. */
  setCounts({ values, distinct }) {
    this.counts = values;
    this.distinct = distinct;
    this.paint();
  }

  async load() {
    try {
      const { gateway, refusedUsers, refusedUsersLeftOut } = await get('/v1/status', null, 'producers');
      if (gateway) this.gateway = gateway;
      [this.users, this.usersLeftOut] = [refusedUsers, refusedUsersLeftOut];
      this.paint();
    } catch {
      // The mark 'No answer' says it already.
    }
  }

  /** One row each: those who have events here, who came to the gateway, who were refused. */
  rows() {
    const found = new Map(this.counts.map((own) => [own.value, { producer: own.value, events: own.count }]));
    for (const seen of this.gateway?.producers ?? []) {
      const producer = `token:${seen.name}`;
      found.set(producer, { producer, events: 0, ...found.get(producer), seen });
    }
    for (const { producer, refused } of this.users) {
      found.set(producer, { producer, events: 0, ...found.get(producer), seen: { accepted: null, refused, wrongClocks: [] } });
    }
    const wrong = ({ seen }) => (seen ? seen.wrongClocks.length + seen.refused.length : 0);
    return [...found.values()].sort((a, b) => wrong(b) - wrong(a) || b.events - a.events);
  }

  paint() {
    const rows = this.rows();
    this.say(rows);
    if (!this.element.open) return;
    const text = JSON.stringify([rows, this.gateway, rows.map((row) => producerName(row.producer))]);
    if (text === this.painted || this.isHeld()) return;
    const held = this.body.contains(document.activeElement) ? document.activeElement.dataset.keep : null;
    this.painted = text;
    this.body.replaceChildren(...this.head(), this.table(rows), ...this.strangers());
    if (held) this.body.querySelector(`[data-keep="${CSS.escape(held)}"]`)?.focus({ preventScroll: true });
  }

  /** Whether somebody points at it, or selects a text in it: then nothing in it may move. */
  isHeld() {
    return this.body.hasChildNodes() && (this.body.matches(':hover') || isSelectedIn(this.body));
  }

  /** The line: who has most, and what is wrong. */
  say(rows) {
    const named = this.counts.slice(0, NAMED).map((own) => `${producerName(own.value)} ${compact(own.count)}`);
    const more = this.distinct - named.length;
    if (more > 0) named.push(`${number(more)} more`);
    setText(this.line, named.join('  ·  ') || 'nobody yet');
    const seen = rows.map((row) => row.seen).filter(Boolean);
    const refused = seen.flatMap((own) => own.refused).filter((own) => Date.parse(own.at) > now() - FRESH_MS);
    const sum = (list) => list.reduce((all, own) => all + own.count, 0);
    const [throttled, others] = [refused.filter((own) => own.reason === 'rate'), refused.filter((own) => own.reason !== 'rate')];
    const clocks = seen.reduce((all, own) => all + own.wrongClocks.length, 0);
    const told = [
      throttled.length ? `${number(sum(throttled))} throttled` : '',
      others.length ? `${number(sum(others))} refused` : '',
      clocks ? count(clocks, 'wrong clock', 'wrong clocks') : '',
      this.gateway?.unauthenticated ? `${number(this.gateway.unauthenticated)} without a token` : '',
    ].filter(Boolean);
    setText(this.trouble, told.join('  ·  '));
  }

  /** How the gateway itself stands. */
  head() {
    const gateway = this.gateway;
    if (!gateway) return [];
    const parts = [
      gateway.address ? `A gateway on ${gateway.address}` : 'A gateway that is not open',
      `${number(gateway.connections)} of ${number(gateway.connectionsMax)} connections`,
      count(gateway.tokens, 'name with a token', 'names with a token'),
      gateway.certificateEndsAt ? `its certificate ends ${full(Date.parse(gateway.certificateEndsAt))}` : '',
    ];
    return [h('p', { class: 'gateway-told' }, parts.filter(Boolean).join(' · '))];
  }

  table(rows) {
    const isGateway = Boolean(this.gateway);
    const heads = ['Name', 'Events here', ...(isGateway ? ['Taken since the start', 'Throttled', 'Refused, and why', 'Clock']
      : this.users.length ? ['Refused, and why'] : [])];
    const cells = (row) => [this.name(row.producer), number(row.events), ...(isGateway ? seenCells(row.seen)
      : this.users.length ? [refusedCell(row.seen?.refused ?? [])] : [])];
    const left = Math.max(0, rows.length - SHOWN_MAX) + (this.gateway?.producersLeftOut ?? 0) + this.usersLeftOut;
    return h('div', { class: 'producers-table', tabindex: '0', role: 'region', 'aria-label': 'Producers' },
      h('table', {},
        h('thead', {}, h('tr', {}, ...heads.map((head) => h('th', { scope: 'col' }, head)))),
        h('tbody', {}, ...rows.slice(0, SHOWN_MAX).map((row) => h('tr', {}, ...cells(row).map((cell, index) => h(index ? 'td' : 'th', index ? {} : { scope: 'row' }, cell)))))),
      left > 0 ? h('p', { class: 'progress' }, `${number(left)} more`) : '');
  }

  name(producer) {
    const name = producerName(producer);
    const button = (kind, word, wish, title, label) => h('button', {
      type: 'button', class: kind, title, 'aria-label': label, 'data-keep': `${kind}-${producer}`,
      onclick: () => this.onFilter('producer', producer, wish),
    }, word);
    return h('span', { class: 'value' },
      button('filter', name, 1, `${producerTitle(producer)}: only what came from there`, name),
      button('not', '≠', -1, 'Without what came from there', `Without ${name}`));
  }

  strangers() {
    const found = this.gateway?.strangers ?? [];
    if (found.length === 0) return [];
    return [h('p', { class: 'gateway-told' }, 'Without a valid token: ',
      found.slice(0, 5).map((own) => `${own.peer} (${count(own.count, 'request', 'requests')}, ${own.reason}, ${ago(Date.parse(own.at))})`).join('; '),
      found.length > 5 ? `; ${number(found.length - 5)} more addresses` : '')];
  }
}

/** Taken, throttled, refused and why, clock. */
function seenCells(seen) {
  if (!seen) return ['–', '–', '–', '–'];
  const throttled = seen.refused.find((own) => own.reason === 'rate');
  const others = seen.refused.filter((own) => own.reason !== 'rate');
  return [
    seen.accepted === null ? '–' : number(seen.accepted),
    throttled ? told(number(throttled.count), throttled) : '–',
    refusedCell(others),
    seen.wrongClocks.length ? seen.wrongClocks.map((own) => h('span', { class: 'why' },
      h('b', {}, `${own.host ?? 'a host'} is ${largest(Math.abs(own.aheadMs))} ${own.aheadMs > 0 ? 'ahead' : 'behind'}`))) : '–',
  ];
}

/** Each reason with how many. */
function refusedCell(refused) {
  return refused.length ? refused.map((own) => told(`${number(own.count)} ${REASONS[own.reason] ?? own.reason}`, own)) : '–';
}

/** What was refused, with what it was told. */
function told(what, own) {
  return h('span', { class: 'why' }, h('b', {}, what), h('span', {}, [own.told, `last ${ago(Date.parse(own.at))}`].filter(Boolean).join('; ')));
}
