//! So many tokens, so much money, so many calls: reserved before a provider is asked, settled with what was used.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use crate::support::gateway::{key_hash, problems_of};
use crate::support::process::{Kind, Redis};
use crate::support::*;

const APP: &str = "hgk_of-the-app";
const OTHER: &str = "hgk_of-the-other";

/// A gateway with the consumers `app` and `other` of the team `apps`, and one provider in OpenAI's words.
struct Setup {
    provider: SocketAddr,
    /// Lines of the `ai` section beside its providers.
    ai: &'static str,
    /// Of the provider beside its address.
    keys: &'static str,
    /// Of the consumer `app`, and of its plan.
    app: &'static str,
    plan: &'static str,
    /// Further sections.
    more: String,
}

impl Setup {
    fn new(provider: &Origin) -> Setup {
        Setup {
            provider: provider.address,
            ai: "",
            keys: "keys: [{ secret: env:KEY }]",
            app: "",
            plan: "",
            more: String::new(),
        }
    }

    fn yaml(&self) -> String {
        let Setup { provider, ai, keys, app, plan, more } = self;
        let hash = [APP, OTHER].map(key_hash);
        format!(
            "
access_log: {{ to: {{ file: '{{{{dir}}}}/access.log' }} }}
usage: {{ file: '{{{{dir}}}}/usage.db', interval: 50ms }}
services:
  ai:
    access: authenticated
    filters: [{{ api_key: {{ from: [bearer, {{ header: x-api-key }}] }} }}]
    routes: {{ all: {{ match: {{ path_prefix: / }}, backend: {{ ai: {{}} }} }} }}
consumers:
  app: {{ team: apps, credentials: [{{ api_key: {{ hash: '{}' }} }}], subscriptions: {{ ai: gold }}{app} }}
  other: {{ team: apps, credentials: [{{ api_key: {{ hash: '{}' }} }}] }}
plans: {{ gold: {{ {plan} }} }}
ai:
  providers:
    openai: {{ provider: openai, base_urls: {{ openai_chat: 'http://{provider}/v1' }}, timeouts: {{ first_byte: 30s, idle: 30s }}, {keys} }}
{ai}
{more}",
            hash[0], hash[1]
        )
    }

    async fn start(&self) -> Gateway {
        Gateway::builder(&self.yaml()).environment("KEY", "sk-1").environment("KEY2", "sk-2").start().await
    }
}

