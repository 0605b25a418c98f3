// Makes elements. Text only ever becomes a text node, so that nothing an event
// says can become markup; there is no other way to put text on this page.

const SHOWN = new Set(['title', 'aria-label']);
const SVG = 'http://www.w3.org/2000/svg';

export const byId = (id) => document.getElementById(id);

/** An element with attributes, listeners (`onclick`) and children (nodes or text). */
export function h(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** The same in SVG. */
export function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

// What joins the parts of one emoji, and of words in scripts that need it.
const JOINERS = /(?<=\p{Extended_Pictographic}[\ufe0f\p{Emoji_Modifier}]?)\u200d(?=\p{Extended_Pictographic})|(?<=\p{Script=Arabic}|[\p{Script=Devanagari}\p{Script=Bengali}\p{Script=Malayalam}])[\u200c\u200d](?=\p{Letter})/u;
const DECEIVING = new RegExp(`(${JOINERS.source})|[\\p{Cc}\\p{Cf}\\p{Zl}\\p{Zp}]`, 'gu');

/** A text as it is shown: what would drive or deceive a reader (control and format
 * characters, such as U+202E, which turns a text around) is spelt out. */
export function shown(text) {
  return String(text).replace(DECEIVING, (character, joiner) => (joiner || character === '\n' || character === '\t'
    ? character : `\\u${character.codePointAt(0).toString(16).padStart(4, '0')}`));
}

/** Sets a text only where it differs, so that nothing is laid out again for nothing. */
export function setText(element, text) {
  const safe = shown(text);
  if (element.textContent !== safe) element.textContent = safe;
}

/** Makes what stands in an element say what the new parts say. What is alike stays the
 * same element, so that neither focus nor pointer loses it; listeners are not moved. */
export function become(element, parts) {
  const wanted = parts.filter((part) => part !== null && part !== undefined && part !== '')
    .map((part) => (part instanceof Node ? part : document.createTextNode(shown(part))));
  wanted.forEach((part, index) => {
    const old = element.childNodes[index];
    if (!old) element.append(part);
    else if (old.nodeType !== part.nodeType || old.nodeName !== part.nodeName) old.replaceWith(part);
    else if (old.nodeType === Node.TEXT_NODE) {
      if (old.data !== part.data) old.data = part.data;
    } else {
      for (const { name } of [...old.attributes]) if (!part.hasAttribute(name)) old.removeAttribute(name);
      for (const { name, value } of part.attributes) if (old.getAttribute(name) !== value) old.setAttribute(name, value);
      become(old, [...part.childNodes]);
    }
  });
  while (element.childNodes.length > wanted.length) element.lastChild.remove();
}

/** Whether a text in an element is selected: then nothing in it may change. */
export function isSelectedIn(element) {
  const selection = getSelection();
  return selection.type === 'Range' && element.contains(selection.anchorNode);
}

/** Tells screen readers, and nobody else. */
export function announce(text) {
  byId('announcer').textContent = shown(text);
}

/** The round icon of a severity. */
export function severityIcon(severity) {
  const icon = svg('svg', { class: 'severity-icon', viewBox: '0 0 24 24', 'aria-hidden': 'true' },
    svg('circle', { cx: 12, cy: 12, r: 11 }), svg('path'));
  setSeverity(icon, severity);
  return icon;
}

const SHAPES = {
  information: 'M12 10.8v6M12 7.2v.1',
  warning: 'M12 6.6v6.6M12 16.8v.1',
  error: 'm8.4 8.4 7.2 7.2M15.6 8.4l-7.2 7.2',
};

export function setSeverity(icon, severity) {
  if (icon.dataset.severity === severity) return;
  icon.dataset.severity = severity;
  icon.lastChild.setAttribute('d', SHAPES[severity] ?? SHAPES.information);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (typeof value === 'function') element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? '' : SHOWN.has(name) ? shown(value) : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== '')
    .map((child) => (child instanceof Node ? child : shown(child))));
  return element;
}
