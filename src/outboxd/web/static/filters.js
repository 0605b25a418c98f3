// The panel of filters: each value with how many events it would leave.

import { byId, h, setText, shown } from './dom.js';
import { compact, count, number } from './format.js';
import { noteNames, producerName, producerTitle } from './names.js';
import { chosen, EMPTY, filterCount, KIND, withValue, without } from './view.js';

const SHOWN = 8; // values of a filter before 'more'
const GROUPS = [
  { name: 'type', title: 'Event types' },
  { name: 'severity', title: 'Severity', fixed: [['error', 'Error'], ['warning', 'Warning'], ['information', 'Information']] },
  { name: 'state', title: 'State', agent: true, fixed: [['pending', 'Waiting'], ['delivered', 'Delivered'], ['dead', 'Dead letters']] },
  { name: 'reason', title: 'Why it died', agent: true, words: { rejected: 'Rejected', exhausted: 'Attempts spent', expired: 'Expired' } },
  { name: 'status', title: 'Last status', agent: true },
  { name: 'source', title: 'Came in by', agent: true, words: { socket: 'Socket', batch: 'Batch', spool: 'Spool', agent: 'The agent itself' } },
  { name: 'producer', title: 'Handed in by', agent: true, word: producerName, hint: producerTitle },
  { name: 'held', title: 'Held', agent: true, fixed: [['true', 'Held by the operator']], plain: true },
  { name: 'cluster', title: 'Clusters' },
  { name: 'namespace', title: 'Namespaces' },
  { name: 'service', title: 'Services' },
].filter((group) => KIND === 'agent' || !group.agent);

let isPressed = false; // a pointer's button

export class Filters {
  /** `onChange(view)` hears of the view that the reader wants now. */
  constructor({ onChange }) {
    this.onChange = onChange;
    this.panel = byId('filters');
    this.expanded = new Set();
    this.clearButton = h('button', { class: 'link', type: 'button', onclick: () => this.clear() }, 'Clear all');
    this.progress = h('p', { class: 'progress', role: 'status' });
    this.isOld = false; // the values stand in the order of older counts
    // What somebody points at, or has the focus in, must not move.
    this.panel.addEventListener('pointerleave', () => this.catchUp());
    this.panel.addEventListener('focusout', () => setTimeout(() => this.catchUp()));
    // Nor what is pressed anywhere, before the click is over: a page that is shorter then
    // would move it away from under the pointer.
    for (const kind of ['pointerdown', 'pointerup', 'pointercancel']) {
      addEventListener(kind, (event) => {
        isPressed = kind === 'pointerdown' && event.button === 0; // another one's end may go to a menu
        if (!isPressed) setTimeout(() => this.catchUp());
      }, true);
    }
    this.groups = new Map(GROUPS.map((group) => [group.name, makeGroup(group)]));
    this.panel.append(
      h('div', { class: 'filters-head' }, h('h2', {}, 'Filters'), this.clearButton),
      ...[...this.groups.values()].map((parts) => parts.element), this.progress,
    );
    this.panel.addEventListener('change', (event) => this.onTick(event));
    this.panel.addEventListener('click', (event) => {
      const { not, value } = event.target.closest('.not')?.dataset ?? {};
      if (not) this.onChange(withValue(this.view, not, value, this.view[without(not)].includes(value) ? 0 : -1));
    });
    this.button = byId('show-filters');
    this.button.addEventListener('click', () => this.toggle());
  }

  setView(view) {
    this.view = view;
    const set = filterCount(view);
    this.clearButton.disabled = set === 0;
    const ticked = chosen(view).length;
    setText(this.button, ticked ? `Filters (${ticked})` : 'Filters');
    for (const group of GROUPS) {
      for (const value of this.groups.get(group.name).values.values()) mark(value, view, group.name);
    }
  }

  isHeld() {
    return isPressed || this.panel.matches(':hover') || this.panel.contains(document.activeElement);
  }

  /** Puts the values into the order of their counts, which waited for somebody to go. */
  catchUp() {
    if (this.isOld && !this.isHeld()) this.setCounts(this.answer);
  }

