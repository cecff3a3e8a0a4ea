//! What came of a run: for people on stdout, for programs as one JSON object.

use std::path::Path;

use hdrhistogram::Histogram;
use serde::Serialize;
use thalweg_node::Counters;

use crate::error::BenchError;
use crate::kinesis::encode::Encoding;
use crate::kinesis::outcome::ApiReport;
use crate::limits::Limits;
use crate::machine::{Machine, resident_bytes_max};
use crate::soak::Window;

/// The JSON object; its fields are described in `bench/README.md`. What a workload does not
/// measure is null.
#[derive(Clone, Debug, Serialize)]
#[allow(missing_docs)]
pub struct Report {
    pub workload: &'static str,
    pub settings: serde_json::Value,
    pub records_per_s: Option<f64>,
    pub bytes_per_s: Option<f64>,
    pub batches_per_s: Option<f64>,
    pub p50_us: Option<u64>,
    pub p99_us: Option<u64>,
    pub p999_us: Option<u64>,
    pub max_us: Option<u64>,
    pub cpu_s_per_gb: Option<f64>,
    pub processors_busy: Option<f64>,
    pub disk_write_ratio: Option<f64>,
    pub disk_read_ratio: Option<f64>,
    pub read_back_bytes_per_s: Option<f64>,
    pub warm_tail_bytes_per_s: Option<f64>,
    pub slowest_sync_us: Option<u64>,
    pub p99_alone_us: Option<u64>,
    pub p99_ratio: Option<f64>,
    pub noisy_records_per_s: Option<f64>,
    pub restart_ms: Option<u64>,
    pub resident_bytes: Option<u64>,
    pub resident_bytes_max: u64,
    pub windows: Option<Vec<Window>>,
    pub node: serde_json::Value,
    pub limits: Option<Limits>,
    pub api: Option<ApiReport>,
    pub failures: Vec<String>,
    pub verified: bool,
    pub passed: bool,
    pub machine: Machine,
    pub revision: &'static str,
}

impl Report {
    /// A report without figures yet. A run against a server that may be anywhere has no limits of
    /// a machine to be held against.
    pub fn new(
        workload: &'static str,
        settings: &impl Serialize,
        machine: Machine,
        limits: impl Into<Option<Limits>>,
    ) -> Report {
        Report {
            workload,
            settings: serde_json::to_value(settings).expect("settings are plain data"),
            records_per_s: None,
            bytes_per_s: None,
            batches_per_s: None,
            p50_us: None,
            p99_us: None,
            p999_us: None,
            max_us: None,
            cpu_s_per_gb: None,
            processors_busy: None,
            disk_write_ratio: None,
            disk_read_ratio: None,
            read_back_bytes_per_s: None,
            warm_tail_bytes_per_s: None,
            slowest_sync_us: None,
            p99_alone_us: None,
            p99_ratio: None,
            noisy_records_per_s: None,
            restart_ms: None,
            resident_bytes: None,
            resident_bytes_max: resident_bytes_max(),
            windows: None,
            node: serde_json::Value::Null,
            limits: limits.into(),
            api: None,
            failures: Vec::new(),
            verified: false,
            passed: false,
            machine,
            revision: env!("THALWEG_REVISION"),
        }
    }

    /// Takes the percentiles of a distribution of microseconds.
    pub fn set_latency(&mut self, latency_us: &Histogram<u64>) {
        if latency_us.is_empty() {
            return;
        }
        self.p50_us = Some(latency_us.value_at_quantile(0.5));
        self.p99_us = Some(latency_us.value_at_quantile(0.99));
        self.p999_us = Some(latency_us.value_at_quantile(0.999));
        self.max_us = Some(latency_us.max());
    }

    /// Takes what the node counted.
    pub fn set_node(&mut self, counters: &Counters) {
        self.node = serde_json::Value::Object(
            counters.named().into_iter().map(|(name, count)| (name.into(), count.into())).collect(),
        );
        self.slowest_sync_us = Some(counters.sync_us_max);
    }

    /// Writes the object, if a file was named.
    ///
    /// # Errors
    /// [`BenchError::File`].
    pub fn write_json(&self, path: Option<&Path>) -> Result<(), BenchError> {
        let Some(path) = path else { return Ok(()) };
        let mut text = serde_json::to_string(self).expect("a report is plain data");
        text.push('\n');
        std::fs::write(path, text)
            .map_err(|source| BenchError::File { path: path.to_path_buf(), source })
    }

