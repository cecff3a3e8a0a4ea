//! The text: families of series written by `prometheus-client`, of collectors that look at what is
//! there when they are asked.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeLabelSet, NoLabelSet, prometheus_text::encode,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use super::counter::Distribution;

/// What every series' name begins with.
const PREFIX: &str = "thalweg";

/// Collectors whose series are shown together.
#[derive(Debug)]
pub struct Exposition(Registry);

impl Exposition {
    /// Of these. No two may have a family of the same name.
    #[must_use]
    pub fn new(collectors: Vec<Box<dyn Collector>>) -> Exposition {
        let mut registry = Registry::with_prefix(PREFIX);
        collectors.into_iter().for_each(|collector| registry.register_collector(collector));
        Exposition(registry)
    }

    /// The text format of Prometheus, version 0.0.4. It takes a while when there is much to show:
    /// not to be called where tasks wait.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        encode(&mut text, &self.0).expect("a text takes whatever is written");
        text
    }
}

/// What the program is, as a series whose value says nothing.
#[derive(Debug)]
pub struct BuildCollector;

impl Collector for BuildCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let help = "The program's version; the value is 1";
        let labels = [("version", env!("CARGO_PKG_VERSION"))];
        gauges(&mut encoder, "build_info", help, [(labels, 1)])
    }
}

/// Writes a family of counters; `_total` is added to its name.
///
/// # Errors
/// Those of the encoder.
pub fn counters<L: EncodeLabelSet>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    series: impl IntoIterator<Item = (L, u64)>,
) -> fmt::Result {
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
    for (labels, value) in series {
        family.encode_family(&labels)?.encode_counter::<NoLabelSet, _, u64>(&value, None)?;
    }
    Ok(())
}

/// Writes a family of gauges.
///
/// # Errors
/// Those of the encoder.
pub fn gauges<L: EncodeLabelSet>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    series: impl IntoIterator<Item = (L, u64)>,
) -> fmt::Result {
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    for (labels, value) in series {
        family.encode_family(&labels)?.encode_gauge(&value)?;
    }
    Ok(())
}

/// Writes a family of one counter without labels; `_total` is added to its name.
///
/// # Errors
/// Those of the encoder.
pub fn counter(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    value: u64,
) -> fmt::Result {
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
    family.encode_counter::<NoLabelSet, _, u64>(&value, None)
}

/// Writes a family of one gauge without labels.
///
/// # Errors
/// Those of the encoder.
pub fn gauge(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    value: u64,
) -> fmt::Result {
    encoder.encode_descriptor(name, help, None, MetricType::Gauge)?.encode_gauge(&value)
}

/// Writes a family of histograms of which a value was counted as `per_unit` for one of the unit
/// that the name says: 1,000 for microseconds shown as milliseconds.
///
/// # Errors
/// Those of the encoder.
pub fn histograms<L: EncodeLabelSet>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    per_unit: u64,
    series: impl IntoIterator<Item = (L, Distribution)>,
) -> fmt::Result {
    let in_unit = |value: u64| value as f64 / per_unit as f64;
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
    for (labels, distribution) in series {
        let buckets: Vec<(f64, u64)> =
            distribution.buckets.iter().map(|(bound, count)| (in_unit(*bound), *count)).collect();
        let (sum, count) = (in_unit(distribution.sum), distribution.count());
        let mut series = family.encode_family(&labels)?;
        series.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Shown;

    impl Collector for Shown {
        fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
            let labels = |name: &'static str| [("stream", name), ("shard", "0")];
            let series = [(labels("a\"b\\c\nd"), 1), (labels("plain"), u64::MAX)];
            counters(&mut encoder, "puts", "What was put", series)?;
            let none: [([(&str, &str); 0], u64); 0] = [];
            gauges(&mut encoder, "nothing", "Nobody has any", none)?;
            counter(&mut encoder, "alone", "One by itself", 7)?;
            gauge(&mut encoder, "now_bytes", "At the moment", 8)?;
            let distribution =
                Distribution { buckets: vec![(250, 1), (2000, 2)], beyond: 3, sum: 12_345 };
            let series = [(labels("plain"), distribution)];
            histograms(&mut encoder, "took_milliseconds", "How long", 1000, series)
        }
    }

    #[test]
    fn families_are_written_in_the_format_of_prometheus() {
        let text = Exposition::new(vec![Box::new(Shown), Box::new(BuildCollector)]).text();
        let labels = r#"stream="plain",shard="0""#;
        let expected = format!(
            r#"# HELP thalweg_puts_total What was put
# TYPE thalweg_puts_total counter
thalweg_puts_total{{stream="a\"b\\c\nd",shard="0"}} 1
thalweg_puts_total{{{labels}}} 18446744073709551615
# HELP thalweg_nothing Nobody has any
# TYPE thalweg_nothing gauge
# HELP thalweg_alone_total One by itself
# TYPE thalweg_alone_total counter
thalweg_alone_total 7
# HELP thalweg_now_bytes At the moment
# TYPE thalweg_now_bytes gauge
thalweg_now_bytes 8
# HELP thalweg_took_milliseconds How long
# TYPE thalweg_took_milliseconds histogram
thalweg_took_milliseconds_bucket{{{labels},le="0.25"}} 1
thalweg_took_milliseconds_bucket{{{labels},le="2"}} 3
thalweg_took_milliseconds_bucket{{{labels},le="+Inf"}} 6
thalweg_took_milliseconds_sum{{{labels}}} 12.345
thalweg_took_milliseconds_count{{{labels}}} 6
# HELP thalweg_build_info The program's version; the value is 1
# TYPE thalweg_build_info gauge
thalweg_build_info{{version="{version}"}} 1
"#,
            version = env!("CARGO_PKG_VERSION")
        );
        assert_eq!(text, expected);
    }
}
