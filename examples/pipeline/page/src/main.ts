import * as api from "./api.js";
import { element, heatMap, matchItem, timingTable } from "./show.js";

const LAYERS = 6;
const HEADS = 12;
const EXAMPLES = [
  "A cat sleeps on the warm window sill.",
  "Kittens chase a ball of wool.",
  "The dog fetched the stick from the lake.",
  "Stock markets fell sharply on Monday.",
  "The central bank raised its interest rates.",
  "She baked bread with rye and honey.",
  "Boil the pasta for nine minutes.",
  "The train to Berlin leaves at noon.",
  "Our flight was delayed by fog.",
  "Jupiter has more than ninety moons.",
  "A telescope gathers the light of stars.",
  "The violinist tuned her instrument.",
];

function byId<E extends HTMLElement>(id: string, type: new () => E): E {
  const found = document.getElementById(id);
  if (!(found instanceof type)) throw new Error(`there is no ${type.name} #${id}`);
  return found;
}

const input = (id: string): HTMLInputElement => byId(id, HTMLInputElement);
const select = (id: string): HTMLSelectElement => byId(id, HTMLSelectElement);
const box = (id: string): HTMLElement => byId(id, HTMLElement);

function say(error: unknown): void {
  const place = box("error");
  place.hidden = error === undefined;
  place.textContent = error instanceof Error ? error.message : String(error ?? "");
}

/** Runs work, one at a time: the next one aborts what is still under way. */
function latest(work: (signal: AbortSignal) => Promise<void>): () => void {
  let current: AbortController | undefined;
  return () => {
    current?.abort();
    const mine = (current = new AbortController());
    work(mine.signal).then(
      () => {
        say(undefined);
      },
      (error: unknown) => {
        if (!mine.signal.aborted) say(error);
      },
    );
  };
}

const search = latest(async (signal) => {
  const found = await api.search(input("query").value, signal);
  const items = found.matches.map(matchItem);
  box("matches").replaceChildren(...(items.length > 0 ? items : [element("li", "No sentences yet.")]));
  box("search-timings").replaceChildren(timingTable(found.timings));
});

const showWeights = latest(async (signal) => {
  const answer = await api.weights(
    input("sentence").value,
    select("layer").value,
    select("head").value,
    signal,
  );
  box("weights").replaceChildren(...heatMap(answer));
  box("weights-timings").replaceChildren(timingTable(answer.timings));
});

const list = latest(async (signal) => {
  const sentences = await api.list(signal);
  box("kept").textContent = `${sentences.length} kept.`;
  box("sentences").replaceChildren(...sentences.map((sentence) => element("li", sentence)));
});

function add(sentences: readonly string[]): void {
  latest(async (signal) => {
    const { timings } = await api.add(sentences, signal);
    box("add-timings").replaceChildren(timingTable(timings));
    list();
  })();
}

function onSubmit(id: string, run: () => void): void {
  box(id).addEventListener("submit", (event) => {
    event.preventDefault();
    run();
  });
}

for (let i = 0; i < LAYERS; i++) select("layer").add(new Option(String(i)));
for (let i = 0; i < HEADS; i++) select("head").add(new Option(String(i)));
onSubmit("search", search);
onSubmit("attention", showWeights);
onSubmit("add", () => {
  const area = byId("new", HTMLTextAreaElement);
  add(area.value.split("\n").filter((line) => line.trim() !== ""));
});
box("layer").addEventListener("change", showWeights);
box("head").addEventListener("change", showWeights);
box("examples").addEventListener("click", () => {
  add(EXAMPLES);
});
list();
showWeights();
