// SPDX-License-Identifier: Apache-2.0
//! What the daemon is told: flags over a TOML file over defaults, validated once.

mod dns;
mod export;
mod flows;
mod traces;

use std::path::{Path, PathBuf};
use std::time::Duration;

use model::{BitRate, Cidr, CidrError, Level, Ranges, RangesError, VmRef};
use serde::Deserialize;
use telemetry::LogFormat;

use dns::RawDns;
pub use dns::{Dns, Upstreams};
pub use flows::Flows;
use flows::RawFlows;

use crate::export::ExportConfig;
use crate::otlp::TracesConfig;

/// Most poll cores beside the side core.
pub const CORES_MAX: usize = 8;

/// The service mesh under the virtual machines of this host.
///
/// Serves each virtual machine's network card over vhost-user, switches its frames by policy, and
/// learns from the guest's memory which process is behind each connection. The guest needs nothing.
#[derive(Debug, clap::Parser)]
#[command(
    name = "meshvisor-hostd",
    version,
    after_help = "Examples:\n  \
        meshvisor-hostd --manifests examples/shop\n  \
        meshvisor-hostd --config /etc/meshvisor/hostd.toml --check\n  \
        meshvisor-hostd --runtime-dir /tmp/look --inspect acme/web=web.ram\n\n\
        Exit codes: 0 stopped on request, 1 could not start or go on, 2 wrong usage."
)]
pub struct Args {
    /// Settings in TOML; flags override them
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Directory of resources in YAML, watched for change
    #[arg(long, value_name = "DIR")]
    manifests: Option<PathBuf>,
    /// Only look into this guest's RAM, for `meshctl vm`; may be given several times. FILE is what a VMM shares
    /// (`memory-backend-file`, `/proc/PID/fd/N`) or a dump: raw, LiME or ELF core
    #[arg(long, value_name = "TENANT/VM=FILE", conflicts_with = "manifests", value_parser = ram_source)]
    inspect: Vec<RamSource>,
    /// Directory for sockets and the flow table [default: $XDG_RUNTIME_DIR/meshvisor, as root /run/meshvisor]
    #[arg(long, value_name = "DIR")]
    runtime_dir: Option<PathBuf>,
    /// Which log lines to print: a level, or target=level,...  [default: info]
    #[arg(long, value_name = "FILTER")]
    log: Option<String>,
    /// Print log lines as JSON
    #[arg(long)]
    log_json: bool,
    /// Validate settings and resources, say what is wrong, and exit
    #[arg(long)]
    pub check: bool,
}

/// The settings file as written. Unknown keys are errors.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawConfig {
    manifests: Option<PathBuf>,
    runtime_dir: Option<PathBuf>,
    admin_group: Option<u32>,
    #[serde(default)]
    log: RawLog,
    #[serde(default)]
    attribution: RawAttribution,
    #[serde(default)]
    introspection: RawIntrospection,
    #[serde(default)]
    flows: RawFlows,
    #[serde(default)]
    poll: RawPoll,
    export: Option<export::RawExport>,
    traces: Option<traces::RawTraces>,
    #[serde(default)]
    services: RawServices,
    #[serde(default)]
    dns: RawDns,
    #[serde(default)]
    qos: RawQos,
}

/// What the host can move.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawQos {
    capacity_mbit_per_second: Option<u64>,
}

impl RawQos {
    fn capacity(&self) -> Result<BitRate, ConfigError> {
        let (key, range) = ("qos.capacity_mbit_per_second", "1 to 1000000");
        let megabits = within(key, self.capacity_mbit_per_second.unwrap_or(10_000), 1, 1_000_000, range)?;
        Ok(BitRate::new(megabits * 1_000_000).expect("any such number of megabits is a rate"))
    }
}

/// Ranges of virtual addresses, an IPv4 and an IPv6 one each.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawServices {
    infrastructure: Option<[String; 2]>,
    tenant: Option<[String; 2]>,
    application: Option<[String; 2]>,
    instance: Option<[String; 2]>,
    callers: Option<[String; 2]>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawIntrospection {
    enabled: Option<bool>,
    threats: Option<bool>,
    profiles: Option<PathBuf>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawPoll {
    cores: Option<u64>,
    #[serde(default)]
    cpus: Vec<usize>,
}

/// The poll cores.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PollSettings {
    /// How many poll cores ports are spread over: 1 to 8, default 1. There is one more for guests whose memory faults.
    pub cores: usize,
    /// The one CPU that each core may run on, counted from zero, the side core's last; default any.
    pub cpus: Vec<usize>,
}

