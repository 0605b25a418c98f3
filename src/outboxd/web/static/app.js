// Puts the page together: the address says what is shown, the parts show it,
// what the reader chooses goes into the address.

import { Acting } from './acting.js';
import { get, isStale } from './api.js';
import { Bulk } from './bulk.js';
import { browserAheadMs } from './clock.js';
import { byId, h, setText } from './dom.js';
import { Drawer } from './drawer.js';
import { Filters } from './filters.js';
import { count } from './format.js';
import { Histogram } from './histogram.js';
import { Inventory } from './inventory.js';
import { List } from './list.js';
import { Live } from './live.js';
import { producerName } from './names.js';
import { Producers } from './producers.js';
import { Range } from './range.js';
import { toThisAgent } from './standing.js';
import { Strip } from './strip.js';
import { moveNothing, showStale, showStatus } from './topbar.js';
import { address, apiQuery, bounds, chosen, KIND, RANGES, read, sameEvents, withValue } from './view.js';

const TYPING_MS = 250;
// From counts to the next ones because of changes. Counts may be half a second old when
// they come: the program looks for changes no more often.
const COUNTS_MIN_MS = 1500;
const PARTIAL_MS = 350; // until an answer that was not complete is asked for again

let view = read();
const inventory = KIND === 'sandbox' ? new Inventory() : null;
const strip = KIND === 'agent' ? new Strip() : null;
const producers = KIND === 'agent' ? new Producers({ onFilter: (name, value, wish) => go(withValue(view, name, value, wish)) }) : null;
const list = new List({ onOpen: openEntry, onActive: (entry) => inventory?.mark(entry) });
const filters = new Filters({ onChange: (wanted) => go(wanted) });
const histogram = new Histogram({
  onSelect: (since, until) => go({ ...view, last: '', since, until }),
  onClear: () => go({ ...view, last: '', since: null, until: null }),
});
const acting = new Acting({ onChange: paintActing, onDone: acted });
const bulk = new Bulk({ acting, view: () => view });
const drawer = new Drawer({
  onClose: closeDrawer, onStep: step, inventory: () => inventory?.inventory, acting,
  onFilter: (name, value, wish) => go({ ...withValue(view, name, value, wish), event: null }),
});
const range = new Range({ onSelect: (since, until) => go({ ...view, last: '', since, until }) });
const live = new Live({ onChange: changed, onStatus: status, onStale: stale, onPause: () => list.keep() });
const search = byId('q');

// --- the address ---

/** Shows another view, as a new step of the history or in place of this one. */
function go(wanted, { replace = false } = {}) {
  const to = address(wanted);
  if (replace) history.replaceState(history.state, '', to);
  else if (to !== address(view)) history.pushState(null, '', to);
  show(wanted);
}

function show(wanted) {
  const isOther = !sameEvents(wanted, view);
  view = wanted;
  paintControls();
  paintMoments();
  if (isOther) again();
  paintActing();
  if (view.event) openDrawer();
  else if (drawer.isOpen) hideDrawer();
}

function paintControls() {
  filters.setView(view);
  if (document.activeElement !== search || search.value.trim() !== view.q) search.value = view.q;
  const custom = view.since !== null || view.until !== null;
  for (const button of byId('ranges').children) {
    if (button.dataset.last !== undefined) button.setAttribute('aria-pressed', String(!custom && button.dataset.last === view.last));
  }
  range.show(view.since, view.until);
  paintChosen();
}

const NAMES = { q: 'text', key: 'dedup key', producer: 'handed in by' };

/** Each filter that is set, with a button that takes it away. */
function paintChosen() {
  const found = chosen(view);
  byId('chosen').hidden = found.length === 0;
  byId('chosen').replaceChildren(...found.map(([name, value, excluded]) => h('li', { class: excluded ? 'out' : '' },
    h('span', {}, `${NAMES[name] ?? name} ${excluded ? '≠' : '='} `, h('b', {}, name === 'producer' ? producerName(value) : value)),
    h('button', { type: 'button', 'aria-label': `Take away ${name} ${value}`, onclick: () => go(take(name, value)) }, '×'))));
}

function take(name, value) {
  if (Array.isArray(view[name])) return withValue(view, name, value, 0);
  if (name === 'q') search.value = '';
  return { ...view, [name]: '' };
}

// --- acting on the destination and on all that is filtered ---

let leads = ''; // the words of a command to this agent, which the first status tells
moveNothing((change, undo) => list.keepStill(change, undo));

