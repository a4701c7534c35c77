//! The access log: one line for each request, rendered where the request ran, written in the background.

mod format;
mod writer;

use std::time::Duration;

use format::Format;
pub use format::Line;
pub use writer::Writer;

use super::redact::Redaction;
use crate::config::telemetry::{AccessLog as Config, Destination};
use crate::config::{Problems, units::Share};

/// Which requests are logged, and how a line looks; compiled from the configuration without touching the destination.
#[derive(Debug)]
pub struct Plan {
    pub to: Destination,
    pub buffer: u64,
    format: Format,
    redaction: Redaction,
    sample: Share,
    always_status: u16,
    always_duration: Option<Duration>,
}

impl Plan {
    /// Reports every problem and returns `None` if there was one. `path` is the place in the document.
    pub fn compile(config: &Config, path: &str, problems: &mut Problems) -> Option<Plan> {
        let before = problems.0.len();
        let format = Format::compile(config, path, problems);
        if config.buffer.get() < 64 << 10 {
            problems.add(format!("{path}.buffer"), "needs at least 64KiB");
        }
        if let Destination::File(file) = &config.to
            && file.as_os_str().is_empty()
        {
            problems.add(format!("{path}.to.file"), "names no file");
        }
        let format = format.filter(|_| problems.0.len() == before)?;
        Some(Plan {
            to: config.to.clone(),
            buffer: config.buffer.get(),
            format,
            redaction: Redaction::new(&config.redact),
            sample: config.sample,
            always_status: config.always.status,
            always_duration: config.always.duration.map(|duration| duration.get()),
        })
    }

    /// Decides about one finished request.
    fn wants(&self, line: &Line<'_>) -> bool {
        let exchange = line.scope.exchange;
        exchange.status == 0
            || exchange.status >= self.always_status
            || self.always_duration.is_some_and(|least| exchange.duration >= least)
            || self.sample.draw()
    }

    /// What the log does not show, and traces do not either.
    pub fn redaction(&self) -> &Redaction {
        &self.redaction
    }

    /// Appends the line, with its end.
    pub fn render(&self, line: &Line<'_>, out: &mut String) {
        self.format.render(line, &self.redaction, out);
        out.push('\n');
    }

    /// Hands the request's line to the writer, if it is one to be logged. Never waits.
    pub fn log(&self, line: &Line<'_>, writer: &Writer) {
        if self.wants(line) {
            writer.append(|out| self.render(line, out));
        }
    }
}

#[cfg(test)]
mod tests;
