// The services there are, by cluster and namespace; those that the selected
// event is correlated to are marked.

import { get } from './api.js';
import { byId, h, setText } from './dom.js';
import { count } from './format.js';

const SHOWN_MAX = 2000; // services; a larger account is shown in figures

export class Map {
  constructor() {
    this.element = h('div', { class: 'clusters' });
    this.services = new globalThis.Map();
    this.spaces = [];
  }

  setInventory(inventory) {
    if (!inventory) return;
    this.services.clear();
    this.spaces = [];
    const shown = inventory.total <= SHOWN_MAX;
    this.element.replaceChildren(...inventory.clusters.map((cluster) => h('div', { class: 'cluster', role: 'group', 'aria-label': `Cluster ${cluster.name}` },
      h('p', { class: 'cluster-name' }, cluster.name, h('span', {}, 'CLUSTER')),
      h('div', { class: 'spaces' }, ...cluster.namespaces.map((space) => this.space(cluster.name, space, shown))))));
  }

  space(cluster, { name, services }, shown) {
    const figure = h('span', { class: 'figure' }, count(services.length, 'service', 'services'));
    this.spaces.push({ cluster, name, figure, total: services.length });
    const chips = services.map((service) => {
      const chip = h('li', { class: 'service', title: `${service} in ${name}, ${cluster}` }, service);
      this.services.set(key(cluster, name, service), chip);
      return chip;
    });
    return h('div', { class: 'space', role: 'group', 'aria-label': `Namespace ${name}` },
      h('p', { class: 'space-name' }, name, figure), shown ? h('ul', {}, ...chips) : '');
  }

  /** Marks these services; null marks none and dims none. */
  mark(services) {
    this.element.classList.toggle('marking', services !== null);
    const marked = new Set((services ?? []).map((own) => key(own.cluster, own.namespace, own.service)));
    for (const [own, chip] of this.services) {
      chip.classList.toggle('marked', marked.has(own));
      if (marked.has(own)) chip.setAttribute('aria-current', 'true');
      else chip.removeAttribute('aria-current');
    }
    for (const { cluster, name, figure, total } of this.spaces) {
      const found = (services ?? []).filter((own) => own.cluster === cluster && own.namespace === name).length;
      setText(figure, services ? `${found} of ${total}` : count(total, 'service', 'services'));
    }
  }
}

export class Inventory {
  constructor() {
    this.map = new Map();
    this.title = h('p', { class: 'readout', 'aria-live': 'polite' });
    byId('inventory').append(h('div', { class: 'picture-head' }, h('h2', {}, 'Inventory'), this.title), this.map.element);
    this.inventory = null;
  }

  async load() {
    this.inventory = (await get('/v1/inventory', null, 'inventory')).inventory;
    this.map.setInventory(this.inventory);
    this.mark(null);
  }

  /** Marks what an event is correlated to. */
  mark(entry) {
    const services = entry?.correlatedServices ?? null;
    this.map.mark(services);
    const total = this.inventory?.total ?? 0;
    setText(this.title, services ? `“${entry.eventType}” reaches ${services.length} of ${count(total, 'service', 'services')}`
      : `${count(total, 'service', 'services')}. Select an event to see which of them it reaches.`);
  }
}

const key = (...names) => names.join('\u0000');
