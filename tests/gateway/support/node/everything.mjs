// A server with all that the conformance tests of the Model Context Protocol ask for, made with the official SDK.
// Usage: node everything.mjs MODULES; prints the port that it listens on. It wants a token, as servers on the network do.
import { createServer } from 'node:http';
import { randomUUID } from 'node:crypto';
import { pathToFileURL } from 'node:url';

const sdk = (path) => import(pathToFileURL(`${process.argv[2]}/@modelcontextprotocol/sdk/dist/esm/${path}`));
const { Server } = await sdk('server/index.js');
const { StreamableHTTPServerTransport } = await sdk('server/streamableHttp.js');
const types = await sdk('types.js');

const PNG = 'iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8DwHwAFBQIAX8jx0gAAAABJRU5ErkJggg==';
const WAV = 'UklGRiQAAABXQVZFZm10IBAAAAABAAEAQB8AAEAfAAABAAgAZGF0YQAAAAA=';
const text = (said) => ({ type: 'text', text: said });
const image = { type: 'image', data: PNG, mimeType: 'image/png' };
const pause = (time) => new Promise((done) => setTimeout(done, time));
const nothing = { type: 'object', properties: {} };
const wants = (...names) => ({
  type: 'object', properties: Object.fromEntries(names.map((name) => [name, { type: 'string' }])), required: names,
});

// Events are kept, so that a stream that broke off can be taken up again.
class Events {
  kept = [];
  async storeEvent(stream, message) {
    this.kept.push({ id: `${stream}_${this.kept.length}`, stream, message });
    return this.kept.at(-1).id;
  }
  async replayEventsAfter(last, { send }) {
    const from = this.kept.findIndex((event) => event.id === last);
    const stream = last.slice(0, last.lastIndexOf('_'));
    for (const event of this.kept.slice(from + 1).filter((event) => event.stream === stream)) {
      if (Object.keys(event.message).length) await send(event.id, event.message);
    }
    return stream;
  }
}

async function elicit(extra, message, properties, required = []) {
  const params = { message, requestedSchema: { type: 'object', properties, required } };
  const said = await extra.sendRequest({ method: 'elicitation/create', params }, types.ElicitResultSchema);
  return `action=${said.action}, content=${JSON.stringify(said.content ?? {})}`;
}

const options = ['option1', 'option2', 'option3'];
const titled = [1, 2, 3].map((n) => ({ const: `value${n}`, title: `Option ${n}` }));
const tools = {
  test_simple_text: [nothing, () => [text('This is a simple text response for testing.')]],
  test_image_content: [nothing, () => [image]],
  test_audio_content: [nothing, () => [{ type: 'audio', data: WAV, mimeType: 'audio/wav' }]],
  test_embedded_resource: [nothing, () => [{ type: 'resource', resource: {
    uri: 'test://embedded-resource', mimeType: 'text/plain', text: 'This is an embedded resource content.' } }]],
  test_multiple_content_types: [nothing, () => [text('Multiple content types test:'), image, { type: 'resource', resource: {
    uri: 'test://mixed-content-resource', mimeType: 'application/json', text: '{"test":"data","value":123}' } }]],
  test_tool_with_logging: [nothing, async (_, extra) => {
    for (const data of ['Tool execution started', 'Tool processing data', 'Tool execution completed']) {
      await extra.sendNotification({ method: 'notifications/message', params: { level: 'info', data } });
      await pause(50);
    }
    return [text('logged')];
  }],
  test_tool_with_progress: [nothing, async (_, extra) => {
    const progressToken = extra._meta?.progressToken;
    for (const progress of [0, 50, 100]) {
      const params = { progressToken, progress, total: 100 };
      if (progressToken !== undefined) await extra.sendNotification({ method: 'notifications/progress', params });
      await pause(50);
    }
    return [text('done')];
  }],
  test_error_handling: [nothing, () => { throw new Error('This tool intentionally returns an error for testing'); }],
  test_reconnection: [nothing, async (_, extra) => {
    extra.closeSSEStream?.();
    await pause(200);
    return [text('Reconnection test completed successfully')];
  }],
  test_sampling: [wants('prompt'), async ({ prompt }, extra) => {
    const params = { messages: [{ role: 'user', content: text(prompt) }], maxTokens: 100 };
    const said = await extra.sendRequest({ method: 'sampling/createMessage', params }, types.CreateMessageResultSchema);
    return [text(`LLM response: ${said.content.text}`)];
  }],
  test_elicitation: [wants('message'), async ({ message }, extra) => {
    const field = (description) => ({ type: 'string', description });
    const fields = { username: field("User's response"), email: field("User's email address") };
    return [text(`User response: ${await elicit(extra, message, fields, ['username', 'email'])}`)];
  }],
  test_elicitation_sep1034_defaults: [nothing, async (_, extra) => [text(`Elicitation completed: ${await elicit(extra, 'Defaults', {
    name: { type: 'string', default: 'John Doe' }, age: { type: 'integer', default: 30 }, score: { type: 'number', default: 95.5 },
    status: { type: 'string', enum: ['active', 'inactive', 'pending'], default: 'active' }, verified: { type: 'boolean', default: true },
  })}`)]],
  test_elicitation_sep1330_enums: [nothing, async (_, extra) => [text(`Elicitation completed: ${await elicit(extra, 'Choices', {
    untitledSingle: { type: 'string', enum: options }, titledSingle: { type: 'string', oneOf: titled },
    legacyEnum: { type: 'string', enum: ['opt1', 'opt2', 'opt3'], enumNames: ['Option One', 'Option Two', 'Option Three'] },
    untitledMulti: { type: 'array', items: { type: 'string', enum: options } }, titledMulti: { type: 'array', items: { anyOf: titled } },
  })}`)]],
  json_schema_2020_12_tool: [{
    $schema: 'https://json-schema.org/draft/2020-12/schema', type: 'object',
    $defs: { address: { type: 'object', properties: { street: { type: 'string' }, city: { type: 'string' } } } },
    properties: { name: { type: 'string' }, address: { $ref: '#/$defs/address' } }, additionalProperties: false,
  }, () => [text('kept')]],
};

