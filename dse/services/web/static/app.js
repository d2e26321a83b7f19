// The page: which view is shown, what is known of the bus, and how the connection stands.
// Built with nothing but what browsers have: modules, fetch, SVG. There is no build step, and nothing to keep up to date.

import { Refused, follow, get, setToken } from "./api.js";
import { badge, h, rate } from "./dom.js";
import { methodForm } from "./forms.js";
import { draw } from "./graph.js";
import { tableView } from "./table.js";

const VIEWS = { bus: "Bus", tables: "Tables", methods: "Methods", policies: "Policies" };
const main = document.getElementById("main");
const connection = document.getElementById("connection");

let bus = null;
let timeline = [];
let left = new AbortController(); // aborted when the view is left
let update = () => {};            // draws anew what of the view depends on the bus

// What is known of the bus

function services() {
  const found = new Map();
  for (const node of bus.nodes) {
    if (!["JOINED", "SUSPECT"].includes(node.state)) continue;
    for (const service of node.services) {
      const entry = found.get(service.service_id) ?? { tables: {}, nodes: [] };
      Object.assign(entry.tables, service.tables);
      entry.nodes.push(node.node_id);
      found.set(service.service_id, entry);
    }
  }
  return new Map([...found].sort(([a], [b]) => (a < b ? -1 : 1)));
}

// Views

function busView() {
  const drawing = h("div", { class: "panel" });
  const list = h("tbody");
  const events = h("ol", { class: "timeline", "aria-label": "What happened, the latest first", tabindex: 0 });
  main.replaceChildren(h("div", { class: "columns" },
    h("div", null, h("h2", null, "Nodes and subscriptions"), drawing, h("h2", null, "Nodes"),
      h("div", { class: "panel scroll" }, h("table", null, h("caption", { class: "soft" }, "Rates are of the last two seconds."),
        h("thead", null, h("tr", null, ["node", "state", "heard", "calls/s", "errors/s", "median ms", "p99 ms", "changes/s", "waiting", "services"].map((each) => h("th", { scope: "col" }, each)))), list))),
    h("div", null, h("h2", null, "Timeline"), h("div", { class: "panel" }, events))));
  let shape = "";
  update = () => {
    const focused = document.activeElement?.getAttribute?.("data-node");
    const now = JSON.stringify([bus.nodes.map((n) => [n.node_id, n.state, n.services]), bus.rates]);
    if (now !== shape) {
      shape = now;
      drawing.replaceChildren(draw(bus));
      if (focused) [...drawing.querySelectorAll("[data-node]")].find((each) => each.dataset.node === focused)?.focus();
    }
    list.replaceChildren(...bus.nodes.map((node) => {
      const figures = bus.rates?.nodes?.[node.node_id];
      const cells = figures ? [rate(figures.calls), rate(figures.errors), figures.p50 ?? "–", figures.p99 ?? "–", rate(figures.changes), figures.waiting] : ["–", "–", "–", "–", "–", "–"];
      return h("tr", null, h("th", { scope: "row" }, node.node_id), h("td", null, badge(node.state)), h("td", { class: "number" }, `${node.last_heard.toFixed(1)} s`),
        cells.map((cell) => h("td", { class: "number" }, String(cell))), h("td", null, node.services.map((each) => each.service_id).join(", ")));
    }));
    events.replaceChildren(...timeline.slice(-200).reverse().map((each) => h("li", { class: each.kind },
      h("time", { datetime: new Date(each.at * 1000).toISOString() }, new Date(each.at * 1000).toLocaleTimeString()),
      each.node_id ? h("strong", null, `${each.node_id} `) : null, each.text)));
    if (!timeline.length) events.replaceChildren(h("li", { class: "soft" }, "Nothing yet since the gateway started."));
  };
}

function tablesView(parts) {
  const [service, table] = parts;
  const live = h("div");
  const list = h("div", { class: "panel scroll" });
  main.replaceChildren(live, h("h2", null, "Tables"), list);
  if (service && table) live.replaceChildren(tableView(service, table, left.signal));
  let before = "";
  update = () => {
    const rows = [...services()].flatMap(([id, each]) => Object.entries(each.tables).sort().map(([name, columns]) => {
      const figures = bus.rates?.tables?.[`${id}:${name}`];
      return [id, name, columns, each.nodes, figures];
    }));
    const now = JSON.stringify(rows);
    if (now === before) return;
    before = now;
    list.replaceChildren(rows.length ? h("table", null,
      h("thead", null, h("tr", null, ["table", "columns", "rows", "changes/s", "followers", "published by"].map((each) => h("th", { scope: "col" }, each)))),
      h("tbody", null, rows.map(([id, name, columns, nodes, figures]) => h("tr", null,
        h("td", null, h("a", { href: `#/tables/${encodeURIComponent(id)}/${encodeURIComponent(name)}` }, `${id}:${name}`)),
        h("td", null, columns.join(", ")), h("td", { class: "number" }, figures ? String(figures.rows) : "–"), h("td", { class: "number" }, figures ? rate(figures.changes) : "–"),
        h("td", { class: "number" }, figures ? String(figures.followers) : "–"), h("td", null, nodes.join(", "))))))
      : h("p", { class: "soft" }, "No service on this bus publishes a table."));
  };
}

