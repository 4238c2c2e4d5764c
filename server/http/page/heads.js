// Panel "Heads": which query heads read which keys and values, and what a token
// of the cache takes.

// Bytes per element; scaled types have one more per row (docs/numerics.md).
const STORED = {FLOAT32: [4, 0], FLOAT16: [2, 0], BFLOAT16: [2, 0], INT8: [1, 1], FLOAT8_E4M3: [1, 1]};
const rowBytes = (type, elements) => STORED[type][0] * elements + STORED[type][1];

/** The four ways, with the bytes that one token takes in one layer. */
function headPlans({q, kv, d, latent, rope, type}) {
  const pair = 2 * rowBytes(type, d);
  const shared = (n) => ({kv: n, bytes: n * pair, reads: (h) => Math.floor(h / (q / n))});
  return [
    {id: "mha", name: "MHA", what: "each query head has keys and values of its own", ...shared(q)},
    {id: "gqa", name: "GQA", what: `${q / kv} query heads share each of ${kv}`, ...shared(kv)},
    {id: "mqa", name: "MQA", what: "all query heads share one", ...shared(1)},
    // Values are the first columns of keys, and take nothing.
    {id: "mla", name: "MLA", what: `one latent row of ${latent} + ${rope} per token; values are its first ${latent} columns`,
     ...shared(1), bytes: rowBytes(type, latent + rope)},
  ];
}

const heads = {
  start() {
    for (const id of ["q", "kv", "d", "latent", "rope", "layers", "tokens", "type", "follow"]) {
      $(`heads-${id}`).addEventListener("input", () => this.draw());
    }
  },
  show() { this.draw(); },
  hide() {},

  draw() {
    const q = integerIn("heads-q", 32), kv = integerIn("heads-kv", 8);
    const bad = q % kv !== 0;
    setError($("heads-error"), bad ? `GQA groups: got ${kv}, wanted a divisor of the ${q} query heads` : "");
    if (bad) return $("heads-kv").setAttribute("aria-invalid", "true");
    const layers = integerIn("heads-layers", 32), tokens = integerIn("heads-tokens", 1);
    const head = Math.min(q - 1, integerIn("heads-follow", 0));
    const plans = headPlans({
      q, kv, d: integerIn("heads-d", 128), latent: integerIn("heads-latent", 512), rope: integerIn("heads-rope", 64),
      type: $("heads-type").value,
    });
    const most = Math.max(...plans.map((plan) => plan.bytes));
    $("heads-diagrams").replaceChildren(...plans.map((plan) => {
      const meter = make("i");
      meter.style.width = `${100 * plan.bytes / most}%`;
      const reads = plan.id === "mla" ? "the latent row, as every other" : `key/value head ${plan.reads(head)}`;
      return make("div", {class: "diagram", id: `heads-${plan.id}`, "data-bytes": plan.bytes, "data-reads": plan.reads(head)},
        make("h3", {}, plan.name, make("span", {}, plan.what)),
        this.bands(plan, q, head),
        make("div", {class: "figures"},
          make("b", {}, `${group(plan.bytes)} bytes`),
          make("p", {}, "per token and layer"),
          make("div", {class: "meter"}, meter),
          make("p", {}, `${showBytes(plan.bytes * layers)} per token`),
          make("p", {}, `${showBytes(plan.bytes * layers * tokens)} for ${group(tokens)} tokens`)),
        make("p", {class: "reads"}, `Query head ${head} reads ${reads}.`));
    }));
  },

  bands(plan, q, head) {
    const width = 720, top = 20, gap = 34, bottom = 20;
    const svg = makeSvg("svg", {viewBox: `0 0 ${width} ${top + gap + bottom}`, role: "img",
      "aria-label": `${plan.name}: ${q} query heads over ${plan.kv} of keys and values`});
    const x = (h) => h * width / q;
    const inset = Math.min(1.5, width / q / 8);
    for (let n = 0; n < plan.kv; ++n) {
      const first = n * q / plan.kv, end = (n + 1) * q / plan.kv;
      const followed = plan.reads(head) === n;
      // Neighbours differ: the golden angle.
      const colour = `oklch(64% .13 ${(262 + 137.5 * n) % 360})`;
      const left = x(first) + inset, right = x(end) - inset;
      const middle = (left + right) / 2, half = Math.max((right - left) / 2 * (end - first > 1 ? .5 : 1), 1);
      svg.append(makeSvg("path", {fill: colour, opacity: followed ? .42 : .2,
        d: `M${left} ${top} H${right} L${middle + half} ${top + gap} H${middle - half} Z`}));
      for (let h = first; h < end; ++h) {
        const box = makeSvg("rect", {x: x(h) + inset, y: 0, width: Math.max(width / q - 2 * inset, .5), height: top, rx: 2,
          fill: colour, opacity: h === head ? 1 : .62});
        box.addEventListener("pointerenter", () => {
          if ($("heads-follow").value !== String(h)) { $("heads-follow").value = h; this.draw(); }
        });
        svg.append(box);
        if (h === head) svg.append(makeSvg("rect", {x: x(h) + inset, y: 1, width: width / q - 2 * inset, height: top - 2, rx: 2,
          fill: "none", stroke: "var(--ink)", "stroke-width": 2}));
      }
      svg.append(makeSvg("rect", {x: middle - half, y: top + gap, width: 2 * half, height: bottom, rx: 3, fill: colour,
        opacity: followed ? 1 : .62}));
    }
    return svg;
  },
};
