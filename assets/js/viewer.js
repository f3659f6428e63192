// The picture: windowing in the browser, zoom, pan, turns, heat map, boxes, readouts.

const DRAG_PIXELS = 700;

class Viewer {
  constructor(callbacks) {
    this.callbacks = callbacks;
    this.build();
    this.image = null;
    this.levels = [];
    this.bitmap = null;
    this.boxes = [];
    this.covered = [];
    this.drawn = null;
    this.kept = null;
    this.heat = null;
    this.heatScale = 1;
    this.layer = prefs.read().layer || 'heat';
    this.limit = prefs.read().limit || 0.15;
    this.tool = 'window';
    this.pointers = new Map();
    this.layerMenu.value = this.layer;
    this.limitInput.value = String(Math.round(this.limit * 100));
    this.resetView();
    new ResizeObserver(() => { this.resize(); }).observe(this.stage);
  }

  build() {
    this.canvas = el('canvas', {
      class: 'lb-canvas', tabindex: '0', role: 'img', 'aria-label': 'No image is open.',
    });
    this.corner = {
      left: el('span', { class: 'lb-mark-side lb-mark-left', 'aria-hidden': 'true' }),
      right: el('span', { class: 'lb-mark-side lb-mark-right', 'aria-hidden': 'true' }),
    };
    this.readout = el('div', { class: 'lb-readout', 'aria-hidden': 'true' });
    this.probe = el('div', { class: 'lb-probe', 'aria-hidden': 'true' });
    this.legend = el('div', { class: 'lb-legend', hidden: true },
      el('span', { text: '0' }), el('span', { class: 'lb-legend-ramp' }), el('span'));
    this.stage = el('div', { class: 'lb-stage' }, this.canvas, this.corner.left,
      this.corner.right, this.readout, this.probe, this.legend);
    this.tools = el('div', { class: 'lb-tools', role: 'toolbar', 'aria-label': 'Viewer tools' });
    this.buildTools();
    this.root = el('section', { class: 'lb-viewer', 'aria-label': 'Image' }, this.stage,
      this.tools);
    this.listen();
  }

  buildTools() {
    const tool = (name, label, title) => {
      const node = button(label, { class: 'lb-tool', 'data-tool': name, title });
      node.addEventListener('click', () => this.setTool(name));
      return node;
    };
    const act = (sign, title, action) => {
      const node = button('', { class: 'lb-tool', title, 'aria-label': title }, action);
      node.append(ICONS[sign] ? icon(sign) : sign);
      return node;
    };
    this.modeButtons = [
      tool('window', 'Contrast', 'Drag: brightness and contrast (window and level)'),
      tool('pan', 'Move', 'Drag to move the picture (or hold Shift)'),
    ];
    this.presetMenu = el('select', { class: 'lb-select', 'aria-label': 'Window preset' });
    this.presetMenu.addEventListener('change', () => {
      if (this.presetMenu.value !== '') this.usePreset(Number(this.presetMenu.value));
    });
    this.layerMenu = el('select', { class: 'lb-select', 'aria-label': 'Heat map' },
      ...[['heat', 'Heat map'], ['contour', 'Contour'], ['off', 'No overlay']]
        .map(([value, text]) => el('option', { value, text })));
    this.layerMenu.addEventListener('change', () => this.setLayer(this.layerMenu.value));
    this.limitInput = el('input', {
      type: 'range', min: '5', max: '100', step: '5', class: 'lb-range',
      'aria-label': 'Show the heat map from this share of the scale', title: 'Heat-map limit',
    });
    this.limitInput.addEventListener('input', () => this.setLimit(this.limitInput.value / 100));
    this.frameInput = el('input', {
      type: 'range', min: '0', value: '0', class: 'lb-range', 'aria-label': 'Frame',
    });
    this.frameInput.addEventListener('change', () => this.askFrame(this.frameInput.value));
    this.frameLabel = el('span', { class: 'lb-frame-label' });
    this.frameRow = el('span', { class: 'lb-frames', hidden: true }, this.frameInput,
      this.frameLabel);
    this.tools.append(
      el('span', { class: 'lb-tool-group' }, ...this.modeButtons),
      el('span', { class: 'lb-tool-group lb-tool-right' },
        act('minus', 'Zoom out (-)', () => this.zoomBy(1 / 1.25)),
        act('plus', 'Zoom in (+)', () => this.zoomBy(1.25)),
        act('Fit', 'Fit to the frame (=)', () => this.fit()),
        act('invert', 'Invert (i)', () => this.toggle('invert')),
        act('mirror', 'Mirror (h)', () => this.toggle('flipH')),
        act('turn', 'Turn right (r)', () => this.rotate(90)),
        act('Reset', 'Reset the view (space)', () => this.resetView())),
      el('span', { class: 'lb-tool-group' }, this.presetMenu, this.frameRow),
      el('span', { class: 'lb-tool-group lb-tool-right' }, this.layerMenu, this.limitInput));
  }

