// The reasoning as cards that append while the model runs.

const CARD_TITLES = {
  first: ['First impression', '◌'],
  look: ['Look', '◉'],
  unsure: ['Unsure here', '!'],
  crop: ['A closer look', '▣'],
  latent: ['Inner steps', '✦'],
  answer: ['Answer', '='],
  failed: ['The run broke off', '×'],
};

const LATENT_CHANGES = {
  zero: 'inner steps fed with zeros', noise: 'inner steps fed with noise',
  blind: 'inner steps kept from the image', skip: 'inner steps left out',
  shuffle: 'inner steps taken from another image',
};

function describeChanges(changes) {
  const parts = [];
  if (!changes) return '';
  if (LATENT_CHANGES[changes.latents]) parts.push(LATENT_CHANGES[changes.latents]);
  if (changes.skip_crops.length) parts.push('crop ' + changes.skip_crops.join(', ') + ' withheld');
  if (changes.moved_crops.length) {
    parts.push('crop ' + changes.moved_crops.join(', ') + ' cut elsewhere');
  }
  if (changes.occlude.length) {
    parts.push(changes.occlude.length + (changes.occlude.length > 1 ? ' regions' : ' region')
      + ' covered');
  }
  return parts.join(', ');
}

// Whose inner steps a run is fed, as much as the page knows of that image.
function donorText({ title, question }) {
  return 'They come from ' + (title ? '“' + title + '”' : 'an image that you opened')
    + ', asked “' + question + '”.';
}

const MARKUP = /<\/?(?:think|answer|tool_call|tool_response)>|<\|[a-z_]+\|>/g;

// Draws the text of a token with its tags apart.
function redraw({ span, text, tags }) {
  const nodes = [];
  let at = 0;
  for (const [from, to] of tags) {
    nodes.push(text.slice(at, from), el('span', { class: 'lb-markup', text: text.slice(from, to) }));
    at = to;
  }
  clear(span, ...nodes, text.slice(at));
}

class Cards {
  constructor(app) {
    this.app = app;
    this.list = el('ol', { class: 'lb-cards', 'aria-label': 'Reasoning, step by step' });
    this.list.addEventListener('click', (event) => this.click(event));
    this.reset();
  }

  reset() {
    clear(this.list);
    this.nodes = [];
    this.spans = new Map();
    // Results, each with the item that it came with.
    this.results = [];
    this.drawn = 0;
  }

  click(event) {
    const token = event.target.closest('[data-item]');
    if (token) {
      const fly = token.dataset.fly === 'true';
      this.app.select(Number(token.dataset.item), { fly, bring: !fly });
    }
  }

  // Draws what is new; called with the same items again it changes nothing.
  append() {
    const { items, cards } = this.app.run;
    for (let c = this.nodes.length; c < cards.length; c += 1) this.open(cards[c][0], cards[c][1]);
    for (; this.drawn < items.length; this.drawn += 1) this.take(this.drawn, items[this.drawn]);
    const last = this.nodes[this.nodes.length - 1];
    if (this.app.run.status !== 'running' && last && last.kind === 'crop' && !last.number) {
      last.status.textContent = 'The run ended before a place was chosen.';
    }
  }

  open(kind, from) {
    const [title, sign] = CARD_TITLES[kind];
    const heading = el('span', { class: 'lb-card-title', text: title });
    const meta = el('span', { class: 'lb-card-meta' });
    const body = el('div', { class: 'lb-card-body' });
    const node = el('li', { class: 'lb-card lb-card-' + kind, 'data-kind': kind },
      el('div', { class: 'lb-card-head' },
        el('span', { class: 'lb-card-sign', 'aria-hidden': 'true', text: sign }), heading, meta),
      body);
    const last = this.nodes[this.nodes.length - 1];
    if (last && last.kind === 'crop' && !last.number) {
      last.status.textContent = 'No crop came of it: the request was not understood or one too many.';
    }
    const card = { kind, from, node, body, heading, meta, before: null };
    this.nodes.push(card);
    this.list.append(node);
    if (kind === 'look' || kind === 'answer') {
      card.text = el('p', { class: 'lb-words' });
      body.append(card.text);
    }
    if (kind === 'unsure') this.unsure(card);
    if (kind === 'crop') {
      card.status = el('p', { class: 'lb-quiet', text: 'Choosing where to look…' });
      card.text = el('p', { class: 'lb-words lb-code' });
      card.raw = el('details', { class: 'lb-raw' },
        el('summary', { text: 'What the model wrote' }), card.text);
      body.append(card.status, card.raw);
    }
    if (kind === 'latent') {
      card.thumbs = el('div', { class: 'lb-thumbs' });
      body.append(card.thumbs);
    }
    return card;
  }

