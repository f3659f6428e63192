// Alternatives and maps of single steps, fetched by byte range when they are looked at.

class Details {
  constructor() {
    this.reset(null);
  }

  reset(run) {
    this.folder = run ? run.folder : null;
    this.offsets = [];
    this.known = 0;
    this.end = 0;
    this.cache = new Map();
  }

  static lengthOf(item) {
    if (item[0] === 't') return item[7];
    return item[0] === 'l' ? item[6] : 0;
  }

  learn(items) {
    for (; this.known < items.length; this.known += 1) {
      this.offsets.push(this.end);
      this.end += Details.lengthOf(items[this.known]);
    }
  }

  // The detail of an item: a promise of an object, or of null when there is none.
  get(index, items) {
    if (!this.folder || !items[index] || !Details.lengthOf(items[index])) {
      return Promise.resolve(null);
    }
    if (!this.cache.has(index)) this.fetchFrom(index, items);
    return this.cache.get(index);
  }

  fetchFrom(index, items) {
    const first = index;
    let last = index;
    let bytes = 0;
    for (let i = index; i < this.known && bytes < 16000; i += 1) {
      const length = Details.lengthOf(items[i]);
      if (length && this.cache.has(i)) break;
      bytes += length;
      last = i;
    }
    const start = this.offsets[first];
    const stop = this.offsets[last] + Details.lengthOf(items[last]) - 1;
    const folder = this.folder;
    const lines = fetch(fileUrl(folder, 'details.jsonl'),
      { headers: { Range: 'bytes=' + start + '-' + stop }, cache: 'no-store' })
      .then((reply) => {
        if (!reply.ok) throw new Error('details ' + reply.status);
        return reply.arrayBuffer().then((data) => ({ data, whole: reply.status === 200 }));
      })
      .then(({ data, whole }) => {
        const text = new TextDecoder().decode(whole ? data.slice(start, stop + 1) : data);
        return text.split('\n');
      });
    let line = 0;
    for (let i = first; i <= last; i += 1) {
      if (!Details.lengthOf(items[i])) continue;
      const place = line;
      line += 1;
      const one = lines.then((all) => JSON.parse(all[place])).catch(() => {
        if (this.folder === folder) this.cache.delete(i);
        return null;
      });
      this.cache.set(i, one);
    }
  }
}