function methodsView() {
  const forms = h("div");
  main.replaceChildren(h("h2", null, "Methods"), forms);
  let before = "";
  update = async () => {
    const now = JSON.stringify(bus.nodes.map((node) => [node.node_id, node.state, node.services.map((each) => [each.service_id, each.methods])]));
    if (now === before) return;
    before = now; // what is typed into a form stays, as long as nobody comes or goes
    let infos;
    try { infos = await get("services", { signal: left.signal }); } catch (error) { if (error.name !== "AbortError") forms.replaceChildren(h("p", { class: "error" }, error.message)); return; }
    const found = new Map();
    for (const info of infos) {
      for (const [name, method] of Object.entries(info.rpc_methods)) {
        const key = JSON.stringify([info.service_id, name]);
        if (!found.has(key)) found.set(key, { service: info.service_id, name, method, nodes: [] });
        found.get(key).nodes.push(info.node_id);
      }
    }
    const allowed = [...found.values()].filter((each) => each.method.allowed);
    const others = [...found.values()].filter((each) => !each.method.allowed);
    forms.replaceChildren(
      ...allowed.map(({ service, name, method, nodes }) => methodForm(service, name, method, nodes)),
      allowed.length ? "" : h("p", { class: "soft" }, "This gateway allows no calls; the option allow of dse web names the methods that it may let through."),
      others.length ? h("details", null, h("summary", null, `${others.length} methods that may not be called from here`), h("ul", null, others.map(({ service, name, method }) => h("li", null, h("code", null, `${service}.${name}${method.signature}`))))) : "");
  };
}

function policiesView() {
  const rules = h("div"), findings = h("div");
  main.replaceChildren(h("h2", null, "Policies"), rules, findings);
  const shown = new Set();
  let before = "";
  const show = (into, id, table, title) => {
    if (shown.has(`${id}:${table}`)) return;
    shown.add(`${id}:${table}`);
    into.append(...(title ? [h("h3", null, title)] : []), tableView(id, table, left.signal));
  };
  update = async () => {
    const found = services();
    const now = JSON.stringify([...found].map(([id, each]) => [id, Object.keys(each.tables)]));
    if (now === before) return;
    before = now;
    const keepers = [...found].filter(([, each]) => ["policy", "rule", "state"].every((column) => each.tables.rules?.includes(column)));
    if (!keepers.length && !shown.size) rules.replaceChildren(h("p", { class: "soft" }, "No service on this bus keeps policies."));
    else if (!shown.size) rules.replaceChildren();
    for (const [id] of keepers) {
      show(rules, id, "rules");
      // A policy is a service of its own name, and each of its rules a table: which they are is said in these rows.
      let page;
      try { page = await get(`tables/${encodeURIComponent(id)}/rules?limit=1000`, { signal: left.signal }); } catch { before = ""; continue; }
      const at = page.columns.indexOf("policy");
      if (!page.complete) before = ""; // on its way: asked again with the next news
      for (const name of new Set(page.rows.map((row) => row[at]))) {
        for (const table of Object.keys(found.get(name)?.tables ?? {}).sort()) show(findings, name, table, `What ${name}.${table} finds`);
      }
    }
  };
}

function tokenView(message) {
  const input = h("input", { type: "password", id: "token", autocomplete: "off", size: 50 });
  main.replaceChildren(h("form", { class: "panel", onsubmit: (event) => { event.preventDefault(); setToken(input.value); location.reload(); } },
    h("h2", null, "A token is needed"), h("p", null, message), h("p", { class: "row" }, h("label", { for: "token" }, "Token"), input, h("button", { class: "main" }, "Use it")),
    h("p", { class: "soft" }, "It is kept in this tab until it is closed.")));
}

// Going from view to view

function route() {
  left.abort();
  left = new AbortController();
  update = () => {};
  const [, view = "bus", ...parts] = location.hash.split("/").map(decodeURIComponent);
  const name = view in VIEWS ? view : "bus";
  document.getElementById("views").replaceChildren(...Object.entries(VIEWS).map(([key, title]) =>
    h("a", { href: `#/${key}`, "aria-current": key === name ? "page" : null }, title)));
  if (!bus) { main.replaceChildren(h("p", { class: "soft" }, "Waiting for the bus …")); return; }
  ({ bus: busView, tables: tablesView, methods: methodsView, policies: policiesView })[name](parts);
  update();
}

function said(event, data) {
  if (event === "timeline") { timeline = [...timeline.filter((each) => each.number !== data.number), data].slice(-500); }
  if (event === "bus") {
    const first = bus === null;
    bus = data;
    document.title = `${bus.bus} – DSE`;
    document.getElementById("bus").textContent = `${bus.bus} on ${bus.transport}`;
    connected(true);
    if (first) { route(); return; }
  }
  if (bus) update();
}

function connected(up, error) {
  if (error instanceof Refused && error.status === 401) { tokenView(error.message); return; }
  if (!up) timeline = []; // a gateway that was started anew counts anew
  const there = bus?.nodes.filter((node) => node.state === "JOINED").length ?? 0;
  const lost = !up || (bus && !bus.connected);
  connection.classList.toggle("lost", Boolean(lost));
  connection.textContent = !up ? `No connection to the gateway (${error.message}); trying again` : !bus ? "" : !bus.connected ? "The gateway has lost the broker" : `live, ${there} node${there === 1 ? "" : "s"}`;
}

window.addEventListener("hashchange", route);
route();
follow("events", { signal: new AbortController().signal, seen: said, state: (up, error) => { if (!up) connected(false, error); } });