  cardOf(index) {
    for (let c = this.nodes.length - 1; c >= 0; c -= 1) {
      if (this.nodes[c].from <= index && this.nodes[c].kind !== 'unsure') return this.nodes[c];
    }
    return this.nodes[0] || this.open('look', 0);
  }

  take(index, item) {
    const card = this.cardOf(index);
    if (item[0] === 't') this.token(card, index, item);
    else if (item[0] === 'l') this.latent(card, index, item);
    else if (item[0] === 'c') this.crop(card, index, item);
    else if (item[0] === 'b') this.belief(card, index, item);
    else if (item[0] === 'a') this.answer(card, index, item);
    else if (item[0] === 'x') this.failure(card, item);
  }

  token(card, index, item) {
    if (!card.text) return;
    const tag = /^\s*<\/?[a-z_|]+>?\s*$/i.test(item[1]);
    const level = item[2] < 0.7 ? 0 : item[2] < 1.2 ? 1 : item[2] < 2 ? 2 : item[2] < 3 ? 3 : 4;
    const span = el('span', {
      class: 'lb-token lb-h' + level + (tag ? ' lb-tag' : '')
        + (item[5] & FORCED ? ' lb-forced' : ''),
      'data-item': index, text: item[1],
    });
    if (this.app.above(item)) span.classList.add('lb-above');
    this.spans.set(index, span);
    const space = /^\s*/.exec(item[1])[0];
    if (space && !tag) {
      if (card.text.childNodes.length) card.text.append(space);
      span.textContent = item[1].slice(space.length);
    }
    card.text.append(span);
    this.hideMarkup(card, span);
  }

  // Tags are no prose: they are shown only in what the model wrote as it wrote it. One may be
  // spread over several tokens, or follow other characters in one.
  hideMarkup(card, span) {
    card.written = card.written || '';
    card.pieces = card.pieces || [];
    card.pieces.push({ span, from: card.written.length, text: span.textContent, tags: [] });
    card.written += span.textContent;
    MARKUP.lastIndex = card.checked || 0;
    for (let found = MARKUP.exec(card.written); found; found = MARKUP.exec(card.written)) {
      const [start, end] = [found.index, found.index + found[0].length];
      card.checked = end;
      for (let p = card.pieces.length - 1; p >= 0; p -= 1) {
        const piece = card.pieces[p];
        const from = clamp(start - piece.from, 0, piece.text.length);
        const to = clamp(end - piece.from, 0, piece.text.length);
        if (from < to) piece.tags.push([from, to]);
        if (piece.from <= start) break;
      }
      card.pieces.filter((piece) => piece.tags.length && piece.from + piece.text.length > start)
        .forEach(redraw);
    }
  }

  unsure(card) {
    const { items } = this.app.run;
    const last = card.from - 1;
    const item = items[last];
    if (!item) return;
    const limit = this.app.run.facts.threshold;
    card.meta.textContent = number(item[2], 2) + ' nats, limit ' + number(limit, 2);
    card.body.append(el('p', { class: 'lb-quiet' },
      'The step “', el('button', {
        type: 'button', class: 'lb-link', 'data-item': last, text: item[1].trim() || '…',
      }), '” was spread over several choices, so it takes a closer look.'));
  }

  latent(card, index, item) {
    card.meta.textContent = item[1] + ' of ' + item[2];
    const thumb = el('button', {
      type: 'button', class: 'lb-thumb', 'data-item': index,
      'aria-label': 'Inner step ' + item[1], title: 'Inner step ' + item[1],
    });
    thumb.append(el('span', { text: String(item[1]) }));
    card.thumbs.append(thumb);
    this.spans.set(index, thumb);
    this.app.details.get(index, this.app.run.items).then((detail) => {
      if (!detail || !detail.similarity || !thumb.isConnected) return;
      const grid = decodeGrid(detail.similarity);
      const canvas = gridCanvas(grid, 1);
      canvas.setAttribute('aria-hidden', 'true');
      thumb.prepend(canvas);
    });
  }