  // ---- state -----------------------------------------------------------------------------

  askFrame(value) {
    const frames = this.image ? this.image.frames || 1 : 1;
    const frame = clamp(Number(value), 0, frames - 1);
    if (frames < 2 || frame === this.askedFrame) return;
    this.askedFrame = frame;
    this.frameInput.value = String(frame);
    this.frameLabel.textContent = 'loading ' + (frame + 1) + ' / ' + frames;
    this.callbacks.onFrame(frame);
  }

  // The frame that was asked for has not come.
  frameStays() {
    if (!this.image || this.askedFrame === (this.image.frame || 0)) return;
    this.askedFrame = this.image.frame || 0;
    this.frameInput.value = String(this.askedFrame);
    this.frameLabel.textContent = (this.askedFrame + 1) + ' / ' + this.image.frames;
  }

  // Lets a box be drawn, by mouse or by keys; `onDraw` gets it.
  startDrawing(hint) {
    this.stage.dataset.hint = hint;
    this.setTool('draw');
    this.canvas.focus({ preventScroll: true });
  }

  setTool(name) {
    this.tool = name;
    if (name !== 'draw' && this.drawn) {
      this.drawn = null;
      this.draw();
    }
    for (const node of this.modeButtons) {
      node.setAttribute('aria-pressed', String(node.dataset.tool === name));
    }
    this.stage.dataset.tool = name;
    this.callbacks.onTool(name);
  }

  setLayer(name) {
    this.layer = name;
    this.layerMenu.value = name;
    prefs.write({ layer: name });
    this.callbacks.onOverlay();
    this.draw();
  }

  setLimit(value) {
    this.limit = clamp(value, 0.05, 1);
    this.limitInput.value = String(Math.round(this.limit * 100));
    prefs.write({ limit: this.limit });
    this.callbacks.onOverlay();
    this.draw();
  }

  setHeat(grid, scale, label) {
    this.heat = grid;
    this.heatScale = scale;
    this.heatLabel = label;
    this.draw();
  }

  setBoxes(boxes) {
    this.boxes = boxes;
    this.draw();
  }

  setCovered(boxes) {
    this.covered = boxes;
    this.draw();
  }

  resetView() {
    Object.assign(this, {
      scale: null, centerX: 0.5, centerY: 0.5, turn: 0, flipH: false, flipV: false, invert: false,
    });
    this.window = this.image ? this.image.window && [...this.image.window] : null;
    this.windowSource = '';
    if (this.kept) Object.assign(this, this.kept);
    this.setTool(this.tool === 'draw' ? 'window' : this.tool || 'window');
    this.changedWindow();
    this.draw();
  }

  // The window that goes with a request; null while it is the file's own.
  requestWindow() {
    if (!this.windowSource || !this.window) return null;
    return [this.window[0], this.window[1], this.window[2], this.windowSource];
  }

  changedWindow() {
    this.lut = null;
    const index = this.image ? this.image.presets.findIndex(([, w]) => this.window && w
      && w[0] === this.window[0] && w[1] === this.window[1] && w[2] === this.window[2]) : -1;
    this.presetMenu.value = index >= 0 ? String(index) : '';
    this.callbacks.onWindow();
  }

  usePreset(index) {
    const preset = this.image && this.image.presets[index];
    if (!preset || !preset[1]) return;
    this.window = [...preset[1]];
    const own = this.image.window;
    const same = own && own.every((part, i) => part === this.window[i]) && !this.image.lut;
    this.windowSource = same ? '' : 'preset';
    this.changedWindow();
    this.draw();
  }

  // ---- images ----------------------------------------------------------------------------

  // Opens the files of an image that the server decoded.
  async setImage(facts) {
    const token = {};
    this.loading = token;
    this.stage.dataset.busy = 'true';
    this.kept = this.viewFor(facts);
    this.show(facts);
    try {
      if (facts.kind === 'color') {
        const bitmap = await this.fetchBitmap(fileUrl(facts.folder, 'image.png'));
        if (this.loading !== token) return;
        this.bitmap = bitmap;
      } else {
        const reply = await fetch(fileUrl(facts.folder, 'image.raw'));
        const data = await reply.arrayBuffer();
        const table = facts.lut
          ? new Uint8Array(await (await fetch(fileUrl(facts.folder, 'image.lut'))).arrayBuffer())
          : null;
        if (this.loading !== token) return;
        this.table = table;
        await this.setValues(new Uint16Array(data), facts.width, facts.height, token);
      }
    } catch (error) {
      if (this.loading === token) this.callbacks.onProblem('The picture could not be fetched.');
    }
    this.settled(token);
  }

