// How an exception of a cell is told: name, value and traceback of a Jupyter `error` message.
import { inspect } from "node:util";

/** A cell that was stopped from outside. */
export class Interrupted extends Error {
  constructor() {
    super("Execution was interrupted");
    this.name = "Interrupted";
    this.stack = "Interrupted: Execution was interrupted";
  }
}

const here = new URL(".", import.meta.url).href;
const entrances = new Set(["node:inspector", new URL("main.mjs", here).href]);

/** What is below a cell in a stack is this kernel's, and is left out. */
export function cutStacks() {
  Error.prepareStackTrace = (error, frames) => {
    const entrance = frames.findIndex((frame) => entrances.has(frame.getFileName()));
    const kept = (entrance < 0 ? frames : frames.slice(0, entrance)).filter(
      (frame) => !frame.getFileName()?.startsWith(here),
    );
    return [error, ...kept.map((frame) => `    at ${frame}`)].join("\n");
  };
}

/** Anything can be thrown, and its properties can throw again. */
export function describeError(thrown) {
  try {
    if (!(thrown instanceof Error)) return notAnError(thrown);
    const name = String(thrown.name || thrown.constructor?.name || "Error");
    const value = String(thrown.message ?? "");
    const stack = typeof thrown.stack === "string" ? thrown.stack : `${name}: ${value}`;
    const traceback = stack.split("\n");
    if (thrown.cause !== undefined) traceback.push(`  [cause]: ${inspect(thrown.cause)}`);
    return { name, value, traceback };
  } catch {
    return { name: "Error", value: "an error that cannot be described", traceback: [] };
  }
}

function notAnError(thrown) {
  const value = typeof thrown === "string" ? thrown : inspect(thrown);
  return { name: "Error", value, traceback: [`Uncaught ${inspect(thrown)}`] };
}
