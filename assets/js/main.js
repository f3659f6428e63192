// Joins the parts: takes the page state from the server, keeps the cursor, sends requests.

// Flags of a word, as app/view.py sets them.
const FORCED = 1;
const UNSURE = 2;

const END_TEXTS = {
  answered: 'Done.',
  stopped: 'Stopped. The partial trace is kept.',
  token_budget: 'Ended: the limit on steps was reached.',
  no_answer: 'Ended without an answer.',
  failed: 'The run broke off.',
};

const LOOK = ['Look', 'The model describes what it sees, step by step. You see how sure it is.'];
// How a run begins, by what sets the method apart; `auto` may look closer, too.
const INTRODUCTIONS = {
  zoom: [LOOK,
    ['A closer look', 'Where it is unsure it may cut out a part of the original picture.']],
  direct: [LOOK, ['No closer look', 'It goes by what it saw of the whole image at once.']],
  latent: [['Inner steps', 'Before its words it takes steps without any. You see what part of the '
    + 'image each one resembles, and where it looked.'], LOOK],
};

class App {
  constructor(root) {
    this.root = root;
    this.run = null;
    this.cursor = 0;
    this.selected = -1;
    this.follow = true;
    this.playing = false;
    this.live = false;
    this.pending = null;
    // Counts what the user asks for, so that the server knows which came last.
    this.turn = 0;
    this.marks = new Set();
    this.truth = '';
    this.details = new Details();
    this.viewer = new Viewer({
      onFrame: (frame) => this.setFrame(frame),
      onWindow: () => this.stale && this.checkStale(),
      onDraw: (box) => this.composer.drawn(box),
      onOverlay: () => this.inspectAgain(),
      onTool: (name) => { if (this.viewer) this.root.dataset.tool = name; },
      onProblem: (text) => this.say(text, 'error'),
    });
    this.cards = new Cards(this);
    this.strip = new Strip(this);
    this.inspector = new Inspector(this);
    this.tree = new Tree(this);
    this.composer = new Composer(this);
    this.layout();
    this.ways = new Ways(this);
    this.listen();
  }

  // ---- layout ----------------------------------------------------------------------------

  layout() {
    this.banners = el('div', { class: 'lb-banners' });
    this.status = el('p', { class: 'lb-status' });
    // What a screen reader hears: steps and ends, never single words.
    this.voice = el('p', { class: 'lb-voice', role: 'status', 'aria-live': 'polite' });
    this.compare = el('div', { class: 'lb-compare', hidden: true });
    this.stale = el('p', { class: 'lb-stale', hidden: true });
    this.ghosts = el('ol', { class: 'lb-ghosts', 'aria-label': 'How it works' });
    this.introduce(this.composer.method);
    this.scroll = el('div', { class: 'lb-scroll' }, this.tree.root, this.ghosts, this.cards.list,
      this.compare);
    this.title = el('h2', { class: 'lb-title', text: 'Reasoning' });
    this.ran = el('span', { class: 'lb-quiet lb-ran' });
    this.reasoning = el('section', { class: 'lb-reasoning', 'aria-label': 'Reasoning' },
      el('div', { class: 'lb-reasoning-head' }, el('div', { class: 'lb-reasoning-name' },
        this.title, this.ran), this.status), this.scroll,
      this.tree.about);
    this.file = el('input', { type: 'file', class: 'lb-file', id: 'lb-file',
      'aria-label': 'Open an image or a saved trace' });
    this.empty = this.buildEmpty();
    this.viewer.stage.append(this.empty, this.stale);
    this.viewer.root.prepend(this.tree.bar);
    clear(this.root, this.banners, this.viewer.root, this.composer.root, this.reasoning,
      this.inspector.root, this.strip.root, this.file, this.voice);
    this.headTools();
  }

  // How a run of the method goes, before there is one.
  introduce(method) {
    if (!this.ghosts) return;
    clear(this.ghosts,
      ...[...(INTRODUCTIONS[method] || INTRODUCTIONS.zoom),
        ['Answer', 'You see what each step did to its belief in every answer.']].map(
        ([title, text], i) => el('li', {}, el('span', { class: 'lb-ghost-number',
          text: String(i + 1) }), el('b', { text: title }), el('span', { text }))));
  }

