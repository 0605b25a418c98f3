// The agent's last hour in one strip: backlog, deliveries, the destination's
// state, with outages shaded.

import { get, isStale } from './api.js';
import { byId, h, setText, svg } from './dom.js';
import { compact, duration, ticks } from './format.js';

const INTERVAL_MS = 5000;
const HEIGHT = 64;
const LANE = 6; // the band of states at the foot
const AXIS = 16;
const SMOOTH = 5; // samples to either side
const OUTAGE = new Set(['backingOff', 'held', 'throttled']);
const WORDS = { ok: 'reachable', backingOff: 'unavailable', throttled: 'throttled', held: 'held', untried: 'untried' };

export class Strip {
  constructor() {
    this.figures = {
      backlog: h('b', {}, '–'), rate: h('b', {}, '–'), outage: h('b', {}, '–'),
    };
    // It has a name before what it shows is here.
    this.picture = svg('svg', { role: 'img', 'aria-label': 'The last hour', height: HEIGHT + AXIS, preserveAspectRatio: 'none' });
    this.outageLabel = h('span', {}, 'outage, last hour');
    const figure = (element, label, name) => h('div', { class: `figure of-${name}` }, element, label);
    byId('strip').append(
      h('div', { class: 'figures' },
        figure(this.figures.backlog, h('span', {}, 'waiting'), 'backlog'),
        figure(this.figures.rate, h('span', {}, 'delivered a second'), 'rate'),
        figure(this.figures.outage, this.outageLabel, 'outage')),
      this.picture,
    );
    new ResizeObserver(() => this.paint()).observe(this.picture.parentNode);
  }

  start() {
    this.load();
    setInterval(() => document.hidden || this.load(), INTERVAL_MS);
  }

  /** How many wait now: samples are seconds old, and two numbers of one thing puzzle. */
  setWaiting(number) {
    this.waiting = number;
    setText(this.figures.backlog, compact(number));
  }

  async load() {
    try {
      this.data = (await get('/v1/activity', null, 'activity')).activity;
      this.paint();
    } catch (error) {
      // The mark 'offline' says it already.
      if (!isStale(error)) this.picture.classList.add('stale');
    }
  }

  paint() {
    const width = this.picture.clientWidth;
    if (!this.data || width < 10) return;
    const { now, windowMs, at, pending, rate, state } = this.data;
    this.picture.classList.remove('stale');
    const x = (moment) => ((moment - now + windowMs) / windowMs) * width;
    const top = HEIGHT - LANE - 3;
    const highest = Math.max(1, ...pending);
    const speeds = smooth(rate);
    const fastest = Math.max(1, ...speeds);
    const points = at.map((moment, index) => [x(moment), pending[index], speeds[index]]);
    const line = (value, most, room) => points.map((point) => `${point[0].toFixed(1)},${(top - (point[value] / most) * room).toFixed(1)}`);
    const backlog = line(1, highest, top - 8);
    const spans = stretches(at, state, now);
    const parts = [];
    const known = x(at[0]);
    if (known > 1) parts.push(svg('rect', { class: 'unknown', x: 0, y: 0, width: known.toFixed(1), height: HEIGHT }));
    for (const { from, to, state: own } of spans) {
      const place = { x: x(from).toFixed(1), width: Math.max(1, x(to) - x(from)).toFixed(1) };
      if (OUTAGE.has(own)) parts.push(svg('rect', { class: 'outage', 'data-state': own, y: 0, height: HEIGHT, ...place }));
      parts.push(svg('rect', { class: 'lane', 'data-state': own, y: HEIGHT - LANE, height: LANE, ...place }));
    }
    parts.push(svg('polygon', { class: 'backlog', points: `${x(at[0]).toFixed(1)},${top} ${backlog.join(' ')} ${x(at.at(-1)).toFixed(1)},${top}` }));
    parts.push(svg('polyline', { class: 'backlog-line', points: backlog.join(' ') }));
    parts.push(svg('polyline', { class: 'rate-line', points: line(2, fastest, top - 14).join(' ') }));
    for (const [moment, label] of ticks(now - windowMs, now, (64 / width) * windowMs)) {
      if (x(moment) > 14 && x(moment) < width - 40) parts.push(svg('text', { x: x(moment).toFixed(1), y: HEIGHT + AXIS - 3, 'text-anchor': 'middle' }, label));
    }
    parts.push(svg('text', { x: width, y: HEIGHT + AXIS - 3, 'text-anchor': 'end' }, 'now'));
    this.picture.replaceChildren(...parts);
    this.say(spans, highest);
  }

  say(spans, highest) {
    const { now, windowMs, at, pending, rate } = this.data;
    const waiting = this.waiting ?? pending.at(-1);
    // An agent that began later knows nothing of the time before.
    const minutes = Math.max(1, Math.ceil((now - at[0]) / 60_000));
    const window = now - windowMs < at[0] - 60_000 ? `last ${minutes} min` : 'last hour';
    const outage = spans.filter((span) => OUTAGE.has(span.state)).reduce((sum, span) => sum + span.to - span.from, 0);
    const recent = rate.slice(-4);
    const speed = recent.reduce((sum, value) => sum + value, 0) / Math.max(1, recent.length);
    setText(this.figures.backlog, compact(waiting));
    setText(this.figures.rate, speed >= 10 ? compact(Math.round(speed)) : speed.toFixed(1));
    setText(this.figures.outage, outage > 0 ? duration(outage) : 'none');
    setText(this.outageLabel, `outage, ${window}`);
    this.picture.setAttribute('aria-label', `The ${window}: ${waiting} waiting, at most ${highest}; `
      + `outage ${outage > 0 ? duration(outage) : 'none'}; the destination is ${WORDS[spans.at(-1)?.state] ?? 'unknown'}`);
  }
}

/** Each value as the mean of those around it: single bursts say little. */
function smooth(values) {
  return values.map((_, index) => {
    const around = values.slice(Math.max(0, index - SMOOTH), index + SMOOTH + 1);
    return around.reduce((sum, value) => sum + value, 0) / around.length;
  });
}

/** Neighbouring samples of one state, joined. */
function stretches(at, state, now) {
  const found = [];
  at.forEach((moment, index) => {
    const to = at[index + 1] ?? now;
    if (found.at(-1)?.state === state[index]) found.at(-1).to = to;
    else found.push({ from: moment, to, state: state[index] });
  });
  return found;
}
