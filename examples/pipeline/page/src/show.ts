import type { Match, Timing, Weights } from "./api.js";

/** Wider heat maps say nothing on a screen. */
const MOST_TOKENS = 48;

export function element<Name extends keyof HTMLElementTagNameMap>(
  name: Name,
  ...children: (Node | string)[]
): HTMLElementTagNameMap[Name] {
  const made = document.createElement(name);
  made.append(...children);
  return made;
}

function header(scope: "row" | "col", text: string): HTMLElement {
  const cell = element("th", text);
  cell.scope = scope;
  return cell;
}

export function matchItem({ sentence, score }: Match): HTMLElement {
  const meter = element("meter");
  meter.value = Math.max(score, 0);
  meter.ariaLabel = `likeness of “${sentence}”`;
  return element("li", meter, ` ${score.toFixed(3)} `, sentence);
}

export function heatMap({ tokens, weights }: Weights): Node[] {
  const shown = tokens.slice(0, MOST_TOKENS);
  const table = element("table");
  table.className = "heat";
  const head = element("tr", element("td"), ...shown.map((token) => header("col", token)));
  const rows = shown.map((token, i) => {
    const cells = weights[i]?.slice(0, MOST_TOKENS).map(heatCell) ?? [];
    return element("tr", header("row", token), ...cells);
  });
  table.append(element("thead", head), element("tbody", ...rows));
  return shown.length < tokens.length
    ? [table, element("p", `The first ${MOST_TOKENS} of ${tokens.length} word pieces.`)]
    : [table];
}

function heatCell(weight: number): HTMLElement {
  const cell = element("td", String(Math.round(weight * 100)));
  cell.dataset["weight"] = String(weight);
  cell.style.backgroundColor = `color-mix(in srgb, var(--hot) ${Math.round(weight * 100)}%, var(--panel))`;
  return cell;
}

export function timingTable(timings: readonly Timing[]): HTMLElement {
  const rows = timings.map(({ part, ms }) =>
    element("tr", header("row", part), element("td", `${ms.toFixed(1)} ms`)),
  );
  const table = element("table", element("tbody", ...rows));
  table.className = "timings";
  table.ariaLabel = "Time that each part took";
  return table;
}
