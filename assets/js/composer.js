// The question, the answer options, the method, and the settings of the next run.

class Composer {
  constructor(app) {
    this.app = app;
    this.covered = [];
    this.moved = [];
    this.drawing = null;
    this.build();
    // What was filled in from a sample, as long as nobody has changed it.
    this.sample = null;
    this.setMethod(prefs.read().method || 'auto');
    this.setModel(LB.models.length ? LB.models[0].key : '', false);
    this.update();
  }

  build() {
    this.question = el('textarea', {
      class: 'lb-input', rows: '2', maxlength: '1000', id: 'lb-question',
      placeholder: LB.text.ready, 'aria-label': 'Question',
    });
    this.options = el('textarea', {
      class: 'lb-input', rows: '2', id: 'lb-options', 'aria-label': 'Answer options, one per line',
      placeholder: 'Answer options, one per line (or leave empty)',
    });
    this.methods = el('div', { class: 'lb-methods', role: 'radiogroup', 'aria-label': 'Method' });
    for (const [name, [label, text]] of Object.entries(LB.methods)) {
      const node = button(label, {
        role: 'radio', class: 'lb-method', 'data-method': name, title: text,
      }, () => this.chooseMethod(name));
      this.methods.append(node);
    }
    this.methods.addEventListener('keydown', (event) => this.methodKey(event));
    this.methodText = el('p', { class: 'lb-quiet lb-method-text' });
    this.why = el('p', { class: 'lb-why', id: 'lb-why', hidden: true });
    this.explain = button('Explain', { class: 'lb-primary', id: 'lb-explain' },
      () => this.app.explain(false));
    this.stop = button('Stop', { class: 'lb-stop', id: 'lb-stop', hidden: true,
      title: 'Stop (Esc)' }, () => this.app.stop());
    this.save = button('Save trace', { class: 'lb-small', id: 'lb-save', disabled: true },
      () => this.app.save());
    this.open = button('Open…', { class: 'lb-small', id: 'lb-open',
      title: 'Open an image or a saved trace' }, () => this.app.pickFile());
    this.samples = button('Samples', { class: 'lb-small', id: 'lb-samples', hidden: true,
      title: 'Show the samples', 'aria-expanded': 'false' },
    () => this.app.browse(!this.app.browsing));
    this.settings = this.buildSettings();
    this.whatIf = this.buildWhatIf();
    this.looked = el('input', { type: 'checkbox', id: 'lb-looked' });
    this.looked.addEventListener('change', () => this.app.describeState(this.app.state));
    this.lookRow = el('label', { class: 'lb-check lb-look', hidden: true }, this.looked,
      el('span', { text: LB.text.burned_in }));
    this.root = el('section', { class: 'lb-composer', 'aria-label': 'Question' },
      el('div', { class: 'lb-ask' }, this.question, this.options), this.lookRow,
      el('div', { class: 'lb-row' }, this.methods,
        el('div', { class: 'lb-go' }, this.explain, this.stop)),
      this.methodText, this.why,
      el('div', { class: 'lb-row lb-more' }, this.settings, this.whatIf,
        el('span', { class: 'lb-files' }, this.samples, this.open, this.save)));
    this.root.addEventListener('input', () => this.update());
  }

  field(label, attributes, help) {
    const input = el('input', { class: 'lb-input lb-number', type: 'number', ...attributes });
    return { input, label, node: el('label', { class: 'lb-field' },
      el('span', {}, label, help ? hint(help) : null), input) };
  }

