// The timeline: one column per step, entropy above, belief below, and a cursor over both.

const STRIP = { top: 16, entropy: 54, gap: 12, belief: 46, bottom: 6, left: 8, right: 8 };

class Strip {
  constructor(app) {
    this.app = app;
    this.canvas = el('canvas', {
      class: 'lb-strip', tabindex: '0', role: 'slider', 'aria-label': 'Step of the run',
      'aria-valuemin': '0', 'aria-valuemax': '0', 'aria-valuenow': '0',
    });
    this.legend = el('ul', { class: 'lb-strip-legend', 'aria-label': 'Belief in each answer' });
    this.side = el('div', { class: 'lb-strip-side' }, el('p', { class: 'lb-quiet' },
      'Belief in each answer', hint(LB.text.belief)), this.legend);
    this.controls = this.buildControls();
    this.root = el('section', { class: 'lb-timeline', 'aria-label': 'Timeline', hidden: true },
      this.controls,
      el('div', { class: 'lb-strip-row' },
        el('div', { class: 'lb-strip-box' }, this.canvas, el('p', { class: 'lb-strip-empty',
          text: 'Here a run shows step by step how unsure the model was, where it looked closer, '
            + 'and what it believed.' })), this.side));
    this.canvas.addEventListener('pointerdown', (event) => {
      this.canvas.setPointerCapture(event.pointerId);
      this.canvas.focus({ preventScroll: true });
      this.held = true;
      this.point(event);
    });
    this.canvas.addEventListener('pointermove', (event) => {
      if (this.held) this.point(event);
      else this.hover(event);
    });
    this.canvas.addEventListener('pointerup', () => { this.held = false; });
    this.canvas.addEventListener('pointercancel', () => { this.held = false; });
    this.canvas.addEventListener('keydown', (event) => this.key(event));
    new ResizeObserver(() => this.draw()).observe(this.canvas);
    this.reset();
  }

  buildControls() {
    const act = (name, title, action) => {
      const node = button('', {
        class: 'lb-tool', title, 'aria-label': title, 'data-action': name,
      }, action);
      node.append(icon(name));
      return node;
    };
    this.play = act('play', 'Play or pause (space)', () => this.app.togglePlay());
    this.where = el('span', { class: 'lb-where', 'aria-hidden': 'true' });
    this.speed = el('select', { class: 'lb-select lb-speed', 'aria-label': 'Speed' },
      ...[['0.5', '½×'], ['1', '1×'], ['2', '2×'], ['4', '4×']].map(([value, text]) =>
        el('option', { value, text, selected: value === '1' })));
    return el('div', { class: 'lb-controls' },
      el('span', { class: 'lb-tool-group' },
        act('start', 'To the start (Home)', () => this.app.go(1)),
        act('back', 'One step back (left)', () => this.app.step(-1)),
        this.play,
        act('next', 'One step on (right)', () => this.app.step(1)),
        act('end', 'To the end (End)', () => this.app.go(Infinity))),
      this.speed, this.where,
      el('span', { class: 'lb-key-legend' },
        el('span', { class: 'lb-key-unsure', text: 'unsure step' }),
        el('span', { class: 'lb-key-tool', text: 'asking for a crop' }),
        el('span', { class: 'lb-key-answer', text: 'answer' }),
        this.limitKey = el('span', { class: 'lb-key-limit', text: 'limit', hidden: true }),
        el('span', { class: 'lb-key-crop', text: 'crop' }),
        el('span', { class: 'lb-key-latent', text: 'inner step' }),
        hint(LB.text.entropy + ' ' + LB.text.unsure)));
  }

  reset() {
    this.columns = [];
    this.known = 0;
    this.highest = 1;
    this.where.textContent = '';
    clear(this.legend);
    this.legendNodes = [];
    this.side.hidden = true;
    this.root.dataset.filled = 'false';
  }

  append() {
    const { items, facts } = this.app.run;
    for (; this.known < items.length; this.known += 1) {
      const kind = items[this.known][0];
      if ('tlca'.includes(kind)) this.columns.push(this.known);
      if (kind === 't') this.highest = Math.max(this.highest, items[this.known][2]);
    }
    this.limitKey.hidden = !facts;
    if (facts) this.highest = Math.max(this.highest, facts.unsure * 1.25);
    if (facts && facts.options.length && !this.legendNodes.length) {
      this.legendNodes = facts.options.map((option, i) => {
        const value = el('span', { class: 'lb-strip-value' });
        const dot = el('span', { class: 'lb-dot' });
        dot.style.background = OPTION_COLORS[i % OPTION_COLORS.length];
        this.legend.append(el('li', {}, dot, el('span', { class: 'lb-strip-name', text: option,
          title: option }), value));
        return value;
      });
    }
    this.root.dataset.filled = String(this.columns.length > 0);
    this.side.hidden = !this.legendNodes.length;
    this.draw();
  }

