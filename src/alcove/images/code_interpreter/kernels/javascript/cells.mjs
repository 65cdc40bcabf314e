// From a cell's source to a script for V8's console mode.
//
// Types are stripped, never checked. `import` declarations become `let ... = await __import(...)`, and
// `import(...)` and `import.meta` go through modules.mjs, as scripts have no loader of their own.
// `export` is dropped, and a `const` of the cell is a `let`: the console mode takes a name again as what it
// was, so `const x` would fail after `let x`. Everything stays in its place, so that lines and columns of
// errors are right.
import { parse } from "acorn";

let amaro;

/** Raises what the compiler says of wrong syntax; JavaScript with errors comes back unchanged. */
export async function prepare(source, language) {
  if (language === "typescript") return rewrite(await stripTypes(source), true);
  try {
    return rewrite(source, false);
  } catch (error) {
    if (!(error instanceof SyntaxError)) throw error;
    // Models write TypeScript and call it JavaScript. V8 explains plain mistakes better.
    try {
      return rewrite(await stripTypes(source), false);
    } catch {
      return source;
    }
  }
}

async function stripTypes(source) {
  amaro ??= await import("amaro");
  const options = { filename: "[cell].ts", sourceMap: false };
  try {
    return amaro.transformSync(source, { ...options, mode: "strip-only" }).code;
  } catch (error) {
    if (error?.code !== "UnsupportedSyntax") throw asSyntaxError(error);
  }
  try {
    // Enums, namespaces and parameter properties are code, not only types.
    const transform = { verbatimModuleSyntax: true };
    return amaro.transformSync(source, { ...options, mode: "transform", transform }).code;
  } catch (error) {
    throw asSyntaxError(error);
  }
}

function asSyntaxError(error) {
  const at = error?.startLine ? ` (line ${error.startLine}, column ${error.startColumn + 1})` : "";
  return new SyntaxError(`${error?.message ?? error}${at}`);
}

/** Throws acorn's SyntaxError. */
function rewrite(source, strict) {
  const tree = parseCell(source, strict);
  if (tree === null) return `(${source.replace(/;\s*$/, "")})`;
  const edits = [];
  for (const statement of tree.body) topLevel(statement, source, edits);
  walk(tree, edits);
  edits.sort((one, other) => other.start - one.start);
  let code = source;
  for (const { start, end, text } of edits) {
    const lines = "\n".repeat(source.slice(start, end).split("\n").length - text.split("\n").length);
    code = code.slice(0, start) + text + lines + code.slice(end);
  }
  return code;
}

/** null for an object literal, which a script would read as a block. */
function parseCell(source) {
  const options = { ecmaVersion: "latest", allowHashBang: true, allowAwaitOutsideFunction: true };
  if (/^\s*\{[^]*\}\s*;?\s*$/.test(source)) {
    try {
      parse(`(${source.replace(/;\s*$/, "")})`, { ...options, sourceType: "script" });
      return null;
    } catch {
      // A block after all.
    }
  }
  try {
    return parse(source, { ...options, sourceType: "module" });
  } catch (error) {
    // Sloppy code is no module: `with`, octal literals, `await` as a name.
    try {
      return parse(source, { ...options, sourceType: "script" });
    } catch {
      throw error;
    }
  }
}

function topLevel(node, source, edits) {
  const replace = (start, end, text) => edits.push({ start, end, text });
  switch (node.type) {
    case "ImportDeclaration":
      replace(node.start, node.end, importStatement(node, source));
      break;
    case "VariableDeclaration":
      if (node.kind === "const") replace(node.start, node.start + "const".length, "let  ");
      break;
    case "ExportNamedDeclaration":
      if (node.declaration) {
        replace(node.start, node.declaration.start, "");
        topLevel(node.declaration, source, edits);
      }
      else replace(node.start, node.end, node.source ? `await ${imported(node, source)};` : "");
      break;
    case "ExportDefaultDeclaration":
      replace(node.start, node.declaration.start, "");
      break;
    case "ExportAllDeclaration":
      replace(node.start, node.end, `await ${imported(node, source)};`);
      break;
  }
}

function imported(node, source) {
  const attributes = (node.attributes ?? []).map(({ key, value }) =>
    `${source.slice(key.start, key.end)}: ${source.slice(value.start, value.end)}`);
  const options = attributes.length ? `, { with: { ${attributes.join(", ")} } }` : "";
  return `__import(${source.slice(node.source.start, node.source.end)}${options})`;
}

function importStatement(node, source) {
  const call = `await ${imported(node, source)}`;
  if (node.specifiers.length === 0) return `${call};`;
  const text = (part) => source.slice(part.start, part.end);
  const whole = node.specifiers.find(({ type }) => type === "ImportNamespaceSpecifier");
  const names = node.specifiers
    .filter((specifier) => specifier !== whole)
    .map((specifier) => specifier.type === "ImportDefaultSpecifier"
      ? `default: ${text(specifier.local)}`
      : `${text(specifier.imported)}: ${text(specifier.local)}`);
  if (!whole) return `let { ${names.join(", ")} } = ${call};`;
  const rest = names.length ? `, { ${names.join(", ")} } = ${text(whole.local)}` : "";
  return `let ${text(whole.local)} = ${call}${rest};`;
}

function walk(node, edits) {
  if (node.type === "ImportExpression") {
    edits.push({ start: node.start, end: node.start + "import".length, text: "__import" });
  } else if (node.type === "MetaProperty" && node.meta.name === "import") {
    edits.push({ start: node.start, end: node.end, text: "__importMeta" });
  }
  for (const value of Object.values(node)) {
    for (const child of Array.isArray(value) ? value : [value]) {
      if (typeof child?.type === "string") walk(child, edits);
    }
  }
}
