// What is asked and answered, in the words of the contract. Sums are strings and stay strings: a double would round cents.
import type { components, operations } from "./contract.js";

export type Definition = components["schemas"]["Definition"];
export type Aggregate = components["schemas"]["Aggregate"];
export type Problem = components["schemas"]["Problem"];
export type AsOf = components["schemas"]["Answer"]["as_of"];
export type Column = components["schemas"]["Answer"]["columns"][number];

/** Parameters of a question to one aggregate; rows come as objects, so `layout` is not among them. */
export type Question = Omit<NonNullable<operations["getData"]["parameters"]["query"]>, "layout">;

/** Sums of integers and decimals are strings, counts and sums of doubles numbers, times strings with an offset.
 *  An integer of a dimension is a number, or a string where a double would round it. */
export type Value = string | number | boolean | null | Row[];
export type Row = Record<string, Value>;

/** Everything in it is true at `as_of.lsn`. */
export type Answer = Omit<components["schemas"]["Answer"], "data"> & { data: Row[] };
