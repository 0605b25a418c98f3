// The drawer: one event whole, as Komodor shows it; below that the way it took,
// the body that was sent, and the commands that would change it.

import { getText, isStale } from './api.js';
import { announce, byId, h, isSelectedIn, svg } from './dom.js';
import { actions, briefly, commands, DEAD_WORDS, occurredAt, outcomeWord, SEVERITY_WORDS, time, waiting } from './entry.js';
import { ago, count, dated, duration, full } from './format.js';
import { Map as InventoryMap } from './inventory.js';
import { producerName, producerTitle } from './names.js';
import { memberText, parse, plain } from './raw.js';
import { KIND } from './view.js';

const NAMES_MAX = 60; // of one field of the scope

export class Drawer {
  /** `onClose()` is called for the reader's wish to close, `onStep(by)` for the next one. */
  constructor({ onClose, onStep, onFilter, acting, inventory }) {
    this.element = byId('drawer');
    this.onClose = onClose;
    this.onStep = onStep;
    this.onFilter = onFilter;
    this.acting = acting;
    this.inventory = inventory;
    this.id = null;
    setInterval(() => this.tick(), 1000);
    document.addEventListener('selectionchange', () => this.postponed && !this.isReading() && this.repaint());
  }

  get isOpen() {
    return this.id !== null;
  }

  /** Opens on an event; what is known of it shows at once. */
  async open(id, known, { focus = false } = {}) {
    const same = this.id === id;
    this.id = id;
    if (!same) this.text = null; // of another event
    this.element.hidden = false;
    document.body.classList.add('drawer-open');
    if (known && !same) this.paint(known, null);
    if (!same) this.element.scrollTop = 0;
    if (focus) this.element.querySelector('.close')?.focus({ preventScroll: true });
    try {
      const text = await getText(`/v1/events/${encodeURIComponent(id)}`, null, 'drawer');
      if (this.id !== id || text === this.text) return;
      this.text = text;
      this.repaint();
      if (!same) this.element.scrollTop = 0;
      if (focus) this.element.querySelector('[data-keep="close"]')?.focus({ preventScroll: true });
    } catch (error) {
      if (isStale(error) || this.id !== id) return;
      if (this.text && this.entry?.id === id && error.status === undefined) return; // no answer: it stays as it stood
      this.text = null;
      this.entry = null;
      this.element.replaceChildren(
        this.head(h('span', { class: 'badge', 'data-severity': 'error' }, 'Not shown')),
        h('h2', { id: 'drawer-title' }, error.status === 404 ? 'This event is gone' : 'This event cannot be shown'),
        h('p', { class: 'summary' }, error.hint ?? error.message),
      );
    }
  }

  /** Whether a text in it is selected: then nothing in it may change. */
  isReading() {
    return isSelectedIn(this.element);
  }

  /** Shows the answer that came last; what has not changed stays as it is. */
  repaint() {
    this.postponed = this.isReading();
    if (this.postponed || !this.text) return;
    this.paint(parse(this.text), memberText(this.text, 'sentBody'));
  }

  close() {
    this.id = null;
    this.text = null;
    this.entry = null;
    this.postponed = false;
    this.element.hidden = true;
    this.element.replaceChildren();
    document.body.classList.remove('drawer-open');
  }

  tick() {
    if (!this.isOpen) return;
    for (const element of this.element.querySelectorAll('[data-ago]')) {
      if (!this.isReading()) element.textContent = ago(Number(element.dataset.ago));
    }
    // Why it waits is told with how long that will be.
    if (this.entry?.state === 'pending' && this.text) this.repaint();
  }

  paint(entry, body) {
    const at = occurredAt(entry);
    this.entry = entry;
    this.fill(
      this.head(
        h('span', { class: 'badge', 'data-severity': entry.severity }, SEVERITY_WORDS[entry.severity].toUpperCase()),
        h('span', { class: 'when' },
          h('time', { datetime: new Date(at).toISOString(), title: full(at) }, dated(at)),
          h('span', { class: 'ago', 'data-ago': at }, ago(at))),
      ),
      this.acting.isUnanswered ? h('p', { class: 'stale-here' }, 'No answer: this is how it stood.') : '',
      h('h2', { id: 'drawer-title' }, entry.eventType),
      h('p', { class: 'summary' }, entry.summary),
      why(entry),
      this.actions(entry),
      this.facts(entry),
      this.where(entry),
      entry.correlatedServices ? this.correlated(entry) : '',
      details(entry),
      way(entry),
      body === null ? '' : sent(entry, body),
      KIND === 'agent' ? commandList(entry) : '',
      h('p', { class: 'id' }, h('span', {}, 'Id '), h('code', {}, entry.id)),
    );
  }