  // Opens the 8-bit picture of a saved run.
  async setPicture(url, facts) {
    const token = {};
    this.loading = token;
    this.stage.dataset.busy = 'true';
    this.show(facts);
    const bitmap = await this.fetchBitmap(url).catch(() => null);
    if (this.loading !== token || !bitmap) return;
    const canvas = el('canvas', { width: bitmap.width, height: bitmap.height });
    const context = canvas.getContext('2d', { willReadFrequently: true });
    context.drawImage(bitmap, 0, 0);
    const rgba = context.getImageData(0, 0, bitmap.width, bitmap.height).data;
    const grey = new Uint16Array(bitmap.width * bitmap.height);
    let colored = false;
    for (let i = 0; i < grey.length; i += 1) {
      grey[i] = rgba[i * 4];
      if (rgba[i * 4] !== rgba[i * 4 + 1] || rgba[i * 4] !== rgba[i * 4 + 2]) {
        colored = true;
        break;
      }
    }
    if (colored) this.bitmap = bitmap;
    else await this.setValues(grey, bitmap.width, bitmap.height, token);
    if (colored) this.image = { ...this.image, kind: 'color', window: null, presets: [] };
    this.settled(token);
  }

  settled(token) {
    if (this.loading !== token) return;
    this.stage.dataset.busy = 'false';
    this.stage.dataset.image = this.image ? this.image.id : '';
    this.resetView();
    this.kept = null;
  }

  // The view to keep when only the frame changes: window, zoom, place, turns.
  viewFor(facts) {
    const now = this.image;
    const next = now && this.askedFrame === facts.frame && this.askedFrame !== now.frame
      && now.width === facts.width && now.height === facts.height;
    if (!next) return null;
    const { scale, centerX, centerY, turn, flipH, flipV, invert, windowSource } = this;
    const view = { scale, centerX, centerY, turn, flipH, flipV, invert };
    // A window that nobody touched is the frame's own.
    return windowSource ? { ...view, windowSource, window: [...this.window] } : view;
  }

  show(facts) {
    this.image = facts;
    this.askedFrame = facts ? facts.frame || 0 : 0;
    this.levels = [];
    this.bitmap = null;
    this.table = null;
    this.boxes = [];
    this.heat = null;
    this.stage.dataset.image = '';
    this.canvas.setAttribute('aria-label', facts
      ? (facts.modality || 'Medical') + ' image, ' + facts.width + ' by ' + facts.height
      + ' pixels. Keys: plus and minus zoom, arrows move, i inverts, space resets.'
      : 'No image is open.');
    clear(this.presetMenu, el('option', { value: '', text: 'Window…' }),
      ...(facts ? facts.presets : []).map(([name], i) =>
        el('option', { value: String(i), text: i < 4 ? name + ' (' + (i + 1) + ')' : name })));
    this.presetMenu.hidden = !facts || !facts.presets.length;
    const frames = facts ? facts.frames || 1 : 1;
    this.frameRow.hidden = frames < 2;
    this.frameInput.max = String(frames - 1);
    this.frameInput.value = String(facts ? facts.frame || 0 : 0);
    this.frameLabel.textContent = facts ? (facts.frame + 1) + ' / ' + frames : '';
    this.resetView();
  }

  async fetchBitmap(url) {
    const reply = await fetch(url);
    if (!reply.ok) throw new Error('picture ' + reply.status);
    const blob = new Blob([await reply.arrayBuffer()], { type: 'image/png' });
    return window.createImageBitmap(blob);
  }

  // Keeps the values and halves of them, made in slices so that the page stays responsive.
  async setValues(values, width, height, token) {
    this.levels = [{ values, width, height, factor: 1 }];
    this.resetView();
    let level = this.levels[0];
    while (Math.max(level.width, level.height) > 640) {
      const next = await this.halved(level);
      if (this.loading !== token) return;
      this.levels.push(next);
      level = next;
    }
  }

