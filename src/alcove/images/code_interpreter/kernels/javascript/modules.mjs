// `require` and `import` of a cell: as from a file in the working directory.
import { createRequire } from "node:module";
import path from "node:path";
import { pathToFileURL } from "node:url";
import vm from "node:vm";

let loader;
let loaderDirectory;

function fromDirectory(directory) {
  if (loaderDirectory !== directory) {
    loader = new vm.Script("(specifier, options) => import(specifier, options)", {
      filename: path.join(directory, "[cell]"),
      importModuleDynamically: vm.constants.USE_MAIN_CONTEXT_DEFAULT_LOADER,
    }).runInThisContext();
    loaderDirectory = directory;
  }
  return loader;
}

/** What `import(specifier)` in a cell becomes (cells.mjs). */
async function importModule(specifier, options) {
  const name = String(specifier).replace(/^npm:/, "");
  try {
    return await fromDirectory(process.cwd())(name, options);
  } catch (error) {
    if (error?.code !== "ERR_MODULE_NOT_FOUND" || !/^[@\w]/.test(name)) throw error;
    // ECMAScript modules ignore NODE_PATH, where `npm install` of other directories has put things.
    let found;
    try {
      found = globalThis.require.resolve(name);
    } catch {
      throw error;
    }
    return fromDirectory(process.cwd())(pathToFileURL(found).href, options);
  }
}

function requireModule(name) {
  return createRequire(path.join(process.cwd(), "[cell]"))(name.replace(/^npm:/, ""));
}

export function installModules() {
  const here = () => createRequire(path.join(process.cwd(), "[cell]"));
  requireModule.resolve = (name, options) => here().resolve(name, options);
  requireModule.cache = here().cache;
  requireModule.extensions = here().extensions;
  const module = { exports: {}, id: "[cell]", children: [], loaded: false };
  const names = { require: requireModule, module, exports: module.exports };
  for (const [name, value] of Object.entries(names)) {
    Object.defineProperty(globalThis, name, { value, writable: true, configurable: true });
  }
  const computed = {
    __dirname: () => process.cwd(),
    __filename: () => path.join(process.cwd(), "[cell]"),
  };
  for (const [name, get] of Object.entries(computed)) {
    Object.defineProperty(globalThis, name, { get, configurable: true });
  }
  Object.defineProperty(globalThis, "__import", { value: importModule, configurable: true });
  Object.defineProperty(globalThis, "__importMeta", {
    get: () => ({
      url: pathToFileURL(path.join(process.cwd(), "[cell]")).href,
      dirname: process.cwd(),
      filename: path.join(process.cwd(), "[cell]"),
      resolve: (name) => pathToFileURL(here().resolve(name)).href,
    }),
    configurable: true,
  });
}
