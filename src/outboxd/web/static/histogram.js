// Events over time by severity. A range is selected with the pointer or the
// arrow keys; choosing it makes it the view's time range.

import { announce, byId, h, setText, svg } from './dom.js';
import { compact, count, range, ticks } from './format.js';

const SEVERITIES = ['information', 'warning', 'error']; // from the bottom up
const HEIGHT = 84;
const AXIS = 18;
const LEFT = 46; // room for 999.9K

export class Histogram {
  /** `onSelect(since, until)` hears of a selected range. */
  constructor({ onSelect, onClear }) {
    this.onSelect = onSelect;
    this.onClear = onClear;
    this.readout = h('p', { class: 'readout', 'aria-live': 'polite' });
    this.zoomOut = h('button', { class: 'link', type: 'button', hidden: true, onclick: () => this.onClear() }, 'Show all');
    this.picture = svg('svg', {
      tabindex: '0', role: 'application', 'aria-roledescription': 'histogram', 'aria-label': 'Events over time',
      'aria-describedby': 'histogram-help', height: HEIGHT + AXIS,
    });
    byId('histogram').append(
      h('div', { class: 'picture-head' }, this.legend(), this.readout, this.zoomOut), this.picture,
      h('p', { id: 'histogram-help', class: 'unseen' }, 'Arrow keys move along time, with Shift they select a range, Enter shows it, Escape gives it up.'),
    );
    this.layers = ['grid', 'bars', 'selection', 'axis'].map((name) => svg('g', { class: name }));
    this.picture.append(...this.layers);
    this.data = null;
    this.selection = null; // [from, to], buckets, both included
    new ResizeObserver(() => this.paint()).observe(byId('histogram'));
    this.listen();
  }

  /** How many buckets there is room for. */
  buckets() {
    return Math.max(20, Math.min(160, Math.floor((byId('histogram').clientWidth - LEFT - 24) / 8)));
  }

  set(data, isZoomed) {
    this.data = data;
    this.zoomOut.hidden = !isZoomed;
    const last = data.counts.information.length - 1;
    // A range that somebody is selecting stays, as long as it fits.
    if (this.selection && (!(this.dragging || document.activeElement === this.picture) || Math.max(...this.selection) > last)) this.selection = null;
    this.paint();
  }

  legend() {
    return h('ul', { class: 'legend' }, ...['error', 'warning', 'information'].map((severity) => h('li', {},
      h('span', { class: 'swatch', 'data-tone': severity, 'aria-hidden': 'true' }), severity)));
  }

  // --- painting ---

  paint() {
    const width = Math.max(200, byId('histogram').clientWidth - 24);
    this.picture.setAttribute('width', width);
    if (!this.data) return;
    const { counts } = this.data;
    const sums = counts.information.map((_, index) => SEVERITIES.reduce((sum, name) => sum + counts[name][index], 0));
    this.sums = sums;
    const top = Math.max(1, ...sums);
    this.slot = (width - LEFT) / sums.length;
    const scale = (value) => (value / top) * (HEIGHT - 10);
    const bars = [];
    sums.forEach((sum, index) => {
      if (sum === 0) return;
      let base = HEIGHT;
      for (const severity of SEVERITIES) {
        const found = counts[severity][index];
        if (!found) continue;
        // Whatever there is can be seen: a single error among thousands too.
        const height = Math.max(2, scale(found));
        base -= height;
        bars.push(svg('rect', {
          class: severity, x: LEFT + index * this.slot + 0.5, y: base.toFixed(1),
          width: Math.max(1, this.slot - 1).toFixed(2), height: height.toFixed(1),
        }));
      }
    });
    const [grid, barLayer, , axis] = this.layers;
    barLayer.replaceChildren(...bars);
    grid.replaceChildren(
      svg('line', { x1: LEFT, x2: width, y1: 10, y2: 10 }), svg('line', { x1: LEFT, x2: width, y1: HEIGHT, y2: HEIGHT }),
      svg('text', { x: LEFT - 6, y: 14, 'text-anchor': 'end' }, compact(top)), svg('text', { x: LEFT - 6, y: HEIGHT, 'text-anchor': 'end' }, '0'));
    axis.replaceChildren(...this.ticks(width));
    this.paintSelection();
  }