impl TryFrom<RawPoll> for PollSettings {
    type Error = ConfigError;

    fn try_from(raw: RawPoll) -> Result<Self, ConfigError> {
        const RANGE: &str = "1 to 8";
        let cores = within("poll.cores", raw.cores.unwrap_or(1), 1, CORES_MAX as u64, RANGE)?;
        let cpus = within("poll.cpus", raw.cpus.len() as u64, 0, cores + 1, "no more CPUs than cores");
        cpus.map(|_| Self { cores: cores as usize, cpus: raw.cpus })
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawLog {
    filter: Option<String>,
    #[serde(default)]
    json: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawAttribution {
    wait_ms: Option<u64>,
}

/// A guest's RAM in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RamSource {
    /// What the guest is called.
    pub vm: VmRef,
    /// The file.
    pub path: PathBuf,
}

fn ram_source(text: &str) -> Result<RamSource, String> {
    let (vm, path) = text.split_once('=').ok_or("must be TENANT/VM=FILE")?;
    let vm = vm.parse().map_err(|error| telemetry::Chain(&error).to_string())?;
    Ok(RamSource { vm, path: path.into() })
}

/// What the daemon serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// The machines of a directory of resources.
    Manifests(PathBuf),
    /// Looks into guests whose RAM is in files, and nothing else.
    RamFiles(Vec<RamSource>),
}

/// Validated settings.
#[derive(Debug)]
pub struct Config {
    /// What is served.
    pub source: Source,
    /// Directory of sockets and of the flow table.
    pub runtime_dir: PathBuf,
    /// Group that may use the admin socket besides the owner and root; none: nobody else.
    pub admin_group: Option<u32>,
    /// Filter of log lines.
    pub log_filter: String,
    /// Look of log lines.
    pub log_format: LogFormat,
    /// Longest wait for one attribution while its frame stays in the guest's ring: 1 ms to 1 s,
    /// default 50 ms. A frame whose answer comes later is dropped and left to retransmission.
    pub attribution_wait: Duration,
    /// Whether guests' memory is looked into; default yes. If not, every process is unknown.
    pub introspection: bool,
    /// Whether guests' kernels are inspected for threats all the time; default no.
    pub threats: bool,
    /// Folder with type information of kernels that carry none, `RELEASE.btf` each; default none: such guests are not
    /// understood.
    pub profiles: Option<PathBuf>,
    /// The poll cores.
    pub poll: PollSettings,
    /// The flow table, limits and time-outs.
    pub flows: Flows,
    /// Where records of flows go; none: nowhere.
    pub export: Option<ExportConfig>,
    /// Where spans of traced flows go; none: nowhere.
    pub traces: Option<TracesConfig>,
    /// Where virtual addresses of services come from: for each level, and for callers from other tenants, an
    /// IPv4 and an IPv6 range of 256 addresses or more. Default: 100.96.0.0/16 to 100.100.0.0/16 and
    /// fd6d:6573:6800::/64 to fd6d:6573:6800:4::/64.
    pub ranges: Ranges,
    /// How names are answered.
    pub dns: Dns,
    /// What the host can move, of which machines can reserve parts: 1 Mbit/s to 1 Tbit/s, default 10 Gbit/s.
    pub capacity: BitRate,
}

/// Why the settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("settings file {path:?} cannot be read")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not TOML, or holds an unknown key or a value of the wrong type.
    #[error("settings file {path:?} is wrong")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: Box<toml::de::Error>,
    },
    /// A setting in the file cannot be used.
    #[error("settings file {path:?} is wrong")]
    Setting {
        /// The file.
        path: PathBuf,
        /// Which setting and why.
        source: Box<ConfigError>,
    },
    /// No resources were named.
    #[error(
        "no resources: give --manifests DIR or --inspect TENANT/VM=FILE, or `manifests` in the settings file"
    )]
    NoManifests,
    /// Neither a flag nor the environment says where sockets go.
    #[error("no directory for sockets: give --runtime-dir DIR, or set XDG_RUNTIME_DIR")]
    NoRuntimeDir,
    /// A folder that is not there.
    #[error("`introspection.profiles` is {0:?}: no such folder")]
    NoProfiles(PathBuf),
    /// Not a range of addresses.
    #[error("`services` holds something that is not a range")]
    Cidr(#[from] CidrError),
    /// Ranges that cannot be used together.
    #[error("the ranges in `services` cannot be used")]
    Ranges(#[from] RangesError),
    /// An upstream that is no address.
    #[error("`dns.upstreams` has `{0}`: must be an address, with or without a port")]
    Upstream(String),
    /// A collector that cannot be reached.
    #[error(
        "`traces.endpoint` is `{0}`: must be a URL as in `http://127.0.0.1:4318`; spans are not sent encrypted, so have them \
         taken by a collector on this host, or on a network that you trust"
    )]
    TracesEndpoint(String),
    /// A value outside its range.
    #[error("`{key}` is {value}: must be {range}")]
    Range {
        /// Dotted path of the setting.
        key: &'static str,
        /// What was given.
        value: u64,
        /// What is allowed.
        range: &'static str,
    },
}

