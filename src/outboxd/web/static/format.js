// How times, durations and numbers are written here.

import { now as currentTime } from './clock.js';

const DAY = new Intl.DateTimeFormat(undefined, { month: 'short', day: 'numeric' });
const YEAR = new Intl.DateTimeFormat(undefined, { year: 'numeric', month: 'short', day: 'numeric' });
const CLOCK = new Intl.DateTimeFormat(undefined, {
  hour: '2-digit', minute: '2-digit', second: '2-digit', hourCycle: 'h23',
});
const MINUTES = new Intl.DateTimeFormat(undefined, {
  hour: '2-digit', minute: '2-digit', hourCycle: 'h23',
});
const FULL = new Intl.DateTimeFormat(undefined, {
  weekday: 'short', year: 'numeric', month: 'short', day: 'numeric', hour: '2-digit',
  minute: '2-digit', second: '2-digit', fractionalSecondDigits: 3, hourCycle: 'h23',
  timeZoneName: 'short',
});
const NUMBER = new Intl.NumberFormat();
const COMPACT = new Intl.NumberFormat(undefined, { notation: 'compact', maximumFractionDigits: 1 });

export const number = (value) => NUMBER.format(value);
export const compact = (value) => (value < 10000 ? NUMBER.format(value) : COMPACT.format(value));
export const count = (value, one, many) => `${number(value)} ${value === 1 ? one : many}`;

/** "23:31:36" today, "Nov 20, 23:31:36" before. */
export function moment(at, now = currentTime()) {
  return isSameDay(at, now) ? CLOCK.format(at) : `${day(at, now)}, ${CLOCK.format(at)}`;
}

/** Whole, with the zone: for titles and the drawer. */
export const full = (at) => FULL.format(at);

/** With its day always: "22 Nov, 23:31:36". */
export const dated = (at) => `${day(at, currentTime())}, ${CLOCK.format(at)}`;

/** "22:00 to 23:30", with the days where there are two. */
export function range(since, until) {
  const clock = until - since < 10 * MINUTE ? CLOCK : MINUTES;
  const today = isSameDay(since, currentTime()) ? '' : `${day(since, until)}, `;
  if (isSameDay(since, until - 1)) return `${today}${clock.format(since)} to ${clock.format(until)}`;
  return `${day(since, until)}, ${MINUTES.format(since)} to ${day(until, until)}, ${MINUTES.format(until)}`;
}

const MINUTE = 60_000;
const HOUR = 60 * MINUTE;
const DAY_MS = 24 * HOUR;
const TICKS = [1000, 5000, 15_000, MINUTE, 5 * MINUTE, 15 * MINUTE, 30 * MINUTE, 60 * MINUTE,
  3 * 60 * MINUTE, 6 * 60 * MINUTE, 12 * 60 * MINUTE, 1440 * MINUTE, 2 * 1440 * MINUTE, 7 * 1440 * MINUTE,
  30 * 1440 * MINUTE, 365 * 1440 * MINUTE];

/** Ticks of a time axis on whole local times: [[moment, label]]; `roomMs` is what a label needs. */
export function ticks(since, until, roomMs) {
  const every = TICKS.find((step) => step >= roomMs) ?? TICKS.at(-1);
  const found = [];
  for (let at = since - (since % HOUR) - DAY_MS; at < until; at = nextTick(at, every)) {
    if (at < since) continue;
    const time = new Date(at);
    const isDay = every >= DAY_MS || (time.getHours() === 0 && time.getMinutes() === 0 && time.getSeconds() === 0);
    found.push([at, (isDay ? DAY : every < MINUTE ? CLOCK : MINUTES).format(at)]);
  }
  return found;
}

/** The next moment whose local time is a whole multiple of the step: the offset from UTC
 * may be another one there, when clocks go forward or back in between. */
function nextTick(at, every) {
  const offset = (moment) => new Date(moment).getTimezoneOffset() * MINUTE;
  const local = Math.floor((at - offset(at)) / every) * every + every;
  const guess = local + offset(at);
  const exact = local + offset(guess);
  return exact > at ? exact : guess > at ? guess : at + every;
}

/** Its two largest units: "42s", "3m 10s", "2h 13m", "4d 6h"; below a second "85ms". */
export function duration(ms) {
  if (ms < 1000) return `${Math.max(0, Math.round(ms))}ms`;
  if (ms < 10_000) return `${(Math.floor(ms / 100) / 10).toString()}s`;
  const seconds = Math.floor(ms / 1000);
  const parts = [
    [Math.floor(seconds / 86_400), 'd'], [Math.floor(seconds / 3600) % 24, 'h'],
    [Math.floor(seconds / 60) % 60, 'm'], [seconds % 60, 's'],
  ];
  const first = parts.findIndex(([value]) => value > 0);
  return parts.slice(first, first + 2).filter(([value]) => value > 0).map((part) => part.join('')).join(' ');
}

/** "3m ago": its largest unit. */
export function ago(at, now = currentTime()) {
  const ms = now - at;
  if (ms < 0) return `in ${largest(-ms)}`;
  return ms < 1500 ? 'just now' : `${largest(ms)} ago`;
}

export const largest = (ms) => duration(ms < 1000 ? ms : Math.floor(ms / 1000) * 1000).split(' ')[0];

function day(at, now) {
  return new Date(at).getFullYear() === new Date(now).getFullYear() ? DAY.format(at) : YEAR.format(at);
}

function isSameDay(a, b) {
  return new Date(a).toDateString() === new Date(b).toDateString();
}
