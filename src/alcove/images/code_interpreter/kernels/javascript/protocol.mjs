// The worker: Jupyter's sockets on one side, the main thread and its standard output on the other.
import inspector from "node:inspector";
import { parentPort, workerData } from "node:worker_threads";

import * as zmq from "zeromq";

import { prepare } from "./cells.mjs";
import { Output } from "./output.mjs";
import { Connection } from "./wire.mjs";

const { language, connectionFile, pipes, gate } = workerData;
const INTERRUPTED = {
  name: "Interrupted",
  value: "Execution was interrupted",
  traceback: ["Interrupted: Execution was interrupted"],
};
const connection = new Connection(connectionFile);
const sockets = {
  shell: new zmq.Router({ linger: 1000 }),
  control: new zmq.Router({ linger: 1000 }),
  stdin: new zmq.Router({ linger: 0 }),
  hb: new zmq.Reply({ linger: 0 }),
  // Waits for a slow reader instead of throwing output away; the cell that prints waits with it.
  iopub: new zmq.Publisher({ linger: 1000, noDrop: true }),
};
for (const [name, socket] of Object.entries(sockets)) await socket.bind(connection.address(name));

const debuggerOfMain = new inspector.Session();
debuggerOfMain.connectToMainThread();

let parent = {};
let count = 0;
let running = null;
let lastId = 0;
let abandon = () => {};
const waiting = new Map();

// One message at a time, in the order they were made.
let queue = Promise.resolve();
function publish(type, content, of = parent) {
  const frames = connection.frames(type, content, of, [Buffer.from(type)]);
  queue = queue.then(() => sockets.iopub.send(frames)).catch(() => {});
  return queue;
}

const output = new Output(pipes, (name, text) => publish("stream", { name, text }));

function reply(socket, request, type, content) {
  return socket.send(connection.frames(type, content, request.header, request.identities));
}

// --- what the main thread says

parentPort.on("message", async (message) => {
  if (message.type === "display" || message.type === "exit") {
    output.drain();
    if (message.type === "display") {
      publish("display_data", { data: message.data, metadata: {}, transient: {} });
    }
    await queue;
    // A process that ends takes along what ZeroMQ has not sent yet.
    if (message.type === "exit") await new Promise((done) => setTimeout(done, 50));
    Atomics.store(gate, 0, 1);
    Atomics.notify(gate, 0);
  } else if (message.type === "pong") {
    abandon();
  } else {
    waiting.get(message.id)?.(message);
    waiting.delete(message.id);
  }
});

/** Asks the main thread; answers its message. */
function ask(message) {
  const id = ++lastId;
  const answer = new Promise((resolve) => waiting.set(id, resolve));
  parentPort.postMessage({ ...message, id });
  return { id, answer };
}

// --- cells

async function execute(request) {
  const { code, silent = false } = request.content;
  const stores = !silent && (request.content.store_history ?? true);
  parent = request.header;
  if (stores) count += 1;
  const number = count;
  if (!silent) publish("execute_input", { code, execution_count: number });
  const { data, error } = await run(code, number, silent);
  output.drain();
  if (data && !silent) {
    publish("execute_result", { data, metadata: {}, execution_count: number });
  }
  if (!error) {
    const content = { status: "ok", execution_count: number, user_expressions: {}, payload: [] };
    await reply(sockets.shell, request, "execute_reply", content);
    return;
  }
  const told = { ename: error.name, evalue: error.value, traceback: error.traceback };
  if (!silent) publish("error", told);
  await reply(sockets.shell, request, "execute_reply", {
    status: "error", execution_count: number, ...told,
  });
  if (request.content.stop_on_error ?? true) await abortQueued();
}

async function run(code, number, silent) {
  if (!code.trim()) return {};
  let script;
  try {
    script = await prepare(code, language);
  } catch (error) {
    return { error: { name: error.name, value: error.message, traceback: [String(error)] } };
  }
  const { id, answer } = ask({ type: "run", code: script, count: number, silent });
  running = id;
  try {
    return await Promise.race([answer, new Promise((resolve) => {
      abandon = () => resolve({ error: INTERRUPTED });
    })]);
  } finally {
    running = null;
    waiting.delete(id);
    abandon = () => {};
  }
}

