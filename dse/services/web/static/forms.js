// A form for a method, made from its signature, and the answer to what it sent.

import { path, post } from "./api.js";
import { h } from "./dom.js";

// Read "(pid: int, force: bool = False) -> bool" into names, types and defaults.
export function parameters(signature) {
  const end = closing(signature, 0);
  return split(signature.slice(1, end)).filter((part) => part !== "*").map((part) => {
    const [head, fallback] = cutAt(part, "=");
    const [name, type] = cutAt(head, ":");
    return { name: name.trim(), type: (type ?? "Any").trim(), fallback: fallback?.trim() };
  });
}

function closing(text, from) {
  let depth = 0, quote = "";
  for (let at = from; at < text.length; at++) {
    const c = text[at];
    if (quote) { if (c === "\\") at++; else if (c === quote) quote = ""; continue; }
    if (c === "'" || c === '"') quote = c;
    else if ("([{".includes(c)) depth++;
    else if (")]}".includes(c) && --depth === 0) return at;
  }
  return text.length;
}

function split(text) {
  const parts = [];
  let depth = 0, quote = "", part = "";
  for (let at = 0; at < text.length; at++) {
    const c = text[at];
    if (quote) { part += c; if (c === "\\") part += text[++at] ?? ""; else if (c === quote) quote = ""; continue; }
    if (c === "'" || c === '"') quote = c;
    if ("([{".includes(c)) depth++;
    if (")]}".includes(c)) depth--;
    if (c === "," && depth === 0) { parts.push(part.trim()); part = ""; } else part += c;
  }
  if (part.trim()) parts.push(part.trim());
  return parts;
}

function cutAt(text, mark) {
  let depth = 0;
  for (let at = 0; at < text.length; at++) {
    if ("([{".includes(text[at])) depth++;
    if (")]}".includes(text[at])) depth--;
    if (text[at] === mark && depth === 0) return [text.slice(0, at), text.slice(at + 1)];
  }
  return [text, undefined];
}

const plain = (type) => type.replace(/\s*\|\s*None$/, "").replace(/^Optional\[(.*)\]$/, "$1");

function field({ name, type, fallback }) {
  const kind = plain(type);
  const hint = fallback === undefined ? "" : `if not given: ${fallback}`;
  const common = { name, id: `field-${name}-${Math.random().toString(36).slice(2)}`, placeholder: hint };
  if (kind === "bool") {
    return h("select", { ...common },
      fallback !== undefined && h("option", { value: "" }, hint), h("option", { value: "true" }, "true"), h("option", { value: "false" }, "false"));
  }
  const literal = /^(?:typing\.)?Literal\[(.*)\]$/.exec(kind);
  if (literal) {
    return h("select", { ...common }, fallback !== undefined && h("option", { value: "" }, hint),
      split(literal[1]).map((each) => h("option", { value: each.replace(/^'(.*)'$/, '"$1"') }, each)));
  }
  if (kind === "int" || kind === "float") return h("input", { ...common, type: "text", inputmode: kind === "int" ? "numeric" : "decimal" });
  if (kind === "str") return h("input", { ...common, type: "text" });
  return h("input", { ...common, type: "text", placeholder: hint || `${type}, as JSON` });
}

function read({ name, type, fallback }, text) {
  const kind = plain(type);
  if (text === "" && fallback !== undefined) return undefined;
  if (kind === "str") return text;
  try {
    return JSON.parse(text);
  } catch {
    if (type === "Any") return text;
    throw new Error(`${name}: ${JSON.stringify(text)} is no ${type}${["int", "float"].includes(kind) ? "" : " in JSON"}`);
  }
}

export function methodForm(service, name, method, nodes) {
  const fields = parameters(method.signature).map((parameter) => [parameter, field(parameter)]);
  const node = h("select", { "aria-label": `Which replica of ${service}` }, h("option", { value: "" }, "any replica"), nodes.map((each) => h("option", { value: each }, each)));
  const said = h("div", { class: "wide", role: "status", "aria-live": "polite" });
  const button = h("button", { class: "main", type: "submit" }, `Call ${name}`);
  const form = h("form", { class: "method panel", "data-method": `${service}.${name}`, "aria-label": `Call ${service}.${name}`, onsubmit: async (event) => {
    event.preventDefault();
    for (const [, input] of fields) input.removeAttribute("aria-invalid");
    button.disabled = true;
    try {
      const args = {};
      for (const [parameter, input] of fields) {
        const value = read(parameter, input.value);
        if (value !== undefined) args[parameter.name] = value;
      }
      const { result } = await post(`services/${path(service)}/methods/${path(name)}${node.value ? `?node=${encodeURIComponent(node.value)}` : ""}`, args);
      said.replaceChildren(h("pre", { class: "result" }, JSON.stringify(result, null, 2)));
    } catch (error) {
      const where = error.body?.where;
      fields.find(([parameter]) => parameter.name === where)?.[1].setAttribute("aria-invalid", "true");
      said.replaceChildren(h("p", { class: "error" }, error.message));
    } finally {
      button.disabled = false;
    }
  } },
  h("strong", { class: "wide" }, `${service}.${name}${method.signature}`),
  method.doc && h("pre", { class: "wide soft" }, method.doc),
  fields.map(([parameter, input]) => [h("label", { for: input.id }, parameter.name, h("span", { class: "soft" }, ` ${parameter.type}`)), input]),
  h("div", { class: "wide row" }, button, nodes.length > 1 && node), said);
  return form;
}
