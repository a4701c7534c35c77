//! Tools for agents by the Model Context Protocol: routes and operations that are published, and servers that are federated.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};

use crate::support::gateway::{key_hash, problems_of};
use crate::support::origin::Received;
use crate::support::*;

const BOTH: &str = "application/json, text/event-stream";

/// One caller in one session.
struct Agent<'g> {
    gateway: &'g Gateway,
    key: Option<&'static str>,
    session: String,
    version: &'static str,
}

fn message(key: Option<&str>, session: Option<&str>, version: Option<&str>, message: &Value) -> Call {
    let call =
        Call::post("/mcp", message.to_string()).header("Content-Type", "application/json").header("Accept", BOTH);
    let call = key.into_iter().fold(call, |call, key| call.header("x-api-key", key));
    let call = session.into_iter().fold(call, |call, id| call.header("Mcp-Session-Id", id));
    version.into_iter().fold(call, |call, version| call.header("MCP-Protocol-Version", version))
}

fn initialize(version: &str) -> Value {
    json!({ "jsonrpc": "2.0", "id": 0, "method": "initialize", "params": {
        "protocolVersion": version, "capabilities": { "elicitation": {} }, "clientInfo": { "name": "test", "version": "1" },
    } })
}

impl<'g> Agent<'g> {
    async fn begin(gateway: &'g Gateway) -> Self {
        Agent::with(gateway, None, "2025-11-25").await
    }

    async fn with(gateway: &'g Gateway, key: Option<&'static str>, version: &'static str) -> Self {
        let answer = gateway.call(&message(key, None, None, &initialize(version))).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(answer.json()["result"]["protocolVersion"], version);
        let session = answer.header("mcp-session-id").expect("a session").to_owned();
        let agent = Agent { gateway, key, session, version };
        let told = agent.post(&json!({ "jsonrpc": "2.0", "method": "notifications/initialized" })).await;
        assert_eq!((told.status, told.body.len()), (202, 0));
        agent
    }

    fn call(&self, of: &Value) -> Call {
        message(self.key, Some(&self.session), Some(self.version), of)
    }

    async fn post(&self, message: &Value) -> Answer {
        self.gateway.call(&self.call(message)).await
    }

    /// The answer to a request, whether it comes as JSON or on a stream.
    async fn ask(&self, method: &str, params: Value) -> Value {
        let answer = self.post(&json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params })).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        match answer.header("content-type") {
            Some("application/json") => answer.json(),
            _ => events(&answer.text()).pop().expect("an answer"),
        }
    }

    async fn tool(&self, name: &str, arguments: Value) -> Value {
        self.ask("tools/call", json!({ "name": name, "arguments": arguments })).await
    }

    async fn tools(&self) -> Vec<String> {
        let listed = self.ask("tools/list", json!({})).await;
        let tools = listed["result"]["tools"].as_array().unwrap_or_else(|| panic!("{listed}"));
        tools.iter().map(|tool| tool["name"].as_str().unwrap().to_owned()).collect()
    }
}

/// The messages of a stream.
fn events(stream: &str) -> Vec<Value> {
    let data = stream.lines().filter_map(|line| line.strip_prefix("data: ")).filter(|data| !data.is_empty());
    data.map(|data| serde_json::from_str(data).unwrap_or_else(|error| panic!("{data}: {error}"))).collect()
}

fn text(answer: &Value) -> &str {
    answer["result"]["content"][0]["text"].as_str().unwrap_or_else(|| panic!("{answer}"))
}

const SHOP: &str = "
access_log: { to: { file: '{{dir}}/access.log' } }
upstreams: { shop: { targets: [{ address: '{{origin}}' }] } }
services:
  shop:
    FILTERS
    routes:
      order: { match: { path: '/orders/{id}', methods: [GET] }, backend: { upstream: shop } }
      create: { match: { path: /orders, methods: [POST] }, backend: { upstream: shop } }
  tools:
    FILTERS
    routes:
      mcp:
        match: { path: /mcp }
        backend:
          mcp:
            tools:
              get_order:
                route: shop/order
                description: One order
                parameters: { expand: { schema: { type: boolean }, description: With its items } }
              create_order: { route: shop/create, body: { type: object } }
            MORE
";

fn shop(filters: &str, more: &str) -> String {
    SHOP.replace("FILTERS", filters).replace("MORE", more)
}

/// Answers with what it was asked.
fn echo(request: &Received) -> Reply {
    let body = json!({
        "method": request.method, "target": request.target, "body": String::from_utf8_lossy(&request.body),
        "key": request.headers.get("x-api-key"), "for": request.headers.get("x-forwarded-for"),
        "consumer": request.headers.get("x-consumer-username"),
    });
    Reply::with(200, &[("Content-Type", "application/json")], body.to_string())
}

const KEYS: &str = "access: authenticated\n    filters: [{ api_key: { from: [{ header: x-api-key }] } }]";
const MOBILE: &str = "hgk_a1234567890123456789012345678901";
const INTERN: &str = "hgk_b1234567890123456789012345678901";

fn consumers() -> String {
    format!(
        "identity: {{ pepper: env:PEPPER, headers: {{ x-consumer-username: '${{consumer}}' }} }}\n\
         consumers:\n  mobile: {{ team: apps, credentials: [{{ api_key: {{ hash: '{}' }} }}] }}\n  \
         intern: {{ credentials: [{{ api_key: {{ hash: '{}' }} }}] }}\n",
        key_hash(MOBILE),
        key_hash(INTERN),
    )
}

async fn start(yaml: &str, origin: &Origin) -> Gateway {
    Gateway::builder(yaml).origin(origin).environment("PEPPER", "a pepper for tests").start().await
}