/** Requests that came while a cell ran are not run after it has failed. */
async function abortQueued() {
  sockets.shell.receiveTimeout = 0;
  try {
    for (;;) {
      const request = connection.parse(await sockets.shell.receive());
      if (request?.header.msg_type === "execute_request") {
        publish("status", { execution_state: "busy" }, request.header);
        await reply(sockets.shell, request, "execute_reply", { status: "aborted" });
        publish("status", { execution_state: "idle" }, request.header);
      } else if (request) {
        await serve(sockets.shell, request);
      }
    }
  } catch (error) {
    if (error.code !== "EAGAIN") throw error;
  } finally {
    sockets.shell.receiveTimeout = -1;
  }
}

/** Ends the cell that runs: code that keeps the thread busy is terminated, code that waits is left. */
async function interrupt() {
  const cell = running;
  for (let tries = 0; cell !== null && running === cell && tries < 100; tries += 1) {
    // An idle thread answers, which abandons the cell. Terminating would hit whatever it runs next.
    parentPort.postMessage({ type: "ping" });
    await new Promise((done) => setTimeout(done, 100));
    if (running !== cell) return;
    await new Promise((done) => debuggerOfMain.post("Runtime.terminateExecution", done));
    await new Promise((done) => setTimeout(done, 50));
  }
}

// --- requests

const info = {
  status: "ok",
  protocol_version: "5.3",
  implementation: "alcove-node",
  implementation_version: "1",
  banner: `Node.js ${process.version}`,
  language_info: language === "typescript"
    ? { name: "typescript", version: process.version, mimetype: "text/typescript", file_extension: ".ts" }
    : { name: "javascript", version: process.version, mimetype: "text/javascript", file_extension: ".js" },
};

async function complete({ content }) {
  const { answer } = ask({ type: "complete", code: content.code, position: content.cursor_pos });
  const { matches, start } = (await answer).data;
  return { status: "ok", matches, cursor_start: start, cursor_end: content.cursor_pos, metadata: {} };
}

const handlers = {
  kernel_info_request: async (socket, request) => reply(socket, request, "kernel_info_reply", info),
  execute_request: (_socket, request) => execute(request),
  complete_request: async (socket, request) =>
    reply(socket, request, "complete_reply", await complete(request)),
  inspect_request: async (socket, request) =>
    reply(socket, request, "inspect_reply", { status: "ok", found: false, data: {}, metadata: {} }),
  is_complete_request: async (socket, request) =>
    reply(socket, request, "is_complete_reply", { status: "unknown" }),
  history_request: async (socket, request) =>
    reply(socket, request, "history_reply", { status: "ok", history: [] }),
  comm_info_request: async (socket, request) =>
    reply(socket, request, "comm_info_reply", { status: "ok", comms: {} }),
  interrupt_request: async (socket, request) => {
    const done = interrupt();
    await reply(socket, request, "interrupt_reply", { status: "ok" });
    await done;
  },
  shutdown_request: async (socket, request) => {
    const { restart = false } = request.content;
    await reply(socket, request, "shutdown_reply", { status: "ok", restart });
    publish("shutdown_reply", { status: "ok", restart }, request.header);
    await queue;
    parentPort.postMessage({ type: "shutdown" });
    // A main thread that never comes back to its loop cannot end itself.
    setTimeout(() => process.kill(process.pid, "SIGKILL"), 1000);
  },
};

async function serve(socket, request) {
  publish("status", { execution_state: "busy" }, request.header);
  try {
    await handlers[request.header.msg_type]?.(socket, request);
  } finally {
    publish("status", { execution_state: "idle" }, request.header);
  }
}

async function listen(socket) {
  for await (const frames of socket) {
    const request = connection.parse(frames);
    if (request) await serve(socket, request);
  }
}

async function echo(socket) {
  for await (const frames of socket) await socket.send(frames);
}

await publish("status", { execution_state: "starting" }, {});
await Promise.race([listen(sockets.shell), listen(sockets.control), echo(sockets.hb)]);
