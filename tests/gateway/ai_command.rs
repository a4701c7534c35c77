//! `headgate ai`: models without a configuration.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use serde_json::{Value, json};

use crate::support::ports::{Reserved, reserve};
use crate::support::scratch::Scratch;
use crate::support::scripted::Scripted;
use crate::support::*;

const KEY: &str = "a-key-that-the-test-has-chosen";

/// The command with this environment and no other, in a folder of its own.
fn command(scratch: &Scratch, arguments: &[&str], environment: &[(&str, &str)]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_headgate"));
    command.arg("ai").args(arguments).env_clear().envs(environment.iter().copied());
    command.env("TMPDIR", scratch.path()).current_dir(scratch.path()).stdin(Stdio::null());
    command
}

fn ends(arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    let scratch = Scratch::new();
    command(&scratch, arguments, environment).output().expect("starting the headgate binary")
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&[output.stdout.as_slice(), &output.stderr].concat()).into_owned()
}

/// One that serves.
struct Serving {
    child: Child,
    address: SocketAddr,
    /// What it has printed before it was ready.
    told: String,
    scratch: Scratch,
    _ports: [Reserved; 2],
}

impl Serving {
    async fn start(arguments: &[&str], environment: &[(&str, &str)]) -> Serving {
        let (scratch, ports) = (Scratch::new(), [reserve(), reserve()]);
        let [address, admin] = ports.each_ref().map(|port| port.address);
        let (here, there) = (address.to_string(), admin.to_string());
        let places = ["--address", here.as_str(), "--admin", there.as_str()];
        let mut command = command(&scratch, &[&places, arguments].concat(), environment);
        let mut child = command.stdout(Stdio::piped()).spawn().expect("starting the headgate binary");
        let mut told = String::new();
        let mut lines = BufReader::new(child.stdout.take().expect("stdout is piped")).lines();
        while let Some(Ok(line)) = lines.next() {
            told += &line;
            told.push('\n');
            if line.contains("--print-config") {
                break;
            }
        }
        let up = eventually(PATIENCE, || async {
            match Client::connect(admin).await {
                Ok(mut client) => {
                    client.call(&Call::get("/readyz").host(&there)).await.is_ok_and(|answer| answer.status == 200)
                }
                Err(_) => false,
            }
        });
        assert!(up.await, "it did not become ready: {told}");
        Serving { child, address, told, scratch, _ports: ports }
    }

    async fn call(&self, call: &Call) -> Answer {
        Client::connect(self.address).await.unwrap().call(call).await.unwrap()
    }

