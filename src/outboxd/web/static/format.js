// How times, durations and numbers are written here.

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
export function moment(at, now = Date.now()) {
  return isSameDay(at, now) ? CLOCK.format(at) : `${day(at, now)}, ${CLOCK.format(at)}`;
}

/** Whole, with the zone: for titles and the drawer. */
export const full = (at) => FULL.format(at);

/** The time of day, with its day where that is not today. */
export function short(at, now = Date.now()) {
  return isSameDay(at, now) ? MINUTES.format(at) : `${day(at, now)}, ${MINUTES.format(at)}`;
}

/** A tick under a picture, as fine as its step. */
export function tick(at, stepMs) {
  if (stepMs >= 86_400_000) return DAY.format(at);
  const time = new Date(at);
  if (time.getHours() === 0 && time.getMinutes() === 0 && time.getSeconds() === 0) return DAY.format(at);
  return stepMs < 60_000 ? CLOCK.format(at) : MINUTES.format(at);
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
export function ago(at, now = Date.now()) {
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