  buildSettings() {
    const limits = (name) => ({ min: LB.limits[name][0], max: LB.limits[name][1] });
    this.fields = {
      threshold: this.field('Look again above', { step: '0.1', ...limits('threshold'),
        placeholder: 'off' }, 'Entropy in nats. When a step is less certain than this, the model '
        + 'must take a closer look. Empty: only when it asks itself.'),
      max_crops: this.field('Closer looks, at most', { ...limits('max_crops'), value: '2' }),
      latent_steps: this.field('Inner steps', { ...limits('latent_steps'), value: '8' },
        'Steps without words that the model takes before it answers.'),
      temperature: this.field('Temperature', { step: '0.1', ...limits('temperature'), value: '0' },
        '0 always takes the likeliest step; higher values draw at random.'),
      seed: this.field('Seed', { ...limits('seed'), step: '1', value: '0' },
        'The same seed gives the same run again.'),
    };
    // Checked, the limit is the checkpoint's own and no number is asked for.
    this.ownLimit = el('input', { type: 'checkbox', id: 'lb-own-limit' });
    this.ownLimit.addEventListener('change', () => {
      this.fields.threshold.input.disabled = this.ownLimit.checked;
      this.update();
    });
    return el('details', { class: 'lb-fold lb-pop', name: 'lb-pop' },
      el('summary', { text: 'Settings' }),
      el('div', { class: 'lb-pop-body' },
        el('p', { class: 'lb-quiet', text: 'Applies to the next run.' }),
        this.buildModels(),
        el('label', { class: 'lb-check' }, this.ownLimit,
          'Look again at every unsure step (limit of the model)'),
        el('div', { class: 'lb-fields' }, ...Object.values(this.fields).map((f) => f.node))));
  }

  // Which model reads the image; hidden where there is nothing to choose.
  buildModels() {
    this.models = el('select', { class: 'lb-select', id: 'lb-model',
      'aria-describedby': 'lb-model-text' },
    ...LB.models.map(({ key, name }) => el('option', { value: key, text: name })));
    this.models.addEventListener('change', () => this.setModel(this.models.value, true));
    this.modelText = el('p', { class: 'lb-quiet', id: 'lb-model-text' });
    return el('div', { class: 'lb-models', hidden: LB.models.length < 2 },
      el('label', { class: 'lb-field' }, el('span', { text: 'Model' }), this.models),
      this.modelText);
  }

  buildWhatIf() {
    const crops = [...Array(LB.limits.max_crops[1]).keys()].map((i) => i + 1);
    this.latents = el('select', { class: 'lb-select', id: 'lb-latents', 'aria-label': 'Inner steps',
      'aria-describedby': 'lb-no-donor' },
      ...Object.entries(LB.latents).map(([value, text]) => el('option', { value, text })));
    this.noDonor = el('p', { class: 'lb-quiet', id: 'lb-no-donor' });
    this.skips = el('div', { class: 'lb-choice', role: 'group', 'aria-label': 'Withhold crops' },
      ...crops.map((n) => {
        const node = button('Crop ' + n, { class: 'lb-small', 'aria-pressed': 'false',
          'data-crop': n });
        node.addEventListener('click', () => {
          node.setAttribute('aria-pressed', String(node.getAttribute('aria-pressed') !== 'true'));
          this.update();
        });
        return node;
      }));
    this.moves = el('div', { class: 'lb-choice', role: 'group', 'aria-label': 'Move crops' },
      ...crops.map((n) => button('Crop ' + n, { class: 'lb-small', 'data-crop': n },
        () => this.startDrawing(n))));
    this.moveList = el('div', { class: 'lb-choice' });
    this.noCrops = el('p', { class: 'lb-quiet', text: 'The last run cut nothing out.' });
    this.coverButton = button('Draw on the image', { class: 'lb-small', id: 'lb-cover' },
      () => this.startDrawing(0));
    this.coverList = el('div', { class: 'lb-choice' });
    this.again = button('Run again with this change', { class: 'lb-small lb-strong',
      id: 'lb-again' }, () => this.app.explain(true));
    return el('details', { class: 'lb-fold lb-pop', name: 'lb-pop' },
      el('summary', { text: 'What if…' }),
      el('div', { class: 'lb-pop-body' },
        el('p', { class: 'lb-quiet',
          text: 'Change the evidence and see whether the answer depends on it.' }),
        el('div', { class: 'lb-field' }, el('span', { text: 'Inner steps' }), this.latents),
        this.noDonor,
        this.noCrops,
        this.skipRow = el('div', { class: 'lb-field' },
          el('span', { text: 'Withhold what it cut out' }), this.skips),
        this.moveRow = el('div', { class: 'lb-field' },
          el('span', { text: 'Cut it out somewhere else' }), this.moves, this.moveList),
        el('div', { class: 'lb-field' }, el('span', { text: 'Cover part of the image' }),
          el('div', { class: 'lb-choice' }, this.coverButton, this.coverList),
          el('p', { class: 'lb-quiet', text: LB.text.stays_covered })),
        this.again));
  }

