// The bus as a drawing: a box for each node with its services in it, and a line for each subscription, from the service
// that publishes to the one that follows, with its rate. Boxes stand in columns, publishers left of those who follow them.

import { h, rate, s } from "./dom.js";

const WIDTH = 210, HEAD = 40, LINE = 20, GAP_X = 110, GAP_Y = 26;

function layout(nodes, edges) {
  const depth = new Map(nodes.map((node) => [node.node_id, 0]));
  for (let round = 0; round < 4; round++) {
    for (const { from, to } of edges) {
      if (from.node !== to.node && depth.get(to.node) <= depth.get(from.node)) {
        depth.set(to.node, Math.min(3, depth.get(from.node) + 1));
      }
    }
  }
  const columns = [[], [], [], []];
  for (const node of nodes) columns[depth.get(node.node_id)].push(node);
  const used = columns.filter((column) => column.length);
  // Nodes without subscriptions would make one very long column: wrap it.
  const wrapped = used.flatMap((column) => {
    const most = Math.max(6, Math.ceil(Math.sqrt(nodes.length) * 2));
    const parts = [];
    for (let at = 0; at < column.length; at += most) parts.push(column.slice(at, at + most));
    return parts;
  });
  const places = new Map();
  let x = 14, height = 0;
  for (const column of wrapped) {
    let y = 14;
    for (const node of column) {
      const tall = HEAD + Math.max(1, node.services.length) * LINE + 10;
      places.set(node.node_id, { x, y, tall });
      y += tall + GAP_Y;
    }
    height = Math.max(height, y);
    x += WIDTH + GAP_X;
  }
  return { places, width: Math.max(x - GAP_X + 14, 320), height: height + 6 };
}

export function subscriptions(nodes) {
  const publishers = new Map();
  for (const node of nodes) {
    node.services.forEach((service, place) => {
      for (const table of Object.keys(service.tables)) {
        const key = `${service.service_id}:${table}`;
        if (!publishers.has(key)) publishers.set(key, []);
        publishers.get(key).push({ node: node.node_id, place });
      }
    });
  }
  const edges = [];
  for (const node of nodes) {
    node.services.forEach((service, place) => {
      for (const [id, table] of service.follows) {
        for (const from of publishers.get(`${id}:${table}`) ?? []) {
          edges.push({ from, to: { node: node.node_id, place }, name: `${id}:${table}` });
        }
      }
    });
  }
  return edges;
}

const cut = (text, most) => (text.length > most ? `${text.slice(0, most - 1)}…` : text);

export function draw(bus) {
  const nodes = bus.nodes.slice(0, 200);
  const edges = subscriptions(nodes).slice(0, 1000);
  const { places, width, height } = layout(nodes, edges);
  const rates = bus.rates?.tables ?? {};
  const lines = edges.map(({ from, to, name }) => {
    const a = places.get(from.node), b = places.get(to.node);
    const right = b.x > a.x;
    const x1 = a.x + (right || a === b ? WIDTH : 0), x2 = b.x + (right ? 0 : WIDTH);
    const y1 = a.y + HEAD + from.place * LINE + 6, y2 = b.y + HEAD + to.place * LINE + 6;
    const bend = right ? (x2 - x1) / 2 : 70;
    const curve = right ? `M${x1} ${y1}C${x1 + bend} ${y1} ${x2 - bend} ${y2} ${x2} ${y2}`
      : `M${x1} ${y1}C${x1 + bend} ${y1} ${x2 + bend} ${y2} ${x2} ${y2}`;
    const changes = rates[name]?.changes ?? 0;
    const text = changes > 0 ? `${rate(changes)}/s` : "";
    return s("g", null,
      s("path", { class: `edge ${changes > 0 ? "busy" : ""}`, d: curve, "stroke-width": 1.3 + Math.min(4, Math.log2(1 + changes)) },
        s("title", null, `${name}${text ? `, ${text}` : ", quiet"}`)),
      text && s("text", { class: "rate", x: (x1 + x2) / 2 + (right ? 0 : bend * 0.8), y: (y1 + y2) / 2 - 4, "text-anchor": "middle" }, text));
  });
  const boxes = nodes.map((node) => {
    const { x, y, tall } = places.get(node.node_id);
    const figures = bus.rates?.nodes?.[node.node_id];
    const doing = figures ? `${rate(figures.calls)} calls/s, ${rate(figures.changes)} changes/s` : "";
    return s("g", { class: `node ${node.state}`, tabindex: 0, role: "listitem", "data-node": node.node_id,
      "aria-label": `${node.node_id}, ${node.state}${doing && `, ${doing}`}, services: ${node.services.map((each) => each.service_id).join(", ") || "none"}` },
      s("title", null, `${node.node_id}: ${node.state}, heard ${node.last_heard.toFixed(1)} s ago${doing && `\n${doing}`}`),
      s("rect", { class: "box", x, y, width: WIDTH, height: tall, rx: 8 }),
      s("text", { x: x + 10, y: y + 18, "font-weight": 600 }, cut(node.node_id, 20)),
      s("text", { class: "state", x: x + WIDTH - 10, y: y + 18, "text-anchor": "end" }, node.state === "JOINED" ? "" : node.state),
      s("text", { class: "soft", x: x + 10, y: y + 33, "font-size": 11 }, doing),
      node.services.map((service, place) => s("text", { x: x + 10, y: y + HEAD + 12 + place * LINE }, cut(service.service_id, 26))));
  });
  const hidden = bus.nodes.length - nodes.length;
  const drawing = s("svg", { class: "graph", viewBox: `0 0 ${width} ${height}`, role: "list", "aria-label": "Nodes, services and subscriptions" },
    lines, boxes);
  drawing.style.maxWidth = `${Math.max(width * 1.25, 600)}px`;
  drawing.style.minWidth = `${Math.min(width, 900) * 0.85}px`;
  return h("div", { class: "scroll" }, drawing,
    hidden > 0 && h("p", { class: "soft" }, `${hidden} more nodes are in the list below.`));
}
