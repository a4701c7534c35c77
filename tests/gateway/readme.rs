//! What the README shows works when it is pasted.

use std::process::Command;

use crate::support::*;

#[test]
fn every_configuration_of_the_readme_is_accepted() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let readme = std::fs::read_to_string(root.join("README.md")).expect("reading README.md");
    let blocks = readme.split("```yaml\n").skip(1).filter_map(|rest| rest.split("```").next());
    let mut count = 0;
    // The first one of all shows the shape, with the certificates of nobody.
    for yaml in blocks.filter(|yaml| yaml.starts_with("listeners:") && !yaml.contains("/etc/headgate/")) {
        let scratch = scratch::Scratch::new();
        scratch.write("pepper", "a pepper");
        let file = scratch.write("headgate.yaml", yaml);
        let output = Command::new(env!("CARGO_BIN_EXE_headgate"))
            .args(["check", "-c"])
            .arg(&file)
            .current_dir(root)
            .env("INTROSPECTION_SECRET", "a secret for the introspection")
            .env("MOBILE_SIGNING_SECRET", "a secret of at least thirty-two bytes")
            .env("OIDC_SECRET", "any")
            .env("OPENAI_API_KEY", "any")
            .env("ANTHROPIC_API_KEY", "any")
            .env("SESSION_KEY", "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef")
            .output()
            .expect("running headgate");
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(output.status.success(), "{said}\n{yaml}");
        count += 1;
    }
    assert!(count >= 10, "{count}");
}