  async halved(level) {
    const width = Math.max(1, level.width >> 1);
    const height = Math.max(1, level.height >> 1);
    const values = new Uint16Array(width * height);
    const from = level.values;
    let began = performance.now();
    for (let y = 0; y < height; y += 1) {
      let a = 2 * y * level.width;
      let b = Math.min(2 * y + 1, level.height - 1) * level.width;
      const step = level.width > 1 ? 1 : 0;
      for (let x = 0; x < width; x += 1, a += 2, b += 2) {
        values[y * width + x] = (from[a] + from[a + step] + from[b] + from[b + step] + 2) >> 2;
      }
      if (performance.now() - began > 12) {
        await new Promise((resolve) => { setTimeout(resolve); });
        began = performance.now();
      }
    }
    return { values, width, height, factor: level.factor * 2 };
  }

  // ---- windowing -------------------------------------------------------------------------

  // The value that a raw number stands for: between two knots it grows in proportion.
  valueOf(raw) {
    const { numbers, values } = this.image;
    let i = 1;
    while (i < numbers.length - 1 && raw > numbers[i]) i += 1;
    const part = (raw - numbers[i - 1]) / (numbers[i] - numbers[i - 1]);
    return values[i - 1] + part * (values[i] - values[i - 1]);
  }

  // Grey level of every raw number under the window: DICOM PS3.3 C.11.2.1.2 and C.11.2.1.3.
  lookup() {
    if (this.lut) return this.lut;
    const lut = new Uint32Array(65536);
    const { inverted } = this.image;
    const flip = Boolean(this.invert);
    const untouched = this.table && !this.windowSource;
    const [center, width, kind] = this.window || [127.5, 255, 'LINEAR_EXACT'];
    const low = kind === 'LINEAR' ? center - 0.5 - (width - 1) / 2 : center - width / 2;
    const span = kind === 'LINEAR' ? width - 1 : width;
    for (let i = 0; i < 65536; i += 1) {
      let level;
      if (untouched) {
        level = this.table[i];
      } else {
        const value = this.valueOf(i);
        let part;
        if (kind === 'SIGMOID') part = 1 / (1 + Math.exp((-4 * (value - center)) / width));
        else if (span <= 0) part = value > low ? 1 : 0;
        else part = clamp((value - low) / span, 0, 1);
        if (inverted) part = 1 - part;
        level = Math.round(part * 255);
      }
      if (flip) level = 255 - level;
      lut[i] = (255 << 24) | (level << 16) | (level << 8) | level;
    }
    this.lut = lut;
    return lut;
  }

  // ---- geometry --------------------------------------------------------------------------

  resize() {
    const box = this.stage.getBoundingClientRect();
    const ratio = Math.min(window.devicePixelRatio || 1, 2);
    const width = Math.max(1, Math.round(box.width * ratio));
    const height = Math.max(1, Math.round(box.height * ratio));
    if (this.canvas.width !== width || this.canvas.height !== height) {
      this.canvas.width = width;
      this.canvas.height = height;
      this.draw();
    }
    this.ratio = ratio;
  }

  fitScale() {
    const turned = this.turn % 180 !== 0;
    const width = turned ? this.image.height : this.image.width;
    const height = turned ? this.image.width : this.image.height;
    return Math.min(this.canvas.width / width, this.canvas.height / height);
  }

  // From image pixels to canvas pixels.
  matrix() {
    const scale = this.scale || this.fitScale();
    return new DOMMatrix()
      .translate(this.canvas.width / 2, this.canvas.height / 2)
      .rotate(this.turn)
      .scale(this.flipH ? -scale : scale, this.flipV ? -scale : scale)
      .translate(-this.centerX * this.image.width, -this.centerY * this.image.height);
  }

  toImage(clientX, clientY) {
    const box = this.canvas.getBoundingClientRect();
    const x = (clientX - box.left) * (this.canvas.width / box.width);
    const y = (clientY - box.top) * (this.canvas.height / box.height);
    return this.matrix().inverse().transformPoint(new DOMPoint(x, y));
  }

  zoomBy(factor, at) {
    if (!this.image) return;
    const before = at && this.toImage(at[0], at[1]);
    const fit = this.fitScale();
    this.scale = clamp((this.scale || fit) * factor, fit / 4, Math.max(fit * 4, 24));
    if (before) {
      const after = this.toImage(at[0], at[1]);
      this.centerX += (before.x - after.x) / this.image.width;
      this.centerY += (before.y - after.y) / this.image.height;
    }
    this.keepInside();
    this.draw();
  }

  panBy(dx, dy) {
    if (!this.image) return;
    const matrix = this.matrix();
    matrix.e = 0;
    matrix.f = 0;
    const moved = matrix.inverse().transformPoint(new DOMPoint(dx, dy));
    this.centerX -= moved.x / this.image.width;
    this.centerY -= moved.y / this.image.height;
    this.keepInside();
    this.draw();
  }