  size() {
    const box = this.canvas.getBoundingClientRect();
    return { width: box.width, height: box.height };
  }

  // Column of an item: the first column at or after it.
  columnOf(index) {
    let low = 0;
    let high = this.columns.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.columns[middle] < index) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  x(column, width) {
    const count = Math.max(this.columns.length, 40);
    return STRIP.left + ((column + 0.5) / count) * (width - STRIP.left - STRIP.right);
  }

  itemAt(event) {
    const box = this.canvas.getBoundingClientRect();
    const count = Math.max(this.columns.length, 40);
    const part = (event.clientX - box.left - STRIP.left) / (box.width - STRIP.left - STRIP.right);
    const column = clamp(Math.floor(part * count), 0, this.columns.length - 1);
    return this.columns[column];
  }

  point(event) {
    if (this.columns.length) this.app.select(this.itemAt(event), {});
  }

  hover(event) {
    if (!this.columns.length) return;
    const item = this.app.run.items[this.itemAt(event)];
    this.canvas.title = this.describe(item);
  }

  describe(item) {
    if (!item) return 'start';
    if (item[0] === 't') {
      const above = this.app.above(item) ? ', unsure' : '';
      return 'step “' + tokenText(item[1]) + '”, entropy ' + number(item[2], 2) + ' nats' + above;
    }
    if (item[0] === 'l') return 'inner step ' + item[1] + ' of ' + item[2];
    if (item[0] === 'c') return 'crop ' + item[1];
    if (item[0] === 'a') return 'answer';
    return 'end';
  }

