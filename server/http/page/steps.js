// Panel "Steps": editable Q, K and V, every stage as a table, a cell's sum.

const EXAMPLES = {
  "two-keys": () => ({q: [[1, 0]], k: [[0.5, 0.5], [0.3, 0.7]], v: [[1, 0], [0.5, 0.5]]}),
  identity: () => ({q: [[1, 0], [0, 1]], k: [[1, 0], [0, 1]], v: [[1, 0], [0, 1]]}),
  six: () => {
    const next = randomNumbers(6);
    const rounded = () => Math.round(next() * 20) / 10;
    const matrix = () => Array.from({length: 6}, () => Array.from({length: 4}, rounded));
    return {q: matrix(), k: matrix(), v: matrix()};
  },
};
// Tables show at most so much of a file.
const MOST_QUERIES = 16, MOST_KEYS = 48;

const steps = {
  inputs: EXAMPLES["two-keys"](),
  // Of the inputs and options that were good last: the request, and its answer.
  request: null,
  result: null,
  shown: ["weights", 0, 0],
  grids: {},

  start() {
    for (const stage of ["raw", "capped", "biased", "weights", "output"]) {
      this.grids[stage] = new Grid($(stage), (i, j) => this.explain(stage, i, j));
    }
    for (const name of ["q", "k", "v"]) this.grids[name] = new Grid($(`edit-${name}`));
    $("example").addEventListener("change", () => {
      this.inputs = EXAMPLES[$("example").value]();
      files.close();
      this.drawInputs();
      this.compute();
    });
    for (const axis of ["S", "T", "D", "V"]) {
      $(`size-${axis}`).addEventListener("change", () => this.resize());
    }
    for (const id of ["scale", "softcap", "causal", "left", "slope", "sink"]) {
      $(`opt-${id}`).addEventListener("input", () => this.compute());
    }
    $("copy-curl").addEventListener("click", () => this.copy(curlText));
    $("copy-python").addEventListener("click", () => this.copy(pythonText));
    this.line = new ServerLine("server-steps");
    this.ask = settled(() => {
      if (this.visible) this.line.ask([{request: this.request, ours: this.result.output.flat()}]);
    }, 250);
  },

  show() {
    this.drawInputs();
    this.compute();
  },
  hide() { this.line.stop(); },

  /** An optional number of a field; undefined, and an error, where it is none. */
  option(id, name, least = -Infinity, whole = false) {
    const field = $(`opt-${id}`);
    const text = field.value.trim();
    const x = Number(text);
    const good = text === "" || (Number.isFinite(x) && x >= least && (!whole || Number.isInteger(x)));
    field.setAttribute("aria-invalid", String(!good));
    if (good) return text === "" ? null : x;
    const wanted = `${whole ? "a whole number" : "a number"}${least > -Infinity ? `, ${least} or more` : ""}`;
    throw new Error(`${name}: got “${text}”, wanted ${wanted}, or nothing`);
  },

  options() {
    return {
      scale: this.option("scale", "Scale"),
      softcap: this.option("softcap", "Soft cap", 0) ?? 0,
      causal: $("opt-causal").value,
      left: this.option("left", "Window", 0, true),
      slope: this.option("slope", "ALiBi slope") ?? 0,
      sink: this.option("sink", "Sink"),
    };
  },

  resize() {
    const {q, k, v} = this.inputs;
    const fit = (m, rows, columns) => Array.from({length: rows}, (_, i) =>
      Array.from({length: columns}, (_, j) => m[i]?.[j] ?? 0));
    const S = integerIn("size-S", q.length), T = integerIn("size-T", k.length);
    const D = integerIn("size-D", q[0].length), V = integerIn("size-V", v[0].length);
    this.inputs = {q: fit(q, S, D), k: fit(k, T, D), v: fit(v, T, V)};
    this.drawInputs();
    this.compute();
  },

  fromFile() {
    const {query, key, value, row, readsHead, batch, head} = files.picked();
    const queries = Math.min(MOST_QUERIES, query.S - row);
    const keys = Math.min(MOST_KEYS, key.S);
    const rows = (heads, h, begin, count) =>
      Array.from({length: count}, (_, i) => Array.from(rowOf(heads, batch, h, begin + i)));
    this.inputs = {q: rows(query, head, row, queries), k: rows(key, readsHead, 0, keys), v: rows(value, readsHead, 0, keys)};
    this.part = keys < key.S
      ? `of keys 0 to ${keys - 1} alone, as if the other ${group(key.S - keys)} were not there`
      : "";
    this.firstQuery = row;
    this.drawInputs();
    this.compute();
  },

  drawInputs() {
    const {q, k, v} = this.inputs;
    const loaded = files.open;
    if (!loaded) { this.part = ""; this.firstQuery = 0; }
    $("size-S").value = q.length;
    $("size-T").value = k.length;
    $("size-D").value = q[0].length;
    $("size-V").value = v[0].length;
    for (const axis of ["S", "T", "D", "V"]) $(`size-${axis}`).disabled = loaded;
    this.drawMatrix("q", "Q, the queries", "query", q, this.firstQuery);
    this.drawMatrix("k", "K, the keys", "key", k, 0);
    this.drawMatrix("v", "V, the values", "value", v, 0);
  },

  drawMatrix(name, title, row, matrix, first) {
    const host = $(`edit-${name}`);
    const caption = make("h3", {}, title);
    const big = files.open || matrix[0].length > 8 || matrix.length > 12;
    if (big) {
      const box = make("div", {class: "scroll"});
      this.grids[name] = new Grid(box);
      this.grids[name].update({label: title, rows: matrix.length, columns: matrix[0].length,
        at: (i, j) => matrix[i][j], rowName: (i) => `${row} ${i + first}`, columnName: (j) => `column ${j}`});
      host.replaceChildren(caption, box);
      return;
    }
    const body = make("tbody");
    matrix.forEach((numbers, i) => {
      const line = make("tr", {}, make("th", {scope: "row"}, `${row} ${i}`));
      numbers.forEach((x, j) => {
        const input = make("input", {value: String(x), inputmode: "decimal", "aria-label": `${row} ${i}, column ${j}`,
                                     "data-i": i, "data-j": j, autocomplete: "off"});
        input.addEventListener("input", () => this.edit(name, row, input));
        line.append(make("td", {}, input));
      });
      body.append(line);
    });
    host.replaceChildren(caption, make("div", {class: "scroll"}, make("table", {class: "edit", "aria-label": title}, body)));
  },

  edit(name, row, input) {
    const {i, j} = input.dataset;
    const x = input.value.trim() === "" ? NaN : Number(input.value);
    const good = Number.isFinite(x) && Number.isFinite(fround(x));
    input.setAttribute("aria-invalid", String(!good));
    setError($("edit-error"), good ? "" : `${row} ${i}, column ${j}: got “${input.value}”, wanted a number that FLOAT32 holds`);
    if (!good) return;
    this.inputs[name][i][j] = x;
    this.compute();
  },

  compute() {
    let options;
    try {
      options = this.options();
    } catch (error) {
      setError($("edit-error"), error.message);
      return;
    }
    if (!document.querySelector('#edit-q [aria-invalid="true"], #edit-k [aria-invalid="true"], #edit-v [aria-invalid="true"]')) {
      setError($("edit-error"), "");
    }
    const {q, k, v} = this.inputs;
    const r = this.result = attend(q, k, v, options);
    this.used = options;
    this.request = requestJson(q, k, v, options);
    const masked = (i, j) => r.biased[i][j] === -Infinity;
    const sink = options.sink != null;
    const queryName = (i) => `query ${i + this.firstQuery}`;
    const stage = (name, label, more) => this.grids[name].update({
      label, rows: r.S, columns: r.T, at: (i, j) => r[name][i][j], rowName: queryName, ...more});
    const most = Math.max(...r.raw.flat().map(Math.abs).filter(Number.isFinite));
    // As wide as the widest table, with numbers or compact.
    const rem = (columns) => (columns > MOST_NUMBERS ? 4.5 + 1.25 * columns : 3.75 + 4.6 * columns);
    const least = Math.max(rem(r.T + (sink ? 1 : 0)), rem(v[0].length));
    document.querySelector(".tables").style.setProperty("--least", `${least}rem`);
    stage("raw", "Raw scores", {shadeMost: most});
    stage("capped", "Capped scores", {shadeMost: most});
    stage("biased", "Biased scores", {shadeMost: Math.max(most, ...r.biased.flat().map(Math.abs).filter(Number.isFinite)), isMasked: masked});
    stage("weights", "Weights", {
      columns: r.T + (sink ? 1 : 0), shadeMost: 1, isMasked: (i, j) => j < r.T && masked(i, j),
      at: (i, j) => (j < r.T ? r.weights[i][j] : r.sinkWeights[i]),
      columnName: (j) => (j < r.T ? `key ${j}` : "sink"), sinkColumn: sink ? r.T : -1,
    });
    this.grids.output.update({label: "Output", rows: r.S, columns: v[0].length, at: (i, c) => r.output[i][c],
      rowName: queryName, columnName: (c) => `column ${c}`});
    const bias = options.causal !== "none" || options.left != null || options.slope;
    $("note-raw").textContent = `Q·Kᵀ × ${plain(r.scale)}${options.scale == null ? " = 1 / √" + r.D : ""}`;
    $("note-capped").textContent = options.softcap ? `${plain(options.softcap)} · tanh(raw / ${plain(options.softcap)})` : "no soft cap: as raw";
    $("note-biased").textContent = bias ? "masked keys are −∞" : "no mask: as capped";
    $("note-weights").textContent = this.part || "softmax of each row";
    $("note-output").textContent = "the values, by those weights";
    this.explain(...this.shown);
    $("request-text").textContent = curlText(this.request);
    $("copied").textContent = "";
    this.ask();
  },

  explain(stage, i, j) {
    const r = this.result, {q, k, v} = this.inputs;
    const columns = {output: v[0].length, weights: r.T + (this.used.sink != null ? 1 : 0)}[stage] ?? r.T;
    [i, j] = [Math.min(i, r.S - 1), Math.min(j, columns - 1)];
    this.shown = [stage, i, j];
    for (const old of document.querySelectorAll("#panel-steps td.now")) old.classList.remove("now");
    this.grids[stage].find(i, j)?.classList.add("now");
    const query = i + this.firstQuery;
    const name = stage === "output" ? `Output of query ${query}, column ${j}`
      : `${{raw: "Raw score", capped: "Capped score", biased: "Biased score", weights: "Weight"}[stage]} of query ${query}, ${j < r.T ? `key ${j}` : "the sink"}`;
    $("worked-name").textContent = name;
    $("worked").textContent = this[stage](r, q, k, v, i, j).join("\n");
  },

  raw: (r, q, k, v, i, j) => [
    `scale × the dot product of query ${i} and key ${j}`,
    `= ${plain(r.scale)} × (${sumText(r.D, (d) => `${factor(q[i][d])}·${factor(k[j][d])}`)})`,
    `= ${plain(r.scale)} × ${show(r.dots[i][j], 6)}`,
    `= ${show(r.raw[i][j], 6)}`,
  ],
  capped: (r, q, k, v, i, j) => (r.softcap ? [
    `cap × tanh(raw / cap)`,
    `= ${plain(r.softcap)} × tanh(${show(r.raw[i][j], 6)} / ${plain(r.softcap)})`,
    `= ${show(r.capped[i][j], 6)}`,
  ] : ["There is no soft cap: the raw score,", `= ${show(r.capped[i][j], 6)}`]),
  biased(r, q, k, v, i, j) {
    const why = hiddenBy(this.used, i, j, r.S, r.T);
    if (why) return ["−∞, because", why];
    if (!r.slope) return ["Not masked: the capped score,", `= ${show(r.biased[i][j], 6)}`];
    return ["capped − slope × |position − key|",
      `= ${show(r.capped[i][j], 6)} − ${plain(r.slope)} × |${i + r.offset} − ${j}|`,
      `= ${show(r.biased[i][j], 6)}`];
  },
  weights(r, q, k, v, i, j) {
    const sink = this.used.sink;
    const seen = r.biased[i].map((s, n) => n).filter((n) => r.biased[i][n] !== -Infinity);
    const score = j < r.T ? r.biased[i][j] : sink;
    if (score === -Infinity) {
      return seen.length || sink != null ? ["0: the key is masked"] : ["0: every key is masked, and so the row is 0"];
    }
    const terms = seen.map((n) => r.biased[i][n]).concat(sink == null ? [] : [sink]);
    // Large scores would overflow; softmax is the same for scores less their maximum.
    const shift = Math.max(...terms) > 50 ? r.maxima[i] : 0;
    const exps = terms.map((s) => Math.exp(s - shift));
    const own = Math.exp(score - shift), sum = exps.reduce((a, b) => a + b, 0);
    const minus = shift ? ` − ${plain(shift)}` : "";
    return [
      `exp(score) / the row’s sum of them${sink == null ? "" : ", with the sink’s"}${shift ? ", less the largest score" : ""}`,
      `= exp(${show(score, 6)}${minus}) / (${sumText(terms.length, (n) => `exp(${show(terms[n], 6)}${minus})`, 6)})`,
      `= ${show(own, 6)} / ${show(sum, 6)}`,
      `= ${show(own / sum, 6)}`,
    ];
  },
  output(r, q, k, v, i, c) {
    const seen = r.weights[i].map((_, j) => j).filter((j) => r.biased[i][j] !== -Infinity);
    if (!seen.length) return ["0: every key is masked"];
    return ["the sum over keys of weight × value",
      `= ${sumText(seen.length, (n) => `${show(r.weights[i][seen[n]], 6)}·${factor(v[seen[n]][c])}`)}`,
      `= ${show(r.output[i][c], 6)}`];
  },

  async copy(textOf) {
    const text = textOf(this.request);
    $("request-text").textContent = text;
    try {
      await navigator.clipboard.writeText(text);
      $("copied").textContent = "Copied.";
    } catch {
      getSelection().selectAllChildren($("request-text"));
      $("copied").textContent = "Selected: press Ctrl+C.";
    }
  },
};
