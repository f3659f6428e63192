// Many attempts at one question: where they branched off, where they looked, what they answered.

const RIGHT = '#2BC49A';
const WRONG = '#FF8A4C';
const NO_ANSWER = '#9AA4AE';
const SPACE = 'http://www.w3.org/2000/svg';
const LANE_EDGE = 9;

class Tree {
  constructor(app) {
    this.app = app;
    this.group = null;
    this.marked = null;
    this.returnTo = null;
    this.intro = el('p', { class: 'lb-tree-intro' });
    this.votes = el('div', { class: 'lb-tree-votes', role: 'group', 'aria-label': 'Votes' });
    this.lines = document.createElementNS(SPACE, 'svg');
    this.lines.setAttribute('class', 'lb-tree-lines');
    this.lines.setAttribute('aria-hidden', 'true');
    this.list = el('ol', { class: 'lb-tree-rows', 'aria-label': 'Attempts' });
    this.drawing = el('div', { class: 'lb-tree-drawing' }, this.lines, this.list);
    this.legend = el('p', { class: 'lb-quiet lb-tree-legend' },
      el('span', { class: 'lb-tree-key lb-tree-key-fork',
        text: 'another branched off here, with the chance of it' }),
      el('span', { class: 'lb-tree-key', text: 'looked closer, none branched off' }),
      hint('A line runs from the first step of an attempt to its last. Just before an attempt '
        + 'writes where to look closer, it is measured how unsure it is: the spread over its next '
        + 'words, in nats, against that of its first words. The larger the rise, the larger the '
        + 'chance that another attempt branches off there and looks elsewhere.'));
    // Stands below the list, so that it stays in sight while that scrolls.
    this.about = el('p', { class: 'lb-tree-about', hidden: true });
    this.root = el('div', { class: 'lb-tree', hidden: true }, this.intro, this.votes,
      el('h3', { class: 'lb-sub', text: 'How they branched' }), this.legend, this.drawing);
    this.back = button('', { class: 'lb-small', id: 'lb-back' }, () => this.app.openMember(null));
    this.place = el('span', { class: 'lb-quiet' });
    this.bar = el('div', { class: 'lb-tree-bar', hidden: true }, this.back, this.place);
    this.listen();
  }

  listen() {
    const rowOf = (event) => event.target.closest('[data-member]');
    this.list.addEventListener('click', (event) => {
      const row = rowOf(event);
      if (row) this.app.openMember(Number(row.dataset.member));
    });
    this.list.addEventListener('keydown', (event) => this.key(event));
    // A move, because a list that scrolls under a resting pointer is no wish of its owner.
    for (const name of ['pointermove', 'focusin']) {
      this.list.addEventListener(name, (event) => {
        const row = rowOf(event);
        if (row) this.mark(Number(row.dataset.member));
      });
    }
    for (const name of ['pointerleave', 'focusout']) {
      this.list.addEventListener(name, () => {
        const focused = this.list.contains(document.activeElement)
          ? document.activeElement.closest('[data-member]') : null;
        this.mark(focused && name === 'pointerleave' ? Number(focused.dataset.member) : null);
      });
    }
    new ResizeObserver(() => this.draw()).observe(this.drawing);
  }

  key(event) {
    const rows = [...this.list.querySelectorAll('[data-member]')];
    const at = rows.indexOf(document.activeElement);
    const to = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: rows.length - 1 }[event.key];
    if (at < 0 || to === undefined || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    rows[clamp(to, 0, rows.length - 1)].focus();
  }

  // Whether the tree is what the page shows.
  get shown() {
    return Boolean(this.group) && this.group.member === null;
  }

  take(group) {
    const fresh = Boolean(group) && (!this.group || this.group.key !== group.key);
    const before = this.group ? this.group.member : null;
    this.group = group || null;
    if (fresh) this.build();
    this.root.hidden = !this.shown;
    this.about.hidden = !this.shown;
    this.bar.hidden = !group || group.member === null;
    if (!group) return;
    if (group.member !== null) {
      this.returnTo = group.member;
      this.place.textContent = this.sentence(group.member);
      if (before === null && !fresh) this.back.focus({ preventScroll: true });
      return;
    }
    this.draw();
    this.boxes();
    if (before !== null && this.returnTo !== null) {
      const row = this.list.querySelector('[data-member="' + this.returnTo + '"]');
      if (row) row.focus({ preventScroll: true });
    }
  }