  /** Puts parts in the place of those that differ from them, and leaves the others alone.
   * The focus stays within: on what does the same, where there is such a part. */
  fill(...parts) {
    const held = this.element.contains(document.activeElement) ? document.activeElement.dataset.keep : undefined;
    this.replace(parts);
    if (held !== undefined && !this.element.contains(document.activeElement)) {
      (this.element.querySelector(`[data-keep="${CSS.escape(held)}"]`) ?? this.element).focus({ preventScroll: true });
    }
  }

  replace(parts) {
    const wanted = parts.filter((part) => part !== '');
    wanted.forEach((part, index) => {
      const old = this.element.children[index];
      if (!old) this.element.append(part);
      else if (!same(old, part)) old.replaceWith(part);
    });
    while (this.element.children.length > wanted.length) this.element.lastElementChild.remove();
  }

  /** What may be done to it, for whom may. */
  actions(entry) {
    const found = this.acting?.may ? actions(entry) : [];
    if (!found.length) return '';
    return h('div', { class: 'actions', role: 'group', 'aria-label': 'Act' }, ...found.map(([word, path, content, question, danger]) => this.acting.button(word,
      () => this.acting.act(question, path, content, { danger, number: 1 }), { danger, 'data-keep': word })));
  }

  /** What one filters by, each a button that filters, and one that leaves out. */
  facts(entry) {
    const found = [['type', entry.eventType, 'Type'], ['severity', entry.severity, 'Severity']];
    if (KIND === 'agent') {
      found.push(['state', entry.state, 'State'], ['source', entry.source, 'Came in by']);
      if (entry.producer) found.push(['producer', entry.producer, 'Handed in by', producerName(entry.producer), producerTitle(entry.producer)]);
      if (entry.deadReason) found.push(['reason', entry.deadReason, 'Reason']);
      if (entry.lastStatus) found.push(['status', String(entry.lastStatus), 'Last status']);
    }
    return h('dl', { class: 'facts' }, ...found.map(([name, value, word, ...shown]) => h('div', {}, h('dt', {}, word), h('dd', {}, this.value(name, value, ...shown)))));
  }

  value(name, value, shown = value, what = null) {
    return h('span', { class: 'value' },
      h('button', { type: 'button', class: 'filter', title: what ? `${what}: only what came from there` : `Only with this ${name}`, 'data-keep': `only-${name}-${value}`, onclick: () => this.onFilter(name, value, 1) }, shown),
      h('button', { type: 'button', class: 'not', title: `Without this ${name}`, 'aria-label': `Without ${shown}`, 'data-keep': `not-${name}-${value}`, onclick: () => this.onFilter(name, value, -1) }, '≠'));
  }

  /** The band WHERE: each name over what it is. */
  where(entry) {
    const scope = entry.scope ?? {};
    const fields = [['clusters', 'CLUSTER', 'cluster'], ['namespaces', 'NAMESPACE', 'namespace'], ['servicesNames', 'SERVICE', 'service']];
    const cells = fields.flatMap(([field, word, filter]) => {
      const names = scope[field] ?? [];
      if (names.length === 0) return [];
      const shownNames = names.slice(0, NAMES_MAX).map((name) => this.value(filter, name));
      const rest = names.length > NAMES_MAX ? ` and ${count(names.length - NAMES_MAX, 'more', 'more')}` : '';
      return [h('div', { class: 'place' }, h('b', {}, ...shownNames, rest), h('span', {}, names.length > 1 ? `${word}S` : word))];
    });
    if (cells.length === 0) cells.push(h('div', { class: 'place' }, h('b', {}, 'Every service'), h('span', {}, 'NO SCOPE GIVEN')));
    return h('section', { class: 'where' }, h('h3', {}, 'Where'), h('div', { class: 'places' }, ...cells));
  }

