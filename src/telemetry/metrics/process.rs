//! The process as the operating system sees it, under the names that all Prometheus clients use.
//!
//! The `process` feature of the `prometheus` crate does the same with `procfs` and a second `rustix`; that would cost
//! newcomers more build time (half a minute of CPU) than these few lines cost readers.

use std::fs;

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{Counter, Gauge};

pub struct Process {
    cpu: Counter,
    resident: Gauge,
    virtual_memory: Gauge,
    open_fds: Gauge,
    max_fds: Gauge,
    threads: Gauge,
    start_time: Gauge,
}

/// What is read of `/proc/self/stat`; times in clock ticks.
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    cpu_ticks: u64,
    threads: u64,
    start_ticks: u64,
    virtual_bytes: u64,
    resident_pages: u64,
}

impl Process {
    pub fn new() -> prometheus::Result<Process> {
        let process = Process {
            cpu: Counter::new("process_cpu_seconds_total", "Total user and system CPU time spent in seconds.")?,
            resident: Gauge::new("process_resident_memory_bytes", "Resident memory size in bytes.")?,
            virtual_memory: Gauge::new("process_virtual_memory_bytes", "Virtual memory size in bytes.")?,
            open_fds: Gauge::new("process_open_fds", "Number of open file descriptors.")?,
            max_fds: Gauge::new("process_max_fds", "Maximum number of open file descriptors.")?,
            threads: Gauge::new("process_threads", "Number of OS threads in the process.")?,
            start_time: Gauge::new(
                "process_start_time_seconds",
                "Start time of the process since unix epoch in seconds.",
            )?,
        };
        let boot = fs::read_to_string("/proc/stat")
            .ok()
            .and_then(|text| text.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse::<f64>().ok());
        if let (Some(boot), Some(stat)) = (boot, read_stat()) {
            process.start_time.set(boot + stat.start_ticks as f64 / ticks_per_second());
        }
        Ok(process)
    }

    fn metrics(&self) -> [&dyn Collector; 7] {
        [
            &self.cpu,
            &self.resident,
            &self.virtual_memory,
            &self.open_fds,
            &self.max_fds,
            &self.threads,
            &self.start_time,
        ]
    }

    /// What cannot be read keeps its last value.
    fn read(&self) {
        if let Some(stat) = read_stat() {
            let spent = stat.cpu_ticks as f64 / ticks_per_second();
            self.cpu.inc_by((spent - self.cpu.get()).max(0.0));
            self.resident.set((stat.resident_pages * page_size()) as f64);
            self.virtual_memory.set(stat.virtual_bytes as f64);
            self.threads.set(stat.threads as f64);
        }
        if let Ok(entries) = fs::read_dir("/proc/self/fd") {
            // One of them is the directory itself.
            self.open_fds.set(entries.count().saturating_sub(1) as f64);
        }
        if let Some(limit) = fs::read_to_string("/proc/self/limits").ok().and_then(|text| max_open_files(&text)) {
            self.max_fds.set(limit);
        }
    }
}

impl Collector for Process {
    fn desc(&self) -> Vec<&Desc> {
        self.metrics().into_iter().flat_map(|metric| metric.desc()).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        self.read();
        self.metrics().into_iter().flat_map(|metric| metric.collect()).collect()
    }
}

fn read_stat() -> Option<Stat> {
    parse_stat(&fs::read_to_string("/proc/self/stat").ok()?)
}

/// The fields after the command's name, which is in parentheses and may hold anything; the first is number 3 of proc(5).
fn parse_stat(text: &str) -> Option<Stat> {
    let fields: Vec<&str> = text[text.rfind(')')? + 1..].split_ascii_whitespace().collect();
    let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
    Some(Stat {
        cpu_ticks: number(14)? + number(15)?,
        threads: number(20)?,
        start_ticks: number(22)?,
        virtual_bytes: number(23)?,
        resident_pages: number(24)?,
    })
}

fn max_open_files(limits: &str) -> Option<f64> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    match line.split_ascii_whitespace().next()? {
        "unlimited" => Some(f64::INFINITY),
        number => number.parse().ok(),
    }
}

fn ticks_per_second() -> f64 {
    // SAFETY: sysconf has no preconditions.
    let ticks = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    if ticks > 0 { ticks as f64 } else { 100.0 }
}

fn page_size() -> u64 {
    // SAFETY: sysconf has no preconditions.
    u64::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_the_command_may_hold_anything() {
        let text = "42 (a) b (c) S 1 42 42 0 -1 4194560 1 0 0 0 100 50 0 0 20 0 7 0 12345 1000000 250 184";
        let stat =
            Stat { cpu_ticks: 150, threads: 7, start_ticks: 12345, virtual_bytes: 1_000_000, resident_pages: 250 };
        assert_eq!(parse_stat(text), Some(stat));
        assert_eq!(parse_stat("nonsense"), None);
    }

    #[test]
    fn this_process_has_memory_threads_and_files() {
        let process = Process::new().unwrap();
        process.read();
        for (name, value) in [
            ("resident", process.resident.get()),
            ("virtual", process.virtual_memory.get()),
            ("fds", process.open_fds.get()),
            ("max fds", process.max_fds.get()),
            ("threads", process.threads.get()),
            ("start", process.start_time.get()),
        ] {
            assert!(value > 0.0, "{name}");
        }
    }
}