  build() {
    const { members, answers, truth } = this.group;
    const roots = members.filter((member) => member.parent === null).length;
    const forks = members.length - roots;
    this.marked = null;
    this.returnTo = null;
    this.intro.textContent = 'The model tried this question ' + times(members.length) + '. '
      + (forks ? plural(roots, 'attempt') + ' began at the question; ' + plural(forks, 'attempt')
        + ' branched off another one just before it wrote where to look, because it was unsure '
        + 'there.' : 'Every attempt began at the question; none branched off another.')
      + (truth ? ' The right answer is “' + truth + '”.' : '');
    clear(this.votes, ...answers.map(([text, votes, right], i) => bar(
      (text || 'No answer that could be read') + verdict(right), votes / members.length,
      votes + ' of ' + members.length, this.colorOf(i))));
    this.order = ordered(members);
    clear(this.list, ...this.order.map((number) => this.row(number)));
    this.back.textContent = '← All ' + members.length + ' attempts';
    this.about.textContent = '';
    this.say();
  }

  row(number) {
    const member = this.group.members[number];
    const [text, , right] = this.group.answers[member.answer];
    const dot = el('span', { class: 'lb-tree-dot', 'aria-hidden': 'true',
      text: String(number + 1) });
    dot.style.background = this.colorOf(member.answer);
    const row = el('button', {
      type: 'button', class: 'lb-tree-row', 'data-member': number,
      'aria-label': this.sentence(number) + ' Open it step by step.',
    }, el('span', { class: 'lb-tree-lane' }), el('span', { class: 'lb-tree-text' },
      el('span', { class: 'lb-tree-answer' }, dot,
        el('span', { class: 'lb-tree-words', text: text || 'No answer' }),
        el('span', { class: 'lb-quiet lb-tree-verdict', text: verdict(right).trim() })),
      el('span', { class: 'lb-quiet', text: this.origin(member) })));
    return el('li', {}, row);
  }

  // Where an attempt comes from, and what made it branch off.
  origin(member) {
    if (member.parent === null) return 'Began at the question.';
    const { branch } = member;
    return 'Branched off ' + (member.parent + 1) + ' at step ' + member.shared + ': '
      + number(branch.nats, 2) + ' nats, first steps ' + number(branch.before, 2) + '. Chance '
      + percent(branch.chance) + '.';
  }

  sentence(number) {
    const member = this.group.members[number];
    const [text, , right] = this.group.answers[member.answer];
    return 'Attempt ' + (number + 1) + ': ' + (text || 'no answer') + verdict(right) + '. '
      + this.origin(member);
  }

  // Where an attempt looked, and what was weighed there, in sentences.
  describe(number) {
    const member = this.group.members[number];
    const places = member.boxes.map(([x0, y0, x1, y1]) => percent(x0) + ' to ' + percent(x1)
      + ' from the left, ' + percent(y0) + ' to ' + percent(y1) + ' from the top');
    const looked = 'Attempt ' + (number + 1) + (places.length
      ? ' looked closer at ' + places.join(' and at ') + '.' : ' did not look closer.');
    const weighed = member.decisions.map((decision) => 'Before it wrote where to look, at step '
      + decision.word + ', it was unsure by ' + nats(decision.nats) + ' against '
      + nats(decision.before) + ' in its first words. The chance that another attempt branches off '
      + 'was ' + percent(decision.chance) + '; ' + branched(decision.children));
    return [looked, ...weighed].join(' ');
  }

  say() {
    this.about.textContent = this.marked === null
      ? 'Point at an attempt to see where it looked. Open it to see it step by step.'
      : this.describe(this.marked);
  }

  colorOf(answer) {
    const [text, , right] = this.group.answers[answer];
    if (!text) return NO_ANSWER;
    if (right === null) return OPTION_COLORS[answer % OPTION_COLORS.length];
    return right ? RIGHT : WRONG;
  }

  mark(number) {
    if (!this.shown || number === this.marked) return;
    this.marked = number;
    for (const row of this.list.querySelectorAll('[data-member]')) {
      row.classList.toggle('lb-marked-row', Number(row.dataset.member) === number);
    }
    this.say();
    this.boxes();
  }

