// Ways to look again, side by side: what each zoom costs, and what it changes.

const WAYS = {
  direct: ['One look', 'No zoom: it answers from the whole image alone.'],
  own_calls: ['When it asks', 'It zooms where it asks for a closer look itself.'],
  entropy_rule: ['When it is unsure', 'The program makes it zoom after an unsure step, too, while '
    + 'closer looks are left.'],
};

const TOKEN_HINT = 'A token is a word, or a part of one, that a step writes; the model reads a picture '
  + 'as tokens, too. Seconds are of this machine. For a closer look they leave out the time that '
  + 'measuring the belief took, which is part of the seconds of a whole run.';
const WITHHELD_HINT = 'The same run once more with the same seed, but the model got no new pixels.';

class Ways {
  constructor(app) {
    this.app = app;
    this.comparison = null;
    this.build();
  }

  build() {
    this.start = button('Compare ways to look again', { class: 'lb-small', id: 'lb-ways-start' },
      () => this.begin());
    this.show = button('Comparison', { class: 'lb-small', id: 'lb-ways-show', hidden: true,
      title: 'Show the comparison of this image again' },
      () => this.open());
    this.app.composer.whatIf.after(this.start, this.show);
    this.warning = el('p', { class: 'lb-why', id: 'lb-ways-warning', hidden: true });
    this.app.composer.root.append(this.warning);
    this.heading = el('h2', { class: 'lb-ways-title', tabindex: '-1', text: 'Ways to look again' });
    this.question = el('p', { class: 'lb-ways-question' });
    this.ran = el('p', { class: 'lb-quiet lb-ways-ran' });
    this.now = el('p', { class: 'lb-ways-now' });
    this.meter = el('progress', { class: 'lb-ways-meter', 'aria-label': 'Runs done', max: '3',
      value: '0' });
    this.notes = el('div', { class: 'lb-ways-notes' });
    this.stop = button('Stop', { class: 'lb-stop', id: 'lb-ways-stop', title: 'Stop (Esc)' },
      () => this.app.stop());
    this.back = button('Back to the image', { class: 'lb-small', id: 'lb-ways-back' },
      () => this.close(true));
    this.columns = Object.keys(WAYS).map((way) => el('li', { class: 'lb-way', 'data-way': way }));
    this.root = el('section', { class: 'lb-ways', 'aria-label': 'Ways to look again' },
      el('div', { class: 'lb-ways-head' },
        el('div', { class: 'lb-ways-words' }, this.heading, this.question, this.ran),
        el('div', { class: 'lb-ways-go' }, this.stop, this.back)),
      el('div', { class: 'lb-ways-progress' }, this.now, this.meter), this.notes,
      el('ol', { class: 'lb-ways-list' }, ...this.columns),
      el('p', { class: 'lb-quiet', text: 'Belief is the model\'s own, and no proof that it is '
        + 'right. ' + LB.text.answer }));
    this.app.root.append(this.root);
  }

  // ---- asking ----------------------------------------------------------------------------

  begin() {
    const { app } = this;
    app.composer.settings.open = false;
    app.composer.whatIf.open = false;
    app.composer.clearChanges();
    app.say('Starting…');
    app.wait('running');
    app.send('compare', { turn: app.next(), image: app.shownImage,
      form: { ...app.composer.values(), window: app.viewer.requestWindow() } });
  }

  openRun(name) {
    this.app.follow = true;
    this.app.send('open_compared', { turn: this.app.next(), name });
  }

  running() {
    return Boolean(this.comparison && this.comparison.running);
  }

  // ---- the page state --------------------------------------------------------------------

  // Returns whether a comparison is going on, so that the status is its own.
  take(state) {
    const was = this.comparison;
    const comparison = state.comparison || null;
    this.comparison = comparison;
    const runKey = state.run ? state.run.key : '';
    if (comparison && (!was || was.key !== comparison.key)) {
      this.drawn = {};
      this.open();
    } else if (this.isOpen() && (!comparison || (runKey && runKey !== this.runKey))) {
      // Another image, or a run that was opened or begun.
      this.close(Boolean(comparison));
    }
    this.runKey = runKey;
    if (comparison) this.draw(state);
    return this.running();
  }

  // Called whenever the form has changed; `ready` is whether a run could begin, and `obstacle`
  // what it is that keeps it from it.
  update(ready, obstacle) {
    this.start.disabled = !ready;
    this.start.title = obstacle || 'Without a zoom, with those that the model asks for, and with one after '
      + 'every unsure step, as long as closer looks are left; then once more without each of them.';
    this.show.hidden = !this.comparison;
    const model = modelOf(this.app.composer.models.value);
    const lacks = Boolean(model) && model.methods.length > 0 && this.app.hasImage()
      && !['zoom', 'auto'].some((name) => model.methods.includes(name));
    this.warning.textContent = lacks ? model.name + ' ' + LB.text.no_zoom : '';
    this.warning.hidden = !lacks;
    if (lacks) this.start.setAttribute('aria-describedby', this.warning.id);
    else this.start.removeAttribute('aria-describedby');
  }