  head(...children) {
    const button = (label, keep, path, onclick) => h('button', { class: keep === 'close' ? 'close icon-button' : 'icon-button', type: 'button', 'aria-label': label, title: label, 'data-keep': keep, onclick },
      svg('svg', { viewBox: '0 0 16 16', 'aria-hidden': 'true' }, svg('path', { d: path })));
    return h('div', { class: 'drawer-head' },
      button('Close', 'close', 'm4 4 8 8M12 4l-8 8', () => this.onClose()),
      ...children,
      h('span', { class: 'steps' },
        button('Newer event', 'newer', 'm4 10 4-4 4 4', () => this.onStep(-1)),
        button('Older event', 'older', 'm4 6 4 4 4-4', () => this.onStep(1))));
  }

  correlated(entry) {
    const found = entry.correlatedServices;
    const map = new InventoryMap();
    map.setInventory(this.inventory());
    map.mark(found);
    return h('section', { class: 'correlated' },
      h('h3', {}, `Correlated to ${count(found.length, 'service', 'services')}`), map.element);
  }
}

/** Whether two parts show the same; times that pass by themselves count as the same. */
function same(a, b) {
  if (a.isEqualNode(b)) return true;
  const [x, y] = [a.cloneNode(true), b.cloneNode(true)];
  for (const part of [x, y]) {
    for (const own of part.querySelectorAll('[data-ago]')) own.textContent = '';
    for (const own of part.querySelectorAll('.copy')) own.textContent = '';
  }
  return x.isEqualNode(y);
}

/** Why it is not delivered, before all else. */
function why(entry) {
  if (KIND === 'sandbox' || entry.state === 'delivered') return '';
  if (entry.state === 'pending') return h('p', { class: 'why-not', 'data-tone': 'waiting' }, h('b', {}, entry.held ? 'Held' : 'Waiting'), ` ${waiting(entry)}`);
  const reason = `${DEAD_WORDS[entry.deadReason] ?? entry.deadReason}${entry.lastStatus ? `, ${entry.lastStatus}` : ''}`;
  return h('p', { class: 'why-not', 'data-tone': 'dead' }, h('b', {}, reason), entry.lastError ? ` ${briefly(entry.lastError)}` : '');
}

/** DETAILS, one `key: value` a line. */
function details(entry) {
  const lines = Object.entries(entry.details ?? {}).map(([key, value]) => {
    const nested = value !== null && typeof value === 'object' && value.text === undefined;
    return h('div', { class: 'line' }, h('dt', {}, `${key}:`), ' ', h('dd', { class: nested ? 'nested' : '' }, plain(value)));
  });
  return h('section', { class: 'details' }, h('h3', {}, 'Details'),
    lines.length ? h('dl', {}, ...lines) : h('p', { class: 'none' }, 'None were given.'));
}

