// What lies behind the selected step, and what the model was given.

class Inspector {
  constructor(app) {
    this.app = app;
    this.step = el('div', { class: 'lb-inspect', 'aria-live': 'off' });
    this.sawBody = el('div', { class: 'lb-saw' });
    this.saw = el('details', { class: 'lb-fold', open: true },
      el('summary', { text: 'What the model saw' }), this.sawBody);
    this.factsBody = el('dl', { class: 'lb-facts' });
    this.facts = el('details', { class: 'lb-fold' },
      el('summary', { text: 'About this run' }), this.factsBody);
    this.root = el('aside', { class: 'lb-inspector', 'aria-label': 'Inspector' },
      el('h2', { class: 'lb-title', text: 'Selected step' }), this.step, this.saw, this.facts);
    this.image = 0;
    this.latentMap = 'similarity';
    this.reset();
  }

  reset() {
    // What is still on its way belongs to another run.
    this.ticket = null;
    this.sawKey = null;
    this.empty();
    this.saw.hidden = true;
    this.facts.hidden = true;
  }

  empty() {
    clear(this.step, el('p', { class: 'lb-quiet',
      text: 'Click a step, a crop or an inner step to see what lies behind it.' }));
  }

  // Shows an item; the heat map follows it. A newer call overtakes an older one.
  async show(index) {
    const { items } = this.app.run;
    const item = items[index];
    if (!item) return;
    const ticket = {};
    this.ticket = ticket;
    if (item[0] === 't') this.token(index, item, null);
    else if (item[0] === 'l') this.latent(index, item, null);
    else if (item[0] === 'c') return this.crop(item);
    else return this.other(item);
    const detail = await this.app.details.get(index, items);
    if (this.ticket !== ticket || !detail) return undefined;
    if (item[0] === 't') this.token(index, item, detail);
    else this.latent(index, item, detail);
    return undefined;
  }

  token(index, item, detail) {
    const nodes = [
      el('p', { class: 'lb-picked' }, el('span', { class: 'lb-picked-word',
        text: tokenText(item[1]) }),
      el('span', { class: 'lb-quiet',
        text: item[5] & FORCED ? 'written by the program, not drawn'
          : ['reasoning', 'asking for a crop', 'answer'][item[4]] })),
      el('div', { class: 'lb-two' },
        this.figure(percent(item[3]), 'its own probability'),
        this.figure(number(item[2], 2), 'entropy, nats', hint(LB.text.entropy + ' ' + LB.text.unsure))),
    ];
    if (detail && detail.alternatives && detail.alternatives.length) {
      nodes.push(el('h3', { class: 'lb-sub', text: 'It could have written' }),
        ...detail.alternatives.map(([text, p]) =>
          bar(tokenText(text), p, percent(p), text === item[1] ? '#F0E442' : '#66727E')));
    } else if (!detail && this.step.dataset.kind === 't') {
      return this.keepSize(nodes);
    }
    if (detail) nodes.push(...this.maps(detail.maps, 'attention'));
    this.step.dataset.kind = 't';
    this.put(nodes);
    this.step.dataset.ready = detail ? String(index) : '';
    return undefined;
  }

  // Draws a step; a toggle that was in focus is so again.
  put(nodes) {
    const { toggle } = document.activeElement.dataset;
    clear(this.step, ...nodes);
    const again = toggle && this.step.querySelector('[data-toggle="' + toggle + '"]');
    if (again) again.focus();
  }

  // While details are on their way, only the head changes, so that nothing jumps.
  keepSize(nodes) {
    const old = [...this.step.children];
    nodes.forEach((node, i) => old[i] && old[i].replaceWith(node));
    this.step.dataset.ready = '';
  }

  latent(index, item, detail) {
    const nodes = [
      el('p', { class: 'lb-picked' }, el('span', { class: 'lb-picked-word lb-green',
        text: 'Inner step ' + item[1] }), el('span', { class: 'lb-quiet',
        text: 'of ' + item[2] + ', without words' })),
      el('div', { class: 'lb-two' },
        // A vector of zeros has no direction, and is like nothing.
        this.figure(item[4] === null || !item[3] ? '–' : number(item[4], 2),
          'likeness to the step before'),
        this.figure(number(item[3], 1), 'length of its vector')),
      el('p', { class: 'lb-quiet', text: LB.text.vector }),
    ];
    if (!detail) {
      if (this.step.dataset.kind === 'l') return this.keepSize(nodes);
    } else {
      const choose = el('div', { class: 'lb-choice', role: 'group', 'aria-label': 'Map' },
        ...[['similarity', 'Resembles'], ['attention', 'Looked at']].map(
          ([name, text]) => button(text, {
            class: 'lb-small', 'aria-pressed': String(this.latentMap === name),
            'data-toggle': name,
          }, () => { this.latentMap = name; this.show(index); })));
      nodes.push(choose);
      if (this.latentMap === 'similarity') {
        nodes.push(...this.maps([detail.similarity], 'similarity'));
      } else {
        nodes.push(...this.maps(detail.maps, 'attention'));
      }
    }
    this.step.dataset.kind = 'l';
    this.put(nodes);
    this.step.dataset.ready = detail ? String(index) : '';
    return undefined;
  }

