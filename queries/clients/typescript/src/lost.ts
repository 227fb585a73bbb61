/** No answer, or no more of it: nobody is there, the connection was cut, or nothing came for so long that it is dead. */
export class Lost extends Error {
  constructor(
    cause: unknown,
    /** It was silence that ended it. */
    readonly silent: boolean,
  ) {
    super(`the connection was lost: ${reasons(cause)}`, { cause });
    this.name = "Lost";
  }
}

/** That of `fetch` is the last of several: "fetch failed" alone says nothing. */
function reasons(failure: unknown): string {
  if (!(failure instanceof Error)) return String(failure);
  return failure.cause === undefined ? failure.message : `${failure.message}: ${reasons(failure.cause)}`;
}
