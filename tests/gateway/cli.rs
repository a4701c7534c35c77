//! The command line as a person meets it, and every configuration that the project hands out.

use std::path::Path;
use std::process::Output;

use crate::support::gateway::headgate;
use crate::support::scratch::Scratch;
use crate::support::*;

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&[output.stdout.as_slice(), &output.stderr].concat()).into_owned()
}

#[test]
fn check_reports_every_problem_at_once_with_place_and_suggestion() {
    let scratch = Scratch::new();
    let file = scratch.write(
        "bad.yaml",
        "listeners:\n  http: { address: 127.0.0.1:8080 }\nupstreams:\n  orders:\n    targets: [{ adress: 127.0.0.1:1 }]\n    \
         balance: round_robbin\nservices:\n  s:\n    routes:\n      r:\n        match: { path: /x }\n        backend: { upstream: order }\n\
         \x20       filters: [{ header: {} }]\n",
    );
    let output = headgate(&["check", "-c", file.to_str().unwrap()]);
    let text = said(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    for word in ["bad.yaml", "adress", "address", "round_robbin", "round_robin", "header", "headers"] {
        assert!(text.contains(word), "{word} is missing:\n{text}");
    }
}

#[test]
fn check_warns_of_what_works_and_is_a_risk() {
    let scratch = Scratch::new();
    let file = scratch.write(
        "risky.yaml",
        "listeners:\n  http: { address: 127.0.0.1:8080 }\nadmin: { address: 0.0.0.0:9080, allow_remote: true }\nupstreams:\n  orders:\n    \
         targets: [{ address: 127.0.0.1:1 }]\n    tls: { verify: false }\n",
    );
    let output = headgate(&["check", "-c", file.to_str().unwrap()]);
    let text = said(&output);
    assert!(output.status.success(), "a warning is no problem: {text}");
    let warnings: Vec<_> = text.lines().filter(|line| line.starts_with("warning: ")).collect();
    assert_eq!(warnings.len(), 2, "{text}");
    assert!(warnings[0].contains("risky.yaml:3") && warnings[0].contains("admin.allow_remote"), "{text}");
    assert!(warnings[1].contains("risky.yaml:7") && warnings[1].contains("upstreams.orders.tls.verify"), "{text}");
}

#[test]
fn check_accepts_every_configuration_of_the_project() {
    let conf = Path::new(env!("CARGO_MANIFEST_DIR")).join("conf");
    let mut files = vec![conf.join("headgate.yaml")];
    let examples = std::fs::read_dir(conf.join("examples")).expect("examples").map(|entry| entry.unwrap().path());
    files.extend(examples.filter(|file| file.extension().is_some_and(|extension| extension == "yaml")));
    assert!(files.len() > 5, "{files:?}");
    for file in files {
        let output = headgate(&["check", "-c", file.to_str().unwrap()]);
        assert!(output.status.success(), "{}:\n{}", file.display(), said(&output));
    }
}

#[test]
fn explain_lists_filters_in_their_order_and_where_they_came_from() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("conf/examples/headers.yaml");
    let output = headgate(&["explain", "api/customer", "-c", file.to_str().unwrap()]);
    let text = said(&output);
    assert!(output.status.success() && text.contains("headers") && text.contains("origin"), "{text}");
    let output = headgate(&["explain", "api/custmer", "-c", file.to_str().unwrap()]);
    assert!(
        !output.status.success() && said(&output).contains("customer"),
        "the nearest name is offered: {}",
        said(&output)
    );
}

#[test]
fn explain_shows_the_filters_of_a_consumer_and_its_plan_and_says_that_there_are_some() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("conf/examples/caller_filters.yaml");
    let explain = |more: &[&str]| headgate(&[&["explain", "orders/all", "-c", file.to_str().unwrap()], more].concat());
    let lines =
        |output| said(&output).split('\n').map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    let everyone: Vec<String> = lines(explain(&[]));
    assert!(everyone.iter().any(|line| line == "limit rate_limit from service orders"), "{everyone:?}");
    assert!(everyone.iter().any(|line| line.starts_with("more with: plan free, consumer guest;")), "{everyone:?}");
    let mobile: Vec<String> = lines(explain(&["--consumer", "mobile"]));
    for line in ["limit rate_limit from plan free", "transform headers from plan free"] {
        assert!(mobile.iter().any(|known| known == line), "{mobile:?}");
    }
    assert!(!mobile.iter().any(|line| line.starts_with("limit") && line.ends_with("service orders")), "{mobile:?}");
    let guest: Vec<String> = lines(explain(&["--consumer", "guest"]));
    assert!(guest.iter().any(|line| line == "authorise acl from consumer guest"), "{guest:?}");
    let nobody = explain(&["--consumer", "mobil"]);
    assert!(!nobody.status.success() && said(&nobody).contains("did you mean mobile?"), "{}", said(&nobody));
}

