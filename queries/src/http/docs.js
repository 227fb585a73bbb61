// Shows /openapi.json: every operation with its parameters, body and answers. Text only, nothing from elsewhere.
"use strict";

const element = (tag, text, ...children) => {
  const made = document.createElement(tag);
  if (text !== undefined && text !== null) made.textContent = text;
  made.append(...children);
  return made;
};

const table = (heads, rows) => {
  const body = element("tbody", null, ...rows.map((row) => element("tr", null, ...row.map((text) => element("td", text)))));
  return element("table", null, element("thead", null, element("tr", null, ...heads.map((text) => element("th", text)))), body);
};

const kind = (schema) => {
  if (!schema) return "";
  if (schema.$ref) return schema.$ref.split("/").pop();
  if (schema.enum) return schema.enum.join(" | ");
  return [].concat(schema.type || "any").join(" or ");
};

const section = (path, method, operation) => {
  const details = element("details", null, element("summary", `${method.toUpperCase()} ${path}`));
  details.append(element("p", operation.summary));
  const parameters = operation.parameters || [];
  if (parameters.length) {
    details.append(table(["parameter", "in", "type", ""], parameters.map((p) => [p.name, p.in, kind(p.schema), p.description || ""])));
  }
  for (const [type, content] of Object.entries((operation.requestBody || {}).content || {})) {
    details.append(element("p", `Body: ${type}, ${kind(content.schema)}`));
  }
  details.append(table(["status", "", "content"], Object.entries(operation.responses).map(([status, response]) =>
    [status, response.description, Object.entries(response.content || {}).map(([type, c]) => `${type}: ${kind(c.schema)}`).join(", ")])));
  return details;
};

const show = async () => {
  const contract = await (await fetch("/openapi.json")).json();
  document.getElementById("about").textContent = `${contract.info.version}. ${contract.info.description}`;
  const list = document.getElementById("operations");
  for (const [path, methods] of Object.entries(contract.paths)) {
    for (const [method, operation] of Object.entries(methods)) list.append(section(path, method, operation));
  }
  list.append(element("h2", "Schemas"));
  for (const [name, schema] of Object.entries(contract.components.schemas)) {
    list.append(element("details", null, element("summary", name), element("pre", JSON.stringify(schema, null, 2))));
  }
};

document.documentElement.dataset.scheme = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
show().catch((error) => { document.getElementById("about").textContent = String(error); });
