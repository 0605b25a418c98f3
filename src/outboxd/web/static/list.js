// The list of events: only the rows in sight are elements. More are fetched as
// one scrolls, new ones join at the top where that moves nothing else.

import { forget, get, isStale } from './api.js';
import { announce, byId, h, isSelectedIn, setSeverity, setText, severityIcon, shown } from './dom.js';
import { briefly, detailsLine, ending, occurredAt, sentence, service } from './entry.js';
import { count, full, moment } from './format.js';
import { parse } from './raw.js';
import { apiQuery } from './view.js';

const PAGE = 50;
const ROWS_MAX = 20_000; // held in memory; older ones are reached by a time range
const PRINTED_MAX = 500;
const BEYOND = 8; // rows kept ready above and below what is in sight

export class List {
  /** `onOpen(entry)` and `onActive(entry)` hear of the reader's choices. */
  constructor({ onOpen, onActive }) {
    this.onOpen = onOpen;
    this.onActive = onActive;
    this.grid = byId('grid');
    this.body = byId('rows');
    this.fresh = byId('fresh');
    this.note = byId('note');
    this.elements = new Map(); // by the event's id
    this.spare = [];
    this.question = 0; // the newest page that was asked for
    this.missed = false; // something changed while that one was loading
    this.clear();
    addEventListener('scroll', () => this.schedule(), { passive: true });
    new ResizeObserver(() => this.schedule()).observe(this.body);
    this.grid.addEventListener('keydown', (event) => this.onKey(event));
    this.body.addEventListener('click', (event) => this.onClick(event));
    this.fresh.addEventListener('click', () => this.toTop());
    // What somebody points at, reads or selects must not move.
    this.pointed = false;
    this.body.addEventListener('pointerenter', (event) => { this.pointed = event.pointerType === 'mouse'; });
    this.body.addEventListener('pointerleave', () => { this.pointed = false; });
    addEventListener('beforeprint', () => this.print());
    addEventListener('afterprint', () => { document.body.classList.remove('printing'); this.paint(); });
    setInterval(() => this.paint(), 1000); // 'due in 12s'
  }

  /** Whether rows must stay where they are. */
  isHeld() {
    return this.pointed || document.activeElement === this.grid || isSelectedIn(this.grid);
  }

  /** Changes something above the list. Rows that must stay where they are do: the page
   * is scrolled by as much; where it cannot be, `undo` is called and the answer is false. */
  keepStill(change, undo = null) {
    if (!this.isHeld()) {
      change();
      return true;
    }
    const before = this.grid.getBoundingClientRect().top;
    change();
    const moved = this.grid.getBoundingClientRect().top - before;
    if (undo && scrollY + moved < 0) {
      undo();
      return false;
    }
    if (moved) scrollBy({ top: moved, behavior: 'instant' });
    return true;
  }

  clear() {
    this.entries = [];
    this.next = null;
    this.pages = [{ cursor: null, upper: null }];
    this.activeId = null;
    this.loading = false;
  }

  /** Shows a view from its top. What was shown stays until the answer is here. */
  async show(view, { from = null } = {}) {
    this.view = view;
    const question = this.ask();
    this.hideFresh();
    this.grid.setAttribute('aria-busy', 'true');
    // The rows of another view are not this one's: after a moment they say so.
    const slow = setTimeout(() => setText(this.note, 'Looking…'), 400);
    try {
      const page = await this.fetch(from, 'list');
      this.from = from;
      const top = this.top();
      this.clear();
      this.entries = page.events;
      this.next = page.next;
      this.addPage(page);
      if (top < 0) scrollBy({ top, behavior: 'instant' });
      this.say();
    } catch (error) {
      if (!isStale(error)) {
        this.clear();
        this.fail(error);
        this.paint();
      }
      return;
    } finally {
      clearTimeout(slow);
      this.answered(question);
    }
    this.grid.setAttribute('aria-busy', 'false');
    if (from) this.showFresh(PAGE);
    this.paint();
  }

