// The panel of filters: each value with how many events it would leave.

import { byId, h, setText } from './dom.js';
import { compact, count, number } from './format.js';
import { EMPTY, filterCount, KIND, LISTS } from './view.js';

const SHOWN = 8; // values of a filter before 'more'
const GROUPS = [
  { name: 'type', title: 'Event types' },
  { name: 'severity', title: 'Severity', fixed: [['error', 'Error'], ['warning', 'Warning'], ['information', 'Information']] },
  { name: 'state', title: 'State', agent: true, fixed: [['pending', 'Waiting'], ['delivered', 'Delivered'], ['dead', 'Dead letters']] },
  { name: 'held', title: 'Held', agent: true, fixed: [['true', 'Held by the operator']], plain: true },
  { name: 'cluster', title: 'Clusters' },
  { name: 'namespace', title: 'Namespaces' },
  { name: 'service', title: 'Services' },
].filter((group) => KIND === 'agent' || !group.agent);

export class Filters {
  /** `onChange(view)` hears of the view that the reader wants now. */
  constructor({ onChange }) {
    this.onChange = onChange;
    this.panel = byId('filters');
    this.expanded = new Set();
    this.clearButton = h('button', { class: 'link', type: 'button', onclick: () => this.clear() }, 'Clear all');
    this.progress = h('p', { class: 'progress', role: 'status' });
    this.groups = new Map(GROUPS.map((group) => [group.name, makeGroup(group)]));
    this.panel.append(
      h('div', { class: 'filters-head' }, h('h2', {}, 'Filters'), this.clearButton),
      ...[...this.groups.values()].map((parts) => parts.element), this.progress,
    );
    this.panel.addEventListener('change', (event) => this.onTick(event));
    this.button = byId('show-filters');
    this.button.addEventListener('click', () => this.toggle());
  }

  setView(view) {
    this.view = view;
    const chosen = filterCount(view);
    this.clearButton.disabled = chosen === 0;
    const ticked = LISTS.reduce((sum, name) => sum + view[name].length, 0);
    setText(this.button, ticked ? `Filters (${ticked})` : 'Filters');
    for (const group of GROUPS) {
      for (const value of this.groups.get(group.name).values.values()) {
        value.box.checked = view[group.name].includes(value.box.value);
      }
    }
  }

  setCounts(answer) {
    for (const group of GROUPS) this.paint(group, answer.facets[group.name]);
    const share = answer.expected ? Math.min(99, Math.floor((answer.total / answer.expected) * 100)) : null;
    let text = '';
    if (!answer.complete) text = share === null ? 'Counting…' : `Counting… ${share} %`;
    else if (answer.limited) text = 'There are too many different events to count each: rare ones are left out.';
    setText(this.progress, text);
  }

  paint(group, facet) {
    const parts = this.groups.get(group.name);
    const counts = new Map(facet.values.map(({ value, count: found }) => [value, found]));
    const chosen = this.view[group.name];
    let wanted;
    if (group.fixed) wanted = group.fixed;
    else {
      const all = facet.values.map(({ value }) => [value, value]);
      const open = this.expanded.has(group.name);
      wanted = open ? all : all.filter(([value], index) => index < SHOWN || chosen.includes(value));
      setText(parts.number, ` (${number(facet.distinct)})`);
      parts.more.hidden = all.length <= SHOWN;
      setText(parts.more, open ? 'Fewer' : `${number(all.length - SHOWN)} more`);
      parts.more.onclick = () => {
        if (open) this.expanded.delete(group.name);
        else this.expanded.add(group.name);
        this.paint(group, facet);
      };
      const hidden = facet.distinct - all.length;
      setText(parts.rest, hidden > 0 && open ? `${count(hidden, 'rarer one is', 'rarer ones are')} not listed` : '');
      parts.element.hidden = all.length === 0 && group.name !== 'type';
    }
    if (group.plain) parts.element.hidden = !(counts.get('true') > 0 || chosen.length);
    this.paintValues(group, parts, wanted, counts, chosen);
  }

  paintValues(group, parts, wanted, counts, chosen) {
    const keys = new Set(wanted.map(([value]) => value));
    for (const [value, own] of parts.values) {
      if (!keys.has(value)) {
        own.element.remove();
        parts.values.delete(value);
      }
    }
    wanted.forEach(([value, label], index) => {
      let own = parts.values.get(value);
      if (!own) {
        own = makeValue(group.name, value, label);
        parts.values.set(value, own);
      }
      if (parts.list.children[index] !== own.element) parts.list.insertBefore(own.element, parts.list.children[index] ?? null);
      const found = counts.get(value) ?? 0;
      own.box.checked = chosen.includes(value);
      own.box.setAttribute('aria-label', `${label}, ${count(found, 'event', 'events')}`);
      own.element.classList.toggle('none', found === 0);
      setText(own.count, compact(found));
      own.count.title = number(found);
    });
  }

  onTick(event) {
    const { name, value, checked } = event.target;
    const chosen = this.view[name].filter((own) => own !== value);
    if (checked) chosen.push(value);
    this.onChange({ ...this.view, [name]: chosen });
  }

  clear() {
    this.onChange({ ...EMPTY, event: this.view.event });
  }

  toggle() {
    const open = this.panel.classList.toggle('open');
    this.button.setAttribute('aria-expanded', String(open));
  }
}

function makeGroup({ name, title, fixed }) {
  const parts = {
    number: h('span', { class: 'number' }), list: h('ul'), values: new Map(),
    more: h('button', { class: 'link', type: 'button', hidden: true }), rest: h('p', { class: 'progress' }),
  };
  parts.element = h('fieldset', { 'data-group': name },
    h('legend', {}, title, parts.number), parts.list, parts.more, parts.rest);
  for (const [value, label] of fixed ?? []) {
    const own = makeValue(name, value, label);
    parts.values.set(value, own);
    parts.list.append(own.element);
  }
  return parts;
}

function makeValue(name, value, label) {
  const box = h('input', { type: 'checkbox', name, value });
  const found = h('span', { class: 'count', 'aria-hidden': 'true' });
  const text = h('span', { class: 'value', title: label }, label);
  const mark = name === 'severity' || name === 'state' ? h('span', { class: 'swatch', 'data-tone': value, 'aria-hidden': 'true' }) : null;
  return { box, count: found, element: h('li', {}, h('label', {}, box, mark, text, found)) };
}