  keepInside() {
    this.centerX = clamp(this.centerX, 0, 1);
    this.centerY = clamp(this.centerY, 0, 1);
  }

  fit() {
    this.scale = null;
    this.centerX = 0.5;
    this.centerY = 0.5;
    this.draw();
  }

  // Brings a normalised box into view, with room around it.
  flyTo(box) {
    if (!this.image) return;
    const width = (box[2] - box[0]) * this.image.width;
    const height = (box[3] - box[1]) * this.image.height;
    this.scale = 0.6 * Math.min(this.canvas.width / width, this.canvas.height / height);
    this.centerX = (box[0] + box[2]) / 2;
    this.centerY = (box[1] + box[3]) / 2;
    this.draw();
  }

  toggle(name) {
    this[name] = !this[name];
    if (name === 'invert') this.lut = null;
    this.draw();
  }

  rotate(degrees) {
    this.turn = (this.turn + degrees + 360) % 360;
    this.draw();
  }

  // ---- drawing ---------------------------------------------------------------------------

  draw() {
    if (this.pending) return;
    this.pending = true;
    window.requestAnimationFrame(() => {
      this.pending = false;
      this.paint();
    });
  }

  paint() {
    const context = this.canvas.getContext('2d');
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.fillStyle = '#000';
    context.fillRect(0, 0, this.canvas.width, this.canvas.height);
    if (!this.image || (!this.levels.length && !this.bitmap)) {
      this.readouts();
      return;
    }
    const matrix = this.matrix();
    this.paintImage(context, matrix);
    this.paintCovered(context, matrix);
    this.paintHeat(context, matrix);
    this.paintBoxes(context, matrix);
    this.readouts();
  }

  paintImage(context, matrix) {
    context.setTransform(matrix);
    context.imageSmoothingEnabled = true;
    context.imageSmoothingQuality = 'high';
    if (this.bitmap) {
      context.filter = this.invert ? 'invert(1)' : 'none';
      context.drawImage(this.bitmap, 0, 0, this.image.width, this.image.height);
      context.filter = 'none';
      return;
    }
    const scale = this.scale || this.fitScale();
    const coarse = this.dragging ? 1 : 0.75;
    const level = [...this.levels].reverse().find((one) => one.factor * scale <= 1 / coarse)
      || this.levels[0];
    const region = this.visible(matrix, level);
    if (!region) return;
    const { buffer, fx, fy } = this.windowed(level, region);
    context.drawImage(buffer, 0, 0, region.width, region.height, region.x * fx, region.y * fy,
      region.width * fx, region.height * fy);
  }

  // The part of a level that the canvas shows.
  visible(matrix, level) {
    const back = matrix.inverse();
    const corners = [[0, 0], [1, 0], [0, 1], [1, 1]].map(([x, y]) => back.transformPoint(
      new DOMPoint(x * this.canvas.width, y * this.canvas.height)));
    const fx = this.image.width / level.width;
    const fy = this.image.height / level.height;
    const xs = corners.map((p) => p.x / fx);
    const ys = corners.map((p) => p.y / fy);
    const x = clamp(Math.floor(Math.min(...xs)) - 1, 0, level.width);
    const y = clamp(Math.floor(Math.min(...ys)) - 1, 0, level.height);
    const width = clamp(Math.ceil(Math.max(...xs)) + 1, 0, level.width) - x;
    const height = clamp(Math.ceil(Math.max(...ys)) + 1, 0, level.height) - y;
    return width > 0 && height > 0 ? { x, y, width, height } : null;
  }

  windowed(level, region) {
    const lut = this.lookup();
    if (!this.buffer) this.buffer = document.createElement('canvas');
    const buffer = this.buffer;
    if (buffer.width < region.width || buffer.height < region.height) {
      buffer.width = Math.max(buffer.width, region.width);
      buffer.height = Math.max(buffer.height, region.height);
    }
    const picture = new ImageData(region.width, region.height);
    const words = new Uint32Array(picture.data.buffer);
    for (let row = 0; row < region.height; row += 1) {
      let from = (region.y + row) * level.width + region.x;
      let to = row * region.width;
      for (const end = to + region.width; to < end; to += 1, from += 1) {
        words[to] = lut[level.values[from]];
      }
    }
    buffer.getContext('2d').putImageData(picture, 0, 0);
    return {
      buffer, fx: this.image.width / level.width, fy: this.image.height / level.height,
    };
  }

