//! The configuration of `thalweg node`: a file, the environment and flags, made into one
//! [`NodeConfig`].
//!
//! Everything is first taken as it was written ([`RawConfig`]), one source at a time; then the
//! sources are laid over each other, flags over environment over file over default. What the
//! values may be is for the node to say, which checks them before it touches anything.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use clap::Args;
use serde::{Deserialize, Deserializer};
use thalweg_node::NodeConfig;
use thiserror::Error;

use crate::size::Size;

/// Arguments of `thalweg node`.
#[derive(Args, Debug)]
pub(crate) struct NodeArgs {
    /// TOML file to read values from. Its keys are the long names of the options below with `_`
    /// for `-`, and `log`; any other key is an error [default: none]
    #[arg(long, env = "THALWEG_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,

    #[command(flatten)]
    flags: RawConfig,
}

/// One source's values, as they were written. Clap fills it from flags and environment, of which
/// flags win; serde from a file.
#[derive(Args, Deserialize, Clone, Default, Debug)]
#[serde(deny_unknown_fields)]
struct RawConfig {
    /// Directories to keep data in, one a disk, 1 to 64: repeat the option or separate them by
    /// commas. One that is missing is made, one that is empty is formatted
    /// [default: thalweg-data]
    #[arg(
        long,
        visible_alias = "data-dir",
        env = "THALWEG_DATA_DIRS",
        value_name = "DIR",
        value_delimiter = ','
    )]
    data_dirs: Option<Vec<PathBuf>>,

    /// Address and port to listen on. Core n listens on this port + n; with port 0 the system
    /// chooses a port for each core [default: 127.0.0.1:4568]
    #[arg(long, env = "THALWEG_LISTEN", value_name = "ADDRESS:PORT")]
    listen: Option<SocketAddr>,

    /// Cores to run, each a pinned thread with connections and shards of its own: 1 to 1024, or 0
    /// for one a processor [default: 0]
    #[arg(long, env = "THALWEG_CORES", value_name = "COUNT")]
    cores: Option<usize>,

    /// Memory budget of the node for buffers, caches and indexes, in bytes or with a unit as in
    /// 2GiB: 64MiB a core at least [default: 1GiB]
    #[arg(long, env = "THALWEG_MEMORY_BYTES", value_name = "SIZE")]
    memory_bytes: Option<Size>,

    /// Size of a log segment, in bytes or with a unit: 16MiB to 4GiB, a multiple of 1MiB
    /// [default: 256MiB]
    #[arg(long, env = "THALWEG_SEGMENT_BYTES", value_name = "SIZE")]
    segment_bytes: Option<Size>,

    /// Zero-filled segments to have ready before serving, over all disks, in bytes or with a
    /// unit: from 0; three segments a core and disk at least, whatever is said [default: 1GiB]
    #[arg(long, env = "THALWEG_PREFILL_BYTES", value_name = "SIZE")]
    prefill_bytes: Option<Size>,

    /// Whether the node is its own controller: at start it seals what was open and opens it anew
    /// under the next epoch. With false it waits for a controller to do so: true or false
    /// [default: true]
    #[arg(long, env = "THALWEG_STANDALONE", value_name = "BOOL")]
    standalone: Option<bool>,

    /// Seconds that a node which is its own controller keeps records, 1 to 31536000 (365 days), or
    /// 0 for ever; one value for each retention class from 0 to 7, separated by commas, the last for
    /// all that follow. Space is given back by whole segments: some records are kept for longer
    /// [default: 0]
    #[arg(long, env = "THALWEG_RETENTION_S", value_name = "SECONDS", value_delimiter = ',')]
    #[serde(default, deserialize_with = "one_or_many")]
    retention_s: Option<Vec<u64>>,

    /// Seconds for which a segment has been nearly empty when what is kept of it is copied forward,
    /// 0 to 31536000 [default: 60]
    #[arg(long, env = "THALWEG_MERGE_AFTER_S", value_name = "SECONDS")]
    merge_after_s: Option<u64>,

    /// Seconds in which everything stored is read and checked once, 1 to 31536000, or 0 for never
    /// [default: 604800]
    #[arg(long, env = "THALWEG_SCRUB_PERIOD_S", value_name = "SECONDS")]
    scrub_period_s: Option<u64>,

    /// Rate at which that reads each log at most, in bytes a second or with a unit: from 1
    /// [default: 32MiB]
    #[arg(long, env = "THALWEG_SCRUB_BYTES_PER_S", value_name = "SIZE")]
    scrub_bytes_per_s: Option<Size>,

    /// Rate below which the sender of a frame is cut off, in bytes a second or with a unit: from
    /// 1; every frame has one second at least [default: 64KiB]
    #[arg(long, env = "THALWEG_MIN_FRAME_BYTES_PER_S", value_name = "SIZE")]
    min_frame_bytes_per_s: Option<Size>,

    /// Connections that a core serves at once, 1 to 65536; more are refused [default: 4096]
    #[arg(long, env = "THALWEG_CONNECTIONS_PER_CORE_MAX", value_name = "COUNT")]
    connections_per_core_max: Option<usize>,

    /// Address and port to serve metrics on, for Prometheus, under the path /metrics: to whoever can
    /// connect, without TLS; with port 0 the system chooses one [default: metrics are not served]
    #[arg(long, env = "THALWEG_METRICS_LISTEN", value_name = "ADDRESS:PORT")]
    metrics_listen: Option<SocketAddr>,

    /// Only in a file: on the command line it is an option of every command.
    #[arg(skip)]
    log: Option<String>,
}