  crop(card, index, item) {
    const [, n, box, source, , [clamped, skipped], trigger] = item;
    card.number = n;
    card.skipped = skipped;
    card.heading.textContent = skipped ? 'A closer look, withheld' : 'A closer look';
    card.meta.textContent = 'crop ' + n;
    const picture = el('img', {
      class: 'lb-crop-picture', alt: 'Crop ' + n, loading: 'lazy',
      src: fileUrl(this.app.run.folder, 'crop-' + n + '.png'),
    });
    const { run } = this.app;
    const moved = Boolean(run.facts) && run.facts.changes.moved_crops.includes(n);
    const why = trigger[0] === 'entropy'
      ? 'Because it was unsure (' + number(trigger[2], 2) + ' nats, above '
        + number(trigger[3], 2) + ').'
      : trigger[0] === 'request' ? 'Because you asked for it.'
        : moved ? 'That it looked closer was its own decision.' : 'Its own decision.';
    const size = (source[2] - source[0]) + ' × ' + (source[3] - source[1])
      + ' pixels of the original';
    const notes = [why, size + '.'];
    if (clamped) notes.push('The box reached outside the image and was cut.');
    if (moved) {
      notes.push(run.replay ? 'It was cut at this place on purpose, not where the model chose.'
        : 'You moved it to this place.');
    }
    // Also the runs of a comparison withhold crops, so that it need not have been the reader.
    if (skipped) notes.push('Withheld on purpose: the model got no new picture.');
    const text = el('div', { class: 'lb-crop-text' },
      ...notes.map((line) => el('p', { class: 'lb-quiet', text: line })));
    const figure = el('button', {
      type: 'button', class: 'lb-crop', 'data-item': index, 'data-fly': 'true',
      title: 'Show this region on the image', 'aria-label': 'Show crop ' + n + ' on the image',
    }, picture);
    const row = el('div', { class: 'lb-crop-row' }, figure, text);
    card.status.replaceWith(row);
    this.results.push([index, row]);
    card.node.dataset.crop = n;
    this.spans.set(index, figure);
  }

  belief(card, index, item) {
    const options = this.app.run.facts.options;
    if (card.kind === 'latent' && !card.thumbs.childNodes.length) {
      card.heading.textContent = 'Inner steps: left out';
      card.thumbs.remove();
    }
    const node = el('div', { class: 'lb-belief' });
    this.results.push([index, node]);
    if (!options.length) {
      if (item[6]) {
        node.append(el('p', { class: 'lb-quiet' },
          { prefill: 'At first it would say: ', end: 'It would say: ' }[item[1]]
          || 'Now it would say: ', el('b', { text: item[6] })));
        card.body.append(node);
      }
      return;
    }
    if (item[1] === 'before_crop') {
      card.before = item[3];
      return;
    }
    // The answer's own card shows it.
    if (item[1] === 'end') return;
    const before = item[1] === 'after_crop' ? card.before : null;
    this.bars(node, options, item[3], before);
    if (item[1] === 'latent') {
      const taken = card.thumbs && card.thumbs.isConnected;
      node.prepend(el('p', { class: 'lb-quiet', text: LB.text.belief_now
        + (taken ? ' ' + LB.text.no_gauge : '') }));
    }
    if (before) node.prepend(el('p', { class: 'lb-quiet', text: effectOf(before, item[3], card.skipped) }));
    if (item[4] > 0.2) {
      node.append(el('p', { class: 'lb-quiet',
        text: percent(item[4]) + ' went to something that is none of the options.' }));
    }
    card.body.append(node);
  }

  bars(node, options, values, before) {
    const shares = percents(options.map((_, i) => values[i] || 0));
    const former = before && percents(options.map((_, i) => before[i] || 0));
    options.forEach((option, i) => {
      const now = values[i] || 0;
      const text = before ? former[i] + ' → ' + shares[i] : shares[i];
      const row = bar(option, now, text, OPTION_COLORS[i % OPTION_COLORS.length]);
      if (before) {
        const mark = el('span', { class: 'lb-bar-before' });
        mark.style.left = clamp(before[i] || 0, 0, 1) * 100 + '%';
        row.querySelector('.lb-bar-track').append(mark);
        row.classList.add('lb-bar-change');
      }
      node.append(row);
    });
  }