  key(event) {
    const app = this.app;
    const actions = {
      ' ': () => app.togglePlay(),
      ArrowRight: () => app.step(event.shiftKey ? 10 : 1),
      ArrowLeft: () => app.step(event.shiftKey ? -10 : -1),
      ArrowUp: () => app.event(-1),
      ArrowDown: () => app.event(1),
      Home: () => app.go(1),
      End: () => app.go(Infinity),
      n: () => app.nextUnsure(),
    };
    const crop = '123456789'.indexOf(event.key);
    const action = actions[event.key] || (crop >= 0 && (() => app.toCrop(crop + 1)));
    const silent = !singleKeys() && event.key !== ' ' && event.key.length === 1;
    if (!action || silent || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    action();
  }

  draw() {
    if (this.pending) return;
    this.pending = true;
    window.requestAnimationFrame(() => {
      this.pending = false;
      if (this.app.run && this.canvas.isConnected) this.paint();
    });
  }

  paint() {
    const { width, height } = this.size();
    if (!width) return;
    const ratio = Math.min(window.devicePixelRatio || 1, 2);
    this.canvas.width = Math.round(width * ratio);
    this.canvas.height = Math.round(height * ratio);
    const context = this.canvas.getContext('2d');
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    this.paintEntropy(context, width);
    this.paintBelief(context, width);
    this.paintCursor(context, width, height);
    this.state();
  }

  paintEntropy(context, width) {
    const { items, facts } = this.app.run;
    const base = STRIP.top + STRIP.entropy;
    const each = this.x(1, width) - this.x(0, width);
    const thick = clamp(each * 0.72, 1, 14);
    this.columns.forEach((index, column) => {
      const item = items[index];
      const x = this.x(column, width);
      context.globalAlpha = index < this.app.cursor ? 1 : 0.28;
      if (item[0] === 't') {
        const tall = Math.max(1.5, (item[2] / this.highest) * STRIP.entropy);
        context.fillStyle = this.app.above(item) ? '#E69F00'
          : ['#7C8894', '#3F5F78', '#B8AE3A'][item[4]];
        context.fillRect(x - thick / 2, base - tall, thick, tall);
      } else if (item[0] === 'l') {
        context.fillStyle = '#2BC49A';
        context.beginPath();
        context.arc(x, base - 6, clamp(each * 0.36, 1.5, 4.5), 0, 2 * Math.PI);
        context.fill();
      } else if (item[0] === 'a') {
        context.fillStyle = '#F0E442';
        context.fillRect(x - 4, base - 9, 8, 8);
      } else {
        this.paintPin(context, x, base, item);
      }
    });
    context.globalAlpha = 1;
    context.fillStyle = '#2A323B';
    context.fillRect(STRIP.left, base, width - STRIP.left - STRIP.right, 1);
    if (facts) {
      const y = base - (facts.unsure / this.highest) * STRIP.entropy;
      context.strokeStyle = '#9AA4AE';
      context.setLineDash([4, 4]);
      context.lineWidth = 1;
      context.beginPath();
      context.moveTo(STRIP.left, y);
      context.lineTo(width - STRIP.right, y);
      context.stroke();
      context.setLineDash([]);
    }
  }

  paintPin(context, x, base, item) {
    context.fillStyle = item[5][1] ? '#9AA4AE' : '#56B4E9';
    context.fillRect(x - 0.75, STRIP.top - 2, 1.5, STRIP.entropy + 2);
    context.beginPath();
    context.arc(x, STRIP.top - 6, 8, 0, 2 * Math.PI);
    context.fill();
    context.fillStyle = '#0B0E11';
    context.font = '600 11px system-ui, sans-serif';
    context.textAlign = 'center';
    context.textBaseline = 'middle';
    context.fillText(String(item[1]), x, STRIP.top - 5.5);
  }

  paintBelief(context, width) {
    const { items, facts } = this.app.run;
    if (!facts || !facts.options.length) return;
    const points = [];
    items.forEach((item, index) => {
      if (item[0] === 'b') points.push([this.x(this.columnOf(index) - 0.5, width), item[3], index]);
    });
    if (!points.length) return;
    const top = STRIP.top + STRIP.entropy + STRIP.gap;
    const y = (p) => top + (1 - clamp(p, 0, 1)) * STRIP.belief;
    const end = this.x(this.columns.length - 0.5, width);
    // What lies after the cursor is drawn dim, as it is above.
    const seen = this.app.cursor >= items.length ? width
      : this.x(this.columnOf(this.app.cursor) - 0.5, width);
    for (const [from, to, alpha] of [[0, seen, 1], [seen, width, 0.28]]) {
      context.save();
      context.beginPath();
      context.rect(from, 0, to - from, top + STRIP.belief + STRIP.bottom);
      context.clip();
      context.globalAlpha = alpha;
      this.paintLines(context, points, facts.options, y, end);
      context.restore();
    }
    const now = [...points].reverse().find(([, , index]) => index < this.app.cursor) || points[0];
    const shares = percents(facts.options.map((_, i) => now[1][i] || 0));
    this.legendNodes.forEach((node, i) => { node.textContent = shares[i]; });
  }

  paintLines(context, points, options, y, end) {
    options.forEach((_, i) => {
      context.strokeStyle = OPTION_COLORS[i % OPTION_COLORS.length];
      context.fillStyle = context.strokeStyle;
      context.lineWidth = 2;
      context.beginPath();
      points.forEach(([x, values], k) => {
        if (k) context.lineTo(x, y(values[i] || 0));
        else context.moveTo(x, y(values[i] || 0));
      });
      context.lineTo(end, y(points[points.length - 1][1][i] || 0));
      context.stroke();
      for (const [x, values] of points) {
        context.beginPath();
        context.arc(x, y(values[i] || 0), 2.6, 0, 2 * Math.PI);
        context.fill();
      }
    });
  }

  paintCursor(context, width, height) {
    if (!this.columns.length) return;
    const column = clamp(this.columnOf(this.app.cursor) - 1, 0, this.columns.length - 1);
    const x = this.x(column, width);
    context.fillStyle = '#E6E9EC';
    context.fillRect(x - 0.75, STRIP.top - 4, 1.5, height - STRIP.top - STRIP.bottom + 4);
    context.beginPath();
    context.moveTo(x - 5, height - 1);
    context.lineTo(x + 5, height - 1);
    context.lineTo(x, height - 8);
    context.fill();
  }

  state() {
    const { items } = this.app.run;
    const done = this.columnOf(this.app.cursor);
    this.canvas.setAttribute('aria-valuemax', String(this.columns.length));
    this.canvas.setAttribute('aria-valuenow', String(done));
    this.canvas.setAttribute('aria-valuetext',
      'step ' + done + ', ' + this.describe(items[this.columns[done - 1]]));
    this.where.textContent = 'step ' + done + ' of ' + this.columns.length;
    const sign = this.app.playing ? 'pause' : 'play';
    if (this.play.dataset.sign !== sign) {
      this.play.dataset.sign = sign;
      clear(this.play, icon(sign));
    }
  }
}
