// One table, live: a page of its rows, kept up to date from the stream of its changes. Rows flash as they come, and are
// struck through for a moment as they go.

import { follow, get, path } from "./api.js";
import { badge, compare, h, shown } from "./dom.js";

const PAGE = 100;

export function tableView(service, table, signal) {
  let columns = [], rows = new Map(), total = 0, matched = 0, offset = 0, sort = "", filter = "", whole = false;
  let reading = null, retry = 0, ordered = false;
  const state = h("span", null);
  const count = h("span", { class: "soft" });
  const message = h("p", { class: "error", role: "alert" });
  const head = h("tr"), body = h("tbody");
  const before = h("button", { type: "button", onclick: () => turn(-PAGE) }, "Earlier rows");
  const after = h("button", { type: "button", onclick: () => turn(PAGE) }, "Later rows");
  const search = h("input", { type: "search", "aria-label": "Filter, as in port:gt:1024", placeholder: "column:contains:text", size: 28 });
  const form = h("form", { class: "row", onsubmit: (event) => { event.preventDefault(); filter = search.value.trim(); offset = 0; read(); } },
    search, h("button", { type: "submit" }, "Filter"),
    h("a", { href: `api/tables/${path(service, table)}?format=csv`, download: "" }, "CSV"));
  const view = h("section", { "aria-label": `Table ${service}:${table}` },
    h("div", { class: "row" }, h("h2", null, `${service}:${table}`), state, count), form, message,
    h("div", { class: "panel scroll" }, h("table", null, h("caption", { class: "soft" }, "Rows come and go as the publisher changes them."),
      h("thead", null, head), body)),
    h("p", { class: "row" }, before, after));

  const key = (row) => JSON.stringify(row);

  function line(row, fresh) {
    const tr = h("tr", { class: fresh ? "came" : null }, row.map((cell) => h("td", { class: "cell" }, shown(cell))));
    tr.row = row;
    return tr;
  }

  function heads() {
    head.replaceChildren(...columns.map((column) => {
      const by = sort === column ? "ascending" : sort === `-${column}` ? "descending" : "none";
      return h("th", { scope: "col", "aria-sort": by }, h("button", { type: "button", onclick: () => {
        sort = sort === column ? `-${column}` : column; offset = 0; read();
      } }, column + (by === "ascending" ? " ▲" : by === "descending" ? " ▼" : "")));
    }));
  }

  function counts() {
    count.textContent = filter ? `${matched} of ${total} rows` : `${total} rows`;
    before.disabled = offset === 0;
    after.disabled = offset + PAGE >= matched;
  }

  function turn(by) { offset = Math.max(0, offset + by); read(); }

  // The stream begins where the page was read, so nothing is missed between the two.
  async function read() {
    reading?.abort();
    const mine = reading = new AbortController();
    const query = new URLSearchParams({ limit: PAGE, offset });
    if (sort) query.set("sort", sort);
    if (filter) query.set("filter", filter);
    let page;
    try {
      page = await get(`tables/${path(service, table)}?${query}`, { signal: mine.signal });
    } catch (error) {
      if (mine.signal.aborted) return;
      message.textContent = error.message;
      if (error.status !== 422 && error.status !== 404) again();
      return;
    }
    if (mine.signal.aborted || signal.aborted) return;
    retry = 0;
    message.textContent = "";
    ({ columns, total, matched } = page);
    if (!ordered && page.complete && total <= 10000) {
      ordered = true; // an order of its own, so that rows do not jump; a very large table is shown as it is
      if (!sort) { sort = columns[0]; read(); return; }
    }
    whole = !filter && page.complete && matched <= PAGE;
    state.replaceChildren(badge(page.state));
    rows = new Map();
    body.replaceChildren(...page.rows.map((row) => { const tr = line(row); rows.set(key(row), tr); return tr; }));
    heads();
    counts();
    if (!page.complete) { again(); return; }
    follow(`tables/${path(service, table)}/changes`, { signal: mine.signal, since: page.cursor, seen, state: connected });
  }

  function again() {
    const mine = reading;
    setTimeout(() => { if (!mine.signal.aborted && !signal.aborted) read(); }, Math.min(500 * 2 ** retry++, 8000));
  }

  function connected(up, error) {
    message.textContent = up ? "" : `${error.message}; trying again`;
  }

  function seen(event, data) {
    if (event === "reset") { read(); return; }
    if (event === "state") { state.replaceChildren(badge(data.state)); return; }
    if (event === "gone") { message.textContent = data.message; return; }
    if (event !== "change") return;
    total += data.added.length - data.removed.length;
    if (!filter) matched = total;
    for (const row of data.removed) {
      const tr = rows.get(key(row));
      if (!tr) continue;
      rows.delete(key(row));
      tr.classList.add("went");
      setTimeout(() => tr.remove(), 700);
    }
    // Where the whole table is in view each new row is shown; on a page of many, and with a filter, a pause shows them.
    if (whole && rows.size + data.added.length <= 2 * PAGE) data.added.forEach(place);
    else if (data.added.length || data.removed.length) later();
    counts();
  }

  function place(row) {
    if (rows.has(key(row))) return;
    const tr = line(row, true);
    rows.set(key(row), tr);
    const at = columns.indexOf(sort.replace(/^-/, ""));
    const sign = sort.startsWith("-") ? -1 : 1;
    const next = at < 0 ? null : [...body.children].find((other) => !other.classList.contains("went") && sign * compare(other.row[at], row[at]) > 0);
    body.insertBefore(tr, next ?? null);
  }

  let pending = false;
  function later() {
    if (pending) return;
    pending = true;
    setTimeout(() => { pending = false; if (!signal.aborted) read(); }, 1500);
  }

  signal.addEventListener("abort", () => reading?.abort());
  read();
  return view;
}
