//! The cases of one folder, and the files that say what becomes of them.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use headgate::ai::formats::Format;
use serde_json::Value;

/// What goes in.
pub struct Case {
    /// `<case>.<format>`, which is also the folder of what is expected.
    pub name: String,
    pub format: Format,
    pub extension: String,
    pub content: Vec<u8>,
}

/// Compares what comes out with the files, or writes them.
pub struct Expected {
    folder: PathBuf,
    bless: bool,
    held: BTreeSet<PathBuf>,
    problems: Vec<String>,
}

impl Expected {
    pub fn of(folder: &str) -> Expected {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(folder);
        let bless = std::env::var_os("BLESS").is_some_and(|value| !value.is_empty() && value != "0");
        Expected { folder, bless, held: BTreeSet::new(), problems: Vec::new() }
    }

    pub fn cases(&mut self) -> Vec<Case> {
        let mut cases = Vec::new();
        for path in entries(&self.folder).into_iter().filter(|path| path.is_file()) {
            let file = file_name(&path);
            let mut words = file.rsplitn(3, '.');
            let (extension, format, name) = (words.next(), words.next(), words.next());
            let format = format.and_then(|name| Format::all().find(|format| format.name() == name));
            match (extension, format, name) {
                (Some(extension), Some(format), Some(name)) => cases.push(Case {
                    name: format!("{name}.{}", format.name()),
                    format,
                    extension: extension.to_owned(),
                    content: fs::read(&path).expect("a case can be read"),
                }),
                _ => self.problems.push(format!("{file} is not named <case>.<format>.<extension>")),
            }
        }
        cases
    }

    pub fn problem(&mut self, case: &Case, problem: String) {
        self.problems.push(format!("{}: {problem}", case.name));
    }

    pub fn json(&mut self, case: &Case, name: &str, found: Value) {
        let path = self.folder.join(&case.name).join(format!("{name}.json"));
        let same = |written: &str| serde_json::from_str::<Value>(written).is_ok_and(|written| written == found);
        self.compare(path, format!("{found:#}\n"), same);
    }

    pub fn text(&mut self, case: &Case, file: &str, found: String) {
        let path = self.folder.join(&case.name).join(file);
        self.compare(path, found.clone(), |written| written == found);
    }

    fn compare(&mut self, path: PathBuf, found: String, same: impl Fn(&str) -> bool) {
        let written = fs::read_to_string(&path).ok();
        if !written.as_deref().is_some_and(same) {
            match (self.bless, written) {
                (true, _) => {
                    fs::create_dir_all(path.parent().expect("the folder of a case")).expect("it can be made");
                    fs::write(&path, &found).expect("what is expected can be written");
                }
                (false, None) => self.problems.push(format!("{} is missing; found:\n{found}", self.shown(&path))),
                (false, Some(written)) => {
                    self.problems.push(format!("{}: {}", self.shown(&path), difference(&written, &found)));
                }
            }
        }
        self.held.insert(path);
    }

    /// Fails with every difference, and for files that no case stands behind.
    pub fn hold(mut self) {
        let folders = entries(&self.folder).into_iter().filter(|path| path.is_dir());
        for path in folders.flat_map(|folder| entries(&folder)) {
            match (self.held.contains(&path), self.bless) {
                (true, _) => {}
                (false, true) => fs::remove_file(&path).expect("it can be removed"),
                (false, false) => self.problems.push(format!("no case writes {}", self.shown(&path))),
            }
        }
        let problems = self.problems.join("\n\n");
        assert!(problems.is_empty(), "{problems}\n\nwith BLESS=1, what is found becomes what is expected");
    }

    fn shown(&self, path: &Path) -> String {
        path.strip_prefix(&self.folder).unwrap_or(path).display().to_string()
    }
}

/// The lines around the first difference.
fn difference(expected: &str, found: &str) -> String {
    let same = expected.lines().zip(found.lines()).take_while(|(expected, found)| expected == found).count();
    let around = |text: &str| text.lines().skip(same.saturating_sub(3)).take(8).collect::<Vec<_>>().join("\n");
    format!("line {}, expected:\n{}\nfound:\n{}", same + 1, around(expected), around(found))
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> =
        fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    found.retain(|path| !file_name(path).starts_with('.'));
    found.sort();
    found
}

fn file_name(path: &Path) -> String {
    path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned())
}
