//! What a benchmark run reports: one JSON object, of which only the fields needed here are named.
//!
//! Unknown fields are ignored and every figure may be missing or null, so that reports of older
//! and newer revisions can be compared with each other.

use std::fmt;
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use thiserror::Error;

/// One run of `thalweg bench`.
#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct Report {
    /// `million`, `burst`, `latency` or `limits`.
    pub workload: String,
    /// What the run was asked to do.
    #[serde(default)]
    pub settings: Value,
    /// Durable records a second.
    pub records_per_s: Option<f64>,
    /// Durable bytes a second.
    pub bytes_per_s: Option<f64>,
    /// Median latency of an acknowledgement.
    pub p50_us: Option<f64>,
    /// 99 of 100 acknowledgements came within this time.
    pub p99_us: Option<f64>,
    /// 999 of 1000 acknowledgements came within this time.
    pub p999_us: Option<f64>,
    /// Processor seconds spent on 10^9 bytes of records.
    pub cpu_s_per_gb: Option<f64>,
    /// Bytes written to the disk for a byte of records.
    pub disk_write_ratio: Option<f64>,
    /// Bytes read from the disk for a byte of records.
    pub disk_read_ratio: Option<f64>,
    /// Whether every acknowledged record was read back unchanged.
    pub verified: Option<bool>,
    /// The run's own verdict.
    pub passed: Option<bool>,
    /// The machine as the bench saw it.
    #[serde(default)]
    pub machine: Value,
    /// The revision that the binary was built from.
    pub revision: Option<String>,
}

/// Why reports could not be read.
#[derive(Debug, Error)]
pub(crate) enum ReportError {
    /// The file is not there or not readable.
    #[error("cannot read the report {}: {source}", path.display())]
    Read {
        /// The report's file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file does not hold reports.
    #[error(
        "{} is neither a report nor JSON lines of reports (object {object}: {source}); \
         write it with `thalweg bench WORKLOAD --json FILE`", path.display()
    )]
    Parse {
        /// The report's file.
        path: PathBuf,
        /// The object's number in the file, from one.
        object: usize,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// The file is empty.
    #[error(
        "{} holds no report; write one with `thalweg bench WORKLOAD --json FILE`",
        path.display()
    )]
    Empty {
        /// The report's file.
        path: PathBuf,
    },
}

/// The reports of `path`: one object, however it is laid out, or several, one after the other.
pub(crate) fn read_reports(path: &Path) -> Result<Vec<Report>, ReportError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| ReportError::Read { path: path.to_owned(), source })?;
    let reports: Vec<Report> = serde_json::Deserializer::from_str(&text)
        .into_iter()
        .enumerate()
        .map(|(index, report)| {
            report.map_err(|source| ReportError::Parse {
                path: path.to_owned(),
                object: index + 1,
                source,
            })
        })
        .collect::<Result<_, _>>()?;
    if reports.is_empty() {
        return Err(ReportError::Empty { path: path.to_owned() });
    }
    Ok(reports)
}

/// A figure of a report that can be compared: each is the [`Report`]'s field of the same name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[value(rename_all = "snake_case")]
#[serde(rename_all = "snake_case")]
pub(crate) enum Metric {
    RecordsPerS,
    BytesPerS,
    P50Us,
    P99Us,
    P999Us,
    CpuSPerGb,
    DiskWriteRatio,
    DiskReadRatio,
}

impl Metric {
    /// The figure in `report`. Nothing that is not positive: a ratio to it would mean nothing.
    pub(crate) fn of(self, report: &Report) -> Option<f64> {
        let value = match self {
            Self::RecordsPerS => report.records_per_s,
            Self::BytesPerS => report.bytes_per_s,
            Self::P50Us => report.p50_us,
            Self::P99Us => report.p99_us,
            Self::P999Us => report.p999_us,
            Self::CpuSPerGb => report.cpu_s_per_gb,
            Self::DiskWriteRatio => report.disk_write_ratio,
            Self::DiskReadRatio => report.disk_read_ratio,
        };
        value.filter(|value| value.is_finite() && *value > 0.0)
    }