impl ConfigError {
    /// Names the file, if that is what is wrong.
    fn of_file(self, path: &Path) -> Self {
        match self {
            Self::NoManifests | Self::NoRuntimeDir => self,
            wrong => Self::Setting { path: path.to_owned(), source: Box::new(wrong) },
        }
    }
}

impl Config {
    /// Reads the settings file, if any, and lays the flags over it.
    ///
    /// # Errors
    /// The first setting that cannot be used.
    pub fn load(args: &Args) -> Result<Self, ConfigError> {
        match &args.config {
            Some(path) => Self::of(args, read(path)?).map_err(|error| error.of_file(path)),
            None => Self::of(args, RawConfig::default()),
        }
    }

    fn of(args: &Args, raw: RawConfig) -> Result<Self, ConfigError> {
        let wait_ms =
            within("attribution.wait_ms", raw.attribution.wait_ms.unwrap_or(50), 1, 1000, "1 to 1000")?;
        let flows = raw.flows.validated()?;
        let poll = raw.poll.try_into()?;
        let export = raw.export.map(ExportConfig::try_from).transpose()?;
        let source = if args.inspect.is_empty() {
            let manifests = args.manifests.clone().or(raw.manifests);
            Source::Manifests(manifests.ok_or(ConfigError::NoManifests)?)
        } else {
            Source::RamFiles(args.inspect.clone())
        };
        let json = args.log_json || raw.log.json;
        Ok(Self {
            source,
            runtime_dir: args
                .runtime_dir
                .clone()
                .or(raw.runtime_dir)
                .or_else(default_runtime_dir)
                .ok_or(ConfigError::NoRuntimeDir)?,
            admin_group: raw.admin_group,
            log_filter: args.log.clone().or(raw.log.filter).unwrap_or_else(|| "info".into()),
            log_format: if json { LogFormat::Json } else { LogFormat::Text },
            attribution_wait: Duration::from_millis(wait_ms),
            introspection: raw.introspection.enabled.unwrap_or(true),
            threats: raw.introspection.threats.unwrap_or(false),
            profiles: raw.introspection.profiles.map(folder).transpose()?,
            poll,
            flows,
            export,
            traces: raw.traces.map(TracesConfig::try_from).transpose()?,
            ranges: ranges(&raw.services)?,
            dns: raw.dns.validated()?,
            capacity: raw.qos.capacity()?,
        })
    }
}

fn read(path: &Path) -> Result<RawConfig, ConfigError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    toml::from_str(&text)
        .map_err(|source| ConfigError::Parse { path: path.to_owned(), source: Box::new(source) })
}

fn folder(path: PathBuf) -> Result<PathBuf, ConfigError> {
    if path.is_dir() { Ok(path) } else { Err(ConfigError::NoProfiles(path)) }
}

fn ranges(raw: &RawServices) -> Result<Ranges, ConfigError> {
    let usual = Ranges::default();
    let pair = |raw: &Option<[String; 2]>, usual: (Cidr, Cidr)| match raw {
        Some([v4, v6]) => Ok((v4.parse()?, v6.parse()?)),
        None => Ok::<_, CidrError>(usual),
    };
    let level = |raw, level| pair(raw, usual.level(level));
    let levels = [
        level(&raw.infrastructure, Level::Infrastructure)?,
        level(&raw.tenant, Level::Tenant)?,
        level(&raw.application, Level::Application)?,
        level(&raw.instance, Level::Instance)?,
    ];
    Ok(Ranges::new(levels, pair(&raw.callers, usual.callers())?)?)
}

fn within(
    key: &'static str,
    value: u64,
    min: u64,
    max: u64,
    range: &'static str,
) -> Result<u64, ConfigError> {
    if (min..=max).contains(&value) { Ok(value) } else { Err(ConfigError::Range { key, value, range }) }
}

