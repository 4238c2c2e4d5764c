// Panel "Masks": each rule as a picture of weights, all scores being 0.

const masks = {
  grids: {},

  start() {
    for (const id of ["S", "T", "left", "chunk", "valid", "slope", "sink"]) {
      $(`mask-${id}`).addEventListener("input", () => this.draw());
    }
    this.line = new ServerLine("server-masks");
    this.ask = settled(() => { if (this.visible) this.line.ask(this.questions()); }, 300);
    for (const id of ["top_left", "bottom_right", "window", "chunk", "padding", "alibi", "sink", "row"]) {
      const host = make("div", {class: "scroll", id: `card-${id}`});
      const card = make("div", {class: "card"}, make("h3"), make("p"), host);
      $("mask-cards").append(card);
      this.grids[id] = new Grid(host, (i, j) => this.explain(id, i, j));
    }
  },
  show() { this.draw(); },
  hide() { this.line.stop(); },

  rules() {
    const S = this.S = integerIn("mask-S", 5), T = this.T = integerIn("mask-T", 8);
    const left = integerIn("mask-left", 2), chunk = integerIn("mask-chunk", 4);
    const valid = Math.min(T, integerIn("mask-valid", T));
    const slope = numberIn("mask-slope", 0), sink = numberIn("mask-sink", 0);
    const row = Math.min(2, S - 1);
    const causal = "bottom_right";
    return {
      top_left: ["Causal, upper left", "Query i sees keys 0 to i, as PyTorch’s is_causal.", {causal: "top_left"}],
      bottom_right: ["Causal, lower right", "The last query sees the last key, as in a decode step.", {causal}],
      window: ["Window", `Causal, and at most ${left} keys before its own.`, {causal, left}],
      chunk: ["Chunks", `Causal, and only keys of its own chunk of ${chunk}.`, {causal, chunk}],
      padding: ["Padding", `Keys from ${valid} on are padding, for every query.`, {valid}],
      alibi: ["ALiBi", `Causal, less ${plain(slope)} for each key of distance.`, {causal, slope}],
      sink: ["Sink", `Causal, and a logit of ${plain(sink)} that takes weight and has no value.`, {causal, sink}],
      row: ["A fully masked row", `A mask hides all keys from query ${row}: weights and output are 0, not NaN.`, {hidden: [row]}],
    };
  },

  draw() {
    this.drawn = this.rules();
    $("mask-cards").style.setProperty("--least", this.T > 8 ? "24rem" : "15.5rem");
    for (const [id, [title, text, options]] of Object.entries(this.drawn)) {
      const {S, T} = this;
      const zeros = (n) => Array.from({length: n}, () => [0]);
      const identity = Array.from({length: T}, (_, j) => Array.from({length: T}, (_, c) => +(j === c)));
      const r = attend(zeros(S), zeros(T), identity, options);
      this.drawn[id].push(r);
      const sink = options.sink != null;
      const card = $(`card-${id}`).parentElement;
      card.querySelector("h3").textContent = title;
      card.querySelector("p").textContent = text;
      this.grids[id].update({
        label: `${title}: weights`, rows: S, columns: T + (sink ? 1 : 0), compact: true,
        at: (i, j) => (j < T ? r.weights[i][j] : r.sinkWeights[i]),
        isMasked: (i, j) => j < T && r.biased[i][j] === -Infinity,
        columnName: (j) => (j < T ? `key ${j}` : "sink"), sinkColumn: sink ? T : -1, rowName: (i) => `query ${i}`,
      });
    }
    $("mask-worked").textContent = "Point at a cell to see why it is as it is.";
    this.ask();
  },

  explain(id, i, j) {
    const [title, , options, r] = this.drawn[id];
    const {S, T} = this;
    let text;
    if (j === T) {
      text = `The sink has weight ${show(r.sinkWeights[i], 6)} in row ${i}: exp(${plain(options.sink)}) of the row’s sum.`;
    } else {
      const why = hiddenBy(options, i, j, S, T);
      text = why ? `Query ${i} does not see key ${j}: ${why}.`
                 : `Query ${i} sees key ${j} with weight ${show(r.weights[i][j], 6)}.`;
    }
    $("mask-worked").textContent = `${title}. ${text}`;
  },

  questions() {
    const {S, T} = this;
    const zeros = (n) => Array.from({length: n}, () => [0]);
    const identity = Array.from({length: T}, (_, j) => Array.from({length: T}, (_, c) => +(j === c)));
    // The values are the identity: the output is the weights.
    return Object.values(this.drawn).map(([name, , options, r]) => ({
      name, ours: r.output.flat(),
      request: {query: tensorJson(zeros(S)), key: tensorJson(zeros(T)), value: tensorJson(identity), ...optionsJson(options, S, T)},
    }));
  },
};
