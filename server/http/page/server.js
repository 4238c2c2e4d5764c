// What the page asks the server: the same attention, to compare with.

const COMPUTE = "/v1/attention:compute";
const CAUSAL = {top_left: "CAUSAL_TOP_LEFT", bottom_right: "CAUSAL_BOTTOM_RIGHT"};

/** proto3 JSON of AttentionOptions and of the fields beside it, without defaults. */
function optionsJson(options, S, T) {
  const json = {};
  if (options.scale != null) json.scale = options.scale;
  if (options.softcap) json.softcap = options.softcap;
  if (CAUSAL[options.causal]) json.causal = CAUSAL[options.causal];
  if (options.left != null || options.right != null) {
    json.window = {};
    if (options.left != null) json.window.left = options.left;
    if (options.right != null) json.window.right = options.right;
  }
  if (options.chunk) json.chunkSize = options.chunk;
  if (options.slope) json.alibiSlopes = [options.slope];
  if (options.sink != null) json.sinks = [options.sink];
  const request = {};
  if (options.valid != null) request.validLengths = [options.valid];
  if (options.hidden?.length) {
    request.mask = tensorJson(Array.from({length: S}, (_, i) => Array(T).fill(options.hidden.includes(i) ? "-Infinity" : 0)));
  }
  if (Object.keys(json).length) request.options = json;
  return request;
}

/** The request for matrices q, k, v, as nested lists. */
const requestJson = (q, k, v, options) =>
  ({query: q, key: k, value: v, ...optionsJson(options, q.length, k.length)});

/** A matrix as a Tensor message. */
const tensorJson = (rows) => ({shape: [rows.length, rows[0].length], floatValues: rows.flat()});

// Numbers in JSON that are no JSON numbers.
const NUMBERS = {NaN: NaN, Infinity: Infinity, "-Infinity": -Infinity};
const numbersOf = (tensor) => {
  if (!Array.isArray(tensor?.floatValues)) throw new Error("its answer has no output.floatValues");
  return tensor.floatValues.map((x) => (typeof x === "number" ? x : NUMBERS[x]));
};

/** JSON of a request: what is no number there is a string, as in proto3 JSON. */
const jsonText = (request) => JSON.stringify(request, (_, x) =>
  (typeof x === "number" && !Number.isFinite(x) ? String(x) : x));

class NotThere extends Error {}
class Unreachable extends Error {}

/** The answer's output as a list. Throws NotThere, Unreachable, or an Error with the server's words. */
async function askServer(request, signal) {
  const response = await fetch(COMPUTE, {
    method: "POST", headers: {"Content-Type": "application/json"},
    body: jsonText(request), signal,
  }).catch(() => { throw new Unreachable(); });
  const text = await response.text();
  // 413 too: what takes no request with a body says so before it looks at the path.
  if ([404, 405, 413].includes(response.status)) throw new NotThere(response.status);
  let json;
  try {
    json = JSON.parse(text);
  } catch {
    throw new Error(`it answered ${response.status} and no JSON`);
  }
  if (!response.ok) {
    throw new Error(`${response.status}: ${json?.message ?? "no message"}`.slice(0, 400));
  }
  return numbersOf(json?.output);
}

/** The largest difference of two lists; NaN only equals NaN. */
function largestDifference(ours, theirs) {
  if (ours.length !== theirs.length) return Infinity;
  return ours.reduce((most, x, i) => {
    if (Object.is(x, theirs[i]) || x === theirs[i]) return most;
    const difference = Math.abs(x - theirs[i]);
    return Number.isNaN(difference) ? Infinity : Math.max(most, difference);
  }, 0);
}

/** A line about the server's answers; only the last question is answered. */
class ServerLine {
  constructor(id) {
    this.line = $(id);
    this.asked = null;
  }

  say(kind, text) {
    this.line.className = `server ${kind}`;
    this.line.textContent = text;
  }

  /** questions: a list of {request, ours, name}. `judge(answers)` says [kind, text]. */
  async ask(questions, judge = (answers) => this.judge(questions, answers)) {
    this.asked?.abort();
    const abort = this.asked = new AbortController();
    try {
      const answers = [];
      for (const {request} of questions) answers.push(await askServer(request, abort.signal));
      if (!abort.signal.aborted) this.say(...judge(answers));
    } catch (error) {
      if (abort.signal.aborted) return;
      if (error instanceof NotThere) {
        this.say("", error.message === "413" ? `Computed in this page. The server takes no request of this size at ${COMPUTE} to compare with.`
                                             : `Computed in this page. The server has no POST ${COMPUTE} to compare with.`);
      } else if (error instanceof Unreachable) {
        this.say("bad", "The server cannot be reached.");
      } else {
        this.say("bad", `The server did not answer: ${error.message}`);
      }
    }
  }

  judge(questions, answers) {
    const differences = answers.map((answer, n) => largestDifference(questions[n].ours, answer));
    const worst = Math.max(...differences);
    const size = Math.max(1, ...questions.flatMap(({ours}) => ours.filter(Number.isFinite).map(Math.abs)));
    const many = questions.length > 1 ? `answers to all ${questions.length}` : "answer";
    if (worst <= 1e-5 * size) {
      return ["good", worst === 0 ? `The server’s ${many}: equal.`
                                  : `The server’s ${many}: equal to within ${worst.toExponential(1)}.`];
    }
    const name = questions[differences.indexOf(worst)].name;
    return ["bad", `The server’s answer${name ? ` for “${name}”` : ""} differs by up to ${worst.toExponential(1)}.`];
  }

  stop() { this.asked?.abort(); }
}

const curlText = (request) =>
  `curl -s ${location.origin}${COMPUTE} \\\n  -H 'Content-Type: application/json' \\\n  -d '${jsonText(request)}'`;

const pythonText = (request) => `import json, urllib.request

request = json.loads('${jsonText(request)}')
answer = urllib.request.urlopen(urllib.request.Request(
    "${location.origin}${COMPUTE}",
    json.dumps(request).encode(),
    {"Content-Type": "application/json"},
))
print(json.load(answer)["output"])
`;