    /// Prints the report for a person: the two figures that matter first.
    pub fn print(&self) {
        let line = |name: &str, value: String| println!("  {name:<22}{value}");
        println!();
        if let Some(records) = self.records_per_s {
            println!("  {} records/s    p99 {}", grouped(records), micros(self.p99_us));
            println!();
        }
        let unit = if self.api.is_some() { "requests/s" } else { "batches/s" };
        if let (Some(bytes), Some(batches)) = (self.bytes_per_s, self.batches_per_s) {
            line("written", format!("{} ({} {unit})", rate(bytes), grouped(batches)));
        }
        if let Some(api) = &self.api {
            print_api(api);
        }
        if self.disk_write_ratio.is_some() {
            line("of the disk, synced", percent(self.disk_write_ratio));
        }
        if self.p50_us.is_some() {
            let p50 = micros(self.p50_us);
            let (p999, max) = (micros(self.p999_us), micros(self.max_us));
            line("p50 / p99.9 / max", format!("{p50} / {p999} / {max}"));
        }
        if let Some(us) = self.slowest_sync_us {
            line("slowest sync", micros(Some(us)));
        }
        if let Some(cpu) = self.cpu_s_per_gb {
            line("processor", format!("{cpu:.2} s a GB"));
        }
        if let Some(busy) = self.processors_busy {
            line("processors busy", format!("{busy:.3}"));
        }
        if let Some(bytes) = self.warm_tail_bytes_per_s {
            line("tail from memory", rate(bytes));
        }
        if let (Some(bytes), None) = (self.read_back_bytes_per_s, &self.api) {
            let of_disk = percent(self.disk_read_ratio);
            line("read back", format!("{} ({of_disk} of the disk)", rate(bytes)));
        }
        if let Some(ms) = self.restart_ms {
            line("start after a stop", format!("{ms} ms"));
        }
        if let Some(bytes) = self.resident_bytes {
            line("memory", format!("{} MiB", bytes >> 20));
        }
        line("memory, most", format!("{} MiB", self.resident_bytes_max >> 20));
        // A soak does not keep what it would read back.
        let what = if self.windows.is_some() { "what was followed" } else { "every acked record" };
        line("verified", if self.verified { what.into() } else { "no".into() });
        line("revision", self.revision.to_string());
        for note in self.api.iter().flat_map(|api| &api.notes) {
            println!("  note: {note}");
        }
        for failure in &self.failures {
            println!("  FAILED: {failure}");
        }
        println!();
    }
}

/// Prints what only runs through the API have.
fn print_api(api: &ApiReport) {
    let line = |name: &str, value: String| println!("  {name:<22}{value}");
    let encoding = api.encoding.map_or("", Encoding::name);
    line("target", format!("{}, {encoding}, HTTP/{}", api.target, api.http));
    let streams = api.streams.map_or(String::new(), |streams| format!("{streams} streams, "));
    let created = api.created_ms.map_or(String::new(), |ms| format!(", there after {ms} ms"));
    line("stream", format!("{}: {streams}{} shards{created}", api.stream, api.shards));
    if api.delivery_p50_us.is_some() {
        let (p50, p99) = (micros(api.delivery_p50_us), micros(api.delivery_p99_us));
        let (p999, max) = (micros(api.delivery_p999_us), micros(api.delivery_max_us));
        line("delivered", format!("p50 / p99 / p99.9 / max {p50} / {p99} / {p999} / {max}"));
    }
    if let (Some(records), Some(bytes)) = (api.read_records_per_s, api.read_bytes_per_s) {
        let requests = grouped(api.read_requests.unwrap_or(0) as f64);
        let records = grouped(records);
        line("read back", format!("{records} records/s, {} ({requests} requests)", rate(bytes)));
    }
    let throttled = api.throttled_requests + api.read_throttled.unwrap_or(0);
    let records = api.throttled_records;
    line("refused for now", format!("{throttled} requests, {records} records of others"));
    if !api.errors.is_empty() {
        line("errors", api.errors_line());
    }
}

/// Prints the machine's limits.
pub fn print_limits(limits: &Limits) {
    println!("  disk, synced writes   {}", rate(limits.disk_write_bytes_per_s));
    println!("  disk, reads           {}", rate(limits.disk_read_bytes_per_s));
    println!("  disk, 4 KiB syncs     {}/s", grouped(limits.disk_syncs_per_s));
    println!("  loopback              {}", rate(limits.loopback_bytes_per_s));
}

fn rate(bytes_per_s: f64) -> String {
    if bytes_per_s < 1e8 {
        return format!("{:.2} MB/s", bytes_per_s / 1e6);
    }
    format!("{:.2} GB/s", bytes_per_s / 1e9)
}

fn percent(ratio: Option<f64>) -> String {
    ratio.map_or("-".into(), |ratio| format!("{:.0} %", ratio * 100.0))
}

fn micros(us: Option<u64>) -> String {
    match us {
        None => "-".into(),
        Some(us) if us < 10_000 => format!("{us} us"),
        Some(us) => format!("{:.1} ms", us as f64 / 1000.0),
    }
}

/// A whole number with its thousands apart.
#[must_use]
pub fn grouped(number: f64) -> String {
    let digits = format!("{number:.0}");
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_readable() {
        assert_eq!(grouped(1_234_567.8), "1,234,568");
        assert_eq!(grouped(12.0), "12");
        assert_eq!((micros(Some(999)), micros(Some(12_345))), ("999 us".into(), "12.3 ms".into()));
        assert_eq!((rate(1.5e9), rate(9.994e7)), ("1.50 GB/s".into(), "99.94 MB/s".into()));
        assert_eq!((percent(Some(0.806)), percent(None)), ("81 %".into(), "-".into()));
    }
}
