// An independent mock of providers. Prints its port, and ends with its input.

import { LLMock } from "@copilotkit/aimock";

const mock = new LLMock({ port: 0, host: "127.0.0.1" });
const given = JSON.stringify({ city: "Berlin", days: 7 });
mock.on({ userMessage: "use the tools", hasToolResult: true }, { content: "The mock was told." });
mock.on(
  { userMessage: "use the tools", hasToolResult: false },
  { toolCalls: [{ name: "weather", arguments: given }, { name: "time", arguments: given }] },
);
mock.onMessage("say hello", { content: "An answer of the mock." });
mock.onMessage("give me json", { content: JSON.stringify({ city: "Berlin", people: 7 }) });
for (const status of [400, 500]) {
  mock.onMessage(`fail with ${status}`, { error: { message: "as it was asked", type: "some_error" }, status });
}
await mock.start();
console.log(new URL(mock.url).port);
process.stdin.resume();
process.stdin.on("end", () => process.exit(0));
