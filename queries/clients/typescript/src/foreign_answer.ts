// An answer that is not Tidemark's: of a proxy, of a page that asks for a password, of another server at the address.

/** Nothing of the answer is believed, whatever it is. `status` is that of HTTP; browsers say 0 of one that points elsewhere. */
export class ForeignAnswer extends Error {
  constructor(readonly status: number) {
    super(
      status < 400 && !(status >= 200 && status < 300)
        ? `status ${status}: the address points elsewhere, and a token is not sent after it; give the address that it points to`
        : `status ${status}: the answer is none of Tidemark's; see what stands at the address, and on the way to it`,
    );
    this.name = "ForeignAnswer";
  }

  /** Whether it is what a proxy says of a server that is not there at the moment. */
  get passes(): boolean {
    return this.status >= 500;
  }
}

/** The answer as it is, where it does not point elsewhere and has this type if it is no refusal. */
export function ours(response: Response, type: string): Response {
  const { ok, status } = response;
  const elsewhere = response.type === "opaqueredirect" || (status >= 300 && status < 400 && status !== 304);
  const other = ok && status !== 204 && !(response.headers.get("Content-Type") ?? "").includes(type);
  if (elsewhere || other) throw new ForeignAnswer(status);
  return response;
}