  // What an image of the run shows, in pixels of the picture: the view, or crop n, whose pixels
  // reach beyond the box that was asked for.
  boxOf(image) {
    const crop = this.boxes.find((box) => box.number === image);
    const [x0, y0, x1, y1] = image === 0 || !crop ? [0, 0, 1, 1] : crop.shown;
    return [x0 * this.image.width, y0 * this.image.height,
      (x1 - x0) * this.image.width, (y1 - y0) * this.image.height];
  }

  paintHeat(context, matrix) {
    const shown = this.heat && this.layer !== 'off';
    this.legend.hidden = !shown || this.layer !== 'heat';
    if (!shown) return;
    this.legend.lastChild.textContent = percentScale(this.heatScale, this.heatLabel);
    const [x, y, width, height] = this.boxOf(this.heat.image);
    context.setTransform(matrix);
    if (this.layer === 'heat') {
      context.imageSmoothingEnabled = true;
      context.drawImage(gridCanvas(this.heat, this.heatScale, this.limit), x, y, width, height);
      this.paintPeak(context, matrix, [x, y, width, height]);
      return;
    }
    const path = new Path2D();
    const level = Math.max(this.limit, 0.05) * this.heatScale;
    for (const [[ax, ay], [bx, by]] of contourLines(this.heat, level)) {
      const a = matrix.transformPoint(new DOMPoint(x + ax * width, y + ay * height));
      const b = matrix.transformPoint(new DOMPoint(x + bx * width, y + by * height));
      path.moveTo(a.x, a.y);
      path.lineTo(b.x, b.y);
    }
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.strokeStyle = '#FEE838';
    context.lineWidth = 2 * (this.ratio || 1);
    context.stroke(path);
    this.paintPeak(context, matrix, [x, y, width, height]);
  }

  // A ring where the map is highest, dark and white, to be seen on every colour, also where the
  // limit hides the whole map: the inspector names the place.
  paintPeak(context, matrix, [x, y, width, height]) {
    if (!(this.heat.peak > 0)) return;
    const [px, py] = peakPlace(this.heat);
    const point = matrix.transformPoint(new DOMPoint(x + px * width, y + py * height));
    const ratio = this.ratio || 1;
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.setLineDash([]);
    for (const [color, line] of [['#000', 4], ['#fff', 1.5]]) {
      context.beginPath();
      context.arc(point.x, point.y, 6 * ratio, 0, 2 * Math.PI);
      context.strokeStyle = color;
      context.lineWidth = line * ratio;
      context.stroke();
    }
  }

  corners(matrix, box) {
    const [x0, y0, x1, y1] = box;
    return [[x0, y0], [x1, y0], [x1, y1], [x0, y1]].map(([x, y]) => matrix.transformPoint(
      new DOMPoint(x * this.image.width, y * this.image.height)));
  }

  outline(context, points) {
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.beginPath();
    points.forEach((p, i) => (i ? context.lineTo(p.x, p.y) : context.moveTo(p.x, p.y)));
    context.closePath();
  }

  paintCovered(context, matrix) {
    for (const box of [...this.covered, ...(this.drawn ? [this.drawn] : [])]) {
      if (box[2] <= box[0] || box[3] <= box[1]) continue;
      this.outline(context, this.corners(matrix, box));
      context.fillStyle = 'rgba(110, 118, 126, 0.92)';
      context.fill();
      context.strokeStyle = '#FF8A4C';
      context.setLineDash([]);
      context.lineWidth = 1.5 * (this.ratio || 1);
      context.stroke();
    }
  }

  paintBoxes(context, matrix) {
    const ratio = this.ratio || 1;
    for (const { number: n, box, active, skipped, color, dash, faded, slot } of this.boxes) {
      const points = this.corners(matrix, box);
      const ink = color || (skipped ? '#9AA4AE' : '#56B4E9');
      context.globalAlpha = faded ? 0.3 : 1;
      this.outline(context, points);
      context.lineWidth = (active ? 3 : 2) * ratio;
      context.setLineDash((dash || CROP_DASHES[(n - 1) % CROP_DASHES.length])
        .map((d) => d * ratio));
      context.strokeStyle = ink;
      context.stroke();
      context.setLineDash([]);
      const top = points.reduce((a, b) => (b.y + b.x < a.y + a.x ? b : a));
      const radius = 10 * ratio;
      // Boxes that begin at one place wear their numbers side by side.
      const x = clamp(top.x + (slot || 0) * 2 * radius, radius, this.canvas.width - radius);
      const y = clamp(top.y, radius, this.canvas.height - radius);
      context.beginPath();
      context.arc(x, y, radius, 0, 2 * Math.PI);
      context.fillStyle = ink;
      context.fill();
      context.fillStyle = '#0B0E11';
      context.font = '600 ' + 12 * ratio + 'px system-ui, sans-serif';
      context.textAlign = 'center';
      context.textBaseline = 'middle';
      context.fillText(String(n), x, y + ratio * 0.5);
    }
    context.globalAlpha = 1;
  }