  maps(packed, label) {
    if (!packed || !packed.length) {
      this.app.viewer.setHeat(null);
      return [el('p', { class: 'lb-quiet', text: 'This run kept no heat maps.' })];
    }
    const grids = packed.map(decodeGrid);
    const grid = grids.find((one) => one.image === this.image) || grids[0];
    const scale = label === 'similarity' ? 1 : Math.max(this.app.run.scale, 1e-6);
    this.app.viewer.setHeat(grid, scale, label);
    const facts = gridFacts(grid);
    const copy = this.copy(grid, scale, facts);
    const ringed = this.app.viewer.layer !== 'off';
    const name = grid.image ? 'crop ' + grid.image : 'the image';
    const nodes = [el('h3', { class: 'lb-sub', text: label === 'similarity'
      ? 'Parts of the image that it resembles' : 'Where it looked' })];
    if (grids.length > 1) {
      nodes.push(el('div', { class: 'lb-choice', role: 'group', 'aria-label': 'Picture' },
        ...grids.map((one) => button(one.image ? 'Crop ' + one.image : 'Image', {
          class: 'lb-small', 'aria-pressed': String(one === grid),
          'data-toggle': 'image-' + one.image,
        }, () => { this.image = one.image; this.app.inspectAgain(); }))));
    }
    if (copy) nodes.push(copy);
    if (label === 'attention') {
      nodes.push(bar('on ' + name, grid.total, percent(grid.total), '#56B4E9'));
    }
    if (!(grid.peak > 0)) {
      nodes.push(el('p', { class: 'lb-quiet', text: 'This map is empty: ' + (label === 'similarity'
        ? 'the step resembles no part of the image.' : 'nothing of ' + name + ' was looked at.') }));
      return nodes;
    }
    nodes.push(bar('at the border', facts.border, percent(facts.border),
      facts.border > 0.5 ? '#FF8A4C' : '#66727E'));
    nodes.push(el('p', { class: 'lb-quiet',
      text: 'Strongest' + (ringed ? ' (the ring): ' : ': ') + facts.place + ' of '
        + (grid.image ? name : 'the picture') + '. '
        + LB.text.border + ' ' + (label === 'similarity' ? LB.text.similarity : LB.text.heat) }));
    return nodes;
  }

  // In one column the image lies far above: the map is drawn here a second time, small.
  copy(grid, scale, { x, y }) {
    const { viewer, run } = this.app;
    if (!oneColumn.matches || viewer.layer === 'off' || !(grid.peak > 0)) return null;
    const map = gridCanvas(grid, scale, viewer.limit);
    const ring = el('span', { class: 'lb-map-ring' });
    ring.style.left = x * 100 + '%';
    ring.style.top = y * 100 + '%';
    return el('div', { class: 'lb-map-copy', 'aria-hidden': 'true' }, el('img', { alt: '',
      src: fileUrl(run.folder, grid.image ? 'crop-' + grid.image + '.png' : 'seen.png') }),
    map, ring);
  }

  crop(item) {
    const [, n, box, source, seen, [clamped, skipped], , grid] = item;
    const rounded = (values) => values.map((v) => Math.round(v)).join(', ');
    const factor = this.app.zoomFactor(source);
    clear(this.step,
      el('p', { class: 'lb-picked' }, el('span', { class: 'lb-picked-word lb-blue',
        text: 'Crop ' + n }), el('span', { class: 'lb-quiet', text: skipped ? 'withheld' : '' })),
      el('img', { class: 'lb-inspect-picture', alt: 'Crop ' + n + ' as the model saw it',
        src: fileUrl(this.app.run.folder, 'crop-' + n + '.png') }),
      el('dl', { class: 'lb-facts' },
        ...facts('Cut from the original', rounded(source) + ' px'),
        ...facts('In what it saw', rounded(seen) + ' px'),
        ...facts('Enlarged', number(factor, 1) + ' ×'),
        ...facts('Patches', grid[1] + ' by ' + grid[0]),
        ...facts('Edge', clamped ? 'cut at the image edge' : 'inside the image')));
    this.step.dataset.kind = 'c';
    this.step.dataset.ready = 'crop-' + n;
    this.app.viewer.setHeat(null);
  }

