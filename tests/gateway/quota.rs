//! So many requests in a calendar period, whatever happens to the process.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::rate_limit::KEY;
use crate::support::*;

fn yaml(quota: &str) -> String {
    format!(
        "
usage: {{ file: '{{{{dir}}}}/usage.db', interval: 100ms }}
services: {{ s: {{ filters: [{{ quota: {quota} }}], routes: {{ all: {{ match: {{ path_prefix: / }}, backend: {{ respond: {{ body: in }} }} }} }} }} }}
"
    )
}

async fn statuses(gateway: &Gateway, count: usize) -> Vec<u16> {
    let mut client = gateway.connect().await;
    let mut statuses = Vec::new();
    for _ in 0..count {
        statuses.push(client.get("/").await.unwrap().status);
    }
    statuses
}

#[tokio::test]
async fn the_example_counts_each_consumer_warns_and_then_refuses() {
    let origin = Origin::named("a").await;
    let gateway = Gateway::example("quota", &origin).await;
    let call = Call::get("/").header("X-Api-Key", KEY);
    for n in 1..=10 {
        let answer = gateway.call(&call).await;
        assert_eq!(answer.status, 200, "request {n}");
        let warning = answer.header("x-quota-warning").map(str::to_owned);
        let expected = (n >= 8).then(|| format!("orders/quota/month; used={n}; of=10"));
        assert_eq!(warning, expected, "request {n}");
        assert!(answer.header("ratelimit").unwrap().starts_with(&format!("\"orders/quota/month\";r={};t=", 10 - n)));
    }
    let refused = gateway.call(&call).await;
    assert_eq!((refused.status, refused.problem().as_deref()), (429, Some("quota_exceeded")));
    assert_eq!(refused.json()["limit"], "orders/quota/month");
    let after: u64 = refused.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=31 * 86_400 + 3600).contains(&after), "until the month is over: {after}");
    assert_eq!(origin.count(), 10);
    assert!(gateway.logs("consumer:mobile has used 8 of 10").await, "{}", gateway.logged());
    assert_eq!(gateway.metric("headgate_quota_warnings_total", &[]).await, 1.0);

    let usage = gateway.admin_get("/usage?consumer=mobile").await.json();
    let limit = &usage["consumers"][0]["limits"][0];
    assert_eq!((&limit["limit"], &limit["kind"]), (&"orders/quota/month".into(), &"quota".into()), "{usage}");
    assert_eq!((&limit["amount"], &limit["used"], &limit["remaining"]), (&10.into(), &10.into(), &0.into()), "{usage}");
    assert!(limit["reset"].as_str().is_some_and(|at| at.ends_with("Z")), "{usage}");
    assert_eq!(gateway.admin_get("/usage").await.json()["consumers"][0]["consumer"], "mobile");
    assert_eq!(gateway.admin_get("/usage?consumer=nobody").await.status, 404);
}

#[tokio::test]
async fn what_another_limit_refuses_has_used_up_nothing() {
    // Written before the rate, and run after it.
    let gateway =
        Gateway::start(&yaml("{ amount: 10/year, by: gateway } }, { rate_limit: { rate: 3/h, by: route }")).await;
    assert_eq!(statuses(&gateway, 8).await.iter().filter(|status| **status == 200).count(), 3);
    let written = || async { sql(&gateway, "SELECT sum(used) FROM usage") == "3" };
    assert!(eventually(PATIENCE, written).await, "{}", sql(&gateway, "SELECT * FROM usage"));
}

#[tokio::test]
async fn what_was_used_survives_a_stop_and_a_reload() {
    let mut gateway = Gateway::start(&yaml("{ amount: 5/year, by: gateway }")).await;
    assert_eq!(statuses(&gateway, 3).await, [200, 200, 200]);
    assert_eq!(gateway.reload(&(yaml("{ amount: 5/year, by: gateway }") + "dns: {}\n")).await.status, 200);
    assert_eq!(statuses(&gateway, 1).await, [200]);
    gateway.signal(libc::SIGTERM);
    assert!(gateway.exit(PATIENCE).await.is_some_and(|status| status.success()));
    gateway.restart().await;
    assert_eq!(statuses(&gateway, 3).await, [200, 429, 429]);
}

/// What the store of a gateway says.
fn sql(gateway: &Gateway, statement: &str) -> String {
    sql_in(&gateway.directory().join("usage.db"), statement)
}

