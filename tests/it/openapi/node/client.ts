// A client made of /openapi.json: types by openapi-typescript, calls by openapi-fetch.
import createClient from "openapi-fetch";
import type { components, paths } from "./api.js";

const [base, key, target] = process.argv.slice(2) as [string, string, string];
const api = createClient<paths>({ baseUrl: base, headers: { authorization: `Bearer ${key}` } });

function told<T>({ data, error }: { data?: T; error?: unknown }): T {
  if (data === undefined) throw new Error(JSON.stringify(error));
  return data;
}

const rate_limit: components["schemas"]["RateLimit"] = { count: 10, per_seconds: 1 };
const made = told(
  await api.POST("/subscriptions", {
    body: {
      target_url: target,
      event_types: ["invoice.*"],
      filter: { "data.amount": { gte: 1 } },
      metadata: { team: "billing" },
      rate_limit,
      retry: [1, 60],
    },
  }),
);
// Compiles only if these have types of their own.
const count: number | undefined = made.rate_limit?.count;
const clauses: { [path: string]: unknown } | null = made.filter;
const accepted = told(
  await api.POST("/events", {
    body: { type: "invoice.paid", payload: { amount: 7 }, metadata: { source: "typescript" } },
  }),
);
const event = told(await api.GET("/events/{id}", { params: { path: { id: accepted.id } } }));
console.log(JSON.stringify({ count, clauses, retry: made.retry, metadata: event.metadata }));