  readouts() {
    const parts = [];
    if (this.image) {
      if (this.window && !this.bitmap) {
        const table = this.table && !this.windowSource;
        parts.push(table ? 'File’s own curve'
          : 'W ' + number(this.window[1], 1) + '  L ' + number(this.window[0], 1));
      }
      const scale = (this.scale || this.fitScale()) / (this.ratio || 1);
      parts.push('zoom ' + Math.round(scale * 100) + '%');
      if (this.image.spacing) {
        const size = number(this.image.spacing[1], 3) + ' mm/px';
        parts.push(this.image.spacing_kind === 'detector' ? size + ' at the detector' : size);
      }
    }
    this.readout.textContent = parts.join('   ');
    this.sides();
  }

  // The patient's sides where the file says them, turned and mirrored with the picture.
  sides() {
    const stored = { right: 'RL', left: 'LR' }[this.image && this.image.left_edge];
    const upright = this.turn % 180 === 0;
    const swapped = (this.turn === 180) !== this.flipH;
    const marks = stored && upright ? [...stored] : ['', ''];
    if (swapped) marks.reverse();
    [this.corner.left.textContent, this.corner.right.textContent] = marks;
  }

  readProbe(event) {
    if (!this.image || (!this.levels.length && !this.bitmap)) return;
    const p = this.toImage(event.clientX, event.clientY);
    const x = Math.floor(p.x);
    const y = Math.floor(p.y);
    if (x < 0 || y < 0 || x >= this.image.width || y >= this.image.height) {
      this.probe.textContent = '';
      return;
    }
    let text = 'x ' + x + '  y ' + y;
    const full = this.levels[0];
    if (full && full.width === this.image.width && this.image.kind === 'grey16') {
      const value = this.valueOf(full.values[y * full.width + x]);
      text += '   ' + (this.image.units || 'value') + ' ' + number(value, 1);
    }
    this.probe.textContent = text;
  }

  // ---- mouse, touch and keys -------------------------------------------------------------

  listen() {
    this.stage.addEventListener('pointerdown', (event) => this.press(event));
    this.stage.addEventListener('pointermove', (event) => this.move(event));
    for (const name of ['pointerup', 'pointercancel']) {
      this.stage.addEventListener(name, (event) => this.release(event));
    }
    this.stage.addEventListener('pointerleave', () => { this.probe.textContent = ''; });
    this.stage.addEventListener('dblclick', () => this.fit());
    this.stage.addEventListener('wheel', (event) => {
      if (!this.image) return;
      event.preventDefault();
      this.zoomBy(Math.exp(-clamp(event.deltaY, -240, 240) / 480),
        [event.clientX, event.clientY]);
    }, { passive: false });
    this.canvas.addEventListener('keydown', (event) => this.key(event));
  }

  press(event) {
    if (!this.image || event.target.closest('button, a, input, .lb-empty')) return;
    this.canvas.focus({ preventScroll: true });
    this.stage.setPointerCapture(event.pointerId);
    this.pointers.set(event.pointerId, [event.clientX, event.clientY]);
    const panning = event.button === 1 || event.shiftKey || this.tool === 'pan';
    this.dragging = panning ? 'pan' : this.tool;
    if (this.dragging === 'draw') {
      const p = this.toImage(event.clientX, event.clientY);
      this.drawnFrom = [p.x / this.image.width, p.y / this.image.height];
    }
    event.preventDefault();
  }

  move(event) {
    this.readProbe(event);
    const last = this.pointers.get(event.pointerId);
    if (!last) return;
    const dx = event.clientX - last[0];
    const dy = event.clientY - last[1];
    const others = [...this.pointers.entries()].filter(([id]) => id !== event.pointerId);
    this.pointers.set(event.pointerId, [event.clientX, event.clientY]);
    if (others.length) {
      const [x, y] = others[0][1];
      const before = Math.hypot(last[0] - x, last[1] - y);
      const after = Math.hypot(event.clientX - x, event.clientY - y);
      if (before > 0) this.zoomBy(after / before, [(event.clientX + x) / 2,
        (event.clientY + y) / 2]);
    } else if (this.dragging === 'pan') {
      this.panBy(dx * this.ratio, dy * this.ratio);
    } else if (this.dragging === 'draw') {
      this.drawTo(event);
    } else {
      this.dragWindow(dx, dy);
    }
  }

