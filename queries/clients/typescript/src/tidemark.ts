// The client: what applications do most, typed. Everything else of the contract is `http`, which knows every route.
import createClient, { type Client } from "openapi-fetch";

import type { Aggregate, Answer, Definition, Question } from "./answer.js";
import type { paths } from "./contract.js";
import { ours } from "./foreign_answer.js";
import { type Live, follow } from "./live.js";
import { refusal } from "./refused.js";

export interface Options {
  /** Of a server that asks for one. */
  token?: string;
  /** In place of the global one. */
  fetch?: typeof fetch;
}

const POLL_MS = 200;

export class Tidemark {
  /** Every route of the contract. */
  readonly http: Client<paths>;
  private readonly headers: Record<string, string>;
  private readonly fetch: typeof fetch;

  /** @param base such as `http://127.0.0.1:7171` */
  constructor(
    private readonly base: string,
    { token, fetch: own }: Options = {},
  ) {
    this.headers = token ? { Authorization: `Bearer ${token}` } : {};
    this.fetch = own ?? fetch;
    // A token is for the server that was named, not for where it points; nor is the answer that comes from there ours.
    this.http = createClient<paths>({ baseUrl: base, headers: this.headers, fetch: this.fetch, redirect: "manual" });
    this.http.use({ onResponse: ({ response, options }) => void ours(response, options.parseAs === "json" ? "json" : "") });
  }

  /** Registers an aggregate; the same definition again changes nothing. `rebuild` replaces another one without a gap. */
  async register(name: string, definition: Definition | { sql: string }, onChange: "refuse" | "rebuild" = "refuse"): Promise<Aggregate> {
    const params = { path: { name }, query: { on_change: onChange } };
    const sent =
      "sql" in definition
        ? this.http.PUT("/v1/aggregates/{name}", {
            params,
            body: definition.sql as never,
            bodySerializer: (sql: unknown) => sql as string,
            headers: { "Content-Type": "application/sql" },
          })
        : this.http.PUT("/v1/aggregates/{name}", { params, body: definition });
    return answered(await sent);
  }

  async describe(name: string): Promise<Aggregate> {
    return answered(await this.http.GET("/v1/aggregates/{name}", { params: { path: { name } } }));
  }

  /** Waits until an aggregate is filled. A halted one is a refusal with its code. */
  async untilLive(name: string, signal?: AbortSignal): Promise<Aggregate> {
    for (;;) {
      signal?.throwIfAborted();
      const aggregate = await this.describe(name);
      if (aggregate.state === "live") return aggregate;
      // Why it is halted is told to whoever asks it.
      if (aggregate.state === "halted") await this.data(name, { granularity: "all", limit: 1 });
      await new Promise((resume) => setTimeout(resume, POLL_MS));
    }
  }

  async drop(name: string): Promise<void> {
    const { error, response } = await this.http.DELETE("/v1/aggregates/{name}", { params: { path: { name } } });
    if (!response.ok) throw refusal(response.status, error);
  }

  /** The first page of an answer; `page.next` is the cursor of the next one. */
  async data(name: string, question: Question = {}): Promise<Answer> {
    const params = { path: { name }, query: question };
    return answered(await this.http.GET("/v1/aggregates/{name}/data", { params })) as unknown as Answer;
  }

  /** All pages of an answer. All of them show the position of the first. */
  async *pages(name: string, question: Question = {}): AsyncGenerator<Answer> {
    for (let cursor: string | null | undefined; cursor !== null; ) {
      const page = await this.data(name, cursor ? { ...question, cursor } : question);
      yield page;
      cursor = page.page.next;
    }
  }

  /** Every state of an answer from now on: whole transactions, resumed where a connection is cut, until the signal aborts.
   *
   *  While nobody vouches that what was yielded is the newest, it is yielded once more with its `trouble`. What does not end by
   *  itself is thrown: a refusal such as that of a halted aggregate, an answer that is not Tidemark's, and any failure before there
   *  is a first answer, but for refusals that pass. */
  follow(name: string, question: Question = {}, signal: AbortSignal = new AbortController().signal): AsyncGenerator<Live> {
    const parameters = new URLSearchParams();
    for (const [key, value] of Object.entries(question)) if (value !== undefined) parameters.set(key, String(value));
    const url = `${this.base}/v1/aggregates/${encodeURIComponent(name)}/live?${parameters}`;
    // Called as a method of ours, that of a browser refuses.
    const { fetch } = this;
    return follow((lastId, aborted) => {
      const headers = { ...this.headers, Accept: "text/event-stream", ...(lastId ? { "Last-Event-ID": lastId } : {}) };
      return fetch(url, { headers, signal: aborted, redirect: "manual" });
    }, question.order ?? "", signal);
  }
}

function answered<T>({ data, error, response }: { data?: T; error?: unknown; response: Response }): T {
  if (data !== undefined) return data;
  throw refusal(response.status, error);
}