    /// The key that it has printed.
    fn key(&self) -> String {
        let key = self.told.lines().find_map(|line| line.strip_prefix("  ").filter(|line| line.starts_with("hgk_")));
        key.unwrap_or_else(|| panic!("no key in {}", self.told)).to_owned()
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A provider whose address is in the environment too, so that it can be had on this machine.
fn azure(provider: &Scripted) -> String {
    format!("http://{}", provider.address)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_dialect_calls_with_its_own_header_and_nobody_without_the_key() {
    let provider = Scripted::start().await;
    let endpoint = azure(&provider);
    let environment = [("AZURE_OPENAI_API_KEY", "sk-of-azure"), ("AZURE_OPENAI_ENDPOINT", endpoint.as_str())];
    let gateway = Serving::start(&["--engines", "none"], &environment).await;
    let (key, bearer) = (gateway.key(), format!("Bearer {}", gateway.key()));
    assert!(!gateway.told.contains("sk-of-azure"), "{}", gateway.told);
    for word in
        ["OPENAI_BASE_URL=http://", "ANTHROPIC_BASE_URL=http://", "GOOGLE_GEMINI_BASE_URL=http://", "azure", "curl"]
    {
        assert!(gateway.told.contains(word), "{word} is missing in {}", gateway.told);
    }

    let messages = json!([{ "role": "user", "content": "Hi" }]);
    let chat = json!({ "model": "azure/plain", "messages": messages });
    let anthropic = json!({ "model": "azure/plain", "max_tokens": 10, "messages": messages });
    let gemini = json!({ "contents": [{ "role": "user", "parts": [{ "text": "Hi" }] }] });
    let generate = "/v1beta/models/azure/plain:generateContent";
    for (path, body, header, value, place) in [
        ("/v1/chat/completions", &chat, "authorization", bearer.as_str(), "/choices/0/message/content"),
        ("/v1/messages", &anthropic, "x-api-key", key.as_str(), "/content/0/text"),
        ("/v1/messages", &anthropic, "authorization", bearer.as_str(), "/content/0/text"),
        (generate, &gemini, "x-goog-api-key", key.as_str(), "/candidates/0/content/parts/0/text"),
    ] {
        let call = Call::post(path, body.to_string()).header("content-type", "application/json");
        let answer = gateway.call(&call.clone().header(header, value)).await;
        let said = answer.json().pointer(place).cloned().unwrap_or_default();
        assert_eq!((answer.status, said.as_str().is_some_and(|text| text.starts_with("Hello"))), (200, true), "{path}");
        for refused in [call.clone(), call.clone().header(header, &value.replace("hgk_", "hgk-"))] {
            let answer = gateway.call(&refused).await;
            assert_eq!(answer.status, 401, "{path}");
            assert!(answer.json().get("error").is_some(), "in the caller's dialect: {}", answer.text());
        }
    }
    let in_query = Call::post(&format!("{generate}?key={key}"), gemini.to_string());
    assert_eq!(gateway.call(&in_query).await.status, 200);
}

/// An engine with these models.
async fn engine(models: &'static [&'static str]) -> Origin {
    Origin::start(move |request| match request.path() {
        "/api/tags" => Reply::ok("{}"),
        "/v1/models" => {
            let data: Vec<Value> = models.iter().map(|id| json!({ "id": id, "object": "model" })).collect();
            Reply::with(200, &[("Content-Type", "application/json")], json!({ "data": data }).to_string())
        }
        _ => {
            let sent: Value = serde_json::from_slice(&request.body).unwrap_or_default();
            let answer = json!({
                "model": sent["model"], "message": { "role": "assistant", "content": sent["model"] }, "done": true,
                "done_reason": "stop",
                "id": "c", "object": "chat.completion", "created": 1,
                "choices": [{ "index": 0, "message": { "role": "assistant", "content": sent["model"] }, "finish_reason": "stop" }],
            });
            Reply::with(200, &[("Content-Type", "application/json")], answer.to_string())
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_runs_is_found_and_its_models_are_listed_and_called() {
    let engine = engine(&["llama3.2:latest", "org/other", "no name"]).await;
    let engines = format!("ollama={}", engine.address);
    let gateway = Serving::start(&["--engines", &engines], &[("HEADGATE_AI_KEY", KEY)]).await;
    assert!(gateway.told.contains("llama3.2:latest") && gateway.told.contains(KEY), "{}", gateway.told);
    let bearer = format!("Bearer {KEY}");
    let list = gateway.call(&Call::get("/v1/models").header("authorization", &bearer)).await.json();
    let mut names: Vec<&str> = list["data"].as_array().unwrap().iter().map(|it| it["id"].as_str().unwrap()).collect();
    names.sort_unstable();
    assert_eq!(names, ["llama3.2:latest", "ollama/llama3.2:latest", "ollama/org/other", "org/other"]);
    for name in ["llama3.2:latest", "ollama/llama3.2:latest"] {
        let body = json!({ "model": name, "messages": [{ "role": "user", "content": "Hi" }] }).to_string();
        let call = Call::post("/v1/chat/completions", body).header("authorization", &bearer);
        let answer = gateway.call(&call).await;
        assert_eq!(
            (answer.status, &answer.json()["choices"][0]["message"]["content"]),
            (200, &json!("llama3.2:latest"))
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_only_looks_like_an_engine_is_none() {
    let other = Origin::start(|_| Reply::ok("<html>")).await;
    let silent = Origin::start(|_| Reply::silence()).await;
    let engines = format!("ollama={},vllm={}", other.address, silent.address);
    let scratch = Scratch::new();
    let mut command = command(&scratch, &["--engines", &engines], &[]);
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    assert!(!output.status.success() && said(&output).contains("no engine"), "{}", said(&output));
}

#[test]
fn without_keys_and_engines_it_says_what_to_set() {
    let output = ends(&["--engines", "none"], &[]);
    assert_eq!(output.status.code(), Some(1));
    for word in ["OPENAI_API_KEY", "ANTHROPIC_API_KEY", "Ollama"] {
        assert!(said(&output).contains(word), "{word} is missing in {}", said(&output));
    }
}

#[test]
fn a_provider_that_lacks_more_than_its_key_is_named_and_left_out() {
    let output = ends(&["--engines", "none"], &[("AZURE_OPENAI_API_KEY", "sk-of-azure")]);
    let text = said(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("azure is left out") && !text.contains("sk-of-azure"), "{text}");
}

#[test]
fn a_key_that_is_too_weak_is_refused() {
    let environment = [("OPENAI_API_KEY", "sk-of-openai"), ("HEADGATE_AI_KEY", "short")];
    let output = ends(&["--engines", "none"], &environment);
    let text = said(&output);
    assert!(!output.status.success() && text.contains("HEADGATE_AI_KEY") && !text.contains("short"), "{text}");
}

#[test]
fn the_printed_configuration_is_one_to_go_on_from() {
    let environment = [
        ("OPENAI_API_KEY", "sk-of-openai"),
        ("ANTHROPIC_API_KEY", "sk-of-anthropic"),
        ("AWS_ACCESS_KEY_ID", "AKIAEXAMPLE"),
        ("AWS_SECRET_ACCESS_KEY", "secret-of-aws"),
    ];
    let output = ends(&["--engines", "none", "--print-config"], &environment);
    let yaml = String::from_utf8(output.stdout.clone()).unwrap();
    assert!(output.status.success() && !said(&output).contains("sk-of") && !yaml.contains("secret-of-aws"), "{yaml}");
    for word in ["openai:", "anthropic:", "bedrock:", "env:OPENAI_API_KEY"] {
        assert!(yaml.contains(word), "{word} is missing in {yaml}");
    }
    let scratch = Scratch::new();
    let file = scratch.write("headgate.yaml", &yaml);
    let headgate = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_headgate"));
        command.args(arguments).arg("-c").arg(&file).env_clear().envs(environment).env("AWS_KEY", "AKIAEXAMPLE:secret");
        command.output().unwrap()
    };
    let checked = headgate(&["check"]);
    assert!(checked.status.success(), "{}", said(&checked));
    // The way on that its first lines tell.
    let made = headgate(&["key", "create", "me"]);
    let made = String::from_utf8(made.stdout).unwrap();
    let (_, consumers) = made.split_once("consumers:").expect("a consumer to paste");
    scratch.write("headgate.yaml", yaml.replace("consumers: {}", &format!("consumers:{consumers}")));
    let checked = headgate(&["check"]);
    assert!(checked.status.success(), "{}", said(&checked));
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_left_behind() {
    let provider = Scripted::start().await;
    let endpoint = azure(&provider);
    let environment = [("AZURE_OPENAI_API_KEY", "sk-of-azure"), ("AZURE_OPENAI_ENDPOINT", endpoint.as_str())];
    let mut gateway = Serving::start(&["--engines", "none"], &environment).await;
    // SAFETY: a plain system call; the child is ours and not reaped.
    unsafe { libc::kill(gateway.child.id() as libc::pid_t, libc::SIGINT) };
    assert!(eventually(PATIENCE, || std::future::ready(matches!(gateway.child.try_wait(), Ok(Some(_))))).await);
    let left = |folder: &Path| -> Vec<PathBuf> {
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect()
    };
    assert_eq!(left(gateway.scratch.path()), Vec::<PathBuf>::new());
}