/// What `thalweg node` runs with.
#[derive(Debug)]
pub(crate) struct ReadyConfig {
    /// The node's own part.
    pub(crate) node: NodeConfig,
    /// Where its metrics are served, if they are.
    pub(crate) metrics_listen: Option<SocketAddr>,
    /// Filter of the logs, where the file names one.
    pub(crate) log: Option<String>,
}

/// Why there is no configuration.
#[derive(Debug, Error)]
pub(crate) enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration file {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is no TOML, has an unknown key, or a value of another type.
    #[error(
        "the configuration file {} is not valid: {}",
        path.display(), source.to_string().trim_end()
    )]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and why; names the allowed keys when one is unknown.
        source: toml::de::Error,
    },
}

impl NodeArgs {
    /// Reads the file, if one is named, and lays flags and environment over it.
    ///
    /// # Errors
    /// When the file cannot be read or is not valid.
    pub(crate) fn into_config(self) -> Result<ReadyConfig, ConfigError> {
        let file = match &self.config {
            Some(path) => RawConfig::from_file(path)?,
            None => RawConfig::default(),
        };
        Ok(self.flags.over(file).ready())
    }
}

impl RawConfig {
    fn from_file(path: &Path) -> Result<RawConfig, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        toml::from_str(&text).map_err(|source| ConfigError::Parse { path: path.to_owned(), source })
    }

    /// These values where they are given, `below` where not.
    fn over(self, below: RawConfig) -> RawConfig {
        RawConfig {
            data_dirs: self.data_dirs.or(below.data_dirs),
            listen: self.listen.or(below.listen),
            cores: self.cores.or(below.cores),
            memory_bytes: self.memory_bytes.or(below.memory_bytes),
            segment_bytes: self.segment_bytes.or(below.segment_bytes),
            prefill_bytes: self.prefill_bytes.or(below.prefill_bytes),
            standalone: self.standalone.or(below.standalone),
            retention_s: self.retention_s.or(below.retention_s),
            merge_after_s: self.merge_after_s.or(below.merge_after_s),
            scrub_period_s: self.scrub_period_s.or(below.scrub_period_s),
            scrub_bytes_per_s: self.scrub_bytes_per_s.or(below.scrub_bytes_per_s),
            min_frame_bytes_per_s: self.min_frame_bytes_per_s.or(below.min_frame_bytes_per_s),
            connections_per_core_max: self
                .connections_per_core_max
                .or(below.connections_per_core_max),
            metrics_listen: self.metrics_listen.or(below.metrics_listen),
            log: self.log.or(below.log),
        }
    }

    /// Fills what no source names with the node's defaults.
    fn ready(self) -> ReadyConfig {
        let default = NodeConfig::default();
        let bytes = |size: Option<Size>, default| size.map_or(default, |size| size.0);
        let node = NodeConfig {
            data_dirs: self.data_dirs.unwrap_or(default.data_dirs),
            listen: self.listen.unwrap_or(default.listen),
            cores: self.cores.unwrap_or(default.cores),
            memory_bytes: bytes(self.memory_bytes, default.memory_bytes),
            segment_bytes: bytes(self.segment_bytes, default.segment_bytes),
            prefill_bytes: bytes(self.prefill_bytes, default.prefill_bytes),
            standalone: self.standalone.unwrap_or(default.standalone),
            retention_s: self.retention_s.unwrap_or(default.retention_s),
            merge_after_s: self.merge_after_s.unwrap_or(default.merge_after_s),
            scrub_period_s: self.scrub_period_s.unwrap_or(default.scrub_period_s),
            scrub_bytes_per_s: bytes(self.scrub_bytes_per_s, default.scrub_bytes_per_s),
            min_frame_bytes_per_s: bytes(self.min_frame_bytes_per_s, default.min_frame_bytes_per_s),
            connections_per_core_max: self
                .connections_per_core_max
                .unwrap_or(default.connections_per_core_max),
        };
        ReadyConfig { node, metrics_listen: self.metrics_listen, log: self.log }
    }
}