  methodKey(event) {
    const names = Object.keys(LB.methods);
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const at = names.indexOf(this.method);
    this.chooseMethod(names[(at + step + names.length) % names.length]);
    this.methods.querySelector('[aria-checked="true"]').focus();
  }

  setMethod(name) {
    this.method = LB.methods[name] ? name : 'auto';
    prefs.write({ method: this.method });
    for (const node of this.methods.children) {
      const on = node.dataset.method === this.method;
      node.setAttribute('aria-checked', String(on));
      node.tabIndex = on ? 0 : -1;
    }
    this.app.introduce(this.method);
    this.describeMethods();
  }

  chooseMethod(name) {
    this.setMethod(name);
    // A sample that is opened later does not undo it.
    this.chosen = true;
  }

  // A model that is not on offer changes nothing; with `adapt`, a method that it was not trained
  // for gives way to one that it was.
  setModel(key, adapt) {
    const model = modelOf(key);
    if (!model) return;
    const trained = model.methods.filter((name) => LB.methods[name]);
    // The last one is what sets a model apart: each can just answer, which comes first.
    if (adapt && trained.length && !trained.includes(this.method)) {
      this.setMethod(trained[trained.length - 1]);
    }
    this.models.value = key;
    const ways = trained.map((name) => LB.methods[name][0]);
    const training = ways.length ? LB.text.trained_for + ': ' + ways.join(', ') + '.'
      : LB.text.training_unknown;
    this.modelText.textContent = model.text ? model.text + ' ' + training : training;
    this.describeMethods();
  }

  // What the method does, and which methods the chosen model was not trained for.
  describeMethods() {
    const model = modelOf(this.models.value);
    const known = model ? model.methods : [];
    const lacks = (name) => known.length > 0 && !known.includes(name);
    for (const node of this.methods.children) {
      const { method } = node.dataset;
      const [label, text] = LB.methods[method];
      const untrained = lacks(method);
      const note = untrained ? model.name + ' ' + LB.text.not_trained : '';
      node.classList.toggle('lb-untrained', untrained);
      node.title = untrained ? text + ' ' + note : text;
      if (untrained) node.setAttribute('aria-label', label + ' (not trained for)');
      else node.removeAttribute('aria-label');
    }
    clear(this.methodText, LB.methods[this.method][1] + ' ',
      lacks(this.method) ? el('span', { class: 'lb-not-trained',
        text: model.name + ' ' + LB.text.not_trained }) : null);
  }

  // Asks for a box on the image: the new place of crop n, or with 0 a region to cover.
  startDrawing(n) {
    this.drawing = n;
    this.whatIf.open = false;
    const hint = (n ? 'Draw a box where crop ' + n + ' is to be cut.'
      : 'Draw a box over what the model must not see.') + ' Esc: cancel.';
    this.app.viewer.startDrawing(hint);
    this.app.voice.textContent = hint + ' Arrows move a box, with shift they change its size, '
      + 'Enter takes it.';
  }

  // A box that was drawn; null: it was too small to be one.
  drawn(box) {
    if (!box) {
      this.app.say('The box is too small: draw a larger one.');
      this.undraw();
      return;
    }
    const short = box.map((v) => Math.round(v * 1e4) / 1e4);
    if (this.drawing) {
      this.moved = [...this.moved.filter(([n]) => n !== this.drawing), [this.drawing, ...short]];
    } else this.covered.push(short);
    this.update();
    this.undraw();
  }

  undraw() {
    this.drawing = null;
    this.app.viewer.setTool('window');
    this.whatIf.open = true;
    (this.again.disabled ? this.coverButton : this.again).focus();
  }

  fill(form) {
    this.question.value = form.question || '';
    this.options.value = (form.options || []).join('\n');
    // A saved run names its model and shows how it was asked; a sample only makes a proposal.
    const saved = form.model !== undefined;
    if (saved || !(this.chosen || this.keeps(form.method))) this.setMethod(form.method);
    if (saved) this.setModel(form.model, false);
    this.sample = saved ? null : this.asked();
    this.update();
  }