const user = (content) => ({ role: 'user', content });
const prompts = {
  test_simple_prompt: [[], () => [user(text('This is a simple prompt for testing.'))]],
  test_prompt_with_arguments: [['arg1', 'arg2'], ({ arg1, arg2 }) => [user(text(`Prompt with arguments: arg1='${arg1}', arg2='${arg2}'`))]],
  test_prompt_with_embedded_resource: [['resourceUri'], ({ resourceUri }) => [
    user({ type: 'resource', resource: { uri: resourceUri, mimeType: 'text/plain', text: 'Embedded resource content for testing.' } }),
    user(text('Please process the embedded resource above.'))]],
  test_prompt_with_image: [[], () => [user(image), user(text('Please analyze the image above.'))]],
};

const resources = {
  'test://static-text': { mimeType: 'text/plain', text: 'This is the content of the static text resource.' },
  'test://static-binary': { mimeType: 'image/png', blob: PNG },
  'test://watched-resource': { mimeType: 'text/plain', text: 'watched' },
};

function served() {
  const capabilities = { tools: { listChanged: true }, prompts: {}, resources: { subscribe: true }, completions: {}, logging: {} };
  const server = new Server({ name: 'everything', version: '1.0.0' }, { capabilities });
  const on = (schema, answer) => server.setRequestHandler(schema, answer);
  on(types.ListToolsRequestSchema, () => ({
    tools: Object.entries(tools).map(([name, [inputSchema]]) => ({ name, description: `The tool ${name}`, inputSchema })),
  }));
  on(types.CallToolRequestSchema, async ({ params }, extra) => {
    if (!tools[params.name]) throw new types.McpError(types.ErrorCode.InvalidParams, 'no such tool');
    try {
      return { content: await tools[params.name][1](params.arguments ?? {}, extra) };
    } catch (error) {
      return { content: [text(error.message)], isError: true };
    }
  });
  on(types.ListPromptsRequestSchema, () => ({
    prompts: Object.entries(prompts).map(([name, [names]]) => ({
      name, description: `The prompt ${name}`, arguments: names.map((name) => ({ name, description: name, required: true })),
    })),
  }));
  on(types.GetPromptRequestSchema, ({ params }) => ({ messages: prompts[params.name][1](params.arguments ?? {}) }));
  on(types.ListResourcesRequestSchema, () => ({
    resources: Object.entries(resources).map(([uri, { mimeType }]) => ({ uri, name: uri, description: uri, mimeType })),
  }));
  on(types.ListResourceTemplatesRequestSchema, () => ({
    resourceTemplates: [{ uriTemplate: 'test://template/{id}/data', name: 'template', description: 'Data by id', mimeType: 'application/json' }],
  }));
  on(types.ReadResourceRequestSchema, ({ params: { uri } }) => {
    const id = /^test:\/\/template\/(.+)\/data$/.exec(uri)?.[1];
    const data = JSON.stringify({ id, templateTest: true, data: `Data for ID: ${id}` });
    const found = id ? { mimeType: 'application/json', text: data } : resources[uri];
    if (!found) throw new types.McpError(-32002, 'Resource not found');
    return { contents: [{ uri, ...found }] };
  });
  on(types.SubscribeRequestSchema, () => ({}));
  on(types.UnsubscribeRequestSchema, () => ({}));
  on(types.SetLevelRequestSchema, () => ({}));
  on(types.CompleteRequestSchema, () => ({ completion: { values: ['paris', 'park', 'party'], total: 150, hasMore: false } }));
  return server;
}

const sessions = {};
const http = createServer(async (request, answer) => {
  if (request.headers.authorization !== 'Bearer the-token') return answer.writeHead(401).end();
  const known = sessions[request.headers['mcp-session-id']];
  if (request.headers['mcp-session-id'] && !known) return answer.writeHead(404).end();
  if (known) return known.handleRequest(request, answer);
  const transport = new StreamableHTTPServerTransport({
    sessionIdGenerator: () => randomUUID(), eventStore: new Events(), retryInterval: 200,
    onsessioninitialized: (id) => { sessions[id] = transport; },
  });
  await served().connect(transport);
  await transport.handleRequest(request, answer);
});
http.listen(0, '127.0.0.1', () => console.log(http.address().port));