fn sql_in(file: &Path, statement: &str) -> String {
    let mut command = std::process::Command::new("sqlite3");
    let command = command.args(["-cmd", ".timeout 5000"]).arg(file).arg(statement);
    let output = command.output().expect("running sqlite3; `scripts/prepare tests` installs it");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

fn used(answer: &Answer, amount: u64) -> u64 {
    let told = answer.header("ratelimit").unwrap();
    let remaining = told.split(";r=").nth(1).and_then(|rest| rest.split(';').next()?.parse::<u64>().ok());
    amount - remaining.unwrap_or_else(|| panic!("no remaining amount in {told}"))
}

#[tokio::test]
async fn a_crash_loses_nothing_that_was_written_and_counts_nothing_twice() {
    let mut gateway = Gateway::start(&yaml("{ amount: 1000/year, by: gateway, name: all }")).await;
    let mut served = 0;
    for _ in 0..3 {
        statuses(&gateway, 40).await;
        served += 40;
        let written = || async { sql(&gateway, "SELECT sum(used) FROM usage") == served.to_string() };
        assert!(eventually(PATIENCE, written).await, "{served} were served and not written");
        gateway.signal(libc::SIGKILL);
        gateway.exit(PATIENCE).await;
        gateway.restart().await;
        served += 1;
        assert_eq!(used(&gateway.get("/").await, 1000), served);
    }
}

#[tokio::test]
async fn a_crash_under_load_loses_at_most_what_came_in_since_the_last_write() {
    let mut gateway = Gateway::start(&yaml("{ amount: 100000/year, by: gateway, name: all }")).await;
    let (mut served, mut counted) = (0, 0);
    for _ in 0..3 {
        let begun = Instant::now();
        let mut client = gateway.connect().await;
        // How many had been served at each moment.
        let mut moments = Vec::new();
        while begun.elapsed() < Duration::from_millis(450) {
            assert_eq!(client.get("/").await.unwrap().status, 200);
            served += 1;
            moments.push((begun.elapsed(), served));
        }
        gateway.signal(libc::SIGKILL);
        let end = begun.elapsed();
        gateway.exit(PATIENCE).await;
        gateway.restart().await;
        let before = counted;
        counted = used(&gateway.get("/").await, 100_000) - 1;
        assert!(counted <= served, "{counted} counted of {served} served: some twice");
        assert!(counted > before, "never the whole");
        // The interval is 100 ms; a write on a busy machine takes a while too.
        let bound = end.saturating_sub(Duration::from_millis(300));
        let safe = moments.iter().take_while(|(at, _)| *at < bound).last().map_or(0, |(_, served)| *served);
        assert!(counted >= safe, "{counted} counted, {safe} were served long before the crash, {served} in all");
        served = counted + 1;
        counted += 1;
    }
}

#[tokio::test]
async fn an_upgrade_goes_on_counting() {
    let mut gateway = Gateway::start(&yaml("{ amount: 10/year, by: gateway }")).await;
    assert_eq!(statuses(&gateway, 4).await, [200; 4]);
    assert!(gateway.metric_becomes("headgate_usage_store_writes_total", &[], |writes| writes > 0.0).await);
    gateway.upgrade();
    assert!(gateway.predecessor_exit(PATIENCE).await.is_some_and(|status| status.success()));
    assert_eq!(statuses(&gateway, 8).await, [200, 200, 200, 200, 200, 200, 429, 429]);
}

#[tokio::test]
async fn a_store_that_is_of_no_use_stops_the_start_with_a_sentence() {
    let text = vec![b'x'; 8192];
    let mut builder = Gateway::builder(&yaml("{ amount: 5/year }"));
    std::fs::write(builder.directory().join("usage.db"), text).unwrap();
    let mut gateway = builder.launch();
    assert!(gateway.exit(PATIENCE).await.is_some_and(|status| !status.success()));
    let said = gateway.logged();
    assert!(said.contains("usage.db") && said.contains("damaged or no database"), "{said}");

    builder = Gateway::builder(&yaml("{ amount: 5/year }").replace("{{dir}}/usage.db", "/nowhere/usage.db"));
    gateway = builder.launch();
    assert!(gateway.exit(PATIENCE).await.is_some_and(|status| !status.success()));
    assert!(gateway.logged().contains("there is no folder /nowhere"), "{}", gateway.logged());
}

/// Sets the permissions of a folder and of all that is in it.
fn permit(folder: &Path, of_folder: u32, of_files: u32) {
    let set = |path: &Path, mode| std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    set(folder, 0o700);
    std::fs::read_dir(folder).unwrap().for_each(|file| set(&file.unwrap().path(), of_files));
    set(folder, of_folder);
}

/// A gateway that permissions hold for, with its store in the folder `state`.
fn with_state() -> gateway::Builder {
    let yaml = yaml("{ amount: 100/year, by: gateway }").replace("usage.db", "state/usage.db");
    let builder = Gateway::builder(&yaml).obeying_permissions();
    std::fs::create_dir(builder.directory().join("state")).unwrap();
    builder
}

#[tokio::test]
async fn a_store_that_may_not_be_written_stops_the_start_and_is_not_begun_anew() {
    for (of_folder, of_files) in [(0o500, 0o400), (0o700, 0o400), (0o700, 0o000), (0o000, 0o600)] {
        let mut gateway = with_state().start().await;
        let state = gateway.directory().join("state");
        assert_eq!(statuses(&gateway, 3).await, [200; 3]);
        gateway.signal(libc::SIGTERM);
        assert!(gateway.exit(PATIENCE).await.is_some_and(|status| status.success()));
        permit(&state, of_folder, of_files);
        gateway.relaunch();
        let ended = gateway.exit(PATIENCE).await;
        permit(&state, 0o700, 0o600);
        let (said, what) = (gateway.logged(), format!("folder {of_folder:o}, files {of_files:o}"));
        assert!(ended.is_some_and(|status| !status.success()), "{what}: started");
        assert!(said.contains("state/usage.db cannot be"), "{what}: {said}");
        assert!(said.contains("name another file as `usage.file`"), "{what}: {said}");
        gateway.restart().await;
        assert_eq!(used(&gateway.get("/").await, 100), 4, "{what}: what was counted before is there");
    }
}

#[tokio::test]
async fn a_folder_in_which_no_store_can_be_made_stops_the_start() {
    let builder = with_state();
    let state = builder.directory().join("state");
    permit(&state, 0o500, 0o400);
    let mut gateway = builder.launch();
    assert!(gateway.exit(PATIENCE).await.is_some_and(|status| !status.success()));
    permit(&state, 0o700, 0o600);
    let said = gateway.logged();
    assert!(said.contains("state/usage.db cannot be opened") && said.contains("rights of its folder"), "{said}");
}

#[tokio::test]
async fn what_is_counted_while_the_store_is_gone_or_may_not_be_written_is_written_when_it_can_be() {
    let gateway = with_state().start().await;
    let (state, gone) = (gateway.directory().join("state"), gateway.directory().join("gone"));
    let stored = |count: &'static str| {
        let file = state.join("usage.db");
        eventually(PATIENCE, move || {
            let sum = sql_in(&file, "SELECT sum(used) FROM usage");
            async move { sum == count }
        })
    };
    let fails = |words: &'static str| {
        let gateway = &gateway;
        eventually(PATIENCE, move || async move {
            let told = gateway.admin_get("/usage").await.json()["usage_store"].to_string();
            told.contains(words) && gateway.admin_get("/status").await.text().contains(words)
        })
    };
    assert_eq!(statuses(&gateway, 3).await, [200; 3]);
    assert!(stored("3").await);
    assert_eq!(gateway.admin_get("/usage").await.json()["usage_store"], "ok");

    // As when a volume is taken away.
    std::fs::rename(&state, &gone).unwrap();
    assert_eq!(statuses(&gateway, 2).await, [200; 2]);
    assert!(fails("is gone").await, "{}", gateway.logged());
    assert!(!state.exists(), "no empty one takes its place");
    let failures = gateway.metric("headgate_usage_store_failures_total", &[]).await;
    assert!(gateway.metric_becomes("headgate_usage_store_failures_total", &[], |now| now > failures).await);
    std::fs::rename(&gone, &state).unwrap();
    assert!(stored("5").await, "{}", gateway.logged());

    // As when root has restored a backup, into the same place.
    let backup = gateway.directory().join("backup");
    std::fs::create_dir(&backup).unwrap();
    sql_in(&state.join("usage.db"), &format!("VACUUM INTO '{}'", backup.join("usage.db").display()));
    std::fs::rename(&state, &gone).unwrap();
    std::fs::rename(&backup, &state).unwrap();
    permit(&state, 0o500, 0o400);
    assert_eq!(statuses(&gateway, 2).await, [200; 2]);
    assert!(fails("cannot be").await, "{}", gateway.logged());
    permit(&state, 0o700, 0o600);
    assert!(stored("7").await, "{}", gateway.logged());
    assert!(gateway.logs("the usage store works again, and has everything").await);
    assert_eq!(gateway.admin_get("/usage").await.json()["usage_store"], "ok");
    assert_eq!(used(&gateway.get("/").await, 100), 8);
}

