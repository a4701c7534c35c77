//! The official libraries of OpenAI, Anthropic and Google, and the Vercel AI SDK, call models through the gateway: every
//! dialect with every format of providers. `scripts/prepare tests` installs the libraries.

use crate::support::gateway::key_hash;
use crate::support::process::{Mock, sdk_suite};
use crate::support::scripted::Scripted;
use crate::support::*;

const KEY: &str = "a-key-of-the-caller";

/// One provider for each format, all of them at the same address.
const PROVIDERS: [&str; 4] = ["chat", "responses", "anthropic", "gemini"];

async fn gateway(provider: impl ToString) -> Gateway {
    let yaml = "
identity: { pepper: file:pepper }
ai:
  providers:
    chat: { provider: openai, base_urls: { openai_chat: 'http://{{provider}}/v1' }, keys: [{ secret: env:KEY }] }
    responses: { provider: openai, base_urls: { openai_responses: 'http://{{provider}}/v1' }, keys: [{ secret: env:KEY }] }
    anthropic: { base_urls: { anthropic: 'http://{{provider}}/v1' }, keys: [{ secret: env:KEY }] }
    gemini: { base_urls: { gemini: 'http://{{provider}}/v1beta' }, keys: [{ secret: env:KEY }] }
services:
  models:
    access: authenticated
    filters: [{ api_key: { from: [bearer, { header: x-api-key }, { header: x-goog-api-key }, { query: key }] } }]
    routes: { all: { match: { path_prefix: / }, backend: { ai: {} } } }
consumers: { me: { credentials: [{ api_key: { hash: '{{hash}}' } }] } }
";
    let builder = Gateway::builder(yaml).with("provider", provider).with("hash", key_hash(KEY));
    builder.environment("KEY", "sk-of-the-gateway").start().await
}

async fn against_the_script(suite: &str) {
    let provider = Scripted::start().await;
    let gateway = gateway(provider.address).await;
    let base = format!("http://{}", gateway.address("http"));
    sdk_suite(suite, &[&[base.as_str(), KEY], PROVIDERS.as_slice()].concat()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn openais_library_calls_every_provider() {
    against_the_script("openai_suite.py").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn anthropics_library_calls_every_provider() {
    against_the_script("anthropic_suite.py").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn googles_library_calls_every_provider() {
    against_the_script("google_suite.py").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_vercel_ai_sdk_calls_every_provider() {
    against_the_script("ai_sdk_suite.mjs").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_vercel_ai_sdk_calls_an_independent_mock() {
    let mock = Mock::start();
    let gateway = gateway(mock.address).await;
    let base = format!("http://{}", gateway.address("http"));
    sdk_suite("ai_sdk_suite.mjs", &[&[base.as_str(), KEY, "mock"], PROVIDERS.as_slice()].concat()).await;
}
