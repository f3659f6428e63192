// Small helpers. All text of users, files and models reaches the page through textContent.

function el(tag, attributes, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name === 'text') node.textContent = value;
    else if (name === 'class') node.className = value;
    else node.setAttribute(name, value === true ? '' : String(value));
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

function clear(node, ...children) {
  node.replaceChildren(...children.filter(Boolean));
  return node;
}

function clamp(value, low, high) {
  return Math.min(high, Math.max(low, value));
}

function percent(value) {
  if (value > 0 && value < 0.01) return '<1%';
  if (value > 0.99 && value < 1) return '>99%';
  return Math.round(value * 100) + '%';
}

// Shares as percentages. Those of two options add up to 100, as the shares do; of more, equal
// ones would then have to look different.
function percents(values) {
  const [first, second] = values;
  if (values.length !== 2 || Math.abs(first + second - 1) > 0.002) return values.map(percent);
  const shown = Math.min(100, Math.round(first * 100));
  return values.map((value, i) => (value > 0 && value < 0.01) || (value > 0.99 && value < 1)
    ? percent(value) : (i ? 100 - shown : shown) + '%');
}

function number(value, digits) {
  return Number(value).toLocaleString('en', { maximumFractionDigits: digits, useGrouping: false });
}

function fileUrl(folder, name) {
  const root = (window.gradio_config && window.gradio_config.root) || '';
  const base = root ? root.replace(/\/?$/, '/') : new URL('.', document.baseURI).href;
  const path = (folder + '/' + name).split('/').map(encodeURIComponent).join('/');
  return base + 'gradio_api/file=' + path;
}

function button(label, attributes, onClick) {
  const node = el('button', { type: 'button', text: label, ...attributes });
  if (onClick) node.addEventListener('click', onClick);
  return node;
}

// A drawn icon, so that no font has to have it.
const ICONS = {
  start: 'M4 4h2v12H4z M16 4v12L7 10z',
  back: 'M14 4v12L6 10z',
  play: 'M6 4v12l10-6z',
  pause: 'M5 4h3.5v12H5z M11.5 4H15v12h-3.5z',
  next: 'M6 4v12l8-6z',
  end: 'M14 4h2v12h-2z M4 4v12l9-6z',
  invert: 'M10 3a7 7 0 1 0 0 14z M10 3v1.4a5.6 5.6 0 0 1 0 11.2V17a7 7 0 0 0 0-14z',
  mirror: 'M9.3 3h1.4v14H9.3z M8 6v8H2z M12 6v8h6z',
  turn: 'M10 4V1.5L14 5l-4 3.5V6a4.8 4.8 0 1 0 4.8 4.8h2A6.8 6.8 0 1 1 10 4z',
  minus: 'M4 9.2h12v1.6H4z',
  plus: 'M4 9.2h5.2V4h1.6v5.2H16v1.6h-5.2V16H9.2v-5.2H4z',
};

function icon(name) {
  const space = 'http://www.w3.org/2000/svg';
  const svg = document.createElementNS(space, 'svg');
  svg.setAttribute('viewBox', '0 0 20 20');
  svg.setAttribute('aria-hidden', 'true');
  svg.setAttribute('class', 'lb-icon');
  const path = document.createElementNS(space, 'path');
  path.setAttribute('d', ICONS[name]);
  svg.append(path);
  return svg;
}

// "?" with an explanation that opens on click, hover and focus.
function hint(text) {
  const node = el('span', { class: 'lb-hint', tabindex: '0', role: 'note', 'aria-label': text });
  node.append(el('span', { 'aria-hidden': 'true', text: '?' }));
  node.append(el('span', { class: 'lb-hint-text', 'aria-hidden': 'true', text }));
  return node;
}

// A row of a bar list: label, bar, value.
function bar(label, share, value, color) {
  const fill = el('span', { class: 'lb-bar-fill' });
  fill.style.width = clamp(share, 0, 1) * 100 + '%';
  if (color) fill.style.background = color;
  return el('div', { class: 'lb-bar' },
    el('span', { class: 'lb-bar-label', text: label, title: label }),
    el('span', { class: 'lb-bar-track' }, fill),
    el('span', { class: 'lb-bar-value', text: value }));
}

const OPTION_COLORS = LB.option_colors;

const CROP_DASHES = [[], [8, 4], [3, 3], [10, 3, 3, 3], [14, 5]];

// Preferences only: never a text, a name or a picture.
const prefs = {
  read() {
    try {
      const stored = JSON.parse(window.localStorage.getItem('lightbox.preferences') || '{}');
      return stored && typeof stored === 'object' ? stored : {};
    } catch (error) {
      return {};
    }
  },
  write(changes) {
    try {
      const merged = JSON.stringify({ ...prefs.read(), ...changes });
      window.localStorage.setItem('lightbox.preferences', merged);
    } catch (error) {
      // A browser that refuses storage only forgets the preference.
    }
  },
};

const still = window.matchMedia('(prefers-reduced-motion: reduce)');

// Small screens, with the same limit as in the style sheet.
const oneColumn = window.matchMedia('(max-width: 767px)');