#[tokio::test]
async fn a_route_is_a_tool_whose_calls_take_the_routes_own_way_as_the_caller() {
    let origin = Origin::start(echo).await;
    let gateway = start(&(shop(KEYS, "") + &consumers()), &origin).await;
    let agent = Agent::with(&gateway, Some(MOBILE), "2025-11-25").await;
    let listed = agent.ask("tools/list", json!({})).await;
    let tools = listed["result"]["tools"].as_array().unwrap();
    assert_eq!(tools.len(), 2, "{listed}");
    assert_eq!(
        tools[1],
        json!({
            "name": "get_order", "description": "One order",
            "inputSchema": {
                "type": "object", "additionalProperties": false, "required": ["id"],
                "properties": { "expand": { "type": "boolean", "description": "With its items" }, "id": { "type": "string" } },
            },
            "annotations": { "readOnlyHint": true, "idempotentHint": true },
        })
    );
    assert_eq!(
        tools[0]["annotations"],
        json!({ "readOnlyHint": false, "destructiveHint": false, "idempotentHint": false })
    );

    let got = agent.tool("get_order", json!({ "id": "a b", "expand": true })).await;
    let seen = &got["result"]["structuredContent"];
    assert_eq!((&seen["method"], &seen["target"]), (&json!("GET"), &json!("/orders/a%20b?expand=true")), "{got}");
    assert_eq!(seen["consumer"], "mobile", "the route knows who calls");
    assert_eq!(seen["key"], Value::Null, "and keeps the key to itself");
    assert_eq!(seen["for"], "127.0.0.1");
    assert_eq!(serde_json::from_str::<Value>(text(&got)).unwrap(), *seen);
    let created = agent.tool("create_order", json!({ "body": { "item": "tea" } })).await;
    assert_eq!(created["result"]["structuredContent"]["body"], r#"{"item":"tea"}"#);

    let lines = gateway.access_log(7).await;
    let of = |route: &str| lines.iter().filter(|line| line["route"] == route).collect::<Vec<_>>();
    let (calls, orders) = (of("mcp"), of("order"));
    let call = calls.iter().find(|line| line["mcp"]["name"] == "get_order").unwrap();
    assert_eq!(call["mcp"], json!({ "method": "tools/call", "name": "get_order" }));
    assert_eq!((orders.len(), &orders[0]["consumer"]), (1, &json!("mobile")));
    assert_eq!(orders[0]["request_id"], call["request_id"], "both lines are found by one id");
    assert!(!format!("{lines:?}").contains(MOBILE));
    let labels = [("tool", "get_order"), ("server", "-"), ("outcome", "success")];
    assert_eq!(gateway.metric("headgate_mcp_tool_calls_total", &labels).await, 1.0);
    assert_eq!(gateway.metric("headgate_mcp_messages_total", &[("method", "tools/call")]).await, 2.0);
    assert_eq!(gateway.metric("headgate_mcp_sessions", &[("service", "tools"), ("route", "mcp")]).await, 1.0);
}

#[tokio::test]
async fn a_route_refuses_a_tools_caller_as_it_refuses_anyone() {
    let origin = Origin::start(echo).await;
    let yaml =
        shop("", "").replacen("routes:", "access: authenticated\n    filters: [{ api_key: {} }]\n    routes:", 1);
    let gateway = start(&(yaml + &consumers()), &origin).await;
    let agent = Agent::begin(&gateway).await;
    let refused = agent.tool("get_order", json!({ "id": "1" })).await;
    assert_eq!(refused["result"]["isError"], true, "{refused}");
    assert_eq!(text(&refused), "HTTP 401 Unauthorized");
    assert_eq!(origin.count(), 0);
    let failures = [("outcome", "failure")];
    assert!(gateway.metric_becomes("headgate_mcp_tool_calls_total", &failures, |count| count == 1.0).await);
}

#[tokio::test]
async fn a_call_that_makes_no_request_is_a_result_that_a_model_can_learn_from() {
    let origin = Origin::start(echo).await;
    let gateway = start(&shop("", ""), &origin).await;
    let agent = Agent::begin(&gateway).await;
    for (arguments, said) in [
        (json!({}), "`id` is missing"),
        (json!({ "id": ".." }), "no path"),
        (json!({ "id": "a/../../admin" }), "no segment"),
        (json!({ "id": "1", "xpand": true }), "did you mean `expand`"),
    ] {
        let wrong = agent.tool("get_order", arguments).await;
        assert_eq!(wrong["result"]["isError"], true, "{wrong}");
        assert!(text(&wrong).contains(said), "{wrong}");
    }
    assert_eq!(origin.count(), 0);
    let unknown = agent.tool("drop_table", json!({})).await;
    assert_eq!(unknown["error"], json!({ "code": -32602, "message": "Unknown tool: drop_table" }));
}

#[tokio::test]
async fn answers_of_origins_become_what_models_read() {
    let origin = Origin::start(|request| match request.path() {
        "/orders/image" => Reply::with(200, &[("Content-Type", "image/png")], b"\x89PNG"),
        "/orders/none" => Reply::with(204, &[], ""),
        "/orders/missing" => Reply::with(404, &[("Content-Type", "text/plain")], "no such order"),
        "/orders/large" => Reply::with(200, &[], "x".repeat(200_000)),
        "/orders/silent" => Reply::silence().hold(),
        "/orders/broken" => Reply::raw("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc").close(),
        _ => Reply::with(200, &[("Content-Type", "text/event-stream")], "data: 1\n\n"),
    })
    .await;
    let gateway = start(&shop("", "max_answer: 100KiB\n            timeout: 1s"), &origin).await;
    let agent = Agent::begin(&gateway).await;
    let content = async |id: &str| agent.tool("get_order", json!({ "id": id })).await["result"].clone();
    assert_eq!(
        content("image").await["content"][0],
        json!({ "type": "image", "data": "iVBORw==", "mimeType": "image/png" })
    );
    assert_eq!(content("none").await["content"][0]["text"], "HTTP 204 No Content");
    let missing = content("missing").await;
    assert_eq!((&missing["isError"], &missing["content"][1]["text"]), (&json!(true), &json!("no such order")));
    assert_eq!(content("stream").await["content"][0]["text"], "data: 1\n\n");
    for (id, said) in [("large", "longer than"), ("silent", "in time"), ("broken", "broke off")] {
        let failed = content(id).await;
        assert_eq!(failed["isError"], true, "{failed}");
        assert!(failed["content"][0]["text"].as_str().unwrap().contains(said), "{failed}");
    }
    assert!(origin.abandoned().await, "nobody waits for what is given up");
}

#[tokio::test]
async fn a_session_is_its_callers_alone_lives_over_a_reload_and_ends_when_told() {
    let origin = Origin::start(echo).await;
    let yaml = shop(KEYS, "") + &consumers();
    let mut gateway = start(&yaml, &origin).await;
    let answer =
        gateway.call(&message(Some(MOBILE), None, None, &json!({ "jsonrpc": "2.0", "id": 1, "method": "ping" }))).await;
    assert_eq!((answer.status, answer.json()["error"]["code"].clone()), (400, json!(-32600)), "no session is named");
    let agent = Agent::with(&gateway, Some(MOBILE), "2025-06-18").await;
    let session = agent.session.clone();
    let ping = json!({ "jsonrpc": "2.0", "id": "p", "method": "ping" });
    let by = |key, session: &str| message(Some(key), Some(session), None, &ping);
    assert_eq!(gateway.call(&by(MOBILE, &session)).await.json(), json!({ "jsonrpc": "2.0", "id": "p", "result": {} }));
    let stolen = gateway.call(&by(INTERN, &session)).await;
    assert_eq!(
        (stolen.status, stolen.json()["error"]["code"].clone()),
        (404, json!(-32001)),
        "the session is another's"
    );
    assert_eq!(gateway.call(&by(MOBILE, "made-up")).await.status, 404);
    assert_eq!(gateway.reload(&yaml.replace("One order", "An order")).await.status, 200);
    assert_eq!(gateway.call(&by(MOBILE, &session)).await.status, 200, "a reload ends no session");
    let end = Call::new("DELETE", "/mcp").header("x-api-key", MOBILE).header("Mcp-Session-Id", &session);
    assert_eq!(gateway.call(&end).await.status, 204);
    assert_eq!(gateway.call(&by(MOBILE, &session)).await.status, 404);
    assert_eq!(gateway.call(&end).await.status, 404);
    assert_eq!(gateway.metric("headgate_mcp_sessions", &[]).await, 0.0);
}

#[tokio::test]
async fn sessions_are_bounded_in_number_and_time() {
    let origin = Origin::start(echo).await;
    let bounds = "sessions: { max: 3, per_caller: 2, idle: 1s }";
    let gateway = start(&(shop(KEYS, bounds) + &consumers()), &origin).await;
    let first = Agent::with(&gateway, Some(MOBILE), "2025-11-25").await;
    let second = Agent::with(&gateway, Some(MOBILE), "2025-11-25").await;
    let third = Agent::with(&gateway, Some(MOBILE), "2025-11-25").await;
    let ping = json!({ "jsonrpc": "2.0", "id": 1, "method": "ping" });
    let lives = async |agent: &Agent| agent.post(&ping).await.status == 200;
    assert!(
        !lives(&first).await && lives(&second).await && lives(&third).await,
        "who begins too many loses the oldest"
    );
    Agent::with(&gateway, Some(INTERN), "2025-11-25").await;
    let full = gateway.call(&message(Some(INTERN), None, None, &initialize("2025-11-25"))).await;
    assert_eq!(full.status, 503, "{}", full.text());
    assert!(
        eventually(PATIENCE, async || gateway
            .call(&message(Some(INTERN), None, None, &initialize("2025-11-25")))
            .await
            .status
            == 200)
        .await
    );
    assert!(!lives(&second).await, "it was idle for too long");
}

#[tokio::test]
async fn pages_of_other_origins_may_not_call() {
    let origin = Origin::start(echo).await;
    let gateway = start(&shop("", "allowed_origins: ['https://app.example.com']"), &origin).await;
    let from = async |page: &str| {
        let call = message(None, None, None, &initialize("2025-11-25")).header("Origin", page);
        gateway.call(&call).await.status
    };
    assert_eq!(from("https://app.example.com").await, 200);
    for page in ["http://localhost:3000", "http://127.0.0.1", "http://[::1]:80"] {
        assert_eq!(from(page).await, 200, "{page} is of this machine, and comes from it");
    }
    for page in [
        "https://evil.example.com",
        "https://app.example.com.evil.com",
        "http://localhost.evil.com",
        "null",
        "localhost",
    ] {
        assert_eq!(from(page).await, 403, "{page}");
    }
    let rebound = message(None, None, None, &initialize("2025-11-25"))
        .host("evil.example.com")
        .header("Origin", "http://evil.example.com");
    assert_eq!(gateway.call(&rebound).await.status, 403, "that the host is the same says nothing");
}

#[tokio::test]
async fn what_is_no_message_is_refused_as_the_protocol_says() {
    let origin = Origin::start(echo).await;
    let gateway = start(&shop("", "max_body: 64KiB"), &origin).await;
    let agent = Agent::begin(&gateway).await;
    let post = |body: &str| {
        let call = Call::post("/mcp", body).header("Mcp-Session-Id", &agent.session);
        call.header("Content-Type", "application/json").header("Accept", BOTH)
    };
    let deep = format!("{}{}", "[".repeat(30_000), "]".repeat(30_000));
    for (body, status, code) in [
        ("{", 400, -32700),
        (deep.as_str(), 400, -32700),
        ("1", 400, -32600),
        (r#"{"id":1,"method":"ping"}"#, 400, -32600),
        (r#"{"jsonrpc":"2.0","id":null,"method":"ping"}"#, 400, -32600),
        (r#"[{"jsonrpc":"2.0","id":1,"method":"ping"}]"#, 400, -32600),
    ] {
        let answer = gateway.call(&post(body)).await;
        let shown: String = body.chars().take(60).collect();
        assert_eq!(
            (answer.status, &answer.json()["error"]["code"]),
            (status, &json!(code)),
            "{shown}: {}",
            answer.text()
        );
    }
    assert_eq!(gateway.call(&post(&"x".repeat(65 << 10))).await.status, 413);
    let ping = r#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#;
    let with = |kind: &str, accept: &str| {
        let call = Call::post("/mcp", ping).header("Mcp-Session-Id", &agent.session);
        call.header("Content-Type", kind).header("Accept", accept)
    };
    assert_eq!(gateway.call(&with("text/plain", BOTH)).await.status, 415);
    assert_eq!(gateway.call(&with("application/json", "text/html")).await.status, 406);
    let events_only = gateway.call(&with("application/json", "text/event-stream")).await;
    assert_eq!(events(&events_only.text()), [json!({ "jsonrpc": "2.0", "id": 1, "result": {} })]);
    let other = gateway.call(&post(ping).header("MCP-Protocol-Version", "2026-07-28")).await;
    assert_eq!(other.status, 400);
    let error = &other.json()["error"];
    assert_eq!((&error["code"], &error["data"]["supported"][2]), (&json!(-32022), &json!("2025-11-25")));
    assert_eq!(gateway.call(&Call::new("PUT", "/mcp")).await.status, 405);
    let unknown = agent.ask("tasks/list", json!({})).await;
    assert_eq!(unknown["error"]["code"], -32601);
}

#[tokio::test]
async fn the_first_revision_has_batches() {
    let origin = Origin::start(echo).await;
    let gateway = start(&shop("", ""), &origin).await;
    let agent = Agent::with(&gateway, None, "2025-03-26").await;
    let batch = json!([
        { "jsonrpc": "2.0", "id": 1, "method": "ping" },
        { "jsonrpc": "2.0", "method": "notifications/cancelled", "params": { "requestId": 9 } },
        { "jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": { "name": "get_order", "arguments": { "id": "7" } } },
        { "jsonrpc": "2.0", "id": 3 },
    ]);
    let answers = agent.post(&batch).await.json();
    let ids: Vec<_> = answers.as_array().unwrap().iter().map(|answer| answer["id"].clone()).collect();
    assert_eq!(ids, [json!(1), json!(2), Value::Null]);
    assert_eq!(answers[1]["result"]["structuredContent"]["target"], "/orders/7");
    let silent = agent.post(&json!([{ "jsonrpc": "2.0", "method": "notifications/initialized" }])).await;
    assert_eq!(silent.status, 202);
    assert_eq!(agent.post(&json!([])).await.status, 400);
}

#[tokio::test]
async fn a_rule_hides_tools_from_whom_it_does_not_let_call_them_and_limits_those_it_does() {
    let origin = Origin::start(echo).await;
    let rules = "rules:
              - { tools: ['create_*'], filters: [{ acl: { allow: { teams: [apps] } } }] }
              - { tools: ['get_order'], filters: [{ rate_limit: { rate: 2/h, by: consumer } }] }";
    let gateway = start(&(shop(KEYS, rules) + &consumers()), &origin).await;
    let mobile = Agent::with(&gateway, Some(MOBILE), "2025-11-25").await;
    let intern = Agent::with(&gateway, Some(INTERN), "2025-11-25").await;
    assert_eq!(mobile.tools().await, ["create_order", "get_order"]);
    assert_eq!(intern.tools().await, ["get_order"]);
    let refused = intern.tool("create_order", json!({ "body": {} })).await;
    assert_eq!(refused["error"]["message"], "Unknown tool: create_order", "as one that is not there");
    assert_eq!(origin.count(), 0);
    assert_eq!(mobile.tool("create_order", json!({ "body": {} })).await["result"]["isError"], Value::Null);
    for _ in 0..2 {
        assert!(mobile.tool("get_order", json!({ "id": "1" })).await["result"].is_object());
    }
    let limited = mobile.tool("get_order", json!({ "id": "1" })).await;
    assert_eq!(
        (&limited["error"]["code"], &limited["error"]["data"]["reason"]),
        (&json!(-32003), &json!("rate_limited"))
    );
    assert!(limited["error"]["data"]["retry_after"].as_u64() > Some(0), "{limited}");
    assert!(intern.tool("get_order", json!({ "id": "1" })).await["result"].is_object(), "by consumer");
}

#[tokio::test]
async fn operations_of_an_openapi_document_are_tools() {
    let origin = Origin::start(echo).await;
    let document = "openapi: 3.1.0
info: { title: Shop, version: '1' }
servers: [{ url: 'https://shop.example.com/' }]
paths:
  /orders/{number}:
    get:
      operationId: getOrder
      description: An order by number
      parameters:
        - { name: number, in: path, required: true, schema: { type: integer } }
        - { name: fields, in: query, schema: { type: array, items: { type: string } } }
      responses: { '200': { description: it } }
  /orders:
    post:
      operationId: placeOrder
      tags: [write]
      requestBody: { content: { application/json: { schema: { $ref: '#/components/schemas/Order' } } } }
      responses: { '201': { description: done } }
components: { schemas: { Order: { type: object, properties: { item: { type: string } } } } }
";
    let yaml = shop("", "openapi: [{ file: '{{dir}}/shop.yaml', prefix: shop_ }]");
    let builder = Gateway::builder(&yaml).origin(&origin);
    std::fs::write(builder.directory().join("shop.yaml"), document).unwrap();
    let gateway = builder.start().await;
    let agent = Agent::begin(&gateway).await;
    assert_eq!(agent.tools().await, ["create_order", "get_order", "shop_getOrder", "shop_placeOrder"]);
    let got = agent.tool("shop_getOrder", json!({ "number": 7, "fields": ["a", "b"] })).await;
    assert_eq!(got["result"]["structuredContent"]["target"], "/orders/7?fields=a&fields=b");
    let placed = agent.tool("shop_placeOrder", json!({ "body": { "item": "tea" } })).await;
    assert_eq!(placed["result"]["structuredContent"]["body"], r#"{"item":"tea"}"#);
}

#[tokio::test]
async fn a_tool_does_not_call_tools() {
    let origin = Origin::start(echo).await;
    let document = r#"{ "openapi": "3.0.0", "paths": { "/mcp": { "post": { "operationId": "again",
        "requestBody": { "content": { "application/json": {} } } } } } }"#;
    let builder = Gateway::builder(&shop("", "openapi: [{ file: '{{dir}}/loop.json' }]")).origin(&origin);
    std::fs::write(builder.directory().join("loop.json"), document).unwrap();
    let gateway = builder.start().await;
    let agent = Agent::begin(&gateway).await;
    let looped = agent.tool("again", json!({ "body": initialize("2025-11-25") })).await;
    assert_eq!(text(&looped), "HTTP 403 Forbidden", "{looped}");
}

#[tokio::test]
async fn who_leaves_or_cancels_ends_the_call() {
    let origin = Origin::start(|_| Reply::silence().hold()).await;
    let gateway = start(&shop("", ""), &origin).await;
    let agent = Agent::begin(&gateway).await;
    let call = json!({ "jsonrpc": "2.0", "id": 5, "method": "tools/call", "params": { "name": "get_order", "arguments": { "id": "1" } } });
    let mut leaving = gateway.connect().await;
    leaving.send(agent.call(&call).bytes()).await.unwrap();
    origin.received(1).await;
    drop(leaving);
    assert!(origin.abandoned().await);
    let (answer, ()) = tokio::join!(agent.post(&call), async {
        origin.received(2).await;
        let cancel = json!({ "jsonrpc": "2.0", "method": "notifications/cancelled", "params": { "requestId": 5, "reason": "no need" } });
        assert_eq!(agent.post(&cancel).await.status, 202);
    });
    assert_eq!(answer.json()["error"]["code"], -32004);
    assert!(origin.abandoned().await);
}

#[tokio::test]
async fn who_listens_learns_that_other_tools_are_offered() {
    let origin = Origin::start(echo).await;
    let yaml = shop("", "");
    let mut gateway = start(&yaml, &origin).await;
    let agent = Agent::begin(&gateway).await;
    let listen = Call::get("/mcp").header("Mcp-Session-Id", &agent.session).header("Accept", "text/event-stream");
    let (mut first, mut second) = (gateway.connect().await, gateway.connect().await);
    first.send(listen.bytes()).await.unwrap();
    assert_eq!(first.head().await.unwrap().0, 200);
    second.send(listen.bytes()).await.unwrap();
    assert_eq!(second.head().await.unwrap().0, 200);
    while first.chunk().await.unwrap().is_some() {}
    let session = agent.session.clone();
    assert_eq!(gateway.reload(&yaml.replace("One order", "An order")).await.status, 200);
    let said = second.chunk().await.unwrap().unwrap();
    let said = events(&String::from_utf8(said).unwrap());
    assert_eq!(said, [json!({ "jsonrpc": "2.0", "method": "notifications/tools/list_changed" })]);
    let end = Call::new("DELETE", "/mcp").header("Mcp-Session-Id", &session);
    assert_eq!(gateway.call(&end).await.status, 204);
    while second.chunk().await.unwrap().is_some() {}
    let unheard = Call::get("/mcp").header("Mcp-Session-Id", &session).header("Accept", "text/event-stream");
    assert_eq!(gateway.call(&unheard).await.status, 404);
}

/// A route with servers; `{{a}}` and `{{b}}` are where they are.
fn federated(servers: &str, more: &str) -> String {
    format!(
        "
access_log: {{ to: {{ file: '{{{{dir}}}}/access.log' }} }}
services:
  tools:
    routes:
      mcp:
        match: {{ path: /mcp }}
        backend:
          mcp:
            servers:
              {servers}
            {more}
"
    )
}

const A: &str = "a: { url: 'http://{{a}}/mcp', bearer: env:TOKEN, headers: { x-org: env:ORG } }";
const B: &str = "b: { url: 'http://{{b}}/rpc?x=1', prefix: 'other.' }";

/// A server with a session and two tools; `call` answers calls of them.
fn server(
    call: impl Fn(&Received, &Value) -> Reply + Send + Sync + 'static,
) -> impl Fn(&Received) -> Reply + Send + Sync {
    let sessions = AtomicUsize::new(0);
    move |request| {
        let message: Value = serde_json::from_slice(&request.body).unwrap_or_default();
        let answer =
            |result: Value| json_reply(&json!({ "jsonrpc": "2.0", "id": message["id"], "result": result }), &[]);
        match (request.method.as_str(), message["method"].as_str().unwrap_or("")) {
            ("POST", "initialize") => {
                let number = sessions.fetch_add(1, Ordering::Relaxed);
                let result = json!({ "protocolVersion": "2025-06-18", "capabilities": { "tools": {} }, "serverInfo": { "name": "s", "version": "1" } });
                json_reply(
                    &json!({ "jsonrpc": "2.0", "id": message["id"], "result": result }),
                    &[("Mcp-Session-Id", &format!("s{number}"))],
                )
            }
            ("POST", "tools/list") if message["params"]["cursor"].is_null() => {
                answer(json!({ "tools": [{ "name": "look", "inputSchema": { "type": "object" } }], "nextCursor": "2" }))
            }
            ("POST", "tools/list") => {
                answer(json!({ "tools": [{ "name": "touch", "inputSchema": { "type": "object" } }] }))
            }
            ("POST", "tools/call") => call(request, &message),
            ("POST", _) => Reply::with(202, &[], ""),
            ("DELETE", _) => Reply::with(204, &[], ""),
            _ => Reply::with(405, &[], ""),
        }
    }
}

fn json_reply(message: &Value, more: &[(&str, &str)]) -> Reply {
    let headers: Vec<_> = more.iter().copied().chain([("Content-Type", "application/json")]).collect();
    Reply::with(200, &headers, message.to_string())
}

fn done(message: &Value, said: &str) -> Value {
    json!({ "jsonrpc": "2.0", "id": message["id"], "result": { "content": [{ "type": "text", "text": said }] } })
}

const STREAM: &str = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";

fn chunk(event: &str) -> String {
    format!("{:x}\r\n{event}\r\n", event.len())
}

async fn federation(yaml: &str, a: &Origin, b: &Origin) -> Gateway {
    let builder = Gateway::builder(yaml).with("a", a.address).with("b", b.address);
    builder.environment("TOKEN", "s3cret").environment("ORG", "acme").start().await
}

#[tokio::test]
async fn tools_of_servers_are_offered_under_prefixes_and_called_by_their_own_names() {
    let said = |who: &'static str| {
        server(move |_, message| json_reply(&done(message, &format!("{who} {}", message["params"]["name"])), &[]))
    };
    let (a, b) = (Origin::start(said("a")).await, Origin::start(said("b")).await);
    let servers = format!("{A}\n              {}", B.replace("prefix:", "tools: ['lo*'], prefix:"));
    let gateway = federation(&federated(&servers, ""), &a, &b).await;
    let agent = Agent::begin(&gateway).await;
    assert_eq!(agent.tools().await, ["a_look", "a_touch", "other.look"], "all pages, and what is offered of them");
    assert_eq!(text(&agent.tool("a_touch", json!({ "x": 1 })).await), "a \"touch\"");
    assert_eq!(text(&agent.tool("other.look", json!({})).await), "b \"look\"");
    assert_eq!(agent.tool("other.touch", json!({})).await["error"]["code"], -32602, "not offered");
    assert_eq!(agent.tool("look", json!({})).await["error"]["code"], -32602);

    let calls = a.requests();
    let first = &calls[0];
    let body: Value = serde_json::from_slice(&first.body).unwrap();
    assert_eq!((body["method"].as_str(), &body["params"]["clientInfo"]["name"]), (Some("initialize"), &json!("test")));
    for request in &calls {
        assert_eq!(request.headers.get("authorization"), Some("Bearer s3cret"));
        assert_eq!(request.headers.get("x-org"), Some("acme"));
    }
    for request in &calls[1..] {
        assert_eq!(request.headers.get("mcp-session-id"), Some("s0"));
        assert_eq!(request.headers.get("mcp-protocol-version"), Some("2025-06-18"), "as the server has it");
    }
    let call: Value = serde_json::from_slice(&calls.last().unwrap().body).unwrap();
    assert_eq!(call["params"], json!({ "name": "touch", "arguments": { "x": 1 } }));
    assert_eq!(b.request(0).target, "/rpc?x=1");
    assert_eq!(b.request(0).headers.get("authorization"), None, "a token is for its server alone");

    let second = Agent::begin(&gateway).await;
    assert_eq!(second.tools().await.len(), 3);
    assert_eq!(a.count(), calls.len(), "lists are kept, and shared");
    let lines = gateway.access_log(8).await;
    let line = lines.iter().find(|line| line["mcp"]["name"] == "a_touch").unwrap();
    assert_eq!(line["mcp"], json!({ "method": "tools/call", "name": "a_touch", "server": "a" }));
    assert!(!format!("{lines:?}{}", gateway.logged()).contains("s3cret"));
    let labels = [("server", "a"), ("tool", "a_touch"), ("outcome", "success")];
    assert_eq!(gateway.metric("headgate_mcp_tool_calls_total", &labels).await, 1.0);
    let end = Call::new("DELETE", "/mcp").header("Mcp-Session-Id", &agent.session);
    assert_eq!(gateway.call(&end).await.status, 204);
    let ended = eventually(PATIENCE, async || a.requests().iter().any(|request| request.method == "DELETE")).await;
    assert!(ended, "with the session, those with servers end");
}

