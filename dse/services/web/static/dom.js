// Making elements. Text is always text: nothing that comes from the bus is ever read as markup.

const SVG = "http://www.w3.org/2000/svg";

function fill(element, properties, children) {
  for (const [name, value] of Object.entries(properties ?? {})) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  for (const child of children.flat(Infinity)) {
    if (child !== null && child !== undefined && child !== false) element.append(child);
  }
  return element;
}

export const h = (name, properties, ...children) => fill(document.createElement(name), properties, children);
export const s = (name, properties, ...children) => fill(document.createElementNS(SVG, name), properties, children);

export const badge = (state) => h("span", { class: `badge ${/^[A-Z]+$/.test(state) ? state : ""}` }, state);

// A cell of a row as text, whatever it holds.
export function shown(cell) {
  if (cell === null) return "—";
  if (typeof cell === "object") return "base64" in cell ? `bytes ${cell.base64}` : String(cell.int ?? cell.float);
  if (typeof cell === "boolean") return cell ? "true" : "false";
  return String(cell);
}

export function compare(a, b) {
  const rank = (x) => (x === null ? 0 : typeof x === "string" ? 2 : typeof x === "object" ? ("base64" in x ? 3 : 1) : 1);
  const value = (x) => (x !== null && typeof x === "object" ? ("base64" in x ? x.base64 : Number(x.int ?? x.float.replace("inf", "Infinity"))) : x);
  if (rank(a) !== rank(b)) return rank(a) - rank(b);
  const [left, right] = [value(a), value(b)];
  return left < right ? -1 : left > right ? 1 : 0;
}

export const rate = (number) => (number === 0 ? "0" : number >= 100 ? Math.round(number) : number >= 1 ? number.toFixed(1) : number.toFixed(2));