  // Whether the model was trained for the method that is set, and not for the one proposed.
  keeps(method) {
    const model = modelOf(this.models.value);
    return Boolean(model) && model.methods.includes(this.method) && !model.methods.includes(method);
  }

  asked() {
    return this.question.value + '\n' + this.options.value;
  }

  // Takes out what came from a sample, unless it was changed.
  clearSample() {
    if (this.sample === null || this.sample !== this.asked()) return;
    this.question.value = '';
    this.options.value = '';
    this.sample = null;
  }

  // What is covered may be a name: it stays covered until it is taken off, or its image is left.
  clearChanges(keepCovered) {
    if (!keepCovered) this.covered = [];
    this.moved = [];
    this.latents.value = 'none';
    for (const node of this.skips.children) node.setAttribute('aria-pressed', 'false');
    this.update();
  }

  changes() {
    return {
      latents: this.latents.value,
      skip_crops: [...this.skips.children]
        .filter((node) => node.getAttribute('aria-pressed') === 'true')
        .map((node) => Number(node.dataset.crop)),
      move_crops: this.moved,
      occlude: this.covered,
    };
  }

  values() {
    const form = {
      question: this.question.value,
      options: this.options.value.split('\n').map((line) => line.trim()).filter(Boolean),
      method: this.method,
      model: this.models.value,
      looked: this.looked.checked,
      changes: this.changes(),
    };
    for (const [name, { input }] of Object.entries(this.fields)) {
      form[name] = input.value === '' ? null : Number(input.value);
    }
    if (this.ownLimit.checked) form.threshold = 'checkpoint';
    return form;
  }

  // What still keeps a run of the open image from starting; '' when nothing does.
  missing() {
    const wrong = this.problem();
    if (wrong) return wrong;
    if (this.question.value.trim() === '') return LB.text.ready;
    const risky = this.app.state.image.burned_in;
    return risky && !this.looked.checked ? LB.text.look_first : '';
  }

  // What is wrong with what was filled in; '' when nothing is.
  problem() {
    const options = this.options.value.split('\n').map((line) => line.split(/\s+/).join(' ').trim())
      .filter(Boolean);
    if (options.length === 1) return 'Give at least two answer options, or none.';
    if (options.length > LB.most_options) {
      return 'Give at most ' + LB.most_options + ' answer options.';
    }
    if (new Set(options).size < options.length) return 'Two answer options are the same.';
    for (const [name, { input, label }] of Object.entries(this.fields)) {
      if (!input.disabled && !within(input, LB.limits[name])) {
        return label + ': ' + rangeText(LB.limits[name]);
      }
    }
    return '';
  }

  // Why nothing can be asked; '' where something can.
  obstacle() {
    const { app } = this;
    if (!app.live) return LB.text.no_engine;
    if (app.hasImage()) return this.missing();
    return app.run && app.run.replay ? LB.text.recorded : LB.text.no_image;
  }

  update() {
    const app = this.app;
    this.options.rows = clamp(this.options.value.split('\n').length, 2, 5);
    const running = app.busy();
    const missing = app.hasImage() && this.missing();
    const ready = app.live && app.hasImage() && !missing && !running && !app.pending;
    this.lookRow.hidden = !(app.hasImage() && app.state.image.burned_in);
    this.explain.disabled = !ready;
    this.explain.hidden = running;
    this.stop.hidden = !running;
    this.save.disabled = !app.finished();
    this.updateDonor();
    const changes = this.changes();
    const some = changes.latents !== 'none' || changes.skip_crops.length
      || changes.move_crops.length || changes.occlude.length;
    this.whatIf.classList.toggle('lb-marked', Boolean(some));
    this.again.disabled = !ready || !some || !app.finished();
    const obstacle = this.obstacle();
    this.explain.title = obstacle || 'Run the model (Ctrl+Enter)';
    this.again.title = obstacle || (!app.finished() ? 'Explain first, then change something.'
      : some ? '' : 'Change something first.');
    // What is only missing yet, the status and the form itself say.
    const why = this.problem() || (app.live && !app.hasImage() && app.run ? obstacle : '');
    this.why.textContent = why;
    this.why.hidden = !why;
    for (const [name, { input }] of Object.entries(this.fields)) {
      input.setAttribute('aria-invalid',
        String(!input.disabled && !within(input, LB.limits[name])));
    }
    if (app.ways) app.ways.update(ready, obstacle);
    this.updateCrops();
    this.coverButton.disabled = !app.hasImage();
    this.coverButton.title = app.hasImage() ? '' : obstacle;
    this.list(this.coverList, this.covered, (i) => ['Region ' + (i + 1) + ' ×',
      'Remove region ' + (i + 1)]);
    const facts = app.run && app.run.facts;
    app.viewer.setCovered(this.covered.length || !facts ? this.covered : facts.changes.occlude);
  }

