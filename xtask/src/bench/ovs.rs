// SPDX-License-Identifier: Apache-2.0
//! Open vSwitch with its DPDK datapath, in a folder of its own: no service of the system is touched.
//!
//! At the best settings found: one poll thread on CPU 1, the signature match cache on, which is what saves it
//! when the masks of many rules leave few flows in its exact-match cache.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use testkit::process::Process;

use super::cases::{AclRule, Program, acl};
use super::testpmd::memory;
use crate::shell;

const DAEMON: &str = "/usr/lib/openvswitch-switch-dpdk/ovs-vswitchd-dpdk";
/// A switch that is not up by then has failed.
const START_LIMIT: Duration = Duration::from_secs(60);

/// A running switch; killed on drop.
pub struct Ovs {
    dir: PathBuf,
    /// In the order in which they have to end.
    switch: Process,
    _database: Process,
}

impl Ovs {
    /// Starts it, with a port for each socket. It connects to them; the guests listen.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(dir: &Path, sockets: &[PathBuf], program: Program) -> Result<Self> {
        let dir = dir.join("ovs");
        fs::create_dir_all(&dir)?;
        shell::output(
            Command::new("ovsdb-tool")
                .arg("create")
                .args([dir.join("conf.db"), "/usr/share/openvswitch/vswitch.ovsschema".into()]),
        )?;
        let environment = ["OVS_RUNDIR", "OVS_LOGDIR", "OVS_DBDIR"].map(|name| (name, dir.clone()));
        let database = Process::start(Path::new("ovsdb-server"), dir.join("ovsdb.log"), |command| {
            command.envs(environment.clone()).arg(dir.join("conf.db"));
            command.arg(format!("--remote=punix:{}", dir.join("db.sock").display()));
        })?;
        await_file(&dir.join("db.sock"))?;
        let set = |words: &[&str]| {
            let mut command = Command::new("ovs-vsctl");
            command
                .arg(format!("--db=unix:{}", dir.join("db.sock").display()))
                .arg("--timeout=60")
                .args(words);
            shell::output(&mut command)
        };
        let extra = format!("other_config:dpdk-extra={} -m 1024 --no-pci", memory(1024).join(" "));
        set(&["--no-wait", "init"])?;
        set(&[
            "--no-wait",
            "set",
            "Open_vSwitch",
            ".",
            "other_config:dpdk-init=true",
            "other_config:pmd-cpu-mask=0x2",
            "other_config:smc-enable=true",
            &extra,
        ])?;
        let switch = Process::start(Path::new(DAEMON), dir.join("vswitchd.log"), |command| {
            command.envs(environment).arg(format!("unix:{}", dir.join("db.sock").display()));
        })?;
        let ovs = Self { dir: dir.clone(), switch, _database: database };
        set(&["add-br", "br0", "--", "set", "bridge", "br0", "datapath_type=netdev", "fail_mode=secure"])
            .with_context(|| ovs.switch.log_tail())?;
        for (number, socket) in sockets.iter().enumerate() {
            let (port, path) =
                (format!("p{number}"), format!("options:vhost-server-path={}", socket.display()));
            let request = format!("ofport_request={}", number + 1);
            let kind = "type=dpdkvhostuserclient";
            set(&["add-port", "br0", &port, "--", "set", "interface", &port, kind, &path, &request])?;
        }
        let rules = dir.join("rules.txt");
        fs::write(&rules, self::rules(program))?;
        shell::output(
            Command::new("ovs-ofctl")
                .args(["-O", "OpenFlow14", "--bundle", "replace-flows"])
                .arg(format!("unix:{}", dir.join("br0.mgmt").display()))
                .arg(rules),
        )?;
        Ok(ovs)
    }

    pub fn pid(&self) -> u32 {
        self.switch.pid()
    }

    /// Connections that it tracks.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn connections(&self) -> Result<u64> {
        let name = Path::new(DAEMON).file_name().unwrap_or_default();
        let control = self.dir.join(format!("{}.{}.ctl", name.display(), self.pid()));
        let mut command = Command::new("ovs-appctl");
        command.arg("-t").arg(control).arg("dpctl/ct-get-nconns");
        let words = shell::lines(&mut command).with_context(|| self.switch.log_tail())?;
        let number = words.first().and_then(|line| line.trim().parse().ok());
        number.with_context(|| format!("no number of connections: {words:?}"))
    }
}

/// The same meaning as our own mesh's, as OpenFlow.
fn rules(program: Program) -> String {
    if program == Program::Track {
        return "\
table=0,priority=100,ip,ct_state=-trk,actions=ct(table=1)
table=1,priority=100,ip,ct_state=+trk+new,in_port=1,actions=ct(commit),output:2
table=1,priority=100,ip,ct_state=+trk+new,in_port=2,actions=ct(commit),output:1
table=1,priority=100,ip,ct_state=+trk+est,in_port=1,actions=output:2
table=1,priority=100,ip,ct_state=+trk+est,in_port=2,actions=output:1
"
        .to_owned();
    }
    let mut rules =
        String::from("priority=1,in_port=1,actions=output:2\npriority=1,in_port=2,actions=output:1\n");
    if program == Program::Hop {
        rules.push_str("priority=2,ip,in_port=2,nw_src=10.0.0.1,actions=drop\n");
    }
    let Program::Acl { rules: count } = program else { return rules };
    for (number, rule) in acl(count).enumerate() {
        let AclRule { source_bits, destination_bits, destination, port, ports } = rule;
        let [high, low] = destination.to_be_bytes();
        writeln!(
            rules,
            "priority={},udp,nw_src=10.0.0.1/{source_bits},nw_dst=10.0.{high}.{low}/{destination_bits},\
             tp_dst={port:#x}/{:#x},actions=drop",
            number + 10,
            !(ports - 1),
        )
        .expect("a string takes all");
    }
    rules
}

fn await_file(path: &Path) -> Result<()> {
    let deadline = Instant::now() + START_LIMIT;
    while !path.exists() {
        if Instant::now() > deadline {
            bail!("no {} within {START_LIMIT:?}", path.display());
        }
        std::thread::park_timeout(Duration::from_millis(5));
    }
    Ok(())
}