#[tokio::test]
async fn what_a_server_says_and_asks_during_a_call_reaches_the_caller_and_its_answer_the_server() {
    let (feeds, mut fed) = tokio::sync::mpsc::unbounded_channel();
    let a = Origin::start(server(move |_, _| {
        let (reply, feed) = Reply::fed(STREAM);
        feeds.send(feed).unwrap();
        reply
    }))
    .await;
    let gateway = federation(&federated(A, ""), &a, &a).await;
    let agent = Agent::begin(&gateway).await;
    let call = json!({ "jsonrpc": "2.0", "id": "c1", "method": "tools/call", "params": { "name": "a_look", "_meta": { "progressToken": "p" } } });
    let mut client = gateway.connect().await;
    client.send(agent.call(&call).bytes()).await.unwrap();
    let feed = fed.recv().await.unwrap();
    let progress = json!({ "jsonrpc": "2.0", "method": "notifications/progress", "params": { "progressToken": "p", "progress": 1 } });
    let asked = json!({ "jsonrpc": "2.0", "id": 0, "method": "elicitation/create", "params": { "message": "sure?" } });
    // An answer that nobody waits for is not for the caller.
    let stray = json!({ "jsonrpc": "2.0", "id": "c2", "result": {} });
    for message in [&progress, &stray, &asked] {
        feed.send(chunk(&format!("event: message\ndata: {message}\n\n")));
    }
    let (status, headers) = client.head().await.unwrap();
    assert_eq!((status, headers.get("content-type")), (200, Some("text/event-stream")));
    let mut said = String::new();
    while events(&said).len() < 2 {
        said += &String::from_utf8(client.chunk().await.unwrap().unwrap()).unwrap();
    }
    let said = events(&said);
    assert_eq!(said[0], progress, "tokens are the caller's own");
    assert_eq!(said[1]["params"], asked["params"]);
    let id = said[1]["id"].clone();
    let told = agent.post(&json!({ "jsonrpc": "2.0", "id": id, "result": { "action": "accept" } })).await;
    assert_eq!(told.status, 202);
    let answered = |request: &Received| {
        let message: Value = serde_json::from_slice(&request.body).unwrap_or_default();
        message == json!({ "jsonrpc": "2.0", "id": 0, "result": { "action": "accept" } })
    };
    assert!(eventually(PATIENCE, async || a.requests().iter().any(answered)).await, "with the id that the server gave");
    feed.send(chunk(&format!("data: {}\n\n", done(&call, "done"))));
    let rest = String::from_utf8(client.chunk().await.unwrap().unwrap()).unwrap();
    assert_eq!(events(&rest), [done(&call, "done")]);
    assert_eq!(client.chunk().await.unwrap(), None, "and the stream is over");
}