  // Only inner steps that the last run took can be changed, or would have taken had they not been
  // left out, and only those that its model took on another image can be fed in.
  updateDonor() {
    const { run, state } = this.app;
    const took = Boolean(run) && (run.items.some((item) => item[0] === 'l')
      || Boolean(run.facts && run.facts.changes.latents === 'skip'));
    const lent = run && state && state.donors ? state.donors[run.model] : null;
    for (const option of this.latents.options) {
      option.disabled = option.value !== 'none' && (!took || (option.value === 'shuffle' && !lent));
    }
    if (this.latents.selectedOptions[0].disabled) this.latents.value = 'none';
    const fed = took && lent && this.latents.value === 'shuffle';
    this.noDonor.textContent = fed ? donorText(lent) + ' ' + LB.text.other_steps : took ? LB.text.no_donor : run ? LB.text.no_latents
      : this.app.hasImage() ? LB.text.no_run : LB.text.no_image;
    this.noDonor.hidden = Boolean(took && lent && !fed);
  }

  // Buttons that take an entry off a list; made anew only where the list has changed, so that the
  // one that is in focus stays.
  list(node, entries, texts) {
    const now = JSON.stringify(entries);
    if (node.dataset.shown === now) return;
    const was = [...node.children].indexOf(document.activeElement);
    node.dataset.shown = now;
    clear(node, ...entries.map((entry, i) => button(texts(i)[0], {
      class: 'lb-small', 'aria-label': texts(i)[1],
    }, () => {
      entries.splice(i, 1);
      this.update();
    })));
    if (was < 0) return;
    (node.children[Math.min(was, entries.length - 1)] || this.coverButton).focus();
  }

  // Only crops that the last run made can be withheld or moved.
  updateCrops() {
    const made = this.app.run ? this.app.run.items.filter((item) => item[0] === 'c').length : 0;
    for (const node of [...this.skips.children, ...this.moves.children]) {
      node.hidden = Number(node.dataset.crop) > made && node.getAttribute('aria-pressed') !== 'true';
    }
    // Without a run the sentence on the inner steps says so.
    this.noCrops.hidden = made > 0 || !this.app.run;
    this.skipRow.hidden = made === 0;
    this.moveRow.hidden = made === 0;
    for (const node of this.moves.children) {
      node.disabled = !this.app.hasImage();
      node.title = this.app.hasImage() ? '' : this.obstacle();
    }
    this.list(this.moveList, this.moved, (i) => ['Crop ' + this.moved[i][0] + ' moved ×',
      'Leave crop ' + this.moved[i][0] + ' where it was']);
  }
}

// Whether a number lies in its limits; an empty field takes its default.
function within(input, [low, high, whole]) {
  if (input.value === '') return !input.validity.badInput;
  const value = Number(input.value);
  return value >= low && (high === null || value <= high) && (!whole || Number.isInteger(value));
}

function rangeText([low, high, whole]) {
  return (whole ? 'a whole number' : 'a number') + (high === null ? ' from ' + low
    : ' from ' + low + ' to ' + high) + '.';
}

// The model on offer with that key.
function modelOf(key) {
  return LB.models.find((model) => model.key === key);
}

// What the chooser calls a model, which tells it from others of its name; else what a run calls it.
function nameOf(key, id) {
  const model = modelOf(key);
  return model ? model.name : id || '';
}