/** The way of this event, from the producer to Komodor. */
function way(entry) {
  const steps = [];
  const step = (tone, at, title, ...more) => steps.push(h('li', { 'data-tone': tone },
    h('div', {}, h('b', {}, title), ...more),
    at === null ? '' : h('time', { datetime: new Date(at).toISOString(), title: full(at) }, full(at))));
  const received = time(entry.receivedAt);
  const occurred = time(entry.occurredAt);
  const small = (text) => h('span', { class: 'small' }, text);
  if (occurred !== null && occurred !== received) step('plain', occurred, 'Occurred', small(KIND === 'agent' ? 'as its producer said' : 'as its details say'));
  if (KIND === 'sandbox') {
    step('done', received, 'Received and answered 201', small(arrivals(entry)));
    return h('section', { class: 'way' }, h('h3', {}, 'The way of this event'), h('ol', {}, ...steps));
  }
  if (entry.hop) {
    const { ageMs = 0, attempts: tries = 0, host } = entry.hop;
    step('done', null, `Handed in on ${host || 'another host'}`, small([`sent here ${duration(Number(ageMs))} later`, count(Number(tries), 'attempt', 'attempts')].join(' · ')));
  }
  const doors = { socket: 'by the socket', batch: 'in a batch', spool: 'from the spool', agent: 'from the agent itself' };
  step('done', received, 'Received', small(doors[entry.source] ?? ''));
  step('done', received, 'Committed to the outbox', small('synced to disk before the receipt'));
  if (entry.repeats) step('plain', time(entry.lastOccurredAt), count(entry.repeats, 'repeat', 'repeats'), small('counted, not sent again'));
  const attempts = entry.attempts ?? [];
  const missing = entry.attemptCount - attempts.length;
  if (entry.attempts && missing > 0) step('plain', null, count(missing, 'earlier attempt', 'earlier attempts'), small('no longer kept'));
  attempts.forEach((attempt, index) => {
    const tone = attempt.outcome === 'delivered' ? 'done' : attempt.outcome === 'rejected' ? 'failed' : 'delayed';
    const facts = [attempt.status ? `status ${attempt.status}` : null, duration(Number(attempt.durationMs)), attempt.error].filter(Boolean);
    step(tone, time(attempt.at), `Attempt ${missing + index + 1}: ${outcomeWord(attempt.outcome)}`, small(facts.join(' · ')));
  });
  ended(entry, step, small, occurred ?? received);
  return h('section', { class: 'way' }, h('h3', {}, 'The way of this event'), h('ol', {}, ...steps));
}

function ended(entry, step, small, began) {
  if (entry.state === 'delivered') {
    const at = time(entry.deliveredAt);
    const twice = entry.possibleDuplicate ? ', possibly twice: an answer was lost' : '';
    step('done', at, entry.destinationIsGateway ? 'Delivered to the gateway' : 'Delivered',
      small(`${duration(at - began)} after it occurred${twice}${entry.destinationIsGateway ? '; it sends it on' : ''}`));
  } else if (entry.state === 'dead') {
    const why = { rejected: 'Komodor refused it', exhausted: 'its attempts are spent', expired: 'its time to live ran out' };
    step('failed', time(entry.diedAt), 'Dead letter', small(`${why[entry.deadReason] ?? entry.deadReason}; kept until it is retried or dropped`));
  } else if (entry.held) step('waiting', null, 'Held', small('waits for the operator'));
  else step('waiting', null, 'Waiting', small(waiting(entry)));
}

function arrivals(entry) {
  const found = entry.arrivals ?? [];
  if (found.length > 1) return `arrived ${found.length} times with one Idempotency-Key: numbers ${found.join(', ')}`;
  return entry.arrival ? `number ${entry.arrival} since the start` : '';
}

/** The exact body, ready to copy. */
function sent(entry, body) {
  const text = body.startsWith('"') ? JSON.parse(body) : body;
  const title = KIND === 'sandbox' ? 'The body that came' : entry.attemptCount ? 'The body sent' : 'The body to be sent';
  return h('section', { class: 'sent' },
    h('h3', {}, title, copyButton(text, 'body')),
    h('pre', { tabindex: '0', 'aria-label': title }, text));
}

function commandList(entry) {
  return h('section', { class: 'commands' }, h('h3', {}, 'Commands'),
    ...commands(entry).map(([what, command], index) => h('div', { class: 'command' },
      h('span', {}, what), h('div', {}, h('code', {}, command), copyButton(command, `command-${index}`)))));
}

function copyButton(text, keep) {
  const button = h('button', { class: 'copy', type: 'button', 'data-keep': keep, 'aria-label': `Copy ${keep.startsWith('command') ? 'the command' : 'the body'}` }, 'Copy');
  button.addEventListener('click', async () => {
    button.textContent = (await copied(text)) ? 'Copied' : 'Press Ctrl+C';
    announce(button.textContent);
    setTimeout(() => { button.textContent = 'Copy'; }, 1600);
  });
  return button;
}

/** The clipboard is there only in a secure context: loopback is one, a tunnel's name may not be. */
export async function copied(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const area = h('textarea', { class: 'unseen', readonly: true });
    area.value = text;
    document.body.append(area);
    area.select();
    const done = document.execCommand('copy');
    area.remove();
    return done;
  }
}