  // Theme and keys stand in the head of the page, which is not part of this component.
  headTools() {
    const head = document.querySelector('.lb-head');
    if (!head || head.querySelector('.lb-head-tools')) return;
    this.theme = button('', { class: 'lb-small', id: 'lb-theme' }, () => {
      this.setTheme(document.documentElement.dataset.lbTheme === 'light' ? 'dark' : 'light');
    });
    head.append(el('span', { class: 'lb-head-tools' }, this.theme,
      button('Keys', { class: 'lb-small', id: 'lb-keys', title: 'List of keys (?)' },
        () => toggleKeys(this.root))));
    this.setTheme(prefs.read().theme);
  }

  setTheme(name) {
    const theme = name === 'light' ? 'light' : 'dark';
    document.documentElement.dataset.lbTheme = theme;
    this.root.dataset.theme = theme;
    document.querySelector('.lb-head').dataset.theme = theme;
    this.theme.textContent = theme === 'light' ? 'Dark' : 'Light';
    this.theme.title = theme === 'light' ? 'Dark colours, for reading images'
      : 'Light colours, for a bright room';
    prefs.write({ theme });
  }

  buildEmpty() {
    const card = (sample) => {
      const node = button('', { class: 'lb-sample', 'data-sample': sample.index },
        () => this.openSample(sample.index));
      node.append(el('span', { class: 'lb-sample-kind', text: sample.modality || '▶' }),
        el('span', { class: 'lb-sample-title', text: sample.title }),
        el('span', { class: 'lb-quiet', text: { phantom: 'drawn, truth known',
          real: 'real, no diagnosis', recorded: 'recorded run' }[sample.kind] }));
      return node;
    };
    const open = button('Choose a file', { class: 'lb-primary', id: 'lb-choose' },
      () => this.pickFile());
    const samples = LB.samples.length
      ? [el('p', { class: 'lb-quiet lb-samples-title', text: 'Samples' }),
        el('div', { class: 'lb-samples' }, ...LB.samples.map(card))] : [];
    this.unbrowse = button('Back', { class: 'lb-small', id: 'lb-unbrowse', hidden: true,
      title: 'Back to what is open (Esc)' }, () => this.browse(false));
    samples.push(this.unbrowse);
    return el('div', { class: 'lb-empty' },
      el('div', { class: 'lb-empty-icon', 'aria-hidden': 'true' }),
      el('p', { class: 'lb-empty-text', text: LB.text.empty }), open, ...samples);
  }

  // ---- requests --------------------------------------------------------------------------

  send(name, payload) {
    // Every name is spelt out, because the server listens to the names that it finds here.
    const senders = {
      open_image: () => trigger('open_image', payload),
      open_sample: () => trigger('open_sample', payload),
      open_member: () => trigger('open_member', payload),
      set_frame: () => trigger('set_frame', payload),
      explain: () => trigger('explain', payload),
      compare: () => trigger('compare', payload),
      open_compared: () => trigger('open_compared', payload),
      stop_run: () => trigger('stop_run', payload),
      save_trace: () => trigger('save_trace', payload),
    };
    senders[name]();
  }

  next() {
    this.turn += 1;
    return this.turn;
  }

  pickFile() {
    this.file.value = '';
    this.file.click();
  }

  async openFile(file) {
    if (!file) return;
    if (file.size > 64 * 2 ** 20) {
      this.say('The file is larger than 64 MB.', 'error');
      return;
    }
    this.say(LB.text.checking);
    this.wait('checking');
    this.browsing = false;
    this.uploading = true;
    const turn = this.next();
    try {
      // The name stays here: it may be a patient's.
      const name = Array.from(window.crypto.getRandomValues(new Uint8Array(8)),
        (byte) => byte.toString(16).padStart(2, '0')).join('') + '.bin';
      const { path } = await upload(new File([file], name));
      this.send('open_image', { turn, path });
    } catch (error) {
      if (turn !== this.turn) return;
      this.wait(null);
      this.say('The file could not be sent to the program.', 'error');
    }
  }