    /// Whether more of it is better; of everything else, less is.
    pub(crate) fn higher_is_better(self) -> bool {
        matches!(self, Self::RecordsPerS | Self::BytesPerS)
    }
}

impl fmt::Display for Metric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = self.to_possible_value().expect("no metric is hidden from the arguments");
        f.pad(value.get_name())
    }
}

/// `value` in four digits with k, M or G, as a person reads it.
pub(crate) fn short(value: f64) -> String {
    let (scaled, suffix) = match value.abs() {
        size if size >= 1e9 => (value / 1e9, " G"),
        size if size >= 1e6 => (value / 1e6, " M"),
        size if size >= 1e4 => (value / 1e3, " k"),
        _ => (value, ""),
    };
    let decimals = match scaled.abs() {
        size if size >= 1000.0 => 0,
        size if size >= 100.0 => 1,
        size if size >= 10.0 => 2,
        _ => 3,
    };
    format!("{scaled:.decimals$}{suffix}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Vec<Report>, ReportError> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("report.json");
        std::fs::write(&path, text).unwrap();
        read_reports(&path)
    }

    #[test]
    fn unknown_missing_and_null_fields_are_tolerated() {
        let reports = read(
            "{\"workload\": \"million\", \"records_per_s\": 2e6, \"p99_us\": 900,\n \
             \"disk_read_ratio\": null, \"surprise\": {\"deep\": [1]}}",
        )
        .unwrap();
        assert_eq!(reports.len(), 1);
        assert_eq!(Metric::RecordsPerS.of(&reports[0]), Some(2e6));
        assert_eq!(Metric::P99Us.of(&reports[0]), Some(900.0));
        assert_eq!(Metric::DiskReadRatio.of(&reports[0]), None);
        assert_eq!(Metric::CpuSPerGb.of(&reports[0]), None);
    }

    #[test]
    fn json_lines_are_many_reports() {
        let reports = read("{\"workload\":\"a\"}\n{\"workload\":\"b\"}\n\n").unwrap();
        assert_eq!(reports.iter().map(|r| r.workload.as_str()).collect::<Vec<_>>(), ["a", "b"]);
    }

    #[test]
    fn what_is_no_report_is_refused() {
        assert!(matches!(read("  \n"), Err(ReportError::Empty { .. })));
        let cut = read("{\"workload\":\"a\"}\n{\"workload\":");
        assert!(matches!(cut, Err(ReportError::Parse { object: 2, .. })));
        assert!(matches!(read("{\"date\": 1}"), Err(ReportError::Parse { object: 1, .. })));
    }

    #[test]
    fn a_figure_that_is_not_positive_does_not_count() {
        let report = Report { cpu_s_per_gb: Some(0.0), p50_us: Some(-1.0), ..Report::default() };
        assert_eq!(Metric::CpuSPerGb.of(&report), None);
        assert_eq!(Metric::P50Us.of(&report), None);
    }

    #[test]
    fn metrics_are_called_as_in_the_report() {
        let names: Vec<String> = Metric::value_variants().iter().map(Metric::to_string).collect();
        assert_eq!(
            names.join(" "),
            "records_per_s bytes_per_s p50_us p99_us p999_us cpu_s_per_gb disk_write_ratio \
             disk_read_ratio"
        );
        for metric in Metric::value_variants() {
            assert_eq!(serde_json::to_value(metric).unwrap(), metric.to_string());
        }
    }

    #[test]
    fn figures_are_short() {
        let shown = [1_234_567.0, 999.94, 12_345.0, 1.5, 0.0125, 3.2e9].map(short);
        assert_eq!(shown, ["1.235 M", "999.9", "12.35 k", "1.500", "0.013", "3.200 G"]);
    }
}