  other(item) {
    this.step.dataset.kind = item[0];
    this.step.dataset.ready = item[0];
    if (item[0] === 'a') {
      clear(this.step, el('p', { class: 'lb-picked' }, el('span', {
        class: 'lb-picked-word lb-yellow', text: item[1] || 'No answer' })),
      el('p', { class: 'lb-quiet', text: LB.text.answer }));
    } else {
      this.empty();
    }
    this.app.viewer.setHeat(null);
  }

  figure(value, label, extra) {
    return el('div', { class: 'lb-figure' }, el('b', { text: value }),
      el('span', { class: 'lb-quiet', text: label }), extra);
  }

  // Panels that depend on the run only.
  about() {
    const run = this.app.run;
    if (!run || !run.facts) return;
    this.saw.hidden = false;
    this.facts.hidden = false;
    if (this.sawKey !== run.key) {
      this.sawKey = run.key;
      this.drawSaw(run);
    }
    this.drawFacts(run);
  }

  drawSaw(run) {
    const { image } = run.facts;
    const [rows, columns] = image.grid;
    const picture = el('img', { alt: 'The image as the model saw it',
      src: fileUrl(run.folder, 'seen.png') });
    const grid = el('div', { class: 'lb-saw-grid', 'aria-hidden': 'true' });
    grid.style.backgroundSize = 100 / columns + '% ' + 100 / rows + '%';
    const each = [image.source[0] / columns, image.source[1] / rows];
    const lines = [image.seen[0] + ' × ' + image.seen[1] + ' pixels, in ' + columns + ' by ' + rows
      + ' patches of ' + Math.round(image.seen[0] / columns) + ' × '
      + Math.round(image.seen[1] / rows) + ' pixels. One patch covers ' + Math.round(each[0]) + ' × ' + Math.round(each[1])
      + ' pixels of the original' + (image.spacing
      ? ' (' + number(each[0] * image.spacing[1], 1) + ' × '
        + number(each[1] * image.spacing[0], 1) + millimetres(image) + ').' : '.')];
    const loss = image.source[0] / image.seen[0];
    if (loss > 1.3) {
      lines.push('The original is ' + number(loss, 1) + ' times finer: detail below '
        + number(loss, 1) + ' pixels' + (image.spacing
        ? ' (' + number(loss * image.spacing[1], 2) + millimetres(image) + ')' : '')
        + ' is lost unless it looks closer.');
    }
    if (image.window) {
      lines.push('Window: W ' + number(image.window[1], 1) + ' L ' + number(image.window[0], 1)
        + ' (' + (WINDOW_SOURCES[image.window[2]] || 'chosen') + ').');
    }
    clear(this.sawBody, el('div', { class: 'lb-saw-picture' }, picture, grid),
      ...lines.map((text) => el('p', { class: 'lb-quiet', text })));
  }

  drawFacts(run) {
    const { model, changes } = run.facts;
    const end = run.items.length && run.items[run.items.length - 1];
    const rows = [
      ['Model', model.id + (model.embedded ? ' (small teaching model)' : '')],
      ['Stage', model.stage],
      ['Runs on', model.device + ', ' + model.dtype],
      ['Method', (LB.methods[run.facts.method] || [run.facts.method])[0]],
      ['Seed', String(run.facts.seed)],
      ['Temperature', number(run.facts.temperature, run.facts.temperature < 0.1 ? 5 : 2)],
    ];
    const { distance } = run.facts;
    if (distance) {
      rows.push(['Unlike its training', number(distance.score, 2) + ' (limit '
        + number(distance.threshold, 2) + ')' + (distance.flagged ? ', marked' : '')]);
    }
    const changed = describeChanges(changes);
    if (changed) rows.push(['Changed', changed]);
    if (end && end[0] === 'f') {
      const facts = end[3];
      rows.push(['Time', number(end[2], 1) + ' s (first look ' + number(facts.prefill, 1) + ' s)'],
        ['Written', plural(facts.generated, 'token')],
        ['Memory', Math.round(facts.memory / 2 ** 20) + ' MB at most']);
      if (facts.failed_calls) rows.push(['Failed requests to look', String(facts.failed_calls)]);
    }
    clear(this.factsBody, ...rows.flatMap(([name, text]) => facts(name, text)));
  }
}

const WINDOW_SOURCES = {
  file: 'from the file', percentile: 'computed from the image', preset: 'a preset',
  request: 'set by hand', identity: 'as stored',
};

// What a step wrote, also where nothing of it can be seen.
// A distance at the detector is larger than that in the patient, who lies before it.
function millimetres(image) {
  return image.spacing_kind === 'detector' ? ' mm at the detector' : ' mm';
}

function tokenText(text) {
  // The sign that ends what the model writes has no text of its own.
  if (text === '') return '(end of the text)';
  return text.trim() || (text.includes('\n') ? '(new line)' : '(space)');
}

function facts(name, text) {
  return [el('dt', { text: name }), el('dd', { text })];
}