  setCounts(answer) {
    this.answer = answer;
    this.isOld = this.isHeld();
    noteNames(answer.names ?? {});
    for (const group of GROUPS) this.paint(group, answer.facets[group.name]);
    const looked = answer.searched ?? answer.total; // a search may have come less far
    const share = answer.expected ? Math.min(99, Math.floor((looked / answer.expected) * 100)) : null;
    let text = '';
    if (!answer.complete) text = share === null ? 'Counting…' : `Counting… ${share} %`;
    else if (answer.limited) text = 'There are too many different events to count each: rare ones are left out.';
    setText(this.progress, text);
  }

  paint(group, facet, { anew = false } = {}) {
    const parts = this.groups.get(group.name);
    const counts = new Map(facet.values.map(({ value, count: found }) => [value, found]));
    const chosen = [...this.view[group.name], ...(this.view[without(group.name)] ?? [])];
    let wanted;
    if (group.fixed) wanted = group.fixed;
    else {
      const all = facet.values.map(({ value }) => [value, group.word?.(value) ?? group.words?.[value] ?? value]);
      const open = this.expanded.has(group.name);
      wanted = open ? all : all.filter(([value], index) => index < SHOWN || chosen.includes(value));
      setText(parts.number, ` (${number(facet.distinct)})`);
      parts.more.hidden = all.length <= SHOWN;
      setText(parts.more, open ? 'Fewer' : `${number(all.length - SHOWN)} more`);
      parts.more.onclick = () => {
        if (open) this.expanded.delete(group.name);
        else this.expanded.add(group.name);
        this.paint(group, facet, { anew: true });
      };
      const hidden = facet.distinct - all.length;
      setText(parts.rest, hidden > 0 && open ? `${count(hidden, 'rarer one is', 'rarer ones are')} not listed` : '');
      parts.element.hidden = all.length === 0 && group.name !== 'type';
    }
    if (group.plain) parts.element.hidden = !(counts.get('true') > 0 || chosen.length);
    this.paintValues(group, parts, this.isHeld() && !anew ? inOldOrder(parts, wanted) : wanted, counts, chosen);
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
      if (group.word) {
        setText(own.text, label); // its name may have been found since
        own.text.title = shown(group.hint(value));
      }
      if (parts.list.children[index] !== own.element) parts.list.insertBefore(own.element, parts.list.children[index] ?? null);
      const events = counts.get(value) ?? 0;
      mark(own, this.view, group.name);
      own.box.setAttribute('aria-label', shown(`${label}, ${count(events, 'event', 'events')}`));
      own.element.classList.toggle('none', events === 0);
      setText(own.count, compact(events));
      own.count.title = number(events);
    });
  }

  onTick(event) {
    const { name, value, checked } = event.target;
    if (name) this.onChange(withValue(this.view, name, value, checked ? 1 : 0));
  }

  clear() {
    this.onChange({ ...EMPTY, event: this.view.event });
  }

  toggle() {
    const open = this.panel.classList.toggle('open');
    this.button.setAttribute('aria-expanded', String(open));
  }
}

/** What stands there stays where it is, be nothing left of it; what is new comes behind it. */
function inOldOrder(parts, found) {
  const labels = new Map(found);
  const old = [...parts.list.children].map((element) => [...parts.values].find(([, own]) => own.element === element));
  const stay = old.map(([value, own]) => [value, labels.get(value) ?? own.text.textContent]);
  return [...stay, ...found.filter(([value]) => !parts.values.has(value))];
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
  const swatch = name === 'severity' || name === 'state' ? h('span', { class: 'swatch', 'data-tone': value, 'aria-hidden': 'true' }) : null;
  const not = name === 'held' ? null : h('button', {
    type: 'button', class: 'not', 'data-not': name, 'data-value': value, 'aria-pressed': 'false',
    'aria-label': `Leave out ${label}`, title: 'Leave this out',
  }, '≠');
  return { box, not, text, count: found, element: h('li', {}, h('label', {}, box, swatch, text, found), not) };
}

/** Ticked, left out, or neither. */
function mark(value, view, name) {
  value.box.checked = view[name].includes(value.box.value);
  const out = view[without(name)]?.includes(value.box.value) ?? false;
  value.element.classList.toggle('out', out);
  value.not?.setAttribute('aria-pressed', String(out));
}
