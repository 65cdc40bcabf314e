// A Jupyter kernel on Node.js, for JavaScript and TypeScript.
//
//   main thread     the user's realm: cells run here, so that process.chdir, signals and native modules
//                   work as in any program. V8's own console mode (`replMode` of its inspector) brings
//                   top-level await and lets a cell declare a name again.
//   worker thread   protocol.mjs: the sockets, the messages, standard output, interrupts. It answers
//                   while a cell keeps the main thread busy.
//
//   node main.mjs LANGUAGE CONNECTION_FILE PIPES     started by launch.sh
import { writeSync } from "node:fs";
import inspector from "node:inspector";
import { Worker } from "node:worker_threads";

import { Display } from "./display.mjs";
import { cutStacks, describeError, Interrupted } from "./errors.mjs";
import { installModules } from "./modules.mjs";
import { installStreams } from "./streams.mjs";

const [language, connectionFile, pipes] = process.argv.slice(2);
// The user's program, not this one, is what its code sees.
process.argv.splice(1);

// One word: 0 while the main thread waits for the worker, 1 when it may go on.
const gate = new Int32Array(new SharedArrayBuffer(4));
const worker = new Worker(new URL("./protocol.mjs", import.meta.url), {
  workerData: { language, connectionFile, pipes, gate },
  stdout: false,
});
worker.on("error", (error) => {
  writeSync(3, `the kernel's protocol ended: ${error?.stack ?? error}\n`);
  process.reallyExit(1);
});

/** Hands a message to the worker and waits until it is published, so that output keeps its order. */
function publish(message) {
  Atomics.store(gate, 0, 0);
  worker.postMessage(message);
  Atomics.wait(gate, 0, 0, 5000);
}

const streams = installStreams();
const display = new Display(publish);
const helper = { display, describeError, modules: installModules() };
display.install();
cutStacks();

process.on("SIGINT", () => {});
process.on("exit", () => publish({ type: "exit" }));
for (const event of ["uncaughtException", "unhandledRejection"]) {
  process.on(event, (error) => {
    const { traceback } = describeError(error);
    streams.stderr.write(`${traceback.join("\n")}\n`);
  });
}

const session = new inspector.Session();
session.connect();

/** One call of V8's inspector; rejects with Interrupted when the call was terminated. */
function ask(method, parameters) {
  let settle;
  const answer = new Promise((resolve, reject) => {
    settle = (error, value) => (error || !value?.result ? reject(new Interrupted()) : resolve(value));
  });
  // Outside of the promise's own function, which would stand in every traceback.
  session.post(method, parameters, settle);
  return answer;
}

const helperName = `alcove_${process.pid}`;
globalThis[helperName] = helper;
const { result: helperHandle } = await ask("Runtime.evaluate", { expression: helperName });
delete globalThis[helperName];

/** Calls `method` of the helper with a value that only the inspector holds. */
async function onHelper(path, handle) {
  const argument = handle.objectId
    ? { objectId: handle.objectId }
    : "unserializableValue" in handle
      ? { unserializableValue: handle.unserializableValue }
      : { value: handle.value };
  const answer = await ask("Runtime.callFunctionOn", {
    objectId: helperHandle.objectId,
    functionDeclaration: `function (value) { return this.${path}(value); }`,
    arguments: [argument],
    returnByValue: true,
  });
  if (answer.exceptionDetails) throw new CellError(answer.exceptionDetails.exception);
  return answer.result.value;
}

class CellError extends Error {
  constructor(handle) {
    super("the cell threw");
    this.handle = handle;
  }
}

async function evaluate(code, count) {
  const answer = await ask("Runtime.evaluate", {
    expression: `${code}\n//# sourceURL=[${count}]`,
    replMode: true,
    awaitPromise: true,
    objectGroup: "cell",
  });
  if (answer.exceptionDetails) throw new CellError(answer.exceptionDetails.exception);
  if (answer.result.subtype !== "promise") return answer.result;
  const settled = await ask("Runtime.awaitPromise", { promiseObjectId: answer.result.objectId });
  if (settled.exceptionDetails) throw new CellError(settled.exceptionDetails.exception);
  return settled.result;
}

async function runCell({ id, code, count, silent }) {
  try {
    const value = await evaluate(code, count);
    const data = silent || value.type === "undefined" ? null : await onHelper("display.bundle", value);
    return { type: "done", id, data };
  } catch (error) {
    if (!(error instanceof CellError)) return { type: "done", id, error: describeError(error) };
    try {
      return { type: "done", id, error: await onHelper("describeError", error.handle) };
    } catch (failure) {
      return { type: "done", id, error: describeError(failure) };
    }
  } finally {
    // What the cell left behind is held by the user's names, not by the inspector.
    session.post("Runtime.releaseObjectGroup", { objectGroup: "cell" });
  }
}

async function complete({ id, code, position }) {
  const { completions } = await import("./completion.mjs");
  return { type: "done", id, data: await completions(ask, code.slice(0, position)) };
}

worker.on("message", async (message) => {
  if (message.type === "run") worker.postMessage(await runCell(message));
  else if (message.type === "complete") worker.postMessage(await complete(message));
  else if (message.type === "ping") worker.postMessage({ type: "pong" });
  else if (message.type === "shutdown") process.exit(0);
});