  /** Something changed: looks again at what is in sight. */
  async refresh() {
    if (!this.view) return;
    // The page that is loading may have been read before the change.
    this.missed = this.loading;
    if (this.loading) return;
    const question = this.question;
    // Rows that were asked for before others took their place are no longer wanted: these
    // are looked at again.
    const isOutdated = () => question !== this.question;
    try {
      const head = await this.fetch(this.from, 'refresh');
      if (isOutdated()) return await this.refresh();
      // Whether rows must stay is asked now: somebody may have come to them since.
      if (this.from) {
        if (this.entries.length) this.update(head.events);
      } else if (this.top() >= -this.rowHeight() / 2 && !this.isHeld()) {
        this.merge(head, null);
        this.hideFresh();
      } else {
        const newest = this.entries[0]?.id ?? '';
        this.showFresh(head.events.filter((entry) => entry.id > newest).length);
        const page = this.pageInSight();
        if (page.cursor) {
          const inSight = await this.fetch(page.cursor, 'refresh');
          if (isOutdated()) return await this.refresh();
          this.merge(inSight, page.upper);
        } else this.update(head.events);
      }
      this.say();
      this.paint();
    } catch (error) {
      if (!isStale(error)) throw error;
    }
  }

  /** The rows stay as they are: the answer to a look again is wanted no longer. */
  keep() {
    this.missed = false;
    forget('refresh');
  }

  find(id) {
    return this.entries.find((entry) => entry.id === id);
  }

  /** Marks an event as the one that is meant; without one, none. */
  setActive(id, { scroll = false } = {}) {
    this.activeId = id;
    const index = this.entries.findIndex((entry) => entry.id === id);
    if (scroll && index >= 0) this.scrollTo(index);
    this.paint();
    this.onActive(index >= 0 ? this.entries[index] : null);
  }

  focus() {
    this.grid.focus({ preventScroll: true });
  }

  // --- fetching ---

  fetch(cursor, purpose) {
    const query = apiQuery(this.view);
    query.set('limit', PAGE);
    if (cursor) query.set('cursor', cursor);
    return get('/v1/events', query, purpose, parse);
  }

  /** A page is asked for; a newer question ends this one. */
  ask() {
    this.loading = true;
    return ++this.question;
  }

  /** One that was ended meanwhile says nothing of the newer one, which is still loading. */
  answered(question) {
    if (question !== this.question) return;
    this.loading = false;
    if (this.missed && !document.hidden) this.refresh().catch(() => {}); // as where a change is heard
  }

  async more() {
    if (this.loading || !this.next || this.entries.length >= ROWS_MAX) return;
    const question = this.ask();
    try {
      const page = await this.fetch(this.next, 'list');
      const known = new Set(this.entries.slice(-2 * PAGE).map((entry) => entry.id));
      this.entries.push(...page.events.filter((entry) => !known.has(entry.id)));
      this.next = page.next;
      this.addPage(page);
      this.say();
    } catch (error) {
      if (!isStale(error)) this.fail(error);
      return;
    } finally {
      this.answered(question);
    }
    this.schedule();
  }

  /** Notes where the page after this one begins. */
  addPage(page) {
    if (page.next) this.pages.push({ cursor: page.next, upper: page.events.at(-1)?.id ?? null });
  }

  pageInSight() {
    const first = this.entries[this.range()[0] + BEYOND]?.id ?? '';
    return this.pages.findLast((page) => page.upper === null || page.upper > first) ?? this.pages[0];
  }

  /** Puts a page that was fetched again in the place of what it covers. */
  merge(page, upper) {
    const lower = page.next === null ? null : page.events.at(-1)?.id ?? null;
    const above = upper === null ? [] : this.entries.filter((entry) => entry.id >= upper);
    const below = lower === null ? [] : this.entries.filter((entry) => entry.id < lower);
    const before = this.entries.length ? new Set(this.entries.map((entry) => entry.id)) : null;
    this.entries = [...above, ...page.events, ...below];
    if (page.next === null || below.length === 0) this.next = page.next;
    if (upper === null && before) {
      this.justCame = new Set(page.events.filter((entry) => !before.has(entry.id)).map((entry) => entry.id));
      if (this.justCame.size) announce(count(this.justCame.size, 'new event', 'new events'));
    }
  }

  update(events) {
    const byIds = new Map(events.map((entry) => [entry.id, entry]));
    this.entries = this.entries.map((entry) => byIds.get(entry.id) ?? entry);
  }

  // --- what is said beside the rows ---

