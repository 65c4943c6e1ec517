// The shapes of /api/v1 that the page uses; the server's OpenAPI document is /api/v1/openapi.json.

export interface Address {
  address: string;
  first_seen: string;
  ttl_s: number;
  upstreams: string[];
  /** The name is asked of several upstreams, and only one gives the address. */
  single_upstream: boolean;
}

export interface Resolution {
  state: "pending" | "never_resolved" | "ok" | "stale" | "no_such_name" | "refused" | "mixed";
  detail: string | null;
  since: string | null;
  addresses: Address[];
  chain: string[];
}

export interface Lookups {
  last_answer: string | null;
  last_error: { at: string; upstream: string; error: string } | null;
  next_try: string | null;
}

export interface Name {
  name: string;
  lookups: Lookups | null;
}

export interface NamePage {
  names: Name[];
  leader_answered: boolean;
}

export interface Entry {
  id: string;
  target: string;
  kind: "domain" | "wildcard" | "address" | "network";
  ports: string[];
  protected: boolean;
  comment: string;
  owner: string;
  ticket: string;
  labels: Record<string, string>;
  created_by: string;
  created_at: string;
  expires_at: string | null;
  resolution: Resolution | null;
}

export interface NewEntry {
  target: string;
  ports: string[];
  comment: string;
  protected: boolean;
  /** RFC 3339; left out or null for never. */
  expires_at?: string | null;
}

/** What removing an entry would do. */
export interface Impact {
  removed_count: number;
  drained_count: number;
  kept: { element: string; because_of: { id: string; target: string }[] }[];
  kept_count: number;
}

export interface EntryPage {
  revision: number;
  entries: Entry[];
  next_cursor: string | null;
}

export interface Node {
  id: number | string;
  name: string;
  address: string;
  voter: boolean;
  reachable: boolean;
  role: string | null;
  term: number | null;
  applied: number | null;
  version: string | null;
}

export interface Gateway {
  name: string;
  version: string;
  remote: string;
  node: string;
  connected_at: string;
  applied: number;
  in_sync: boolean;
  kernel_us: number;
  refused: number;
}

export interface Status {
  cluster: string | null;
  revision: number;
  digest: string;
  entries: number;
  published: number;
  leader: string | null;
  node: string;
  nodes: Node[];
  gateways: Gateway[];
}

export interface EntryBeside {
  id: string;
  target: string;
  ports: string[];
}

export interface Denied {
  gateway: string;
  source: string | null;
  destination: string | null;
  protocol: string;
  port: number | null;
  packets: number;
  first_seen: string;
  last_seen: string;
  listed: boolean;
  entries: EntryBeside[];
  other_ports: EntryBeside[];
}

export interface DeniedPage {
  denied: Denied[];
  next_cursor: string | null;
  complete: boolean;
  nodes: { name: string; answered: boolean }[];
}

export type TrafficBy = "source" | "entry";

export interface TrafficMoved {
  packets_out: number;
  bytes_out: number;
  packets_in: number;
  bytes_in: number;
}

export interface TrafficRow extends TrafficMoved {
  name: string | null;
  entry: string | null;
  gateways: string[];
  with: { name: string | null; entry: string | null; bytes: number }[];
}

export interface TopTraffic {
  by: TrafficBy;
  window_minutes: number | null;
  rows: TrafficRow[];
  total: TrafficMoved;
  silent_nodes: string[];
}

export interface Session {
  name: string;
  role: "gateway" | "viewer" | "editor" | "admin";
}