function status(now) {
  const before = browserAheadMs();
  showStatus(now);
  // 'The last hour' is one by the agent's clock.
  if (view.last && browserAheadMs() !== before) again();
  producers?.setStatus(now);
  if (now.outbox) strip?.setWaiting(now.outbox.pending);
  const held = now.destination?.state === 'held';
  if (held !== bulk.destinationHeld || toThisAgent() !== leads) {
    bulk.destinationHeld = held;
    leads = toThisAgent();
    paintActing();
  }
}

/** Since when there is no answer; what is shown stays, and looks old. */
function stale(since) {
  showStale(since);
  acting.setUnanswered(since !== null);
  if (since === null) again();
}

function again() {
  list.show(view);
  counts();
}

function paintActing() {
  if (drawer.isOpen) drawer.repaint();
  if (KIND === 'agent') bulk.paint();
}

/** Where a range ends now it moves, and so do the command and the export. */
function paintMoments() {
  byId('export').setAttribute('href', `/v1/export?${apiQuery(view)}`);
  if (view.last && KIND === 'agent') bulk.paintMoment();
}

// --- counts and pictures ---

let countedAt = 0; // when the last counts came
let countTimer = null;
let counting = null; // the counts that are on their way
let isOld = false; // something changed since counts were asked for because of changes

async function counts() {
  clearTimeout(countTimer);
  countTimer = null;
  if (document.hidden) return;
  const own = counting = {};
  paintMoments();
  const query = apiQuery(view);
  const withBuckets = new URLSearchParams(query);
  withBuckets.set('buckets', histogram.buckets());
  try {
    const [facets, picture] = await Promise.all([
      get('/v1/facets', query, 'facets'), get('/v1/histogram', withBuckets, 'histogram'),
    ]);
    filters.setCounts(facets);
    producers?.setCounts(facets.facets.producer);
    setText(byId('matched'), `${count(facets.matched, 'event', 'events').split(' ')[0]}${facets.complete ? '' : '…'}`);
    byId('matched').title = `${facets.matched} of ${facets.total}`;
    histogram.set(picture, bounds(view).some((bound) => bound !== null));
    showSearch(facets);
    if (!facets.complete || !picture.complete) countTimer = setTimeout(counts, PARTIAL_MS);
  } catch (error) {
    if (!isStale(error)) setText(byId('matched'), '');
  }
  if (own !== counting) return;
  counting = null;
  countedAt = Date.now();
  if (isOld) countSoon();
}

function countSoon() {
  if (!counting) countTimer ??= setTimeout(countChanges, Math.max(0, countedAt + COUNTS_MIN_MS - Date.now()));
}

/** How far a search has come: what is slow looks slow. */
function showSearch({ searched, expected }) {
  const element = byId('searching');
  element.hidden = searched === null || searched === undefined;
  if (!element.hidden) setText(element, `Searching… ${Math.min(99, Math.floor((searched / Math.max(1, expected)) * 100))} % of ${count(expected, 'event', 'events')}`);
}

function changed() {
  if (document.hidden) return;
  list.refresh().catch(() => {}); // the mark 'offline' tells; the next change tries again
  if (drawer.isOpen) drawer.open(drawer.id, null);
  isOld = true;
  countSoon();
}

function countChanges() {
  countTimer = null;
  if (live.paused) return;
  isOld = false;
  counts();
}

function acted(path) {
  if (view.event && path === `/v1/events/${encodeURIComponent(view.event)}/drop`) closeDrawer();
  changed();
  counts(); // also in a view that is paused
}

// --- the drawer ---

function openEntry(entry, { focus }) {
  if (view.event === entry.id) return;
  focusDrawer = focus;
  if (drawer.isOpen) go({ ...view, event: entry.id }, { replace: true });
  else {
    history.pushState({ opened: true }, '', address({ ...view, event: entry.id }));
    show({ ...view, event: entry.id });
  }
}

let focusDrawer = false;

function openDrawer() {
  const known = list.find(view.event);
  drawer.open(view.event, known, { focus: focusDrawer });
  focusDrawer = false;
  if (!known && !list.loading) reveal(view.event);
  if (list.activeId !== view.event) list.setActive(view.event, { scroll: Boolean(known) });
}