  // Shows the samples over what is open, or what is open again.
  browse(on) {
    this.browsing = on;
    this.showEmpty();
    this.composer.samples.focus();
    if (on) this.empty.querySelector('.lb-sample').focus();
  }

  showEmpty() {
    const opened = Boolean(this.state && (this.state.image || this.state.group
      || (this.state.run && this.state.run.replay)));
    this.empty.hidden = opened && !this.browsing;
    this.unbrowse.hidden = !opened;
    this.composer.samples.hidden = !opened || !LB.samples.length;
    this.composer.samples.setAttribute('aria-expanded', String(opened && Boolean(this.browsing)));
  }

  openSample(index) {
    this.browsing = false;
    this.uploading = false;
    this.say(LB.text.checking);
    this.wait('checking');
    this.send('open_sample', { turn: this.next(), index });
  }

  // An attempt of the open group; null goes back to all of them.
  openMember(member) {
    this.send('open_member', { turn: this.next(), member });
  }

  setFrame(frame) {
    this.wait('checking');
    this.send('set_frame', { turn: this.next(), frame });
  }

  explain(compare) {
    if (this.composer.explain.disabled) return;
    this.composer.settings.open = false;
    this.composer.whatIf.open = false;
    // With another model, the change would not be the only difference.
    if (compare) this.composer.setModel(this.run.model, false);
    else this.composer.clearChanges(true);
    // Read before anything is drawn anew for the run that begins.
    const form = { ...this.composer.values(), compare, window: this.viewer.requestWindow() };
    this.say('Starting…');
    this.wait('running');
    this.follow = true;
    this.reveal();
    this.send('explain', { turn: this.next(), image: this.shownImage, form });
  }

  // In one column the reasoning lies far below what was pressed.
  reveal() {
    if (this.reasoning.getBoundingClientRect().top < window.innerHeight - 160) return;
    this.reasoning.scrollIntoView({ block: 'start', behavior: still.matches ? 'auto' : 'smooth' });
  }

  // In one column what lies behind a step stands below the cards, and its map, too; a reader who
  // follows a run is not moved.
  bring(index) {
    if (!oneColumn.matches || this.busy() || this.selected !== index) return;
    this.inspector.root.scrollIntoView({ block: 'start',
      behavior: still.matches ? 'auto' : 'smooth' });
  }

  stop() {
    if (!this.busy()) return;
    this.say('Stopping…');
    this.send('stop_run', { turn: this.turn });
  }

  save() {
    this.send('save_trace', {});
  }

  wait(what) {
    this.pending = what;
    this.root.dataset.state = what || this.stateName();
    this.composer.update();
  }

  busy() {
    return this.pending === 'running' || Boolean(this.ways && this.ways.running())
      || Boolean(this.run && this.run.status === 'running');
  }

  finished() {
    return Boolean(this.run && this.run.facts && !this.busy());
  }

  hasImage() {
    return Boolean(this.state && this.state.image);
  }

  // ---- state from the server -------------------------------------------------------------

  take(state) {
    if (!state || typeof state !== 'object') return;
    if (state.run) state = { ...state, run: { ...state.run, items: this.itemsOf(state.run) } };
    this.state = state;
    this.live = state.live;
    const run = state.run;
    if (state.error || state.turn >= this.turn) this.pending = null;
    this.once(state.form, (form) => {
      this.truth = form.truth || '';
      this.uploading = false;
      this.composer.fill(form);
    });
    this.takeImage(state);
    this.takeRun(run);
    this.takeGroup(state.group);
    this.once(state.error, (error) => {
      this.say(error.message + ' (' + error.code + ')', 'error');
      this.viewer.frameStays();
    });
    this.once(state.download, (file) => this.download(file.name));
    this.strip.root.hidden = !state.image && !run;
    if (!this.ways.take(state)) this.describeState(state);
    this.root.dataset.state = this.pending || this.stateName();
    this.composer.update();
    // Only now do all panels have the height that they keep, and are laid out with it.
    if (this.landed && this.compare.hidden) {
      this.cards.toLast();
      requestAnimationFrame(() => this.cards.toLast());
    }
    this.landed = false;
  }

