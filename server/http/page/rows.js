// Panel "Long rows": the largest scores of thousands of keys, and a zoom to
// each of them.

const MOST_BARS = 128;

const rows = {
  view: [0, 1],
  current: 0,

  start() {
    $("rows-count").addEventListener("change", () => this.load());
    $("rows-query").addEventListener("change", () => this.load());
    const zoom = {"rows-in": () => this.zoom(.25), "rows-out": () => this.zoom(4), "rows-left": () => this.pan(-1),
                  "rows-right": () => this.pan(1), "rows-all": () => this.look(0, this.scores.length)};
    for (const [id, act] of Object.entries(zoom)) $(id).addEventListener("click", act);
    const bars = $("rows-bars");
    bars.addEventListener("click", (event) => {
      const bar = event.target.closest("button");
      if (bar) this.enter(+bar.dataset.n);
    });
    bars.addEventListener("pointerover", (event) => this.tell(event.target.closest("button")));
    bars.addEventListener("focusin", (event) => this.tell(event.target.closest("button")));
    bars.addEventListener("keydown", (event) => this.keys(event));
  },
  show() {
    const loaded = files.open;
    $("rows-count").disabled = loaded;
    $("rows-query-label").hidden = !loaded;
    this.load();
  },
  hide() {},
  fromFile() {
    $("rows-query").value = files.picked().row;
    this.show();
  },

  /** Scores and weights of the row, in float64. */
  load() {
    let query, keyAt, count, scale;
    if (files.open) {
      const picked = files.picked();
      const row = Math.min(integerIn("rows-query", 0), picked.query.S - 1);
      query = rowOf(picked.query, picked.batch, picked.head, row);
      keyAt = (j) => rowOf(picked.key, picked.batch, picked.readsHead, j);
      count = picked.key.S;
      $("rows-count").value = count;
      $("rows-query").value = row;
    } else {
      count = integerIn("rows-count", 20000);
      const next = randomNumbers(20000);
      query = randomMatrix(1, 16, next, 2)[0];
      const all = new Float32Array(count * 16);
      for (let n = 0; n < all.length; ++n) all[n] = 2 * next();
      // A few keys are like the query.
      for (const [at, like] of [[.12, 1.15], [.57, 1.5], [.571, 1.35], [.93, 1]]) {
        const j = Math.floor(at * count);
        for (let d = 0; d < 16; ++d) all[16 * j + d] = fround(like * query[d]);
      }
      keyAt = (j) => all.subarray(16 * j, 16 * j + 16);
    }
    this.query = query;
    this.keyAt = keyAt;
    scale = this.scale = 1 / Math.sqrt(query.length);
    const scores = this.scores = new Float64Array(count);
    for (let j = 0; j < count; ++j) {
      const key = keyAt(j);
      let sum = 0;
      for (let d = 0; d < query.length; ++d) sum += query[d] * key[d];
      scores[j] = scale * sum;
    }
    const largest = scores.reduce((a, b) => Math.max(a, b), -Infinity);
    const exps = scores.map((s) => Math.exp(s - largest));
    const total = exps.reduce((a, b) => a + b, 0);
    this.weights = exps.map((e) => e / total);
    this.look(0, count);
    this.drawTop();
  },

  /** Keys per bar for so many keys: the least power of two that gives few bars. */
  width(keys) { return 2 ** Math.ceil(Math.log2(Math.max(1, keys / MOST_BARS))); },

  look(begin, end) {
    const count = this.scores.length;
    const keys = Math.max(1, Math.min(count, Math.round(end - begin)));
    const width = this.width(keys);
    begin = Math.floor(Math.max(0, Math.min(begin, count - keys)) / width) * width;
    end = Math.min(count, begin + Math.ceil(keys / width) * width);
    this.view = [begin, end];
    this.bars = [];
    for (let first = begin; first < end; first += width) {
      const bar = {begin: first, end: Math.min(end, first + width), max: -Infinity, at: first, weight: 0};
      for (let j = first; j < bar.end; ++j) {
        if (this.scores[j] > bar.max) { bar.max = this.scores[j]; bar.at = j; }
        bar.weight += this.weights[j];
      }
      this.bars.push(bar);
    }
    this.current = Math.min(this.current, this.bars.length - 1);
    this.draw(width);
  },

  draw(width) {
    const hadFocus = $("rows-bars").contains(document.activeElement);
    const finite = this.bars.map((bar) => bar.max).filter(Number.isFinite);
    const top = Math.max(...finite), low = Math.min(...finite);
    const floor = top === low ? low - 1 : low - (top - low) * .15;
    const heaviest = Math.max(...this.bars.map((bar) => bar.weight));
    $("rows-bars").replaceChildren(...this.bars.map((bar, n) => {
      const fill = make("i");
      fill.style.height = `${Math.max(1, 100 * (bar.max - floor) / (top - floor))}%`;
      fill.style.setProperty("--amount", Math.sqrt(bar.weight / heaviest));
      return make("button", {type: "button", tabindex: n === this.current ? 0 : -1, "data-n": n, "data-begin": bar.begin,
        "data-end": bar.end, "data-max": bar.max, "data-weight": bar.weight, "aria-label": this.describe(bar)}, fill);
    }));
    const [begin, end] = this.view, count = this.scores.length;
    const per = width === 1 ? "each bar is one key"
      : `each bar is ${group(width)} keys${width === 256 ? ", one block of the kernel" : ""}`;
    $("rows-range").textContent = `Keys ${group(begin)} to ${group(end - 1)} of ${group(count)}: ${per}.`;
    $("rows-axis").replaceChildren(...[0, .5, 1].map((part) => {
      const mark = make("span", {}, show(floor + (top - floor) * (1 - part), 2));
      mark.style.top = `${100 * part}%`;
      return mark;
    }));
    $("rows-ruler").replaceChildren(make("span", {}, group(begin)), make("span", {}, group((begin + end) >> 1)), make("span", {}, group(end - 1)));
    const thumb = $("rows-map").firstElementChild;
    thumb.style.left = `${100 * begin / count}%`;
    thumb.style.width = `${100 * (end - begin) / count}%`;
    $("rows-in").disabled = end - begin <= 16;
    for (const id of ["rows-out", "rows-all", "rows-left", "rows-right"]) $(id).disabled = end - begin >= count;
    $("rows-readout").textContent = "Point at a bar, or move between them with the arrow keys.";
    if (hadFocus) $("rows-bars").children[this.current].focus();
  },

  describe(bar) {
    if (bar.end - bar.begin === 1) return `Key ${bar.begin}: score ${show(bar.max)}, weight ${show(bar.weight, 6)}`;
    return `Keys ${bar.begin} to ${bar.end - 1}: largest score ${show(bar.max)}, of key ${bar.at}; weight ${show(bar.weight, 6)}`;
  },

  tell(button) {
    if (!button) return;
    this.current = +button.dataset.n;
    for (const other of $("rows-bars").children) other.tabIndex = other === button ? 0 : -1;
    const bar = this.bars[this.current];
    let text = `${this.describe(bar)}.`;
    if (bar.end - bar.begin === 1) {
      const key = this.keyAt(bar.begin);
      text += ` ${plain(this.scale)} × (${sumText(key.length, (d) => `${factor(this.query[d])}·${factor(key[d])}`, 4)})`;
    }
    $("rows-readout").textContent = text;
  },

  enter(n) {
    const bar = this.bars[n];
    if (bar.end - bar.begin === 1) return;
    this.current = 0;
    // A bar of few keys alone would be a picture of nothing.
    const keys = Math.max(bar.end - bar.begin, 32);
    this.look(bar.begin, bar.begin + keys);
  },

  zoom(by) {
    const [begin, end] = this.view;
    const keys = Math.max(16, (end - begin) * by), bar = this.bars[this.current];
    const middle = by < 1 ? (bar.begin + bar.end) / 2 : (begin + end) / 2;
    this.look(middle - keys / 2, middle + keys / 2);
  },
  pan(by) {
    const [begin, end] = this.view, step = by * (end - begin) / 2;
    this.look(begin + step, end + step);
  },

  keys(event) {
    const last = this.bars.length - 1;
    const to = {ArrowLeft: this.current - 1, ArrowRight: this.current + 1, Home: 0, End: last}[event.key];
    if (to !== undefined) {
      event.preventDefault();
      $("rows-bars").children[Math.max(0, Math.min(last, to))].focus();
    } else if (event.key === "+") {
      this.zoom(.25);
    } else if (event.key === "-") {
      this.zoom(4);
    }
  },

  drawTop() {
    const order = Array.from(this.scores.keys()).sort((a, b) => this.weights[b] - this.weights[a] || a - b).slice(0, 5);
    const table = listTable("The keys with the most weight", ["Key", "Block", "Score", "Weight", "In the row"], order.map((j) => {
      const look = make("button", {type: "button"}, "Show");
      look.addEventListener("click", () => {
        this.look(j - 32, j + 32);
        this.current = j - this.view[0];
        this.tell($("rows-bars").children[this.current]);
      });
      look.setAttribute("aria-label", `Show key ${j}`);
      return [group(j), group(Math.floor(j / KEY_BLOCK)), show(this.scores[j]), show(this.weights[j], 6), look];
    }));
    $("rows-top").replaceChildren(table);
  },
};