/// A number, or a list of them.
fn one_or_many<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<u64>>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "seconds, or a list of them")]
    enum OneOrMany {
        One(u64),
        Many(Vec<u64>),
    }
    let found = OneOrMany::deserialize(deserializer)?;
    Ok(Some(match found {
        OneOrMany::One(value) => vec![value],
        OneOrMany::Many(values) => values,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{CommandFactory, FromArgMatches, Parser};

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        node: NodeArgs,
    }

    /// Parses flags alone: what the test's environment holds is left out of account.
    fn flags(arguments: &[&str]) -> NodeArgs {
        let command = Command::command().mut_args(|argument| argument.env(None::<&str>));
        let arguments = std::iter::once(&"node").chain(arguments);
        let matches = command.try_get_matches_from(arguments).unwrap();
        Command::from_arg_matches(&matches).unwrap().node
    }

    fn file(text: &str) -> (tempfile::TempDir, String) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("thalweg.toml");
        std::fs::write(&path, text).unwrap();
        let path = path.to_str().unwrap().to_owned();
        (dir, path)
    }

    #[test]
    fn without_anything_the_defaults_hold() {
        let found = flags(&[]).into_config().unwrap();
        assert_eq!(format!("{:?}", found.node), format!("{:?}", NodeConfig::default()));
        assert_eq!((found.metrics_listen, found.log), (None, None));
    }

    #[test]
    fn the_help_states_the_defaults() {
        let default = NodeConfig::default();
        let help = Command::command().term_width(1000).render_long_help().to_string();
        for (name, value) in [
            ("data-dirs", default.data_dirs[0].display().to_string()),
            ("listen", default.listen.to_string()),
            ("cores", default.cores.to_string()),
            ("memory-bytes", Size(default.memory_bytes).to_string()),
            ("segment-bytes", Size(default.segment_bytes).to_string()),
            ("prefill-bytes", Size(default.prefill_bytes).to_string()),
            ("standalone", default.standalone.to_string()),
            ("retention-s", default.retention_s[0].to_string()),
            ("merge-after-s", default.merge_after_s.to_string()),
            ("scrub-period-s", default.scrub_period_s.to_string()),
            ("scrub-bytes-per-s", Size(default.scrub_bytes_per_s).to_string()),
            ("min-frame-bytes-per-s", Size(default.min_frame_bytes_per_s).to_string()),
            ("connections-per-core-max", default.connections_per_core_max.to_string()),
        ] {
            let entry = help.split("\n\n").skip_while(|part| !part.contains(&format!("--{name} ")));
            let entry: Vec<_> = entry.take(2).collect();
            assert!(entry.concat().contains(&format!("[default: {value}]")), "{name}: {entry:?}");
        }
    }

    #[test]
    fn every_key_can_come_from_a_file() {
        let (_dir, path) = file(concat!(
            "data_dirs = ['/a', '/b']\nlisten = '[::1]:9000'\ncores = 3\n",
            "memory_bytes = '2GiB'\nsegment_bytes = 67108864\nprefill_bytes = 0\n",
            "standalone = false\nretention_s = 60\nmerge_after_s = 5\nscrub_period_s = 0\n",
            "scrub_bytes_per_s = '1MiB'\nmin_frame_bytes_per_s = '1MiB'\n",
            "connections_per_core_max = 17\nmetrics_listen = '[::1]:9001'\nlog = 'debug'\n",
        ));
        let found = flags(&["--config", &path]).into_config().unwrap();
        let expected = NodeConfig {
            data_dirs: vec!["/a".into(), "/b".into()],
            listen: "[::1]:9000".parse().unwrap(),
            cores: 3,
            memory_bytes: 2 << 30,
            segment_bytes: 64 << 20,
            prefill_bytes: 0,
            standalone: false,
            retention_s: vec![60],
            merge_after_s: 5,
            scrub_period_s: 0,
            scrub_bytes_per_s: 1 << 20,
            min_frame_bytes_per_s: 1 << 20,
            connections_per_core_max: 17,
        };
        assert_eq!(format!("{:?}", found.node), format!("{expected:?}"));
        assert_eq!(found.metrics_listen, Some("[::1]:9001".parse().unwrap()));
        assert_eq!(found.log.as_deref(), Some("debug"));
    }

    #[test]
    fn flags_win_over_the_file() {
        let (_dir, path) = file("cores = 3\nmemory_bytes = '2GiB'\ndata_dirs = ['/a']\n");
        let arguments =
            ["--config", &path, "--cores", "4", "--data-dir", "/b", "--data-dirs", "/c"];
        let node = flags(&arguments).into_config().unwrap().node;
        assert_eq!((node.cores, node.memory_bytes), (4, 2 << 30));
        assert_eq!(node.data_dirs, [Path::new("/b"), Path::new("/c")]);
    }

    fn complaint(text: &str) -> String {
        let (_dir, path) = file(text);
        flags(&["--config", &path]).into_config().unwrap_err().to_string()
    }

    #[test]
    fn an_unknown_key_is_named_with_the_allowed_ones() {
        let found = complaint("cores = 1\nmemory = 5\n");
        for part in
            ["thalweg.toml", "line 2", "`memory`", "`memory_bytes`", "`standalone`", "`log`"]
        {
            assert!(found.contains(part), "{part} in {found}");
        }
    }

    #[test]
    fn values_of_another_kind_are_refused_with_their_line() {
        for (text, part) in [
            ("memory_bytes = 'much'", "is no size"),
            ("memory_bytes = -1", "not negative"),
            ("memory_bytes = true", "a size: a count of bytes"),
            ("cores = -1", "-1"),
            ("listen = 'here'", "socket address"),
            ("cores 3", "expected"),
        ] {
            let found = complaint(text);
            assert!(found.contains("line 1") && found.contains(part), "{text}: {found}");
        }
    }

    #[test]
    fn a_missing_file_is_named() {
        let found = flags(&["--config", "/no/such/file"]).into_config().unwrap_err();
        assert!(found.to_string().contains("/no/such/file"));
    }
}
