//! Where the configuration comes from, now and at each reload.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::inspect::config_schema;
use crate::config::{self, Config, Loaded, Problems, process_environment};

/// Looks up environment variables for as long as the process lives.
pub type OwnedEnvironment = Arc<dyn Fn(&str) -> Option<String> + Send + Sync>;

/// A configuration that can be loaded again.
pub struct Source {
    kind: Kind,
    /// What its references to the environment refer to.
    pub environment: OwnedEnvironment,
}

enum Kind {
    /// A file, or a directory of them, that is watched.
    File(PathBuf),
    /// A text of our own; paths in it are relative to the folder.
    Made { name: &'static str, text: String, folder: PathBuf },
}

impl Source {
    pub fn file(path: &Path) -> Source {
        Source { kind: Kind::File(path.to_owned()), environment: Arc::new(process_environment) }
    }

    pub fn made(name: &'static str, text: String, folder: PathBuf, environment: OwnedEnvironment) -> Source {
        Source { kind: Kind::Made { name, text, folder }, environment }
    }

    pub fn load(&self) -> Result<Loaded<Config>, Problems> {
        match &self.kind {
            Kind::File(path) => Config::load(path, config_schema()),
            Kind::Made { name, text, folder } => {
                let loaded = config::load_str::<Config>(name, text, config_schema(), &*self.environment)?;
                Ok(Loaded { folder: folder.clone(), ..loaded })
            }
        }
    }

    /// The file or directory to watch, if there is one.
    pub fn watched(&self) -> Option<&Path> {
        match &self.kind {
            Kind::File(path) => Some(path),
            Kind::Made { .. } => None,
        }
    }
}