  // The items of a run, of which each refresh parses the new lines only.
  itemsOf(run) {
    const text = run.items;
    if (!this.parsed || this.parsed.key !== run.key || text.length < this.parsed.length) {
      this.parsed = { key: run.key, length: 0, items: [] };
    }
    for (const line of text.slice(this.parsed.length).split('\n')) {
      if (line) this.parsed.items.push(JSON.parse(line));
    }
    this.parsed.length = text.length;
    return this.parsed.items;
  }

  once(content, action) {
    if (!content || this.marks.has(content.mark)) return;
    this.marks.add(content.mark);
    action(content);
  }

  takeImage(state) {
    const facts = state.image;
    const run = state.run && state.run.replay && state.run.facts ? state.run : null;
    // All attempts of a group are about the picture of the group.
    const replay = state.group || run;
    if (state.error) this.uploading = false;
    this.showEmpty();
    if (replay) {
      if (this.shownImage !== replay.key) {
        this.shownImage = replay.key;
        this.composer.clearChanges();
        this.viewer.setPicture(fileUrl(replay.folder, 'display.png'), pictureFacts(replay));
      }
    } else if (facts && this.shownImage !== facts.id) {
      this.shownImage = facts.id;
      if (!state.form && !state.run) this.truth = '';
      // The question of a sample is not about an image of one's own.
      if (this.uploading && !state.form) this.composer.clearSample();
      this.uploading = false;
      this.viewer.setImage(facts);
      this.composer.clearChanges();
      this.composer.looked.checked = false;
    }
  }

  takeRun(run) {
    if (!run) {
      if (this.run) this.forget();
      return;
    }
    const fresh = !this.run || this.run.key !== run.key;
    if (fresh) this.forget();
    this.run = run;
    this.ghosts.hidden = Boolean(run.cards.length);
    if (fresh) this.details.reset(run);
    this.details.learn(run.items);
    if (!run.facts && !run.items.length) return;
    if (run.facts) this.ran.textContent = 'by ' + nameOf(run.model, run.facts.model.id);
    this.cards.append();
    this.strip.append();
    this.inspector.about();
    this.boxes();
    if (this.follow) this.toEnd(fresh);
    else this.mark();
  }

  takeGroup(group) {
    this.tree.take(group);
    const shown = this.tree.shown;
    // What else is shown in place of a run (the ways to look again) is left alone.
    if (shown) this.root.dataset.view = 'tree';
    else if (this.root.dataset.view === 'tree') delete this.root.dataset.view;
    this.title.textContent = shown ? 'Attempts' : 'Reasoning';
    this.reasoning.setAttribute('aria-label', this.title.textContent);
    this.inspector.root.hidden = shown;
    if (shown) this.ghosts.hidden = true;
  }

  forget() {
    this.run = null;
    this.cursor = 0;
    this.selected = -1;
    this.follow = true;
    this.spokenCards = 0;
    this.ran.textContent = '';
    this.pause();
    this.cards.reset();
    this.strip.reset();
    this.inspector.reset();
    this.viewer.setHeat(null);
    this.viewer.setBoxes([]);
    this.ghosts.hidden = false;
  }

  stateName() {
    if (!this.state) return 'loading';
    if (this.ways && this.ways.running()) return this.state.queued ? 'queued' : 'running';
    if (!this.run && this.state.group) return 'tree';
    if (!this.run) return this.state.image ? 'ready' : 'empty';
    if (this.run.status === 'running') return this.state.queued ? 'queued' : 'running';
    return { answered: 'done', failed: 'error' }[this.run.status] || this.run.status;
  }

