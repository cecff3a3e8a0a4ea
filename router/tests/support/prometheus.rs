//! A reading of Prometheus' text format, version 0.0.4, by its description and by nothing of ours:
//! what the format does not have is refused, and so is what every scraper would have to guess.
#![allow(dead_code)]

use std::collections::{BTreeMap, BTreeSet};

type Labels = BTreeMap<String, String>;

/// A line with a value.
#[derive(Clone, Debug)]
pub(crate) struct Sample {
    pub(crate) name: String,
    pub(crate) labels: Labels,
    pub(crate) value: f64,
}

/// A text that was read.
#[derive(Clone, Debug, Default)]
pub(crate) struct Scrape {
    /// Type of each family.
    pub(crate) types: BTreeMap<String, String>,
    pub(crate) samples: Vec<Sample>,
}

impl Scrape {
    /// Reads a text; says what is wrong with it if something is.
    pub(crate) fn parse(text: &str) -> Result<Scrape, String> {
        if !text.ends_with('\n') {
            return Err("the last line does not end".to_owned());
        }
        let (mut scrape, mut helped) = (Scrape::default(), BTreeSet::new());
        let (mut family, mut seen, mut series) = (None, BTreeSet::new(), BTreeSet::new());
        for (number, line) in (1..).zip(text.lines()) {
            let wrong = |why: String| format!("line {number}: {why}: {line}");
            if let Some(rest) = line.strip_prefix("# HELP ") {
                let (name, _) = rest.split_once(' ').ok_or_else(|| wrong("no text".into()))?;
                check_name(name, true).map_err(wrong)?;
                if !helped.insert(name.to_owned()) {
                    return Err(wrong("told before".into()));
                }
            } else if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').ok_or_else(|| wrong("no type".into()))?;
                if !["counter", "gauge", "histogram"].contains(&kind) {
                    return Err(wrong("not a type that is used here".into()));
                }
                if !helped.contains(name) {
                    return Err(wrong("without help before it".into()));
                }
                if kind == "counter" && !name.ends_with("_total") {
                    return Err(wrong("a counter's name ends in _total".into()));
                }
                if scrape.types.insert(name.to_owned(), kind.to_owned()).is_some() {
                    return Err(wrong("told before".into()));
                }
                family = Some(name.to_owned());
                seen.insert(name.to_owned());
            } else if line.is_empty() || line.starts_with('#') {
                return Err(wrong("nothing that says something".into()));
            } else {
                let sample = parse_sample(line).map_err(wrong)?;
                let of = scrape.family_of(&sample.name);
                if of.is_none() || of != family {
                    return Err(wrong(format!("not within its family {of:?}")));
                }
                if !series.insert((sample.name.clone(), sample.labels.clone())) {
                    return Err(wrong("a series that was there".into()));
                }
                scrape.samples.push(sample);
            }
        }
        if let Some(name) = helped.difference(&seen).next() {
            return Err(format!("{name} has help and no type"));
        }
        scrape.check_values()?;
        Ok(scrape)
    }

    /// The value of the one series that has these labels; none when there is none.
    #[track_caller]
    pub(crate) fn find(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let found: Vec<&Sample> = self.with(name, labels).collect();
        assert!(found.len() <= 1, "{name} with {labels:?} is not one series: {found:?}");
        found.first().map(|sample| sample.value)
    }

    /// The same, which must be there.
    #[track_caller]
    pub(crate) fn get(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let found = self.find(name, labels);
        found.unwrap_or_else(|| panic!("{name} with {labels:?} is not there"))
    }

    /// The sum of all series that have these labels.
    pub(crate) fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.with(name, labels).map(|sample| sample.value).sum()
    }

    /// Names of all series that have a label of this value.
    pub(crate) fn names_with(&self, label: &str, value: &str) -> BTreeSet<&str> {
        let has = |sample: &&Sample| sample.labels.get(label).is_some_and(|found| found == value);
        self.samples.iter().filter(has).map(|sample| sample.name.as_str()).collect()
    }

    fn with<'a>(
        &'a self,
        name: &'a str,
        labels: &'a [(&'a str, &'a str)],
    ) -> impl Iterator<Item = &'a Sample> + 'a {
        self.samples.iter().filter(move |sample| {
            let has = |(label, value): &(&str, &str)| {
                sample.labels.get(*label).is_some_and(|found| found == value)
            };
            sample.name == name && labels.iter().all(has)
        })
    }

    fn family_of(&self, name: &str) -> Option<String> {
        if self.types.get(name).is_some_and(|kind| kind != "histogram") {
            return Some(name.to_owned());
        }
        let parts = ["_bucket", "_sum", "_count"];
        let base = parts.iter().find_map(|part| name.strip_suffix(part))?;
        let is_histogram = self.types.get(base).is_some_and(|kind| kind == "histogram");
        is_histogram.then(|| base.to_owned())
    }

    /// Counters are whole and not negative; buckets are in order and end with the count.
    fn check_values(&self) -> Result<(), String> {
        let mut buckets = BTreeMap::<(String, Labels), Vec<(f64, f64)>>::new();
        for Sample { name, labels, value } in &self.samples {
            let kind = &self.types[&self.family_of(name).expect("it was checked")];
            if kind == "counter" && (*value < 0.0 || value.fract() != 0.0) {
                return Err(format!("{name} is {value}"));
            }
            if let (true, Some(base)) = (kind == "histogram", name.strip_suffix("_bucket")) {
                let mut labels = labels.clone();
                let bound = labels.remove("le").ok_or_else(|| format!("{name} without le"))?;
                let bound = parse_value(&bound)?;
                buckets.entry((base.to_owned(), labels)).or_default().push((bound, *value));
            }
        }
        for ((name, labels), buckets) in buckets {
            let rises = |one: &(f64, f64), other: &(f64, f64)| one.0 < other.0 && one.1 <= other.1;
            let last = buckets.last().expect("there is one");
            let of = |part: &str| {
                let name = format!("{name}{part}");
                let found = self.samples.iter().find(|s| s.name == name && s.labels == labels);
                found.map(|sample| sample.value).ok_or_else(|| format!("{name} {labels:?}: none"))
            };
            of("_sum")?;
            if !buckets.is_sorted_by(rises) || last.0 != f64::INFINITY || last.1 != of("_count")? {
                return Err(format!("{name} {labels:?}: {buckets:?}"));
            }
        }
        Ok(())
    }
}

