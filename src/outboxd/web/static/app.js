// Puts the page together: the address says what is shown, the parts show it,
// what the reader chooses goes into the address.

import { get, isStale } from './api.js';
import { byId, h, setText } from './dom.js';
import { Drawer } from './drawer.js';
import { Filters } from './filters.js';
import { count } from './format.js';
import { Histogram } from './histogram.js';
import { Inventory } from './inventory.js';
import { List } from './list.js';
import { Live } from './live.js';
import { Strip } from './strip.js';
import { showStatus } from './topbar.js';
import { address, apiQuery, bounds, KIND, RANGES, read, sameEvents } from './view.js';

const TYPING_MS = 250;
const COUNTS_MIN_MS = 1500; // between two counts because of changes
const PARTIAL_MS = 350; // until an answer that was not complete is asked for again

let view = read();
const inventory = KIND === 'sandbox' ? new Inventory() : null;
const strip = KIND === 'agent' ? new Strip() : null;
const list = new List({ onOpen: openEntry, onActive: (entry) => inventory?.mark(entry) });
const filters = new Filters({ onChange: (wanted) => go(wanted) });
const histogram = new Histogram({
  onSelect: (since, until) => go({ ...view, last: '', since, until }),
  onClear: () => go({ ...view, last: '', since: null, until: null }),
});
const drawer = new Drawer({
  onClose: closeDrawer, onStep: step, inventory: () => inventory?.inventory,
});
const live = new Live({ onChange: changed, onStatus: showStatus });
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
  if (isOther) {
    list.show(view);
    counts();
  }
  if (view.event) openDrawer();
  else if (drawer.isOpen) hideDrawer();
}

function paintControls() {
  filters.setView(view);
  if (document.activeElement !== search || search.value.trim() !== view.q) search.value = view.q;
  const custom = view.since !== null || view.until !== null;
  for (const button of byId('ranges').children) {
    button.setAttribute('aria-pressed', String(!custom && button.dataset.last === view.last));
  }
}

// --- counts and pictures ---

let countedAt = 0;
let countTimer = null;

async function counts() {
  clearTimeout(countTimer);
  countTimer = null;
  countedAt = Date.now();
  const query = apiQuery(view);
  const withBuckets = new URLSearchParams(query);
  withBuckets.set('buckets', histogram.buckets());
  try {
    const [facets, picture] = await Promise.all([
      get('/v1/facets', query, 'facets'), get('/v1/histogram', withBuckets, 'histogram'),
    ]);
    filters.setCounts(facets);
    setText(byId('matched'), `${count(facets.matched, 'event', 'events').split(' ')[0]}${facets.complete ? '' : '…'}`);
    byId('matched').title = `${facets.matched} of ${facets.total}`;
    histogram.set(picture, bounds(view).some((bound) => bound !== null));
    if (!facets.complete || !picture.complete) countTimer = setTimeout(counts, PARTIAL_MS);
  } catch (error) {
    if (!isStale(error)) setText(byId('matched'), '');
  }
}

function changed() {
  list.refresh().catch(() => {}); // the mark 'offline' tells; the next change tries again
  if (drawer.isOpen) drawer.open(drawer.id, null);
  countTimer ??= setTimeout(counts, Math.max(0, countedAt + COUNTS_MIN_MS - Date.now()));
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
  if (list.activeId !== view.event) list.setActive(view.event, { scroll: Boolean(known) });
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

function step(by) {
  const index = list.entries.findIndex((entry) => entry.id === view.event);
  const entry = list.entries[index + by];
  if (index < 0 || !entry) return;
  list.setActive(entry.id, { scroll: true });
  openEntry(entry, { focus: false });
}

// --- keys, search, ranges ---

addEventListener('keydown', (event) => {
  if (event.altKey || event.ctrlKey || event.metaKey || event.defaultPrevented) return;
  const typing = event.target.closest?.('input[type=search], textarea');
  if (event.key === '/' && !typing) {
    search.focus();
    search.select();
  } else if (event.key === 'Escape') {
    escape(typing);
  } else if ((event.key === 'ArrowDown' || event.key === 'ArrowUp') && (event.target === document.body || typing)) {
    list.focus();
    list.onKey(event);
    return;
  } else {
    return;
  }
  event.preventDefault();
});

function escape(typing) {
  if (typing) {
    if (search.value) {
      search.value = '';
      go({ ...view, q: '' });
    } else list.focus();
  } else if (drawer.isOpen) closeDrawer();
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

byId('ranges').append(...RANGES.map(([key, label, title]) => h('button', {
  type: 'button', 'data-last': key, title, 'aria-pressed': 'false',
  onclick: () => go({ ...view, last: key, since: null, until: null }),
}, label)));

addEventListener('popstate', () => show(read()));

// --- the start ---

paintControls();
list.show(view);
counts();
strip?.start();
inventory?.load().then(() => inventory.mark(list.find(list.activeId))).catch(() => {});
if (view.event) openDrawer();
live.start();