  answer(card, index, item) {
    const facts = this.app.run.facts;
    if (card.text) {
      const raw = el('details', { class: 'lb-raw' },
        el('summary', { text: 'What the model wrote' }));
      card.text.replaceWith(raw);
      raw.append(card.text);
    }
    const text = item[3] ? item[1] : item[1] || 'No answer could be read.';
    const big = el('button', {
      type: 'button', class: 'lb-answer', 'data-item': index, text,
    });
    const node = el('div', { class: 'lb-belief' });
    if (item[4].length && facts.options.length) this.bars(node, facts.options, item[4], null);
    const result = el('div', { class: 'lb-result' }, big, ...(item[3] ? [] : [el('p', {
      class: 'lb-quiet', text: 'This names none of the options.' })]), node);
    const rest = el('div', { class: 'lb-result' });
    card.body.prepend(result);
    card.body.append(rest);
    this.results.push([index, result], [index, rest]);
    if (this.app.truth) {
      rest.append(el('p', { class: 'lb-truth' }, el('b', { text: 'What was drawn: ' }),
        this.app.truth));
    }
    if (facts.distance && facts.distance.flagged) {
      rest.append(el('p', { class: 'lb-foot lb-unlike', text: LB.text.unlike }));
    }
    rest.append(el('p', { class: 'lb-foot', text: LB.text.answer }));
    this.spans.set(index, big);
  }

  failure(card, item) {
    card.meta.textContent = item[1];
    const copy = button('Copy details', { class: 'lb-small' }, () => {
      const facts = this.app.run.facts;
      const text = item[1] + ' ' + item[2] + (facts ? ' (run ' + facts.id + ', '
        + facts.model.id + ')' : '');
      if (navigator.clipboard) navigator.clipboard.writeText(text);
    });
    card.body.append(el('p', { text: item[2] }),
      el('p', { class: 'lb-quiet', text: 'Your image is still loaded.' }), copy);
    card.node.setAttribute('role', 'alert');
  }

  // Dims what lies after the cursor and marks the step under it.
  show(cursor, selected) {
    this.nodes.forEach((card, c) => {
      const next = this.nodes[c + 1];
      const current = card.from < cursor && (!next || next.from >= cursor);
      card.node.classList.toggle('lb-future', card.from >= cursor && cursor > 0
        && !(card.kind === 'unsure' && card.from === cursor));
      card.node.classList.toggle('lb-current', current);
    });
    for (const [index, span] of this.spans) {
      span.classList.toggle('lb-later', index >= cursor);
      span.classList.toggle('lb-selected', index === selected);
    }
    for (const [index, node] of this.results) node.classList.toggle('lb-later', index >= cursor);
  }

  toBottom() {
    const box = this.list.parentElement;
    if (box) box.scrollTop = box.scrollHeight;
  }

  // To the end, or to the head of the last card where it is too long to be seen whole.
  toLast() {
    this.toBottom();
    const box = this.list.parentElement;
    const last = this.nodes[this.nodes.length - 1];
    if (!box || !last) return;
    if (box.scrollHeight <= box.clientHeight) {
      // In one column the page itself scrolls; it is not moved under somebody who looks elsewhere.
      const { top, bottom } = box.getBoundingClientRect();
      if (top < window.innerHeight && bottom > 0) last.node.scrollIntoView({ block: 'nearest' });
      return;
    }
    const over = last.node.getBoundingClientRect().top - box.getBoundingClientRect().top - 8;
    if (over < 0) box.scrollTop += over;
  }

  reveal(index, smooth) {
    const span = this.spans.get(index);
    const target = span || (this.nodes.length && this.cardOf(index).node);
    const box = this.list.parentElement;
    if (!target || !box || box.scrollHeight <= box.clientHeight) return;
    const top = target.getBoundingClientRect().top - box.getBoundingClientRect().top;
    const bottom = top + target.offsetHeight;
    if (top < 30 || bottom > box.clientHeight - 16) {
      box.scrollTo({
        top: box.scrollTop + top - box.clientHeight / 3,
        behavior: smooth && !still.matches ? 'smooth' : 'auto',
      });
    }
  }
}

// One sentence on what stands between the beliefs before and right after a crop. The model is
// asked before it has written what it sees there, so that little change says little.
function effectOf(before, after, skipped) {
  if (skipped) {
    return 'It saw nothing new here: what its belief does is not due to the crop.';
  }
  const change = Math.max(...after.map((value, i) => Math.abs(value - (before[i] || 0))));
  const best = (values) => values.indexOf(Math.max(...values));
  const says = best(before) !== best(after) ? 'another answer is the likeliest'
    : change < 0.03 ? 'its belief is nearly as it was'
      : after[best(after)] > before[best(after)] ? 'it is surer' : 'it is less sure';
  return 'Right after the crop, before it is described, ' + says + '.';
}
