/** How long a part took. */
export interface Timing {
  readonly part: string;
  readonly ms: number;
}

export interface Match {
  readonly sentence: string;
  /** Cosine, [-1, 1]. */
  readonly score: number;
}

export interface Found {
  readonly matches: readonly Match[];
  readonly timings: readonly Timing[];
}

export interface Weights {
  readonly tokens: readonly string[];
  /** [tokens, tokens]: row i is what token i reads; it sums to 1. */
  readonly weights: readonly (readonly number[])[];
  readonly timings: readonly Timing[];
}

export interface Added {
  readonly kept: number;
  readonly timings: readonly Timing[];
}

interface Refused {
  readonly error: { readonly part?: string; readonly code: string; readonly message: string };
}

/** An aborted signal ends the work in every part, down to the attention service. */
export const search = (query: string, signal: AbortSignal): Promise<Found> =>
  call(`search?${new URLSearchParams({ q: query }).toString()}`, { signal });

export const weights = (
  sentence: string,
  layer: string,
  head: string,
  signal: AbortSignal,
): Promise<Weights> =>
  call(`weights?${new URLSearchParams({ sentence, layer, head }).toString()}`, { signal });

export const add = (sentences: readonly string[], signal: AbortSignal): Promise<Added> =>
  call("sentences", { signal, method: "POST", body: JSON.stringify({ sentences }) });

export const list = async (signal: AbortSignal): Promise<readonly string[]> =>
  (await call<{ sentences: readonly string[] }>("sentences", { signal })).sentences;

async function call<Answer>(path: string, init: RequestInit): Promise<Answer> {
  const response = await fetch(`/api/${path}`, init);
  if (!response.ok) {
    const { error } = (await response.json()) as Refused;
    throw new Error(`${error.part === undefined ? "" : `${error.part}: `}${error.message} (${error.code})`);
  }
  return (await response.json()) as Answer;
}
