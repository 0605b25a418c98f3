// What is looked at: filters, time range and the open event, as the address has
// them. The address is the one place where they are kept.

import { now as currentTime } from './clock.js';
import { quoted } from './shell.js';

export const LISTS = ['type', 'severity', 'state', 'held', 'cluster', 'namespace', 'service', 'reason', 'status', 'source', 'producer'];
/** The filter that leaves a value out: `notType` for `type`. */
export const without = (name) => `not${name[0].toUpperCase()}${name.slice(1)}`;
const EXCLUDABLE = LISTS.filter((name) => name !== 'held');
const ALL = [...LISTS, ...EXCLUDABLE.map(without)];
const SINGLE = ['q', 'key', 'error'];

const HOUR_MS = 3_600_000;
export const RANGES = [
  ['', 'All', 'Everything there is'],
  ['15m', '15m', 'The last 15 minutes', HOUR_MS / 4],
  ['1h', '1h', 'The last hour', HOUR_MS],
  ['24h', '24h', 'The last 24 hours', 24 * HOUR_MS],
  ['night', 'Last night', 'From 18:00 to 08:00'],
  ['7d', '7d', 'The last 7 days', 168 * HOUR_MS],
];

export const KIND = document.documentElement.dataset.kind;

/** The view that an address describes. */
export function read(search = location.search) {
  const query = new URLSearchParams(search);
  const view = { event: query.get('event'), last: '', since: null, until: null };
  for (const name of SINGLE) view[name] = query.get(name) ?? '';
  view.q ||= query.get('id') ?? ''; // a search finds an id by its beginning, too
  for (const name of ALL) view[name] = [...new Set(query.getAll(name).filter(Boolean))];
  view.since = time(query.get('since'));
  view.until = time(query.get('until'));
  const last = query.get('last') ?? '';
  if (view.since === null && view.until === null && RANGES.some(([key]) => key === last)) view.last = last;
  return view;
}

/** The address of a view. */
export function address(view) {
  const query = filters(view);
  if (view.last) query.set('last', view.last);
  if (view.since !== null) query.set('since', new Date(view.since).toISOString());
  if (view.until !== null) query.set('until', new Date(view.until).toISOString());
  if (view.event) query.set('event', view.event);
  const text = query.toString();
  return text ? `?${text}` : location.pathname;
}

/** The query by which the program is asked for a view. */
export function apiQuery(view, now = currentTime()) {
  const query = filters(view);
  const [since, until] = bounds(view, now);
  if (since !== null) query.set('since', new Date(since).toISOString());
  if (until !== null) query.set('until', new Date(until).toISOString());
  return query;
}

/** From when to when, null for no bound. */
export function bounds(view, now = currentTime()) {
  if (view.last === 'night') return lastNight(now);
  const range = RANGES.find(([key]) => key && key === view.last);
  return range ? [now - range[3], null] : [view.since, view.until];
}

/** Whether two views ask for the same events. */
export function sameEvents(a, b) {
  return address({ ...a, event: null }) === address({ ...b, event: null });
}

/** A view in which a value is wanted (1), left out (-1), or neither (0). */
export function withValue(view, name, value, wish) {
  const rest = (list) => view[list].filter((own) => own !== value);
  const next = { ...view, [name]: rest(name) };
  if (wish > 0) next[name] = [...next[name], value];
  if (name === 'held') return next;
  next[without(name)] = rest(without(name));
  if (wish < 0) next[without(name)] = [...next[without(name)], value];
  return next;
}

/** Each filter that is set: [[name, value, isExcluded]], but for the time range. */
export function chosen(view) {
  const found = SINGLE.filter((name) => view[name]).map((name) => [name, view[name], false]);
  for (const name of LISTS) {
    found.push(...view[name].map((value) => [name, value, false]));
    if (name !== 'held') found.push(...view[without(name)].map((value) => [name, value, true]));
  }
  return found;
}

/** The filters of a view as words of a command line. */
export function commandWords(view, now = currentTime()) {
  const words = [];
  for (const [name, value, excluded] of chosen(view)) {
    if (name === 'state' || name === 'held') continue;
    if (excluded) words.push('--not', `${name}=${value}`);
    else words.push(`--${name}`, value);
  }
  const [since, until] = bounds(view, now);
  if (since !== null) words.push('--since', new Date(since).toISOString());
  if (until !== null) words.push('--until', new Date(until).toISOString());
  return words.map(quoted).join(' ');
}

/** Whether dead letters may be among the events of a view. */
export const hasDead = ({ state, notState, held }) => (state.length === 0 || state.includes('dead'))
  && !notState.includes('dead') && !held.includes('true');

/** How many filters there are, the time range and the text among them. */
export function filterCount(view) {
  return ALL.reduce((sum, name) => sum + view[name].length, 0) + SINGLE.filter((name) => view[name]).length
    + (view.last || view.since !== null || view.until !== null ? 1 : 0);
}

export const EMPTY = { ...read(''), event: null };

/** From 18:00 to 08:00: the night that is, or was last. */
function lastNight(now) {
  const end = new Date(now);
  end.setHours(8, 0, 0, 0);
  const start = new Date(end);
  start.setDate(start.getDate() - 1);
  start.setHours(18, 0, 0, 0);
  return [start.getTime(), Math.min(end.getTime(), now + 60_000)];
}

function filters(view) {
  const query = new URLSearchParams();
  for (const name of ALL) for (const value of view[name]) query.append(name, value);
  for (const name of SINGLE) if (view[name]) query.set(name, view[name]);
  return query;
}

function time(text) {
  const at = text ? Date.parse(text) : NaN;
  return Number.isNaN(at) ? null : at;
}