  say() {
    let text = '';
    if (this.entries.length === 0 && this.next) text = 'Searching older events…';
    else if (this.entries.length === 0) text = 'No events match. Take a filter away, or widen the time range.';
    else if (this.entries.length >= ROWS_MAX && this.next) {
      text = `${count(ROWS_MAX, 'event', 'events')} are shown. Select a time range above for older ones.`;
    } else if (this.next) text = this.entries.length < PAGE ? 'Searching older events…' : 'Loading more…';
    else if (this.entries.length > 20) text = 'That is all.';
    setText(this.note, text);
  }

  fail(error) {
    setText(this.note, `The events cannot be shown: ${error.message}${error.hint ? ` (${error.hint})` : ''}`);
    this.grid.setAttribute('aria-busy', 'false');
  }

  showFresh(found) {
    if (!found) return;
    this.fresh.hidden = false;
    setText(this.fresh, `↑ ${found >= PAGE ? `${PAGE} or more` : found} new`);
  }

  hideFresh() {
    this.fresh.hidden = true;
  }

  toTop() {
    this.hideFresh();
    scrollTo({ top: Math.min(scrollY, this.grid.getBoundingClientRect().top + scrollY - this.covered()), behavior: 'instant' });
    this.show(this.view);
  }

  // --- painting ---

  rowHeight() {
    return parseFloat(getComputedStyle(this.body).getPropertyValue('--row-height'));
  }

  /** How far the list's top is below what covers the page's top. */
  top() {
    return this.grid.getBoundingClientRect().top - this.covered();
  }

  /** The height of the page's head, which stays at the top. */
  covered() {
    const top = document.querySelector('.top');
    return getComputedStyle(top).position === 'sticky' ? top.offsetHeight : 0;
  }

  range() {
    const height = this.rowHeight();
    const top = -this.body.getBoundingClientRect().top;
    const first = Math.max(0, Math.floor(top / height) - BEYOND);
    const last = Math.min(this.entries.length, Math.ceil((top + innerHeight) / height) + BEYOND);
    return [first, Math.max(first, last)];
  }

  schedule() {
    if (this.scheduled) return;
    this.scheduled = true;
    requestAnimationFrame(() => {
      this.scheduled = false;
      this.paint();
    });
  }

  paint() {
    if (document.body.classList.contains('printing')) return; // all rows stand on the paper
    const height = this.rowHeight();
    this.body.style.height = `${this.entries.length * height}px`;
    const [first, last] = this.range();
    const wanted = new Map();
    for (let index = first; index < last; index += 1) wanted.set(this.entries[index].id, index);
    for (const [id, row] of this.elements) {
      if (!wanted.has(id)) {
        this.elements.delete(id);
        this.spare.push(row);
      }
    }
    for (const [id, index] of wanted) {
      let row = this.elements.get(id);
      if (!row) {
        row = this.spare.pop() ?? makeRow();
        this.elements.set(id, row);
        row.element.classList.toggle('came', this.justCame?.has(id) ?? false);
        if (!row.element.isConnected) this.body.append(row.element);
      }
      row.element.style.transform = `translateY(${index * height}px)`;
      fillRow(row, this.entries[index], index, id === this.activeId);
    }
    for (const row of this.spare) row.element.remove();
    this.justCame = null;
    const active = this.activeId && this.elements.get(this.activeId);
    if (active) this.grid.setAttribute('aria-activedescendant', active.element.id);
    else this.grid.removeAttribute('aria-activedescendant');
    if (last > this.entries.length - PAGE / 2) this.more();
  }

  /** All rows that are loaded, in their order, for paper. */
  print() {
    document.body.classList.add('printing');
    for (const [, row] of this.elements) row.element.remove();
    this.elements.clear();
    this.entries.slice(0, PRINTED_MAX).forEach((entry, index) => {
      const row = makeRow();
      this.elements.set(entry.id, row);
      this.body.append(row.element);
      fillRow(row, entry, index, false);
    });
  }

  scrollTo(index) {
    const height = this.rowHeight();
    const top = this.body.getBoundingClientRect().top + index * height;
    const head = this.covered() + (this.grid.querySelector('.head').offsetHeight || 12);
    if (top < head) scrollBy({ top: top - head, behavior: 'instant' });
    else if (top + height > innerHeight - head) scrollBy({ top: top + height - innerHeight + head, behavior: 'instant' });
  }

