// Elements, numbers as text, and tables of shaded cells. Text that comes from a
// file or a server becomes text nodes only.

const $ = (id) => document.getElementById(id);

function make(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value != null) element.setAttribute(key, value);
  }
  element.append(...children.filter((child) => child != null));
  return element;
}

function makeSvg(name, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) {
    element.setAttribute(key, value);
  }
  element.append(...children);
  return element;
}

/** A number for people: a real minus sign, no trailing noise. */
function show(x, digits = 4) {
  if (Number.isNaN(x)) return "NaN";
  if (Math.abs(x) === Infinity) return x > 0 ? "∞" : "−∞";
  const size = Math.abs(x);
  const text = size !== 0 && (size >= 1e6 || size < 10 ** -digits / 2)
    ? x.toExponential(2) : x.toFixed(digits);
  return /^-0\.?0*$/.test(text) ? text.slice(1) : text.replace("-", "−");
}

/** As short as can be: 0.5, 3. */
const plain = (x) => (Number.isFinite(x) ? String(+x.toPrecision(6)).replace("-", "−") : show(x));

/** A number with a sign that can follow another: (−0.5). */
const factor = (x) => (x < 0 ? `(${plain(x)})` : plain(x));

/** "a + b + ..." of n terms, the middle left out where they are many. */
function sumText(n, term, most = 8) {
  if (n <= most) return Array.from({length: n}, (_, i) => term(i)).join(" + ");
  const head = Array.from({length: most - 3}, (_, i) => term(i));
  return [...head, `… ${n - most + 1} more …`, term(n - 2), term(n - 1)].join(" + ");
}

const group = (n) => Math.round(n).toString().replace(/\B(?=(\d{3})+$)/g, "\u202f");

function showBytes(bytes) {
  const units = ["bytes", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (bytes >= 1024 && unit < units.length - 1) { bytes /= 1024; ++unit; }
  return `${unit && bytes < 100 ? +bytes.toFixed(2) : group(bytes)} ${units[unit]}`;
}

function setError(element, text) {
  element.textContent = text;
  element.hidden = !text;
}

/** Calls f once nothing has called for `ms`. */
function settled(f, ms) {
  let timer;
  return () => {
    clearTimeout(timer);
    timer = setTimeout(f, ms);
  };
}

// A table of more columns shows no numbers, only shades.
const MOST_NUMBERS = 9;

/**
 * A table of numbers, shaded by size. Arrow keys move between cells; `onCell`
 * hears which cell is pointed at or has the focus.
 */
class Grid {
  constructor(host, onCell = () => {}) {
    this.host = host;
    this.onCell = onCell;
    this.cell = [0, 0];
    host.addEventListener("pointerover", (event) => this.tell(event.target));
    host.addEventListener("focusin", (event) => this.tell(event.target));
    host.addEventListener("keydown", (event) => this.move(event));
  }

  /**
   * options: label, rows, columns, at(i, j), and what has defaults: rowName,
   * columnName, digits, shadeMost (the number that is darkest), isMasked(i, j),
   * sinkColumn, compact.
   */
  update(options) {
    const {label, rows, columns, at, isMasked = () => false, sinkColumn = -1} = options;
    const compact = options.compact ?? columns > MOST_NUMBERS;
    const rowName = options.rowName ?? ((i) => `query ${i}`);
    const columnName = options.columnName ?? ((j) => `key ${j}`);
    let most = options.shadeMost ?? 0;
    if (!options.shadeMost) {
      for (let i = 0; i < rows; ++i) {
        for (let j = 0; j < columns; ++j) {
          const size = Math.abs(at(i, j));
          if (size < Infinity && size > most) most = size;
        }
      }
    }
    this.cell = [Math.min(this.cell[0], rows - 1), Math.min(this.cell[1], columns - 1)];
    const hadFocus = this.host.contains(document.activeElement);
    const head = make("tr", {}, make("td"));
    for (let j = 0; j < columns; ++j) {
      const short = j === sinkColumn ? "sink" : j % 4 ? "" : String(j);
      head.append(make("th", {scope: "col", class: j === sinkColumn ? "sink" : null},
        ...(compact ? [make("span", {"aria-hidden": "true"}, short), make("span", {class: "unseen"}, columnName(j))] : [columnName(j)])));
    }
    const body = make("tbody");
    for (let i = 0; i < rows; ++i) {
      const row = make("tr", {}, make("th", {scope: "row"}, rowName(i)));
      for (let j = 0; j < columns; ++j) {
        const x = at(i, j);
        const masked = isMasked(i, j);
        const text = show(x, options.digits ?? 4);
        const cell = make("td", {
          "data-i": i, "data-j": j, "data-value": String(x), tabindex: -1,
          class: [masked && "hidden-key", x < 0 && x > -Infinity && "negative",
                  j === sinkColumn && "sink"].filter(Boolean).join(" ") || null,
          "aria-label": compact ? `${rowName(i)}, ${columnName(j)}: ${masked ? "masked, " : ""}${text}` : null,
        }, compact ? "" : text);
        if (!masked && most > 0 && Math.abs(x) < Infinity) {
          cell.style.setProperty("--amount", Math.abs(x) / most);
        }
        row.append(cell);
      }
      body.append(row);
    }
    const table = make("table", {class: `matrix${compact ? " compact" : ""}`, role: "grid", "aria-label": label},
      make("thead", {}, head), body);
    this.host.replaceChildren(table);
    const current = this.find(...this.cell);
    if (current) {
      current.tabIndex = 0;
      if (hadFocus) current.focus({preventScroll: true});
    }
  }

  find(i, j) { return this.host.querySelector(`td[data-i="${i}"][data-j="${j}"]`); }

  tell(target) {
    const cell = target.closest?.("td[data-i]");
    if (!cell) return;
    const old = this.find(...this.cell);
    if (old) old.tabIndex = -1;
    cell.tabIndex = 0;
    this.cell = [+cell.dataset.i, +cell.dataset.j];
    this.onCell(...this.cell, cell);
  }

  move(event) {
    const step = {ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1],
                  Home: [0, -1e9], End: [0, 1e9]}[event.key];
    if (!step || !event.target.closest("td[data-i]")) return;
    const row = event.target.closest("tr");
    const last = row.querySelectorAll("td[data-i]").length - 1;
    const j = Math.max(0, Math.min(last, this.cell[1] + step[1]));
    const next = this.find(this.cell[0] + step[0], j);
    event.preventDefault();
    next?.focus();
  }
}

/** A plain table: rows of texts, the first of which names the row. */
function listTable(label, head, rows) {
  return make("table", {class: "list", "aria-label": label},
    make("thead", {}, make("tr", {}, ...head.map((text) => make("th", {scope: "col"}, text)))),
    make("tbody", {}, ...rows.map(([name, ...cells]) =>
      make("tr", {}, make("th", {scope: "row"}, name), ...cells.map((cell) => make("td", {}, cell))))));
}

/** What a number field says, in [min, max]; `otherwise` where it says nothing of use. */
function numberIn(id, otherwise) {
  const field = $(id);
  const x = field.value.trim() === "" ? NaN : Number(field.value);
  const good = Number.isFinite(x) && (field.min === "" || x >= +field.min) && (field.max === "" || x <= +field.max);
  field.setAttribute("aria-invalid", String(!good));
  return good ? x : otherwise;
}
const integerIn = (id, otherwise) => Math.floor(numberIn(id, otherwise));
