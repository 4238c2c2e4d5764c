// Panel "Live": /metrics, once per second while somebody looks.

const POLL_MS = 1000;
const MOST_POINTS = 60;
const PHASES = ["wait", "receive", "decode", "queue", "compute", "encode", "send"];
const partColour = (n) => `oklch(66% .12 ${(262 + 137.5 * n) % 360})`;

/** Series of Prometheus' text: a list of {name, labels, value}. */
function parseMetrics(text) {
  const series = [];
  for (const line of text.split("\n")) {
    const match = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)/.exec(line);
    if (!match) continue;
    const labels = {};
    for (const [, key, value] of (match[2] ?? "").matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g)) {
      labels[key] = value.replace(/\\(.)/g, (_, c) => (c === "n" ? "\n" : c));
    }
    series.push({name: match[1], labels, value: Number(match[3].replace("Inf", "Infinity"))});
  }
  return series;
}

/** One reading, with sums by name and labels. */
class Reading {
  constructor(text, time) {
    this.time = time;
    this.families = new Map();
    for (const entry of parseMetrics(text)) {
      if (!this.families.has(entry.name)) this.families.set(entry.name, []);
      this.families.get(entry.name).push(entry);
    }
  }
  list(name) { return this.families.get(name) ?? []; }
  /** The sum of the series that have these labels; undefined if there are none. */
  sum(name, labels = {}) {
    const found = this.list(name).filter((entry) => Object.entries(labels).every(([k, v]) => entry.labels[k] === v));
    return found.length ? found.reduce((a, entry) => a + entry.value, 0) : undefined;
  }
  /** Sums by one label's value. */
  by(name, label) {
    const sums = new Map();
    for (const {labels, value} of this.list(name)) sums.set(labels[label], (sums.get(labels[label]) ?? 0) + value);
    return sums;
  }
}