  dragWindow(dx, dy) {
    if (!this.window || this.bitmap || !this.levels.length) return;
    const range = this.range();
    const least = this.window[2] === 'LINEAR' ? 1 : range / 65536;
    this.window[1] = clamp(this.window[1] + (dx * range) / DRAG_PIXELS, least, range * 4);
    this.window[0] += (dy * range) / DRAG_PIXELS;
    this.windowSource = 'request';
    this.changedWindow();
    this.draw();
  }

  // The spread of values worth dragging through: half as much again as the narrowest preset.
  range() {
    const widths = this.image.presets.map(([, w]) => (w ? w[1] : 0));
    return Math.min(...widths.filter((w) => w > 0).concat(65535)) * 1.5;
  }

  drawTo(event) {
    const p = this.toImage(event.clientX, event.clientY);
    const x = clamp(p.x / this.image.width, 0, 1);
    const y = clamp(p.y / this.image.height, 0, 1);
    const [fx, fy] = this.drawnFrom.map((v) => clamp(v, 0, 1));
    this.drawn = [Math.min(fx, x), Math.min(fy, y), Math.max(fx, x), Math.max(fy, y)];
    this.draw();
  }

  release(event) {
    this.pointers.delete(event.pointerId);
    if (this.dragging === 'draw' && this.drawn) this.finishDrawing();
    if (!this.pointers.size) {
      this.dragging = null;
      this.draw();
    }
  }

  finishDrawing() {
    const box = this.drawn;
    this.setTool('window');
    const isLarge = box && box[2] - box[0] > 0.01 && box[3] - box[1] > 0.01;
    this.callbacks.onDraw(isLarge ? box : null);
  }

  // The box by keys: arrows move it, with shift they change its size, Enter takes it.
  keyDrawing(event) {
    const [dx, dy] = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1],
      ArrowDown: [0, 1] }[event.key] || [0, 0];
    if (event.key === 'Enter') this.finishDrawing();
    else if (!dx && !dy) return;
    else {
      const [x0, y0, x1, y1] = this.drawn || [0.4, 0.4, 0.6, 0.6];
      const step = 0.02;
      if (event.shiftKey) {
        this.drawn = [x0, y0, clamp(x1 + dx * step, x0 + step, 1),
          clamp(y1 + dy * step, y0 + step, 1)];
      } else {
        const x = clamp(dx * step, -x0, 1 - x1);
        const y = clamp(dy * step, -y0, 1 - y1);
        this.drawn = [x0 + x, y0 + y, x1 + x, y1 + y];
      }
      this.draw();
    }
    event.preventDefault();
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || !this.image) return;
    if (this.tool === 'draw') {
      this.keyDrawing(event);
      return;
    }
    if (!singleKeys() && event.key !== ' ' && event.key.length === 1) return;
    const step = 40 * (this.ratio || 1);
    const actions = {
      i: () => this.toggle('invert'),
      h: () => this.toggle('flipH'),
      v: () => this.toggle('flipV'),
      r: () => this.rotate(90),
      l: () => this.rotate(-90),
      '+': () => this.zoomBy(1.25),
      '-': () => this.zoomBy(1 / 1.25),
      '=': () => this.fit(),
      ' ': () => this.resetView(),
      o: () => this.setLayer(this.layer === 'off' ? 'heat' : 'off'),
      c: () => this.setLayer(this.layer === 'contour' ? 'heat' : 'contour'),
      '[': () => this.setLimit(this.limit - 0.05),
      ']': () => this.setLimit(this.limit + 0.05),
      ArrowLeft: () => this.panBy(step, 0),
      ArrowRight: () => this.panBy(-step, 0),
      ArrowUp: () => this.panBy(0, step),
      ArrowDown: () => this.panBy(0, -step),
      PageDown: () => this.askFrame(this.askedFrame + 1),
      PageUp: () => this.askFrame(this.askedFrame - 1),
    };
    const preset = '1234'.indexOf(event.key);
    const action = actions[event.key] || (preset >= 0 && (() => this.usePreset(preset)));
    if (!action) return;
    event.preventDefault();
    action();
  }
}

function percentScale(scale, label) {
  return (label === 'similarity' ? number(scale, 2) : percent(scale)) + ' '
    + (label === 'similarity' ? 'alike' : 'of attention');
}
