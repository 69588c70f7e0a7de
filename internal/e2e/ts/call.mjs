// Calls one tool as a client on the TypeScript SDK does and prints what came of it as JSON.
// usage: node call.mjs URL TOOL ARGUMENTS [TIMEOUT_MS]
// SUPERVISE_TOKEN is sent as bearer token when it is set. Progress resets the timeout.
import { Client } from "@modelcontextprotocol/sdk/client/index.js";
import { StreamableHTTPClientTransport } from "@modelcontextprotocol/sdk/client/streamableHttp.js";

const [url, name, args, timeout = "60000"] = process.argv.slice(2);
const headers = process.env.SUPERVISE_TOKEN ? { Authorization: `Bearer ${process.env.SUPERVISE_TOKEN}` } : {};
const transport = new StreamableHTTPClientTransport(new URL(url), { requestInit: { headers } });
const client = new Client({ name: "e2e-typescript", version: "1.0.0" });
const progress = [];
const out = {};
try {
  await client.connect(transport);
  out.protocolVersion = transport.protocolVersion;
  out.tools = (await client.listTools()).tools.map((t) => t.name);
  out.result = await client.callTool({ name, arguments: JSON.parse(args) }, undefined, {
    timeout: Number(timeout),
    resetTimeoutOnProgress: true,
    onprogress: (p) => progress.push(p.message ?? ""),
  });
  await transport.terminateSession();
} catch (err) {
  out.error = String(err);
}
out.progress = progress;
console.log(JSON.stringify(out));
await client.close();
process.exit(out.error ? 1 : 0);