#[tokio::test]
async fn a_store_that_is_replaced_while_the_gateway_runs_gives_each_caller_the_count_of_its_own() {
    let yaml = yaml("{ amount: 100/year, by: { header: x-caller } }").replace("usage.db", "state/usage.db");
    let builder = Gateway::builder(&yaml);
    let [state, backup, gone] = ["state", "backup", "gone"].map(|name| builder.directory().join(name));
    std::fs::create_dir(&state).unwrap();
    let gateway = builder.start().await;
    let call = |caller: &'static str, count: usize| {
        let gateway = &gateway;
        async move {
            let mut used_by_now = 0;
            for _ in 0..count {
                used_by_now = used(&gateway.call(&Call::get("/").header("x-caller", caller)).await, 100);
            }
            used_by_now
        }
    };
    let stored = |counts: &'static str| {
        let file = state.join("usage.db");
        eventually(PATIENCE, move || {
            let each = sql_in(
                &file,
                "SELECT group_concat(used) FROM (SELECT used FROM usage ORDER BY length(caller), caller)",
            );
            async move { each == counts }
        })
    };
    assert_eq!((call("a", 3).await, call("b", 5).await, call("c", 2).await), (3, 5, 2));
    assert!(stored("3,5,2").await);

    // Rows in another order, one more used by `b`, and nothing known of `c`.
    std::fs::create_dir(&backup).unwrap();
    sql_in(&state.join("usage.db"), &format!("VACUUM INTO '{}'", backup.join("usage.db").display()));
    sql_in(
        &backup.join("usage.db"),
        "UPDATE amount SET id = -id; UPDATE counter SET id = -id;
         UPDATE amount SET id = id + 3; UPDATE counter SET id = id + 3;
         UPDATE amount SET used = 6 WHERE used = 5;
         DELETE FROM counter WHERE id IN (SELECT id FROM amount WHERE used = 2); DELETE FROM amount WHERE used = 2;",
    );
    std::fs::rename(&state, &gone).unwrap();
    std::fs::rename(&backup, &state).unwrap();
    assert_eq!(call("a", 1).await, 4);
    assert!(stored("4,6").await, "{}", sql_in(&state.join("usage.db"), "SELECT * FROM usage"));
    assert!(gateway.logged().contains("is another file than before"), "{}", gateway.logged());
    assert_eq!(call("b", 1).await, 7, "what the file has more of is learnt");
    assert_eq!(call("c", 1).await, 3, "what was served is not forgotten");
    assert!(stored("4,7,1").await, "{}", sql_in(&state.join("usage.db"), "SELECT * FROM usage"));
}