fn default_runtime_dir() -> Option<PathBuf> {
    match std::env::var_os("XDG_RUNTIME_DIR") {
        Some(dir) if !dir.is_empty() => Some(PathBuf::from(dir).join("meshvisor")),
        _ => rustix::process::geteuid().is_root().then(|| PathBuf::from("/run/meshvisor")),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    fn config(toml: &str, flags: &[&str]) -> Result<Config, ConfigError> {
        let dir = testkit::scratch::Scratch::new("config").unwrap();
        let path = dir.join("hostd.toml");
        std::fs::write(&path, toml).unwrap();
        let path = path.to_str().unwrap().to_owned();
        let words = ["meshvisor-hostd", "--config", &path].into_iter().chain(flags.iter().copied());
        Config::load(&Args::try_parse_from(words).unwrap())
    }

    #[test]
    fn flags_override_the_file() {
        let toml = "manifests = '/a'\nruntime_dir = '/r'\n[log]\nfilter = 'debug'\n";
        let config = config(toml, &["--manifests", "/b"]).unwrap();
        assert_eq!(config.source, Source::Manifests("/b".into()));
        assert_eq!(config.runtime_dir, Path::new("/r"));
        assert_eq!(config.log_filter, "debug");
    }

    #[test]
    fn files_to_look_into_take_the_place_of_resources() {
        let args = ["--inspect", "acme/web=/a=b", "--inspect", "acme/db=/proc/1/fd/2"];
        let config = config("manifests = '/a'\nruntime_dir = '/r'\n", &args).unwrap();
        let file = |vm: &str, path: &str| RamSource { vm: vm.parse().unwrap(), path: path.into() };
        let files = vec![file("acme/web", "/a=b"), file("acme/db", "/proc/1/fd/2")];
        assert_eq!(config.source, Source::RamFiles(files));
        for wrong in [
            &["--inspect", "acme/web"][..],
            &["--inspect", "web=/a"],
            &["--inspect", "a/b=/c", "--manifests", "/d"],
        ] {
            assert!(Args::try_parse_from(["meshvisor-hostd"].iter().chain(wrong)).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn wrong_settings_are_refused_by_name() {
        for (toml, says) in [
            ("manifest = 'x'", "unknown field `manifest`"),
            ("manifests = 3", "expected"),
            ("[attribution]\nwait_ms = 0", "`attribution.wait_ms` is 0"),
            ("[poll]\ncores = 0", "`poll.cores` is 0: must be 1 to 8"),
            ("[poll]\ncores = 9", "`poll.cores` is 9"),
            ("[poll]\ncpus = [0, 1, 2]", "`poll.cpus` is 3: must be no more CPUs than cores"),
            ("[flows]\nper_port_max = 1", "`flows.per_port_max` is 1"),
            ("[flows.timeouts]\nclosed_s = 0", "`flows.timeouts.closed_s` is 0"),
            ("[export]\ncollector = 'x'", "invalid socket address"),
            ("[export]\ncollector = '[::1]:4739'\ntransport = 'sctp'", "unknown variant `sctp`"),
            (
                "[export]\ncollector = '[::1]:4739'\ntemplate_refresh_s = 0",
                "`export.template_refresh_s` is 0",
            ),
            ("[traces]", "missing field `endpoint`"),
            ("manifests = '/a'\n[traces]\nendpoint = 'https://c'", "`traces.endpoint` is `https://c`"),
            (
                "manifests = '/a'\n[traces]\nendpoint = 'http://c'\ntimeout_ms = 0",
                "`traces.timeout_ms` is 0: must be 100 to 60000",
            ),
            ("runtime_dir = '/r'", "no resources"),
            (
                "manifests = '/a'\n[introspection]\nprofiles = '/none'",
                "`introspection.profiles` is \"/none\": no such folder",
            ),
            ("manifests = '/a'\n[services]\ntenant = ['10.0.0.0/8', 'x']", "`x` is not an address"),
            ("manifests = '/a'\n[services]\ntenant = ['100.99.0.0/24', 'fd01::/64']", "in common"),
        ] {
            let error = config(toml, &[]).unwrap_err();
            let text = telemetry::Chain(&error).to_string();
            assert!(text.contains(says), "{toml:?} gave {text:?}");
            assert!(text.contains("hostd.toml") || text.contains("no resources"), "{text:?}");
        }
    }
}
