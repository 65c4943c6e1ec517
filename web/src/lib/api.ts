// Calls of /api/v1. The session is a cookie the page cannot read; every error is a `Problem`.
import type {
  DeniedPage,
  Entry,
  EntryPage,
  Impact,
  NamePage,
  NewEntry,
  Session,
  Status,
  TopTraffic,
  TrafficBy,
} from "./types";

const TIMEOUT_MS = 15_000;

/** An RFC 9457 answer, or a failure to get any answer (status 0). */
export class Problem extends Error {
  constructor(
    readonly status: number,
    readonly code: string,
    detail: string,
    readonly requestId: string | null,
  ) {
    super(detail);
  }
}

export const session = {
  get: () => call<Session>("GET", "/session"),
  open: (token: string) => call<void>("POST", "/session", { token }),
  close: () => call<void>("DELETE", "/session"),
};

export const entries = {
  list: (query: string, cursor: string | null, limit: number) => {
    const parameters = new URLSearchParams({ limit: String(limit) });
    if (query) parameters.set("q", query);
    if (cursor) parameters.set("cursor", cursor);
    return call<EntryPage>("GET", `/entries?${parameters}`);
  },
  add: (entry: NewEntry) => call<Entry>("POST", "/entries", entry),
  protect: (id: string) => call<Entry>("PATCH", `/entries/${encodeURIComponent(id)}`, { protected: true }),
  impact: (id: string) => call<Impact>("GET", `/entries/${encodeURIComponent(id)}/impact`),
  remove: (id: string) => call<void>("DELETE", `/entries/${encodeURIComponent(id)}`),
};

export const nameOf = (name: string) =>
  call<NamePage>("GET", `/names?${new URLSearchParams({ name, consistency: "stale" })}`);

export const denied = (source: string, limit: number) => {
  const parameters = new URLSearchParams({ limit: String(limit) });
  if (source) parameters.set("source", source);
  return call<DeniedPage>("GET", `/denied?${parameters}`);
};

export const status = () => call<Status>("GET", "/status");

export const topTraffic = (by: TrafficBy, window: string) =>
  call<TopTraffic>("GET", `/traffic/top?${new URLSearchParams({ by, window })}`);

async function call<T>(method: string, path: string, body?: unknown): Promise<T> {
  let response: Response;
  try {
    response = await fetch(`/api/v1${path}`, {
      method,
      headers: body === undefined ? {} : { "content-type": "application/json" },
      body: body === undefined ? undefined : JSON.stringify(body),
      credentials: "same-origin",
      signal: AbortSignal.timeout(TIMEOUT_MS),
    });
  } catch {
    throw new Problem(0, "unreachable", "The server did not answer. The page goes on trying.", null);
  }
  if (!response.ok) throw await problem(response);
  return (response.status === 204 ? undefined : await response.json()) as T;
}

async function problem(response: Response): Promise<Problem> {
  const fallback = `The server answered ${response.status} ${response.statusText}.`;
  try {
    const body = (await response.json()) as { code?: string; detail?: string; request_id?: string };
    return new Problem(
      response.status,
      body.code ?? "unknown",
      body.detail ?? fallback,
      body.request_id ?? null,
    );
  } catch {
    return new Problem(response.status, "unknown", fallback, null);
  }
}