/** A deep link beyond the first page: the list goes to where its event stands. */
async function reveal(id) {
  try {
    const entry = await get(`/v1/events/${encodeURIComponent(id)}`, null, 'reveal');
    if (view.event !== id) return;
    // The next page may have come meanwhile, and have it.
    if (!list.find(id) && entry.cursor) await list.show(view, { from: entry.cursor });
    if (list.find(id)) list.setActive(id, { scroll: true });
  } catch {
    // The drawer says that it is gone.
  }
}

function hideDrawer() {
  const within = drawer.element.contains(document.activeElement);
  drawer.close();
  if (within || document.activeElement === document.body) list.focus();
}

function closeDrawer() {
  if (history.state?.opened) history.back();
  else go({ ...view, event: null });
}

async function step(by) {
  const index = list.entries.findIndex((entry) => entry.id === view.event);
  if (index + by >= list.entries.length) await list.more();
  const entry = list.entries[index + by];
  if (index < 0 || !entry) return;
  list.setActive(entry.id, { scroll: true });
  openEntry(entry, { focus: false });
}

// --- keys, search, ranges ---

addEventListener('keydown', (event) => {
  if (event.altKey || event.ctrlKey || event.metaKey || event.defaultPrevented) return;
  if (document.querySelector('dialog[open]')) return; // a question's keys are its own
  const typing = event.target.closest?.('input[type=search], input[type=text], textarea, select');
  const steps = { ArrowDown: 1, j: 1, ArrowUp: -1, k: -1 };
  if (drawer.isOpen && !typing && event.key in steps && !event.target.closest?.('#grid, #histogram, pre')) {
    event.preventDefault();
    step(steps[event.key]);
    return;
  }
  if (event.key === '/' && !typing) {
    search.focus();
    search.select();
  } else if (event.key === 'Escape') {
    escape(typing);
  } else if ((['j', 'k'].includes(event.key) && !typing) || (event.key.startsWith('Arrow') && (event.key in steps)
    && (event.target === document.body || event.target === search))) {
    list.focus();
    list.onKey(event);
    if (drawer.isOpen && list.activeId) openEntry(list.find(list.activeId), { focus: false });
    return;
  } else {
    return;
  }
  event.preventDefault();
});

function escape(typing) {
  if (typing === search && search.value) {
    search.value = '';
    go({ ...view, q: '' });
  } else if (range.form.contains(typing)) range.close();
  else if (typing) list.focus();
  else if (drawer.isOpen) closeDrawer();
  else if (filters.panel.classList.contains('open')) {
    filters.toggle();
    filters.button.focus();
  } else list.setActive(null);
}

let typingTimer = null;
let typed = false; // the first letter makes a step of the history, the next ones change it

search.addEventListener('input', () => {
  clearTimeout(typingTimer);
  typingTimer = setTimeout(() => {
    go({ ...view, q: search.value.trim() }, { replace: typed });
    typed = true;
  }, TYPING_MS);
});
search.addEventListener('blur', () => { typed = false; });
search.addEventListener('keydown', (event) => {
  if (event.key !== 'Enter') return;
  clearTimeout(typingTimer);
  go({ ...view, q: search.value.trim() }, { replace: typed });
});

byId('ranges').prepend(...RANGES.map(([key, label, title]) => h('button', {
  type: 'button', 'data-last': key, title, 'aria-pressed': 'false',
  onclick: () => go({ ...view, last: key, since: null, until: null }),
}, label)));

document.addEventListener('visibilitychange', () => document.hidden || counts());
for (const kind of ['pointerdown', 'click']) byId('export').addEventListener(kind, paintMoments);
byId('overview').addEventListener('click', (event) => {
  const open = document.body.classList.toggle('overview');
  event.target.setAttribute('aria-expanded', String(open));
});

addEventListener('popstate', () => show(read()));
// A link to another view of this page needs no new page, but where one is wished for.
addEventListener('click', (event) => {
  const link = event.target.closest?.('a[data-view]');
  if (!link || event.ctrlKey || event.metaKey || event.shiftKey || event.altKey) return;
  event.preventDefault();
  go(read(link.search));
});

// --- the start ---

function started() {
  document.documentElement.classList.remove('starting');
}

paintControls();
list.show(view).then(() => view.event && !list.find(view.event) && reveal(view.event));
// The findings stand above all else, and the filters' values above other filters.
Promise.allSettled([get('/v1/status', null, 'first-status').then(status), counts()]).then(started);
setTimeout(started, 400);
acting.start();
strip?.start();
inventory?.load().then(() => inventory.mark(list.find(list.activeId))).catch(() => {});
if (view.event) openDrawer();
live.start();