#[tokio::test]
async fn a_cancelled_call_is_cancelled_at_its_server() {
    let (feeds, mut fed) = tokio::sync::mpsc::unbounded_channel();
    let a = Origin::start(server(move |_, _| {
        let (silence, feed) = Reply::fed("");
        feeds.send(feed).unwrap();
        silence
    }))
    .await;
    let gateway = federation(&federated(A, ""), &a, &a).await;
    let agent = Agent::begin(&gateway).await;
    let call = json!({ "jsonrpc": "2.0", "id": 7, "method": "tools/call", "params": { "name": "a_look" } });
    let cancel = json!({ "jsonrpc": "2.0", "method": "notifications/cancelled", "params": { "requestId": 7 } });
    let has = |wanted: &Value| {
        let wanted = wanted.clone();
        let requests = a.requests();
        requests.iter().any(|request| {
            serde_json::from_slice::<Value>(&request.body).is_ok_and(|body| body["method"] == wanted["method"])
        })
    };
    let (answer, ()) = tokio::join!(agent.post(&call), async {
        assert!(eventually(PATIENCE, async || has(&call)).await);
        assert_eq!(agent.post(&cancel).await.status, 202);
    });
    assert_eq!(answer.json()["error"]["code"], -32004);
    assert!(eventually(PATIENCE, async || has(&cancel)).await);
    assert!(fed.recv().await.unwrap().abandoned().await, "and not waited for");
}