fn answer(prompt: u64, completion: u64) -> Reply {
    let usage =
        json!({ "prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion });
    json_reply(&completed("Hello", usage))
}

fn completed(text: &str, usage: Value) -> Value {
    json!({
        "id": "c", "object": "chat.completion", "created": 1, "model": "gpt-4o", "usage": usage,
        "choices": [{ "index": 0, "message": { "role": "assistant", "content": text }, "finish_reason": "stop" }],
    })
}

fn json_reply(body: &Value) -> Reply {
    Reply::with(200, &[("Content-Type", "application/json")], body.to_string())
}

fn ask_as(key: &str, model: &str, more: &str) -> Call {
    let body = format!(r#"{{"model":"{model}","messages":[{{"role":"user","content":"Hi"}}]{more}}}"#);
    let call = Call::post("/v1/chat/completions", body).header("Content-Type", "application/json");
    call.header("Authorization", &format!("Bearer {key}"))
}

fn ask(more: &str) -> Call {
    ask_as(APP, "openai/gpt-4o", more)
}

const SHORT: &str = r#","max_tokens":100"#;

/// Makes so many calls at once, and says how many were answered.
async fn at_once(gateways: &[&Gateway], count: usize, call: &Call) -> usize {
    let calls = (0..count).map(|n| {
        let (address, call) = (gateways[n % gateways.len()].address("http"), call.clone());
        tokio::spawn(async move {
            let mut client = client::Client::connect(address).await.expect("connecting");
            let answer = client.call(&call).await.expect("an answer");
            assert!(matches!(answer.status, 200 | 429), "{} {}", answer.status, answer.text());
            answer.status
        })
    });
    let calls: Vec<_> = calls.collect();
    let mut answered = 0;
    for call in calls {
        answered += usize::from(call.await.unwrap() == 200);
    }
    answered
}

/// The limits that the admin listener shows of a consumer.
async fn limit(gateway: &Gateway, consumer: &str, name: &str) -> Value {
    let usage = gateway.admin_get(&format!("/usage?consumer={consumer}")).await.json();
    let limits = usage["consumers"][0]["limits"].as_array().cloned().unwrap_or_default();
    limits.into_iter().find(|limit| limit["limit"] == name).unwrap_or_else(|| panic!("no {name} in {usage}"))
}

async fn used(gateway: &Gateway, name: &str) -> f64 {
    limit(gateway, "app", name).await["used"].as_f64().unwrap()
}

#[tokio::test]
async fn hundreds_of_calls_at_once_use_no_more_than_the_budget() {
    let provider = Origin::start(|_| answer(20, 100).after(Duration::from_millis(300))).await;
    let setup = Setup { app: ", budgets: [{ tokens: 5000/day }]", ..Setup::new(&provider) };
    let gateway = setup.start().await;
    let answered = at_once(&[&gateway], 300, &ask(SHORT)).await;
    // Each reserves 100 for the answer, and a third of its some 90 bytes for the prompt.
    assert!((35..=5000 / 120).contains(&answered), "{answered} of 300 were answered");
    assert_eq!(provider.count(), answered, "nobody asks for those that are refused");
    let used = used(&gateway, "consumer/tokens/day").await;
    assert_eq!(used, answered as f64 * 120.0, "settled with what the provider reports");
    let refused = gateway.metric("headgate_limit_refusals_total", &[("limit", "consumer/tokens/day")]).await;
    assert_eq!(refused, 300.0 - answered as f64);
    // What was reserved and not used is there again.
    let more = at_once(&[&gateway], 1, &ask(r#","max_tokens":1"#)).await;
    assert_eq!(more, 1);
}

mod redis {
    #[tokio::test]
    async fn two_gateways_at_once_use_no_more_than_the_budget() {
        super::two_gateways_at_once_use_no_more_than_the_budget(super::Kind::Redis).await;
    }
}

mod valkey {
    #[tokio::test]
    async fn two_gateways_at_once_use_no_more_than_the_budget() {
        super::two_gateways_at_once_use_no_more_than_the_budget(super::Kind::Valkey).await;
    }
}

async fn two_gateways_at_once_use_no_more_than_the_budget(kind: Kind) {
    let redis = Redis::start(kind).await;
    let provider = Origin::start(|_| answer(20, 100).after(Duration::from_millis(300))).await;
    for period in ["day", "min"] {
        let more = format!("redis: {{ url: 'redis://{}', timeout: 5s, gateways: 2 }}", redis.address);
        let app =
            if period == "day" { ", budgets: [{ tokens: 6000/day }]" } else { ", budgets: [{ tokens: 6000/min }]" };
        let setup = Setup { app, more, ..Setup::new(&provider) };
        let gateways = [setup.start().await, setup.start().await];
        let both = [&gateways[0], &gateways[1]];
        let before = provider.count();
        let minute = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() / 60;
        let begun = minute();
        let mut answered = at_once(&both, 200, &ask(SHORT)).await;
        assert!(answered >= 30, "{answered} of 200 were answered");
        // What one has reserved too much, the other may use.
        let until = Instant::now() + PATIENCE;
        while minute() == begun && Instant::now() < until {
            match at_once(&both, 2, &ask(SHORT)).await {
                0 if answered >= 45 => break,
                more => answered += more,
            }
        }
        assert_eq!(provider.count() - before, answered);
        // A minute that began in between has a budget of its own.
        let most = (6000 / 120) * if period == "min" && minute() != begun { 2 } else { 1 };
        assert!((45..=most).contains(&answered), "{answered} calls of 120 tokens have used 6000/{period}");
    }
}

#[tokio::test]
async fn a_fleet_without_its_redis_goes_on_with_a_part_of_what_was_left() {
    let redis = Redis::start(Kind::Redis).await;
    let provider = Origin::start(|_| answer(20, 100)).await;
    let more = format!("redis: {{ url: 'redis://{}', timeout: 200ms, gateways: 2 }}", redis.address);
    let setup = Setup { app: ", budgets: [{ tokens: 6000/day }]", more, ..Setup::new(&provider) };
    let gateway = setup.start().await;
    assert_eq!(at_once(&[&gateway], 1, &ask(SHORT)).await, 1);
    drop(redis);
    let answered = at_once(&[&gateway], 60, &ask(SHORT)).await;
    assert!((15..=26).contains(&answered), "half of the 49 that were left: {answered}");
}

#[tokio::test]
async fn what_was_used_on_a_day_and_in_a_month_outlives_a_restart_and_a_kill() {
    let provider = Origin::start(|_| answer(1000, 100)).await;
    let setup = Setup { app: ", budgets: [{ tokens: 10000/day }, { cost: 1/month }]", ..Setup::new(&provider) };
    let mut gateway = setup.start().await;
    for (n, signal) in [(1, libc::SIGTERM), (2, libc::SIGKILL), (3, libc::SIGTERM)] {
        assert_eq!(gateway.call(&ask(SHORT)).await.status, 200);
        let sums = || async {
            // A kill loses what was not written yet.
            let file = gateway.directory().join("usage.db");
            let mut command = std::process::Command::new("sqlite3");
            let statement =
                "SELECT sum(used) FROM usage WHERE quota = 'consumer/tokens/day'; SELECT sum(calls) FROM model_use";
            let output = command.args(["-cmd", ".timeout 5000"]).arg(file).arg(statement).output().unwrap();
            String::from_utf8_lossy(&output.stdout).split_whitespace().map(str::to_owned).collect::<Vec<_>>()
        };
        let written = || async { sums().await == [(n * 1100).to_string(), n.to_string()] };
        assert!(eventually(PATIENCE, written).await, "{:?}", sums().await);
        gateway.signal(signal);
        gateway.exit(PATIENCE).await;
        gateway.restart().await;
        assert_eq!(used(&gateway, "consumer/tokens/day").await, 1100.0 * f64::from(n));
        // 1000 at 2.50 and 100 at 10 dollars for a million.
        let cost = limit(&gateway, "app", "consumer/cost/month").await;
        assert_eq!(
            (&cost["used"], &cost["unit"]),
            (&json!(3_500_000.0 * f64::from(n) / 1e9), &json!("dollars")),
            "{cost}"
        );
    }
    let usage = gateway.admin_get("/usage?days=2").await.json();
    let rows = usage["models"].as_array().unwrap();
    assert_eq!(rows.len(), 1, "{usage}");
    assert_eq!((&rows[0]["consumer"], &rows[0]["model"]), (&json!("app"), &json!("openai/gpt-4o")));
    assert_eq!(
        (&rows[0]["calls"], &rows[0]["input_tokens"], &rows[0]["output_tokens"]),
        (&json!(3), &json!(3000), &json!(300))
    );
    assert_eq!((&rows[0]["cost"], &rows[0]["unpriced_calls"]), (&json!(0.0105), &json!(0)));
    assert!(rows[0]["day"].as_str().is_some_and(|day| day.len() == 10 && day.starts_with("20")), "{usage}");
    assert_eq!(gateway.admin_get("/usage?days=2&consumer=other").await.json()["models"], json!([]));
}

#[tokio::test]
async fn a_budget_that_is_spent_is_told_so_that_official_libraries_do_not_ask_again() {
    let provider = Origin::start(|_| answer(900, 100)).await;
    let setup = Setup { app: ", budgets: [{ tokens: 1000/day }]", ..Setup::new(&provider) };
    let gateway = setup.start().await;
    assert_eq!(gateway.call(&ask(SHORT)).await.status, 200);
    let refused = gateway.call(&ask(SHORT)).await;
    assert_eq!((refused.status, refused.header("x-should-retry")), (429, Some("false")), "{}", refused.text());
    let wait: u64 = refused.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=86_400).contains(&wait), "{wait}");
    assert_eq!(refused.json()["error"]["code"], "budget_exceeded");
    let message = refused.json()["error"]["message"].as_str().unwrap().to_owned();
    assert!(message.contains("`consumer/tokens/day`") && message.contains("0 of 1000"), "{message}");
    let body = r#"{"model":"openai/gpt-4o","max_tokens":10,"messages":[{"role":"user","content":"Hi"}]}"#;
    let messages = Call::post("/v1/messages", body).header("x-api-key", APP).header("anthropic-version", "2023-06-01");
    let refused = gateway.call(&messages.header("Content-Type", "application/json")).await;
    assert_eq!((refused.status, refused.header("x-should-retry")), (429, Some("false")));
    assert_eq!(
        (&refused.json()["type"], &refused.json()["error"]["type"]),
        (&json!("error"), &json!("rate_limit_error"))
    );
    let lines = gateway.access_log(3).await;
    assert_eq!((&lines[1]["reason"], &lines[1]["limit"]), (&json!("budget_exceeded"), &json!("consumer/tokens/day")));
    assert_eq!(provider.count(), 1);
}

#[tokio::test]
async fn budgets_of_a_minute_are_told_in_the_headers_that_libraries_read() {
    let provider = Origin::start(|_| answer(20, 30)).await;
    let setup = Setup { app: ", budgets: [{ tokens: 1000/min }, { requests: 2/min }]", ..Setup::new(&provider) };
    let gateway = setup.start().await;
    let first = gateway.call(&ask(SHORT)).await;
    assert_eq!(first.header("x-ratelimit-limit-tokens"), Some("1000"), "{:?}", first.headers);
    assert_eq!(first.header("x-ratelimit-limit-requests"), Some("2"));
    let left: u64 = first.header("x-ratelimit-remaining-tokens").unwrap().parse().unwrap();
    assert!((850..900).contains(&left), "100 are reserved, and the prompt: {left}");
    let reset = first.header("x-ratelimit-reset-tokens").unwrap();
    assert!(reset.strip_suffix('s').is_some_and(|seconds| seconds.parse::<u64>().is_ok_and(|s| s <= 60)), "{reset}");
    let body = r#"{"model":"openai/gpt-4o","max_tokens":10,"messages":[{"role":"user","content":"Hi"}]}"#;
    let messages = Call::post("/v1/messages", body).header("x-api-key", APP).header("anthropic-version", "2023-06-01");
    let second = gateway.call(&messages.header("Content-Type", "application/json")).await;
    assert_eq!((second.status, second.header("anthropic-ratelimit-tokens-limit")), (200, Some("1000")));
    assert!(second.header("anthropic-ratelimit-requests-reset").is_some_and(|at| at.ends_with('Z')));
    // The minute may end in between.
    let mut refused = gateway.call(&ask(SHORT)).await;
    for _ in 0..4 {
        if refused.status == 200 {
            refused = gateway.call(&ask(SHORT)).await;
        }
    }
    assert_eq!((refused.status, refused.header("x-should-retry")), (429, None), "it is worth asking again");
    assert!(refused.header("retry-after").is_some_and(|wait| wait.parse::<u64>().unwrap() <= 60));
    assert_eq!(refused.header("x-ratelimit-remaining-requests"), Some("0"));
}

#[tokio::test]
async fn a_call_that_fails_gives_back_what_it_has_reserved() {
    let status = Arc::new(AtomicUsize::new(500));
    let shown = status.clone();
    let provider = Origin::start(move |_| match shown.load(Ordering::Relaxed) {
        200 => answer(20, 30),
        status => Reply::with(status as u16, &[("Content-Type", "application/json")], "{}"),
    })
    .await;
    let setup = Setup {
        app: ", budgets: [{ tokens: 1000/day }, { cost: 1/day }, { requests: 100/day }]",
        ..Setup::new(&provider)
    };
    let gateway = setup.start().await;
    for failure in [500, 400, 503, 404, 429] {
        status.store(failure, Ordering::Relaxed);
        assert_ne!(gateway.call(&ask(r#","max_tokens":900"#)).await.status, 200);
        let settled = || async { used(&gateway, "consumer/tokens/day").await == 0.0 };
        assert!(eventually(PATIENCE, settled).await, "after {failure}");
    }
    assert_eq!(used(&gateway, "consumer/cost/day").await, 0.0);
    assert_eq!(used(&gateway, "consumer/requests/day").await, 5.0, "calls count whatever becomes of them");
}

#[tokio::test]
async fn what_a_provider_does_not_tell_is_counted() {
    let text = "The quick brown fox jumps over the lazy dog.";
    let provider = Origin::start(move |request| {
        let streams = String::from_utf8_lossy(&request.body).contains(r#""stream":true"#);
        if !streams {
            return json_reply(&completed(text, Value::Null));
        }
        let mut parts: Vec<String> = text.split_inclusive(' ').map(|word| chunk(word, None)).collect();
        parts.extend([chunk("", Some("stop")), "data: [DONE]\n\n".to_owned()]);
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        Reply::chunked(&[("Content-Type", "text/event-stream")], &parts, &[])
    })
    .await;
    let setup = Setup { app: ", budgets: [{ tokens: 100000/day }]", ..Setup::new(&provider) };
    let gateway = setup.start().await;
    for more in ["", r#","stream":true"#] {
        assert_eq!(gateway.call(&ask(more)).await.status, 200);
    }
    for line in gateway.access_log(2).await {
        assert_eq!((&line["ai"]["output_tokens"], &line["ai"]["counted"]), (&json!(10), &json!(true)), "{line}");
        let input = line["ai"]["input_tokens"].as_u64().unwrap();
        assert!((5..40).contains(&input), "{line}");
        assert!(line["ai"]["cost"].as_f64().is_some_and(|cost| cost > 0.0), "{line}");
    }
    let settled = used(&gateway, "consumer/tokens/day").await;
    assert!((30.0..100.0).contains(&settled), "{settled}");
}

fn chunk(text: &str, finish: Option<&str>) -> String {
    let chunk = json!({
        "id": "c", "object": "chat.completion.chunk", "created": 1, "model": "gpt-4o", "usage": null,
        "choices": [{ "index": 0, "delta": { "content": text }, "finish_reason": finish }],
    });
    format!("data: {chunk}\n\n")
}

#[tokio::test]
async fn a_caller_who_leaves_a_stream_has_used_what_came_until_then() {
    let feeds = Arc::new(std::sync::Mutex::new(Vec::new()));
    let kept = feeds.clone();
    let head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
    let provider = Origin::start(move |_| {
        let (reply, feed) = Reply::fed(head);
        let text = chunk("The quick brown fox jumps over the lazy dog.", None);
        feed.send(format!("{:x}\r\n{text}\r\n", text.len()));
        kept.lock().unwrap().push(feed);
        reply
    })
    .await;
    let setup = Setup { app: ", budgets: [{ tokens: 100000/day }]", ..Setup::new(&provider) };
    let gateway = setup.start().await;
    let mut client = gateway.connect().await;
    client.send(ask(r#","stream":true,"max_tokens":50000"#).bytes()).await.unwrap();
    assert_eq!(client.head().await.unwrap().0, 200);
    assert!(client.chunk().await.unwrap().is_some());
    assert!(used(&gateway, "consumer/tokens/day").await > 50_000.0, "reserved while it runs");
    drop(client);
    let settled = || async { (10.0..100.0).contains(&used(&gateway, "consumer/tokens/day").await) };
    assert!(eventually(PATIENCE, settled).await, "{}", used(&gateway, "consumer/tokens/day").await);
    let line = &gateway.access_log(1).await[0];
    assert_eq!((&line["reason"], &line["ai"]["output_tokens"]), (&json!("client_closed"), &json!(10)), "{line}");
    let feed = feeds.lock().unwrap()[0].clone();
    assert!(feed.abandoned().await, "the provider need not go on");
}

#[tokio::test]
async fn a_caller_who_leaves_before_anything_came_has_used_the_prompt() {
    let provider = Origin::start(|_| Reply::silence()).await;
    let setup = Setup { app: ", budgets: [{ tokens: 100000/day }]", ..Setup::new(&provider) };
    let gateway = setup.start().await;
    let mut client = gateway.connect().await;
    client.send(ask("").bytes()).await.unwrap();
    assert!(eventually(PATIENCE, || async { provider.count() == 1 }).await);
    drop(client);
    let settled = || async { (5.0..60.0).contains(&used(&gateway, "consumer/tokens/day").await) };
    assert!(eventually(PATIENCE, settled).await, "{}", used(&gateway, "consumer/tokens/day").await);
}

#[tokio::test]
async fn a_model_without_a_price_is_not_called_where_money_is_limited_unless_that_is_said() {
    let provider = Origin::start(|_| answer(20, 30)).await;
    let setup = Setup { app: ", budgets: [{ cost: 1/day }]", ..Setup::new(&provider) };
    let mut gateway = setup.start().await;
    let tomorrow = ask_as(APP, "openai/a-model-of-tomorrow", SHORT);
    let refused = gateway.call(&tomorrow).await;
    assert_eq!(
        (refused.status, &refused.json()["error"]["code"]),
        (403, &json!("price_unknown")),
        "{}",
        refused.text()
    );
    assert_eq!(gateway.access_log(1).await[0]["reason"], "price_unknown");
    assert_eq!(provider.count(), 0);
    let allowed = Setup { app: ", budgets: [{ cost: 1/day, unknown_price: allow }]", ..Setup::new(&provider) };
    assert_eq!(gateway.reload(&allowed.yaml()).await.status, 200);
    assert_eq!(gateway.call(&tomorrow).await.status, 200);
    let shown = || async { gateway.admin_get("/usage?consumer=app").await.json() };
    let counted = || async { shown().await["models"][0]["unpriced_calls"] == 1 };
    assert!(eventually(PATIENCE, counted).await, "{}", shown().await);
    assert_eq!(shown().await["models"][0]["cost"], 0.0);
}

#[tokio::test]
async fn a_target_without_a_price_is_passed_over_where_money_is_limited() {
    let provider = Origin::start(|_| answer(20, 30)).await;
    let setup = Setup {
        app: ", budgets: [{ cost: 1/day }]",
        ai: "  models: { smart: { targets: [{ model: openai/of-tomorrow }, { model: openai/gpt-4o, priority: 1 }] } }",
        ..Setup::new(&provider)
    };
    let gateway = setup.start().await;
    let answer = gateway.call(&ask_as(APP, "smart", SHORT)).await;
    assert_eq!((answer.status, answer.header("headgate-ai-model")), (200, Some("gpt-4o")), "{}", answer.text());
}

#[tokio::test]
async fn each_kind_of_budget_counts_those_it_is_for() {
    let provider = Origin::start(|_| answer(100, 100)).await;
    let budgets = [
        // Where it stands, and who is refused after a call of `app` has used it up: `app`, `other`, and `app` with another name.
        (("app", ", budgets: [{ tokens: 200/day }]"), "consumer/tokens/day", [429, 200, 429]),
        (("plan", "budgets: [{ tokens: 200/day }]"), "service:ai/tokens/day", [429, 200, 429]),
        (("more", "teams: { apps: { budgets: [{ tokens: 200/day }] } }"), "team/tokens/day", [429, 429, 429]),
        (("model", "budgets: [{ tokens: 200/day }]"), "model:smart/tokens/day", [429, 429, 200]),
        (
            ("model", "budgets: [{ tokens: 200/day, by: consumer }]"),
            "model:smart/tokens/day by consumer",
            [429, 200, 200],
        ),
        (("ai", "  budgets: [{ tokens: 200/day }]"), "ai/tokens/day", [429, 429, 429]),
        (("ai", "  budgets: [{ tokens: 200/day, by: team, name: mine }]"), "mine", [429, 429, 429]),
    ];
    for ((place, text), name, [app, other, direct]) in budgets {
        let of = |wanted: &str| if place == wanted { text } else { "" };
        let model = if place == "model" { format!(", {text}") } else { String::new() };
        let ai = format!("{}\n  models: {{ smart: {{ targets: [{{ model: openai/gpt-4o }}]{model} }} }}", of("ai"));
        let setup = Setup {
            app: of("app"),
            plan: of("plan"),
            more: of("more").to_owned(),
            ai: Box::leak(ai.into_boxed_str()),
            ..Setup::new(&provider)
        };
        let gateway = setup.start().await;
        assert_eq!(gateway.call(&ask_as(APP, "smart", SHORT)).await.status, 200, "{name}");
        let status = |key: &'static str, model: &'static str| {
            let gateway = &gateway;
            async move { gateway.call(&ask_as(key, model, SHORT)).await.status }
        };
        let found = [status(APP, "smart").await, status(OTHER, "smart").await, status(APP, "openai/gpt-4o").await];
        assert_eq!(found, [app, other, direct], "{name}");
        assert!(gateway.metric("headgate_limit_refusals_total", &[("limit", name)]).await >= 1.0, "{name}");
    }
}

#[tokio::test]
async fn a_single_call_can_be_made_however_small_an_untouched_budget_is() {
    let provider = Origin::start(|_| answer(20, 30)).await;
    let setup = Setup { app: ", budgets: [{ tokens: 60/day }, { cost: 0.000001/day }]", ..Setup::new(&provider) };
    let gateway = setup.start().await;
    assert_eq!(gateway.call(&ask(r#","max_tokens":100000"#)).await.status, 200);
    assert_eq!(gateway.call(&ask(r#","max_tokens":1"#)).await.status, 429);
    assert_eq!(gateway.call(&ask_as(OTHER, "openai/gpt-4o", "")).await.status, 200);
}

#[tokio::test]
async fn a_key_and_a_provider_without_budget_are_passed_over() {
    let provider = Origin::start(|_| answer(100, 100)).await;
    let keys = "keys: [{ secret: env:KEY, budgets: [{ tokens: 250/day }] }, { secret: env:KEY2, budgets: [{ tokens: 450/day }] }]";
    let setup = Setup { keys, ..Setup::new(&provider) };
    let gateway = setup.start().await;
    let mut statuses = Vec::new();
    for _ in 0..5 {
        statuses.push(gateway.call(&ask(SHORT)).await.status);
    }
    // One call with the first key, two with the second: what is left suffices for no other.
    assert_eq!(statuses, [200, 200, 200, 503, 503]);
    let with = |key: &str| {
        let sent = provider.requests();
        sent.iter().filter(|sent| String::from_utf8_lossy(&sent.head).contains(key)).count()
    };
    assert_eq!((with("sk-1"), with("sk-2")), (1, 2));
    let usage = gateway.admin_get("/usage").await.json();
    let names: Vec<_> =
        usage["budgets"].as_array().unwrap().iter().map(|one| (one["limit"].clone(), one["used"].clone())).collect();
    assert!(names.contains(&(json!("key:openai[0]/tokens/day"), json!(200))), "{usage}");
    assert!(names.contains(&(json!("key:openai[1]/tokens/day"), json!(400))), "{usage}");
}

#[tokio::test]
async fn a_long_prompt_near_the_limit_is_counted_exactly_and_others_do_not_wait_for_it() {
    let provider = Origin::start(|_| answer(10, 10)).await;
    let setup = Setup { app: ", budgets: [{ tokens: 250000/day }]", ..Setup::new(&provider) };
    let gateway = setup.start().await;
    assert_eq!(gateway.call(&ask(SHORT)).await.status, 200);
    // 800 KB: estimated as 270,000 tokens, of which there are 180,000.
    let long = "The quick brown fox jumps over the lazy dog. ".repeat(18_000);
    let body = json!({ "model": "openai/gpt-4o", "max_tokens": 10, "messages": [{ "role": "user", "content": long }] });
    let call = Call::post("/v1/chat/completions", body.to_string()).header("Content-Type", "application/json");
    let answer = gateway.call(&call.header("Authorization", &format!("Bearer {APP}"))).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let reserved = gateway.access_log(2).await[1]["ai"]["reserved_tokens"].as_u64().unwrap();
    assert!((170_000..190_000).contains(&reserved), "{reserved}");
}

#[tokio::test]
async fn a_picture_does_not_count_by_its_length() {
    let provider = Origin::start(|_| answer(1000, 10)).await;
    let setup = Setup { app: ", budgets: [{ tokens: 50000/day }]", ..Setup::new(&provider) };
    let gateway = setup.start().await;
    assert_eq!(gateway.call(&ask(SHORT)).await.status, 200);
    let picture = format!("data:image/png;base64,{}", "iVBORw0KGgo".repeat(50_000));
    let part = json!({ "type": "image_url", "image_url": { "url": picture } });
    let body =
        json!({ "model": "openai/gpt-4o", "max_tokens": 10, "messages": [{ "role": "user", "content": [part] }] });
    let call = Call::post("/v1/chat/completions", body.to_string()).header("Content-Type", "application/json");
    let answer = gateway.call(&call.header("Authorization", &format!("Bearer {APP}"))).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
}

#[tokio::test]
async fn attempts_that_were_billed_and_failed_count_too() {
    let calls = Arc::new(AtomicU64::new(0));
    let counter = calls.clone();
    let provider = Origin::start(move |_| {
        let mut body = completed("", json!({ "prompt_tokens": 100, "completion_tokens": 1, "total_tokens": 101 }));
        if counter.fetch_add(1, Ordering::Relaxed) == 0 {
            body["choices"][0]["finish_reason"] = json!("content_filter");
        }
        json_reply(&body)
    })
    .await;
    let setup = Setup {
        app: ", budgets: [{ tokens: 10000/day }]",
        ai: "  models: { smart: { fallback_on_filter: true, targets: [{ model: openai/gpt-4o }, { model: openai/gpt-4o-mini, priority: 1 }] } }",
        ..Setup::new(&provider)
    };
    let gateway = setup.start().await;
    assert_eq!(gateway.call(&ask_as(APP, "smart", SHORT)).await.status, 200);
    assert_eq!(calls.load(Ordering::Relaxed), 2);
    let settled = || async { used(&gateway, "consumer/tokens/day").await == 202.0 };
    assert!(eventually(PATIENCE, settled).await, "{}", used(&gateway, "consumer/tokens/day").await);
}

#[test]
fn mistakes_in_budgets_are_found_where_they_are_written() {
    let base = "ai: { providers: { openai: { keys: [{ secret: env:PATH }] } }, budgets: [BUDGET] }\nconsumers: { app: { budgets: [OWN] } }\n";
    for (budget, own, place, words) in [
        ("{ tokens: 5/day, cost: 1/day }", "", "ai.budgets[0]", "one of `requests`, `tokens` and `cost`"),
        ("{ }", "", "ai.budgets[0]", "one of `requests`, `tokens` and `cost`"),
        ("{ tokens: 5/parsec }", "", "ai.budgets[0].tokens", "not a budget"),
        ("{ cost: 1.5.5/day }", "", "ai.budgets[0].cost", "not a budget of money"),
        ("{ cost: 1/day, time_zone: Europe/Nowhere }", "", "ai.budgets[0].time_zone", "not a time zone"),
        ("{ tokens: 5/day }, { tokens: 6/day }", "", "ai.budgets[1]", "another budget of this list"),
        ("", "{ tokens: 5/day, by: team }", "consumers.app.budgets[0].by", "`by` is for budgets of `ai`"),
        ("{ token: 5/day }", "", "ai.budgets[0].token", "tokens"),
    ] {
        let said = problems_of(&base.replace("BUDGET", budget).replace("OWN", own));
        assert!(said.contains(place) && said.contains(words), "{budget} {own}: {said}");
    }
}

#[tokio::test]
async fn an_answer_that_is_billed_whole_is_read_on_when_its_caller_leaves() {
    for streams in [true, false] {
        let feeds = Arc::new(std::sync::Mutex::new(Vec::new()));
        let kept = feeds.clone();
        let provider = Origin::start(move |_| {
            let head = match streams {
                true => "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n",
                false => "",
            };
            let (reply, feed) = Reply::fed(head);
            if streams {
                let text = chunk("Hello", None);
                feed.send(format!("{:x}\r\n{text}\r\n", text.len()));
            }
            kept.lock().unwrap().push(feed);
            reply
        })
        .await;
        let keys = "keys: [{ secret: env:KEY, budgets: [{ tokens: 1000000/day }] }], on_disconnect: drain";
        let setup = Setup { app: ", budgets: [{ tokens: 100000/day }]", keys, ..Setup::new(&provider) };
        let gateway = setup.start().await;
        let mut client = gateway.connect().await;
        let more = if streams { r#","stream":true,"max_tokens":50000"# } else { r#","max_tokens":50000"# };
        client.send(ask(more).bytes()).await.unwrap();
        if streams {
            assert_eq!(client.head().await.unwrap().0, 200);
            assert!(client.chunk().await.unwrap().is_some());
        }
        assert!(eventually(PATIENCE, || async { provider.count() == 1 }).await);
        drop(client);
        assert_eq!(gateway.access_log(1).await[0]["reason"], "client_closed");
        assert!(used(&gateway, "consumer/tokens/day").await > 50_000.0, "still reserved");
        let feed = feeds.lock().unwrap()[0].clone();
        let usage = json!({ "prompt_tokens": 1000, "completion_tokens": 2000, "total_tokens": 3000 });
        if streams {
            let last = json!({ "id": "c", "object": "chat.completion.chunk", "created": 1, "model": "gpt-4o", "choices": [], "usage": usage });
            for text in [chunk("", Some("stop")), format!("data: {last}\n\n"), "data: [DONE]\n\n".to_owned()] {
                assert!(feed.send(format!("{:x}\r\n{text}\r\n", text.len())), "it is still read");
            }
            feed.send("0\r\n\r\n");
        } else {
            let body = completed("Hello", usage).to_string();
            let head =
                format!("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n", body.len());
            assert!(feed.send(head + &body), "it is still read");
        }
        let settled = || async { used(&gateway, "consumer/tokens/day").await == 3000.0 };
        assert!(eventually(PATIENCE, settled).await, "{}", used(&gateway, "consumer/tokens/day").await);
        let usage = gateway.admin_get("/usage").await.json();
        let key = usage["budgets"].as_array().unwrap().iter().find(|one| one["limit"] == "key:openai[0]/tokens/day");
        assert_eq!(key.map(|key| key["used"].clone()), Some(json!(3000)), "{usage}");
        assert_eq!(usage["models"][0]["output_tokens"], 2000, "{usage}");
    }
}

#[tokio::test]
async fn budgets_hold_for_calls_beyond_chat_too() {
    let provider = Origin::start(|request| {
        if request.target.ends_with("/embeddings") {
            return json_reply(&json!({
                "object": "list", "model": "text-embedding-3-small",
                "data": [{ "object": "embedding", "index": 0, "embedding": [0.5] }],
                "usage": { "prompt_tokens": 500, "total_tokens": 500 },
            }));
        }
        answer(1000, 100)
    })
    .await;
    let setup = Setup { app: ", budgets: [{ tokens: 600/day }, { cost: 1/day }]", ..Setup::new(&provider) };
    let mut gateway = setup.start().await;
    let post = |path: &str, model: &str| {
        let body = json!({ "model": model, "input": "Hi", "messages": [{ "role": "user", "content": "Hi" }] });
        let call = Call::post(path, body.to_string()).header("Content-Type", "application/json");
        call.header("Authorization", &format!("Bearer {APP}"))
    };
    let vectors = post("/v1/embeddings", "openai/text-embedding-3-small");
    let mut statuses = Vec::new();
    for after in [500.0, 1000.0, 1000.0] {
        statuses.push(gateway.call(&vectors).await.status);
        // A call is settled a moment after its answer.
        let settled = || async { used(&gateway, "consumer/tokens/day").await == after };
        assert!(eventually(PATIENCE, settled).await, "{statuses:?}");
    }
    assert_eq!(statuses, [200, 200, 429], "500 tokens each");
    assert_eq!(used(&gateway, "consumer/tokens/day").await, 1000.0);

    // Of what passes as it is nobody knows beforehand how much it is: 4096 tokens are reserved for the answer.
    let raw = Setup { app: ", budgets: [{ tokens: 6000/day, name: raw }, { cost: 100/day }]", ..Setup::new(&provider) };
    let raw = raw.yaml().replace("ai: {} }", "ai: { passthrough: [openai] } }");
    assert_eq!(gateway.reload(&raw).await.status, 200);
    let passing = post("/passthrough/openai/v1/chat/completions", "gpt-4o");
    let mut statuses = Vec::new();
    for after in [1100.0, 2200.0, 2200.0] {
        statuses.push(gateway.call(&passing).await.status);
        let settled = || async { used(&gateway, "raw").await == after };
        assert!(eventually(PATIENCE, settled).await, "{statuses:?}");
    }
    assert_eq!(statuses, [200, 200, 429], "1100 tokens each");
    assert_eq!(used(&gateway, "raw").await, 2200.0);
    let list = Call::get("/passthrough/openai/v1/files").header("Authorization", &format!("Bearer {APP}"));
    assert_eq!(gateway.call(&list).await.status, 200, "to look something up costs nothing");
    assert_eq!(used(&gateway, "raw").await, 2200.0);
}
