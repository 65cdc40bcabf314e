// Values as Jupyter shows them: MIME bundles, and the names a cell has to show more than text.
//
//   display(value)             shows a value in the middle of a cell; display({"text/html": "<b>x</b>"},
//                              { raw: true }) shows a bundle as it is
//   $$.html(text), $$.png(base64), ...            makes a value that is shown so
//   value[Symbol.for("Jupyter.display")]()        answers a bundle (the convention of Deno)
//   value._toHtml(), _toPng(), _toMime(), ...     answer one format each (that of IJavascript)
import { inspect } from "node:util";

const hook = Symbol.for("Jupyter.display");
const formats = {
  text: "text/plain",
  html: "text/html",
  markdown: "text/markdown",
  svg: "image/svg+xml",
  png: "image/png",
  jpeg: "image/jpeg",
  pdf: "application/pdf",
  latex: "text/latex",
  json: "application/json",
  javascript: "application/javascript",
};
const methods = {
  _toHtml: formats.html,
  _toMarkdown: formats.markdown,
  _toSvg: formats.svg,
  _toPng: formats.png,
  _toJpeg: formats.jpeg,
  _toLatex: formats.latex,
};

class Shown {
  #bundle;

  constructor(bundle) {
    this.#bundle = bundle;
  }

  [hook]() {
    return this.#bundle;
  }
}

export class Display {
  #publish;

  constructor(publish) {
    this.#publish = publish;
  }

  /** The bundle of a cell's value; null where there is nothing to show. Runs code of the value. */
  bundle(value) {
    if (value === undefined) return null;
    const bundle = rich(value);
    return Object.keys(bundle).length > 0 ? bundle : { [formats.text]: inspect(value, limits) };
  }

  show(value, { raw = false } = {}) {
    const data = raw ? clean(value) : (this.bundle(value) ?? { [formats.text]: "undefined" });
    this.#publish({ type: "display", data });
  }

  install() {
    const shown = { mime: (bundle) => new Shown(clean(bundle)) };
    for (const [name, mime] of Object.entries(formats)) {
      shown[name] = (value) => new Shown(clean({ [mime]: value }));
    }
    shown.display = (value) => this.show(value);
    const names = { display: (value, options) => this.show(value, options), $$: shown };
    for (const [name, value] of Object.entries(names)) {
      Object.defineProperty(globalThis, name, { value, writable: true, configurable: true });
    }
  }
}

// A result is for reading: deep or endless structures end somewhere.
const limits = { depth: 4, maxArrayLength: 1000, maxStringLength: 1_000_000, breakLength: 80 };

function rich(value) {
  if (value === null || (typeof value !== "object" && typeof value !== "function")) return {};
  if (typeof value[hook] === "function") return clean(value[hook]());
  if (typeof value._toMime === "function") return clean(value._toMime());
  const bundle = {};
  for (const [name, mime] of Object.entries(methods)) {
    if (typeof value[name] === "function") bundle[mime] = value[name]();
  }
  return clean(bundle);
}

/** What can be sent: bytes as base64, JSON formats as plain data, everything else as text. */
function clean(bundle) {
  const data = {};
  for (const [mime, value] of Object.entries(bundle ?? {})) {
    if (value instanceof Uint8Array) data[mime] = Buffer.from(value).toString("base64");
    else if (/[/+]json$|^e2b\//.test(mime)) data[mime] = JSON.parse(JSON.stringify(value ?? null));
    else data[mime] = typeof value === "string" ? value : String(value);
  }
  return data;
}