  isOpen() {
    return this.app.root.dataset.view === 'ways';
  }

  open() {
    this.app.root.dataset.view = 'ways';
    this.app.banner(this.app.state);
    this.heading.focus({ preventScroll: true });
    window.scrollTo({ top: 0 });
  }

  close(refocus) {
    delete this.app.root.dataset.view;
    this.app.banner(this.app.state);
    this.show.hidden = !this.comparison;
    this.sayAside();
    if (refocus) this.show.focus();
    window.dispatchEvent(new Event('resize'));
  }

  draw(state) {
    const { comparison } = this;
    const { report } = comparison;
    this.question.textContent = comparison.question;
    this.ran.textContent = 'Model: ' + nameOf(comparison.model, report.model);
    this.tell(report);
    this.stop.hidden = !comparison.running;
    this.meter.hidden = !comparison.running;
    this.meter.max = comparison.total;
    this.meter.value = comparison.done;
    this.sentence(state);
    const held = document.activeElement && document.activeElement.dataset.opens;
    for (const node of this.columns) this.column(node, report);
    if (held) {
      const again = [...this.root.querySelectorAll('[data-opens]')]
        .find((node) => node.dataset.opens === held);
      if (again && document.activeElement !== again) again.focus({ preventScroll: true });
    }
  }

  // What limits all of these runs; where the image is a strange one, the last notice says so.
  tell(report) {
    const key = JSON.stringify([report.notices, report.unlike, report.zoom_note]);
    if (this.told === key) return;
    this.told = key;
    const strange = report.unlike ? report.notices[report.notices.length - 1] : '';
    const plain = report.unlike ? report.notices.slice(0, -1) : report.notices;
    const warnings = [strange, report.zoom_note].filter(Boolean);
    clear(this.notes,
      ...warnings.map((text) => el('p', { class: 'lb-ways-note', text })),
      ...plain.map((text) => el('p', { class: 'lb-quiet', text })));
    this.notes.hidden = !warnings.length && !plain.length;
  }

  sentence(state) {
    const { comparison } = this;
    let text = comparison.now || 'The next run begins…';
    if (!comparison.running) {
      text = comparison.stopped ? 'Stopped after ' + comparison.done + ' of ' + comparison.total
        + ' runs. What is done is kept.' : 'Done: ' + comparison.done + ' runs.';
    }
    if (this.spoken !== text) {
      this.spoken = text;
      this.app.voice.textContent = text;
    }
    let more = '';
    if (comparison.running && state.queued) {
      more = ' ' + state.queued + (state.queued === 1 ? ' run' : ' runs') + ' ahead of you.';
    } else if (comparison.running && state.loading) more = ' The model is loading…';
    else if (comparison.running && comparison.words) more = ' Step ' + comparison.words + '.';
    if (state.error) more = ' ' + state.error.message;
    this.now.textContent = text + more;
    this.sayAside();
  }

  // Where the comparison goes on behind the image, the status of the image tells of it.
  sayAside() {
    if (this.running() && !this.isOpen()) this.app.say(this.now.textContent, 'busy');
  }

  // ---- columns ---------------------------------------------------------------------------

  column(node, report) {
    const { comparison } = this;
    const { way } = node.dataset;
    const found = report.ways.find((one) => one.way === way);
    const name = way.replace('_', '-');
    const waiting = !comparison.running ? 'Not run.'
      : comparison.current === name ? 'Runs now…' : 'Waits for its turn.';
    const key = JSON.stringify([found || waiting, comparison.running]);
    if (this.drawn[way] === key) return;
    this.drawn[way] = key;
    const [title, text] = WAYS[way];
    const limit = way === 'entropy_rule' && report.threshold !== null
      ? hint('Unsure: an entropy above ' + number(report.threshold, 2) + ' nats. ' + LB.text.entropy)
      : null;
    clear(node, el('h3', { class: 'lb-way-title', text: title }),
      el('p', { class: 'lb-quiet lb-way-text' }, text, limit),
      ...(found ? this.result(found, report, name)
        : [el('p', { class: 'lb-way-wait', text: waiting })]));
  }

  result(way, report, name) {
    if (way.failure) {
      return [el('p', { class: 'lb-way-failed', role: 'alert',
        text: 'This run broke off. ' + way.failure })];
    }
    const direct = report.ways.find((one) => one.way === 'direct' && !one.failure);
    const none = { own_calls: 'It did not ask for a closer look.',
      entropy_rule: 'No step was unsure enough for a closer look.' }[way.way];
    return [
      this.picture(way),
      el('p', { class: 'lb-way-answer' }, el('b', { text: way.answer || 'No answer' }),
        way.valid ? null : el('span', { class: 'lb-quiet', text: ' names none of the options' })),
      this.beliefs(way, report.options, [['at first', way.start], ['at the end', way.end]]),
      el('p', { class: 'lb-way-cost' }, plural(way.tokens, 'token') + ' in '
        + secondsText(way.seconds) + moreText(way, direct), hint(TOKEN_HINT)),
      this.opener('Open this run', name),
      ...(way.zooms.length || !none ? way.zooms.map((zoom) => this.zoom(way, zoom, report, name))
        : [el('p', { class: 'lb-way-none', text: none })]),
    ];
  }

