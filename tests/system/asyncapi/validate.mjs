// Reads an AsyncAPI document from stdin and prints, as JSON, what the AsyncAPI project's own parser has to say of it.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

const require = createRequire(process.argv[2] + "/");
const { Parser } = require("@asyncapi/parser");

const { document, diagnostics } = await new Parser().parse(readFileSync(0, "utf8"));
const said = diagnostics.map(({ code, severity, message, path }) => ({ code, severity, message, path: path.join(".") }));
const ids = document ? document.allOperations().all().map((operation) => operation.id()) : null;
console.log(JSON.stringify({ valid: document !== undefined, operations: ids, said }));