#[tokio::test]
async fn a_session_that_a_server_has_ended_is_begun_anew() {
    let a = Origin::start(server(|request, message| match request.headers.get("mcp-session-id") {
        Some("s0") => Reply::with(404, &[], "gone"),
        _ => json_reply(&done(message, "here again"), &[]),
    }))
    .await;
    let gateway = federation(&federated(A, ""), &a, &a).await;
    let agent = Agent::begin(&gateway).await;
    assert_eq!(text(&agent.tool("a_look", json!({})).await), "here again");
}

#[tokio::test]
async fn a_server_that_is_away_stalls_or_lies_harms_no_other() {
    let good = Origin::start(server(|_, message| json_reply(&done(message, "good"), &[]))).await;
    let behaviours: Vec<(&str, Reply)> = vec![
        ("silent", Reply::silence().hold()),
        ("no JSON", Reply::with(200, &[("Content-Type", "application/json")], "<html>")),
        ("another id", json_reply(&json!({ "jsonrpc": "2.0", "id": "x", "result": {} }), &[])),
        ("an error", Reply::with(500, &[], "")),
        ("not the protocol", json_reply(&json!([]), &[])),
        (
            "a reset",
            Reply::raw("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
                .reset(),
        ),
        ("a giant event", Reply::chunked(&[("Content-Type", "text/event-stream")], &[&"x".repeat(200_000)], &[])),
        ("a stream of nothing", Reply::chunked(&[("Content-Type", "text/event-stream")], &[": hello\n\n"], &[])),
    ];
    for (what, reply) in behaviours {
        let reply = std::sync::Mutex::new(vec![reply]);
        let bad = Origin::start(move |_| reply.lock().unwrap().pop().unwrap_or(Reply::with(500, &[], ""))).await;
        let servers =
            format!("{A}\n              {}", B.replace("prefix:", "timeouts: { first_byte: 1s, idle: 1s }, prefix:"));
        let gateway = federation(&federated(&servers, "max_answer: 100KiB"), &good, &bad).await;
        let agent = Agent::begin(&gateway).await;
        assert_eq!(agent.tools().await, ["a_look", "a_touch"], "{what}");
        assert_eq!(text(&agent.tool("a_look", json!({})).await), "good", "{what}");
    }
}

#[tokio::test]
async fn an_answer_of_a_server_that_is_none_becomes_an_error_of_the_call() {
    let which = Arc::new(AtomicUsize::new(0));
    let next = which.clone();
    let a = Origin::start(server(move |_, message| match next.fetch_add(1, Ordering::Relaxed) {
        0 => Reply::chunked(&[("Content-Type", "text/event-stream")], &["data: {}\n\n"], &[]),
        1 => json_reply(&json!({ "jsonrpc": "2.0", "id": "other", "result": {} }), &[]),
        2 => Reply::with(200, &[("Content-Type", "application/json")], "x".repeat(200_000)),
        3 => Reply::raw("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc").close(),
        4 => Reply::silence().hold(),
        _ => json_reply(
            &json!({ "jsonrpc": "2.0", "id": message["id"], "error": { "code": -1, "message": "its own" } }),
            &[],
        ),
    }))
    .await;
    let servers = A.replace("bearer:", "timeouts: { first_byte: 1s, idle: 1s }, bearer:");
    let gateway = federation(&federated(&servers, "max_answer: 100KiB"), &a, &a).await;
    let agent = Agent::begin(&gateway).await;
    for said in ["without an answer", "without a message", "more than is taken", "broke off", "took too long"] {
        let answer = agent.tool("a_look", json!({})).await;
        assert_eq!(answer["error"]["code"], -32603, "{answer}");
        assert!(answer["error"]["message"].as_str().unwrap().contains(said), "{said}: {answer}");
    }
    assert_eq!(agent.tool("a_look", json!({})).await["error"], json!({ "code": -1, "message": "its own" }));
}

#[tokio::test]
async fn what_a_server_says_by_itself_is_heard_and_a_broken_stream_taken_up_again() {
    let (feeds, mut fed) = tokio::sync::mpsc::unbounded_channel();
    let answers =
        server(|_, _| Reply::chunked(&[("Content-Type", "text/event-stream")], &["id: 5\nretry: 10\ndata: \n\n"], &[]));
    let a = Origin::start(move |request| match request.method.as_str() {
        "GET" => {
            let (reply, feed) = Reply::fed(STREAM);
            feeds.send((request.headers.get("last-event-id").map(str::to_owned), feed)).unwrap();
            reply
        }
        _ => answers(request),
    })
    .await;
    let gateway = federation(&federated(A, ""), &a, &a).await;
    let agent = Agent::begin(&gateway).await;
    let listen = Call::get("/mcp").header("Mcp-Session-Id", &agent.session).header("Accept", "text/event-stream");
    let mut listener = gateway.connect().await;
    listener.send(listen.bytes()).await.unwrap();
    assert_eq!(listener.head().await.unwrap().0, 200);
    let (after, feed) = fed.recv().await.unwrap();
    assert_eq!(after, None);
    let changed = json!({ "jsonrpc": "2.0", "method": "notifications/tools/list_changed" });
    assert_eq!(agent.tools().await.len(), 2);
    let before = a.count();
    feed.send(chunk(&format!("data: {changed}\n\n")));
    let heard = String::from_utf8(listener.chunk().await.unwrap().unwrap()).unwrap();
    assert_eq!(events(&heard), [changed]);
    agent.tools().await;
    assert!(a.count() > before, "and the list is asked for anew");

    let call = json!({ "jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": { "name": "a_look" } });
    let broken = agent.post(&call).await.text();
    assert_eq!(broken, "id: a:5\nretry: 10\ndata: \n\n", "where the stream stands, and no answer");
    let mut resumed = gateway.connect().await;
    resumed.send(listen.header("Last-Event-ID", "a:5").bytes()).await.unwrap();
    assert_eq!(resumed.head().await.unwrap().0, 200);
    let (after, feed) = fed.recv().await.unwrap();
    assert_eq!(after.as_deref(), Some("5"));
    feed.send(chunk(&format!("id: 6\ndata: {}\n\n", done(&call, "late"))));
    let late = String::from_utf8(resumed.chunk().await.unwrap().unwrap()).unwrap();
    assert!(late.starts_with("id: a:6\n"), "{late}");
    assert_eq!(events(&late), [done(&call, "late")]);
}

#[tokio::test]
async fn a_configuration_that_offers_what_is_not_there_is_refused() {
    let said = problems_of(
        &shop("", "servers: { a: { url: 'ftp://x' }, b: { url: 'http://u:p@x/' } }").replace("shop/order", "shop/ordr"),
    );
    for words in [
        "there is no route named `shop/ordr`",
        "did you mean `shop/order`",
        "begins with `https://`",
        "credentials do not belong",
    ] {
        assert!(said.contains(words), "{words}: {said}");
    }
    let said =
        problems_of(&shop("", "rules: [{ tools: ['*'], filters: [{ cors: { origins: ['https://a.example'] } }] }]"));
    assert!(said.contains("rules hold filters that authorise or limit"), "{said}");
    let said = problems_of(&shop("", "openapi: [{ file: no.yaml }]"));
    assert!(said.contains("cannot read"), "{said}");
}

#[tokio::test]
async fn the_example_offers_a_shop_to_who_has_a_key_also_while_its_other_server_is_away() {
    let origin = Origin::start(echo).await;
    let gateway = Gateway::example("mcp", &origin).await;
    assert_eq!(gateway.call(&message(None, None, None, &initialize("2025-11-25"))).await.status, 401);
    let as_app = |call: Call| call.header("Authorization", "Bearer hgk_exampleexampleexampleexample01231XI1lm");
    let begun = gateway.call(&as_app(message(None, None, None, &initialize("2025-11-25")))).await;
    assert!(begun.json()["result"]["instructions"].as_str().unwrap().contains("orders of our shop"));
    let session = begun.header("mcp-session-id").unwrap().to_owned();
    let ask = async |method: &str, params: Value| {
        let asked = json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params });
        let answer = gateway.call(&as_app(message(None, Some(&session), None, &asked))).await;
        events(&format!("data: {}", answer.text().replace("data: ", ""))).pop().unwrap()
    };
    let listed = ask("tools/list", json!({})).await;
    let names: Vec<_> = listed["result"]["tools"].as_array().unwrap().iter().map(|tool| &tool["name"]).collect();
    assert_eq!(names, ["create_order", "get_order"]);
    let created =
        ask("tools/call", json!({ "name": "create_order", "arguments": { "body": { "item": "tea" } } })).await;
    assert_eq!(created["result"]["structuredContent"]["target"], "/orders", "{created}");
}