  opener(label, name) {
    const node = button(label, { class: 'lb-small', 'data-opens': name,
      title: this.running() ? 'When the comparison is over' : 'In the usual view' },
    () => this.openRun(name));
    node.disabled = this.running() || !this.comparison.runs.includes(name);
    return node;
  }

  picture(way) {
    const count = way.zooms.length;
    const boxes = way.zooms.map((zoom) => {
      const [x0, y0, x1, y1] = zoom.cut;
      const box = el('span', { class: 'lb-way-box' },
        el('span', { class: 'lb-way-number', text: String(zoom.number) }));
      box.style.left = x0 * 100 + '%';
      box.style.top = y0 * 100 + '%';
      box.style.width = (x1 - x0) * 100 + '%';
      box.style.height = (y1 - y0) * 100 + '%';
      return box;
    });
    const alt = count ? 'The image with ' + plural(count, 'numbered box', 'numbered boxes')
      : 'The image, without a box';
    return el('div', { class: 'lb-way-picture' }, el('div', { class: 'lb-way-frame' },
      el('img', { src: fileUrl(this.comparison.folder, 'display.png'), alt }), ...boxes));
  }

  // Bars of the belief in the answer at several moments.
  beliefs(way, options, moments) {
    if (!options.length) {
      return el('dl', { class: 'lb-way-texts' }, ...moments.flatMap(([label, standing]) => [
        el('dt', { text: 'It would say ' + label }),
        el('dd', { text: standing ? standing.text : 'not known' })]));
    }
    const followed = followedOption(way, options);
    const rows = moments.map(([label, standing]) => bar(label,
      standing ? standing.probabilities[followed] : 0,
      standing ? percents(standing.probabilities)[followed] : '–',
      OPTION_COLORS[followed % OPTION_COLORS.length]));
    return el('div', { class: 'lb-belief' },
      el('p', { class: 'lb-quiet' }, 'Belief in “' + options[followed] + '”', hint(LB.text.belief)),
      ...rows);
  }

  zoom(way, zoom, report, name) {
    const why = zoom.trigger === 'entropy'
      ? 'Because it was unsure (' + number(zoom.entropy_nats, 2) + ' nats, above '
        + number(zoom.threshold, 2) + ').'
      : zoom.trigger === 'request' ? 'Because it was asked for.' : 'Its own decision.';
    const without = zoom.withheld;
    const pending = this.running() ? 'The run without it comes later.' : zoom.verdict;
    const cost = plural(zoom.tokens, 'more token') + ' written, ' + zoom.image_tokens
      + ' read from the crop, ' + secondsText(zoom.seconds);
    return el('section', { class: 'lb-way-zoom', 'data-effect': zoom.effect,
      'aria-label': 'Closer look ' + zoom.number },
    el('div', { class: 'lb-way-zoom-head' },
      el('img', { class: 'lb-way-crop', alt: 'Crop ' + zoom.number,
        src: fileUrl(this.comparison.folder, name + '-crop-' + zoom.number + '.png') }),
      el('div', {}, el('h4', { text: 'Closer look ' + zoom.number }),
        el('p', { class: 'lb-quiet', text: why }),
        el('p', { class: 'lb-way-cost' }, cost, hint(TOKEN_HINT)))),
    this.beliefs(way, report.options, [
      ['before it', zoom.before], ['after it', zoom.after],
      ['end, with it', way.end], ['end, without', without && without.end]]),
    el('p', { class: 'lb-way-verdict' }, without ? zoom.verdict : pending,
      without ? hint(WITHHELD_HINT) : null),
    without && !without.failure ? this.opener('Open the run without it',
      name + '-without-' + zoom.number) : null);
  }
}

// The option whose belief is followed: the answer, else the likeliest at the end.
function followedOption(way, options) {
  if (way.option !== null) return way.option;
  const values = way.end ? way.end.probabilities : options.map(() => 0);
  return values.indexOf(Math.max(...values));
}

function plural(count, one, many) {
  return count + ' ' + (count === 1 ? one : many || one + 's');
}

function secondsText(seconds) {
  return number(seconds, seconds < 10 ? 1 : 0) + ' s';
}

// Seconds as they are shown, so that a difference is that of the numbers beside it.
function shownSeconds(seconds) {
  return Number(number(seconds, seconds < 10 ? 1 : 0));
}

// What a way took beyond one look; empty for that one itself.
function moreText(way, direct) {
  if (!direct || direct === way) return '';
  const tokens = way.tokens - direct.tokens;
  const seconds = shownSeconds(way.seconds) - shownSeconds(direct.seconds);
  const time = secondsText(Math.abs(seconds));
  const parts = [
    tokens && plural(Math.abs(tokens), tokens < 0 ? 'fewer token' : 'more token'),
    time !== '0 s' && time + (seconds < 0 ? ' less' : ' more'),
  ].filter(Boolean);
  return parts.length ? ': ' + parts.join(' and ') + ' than one look' : ': as much as one look';
}
