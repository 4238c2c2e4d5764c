// Panel "Blocks": one row over blocks of 256 keys, which come in two parts.

const MOST_BLOCK_KEYS = 4096;
const hex = (x) => bitsOf(x).toString(16).padStart(8, "0");

const blocks = {
  start() {
    $("blocks-count").addEventListener("change", () => this.load());
    $("blocks-cut").addEventListener("input", () => this.move(integerIn("blocks-cut", this.cut)));
    $("blocks-slider").addEventListener("input", () => this.move(+$("blocks-slider").value));
    $("blocks-play").addEventListener("click", () => this.play(!this.playing));
    window.addEventListener("resize", settled(() => { if (this.visible) this.move(this.cut); }, 100));
    this.line = new ServerLine("server-blocks");
    this.ask = settled(() => { if (this.visible) this.compare(); }, 350);
  },
  show() { this.load(); },
  hide() {
    this.play(false);
    this.line.stop();
  },
  fromFile() { this.load(); },

  load() {
    const matrices = files.open ? this.picked() : this.made();
    Object.assign(this, matrices);
    $("blocks-count").disabled = files.open;
    $("blocks-count").value = this.key.length;
    $("blocks-cut").max = $("blocks-slider").max = this.key.length;
    const whole = attendRow32(this.query, this.key.length, this.scale, (j) => this.key[j], (j) => this.value[j]);
    this.whole = outputOf(whole.root);
    this.drawPartials(whole.leaves);
    this.move(Math.min(this.cut ?? 700, this.key.length));
  },

  made() {
    const next = randomNumbers(256), count = integerIn("blocks-count", 1600);
    const query = randomMatrix(1, 4, next, 2)[0];
    const key = randomMatrix(count, 4, next, 2), value = randomMatrix(count, 4, next);
    return {query, key, value, scale: fround(1 / 2)};
  },
  picked() {
    const {query, key, value, row, readsHead, batch, head} = files.picked();
    const count = Math.min(key.S, MOST_BLOCK_KEYS);
    const list = (heads, h, i) => Array.from(rowOf(heads, batch, h, i), fround);
    return {
      query: list(query, head, row), scale: fround(1 / Math.sqrt(query.D)),
      key: Array.from({length: count}, (_, j) => list(key, readsHead, j)),
      value: Array.from({length: count}, (_, j) => list(value, readsHead, j)),
    };
  },

  move(cut) {
    this.cut = cut = Math.max(0, Math.min(this.key.length, cut));
    $("blocks-slider").value = cut;
    if (document.activeElement !== $("blocks-cut")) $("blocks-cut").value = cut;
    const count = this.key.length;
    // Two arrivals: rows are read from the part that they came in.
    const parts = (rows) => {
      const [past, added] = [rows.slice(0, cut), rows.slice(cut)];
      return (j) => (j < cut ? past[j] : added[j - cut]);
    };
    const keyAt = parts(this.key), valueAt = parts(this.value);
    const kernel = attendRow32(this.query, count, this.scale, keyAt, valueAt);
    this.ours = outputOf(kernel.root);
    this.usual = outputOf(attendInTwoParts32(this.query, count, this.scale, cut, keyAt, valueAt));
    this.drawTree(kernel.root, count);
    this.drawBits();
    const split = cut % KEY_BLOCK && cut < count ? `block ${Math.floor(cut / KEY_BLOCK)} has keys of both` : "between two blocks";
    $("blocks-readout").textContent = `First ${group(cut)} keys, then ${group(count - cut)}: ${split}.`;
    this.ask();
  },

  drawTree(root, count) {
    const width = Math.max(280, $("blocks-tree").clientWidth), leafTop = 132, leafHeight = 34;
    const x = (key) => key * width / count;
    const depthOf = (node) => (node.children ? 1 + Math.max(...node.children.map(depthOf)) : 0);
    const levels = Math.max(1, depthOf(root));
    const y = (node) => leafTop - 8 - depthOf(node) * (leafTop - 24) / levels;
    const middle = (node) => (x(node.begin) + x(node.end)) / 2;
    const svg = makeSvg("svg", {viewBox: `0 0 ${width} ${leafTop + leafHeight + 6}`, role: "img",
      "aria-label": `${Math.ceil(count / KEY_BLOCK)} blocks of 256 keys, merged along a tree that the cut at key ${this.cut} does not change`});
    const draw = (node) => {
      if (!node.children) {
        const cut = Math.max(node.begin, Math.min(node.end, this.cut));
        for (const [from, to, opacity] of [[node.begin, cut, .62], [cut, node.end, .22]]) {
          if (to > from) svg.append(makeSvg("rect", {x: x(from), y: leafTop, width: x(to) - x(from), height: leafHeight, fill: "var(--accent)", opacity}));
        }
        svg.append(makeSvg("rect", {x: x(node.begin) + .75, y: leafTop, width: Math.max(0, x(node.end) - x(node.begin) - 1.5), height: leafHeight,
          fill: "none", stroke: "var(--surface)", "stroke-width": 2.5}));
        return;
      }
      for (const child of node.children) {
        const from = child.children ? y(child) : leafTop;
        svg.append(makeSvg("path", {d: `M${middle(child)} ${from} V${y(node)} H${middle(node)}`, fill: "none", stroke: "var(--field)", "stroke-width": 1.5}));
        draw(child);
      }
      svg.append(makeSvg("circle", {cx: middle(node), cy: y(node), r: 4.5, fill: "var(--page)", stroke: "var(--accent)", "stroke-width": 2}));
    };
    draw(root);
    const at = Math.max(1, Math.min(width - 1, x(this.cut)));
    svg.append(makeSvg("line", {x1: at, x2: at, y1: leafTop - 10, y2: leafTop + leafHeight + 6, stroke: "var(--ink)", "stroke-width": 2}));
    $("blocks-tree").replaceChildren(svg);
  },

  drawBits(server) {
    const reference = this.whole.map(hex);
    const line = (id, name, numbers) => {
      const texts = numbers.map(hex);
      const cells = texts.slice(0, 4).map((text, c) => make("code", {class: text === reference[c] ? null : "differs"}, text));
      const differing = texts.filter((text, c) => text !== reference[c]).length;
      const row = make("tr", {id: `bits-${id}`, "data-bits": texts.join(" ")}, make("th", {scope: "row"}, name),
        make("td", {class: "left verdict"}, id === "whole" ? "" : differing ? `${differing} of ${texts.length} differ` : "the same bits"),
        make("td", {class: "left"}, this.places(numbers[0])), ...cells.map((cell) => make("td", {class: "bits"}, cell)));
      return row;
    };
    const columns = Math.min(4, this.whole.length);
    const body = make("tbody", {}, line("whole", "All keys at once", this.whole), line("kernel", "In two parts, by blocks", this.ours),
      line("usual", "In two parts, the usual way", this.usual));
    if (server) body.append(line("server", "The server, past and new keys", server));
    $("blocks-bits").replaceChildren(make("table", {class: "list", "aria-label": "The output’s bits"},
      make("thead", {}, make("tr", {}, make("th", {scope: "col"}, "Output"), make("th", {scope: "col", class: "left"}, "Beside all at once"),
        make("th", {scope: "col", class: "left"}, "First number’s bits"),
        ...Array.from({length: columns}, (_, c) => make("th", {scope: "col"}, `Number ${c}`)))),
      body));
  },

  /** The 32 bits of a number: sign, exponent, fraction. */
  places(x) {
    const bits = bitsOf(x), wanted = bitsOf(this.whole[0]);
    const box = make("span", {class: "places", role: "img", "aria-label": `0x${hex(x)}`});
    for (let n = 31; n >= 0; --n) {
      const one = bits >>> n & 1;
      box.append(make("i", {class: [one ? "one" : "", one !== (wanted >>> n & 1) ? "other" : "", n === 30 || n === 22 ? "gap" : ""].join(" ").trim() || null}));
    }
    return box;
  },

  drawPartials(leaves) {
    $("blocks-partials").replaceChildren(listTable("The blocks’ partials", ["Block", "Keys", "Largest score", "Sum of weights"],
      leaves.map((leaf, n) => [String(n), `${leaf.begin} to ${leaf.end - 1}`, show(leaf.max, 6), show(leaf.sum, 6)])));
  },

  compare() {
    const {cut, query, key, value} = this;
    const four = (rows) => ({shape: [1, 1, rows.length, rows[0].length], floatValues: rows.flat()});
    const inTwo = cut > 0 && cut < key.length;
    const request = {query: four([query]), key: four(inTwo ? key.slice(cut) : key), value: four(inTwo ? value.slice(cut) : value)};
    if (inTwo) Object.assign(request, {pastKey: four(key.slice(0, cut)), pastValue: four(value.slice(0, cut))});
    this.line.ask([{request, ours: this.ours}], ([answer]) => {
      this.drawBits(answer);
      const differing = answer.map(hex).filter((text, c) => text !== hex(this.ours[c])).length;
      return differing ? ["bad", `The server’s bits differ in ${differing} of ${answer.length} numbers.`]
                       : ["good", "The server’s bits: the same, with the keys before the cut sent as past and the rest as new."];
    });
  },

  play(on) {
    this.playing = on;
    $("blocks-play").setAttribute("aria-pressed", String(on));
    $("blocks-play").textContent = on ? "Stop" : "Move it";
    clearInterval(this.timer);
    if (on) this.timer = setInterval(() => this.move((this.cut + 37) % (this.key.length + 1)), 200);
  },
};