  describeState(state) {
    const run = state.run;
    const loading = Boolean(run && run.status === 'running' && !run.facts && state.loading);
    this.waitForModel(loading);
    const error = state.error && this.lastSaid === state.error.mark;
    if (state.error) this.lastSaid = state.error.mark;
    if (run && !error && !state.error) {
      if (run.status === 'running') {
        const ahead = state.queued;
        const done = stepsOf(run);
        const kind = run.cards.length ? run.cards[run.cards.length - 1][0] : '';
        if (loading) this.sayLoading();
        else this.say(ahead ? ahead + (ahead === 1 ? ' run' : ' runs') + ' ahead of you.'
          : kind === 'crop' ? 'Unsure here - taking a closer look.'
            : kind === 'latent' ? 'Taking inner steps…'
              : done ? 'Reading… step ' + done : 'Looking at the image…', 'busy');
      } else {
        const done = stepsOf(run);
        const end = run.status === 'stopped' && !run.facts ? 'Stopped before it began.'
          : run.status === 'stopped' && done
            ? 'Stopped at step ' + done + '. The partial trace is kept.'
            : END_TEXTS[run.status] || 'Done.';
        this.say((run.replay ? 'Recorded run. ' : '') + end,
          run.status === 'failed' ? 'error' : '');
      }
    } else if (!run && !state.error) {
      this.say(state.group ? plural(state.group.members.length, 'attempt') + ' at one question.'
        : !state.image ? '' : this.composer.missing() || 'Ready: press Explain.');
    }
    this.speak(run);
    this.banner(state);
    this.comparison(state.before);
    this.checkStale();
  }

  say(text, kind) {
    if (this.status.textContent !== text) this.status.textContent = text;
    this.status.dataset.kind = kind || '';
    if (kind !== 'busy' && this.voice.textContent !== text) this.voice.textContent = text;
  }

  // Tells of each new card while a run goes on, at most one every two seconds.
  speak(run) {
    const kinds = run && run.status === 'running' ? run.cards.map(([kind]) => kind) : [];
    const title = kinds.length ? CARD_TITLES[kinds[kinds.length - 1]][0] : '';
    const now = Date.now();
    if (!title || kinds.length === this.spokenCards || now - (this.spokenAt || 0) < 2000) return;
    this.spokenCards = kinds.length;
    this.spokenAt = now;
    this.voice.textContent = title;
  }

  // The first run may wait for the weights: the seconds show that something still happens.
  waitForModel(loading) {
    if (loading === Boolean(this.loadTimer)) return;
    window.clearInterval(this.loadTimer);
    this.loadTimer = null;
    if (!loading) return;
    this.loadBegan = Date.now();
    this.loadTimer = window.setInterval(() => this.sayLoading(), 1000);
  }

  sayLoading() {
    const seconds = Math.round((Date.now() - this.loadBegan) / 1000);
    this.say('Loading the model (before its first run only)… ' + seconds + ' s', 'busy');
  }