const live = {
  readings: [],

  start() {
    document.addEventListener("visibilitychange", () => this.tick());
  },
  show() { this.tick(); },
  hide() { clearTimeout(this.timer); },

  get looking() { return this.visible && document.visibilityState === "visible"; },

  async tick() {
    clearTimeout(this.timer);
    if (!this.looking || this.busy) return;
    this.busy = true;
    try {
      const response = await fetch("/metrics", {cache: "no-store"});
      if (!response.ok) throw new Error(`/metrics answered ${response.status}`);
      this.readings.push(new Reading(await response.text(), performance.now() / 1000));
      if (this.readings.length > MOST_POINTS) this.readings.shift();
      this.draw();
    } catch (error) {
      $("live-state").textContent = `The server cannot be read: ${error.message}`;
      this.readings = [];
    }
    this.busy = false;
    if (this.looking) this.timer = setTimeout(() => this.tick(), POLL_MS);
  },

  /** What a counter rose by per second, from each reading to the next. */
  rates(name, labels) {
    return this.readings.slice(1).map((now, n) =>
      Math.max(0, (now.sum(name, labels) - this.readings[n].sum(name, labels)) / (now.time - this.readings[n].time)));
  },

  draw() {
    const now = this.readings.at(-1);
    const build = now.list("attention_build_info")[0]?.labels ?? {};
    const threads = now.sum("attention_compute_threads") ?? 0;
    const since = now.sum("process_start_time_seconds");
    const up = since ? Date.now() / 1000 - since : NaN;
    const draining = now.sum("attention_draining") === 1;
    $("live-state").textContent = `Version ${build.version ?? "unknown"}, ${threads} threads, ${build.simd_target ?? ""}, gRPC ${build.grpc_version ?? ""}` +
      (Number.isFinite(up) ? `, up for ${this.age(up)}` : "") + (draining ? ". It is shutting down." : ".");
    this.drawTiles(now, threads);
    this.drawPhases(now);
    this.drawMemory(now);
    const counts = (map) => [...map].filter(([, n]) => n > 0).sort((a, b) => b[1] - a[1]);
    const fill = (id, label, head, list, none) => $(id).replaceChildren(list.length ? listTable(label, head, list) : make("p", {class: "fine"}, none));
    const failed = (method) => now.list("attention_calls_total").reduce((sum, {labels, value}) =>
      sum + (labels.method === method && labels.code !== "OK" ? value : 0), 0);
    fill("live-calls", "Calls", ["Method", "Calls", "Failed"],
      counts(now.by("attention_calls_total", "method")).map(([name, n]) => [name, group(n), group(failed(name))]), "None yet.");
    fill("live-refusals", "Refusals", ["Reason", "Calls"],
      counts(now.by("attention_refusals_total", "reason")).map(([name, n]) => [name, group(n)]), "None.");
    this.drawTenants(now);
  },

  age(seconds) {
    const units = [[86400, "d"], [3600, "h"], [60, "min"]];
    for (const [size, name] of units) if (seconds >= size) return `${Math.floor(seconds / size)} ${name}`;
    return `${Math.floor(seconds)} s`;
  },

  drawTiles(now, threads) {
    const number = (x, digits = 1) => (Number.isFinite(x) ? (x >= 100 ? group(x) : x.toFixed(digits)) : "…");
    const bytes = this.rates("attention_request_bytes_total").map((x, n) => x + this.rates("attention_response_bytes_total")[n]);
    const perThread = now.sum("attention_measured_bytes_per_second") ?? 0;
    const busy = this.rates("process_cpu_seconds_total");
    const refusals = this.rates("attention_refusals_total");
    const calls = this.rates("attention_calls_total");
    this.tiles([
      ["Calls", `${number(calls.at(-1))} / s`, `${group(now.sum("attention_calls_total") ?? 0)} in all`, calls],
      ["Running and waiting", `${group(now.sum("attention_running_calls") ?? 0)} + ${group(now.sum("attention_waiting_calls") ?? 0)}`,
        `${number(now.sum("attention_queued_work_seconds"), 2)} s of work`,
        this.readings.map((r) => (r.sum("attention_running_calls") ?? 0) + (r.sum("attention_waiting_calls") ?? 0))],
      ["Refused", `${number(refusals.at(-1))} / s`, `${group(now.sum("attention_refusals_total") ?? 0)} in all`, refusals],
      ["Tensors moved", `${number(bytes.at(-1) / 1e9, 3)} GB/s`, `of ${number(perThread * threads / 1e9)} GB/s that ${threads} threads can move, as the server measures`, bytes,
        bytes.at(-1) / (perThread * threads)],
      ["Processor", `${number(busy.at(-1), 2)} cores`, `${showBytes(now.sum("process_resident_memory_bytes") ?? 0)} resident`, busy],
    ]);
  },

  tiles(list) {
    $("live-tiles").replaceChildren(...list.map(([name, figure, note, points, share]) => {
      const tile = make("div", {class: "tile card"}, make("h3", {}, name), make("p", {class: "figure"}, figure), make("p", {class: "note"}, note), this.spark(points));
      tile.dataset.tile = name;
      if (share !== undefined) {
        const meter = make("i");
        meter.style.width = `${Math.min(100, 100 * share || 0)}%`;
        tile.querySelector(".figure").after(make("div", {class: "meter", "aria-hidden": "true"}, meter));
      }
      return tile;
    }));
  },

  spark(points) {
    points = points.map((x) => (Number.isFinite(x) ? x : 0));
    const width = 160, height = 36, most = Math.max(...points, 1e-9);
    const svg = makeSvg("svg", {viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", "aria-hidden": "true"});
    svg.append(makeSvg("line", {x1: 0, x2: width, y1: height - 1, y2: height - 1, stroke: "var(--line)"}));
    if (points.length > 1) {
      const at = (n) => `${(width - (points.length - 1 - n) * width / (MOST_POINTS - 1)).toFixed(1)} ${(height - 2 - (height - 5) * points[n] / most).toFixed(1)}`;
      svg.append(makeSvg("polyline", {points: points.map((_, n) => at(n)).join(" "), fill: "none", stroke: "var(--accent)", "stroke-width": 1.5, "vector-effect": "non-scaling-stroke"}));
    }
    return svg;
  },

  /** A bar of parts [name, amount], and their names. */
  stack(host, parts, text) {
    const total = parts.reduce((sum, [, amount]) => sum + amount, 0);
    const bar = make("div", {class: "stack", "aria-hidden": "true"});
    const key = make("ul", {class: "key"});
    parts.forEach(([name, amount], n) => {
      const colour = partColour(n), part = make("i"), dot = make("i");
      part.style.background = dot.style.background = colour;
      part.style.flex = `${total ? amount / total : 0} 0 0`;
      bar.append(part);
      key.append(make("li", {"data-part": name, "data-amount": amount}, dot, name, make("span", {}, text(amount))));
    });
    host.replaceChildren(bar, key);
  },

  drawPhases(now) {
    // Over what has been seen here; else since the start.
    const first = this.readings[0], name = "attention_call_phase_duration_seconds";
    const rise = (suffix, labels, from) => (now.sum(name + suffix, labels) ?? 0) - (from?.sum(name + suffix, labels) ?? 0);
    const calls = (from) => Math.max(...PHASES.map((phase) => rise("_count", {phase}, from)));
    const from = calls(first) > 0 ? first : null;
    const n = calls(from);
    const parts = PHASES.map((phase) => [phase, n ? rise("_sum", {phase}, from) / n : 0]);
    const total = parts.reduce((sum, [, s]) => sum + s, 0);
    const time = (s) => (s >= 1 ? `${s.toFixed(2)} s` : s >= 1e-3 ? `${(s * 1e3).toFixed(2)} ms` : `${(s * 1e6).toFixed(0)} µs`);
    $("live-phases-note").textContent = n ? `mean of ${group(n)} calls ${from ? "while you look" : "since the start"}: ${time(total)}` : "no call yet";
    this.stack($("live-phases"), parts, time);
    $("live-phases").append(this.history(time));
  },

  /** A column for each second: the mean call's phases, one on the other. */
  history(time) {
    const width = 600, height = 96, step = width / MOST_POINTS, name = "attention_call_phase_duration_seconds";
    const columns = this.readings.slice(1).map((now, n) => {
      const before = this.readings[n];
      const rise = (suffix, phase) => (now.sum(name + suffix, {phase}) ?? 0) - (before.sum(name + suffix, {phase}) ?? 0);
      const calls = Math.max(...PHASES.map((phase) => rise("_count", phase)));
      return PHASES.map((phase) => (calls > 0 ? Math.max(0, rise("_sum", phase)) / calls : 0));
    });
    const totals = columns.map((column) => column.reduce((a, b) => a + b, 0));
    const most = Math.max(...totals, 0);
    const svg = makeSvg("svg", {viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", class: "history", role: "img",
      "aria-label": `The mean call of each of the last ${columns.length} seconds, by phase; the longest took ${time(most)}`});
    svg.append(makeSvg("line", {x1: 0, x2: width, y1: height - .5, y2: height - .5, stroke: "var(--line)"}));
    columns.forEach((column, n) => {
      let y = height;
      column.forEach((seconds, phase) => {
        const tall = most > 0 ? seconds / most * (height - 2) : 0;
        y -= tall;
        if (tall > 0) svg.append(makeSvg("rect", {x: width - (columns.length - n) * step, y, width: step - 1.5, height: tall, fill: partColour(phase), "data-phase": PHASES[phase]}));
      });
    });
    return make("div", {class: "past"}, svg, make("p", {class: "note"}, most > 0
      ? `Each second of the last minute; the longest mean ${time(most)}.` : "Each second of the last minute."));
  },

  drawMemory(now) {
    const kinds = [...now.by("attention_memory_bytes", "kind")];
    const limit = now.sum("attention_memory_limit_bytes");
    const held = kinds.reduce((sum, [kind, n]) => sum + (kind === "pooled" ? 0 : n), 0);
    $("live-memory-note").textContent = `${showBytes(held)} of ${showBytes(limit ?? 0)}, beside what is pooled`;
    this.stack($("live-memory"), kinds, showBytes);
  },

  drawTenants(now) {
    const sessions = now.by("attention_tenant_sessions", "tenant"), bytes = now.by("attention_tenant_session_bytes", "tenant");
    const calls = now.by("attention_tenant_calls_total", "tenant");
    const all = ["All", group(now.sum("attention_sessions") ?? 0),
      `${showBytes(now.sum("attention_session_bytes") ?? 0)} of ${showBytes(now.sum("attention_session_limit_bytes") ?? 0)}`,
      group(now.sum("attention_calls_total") ?? 0)];
    const table = listTable("Sessions by tenant", ["Tenant", "Sessions", "Keys and values", "Calls"],
      [...[...sessions].map(([tenant, n]) => [tenant, group(n), showBytes(bytes.get(tenant) ?? 0), group(calls.get(tenant) ?? 0)]), all]);
    $("live-tenants").replaceChildren(table, make("p", {class: "fine"},
      `${sessions.size ? "" : "Tenants are listed where the server has a file of tokens. "}The metrics count a page that forks share once in “All”. They do not say how many pages that is.`));
  },
};