fn parse_sample(line: &str) -> Result<Sample, String> {
    let end = line.find(['{', ' ']).ok_or("no value")?;
    let (name, mut rest) = line.split_at(end);
    check_name(name, true)?;
    let mut labels = BTreeMap::new();
    if let Some(inner) = rest.strip_prefix('{') {
        rest = inner;
        loop {
            let (label, after) = rest.split_once("=\"").ok_or("a label without a value")?;
            check_name(label, false)?;
            let (value, after) = parse_quoted(after)?;
            if labels.insert(label.to_owned(), value).is_some() {
                return Err(format!("two labels {label}"));
            }
            if let Some(after) = after.strip_prefix('}') {
                rest = after;
                break;
            }
            rest = after.strip_prefix(',').ok_or("labels without a comma")?;
        }
    }
    let value = rest.strip_prefix(' ').ok_or("no space before the value")?;
    Ok(Sample { name: name.to_owned(), labels, value: parse_value(value)? })
}

/// A label's value up to its quote, and what follows.
fn parse_quoted(text: &str) -> Result<(String, &str), String> {
    let (mut value, mut rest) = (String::new(), text.chars());
    loop {
        match rest.next().ok_or("a value without an end")? {
            '"' => return Ok((value, rest.as_str())),
            '\\' => value.push(match rest.next() {
                Some('n') => '\n',
                Some(escaped @ ('\\' | '"')) => escaped,
                other => return Err(format!("{other:?} is nothing to escape")),
            }),
            other => value.push(other),
        }
    }
}

fn parse_value(text: &str) -> Result<f64, String> {
    match text {
        "+Inf" => Ok(f64::INFINITY),
        // Rust reads more than the format has.
        _ if text.bytes().all(|byte| byte.is_ascii_digit() || b"+-.e".contains(&byte)) => {
            text.parse().map_err(|_| format!("{text:?} is no number"))
        }
        _ => Err(format!("{text:?} is no number")),
    }
}

fn check_name(name: &str, is_metric: bool) -> Result<(), String> {
    let may_begin = |byte: u8| byte.is_ascii_alphabetic() || byte == b'_';
    let may_follow = |byte: u8| may_begin(byte) || byte.is_ascii_digit();
    let is_ours = !is_metric || name.starts_with("thalweg_");
    match name.as_bytes() {
        [first, rest @ ..]
            if may_begin(*first) && rest.iter().all(|b| may_follow(*b)) && is_ours =>
        {
            Ok(())
        }
        _ => Err(format!("{name:?} is no name")),
    }
}