  banner(state) {
    const lines = [];
    // All attempts of a group are about one image, whether one of them is open or not.
    const facts = this.ways && this.ways.isOpen() ? null // What limits its runs is said there.
      : (state.run && state.run.facts) || (state.group && state.group.facts);
    if (!state.live) lines.push(['info', LB.text.no_engine]);
    else if (LB.text.replaced) lines.push(['info', LB.text.replaced]);
    if (facts) {
      const flagged = Boolean(facts.distance && facts.distance.flagged);
      // The engine names a strange image last; an older trace may only carry the flag.
      facts.notices.forEach((text, i) => lines.push(
        [flagged && i === facts.notices.length - 1 ? 'warn' : 'info', text]));
      if (flagged && !facts.notices.length) lines.push(['warn', LB.text.distance]);
    }
    if (facts && describeChanges(facts.changes)) {
      lines.push(['change', 'This run was changed on purpose: ' + describeChanges(facts.changes)
        + '.' + (state.run && state.run.donor ? ' ' + donorText(state.run.donor) : '')]);
    }
    if (state.image) state.image.warnings.forEach((text) => lines.push(['info', text]));
    // What only informs shares one line, so that the picture keeps its room.
    const news = lines.filter(([kind]) => kind === 'info').map(([, text]) => text).join(' ');
    const joined = [...(news ? [['info', news]] : []), ...lines.filter(([kind]) => kind !== 'info')];
    const key = JSON.stringify(joined);
    if (key === this.bannerKey) return;
    this.bannerKey = key;
    const shown = joined.filter((line) => !(this.closed && this.closed.has(line[1])));
    clear(this.banners, ...shown.map(([kind, text]) => {
      const node = el('p', { class: 'lb-banner lb-banner-' + kind },
        el('span', { class: 'lb-banner-text', text }));
      const more = button('More', { class: 'lb-banner-more', 'aria-expanded': 'false' }, () => {
        const open = node.classList.toggle('lb-open');
        more.textContent = open ? 'Less' : 'More';
        more.setAttribute('aria-expanded', String(open));
      });
      node.append(more);
      if (kind !== 'warn') {
        node.append(button('×', { class: 'lb-banner-close', 'aria-label': 'Hide this note' },
          () => {
            this.closed = (this.closed || new Set()).add(text);
            node.remove();
          }));
      }
      return node;
    }));
  }

  comparison(before) {
    const run = this.run;
    const answer = run && [...run.items].reverse().find((item) => item[0] === 'a');
    this.compare.hidden = !before || !answer;
    if (this.compare.hidden || this.comparedKey === run.key) return;
    this.comparedKey = run.key;
    if (before.differs) {
      clear(this.compare, el('p', { class: 'lb-quiet', text: 'Not compared with the run without '
        + 'the change: ' + listed(before.differs) + (before.differs.length > 1 ? ' are' : ' is')
        + ' different, too.' }));
      this.cards.toBottom();
      return;
    }
    const options = run.facts.options;
    const now = answer[4];
    const former = percents(options.map((_, i) => before.probabilities[i] || 0));
    const shares = percents(options.map((_, i) => now[i] || 0));
    const rows = options.map((option, i) => bar(option, now[i] || 0, former[i] + ' → ' + shares[i],
      OPTION_COLORS[i % OPTION_COLORS.length]));
    rows.forEach((row, i) => {
      const mark = el('span', { class: 'lb-bar-before' });
      mark.style.left = (before.probabilities[i] || 0) * 100 + '%';
      row.querySelector('.lb-bar-track').append(mark);
      row.classList.add('lb-bar-change');
    });
    const same = before.answer === answer[1];
    clear(this.compare,
      el('p', {}, el('span', { class: 'lb-quiet', text: 'Without the change: ' }), el('b', {
        text: before.answer || 'no answer' }), el('span', { class: 'lb-quiet', text: '  With it: ' }),
      el('b', { text: answer[1] || 'no answer' })),
      el('p', { class: 'lb-quiet', text: (same ? 'The change left the answer as it was.'
        : 'The change altered the answer.') + (run.facts.temperature > 0
        ? ' At a temperature above 0, chance alone can do as much.' : '')
        + (run.donor && same ? ' ' + LB.text.other_steps : '') }), ...rows);
    this.cards.toBottom();
  }

  checkStale() {
    const run = this.run;
    const image = this.state && this.state.image;
    let text = '';
    if (run && run.facts && image && !run.replay && this.viewer.window) {
      const seen = run.facts.image.window;
      const now = this.viewer.window;
      if (run.frame !== image.frame) {
        text = 'Another frame is shown than the one that the model saw.';
      } else if (seen && (Math.abs(seen[0] - now[0]) > 0.01 || Math.abs(seen[1] - now[1]) > 0.01)) {
        text = 'Window changed since this run. The model saw W ' + number(seen[1], 1) + ' / L '
          + number(seen[0], 1) + '.';
      }
    }
    this.stale.textContent = text;
    this.stale.hidden = !text;
  }

  download(name) {
    const link = el('a', { href: fileUrl(this.run.folder, name), download: name });
    this.root.append(link);
    link.click();
    link.remove();
  }