  // --- choosing ---

  onKey(event) {
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    const index = this.entries.findIndex((entry) => entry.id === this.activeId);
    const rows = Math.max(1, Math.floor(innerHeight / this.rowHeight()) - 2);
    const steps = {
      ArrowDown: index + 1,
      j: index + 1,
      ArrowUp: index < 0 ? 0 : index - 1,
      k: index < 0 ? 0 : index - 1,
      PageDown: index + rows,
      PageUp: index - rows,
      Home: 0,
      End: this.entries.length - 1,
    };
    if (event.key in steps) {
      const to = Math.min(Math.max(steps[event.key], 0), this.entries.length - 1);
      if (to >= 0) this.setActive(this.entries[to].id, { scroll: true });
      if (to >= 0 && document.body.classList.contains('drawer-open')) this.onOpen(this.entries[to], { focus: false });
    } else if (event.key === 'Enter' && index >= 0) {
      this.onOpen(this.entries[index], { focus: true });
    } else {
      return;
    }
    event.preventDefault();
  }

  onClick(event) {
    const row = event.target.closest('.row');
    const entry = row && this.find(row.dataset.id);
    // A new tab, a new window, a download: the link's own matter.
    if (!entry || event.ctrlKey || event.metaKey || event.shiftKey || event.altKey) return;
    event.preventDefault();
    if (isSelectedIn(this.grid)) return;
    this.setActive(entry.id);
    this.onOpen(entry, { focus: false });
  }
}

function makeRow() {
  const cell = (name, ...children) => h('span', { class: name, role: 'gridcell' }, ...children);
  const parts = {
    icon: severityIcon('information'), type: h('b'), link: h('a', { class: 'row-link', tabindex: '-1', draggable: 'false' }), summary: cell('c-summary'),
    text: h('span', { class: 'text' }), error: h('span', { class: 'error' }), occurred: cell('c-occurred'), endWord: h('span', { class: 'word' }), endExtra: h('span', { class: 'extra' }),
    details: cell('c-details'), name: h('span', { class: 'word' }), where: h('span', { class: 'extra' }),
  };
  parts.link.append(parts.type);
  parts.summary.append(parts.text, parts.error);
  parts.end = cell('c-ended', parts.endWord, parts.endExtra);
  parts.element = h('div', { class: 'row', role: 'row' },
    cell('c-event', parts.icon, parts.link), parts.summary, parts.occurred, parts.end, parts.details,
    cell('c-service', parts.name, parts.where));
  return parts;
}

function fillRow(row, entry, index, active) {
  const { element } = row;
  if (element.dataset.id !== entry.id) {
    element.dataset.id = entry.id;
    element.id = `row-${entry.id}`;
  }
  setAttribute(row.link, 'href', rowAddress(entry.id));
  setAttribute(element, 'aria-rowindex', String(index + 2));
  setAttribute(element, 'aria-selected', String(active));
  if (row.entry === entry && entry.state !== 'pending') return;
  row.entry = entry;
  setAttribute(element, 'aria-label', shown(sentence(entry)));
  setSeverity(row.icon, entry.severity);
  setText(row.type, entry.eventType);
  row.type.title = shown(entry.eventType);
  setText(row.text, entry.summary);
  row.text.title = shown(entry.summary);
  // What a dead letter died of is what one looks for.
  const error = entry.state === 'dead' ? entry.lastError ?? '' : '';
  setText(row.error, briefly(error));
  row.error.title = shown(error);
  const at = occurredAt(entry);
  setText(row.occurred, moment(at));
  row.occurred.title = full(at);
  const end = ending(entry);
  setAttribute(row.end, 'data-tone', end.tone);
  setText(row.endWord, end.word);
  setText(row.endExtra, end.extra);
  setText(row.details, detailsLine(entry));
  const { name, extra } = service(entry);
  setText(row.name, name);
  setText(row.where, extra);
  row.name.title = shown(extra ? `${name} (${extra})` : name);
}

/** The address of the present view with this event open. */
function rowAddress(id) {
  const query = new URLSearchParams(location.search);
  query.set('event', id);
  return `?${query}`;
}

function setAttribute(element, name, value) {
  if (element.getAttribute(name) !== value) element.setAttribute(name, value);
}