#[tokio::test]
async fn while_the_disk_is_full_counting_goes_on_and_is_kept_when_there_is_room() {
    let gateway = Gateway::start(&yaml("{ amount: 100000/year, by: { header: x-caller } }")).await;
    let sql = |statement: &str| sql(&gateway, statement);
    // What a full disk looks like from within: every write fails until there is room.
    sql("CREATE TRIGGER full BEFORE INSERT ON amount BEGIN SELECT RAISE(FAIL, 'database or disk is full'); END;");
    assert_eq!(statuses(&gateway, 3).await, [200; 3]);
    assert!(gateway.metric_becomes("headgate_usage_store_failures_total", &[], |failures| failures > 1.0).await);
    assert!(gateway.admin_get("/status").await.json()["usage_store"].as_str().unwrap().contains("full"));
    assert_eq!(gateway.logged().matches("counting goes on in memory").count(), 1, "said once, not every time");
    sql("DROP TRIGGER full;");
    assert!(gateway.logs("the usage store works again, and has everything").await);
    assert_eq!(sql("SELECT sum(used) FROM usage;"), "3");
}

#[test]
fn a_quota_that_means_nothing_is_refused() {
    for (quota, words) in [
        ("{ amount: 5/fortnight }", "not a quota"),
        ("{ amount: 5/month, time_zone: Europe/Atlantis }", "not a time zone"),
        ("{ amount: 5/month, by: { header: a_b } }", "underscore"),
    ] {
        let scratch = scratch::Scratch::new();
        let yaml = yaml(quota).replace("{{dir}}", "/tmp") + "listeners: { http: { address: '127.0.0.1:1' } }\n";
        let file = scratch.write("headgate.yaml", yaml);
        let output = gateway::headgate(&["check", "-c", file.to_str().unwrap()]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains(words), "{quota}: {said}");
    }
}

#[test]
fn an_interval_that_never_or_always_writes_is_refused() {
    for interval in ["0s", "2d"] {
        let scratch = scratch::Scratch::new();
        let yaml = format!("usage: {{ interval: {interval} }}\nlisteners: {{ http: {{ address: '127.0.0.1:1' }} }}\n");
        let file = scratch.write("headgate.yaml", yaml);
        let output = gateway::headgate(&["check", "-c", file.to_str().unwrap()]);
        assert!(!output.status.success() && String::from_utf8_lossy(&output.stderr).contains("usage.interval"));
    }
}