  // ---- cursor ----------------------------------------------------------------------------

  above(item) {
    return item[0] === 't' && Boolean(item[5] & UNSURE);
  }

  // How much larger a crop is shown than the whole image was; from the pixels that were cut.
  zoomFactor(cut) {
    const [width, height] = this.run.facts.image.source;
    return Math.max(width, height) / Math.max(cut[2] - cut[0], cut[3] - cut[1]);
  }

  boxes() {
    const [width, height] = this.run.facts ? this.run.facts.image.source : [1, 1];
    const crops = this.run.items.map((item, index) => [item, index])
      .filter(([item]) => item[0] === 'c');
    this.viewer.setBoxes(crops.filter(([, index]) => index < this.cursor || this.follow)
      .map(([item, index]) => ({
        number: item[1], box: item[2], skipped: Boolean(item[5][1]),
        shown: item[3].map((value, edge) => value / (edge % 2 ? height : width)),
        active: index === this.selected,
      })));
  }

  toEnd(fresh) {
    this.cursor = this.run.items.length;
    const live = this.run.live;
    const running = this.run.status === 'running';
    this.mark();
    if (running && live && live.maps.length) {
      this.viewer.setHeat(decodeGrid(live.maps[0]), Math.max(this.run.scale, 1e-6), 'attention');
    }
    const last = this.lastStep(this.cursor);
    if (!running && this.selected < 0) {
      this.pick(this.answerIndex() || last, { stay: true });
      this.cards.toLast();
      this.landed = fresh;
    } else if (running) {
      this.cards.toBottom();
    }
  }

  answerIndex() {
    const index = this.run.items.findIndex((item) => item[0] === 'a');
    return index >= 0 ? index : 0;
  }

  lastStep(before) {
    for (let i = Math.min(before, this.run.items.length) - 1; i >= 0; i -= 1) {
      if ('tlca'.includes(this.run.items[i][0])) return i;
    }
    return 0;
  }

  mark() {
    this.cards.show(this.cursor, this.selected);
    this.compare.classList.toggle('lb-later', this.cursor < this.run.items.length);
    this.strip.draw();
    this.boxes();
  }

  // Selects an item: the cursor goes just after it.
  select(index, how) {
    if (!this.run || !this.run.items[index]) return;
    this.pause();
    this.pick(index, how);
  }

  pick(index, { fly, stay, bring }) {
    this.follow = index >= this.run.items.length - 1 && this.run.status === 'running';
    this.selected = index;
    // What follows the last step, as the belief at the end, is no step of its own.
    const over = this.run.status !== 'running' && index >= this.lastStep(Infinity);
    this.cursor = over ? this.run.items.length : index + 1;
    this.mark();
    if (!stay) this.cards.reveal(index, true);
    const shown = this.inspector.show(index);
    const item = this.run.items[index];
    if (fly && item[0] === 'c') {
      this.viewer.flyTo(item[2]);
      // In one column the image may lie far above what was pressed.
      if (oneColumn.matches) this.viewer.root.scrollIntoView({ block: 'nearest' });
    }
    if (bring) shown.then(() => this.bring(index));
  }

  inspectAgain() {
    if (this.selected >= 0) this.inspector.show(this.selected);
  }

  steps() {
    return this.strip.columns;
  }

  go(place) {
    const steps = this.steps();
    if (!steps.length) return;
    this.select(steps[clamp(place - 1, 0, steps.length - 1)], {});
  }

  step(by) {
    const at = this.strip.columnOf(this.cursor);
    this.go(clamp(at + by, 1, this.steps().length));
  }

  // To the start of the next or the former card.
  event(direction) {
    const starts = this.run.cards.map(([, from]) => this.strip.columnOf(from) + 1);
    const at = this.strip.columnOf(this.cursor);
    const next = direction > 0 ? starts.find((start) => start > at)
      : [...starts].reverse().find((start) => start < at);
    this.go(next || (direction > 0 ? Infinity : 1));
  }

