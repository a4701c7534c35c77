//! `headgate key` and `headgate password`: making what consumers present, and the hashes that the configuration keeps.

use std::fs::{self, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use argon2::Argon2;
use argon2::PasswordHasher;

use crate::config::units::Timestamp;
use crate::config::{Problems, Secret, process_environment};
use crate::identity::api_key::{self, Hash, Pepper};

/// `headgate key create`: makes a key for a consumer and prints it, once, with what to write into the configuration.
pub fn create(path: &Path, consumer: &str, expires: Option<Timestamp>, json: bool) -> Result<(), String> {
    let pepper = pepper(path)?;
    let key = api_key::create().ok_or("the system has no random numbers to give")?;
    let hash = pepper.hash(key.as_bytes());
    if json {
        let document = serde_json::json!({
            "key": key,
            "hash": hash.to_string(),
            "credential": hash.credential().to_string(),
            "expires": expires.map(|at| at.to_string()),
        });
        println!("{document:#}");
        return Ok(());
    }
    println!("{key}\n\nThat is the key: it is shown now and never again. Write its hash into the configuration:\n");
    print_hash(consumer, &hash, expires);
    Ok(())
}

/// `headgate key hash`: the hash of a key from elsewhere, read from the standard input so that no shell remembers it.
pub fn hash(path: &Path, consumer: &str, expires: Option<Timestamp>) -> Result<(), String> {
    let pepper = pepper(path)?;
    let key = read_line()?;
    if !(api_key::SHORTEST..=api_key::LONGEST).contains(&key.expose().len()) {
        return Err(format!("a key has {} to {} bytes", api_key::SHORTEST, api_key::LONGEST));
    }
    print_hash(consumer, &pepper.hash(key.expose().as_bytes()), expires);
    Ok(())
}

/// `headgate password hash`: a password's argon2id hash, with the parameters that OWASP recommends (19 MiB, two passes).
pub fn hash_password() -> Result<(), String> {
    let password = read_line()?;
    if password.expose().is_empty() {
        return Err("the password is empty".to_owned());
    }
    let hash = Argon2::default().hash_password(password.expose().as_bytes());
    println!("{}", hash.map_err(|error| error.to_string())?);
    Ok(())
}

fn print_hash(consumer: &str, hash: &Hash, expires: Option<Timestamp>) {
    let expires = expires.map(|at| format!(", expires: {at}")).unwrap_or_default();
    println!("consumers:\n  {consumer}:\n    credentials:\n      - api_key: {{ hash: \"{hash}\"{expires} }}");
}

/// The pepper that the configuration names. Its file is made if there is none.
fn pepper(path: &Path) -> Result<Pepper, String> {
    let loaded = super::load(path)?;
    let written = &loaded.config.identity.pepper;
    if let Some(file) = written.file(&loaded.folder)
        && !file.exists()
    {
        make_pepper(&file).map_err(|error| format!("cannot make the pepper in {}: {error}", file.display()))?;
        eprintln!(
            "made the pepper in {}: keep it as safe as a private key, and back it up; without it no key works",
            file.display()
        );
    }
    let mut problems = Problems::default();
    let secret = written.resolve(&loaded.folder, &process_environment, "identity.pepper", &mut problems);
    secret.as_ref().map(Pepper::new).ok_or_else(|| problems.to_string())
}

/// Only its owner may read it, from its first moment.
fn make_pepper(file: &Path) -> io::Result<()> {
    let pepper =
        api_key::create_pepper().ok_or_else(|| io::Error::other("the system has no random numbers to give"))?;
    let mut out = OpenOptions::new().write(true).create_new(true).mode(0o600).open(file)?;
    writeln!(out, "{}", pepper.expose())?;
    out.sync_all()?;
    // The name too has to outlive a loss of power: keys made with a lost pepper are lost.
    fs::File::open(file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new(".")))?.sync_all()
}

/// A line of the standard input without its end.
fn read_line() -> Result<Secret, String> {
    let mut text = String::new();
    io::stdin().take(1 << 16).read_to_string(&mut text).map_err(|error| format!("cannot read the input: {error}"))?;
    text.truncate(text.trim_end_matches(['\r', '\n']).len());
    Ok(Secret::new(text))
}