  ticks(width) {
    const { since, until, stepMs } = this.data;
    const x = (at) => LEFT + ((at - since) / stepMs) * this.slot;
    return ticks(since, until, (64 / this.slot) * stepMs).filter(([at]) => x(at) > LEFT + 12 && x(at) < width - 16)
      .map(([at, label]) => svg('text', { x: x(at).toFixed(1), y: HEIGHT + AXIS - 4, 'text-anchor': 'middle' }, label));
  }

  paintSelection() {
    const layer = this.layers[2];
    if (!this.selection || !this.data) {
      layer.replaceChildren();
      setText(this.readout, this.data ? this.summary() : '');
      return;
    }
    const [low, high] = this.ordered();
    layer.replaceChildren(svg('rect', {
      x: LEFT + low * this.slot, y: 0, width: (high - low + 1) * this.slot, height: HEIGHT,
    }));
    const text = this.describe(low, high);
    setText(this.readout, text);
  }

  summary() {
    const { since, until, complete } = this.data;
    return `${range(since, until)}${complete ? '' : ' …'}`;
  }

  describe(low, high) {
    const { since, stepMs, counts } = this.data;
    const sum = (name) => counts[name].slice(low, high + 1).reduce((total, value) => total + value, 0);
    const [errors, warnings] = [sum('error'), sum('warning')];
    const total = errors + warnings + sum('information');
    const parts = [`${range(since + low * stepMs, since + (high + 1) * stepMs)}: ${count(total, 'event', 'events')}`];
    if (errors) parts.push(count(errors, 'error', 'errors'));
    if (warnings) parts.push(count(warnings, 'warning', 'warnings'));
    return parts.join(', ');
  }

  // --- selecting ---

  ordered() {
    const [from, to] = this.selection;
    return from <= to ? [from, to] : [to, from];
  }

  bucketAt(event) {
    const x = event.clientX - this.picture.getBoundingClientRect().left - LEFT;
    return Math.max(0, Math.min(this.sums.length - 1, Math.floor(x / this.slot)));
  }

  select(from, to) {
    this.selection = [from, to];
    this.paintSelection();
  }

  give() {
    if (!this.selection) return;
    const { since, stepMs } = this.data;
    const [low, high] = this.ordered();
    this.selection = null;
    announce(`Time range selected: ${this.describe(low, high)}`);
    this.onSelect(since + low * stepMs, since + (high + 1) * stepMs);
  }

  cancel() {
    if (!this.selection) return false;
    this.selection = null;
    this.dragging = false;
    this.paintSelection();
    return true;
  }

  listen() {
    const { picture } = this;
    picture.addEventListener('pointerdown', (event) => {
      if (!this.data || event.button !== 0) return;
      picture.setPointerCapture(event.pointerId);
      this.dragging = true;
      this.select(this.bucketAt(event), this.bucketAt(event));
    });
    picture.addEventListener('pointermove', (event) => {
      if (!this.data) return;
      const at = this.bucketAt(event);
      this.select(this.dragging ? this.selection?.[0] ?? at : at, at);
    });
    picture.addEventListener('pointerup', () => {
      if (this.dragging) this.give();
      this.dragging = false;
    });
    picture.addEventListener('pointercancel', () => this.cancel());
    picture.addEventListener('pointerleave', () => {
      if (!this.dragging) this.cancel();
    });
    picture.addEventListener('blur', () => this.cancel());
    picture.addEventListener('keydown', (event) => this.onKey(event));
  }

  onKey(event) {
    if (!this.data || event.altKey || event.ctrlKey || event.metaKey) return;
    const last = this.sums.length - 1;
    const [from, to] = this.selection ?? [last + 1, last + 1];
    const targets = { ArrowLeft: to - 1, ArrowRight: to + 1, Home: 0, End: last };
    if (event.key in targets) {
      const target = Math.max(0, Math.min(last, targets[event.key]));
      this.select(event.shiftKey && this.selection ? from : target, target);
    } else if (event.key === 'Enter') this.give();
    else if (event.key !== 'Escape' || !this.cancel()) return;
    event.preventDefault();
    event.stopPropagation();
  }
}