  nextUnsure() {
    const index = this.run.items.findIndex((item, i) => i >= this.cursor && this.above(item));
    if (index >= 0) this.select(index, {});
  }

  toCrop(n) {
    const index = this.run.items.findIndex((item) => item[0] === 'c' && item[1] === n);
    if (index >= 0) this.select(index, { fly: true });
  }

  togglePlay() {
    if (this.playing) {
      this.pause();
      return;
    }
    if (!this.run || !this.steps().length) return;
    if (this.strip.columnOf(this.cursor) >= this.steps().length) this.pick(this.steps()[0], {});
    this.playing = true;
    this.tick();
  }

  tick() {
    const at = this.strip.columnOf(this.cursor);
    if (at >= this.steps().length) {
      this.pause();
      this.cards.toLast();
      return;
    }
    this.pick(this.steps()[at], {});
    const kind = this.run.items[this.selected][0];
    const pause = (kind === 't' ? 110 : kind === 'l' ? 300 : 900) / Number(this.strip.speed.value);
    this.timer = window.setTimeout(() => this.playing && this.tick(), pause);
    this.strip.draw();
  }

  pause() {
    this.playing = false;
    window.clearTimeout(this.timer);
    if (this.run) this.strip.draw();
  }

  // ---- whole page ------------------------------------------------------------------------

  listen() {
    this.file.addEventListener('change', () => this.openFile(this.file.files[0]));
    const stage = this.viewer.stage;
    for (const name of ['dragenter', 'dragover']) {
      this.root.addEventListener(name, (event) => {
        event.preventDefault();
        stage.classList.add('lb-drop');
      });
    }
    for (const name of ['dragleave', 'drop']) {
      this.root.addEventListener(name, (event) => {
        event.preventDefault();
        stage.classList.remove('lb-drop');
      });
    }
    this.root.addEventListener('drop', (event) => this.openFile(event.dataTransfer.files[0]));
    document.addEventListener('keydown', (event) => this.key(event));
  }

  key(event) {
    if (!this.root.isConnected || document.querySelector('.lb-gate')) return;
    const typing = event.target.closest && event.target.closest('input, textarea, select');
    if (event.key === 'Escape') {
      const keys = this.root.querySelector('.lb-keys');
      if (keys) toggleKeys(this.root);
      else if (this.browsing) this.browse(false);
      else if (this.viewer.tool === 'draw') this.composer.undraw();
      else if (this.busy()) this.stop();
      else this.viewer.setTool('window');
    } else if (event.key === 'Enter' && (event.ctrlKey || event.metaKey)) {
      this.explain(false);
    } else if (event.ctrlKey || event.metaKey || event.altKey || !singleKeys()) {
      return;
    } else if (!typing && event.key === '/') {
      event.preventDefault();
      this.composer.question.focus();
    } else if (!typing && event.key === '?') {
      toggleKeys(this.root);
    }
  }
}

// Steps that a run has taken, as the timeline counts them.
function stepsOf(run) {
  return run.items.filter((item) => 'tlca'.includes(item[0])).length;
}

// Names as a list in words.
function listed(names) {
  return names.length < 2 ? names.join('') : names.slice(0, -1).join(', ') + ' and '
    + names[names.length - 1];
}

function pictureFacts(run) {
  const { image } = run.facts;
  return {
    id: run.key, kind: 'grey8', width: image.source[0], height: image.source[1],
    numbers: [0, 255], values: [0, 255], lut: false, inverted: false, modality: image.modality,
    units: '', spacing: image.spacing, spacing_kind: image.spacing_kind, left_edge: image.left_edge,
    frame: 0, frames: 1,
    window: [127.5, 255, 'LINEAR_EXACT'], presets: [['As saved', [127.5, 255, 'LINEAR_EXACT']]],
  };
}

const root = element.querySelector('.lb');
if (root && !root.dataset.mounted) {
  root.dataset.mounted = 'true';
  const app = new App(root);
  app.take(props.value);
  watch('value', () => app.take(props.value));
  showGate();
}
