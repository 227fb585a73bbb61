export { ForeignAnswer } from "./foreign_answer.js";
export { Lost } from "./lost.js";
export { Refused } from "./refused.js";
export { Tidemark, type Options } from "./tidemark.js";
export type { Aggregate, Answer, AsOf, Column, Definition, Problem, Question, Row, Value } from "./answer.js";
export type { Live } from "./live.js";
export type { components, paths } from "./contract.js";