  // All places that the attempts looked at; the marked one stands out.
  boxes() {
    if (!this.shown) return;
    const found = [];
    this.group.members.forEach((member, number) => member.boxes.forEach((box) => {
      const [text, , right] = this.group.answers[member.answer];
      const near = found.filter(({ box: other }) => Math.abs(other[0] - box[0]) < 0.03
        && Math.abs(other[1] - box[1]) < 0.03).length;
      found.push({ number: number + 1, box, shown: box, skipped: false, slot: near,
        color: this.colorOf(member.answer), dash: !text ? [2, 4] : right === false ? [6, 4] : [],
        active: number === this.marked,
        faded: this.marked !== null && number !== this.marked });
    }));
    // What is active lies above the others.
    this.app.viewer.setBoxes([...found.filter((box) => !box.active),
      ...found.filter((box) => box.active)]);
  }

  draw() {
    if (!this.shown || !this.list.isConnected) return;
    const { members } = this.group;
    const lane = this.list.querySelector('.lb-tree-lane');
    if (!lane) return;
    const top = this.drawing.getBoundingClientRect();
    const from = lane.getBoundingClientRect().left - top.left;
    const width = lane.getBoundingClientRect().width - 2 * LANE_EDGE;
    const longest = Math.max(1, ...members.map((member) => member.words));
    const x = (words) => from + LANE_EDGE + (words / longest) * width;
    const y = new Map();
    for (const row of this.list.querySelectorAll('[data-member]')) {
      const at = row.getBoundingClientRect();
      y.set(Number(row.dataset.member), at.top - top.top + at.height / 2);
    }
    this.lines.setAttribute('width', String(top.width));
    this.lines.setAttribute('height', String(top.height));
    const parts = { paths: [], marks: [] };
    this.order.forEach((number) => this.drawMember(number, members[number], x, y, parts));
    this.lines.replaceChildren(...parts.paths, ...parts.marks);
  }

  drawMember(number, member, x, y, { paths, marks }) {
    const [start, end, here] = [x(member.shared), x(member.words), y.get(number)];
    const color = this.colorOf(member.answer);
    if (member.parent === null) {
      paths.push(shape('path', { d: 'M' + start + ' ' + here + 'H' + end, stroke: color }));
      marks.push(shape('rect', { x: start - 3, y: here - 6, width: 4, height: 12, fill: color }));
    } else {
      const bend = Math.min(7, Math.max(0, end - start));
      paths.push(shape('path', { stroke: color, d: 'M' + start + ' ' + y.get(member.parent) + 'V'
        + (here - bend) + 'Q' + start + ' ' + here + ' ' + (start + bend) + ' ' + here + 'H'
        + end }));
      if (start > 44) {
        const label = shape('text', { x: start - 6, y: here + 4, 'text-anchor': 'end' });
        label.textContent = percent(member.branch.chance);
        marks.push(label);
      }
    }
    marks.push(shape('circle', { cx: end, cy: here, r: 4.5, fill: color }));
    for (const decision of member.decisions) {
      marks.push(shape('circle', { cx: x(decision.word), cy: here, r: 5,
        class: decision.children.length ? 'lb-tree-fork' : 'lb-tree-call' }));
    }
  }
}

function shape(name, attributes) {
  const node = document.createElementNS(SPACE, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, String(value));
  return node;
}

// Every parent before its children, and these next to it.
function ordered(members) {
  const below = (parent) => members.flatMap((member, number) => (member.parent === parent
    ? [number, ...below(number)] : []));
  return below(null);
}

function verdict(right) {
  return right === null ? '' : right ? ' ✓ right' : ' ✗ wrong';
}

function branched(children) {
  const names = children.map((child) => child + 1);
  if (!names.length) return 'none did.';
  if (names.length === 1) return 'attempt ' + names[0] + ' did.';
  return 'attempts ' + names.slice(0, -1).join(', ') + ' and ' + names[names.length - 1] + ' did.';
}

function nats(value) {
  return number(value, 2) + ' nats';
}

function times(count) {
  return count === 1 ? 'once' : count + ' times';
}
