// Names that may follow what stands before the cursor; used by notebooks.
const tail = /([\w$]+(?:\.[\w$]+)*\.)?([\w$]*)$/;
const collect = `function () {
  const names = new Set();
  for (let each = Object(this); each; each = Object.getPrototypeOf(each)) {
    for (const name of Object.getOwnPropertyNames(each)) names.add(name);
  }
  return [...names];
}`;

export async function completions(ask, before) {
  const [, path = "", start = ""] = tail.exec(before);
  const names = path ? await members(ask, path.slice(0, -1)) : await globals(ask);
  const matches = names.filter((name) => name.startsWith(start) && /^[\w$]+$/.test(name)).sort();
  return { matches: matches.slice(0, 500), start: before.length - start.length };
}

async function members(ask, path) {
  // Refuses what would change anything, as a getter may.
  const options = { throwOnSideEffect: true, objectGroup: "completion", timeout: 500, replMode: true };
  const { result, exceptionDetails } = await ask("Runtime.evaluate", { expression: path, ...options });
  if (exceptionDetails) return [];
  const target = result.objectId ?? (await boxed(ask, path, options));
  if (!target) return [];
  const call = { objectId: target, functionDeclaration: collect, returnByValue: true };
  return (await ask("Runtime.callFunctionOn", call)).result.value ?? [];
}

async function boxed(ask, path, options) {
  const { result } = await ask("Runtime.evaluate", { expression: `Object(${path})`, ...options });
  return result.objectId;
}

async function globals(ask) {
  const { result } = await ask("Runtime.evaluate", { expression: "globalThis", objectGroup: "completion" });
  const call = { objectId: result.objectId, functionDeclaration: collect, returnByValue: true };
  return (await ask("Runtime.callFunctionOn", call)).result.value ?? [];
}
