// Which panel is shown, the theme, and files.

const panels = {steps, masks, heads, rows, blocks, live};
const OF_FILES = [steps, rows, blocks];

/** Tensors from a file, and which of them are query, key and value. */
const files = {
  tensors: new Map(),
  // Whether the picked tensors fit together, so that panels show them.
  open: false,

  start() {
    $("file").addEventListener("change", () => {
      this.load([...$("file").files]);
      $("file").value = "";
    });
    $("close-file").addEventListener("click", () => {
      this.close();
      this.showExamples();
    });
    for (const id of ["query", "key", "value", "axes", "batch", "head", "row"]) {
      $(`pick-${id}`).addEventListener("change", () => this.apply());
    }
    const drop = $("drop");
    const carriesFile = (event) => event.dataTransfer?.types.includes("Files");
    window.addEventListener("dragover", (event) => {
      if (!carriesFile(event)) return;
      event.preventDefault();
      drop.hidden = false;
    });
    window.addEventListener("dragleave", (event) => { if (!event.relatedTarget) drop.hidden = true; });
    window.addEventListener("drop", (event) => {
      if (!carriesFile(event)) return;
      event.preventDefault();
      drop.hidden = true;
      this.load([...event.dataTransfer.files]);
    });
  },

  async load(list) {
    try {
      const found = new Map();
      for (const file of list) {
        for (const [name, tensor] of await readTensors(file)) {
          const {shape} = tensor;
          if (shape.length >= 2 && shape.length <= 4 && countOf(shape) > 0) found.set(name, tensor);
        }
      }
      if (!found.size) throw new Error(`${list.map((file) => file.name).join(", ")}: there is no tensor of two to four axes to show`);
      // Several .npy files may come one after another.
      const together = list.every((file) => /\.npy$/i.test(file.name)) && this.tensors.size ? new Map([...this.tensors, ...found]) : found;
      this.tensors = together;
      this.names = list.map((file) => file.name).join(", ");
      this.fillPickers();
      this.apply();
    } catch (error) {
      setError($("file-error"), error.message);
    }
  },

  fillPickers() {
    const names = [...this.tensors.keys()];
    const best = {query: /^q|query|q_proj/i, key: /^k|key|k_proj/i, value: /^v|value|v_proj/i};
    for (const [role, pattern] of Object.entries(best)) {
      const select = $(`pick-${role}`);
      select.replaceChildren(...names.map((name) =>
        make("option", {value: name}, `${name} (${this.tensors.get(name).shape.join(", ")})`)));
      select.value = names.find((name) => pattern.test(name)) ?? names[0];
    }
    for (const id of ["batch", "head", "row"]) $(`pick-${id}`).value = 0;
    $("source-name").textContent = `${this.names}: ${names.length} ${names.length === 1 ? "tensor" : "tensors"}`;
    this.showPickers();
  },

  /** Where the panel in front shows what is picked. */
  showPickers() {
    $("source").hidden = !(this.tensors.size && OF_FILES.includes(router.current));
  },

  /** The picked tensors by heads, and the picked row. Throws an Error where they do not fit. */
  picked() {
    const tokensFirst = $("pick-axes").value === "tokens";
    const get = (role) => headsOf(this.tensors.get($(`pick-${role}`).value), tokensFirst);
    const query = get("query"), key = get("key"), value = get("value");
    const wanted = (what, got, want) => { throw new Error(`${what}: got ${got}, wanted ${want}`); };
    if (key.D !== query.D) wanted("key", `head size ${key.D}`, `the query’s, ${query.D}`);
    if (query.H % key.H) wanted("key", `${key.H} heads`, `a divisor of the query’s ${query.H}`);
    if (value.H !== key.H) wanted("value", `${value.H} heads`, `the key’s, ${key.H}`);
    if (value.S !== key.S) wanted("value", `${value.S} rows`, `the key’s, ${key.S}`);
    if (key.B !== query.B || value.B !== query.B) wanted("key and value", `batches of ${key.B} and ${value.B}`, `the query’s, ${query.B}`);
    const limits = {batch: query.B, head: query.H, row: query.S};
    const at = {};
    for (const [id, count] of Object.entries(limits)) {
      $(`pick-${id}`).max = count - 1;
      at[id] = Math.min(integerIn(`pick-${id}`, 0), count - 1);
    }
    return {query, key, value, ...at, readsHead: Math.floor(at.head / (query.H / key.H))};
  },

  apply() {
    try {
      this.picked();
    } catch (error) {
      setError($("file-error"), error.message);
      if (this.open) {
        this.open = false;
        this.showExamples();
      }
      return;
    }
    this.open = true;
    setError($("file-error"), "");
    steps.fromFile();
    router.current.fromFile?.();
  },

  showExamples() {
    steps.inputs = EXAMPLES[$("example").value]();
    router.current.show();
  },

  close() {
    this.open = false;
    this.tensors = new Map();
    this.showPickers();
    setError($("file-error"), "");
  },
};

const router = {
  current: null,

  start() {
    window.addEventListener("hashchange", () => this.go());
    this.go();
  },

  go() {
    const name = location.hash.slice(1);
    // "#main", of the link that skips, leaves the panel as it is.
    if (this.current && !(name in panels)) return;
    const next = panels[name] ?? steps;
    if (this.current) {
      this.current.visible = false;
      this.current.hide();
    }
    this.current = next;
    for (const [id, panel] of Object.entries(panels)) {
      $(`panel-${id}`).hidden = panel !== next;
      const link = document.querySelector(`nav a[href="#${id}"]`);
      if (panel === next) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
    }
    files.showPickers();
    next.visible = true;
    next.show();
  },
};

const theme = {
  chosen: null,

  start() {
    const dark = matchMedia("(prefers-color-scheme: dark)");
    try { this.chosen = localStorage.getItem("theme"); } catch { /* No storage: as the system says. */ }
    const apply = () => {
      const now = this.chosen ?? (dark.matches ? "dark" : "light");
      document.documentElement.dataset.theme = now;
      $("theme").textContent = now === "dark" ? "Light" : "Dark";
      $("theme").setAttribute("aria-label", now === "dark" ? "Light colours" : "Dark colours");
      return now;
    };
    dark.addEventListener("change", apply);
    $("theme").addEventListener("click", () => {
      this.chosen = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
      try { localStorage.setItem("theme", this.chosen); } catch { /* For this visit only. */ }
      apply();
    });
    apply();
  },
};

theme.start();
files.start();
for (const panel of Object.values(panels)) panel.start();
router.start();