#[test]
fn a_filter_that_runs_before_the_caller_is_known_cannot_stand_on_a_consumer_or_a_plan() {
    let yaml = "listeners: { http: { address: 127.0.0.1:8080 } }
plans: { gold: { filters: [{ cors: { origins: ['https://shop.example'] } }] } }
consumers: { mobile: { filters: [{ rate_limit: { rate: 1/s } }, { api_key: {} }] } }
";
    let folder = Scratch::new();
    let file = folder.write("headgate.yaml", yaml);
    let output = headgate(&["check", "-c", file.to_str().unwrap()]);
    let text = said(&output);
    assert!(!output.status.success(), "{text}");
    for part in [
        "plans.gold.filters[0].cors",
        "stage guard",
        "consumers.mobile.filters[1].api_key",
        "stage authenticate",
        "2 problems",
    ] {
        assert!(text.contains(part), "{part} is missing:\n{text}");
    }
}

#[test]
fn schema_is_json_that_describes_filters() {
    let output = headgate(&["schema"]);
    let schema: serde_json::Value = serde_json::from_slice(&output.stdout).expect("a JSON document");
    let text = schema.to_string();
    for word in ["listeners", "upstreams", "ip_restriction", "cors", "compression"] {
        assert!(text.contains(word), "{word}");
    }
}

#[test]
fn help_and_version_read_well() {
    let help = said(&headgate(&["--help"]));
    for command in ["run", "check", "explain", "schema", "upgrade", "demo-origin", "version"] {
        assert!(help.contains(command), "{command} is missing:\n{help}");
    }
    assert!(said(&headgate(&["version"])).contains(env!("CARGO_PKG_VERSION")));
}

#[test]
fn run_refuses_a_bad_configuration_with_a_reason() {
    let scratch = Scratch::new();
    let file = scratch.write("bad.yaml", "listners: {}\n");
    let output = headgate(&["run", "-c", file.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    assert!(said(&output).contains("listners") && said(&output).contains("listeners"), "{}", said(&output));
}

#[tokio::test]
async fn an_address_in_use_is_said_clearly() {
    let origin = Origin::named("squatter").await;
    let yaml = format!("listeners: {{ http: {{ address: '{}' }} }}\nservices: {{}}\n", origin.address);
    let mut gateway = Gateway::builder(&yaml).launch();
    let status = gateway.exit(PATIENCE).await.expect("it gives up");
    assert!(!status.success());
    assert!(gateway.logged().contains(&origin.address.to_string()), "{}", gateway.logged());
}

#[tokio::test]
async fn references_to_environment_and_files_are_resolved_and_never_shown() {
    let yaml = "
services:
  s:
    routes:
      all: { match: { path_prefix: / }, backend: { respond: { body: '${env:HEADGATE_TEST_BODY}' } } }
";
    let gateway = Gateway::builder(yaml).environment("HEADGATE_TEST_BODY", "from-outside").start().await;
    assert_eq!(gateway.get("/").await.text(), "from-outside");
    assert!(!gateway.admin_get("/status").await.text().contains("from-outside"));
    assert!(!gateway.logged().contains("from-outside"));
}

#[tokio::test]
async fn a_unix_socket_is_a_listener_too() {
    let yaml = "
listeners: { local: { address: 'unix:{{dir}}/gateway.sock' } }
services: { s: { routes: { all: { match: { path_prefix: / }, backend: { respond: { body: local } } } } } }
";
    let gateway = Gateway::start(yaml).await;
    let mut client = Client::unix(&gateway.directory().join("gateway.sock")).await.unwrap();
    assert_eq!(client.get("/").await.unwrap().text(), "local");
}

#[tokio::test]
async fn a_taken_address_is_one_sentence_with_a_remedy_and_no_panic() {
    let squatter = Origin::named("squatter").await;
    for yaml in [
        "listeners: { http: { address: '{{taken}}' } }\nservices: {}\n",
        "admin: { address: '{{taken}}' }\nservices: {}\n",
    ] {
        let mut gateway = Gateway::builder(yaml).with("taken", squatter.address).launch();
        let status = gateway.exit(PATIENCE).await.expect("it gives up");
        assert_eq!(status.code(), Some(1));
        let said = gateway.logged();
        assert!(said.contains(&format!("cannot listen on {}", squatter.address)) && said.contains("-u"), "{said}");
        assert!(!said.contains("panicked"), "{said}");
    }
}

#[tokio::test]
async fn access_log_lines_go_to_standard_output_and_nothing_else_does() {
    let yaml = "access_log: { to: stdout, format: json }
services: { s: { routes: { all: { match: { path_prefix: / }, backend: { respond: { body: hello } } } } } }\n";
    let gateway = Gateway::start(yaml).await;
    gateway.get("/logged").await;
    assert!(gateway.logs("out {").await, "{}", gateway.logged());
    let said = gateway.logged();
    let mut lines = said.lines().filter_map(|line| line.strip_prefix("out "));
    assert!(lines.all(|line| serde_json::from_str::<serde_json::Value>(line).is_ok()), "{said}");
}

#[tokio::test]
async fn a_demo_origin_answers_with_what_it_received() {
    let port = ports::reserve();
    let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_headgate"))
        .args(["demo-origin", "--name", "left", "--address", &port.address.to_string()])
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let called = eventually(PATIENCE, || async { Client::connect(port.address).await.is_ok() }).await;
    let answer = async { Client::connect(port.address).await?.call(&Call::post("/a?b=c", "hello")).await }.await;
    let failing = async { Client::connect(port.address).await?.get("/fail").await }.await;
    let _ = child.kill();
    let _ = child.wait();
    assert!(called);
    let document = answer.unwrap().json();
    assert_eq!((&document["origin"], &document["target"]), (&"left".into(), &"/a?b=c".into()), "{document}");
    assert_eq!(
        (&document["body"], &document["headers"]["host"]),
        (&"hello".into(), &"test.example".into()),
        "{document}"
    );
    assert_eq!(failing.unwrap().status, 500, "it can fail on demand");
}

#[tokio::test]
async fn the_mode_of_a_unix_listener_is_as_configured() {
    use std::os::unix::fs::PermissionsExt;
    let yaml = "
listeners:
  usual: { address: 'unix:{{dir}}/usual.sock' }
  open: { address: 'unix:{{dir}}/open.sock', mode: '0666' }
services: {}
";
    let gateway = Gateway::start(yaml).await;
    for (name, mode) in [("usual", 0o660), ("open", 0o666)] {
        let socket = gateway.directory().join(name).with_extension("sock");
        assert_eq!(std::fs::metadata(socket).unwrap().permissions().mode() & 0o777, mode, "{name}");
    }
}

#[test]
fn every_filter_has_an_example() {
    let schema: serde_json::Value = serde_json::from_slice(&headgate(&["schema"]).stdout).expect("a JSON document");
    // Whatever holds `ip_restriction` as a property lists all filters.
    fn filters(value: &serde_json::Value) -> Option<Vec<String>> {
        match value {
            serde_json::Value::Object(map) if map.contains_key("ip_restriction") => Some(map.keys().cloned().collect()),
            serde_json::Value::Object(map) => map.values().find_map(filters),
            serde_json::Value::Array(list) => {
                let has = |value: &serde_json::Value| value.pointer("/properties/ip_restriction").is_some();
                if list.iter().any(has) {
                    let names = list.iter().filter_map(|value| value["properties"].as_object());
                    return Some(names.flat_map(|properties| properties.keys().cloned()).collect());
                }
                list.iter().find_map(filters)
            }
            _ => None,
        }
    }
    let names = filters(&schema).expect("the schema lists the filters");
    assert!(names.len() >= 10, "{names:?}");
    for name in names {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("conf/examples").join(&name).with_extension("yaml");
        let text = std::fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        assert!(text.contains(&format!("{name}:")), "{} does not use it", file.display());
    }
}
